"""A small server with OpenAI's chat interface, for tests; run as a program, it takes the arguments of `vllm serve`."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class ChatServer(ThreadingHTTPServer):
    """Answers with what `reply(request)` returns: a text, or (text, finish_reason), or (text, finish_reason, usage).

    failures: statuses to send first.
    """

    def __init__(self, reply: Callable[[dict[str, Any]], Any], port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.reply, self.failures, self.requests, self.headers = reply, [], [], []
        self.redirect = ""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: ChatServer

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _send(self, status: int, content: Any, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.server.headers.append(dict(self.headers))
        if self.server.redirect:
            self._send(302, {}, Location=f"{self.server.redirect}/models")
        elif self.server.failures:
            self._send(self.server.failures.pop(0), {"error": "not now"}, Retry_After="0")
        else:
            self._send(200, {"data": [{"id": "first-model"}, {"id": "second"}]})

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.headers.append(dict(self.headers))
        self.server.requests.append(request)
        if self.server.failures:
            status = self.server.failures.pop(0)
            if status == 0:  # hang up
                return self.connection.close()
            return self._send(status, b"<html>not JSON" if status == 200 else {"error": "no thanks"}, Retry_After="0")
        said = self.server.reply(request)
        text, reason, *usage = said if isinstance(said, tuple) else (said, "stop")
        choices = [{"message": {"content": text}, "finish_reason": reason}]
        self._send(200, {"choices": choices, **({"usage": usage[0]} if usage else {})})


@contextlib.contextmanager
def serving(reply: Callable[[dict[str, Any]], Any]) -> Iterator[ChatServer]:
    """A server of its own in a thread."""
    with ChatServer(reply) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()


if __name__ == "__main__":
    if "broken" in sys.argv[2]:
        sys.exit("vllm: out of memory")

    def reply_or_die(request: dict[str, Any]) -> str:
        if "poison" in request["messages"][-1]["content"][-1]["text"]:
            os._exit(9)
        return f"{request['model']} {' '.join(sys.argv[1:])}"

    with ChatServer(reply_or_die, int(sys.argv[sys.argv.index("--port") + 1])) as own:
        own.serve_forever()
