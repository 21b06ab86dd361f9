"""The server of `kdpl open`: one page on this machine, for one person.

It listens on 127.0.0.1. Everything lies below a token in the address, which no other site knows. A request is answered if its
`Host` is this address and if no other site has made it; files are sent by the number of a photo, never by a path.
"""

import asyncio
import json
import secrets
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from kdpl.app.session import ChangeError, Session
from kdpl.classifier import gallery

PAGE, SHARED = Path(__file__).parent / "page", Path(gallery.__file__).parent
WAITS = 200  # tenths of a second that a question for news waits for some
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


def make_app(session: Session, token: str, port: int, stopping: Callable[[], bool]) -> Starlette:
    """Return the application that shows a session below `/TOKEN/` on a port; no answer waits once it is `stopping`."""

    async def state(request: Request) -> Response:
        since, paths = (int(request.query_params.get(key, -1)) for key in ("since", "paths"))
        for _ in range(WAITS):
            if session.version != since or stopping() or await request.is_disconnected():
                break
            await asyncio.sleep(0.1)
        return await _json(session.state, paths)

    async def groups(request: Request) -> Response:
        return await _json(session.groups)

    async def change(request: Request) -> Response:
        if request.headers.get("content-type") != "application/json":  # which no other site can send unasked
            return Response(status_code=415)
        try:
            return await _json(session.change, await request.json())
        except (ChangeError, ValueError) as error:
            return JSONResponse({"error": str(error)}, 400)

    async def picture(request: Request) -> Response:
        try:
            content = await run_in_threadpool(session.picture, request.path_params["number"], "large" in request.query_params)
        except (IndexError, OSError, ValueError):
            return Response(status_code=404)
        return Response(content, media_type="image/webp", headers={"Cache-Control": "private, max-age=3600"})

    routes = [
        Route("/api/state", state),
        Route("/api/groups", groups),
        Route("/api/change", change, methods=["POST"]),
        Route("/photo/{number:int}", picture),
        Route("/parts.js", lambda _: FileResponse(SHARED / "parts.js")),
        Route("/parts.css", lambda _: FileResponse(SHARED / "parts.css")),
        Mount("/", StaticFiles(directory=PAGE, html=True)),
    ]
    hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}

    async def guard(request: Request, following: Callable[[Request], Awaitable[Response]]) -> Response:
        host, origin, site = (request.headers.get(name) for name in ("host", "origin", "sec-fetch-site"))
        same = host in hosts and origin in (None, f"http://{host}") and site in (None, "same-origin", "none")
        answer = await following(request) if same else Response(status_code=403)
        for name, value in HEADERS.items():
            answer.headers.setdefault(name, value)
        return answer

    return Starlette(routes=[Mount(f"/{token}", routes=routes)], middleware=[Middleware(BaseHTTPMiddleware, dispatch=guard)])


async def _json(make: Callable[..., Any], *args: Any) -> Response:
    text = await run_in_threadpool(lambda: json.dumps(make(*args), separators=(",", ":")))
    return Response(text, media_type="application/json")


def serve(session: Session, port: int, ready: Callable[[str], None]) -> None:
    """Serve a session until SIGINT or SIGTERM.

    Args:
        port: 0 for a free one.
        ready: called with the address, which answers from now on.
    """
    token = secrets.token_urlsafe(24)
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen()  # who comes before the server is ready waits
        port = listener.getsockname()[1]
        app = make_app(session, token, port, lambda: server.should_exit)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
        ready(f"http://127.0.0.1:{port}/{token}/")
        server.run(sockets=[listener])
