"""A small Hugging Face Hub on this machine: the few calls by which a bundle is found, downloaded and uploaded."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

WRITER = "hf_writer_0123456789"  # a token that may write to the owner "me"
READER = "hf_reader_0123456789"  # a token that may read alone


@dataclass
class Repository:
    """A model repository; every commit is a whole set of files."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], *refs: str) -> str:
        """Add a commit with these files, as "main" and under other names, and return its hash."""
        before = self.commits.get(self.refs.get("main", ""), {})
        name = hashlib.sha1(repr((sorted(files.items()), len(self.commits))).encode()).hexdigest()
        self.commits[name] = {**before, **files}
        self.refs |= dict.fromkeys(("main", *refs), name)
        return name


class Hub(ThreadingHTTPServer):
    """The server: its repositories, and what was asked of it."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}  # uploaded as LFS objects, by SHA-256
        self.asked: list[tuple[str, str]] = []
        self.damaged = False  # whether downloads have another byte than their digest says
        self.status = 0  # answered to everything
        self.spoiled: dict[str, str] = {}  # headers in place of those of a file
        self.sound = 0  # answers about files before the spoiled ones
        self.longer = b""  # what a download has more than was announced

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *args: object) -> None:
        pass

    def answer(self, status: int, content: object = b"", **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str) -> None:
        self.answer(status, {"error": code}, X_Error_Code=code, X_Error_Message=code)

    def handle_request(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked.append((self.command, self.path))
        path = self.path.partition("?")[0].strip("/")
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if self.server.status:
            self.answer(self.server.status)
        elif path == "api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif path == "api/repos/create":
            self.create(json.loads(body), token)
        elif path.startswith("blobs/"):
            self.server.blobs[path.removeprefix("blobs/")] = body
            self.answer(200)
        else:
            self.ask(path, body, token)

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def ask(self, path: str, body: bytes, token: str) -> None:
        """Answer a request about one repository."""
        parts = path.removeprefix("api/models/").split("/")
        name = "/".join(parts[:2]).removesuffix(".git")
        repository = self.server.repositories.get(name)
        if repository is None or (repository.private and token not in (WRITER, READER)):
            self.refuse(404 if token else 401, "RepoNotFound")
        elif parts[2:3] == ["resolve"]:
            self.resolve(repository, parts[3], "/".join(parts[4:]))
        elif self.command == "GET":
            files = repository.commits.get(repository.refs.get("main", ""), {})
            if "tree" in parts:
                listed = [{"type": "file", "path": n, "size": len(c), "oid": "0" * 40} for n, c in files.items()]
                return self.answer(200, listed)
            siblings = [{"rfilename": file} for file in (".gitattributes", *files)]
            about = {"_id": "1", "id": name, "sha": repository.refs.get("main"), "private": repository.private}
            self.answer(200, {**about, "siblings": siblings, "tags": [], "downloads": 0, "likes": 0})
        elif token != WRITER:
            self.refuse(403, "Forbidden")
        elif path.endswith("info/lfs/objects/batch"):
            objects = [
                {**o, "actions": {"upload": {"href": f"{self.server.address}/blobs/{o['oid']}"}}}
                for o in json.loads(body)["objects"]
            ]
            self.answer(200, {"transfer": "basic", "objects": objects}, Content_Type="application/vnd.git-lfs+json")
        elif "preupload" in parts:
            paths = [file["path"] for file in json.loads(body)["files"]]
            modes = {path: "lfs" if path.endswith("safetensors") else "regular" for path in paths}
            self.answer(200, {"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes.items()]})
        else:
            assert "commit" in parts, path
            self.commit(name, repository, [json.loads(line) for line in body.splitlines()])

    def commit(self, name: str, repository: Repository, lines: list[dict]) -> None:
        files = {v["path"]: base64.b64decode(v["content"]) for v in (x["value"] for x in lines if x["key"] == "file")}
        files |= {v["path"]: self.server.blobs[v["oid"]] for v in (x["value"] for x in lines if x["key"] == "lfsFile")}
        made = repository.commit(files)
        self.answer(200, {"success": True, "commitOid": made, "commitUrl": f"{self.server.address}/{name}/commit/{made}"})

    def create(self, about: dict, token: str) -> None:
        name = f"{about['organization']}/{about['name']}"
        url = f"{self.server.address}/{name}"
        if token != WRITER or about["organization"] != "me":
            self.refuse(403 if token == READER else 401, "Forbidden")
        elif name in self.server.repositories:
            self.answer(409, {"error": "You already created this model repo", "url": url})
        else:
            self.server.repositories[name] = Repository(bool(about.get("private")) or about.get("visibility") == "private")
            self.answer(200, {"url": url})

    def resolve(self, repository: Repository, revision: str, file: str) -> None:
        if repository.gated:
            return self.refuse(403, "GatedRepo")
        commit = repository.refs.get(revision, revision)
        if commit not in repository.commits:
            return self.refuse(404, "RevisionNotFound")
        if file not in repository.commits[commit]:
            return self.answer(404, b"", X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        content = repository.commits[commit][file]
        digest = hashlib.sha256(content).hexdigest()
        if self.server.damaged:
            content = content[:-1] + bytes([content[-1] ^ 1])
        if self.command == "GET":
            content += self.server.longer
        self.server.sound -= 1
        spoiled = self.server.spoiled if self.server.sound < 0 else {}
        headers = {"ETag": f'"{digest}"', "X_Linked_ETag": f'"{digest}"', "X_Repo_Commit": commit, **spoiled}
        return self.answer(200, content, **headers)


@contextmanager
def local_hub() -> Iterator[Hub]:
    """Run such a Hub inside a `with`."""
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


__all__ = ["READER", "WRITER", "Hub", "Repository", "local_hub"]
