"""The server of `kdpl open`: one page on this machine, for one person.

It listens on 127.0.0.1. Everything lies below a token in the address, which no other site knows. A request is answered if its
`Host` is this address and if no other site has made it; files are sent by the number of a photo, never by a path.
"""

import asyncio
import html
import json
import mimetypes
import secrets
import socket
from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from kdpl.app.session import ChangeError, Session

PAGE, SHARED = files("kdpl.app") / "page", files("kdpl.classifier.gallery")
PARTS = {name: PAGE / name for name in ("app.js", "app.css", "icon.svg")} | {
    name: SHARED / name for name in ("parts.js", "parts.css")
}
LARGEST = 32 * 2**20  # bytes of a request: a label for each of some hundred thousand photos
WAITS = 20.0  # seconds that a question for news waits for some
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

    async def page(request: Request) -> Response:
        text = (PAGE / "index.html").read_text(encoding="utf-8").replace("@TITLE@", html.escape(session.title))
        return Response(text, media_type="text/html")

    async def part(request: Request) -> Response:
        name = request.path_params["part"]
        if name not in PARTS:
            return _nothing()
        kind = "text/javascript" if name.endswith(".js") else mimetypes.guess_type(name)[0]
        return Response(PARTS[name].read_bytes(), media_type=kind)

    async def state(request: Request) -> Response:
        since, waited = _number(request.query_params.get("since")), 0.0
        while session.version == since and waited < WAITS and not stopping() and not await request.is_disconnected():
            await asyncio.sleep(0.1)
            waited += 0.1
        return await _json(session.state)

    async def paths(request: Request) -> Response:
        return await _json(session.paths, _number(request.query_params.get("from")))

    async def change(request: Request) -> Response:
        if request.headers.get("content-type") != "application/json":
            return _nothing(415)
        body = b""
        async for piece in request.stream():
            body += piece
            if len(body) > LARGEST:
                return _nothing(413)
        try:
            wanted = json.loads(body)
            return await _json(session.change, wanted)
        except (ChangeError, ValueError) as error:
            return JSONResponse({"error": str(error)}, 400)

    async def ask(request: Request) -> Response:
        question = {"sample": session.sample, "groups": session.groups}.get(request.path_params["question"])
        return await _json(question) if question else _nothing()

    async def picture(request: Request) -> Response:
        make = {"thumb": session.thumbnail, "photo": session.photo}[request.path_params["size"]]
        try:
            content, kind = await run_in_threadpool(make, request.path_params["number"])
        except (IndexError, OSError, ValueError):
            return _nothing()
        return Response(content, media_type=kind, headers={"Cache-Control": "private, max-age=3600"})

    routes = [
        Route("/", page),
        Route("/{part:str}", part),
        Route("/api/state", state),
        Route("/api/paths", paths),
        Route("/api/change", change, methods=["POST"]),
        Route("/api/{question:str}", ask),
        Route("/{size:str}/{number:int}", picture),
    ]
    return Starlette(
        routes=[Route(f"/{token}{r.path}", r.endpoint, methods=r.methods) for r in routes], middleware=[_guard(port)]
    )


def _guard(port: int) -> Any:
    """Return the middleware that answers this page alone: its `Host`, no other site's request; with headers on everything."""
    from starlette.middleware import Middleware
    from starlette.middleware.base import BaseHTTPMiddleware

    hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}

    async def check(request: Request, following: Callable[[Request], Awaitable[Response]]) -> Response:
        origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site", "none")
        same = request.headers.get("host") in hosts and (origin is None or origin.removeprefix("http://") in hosts)
        answer = await following(request) if same and site in ("same-origin", "none") else _nothing(403)
        for name, value in HEADERS.items():
            answer.headers.setdefault(name, value)
        return answer

    return Middleware(BaseHTTPMiddleware, dispatch=check)


def _nothing(status: int = 404) -> Response:
    return PlainTextResponse("", status)


def _number(text: str | None) -> int:
    return int(text) if text and text.isdigit() else -1


async def _json(make: Callable[..., Any], *args: Any) -> Response:
    return Response(
        await run_in_threadpool(lambda: json.dumps(make(*args), separators=(",", ":"))), media_type="application/json"
    )


def serve(session: Session, port: int, ready: Callable[[str], None]) -> None:
    """Serve a session until SIGINT or SIGTERM.

    Args:
        port: 0 for a free one.
        ready: called with the address, once it answers.
    """
    import uvicorn

    token = secrets.token_urlsafe(24)
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        port = listener.getsockname()[1]
        app = make_app(session, token, port, lambda: server.should_exit)
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)

        async def run() -> None:
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            while not server.started and not serving.done():
                await asyncio.sleep(0.02)
            ready(f"http://127.0.0.1:{port}/{token}/")
            await serving

        asyncio.run(run())
