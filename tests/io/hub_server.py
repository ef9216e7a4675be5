"""A small model hub on this machine: lists trees, redirects to the content, honours ranges, refuses, breaks on request."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """What the server holds and does: `files[repository][path]` and the faults below; `requests` are (path, range)."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.gated: dict[str, int] = {}  # repository: status of its contents (the list is public), 401 or 403
        self.damaged: set[str] = set()  # paths whose content is not what is listed
        self.stall_after: int | None = None  # bytes of a body, after which it waits for `release`
        self.release = threading.Event()
        self.requests: list[tuple[str, str | None]] = []
        self.tokens: dict[str, str | None] = {}  # the last Authorization header by path
        self.content_endpoint = ""  # where large files lie; here by default
        self.endpoint = ""

    @contextlib.contextmanager
    def serve(self) -> Iterator[Hub]:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        self.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield self
        finally:
            self.release.set()
            server.shutdown()
            thread.join()
            server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        hub, path = self.hub, unquote(self.path.split("?")[0])
        hub.requests.append((path, self.headers.get("Range")))
        hub.tokens[path] = self.headers.get("Authorization")
        match = re.fullmatch(
            r"(?:/api/models)?/(?P<repo>[^/]+/[^/]+)(?:/(?P<verb>tree|revision|resolve|cdn)/(?P<at>[^/]+)(?:/(?P<file>.+))?)?",
            path,
        )
        assert match, path
        repo, verb, file = match["repo"], match["verb"], match["file"]
        if repo not in hub.files:
            return self.refuse(401, "RepoNotFound")
        if not re.fullmatch(r"main|[0-9a-f]{40}", match["at"] or "main"):
            return self.refuse(404, "RevisionNotFound")
        files = hub.files[repo]
        if verb == "tree":
            return self.send(json.dumps([self.entry(name, data) for name, data in files.items()]).encode())
        if verb is None or verb == "revision":
            names = [{"rfilename": name} for name in files]
            return self.send(json.dumps({"id": repo, "sha": COMMIT, "siblings": names}).encode())
        if repo in hub.gated:
            return self.refuse(hub.gated[repo], "GatedRepo")
        if file not in files:
            return self.refuse(404, "EntryNotFound")
        data = files[file]
        if verb == "resolve" and len(data) > 100:  # a large file lies elsewhere
            etag = hashlib.sha256(data).hexdigest()
            headers = {
                "Location": f"{hub.content_endpoint}/{repo}/cdn/main/{file}",
                "X-Linked-Size": str(len(data)),
                "X-Linked-Etag": etag,
            }
            return self.send(b"", 302, {**headers, "X-Repo-Commit": COMMIT})
        if file in hub.damaged:
            data = data[:-1] + b"!"
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        headers = {"ETag": f'"{self.oid(data)}"', "X-Repo-Commit": COMMIT}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self.send(data[start:], 206 if start else 200, headers, stall=hub.stall_after)

    def entry(self, name: str, data: bytes) -> dict[str, object]:
        entry: dict[str, object] = {"type": "file", "path": name, "oid": self.oid(data), "size": len(data)}
        if len(data) > 100:
            entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        return entry

    def oid(self, data: bytes) -> str:
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    def refuse(self, status: int, code: str) -> None:
        self.send(b"", status, {"X-Error-Code": code})

    def send(
        self, body: bytes, status: int = 200, headers: dict[str, str] | None = None, stall: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        with contextlib.suppress(OSError):  # the client was killed
            if stall is not None and len(body) > stall:
                self.wfile.write(body[:stall])
                self.wfile.flush()
                self.hub.release.wait(60)
                self.close_connection = True
                return
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass
