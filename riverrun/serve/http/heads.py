"""HTTP/1.1 by httptools with a bound on what comes before a body: httptools itself reads a header of any length.

httptools and not h11, uvicorn's other choice, which takes half of what a streamed token costs here.
"""

from __future__ import annotations

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from riverrun.web.errors import HttpError, error_body, json_bytes

__all__ = ["MAX_HEAD_BYTES", "LimitedProtocol"]

MAX_HEAD_BYTES = 64 * 1024
"""Of request line and headers together."""


class LimitedProtocol(HttpToolsProtocol):
    """Ends a connection whose request line, headers, chunk marks or trailers are too long, with a 431 where it can."""

    _head = 0
    _idle = 0
    """Bytes since the parser last gave something that is read."""

    def data_received(self, data: bytes) -> None:
        self._idle += len(data)
        super().data_received(data)
        if self._idle > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._head = self._idle
            self.send_400_response("")

    def on_message_begin(self) -> None:
        self._head = self._idle = 0
        super().on_message_begin()  # type: ignore[no-untyped-call]

    def on_url(self, url: bytes) -> None:
        self._add(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._add(len(name) + len(value) + 4)  # ": " and the line's end
        super().on_header(name, value)

    def _add(self, count: int) -> None:
        self._head += count
        if self._head > MAX_HEAD_BYTES:
            raise httptools.HttpParserError("the head is too long")

    def on_headers_complete(self) -> None:
        self._idle = 0
        super().on_headers_complete()  # type: ignore[no-untyped-call]

    def on_body(self, body: bytes) -> None:
        self._idle = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._idle = 0
        super().on_message_complete()  # type: ignore[no-untyped-call]

    def send_400_response(self, msg: str) -> None:
        """In the form of every other error; nothing where an answer is under way."""
        cycle = self.cycle
        if cycle is None or not cycle.response_started or cycle.response_complete:
            self.transport.write(_too_long() if self._head > MAX_HEAD_BYTES else _no_http())
        self.transport.close()


def _too_long() -> bytes:
    text = f"request line and headers are longer than {MAX_HEAD_BYTES} bytes: send less"
    return _answer("Request Header Fields Too Large", HttpError(431, text, code="head_too_large"))


def _no_http() -> bytes:
    return _answer("Bad Request", HttpError(400, "this is no HTTP/1.1 request: send one", code="invalid_request"))


def _answer(reason: str, error: HttpError) -> bytes:
    content = json_bytes(error_body(error))
    lines = (
        f"HTTP/1.1 {error.status} {reason}",
        "content-type: application/json",
        f"content-length: {len(content)}",
        "connection: close",
    )
    return "\r\n".join([*lines, "", ""]).encode() + content
