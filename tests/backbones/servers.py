"""Local servers to download from: one that breaks off, one that speaks as much of the hub's API as its client needs."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Files:
    """What a server gives, how it misbehaves, and what it was asked for."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.break_after: list[int] = []  # bytes after which the connection of the next answers is cut
        self.ranges: list[str | None] = []  # of each answered request
        self.sent: list[str] = []  # paths whose content was sent
        self.redirects: dict[str, str] = {}
        self.resumable = self.says_length = True


class Handler(BaseHTTPRequestHandler):
    files: Files

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        content = self.files.files.get(self.path.partition("?")[0])
        if there := self.files.redirects.get(self.path):
            self.send_response(302)
            self.send_header("Location", there)
            return self.end_headers()
        if content is None:
            return self.send_error(404)
        asked = self.headers.get("Range")
        self.files.ranges.append(asked)
        tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
        same = self.headers.get("If-Range") in (None, tag)
        begin = int(asked.removeprefix("bytes=").partition("-")[0]) if asked and same and self.files.resumable else 0
        if begin and begin >= len(content):
            return self.send_error(416)
        self.send_response(206 if begin else 200)
        if self.files.resumable:
            self.send_header("ETag", tag)
        if self.files.says_length:
            self.send_header("Content-Length", str(len(content) - begin))
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        cut = self.files.break_after.pop(0) if self.files.break_after else None
        self.wfile.write(content[begin:][:cut])
        if cut is not None:
            self.wfile.flush()
            self.connection.close()


COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubHandler(BaseHTTPRequestHandler):
    """/api/models/OWNER/NAME[/...] lists the files; /OWNER/NAME/resolve/REVISION/FILE gives one."""

    files: Files

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        path = self.path.partition("?")[0].strip("/")
        if path.startswith("api/models/"):
            return self.list_files(path.removeprefix("api/models/"))
        owner, name, *rest = path.split("/", 4)
        file = rest[-1] if len(rest) == 3 else ""
        content = self.files.files.get(f"{owner}/{name}/{file}")
        if content is None:
            known = any(key.startswith(f"{owner}/{name}/") for key in self.files.files)
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_body:
            self.files.sent.append(path)
            self.wfile.write(content)

    def list_files(self, path: str) -> None:
        owner, name, *_ = path.split("/")
        names = [key.split("/", 2)[2] for key in self.files.files if key.startswith(f"{owner}/{name}/")]
        self.send_response(200 if names else 404)
        body: object = {"id": f"{owner}/{name}", "sha": COMMIT, "siblings": [{"rfilename": n} for n in names]}
        if "/tree/" in path:
            body = [{"type": "file", "path": n, "size": 1, "oid": "0"} for n in names]
        text = json.dumps(body if names else {"error": "Repository not found"}).encode()
        if not names:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


@contextmanager
def serving(files: dict[str, bytes], handler: type[BaseHTTPRequestHandler] = Handler) -> Iterator[tuple[str, Files]]:
    """The address of a server of these files, and its record."""
    record = Files(files)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (handler,), {"files": record}))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", record
    finally:
        server.shutdown()
        server.server_close()
