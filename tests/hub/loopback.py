"""A loopback HTTP server whose next answers are scripted, faults included."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

__all__ = ["LoopbackServer"]

Behaviour = Callable[["_Handler", bytes], None]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: LoopbackServer

    def do_GET(self) -> None:
        owner = self.server
        owner.seen.append((self.path, dict(self.headers)))
        behaviour = owner.script.pop(0) if owner.script else ranged
        behaviour(self, owner.files.get(self.path, b""))

    def log_message(self, format: str, *args: object) -> None:
        pass

    def begin(self, status: int, length: int, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.send_header("Connection", "close")
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.close_connection = True


def ranged(handler: _Handler, body: bytes) -> None:
    """A well-behaved file server."""
    asked = handler.headers.get("Range")
    if not body:
        handler.begin(404, 0)
    elif asked is None or handler.headers.get("If-Range", handler.server.etag) != handler.server.etag:
        handler.begin(200, len(body), ETag=handler.server.etag)
        handler.wfile.write(body)
    else:
        start = int(asked.removeprefix("bytes=").rstrip("-"))
        if start >= len(body):
            handler.begin(416, 0)
            return
        span = f"bytes {start}-{len(body) - 1}/{len(body)}"
        handler.begin(206, len(body) - start, Content_Range=span, ETag=handler.server.etag)
        handler.wfile.write(body[start:])


def whole(handler: _Handler, body: bytes) -> None:
    """A server that knows no ranges."""
    handler.begin(200, len(body))
    handler.wfile.write(body)


def cut(count: int) -> Behaviour:
    """Promises everything, sends so many bytes, hangs up."""

    def behave(handler: _Handler, body: bytes) -> None:
        handler.begin(200, len(body), ETag=handler.server.etag)
        handler.wfile.write(body[:count])

    return behave


def hold(count: int, until: threading.Event) -> Behaviour:
    """Sends so many bytes, the rest when the event comes."""

    def behave(handler: _Handler, body: bytes) -> None:
        handler.begin(200, len(body), ETag=handler.server.etag)
        handler.wfile.write(body[:count])
        handler.wfile.flush()
        until.wait(60)
        try:
            handler.wfile.write(body[count:])
        except OSError:
            handler.close_connection = True  # the reader was killed

    return behave


def status(code: int) -> Behaviour:
    return lambda handler, body: handler.begin(code, 0)


def redirect(to: str) -> Behaviour:
    return lambda handler, body: handler.begin(302, 0, Location=to)


class LoopbackServer(ThreadingHTTPServer):
    """`files` maps paths to bytes; `script` holds the behaviours of the next requests; `seen` what was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.script: list[Behaviour] = []
        self.seen: list[tuple[str, dict[str, str]]] = []
        self.etag = '"v1"'

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is no news here."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()
        self.server_close()
