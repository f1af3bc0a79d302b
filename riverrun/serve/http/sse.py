"""Server-sent events, both ways: writing them, and reading them from bytes that are cut anywhere.

Source of the reading rules: WHATWG HTML, section 9.2.6 "Interpreting an event stream". Event names, ids and retry
times are skipped: no OpenAI-style stream uses them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from riverrun.web.errors import json_bytes

__all__ = ["DONE", "KEEP_ALIVE", "EventParser", "event_bytes", "named_event_bytes"]

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
_BOM = b"\xef\xbb\xbf"


def event_bytes(value: Any) -> bytes:
    """One event whose data is the value's JSON (which holds no line break)."""
    return b"data: " + json_bytes(value) + b"\n\n"


def named_event_bytes(value: Mapping[str, Any]) -> bytes:
    """The same under the name that stands in its `type`."""
    return f"event: {value['type']}\n".encode() + event_bytes(value)


class EventParser:
    """Bytes in, the data of finished events out. For every way of splitting the bytes the events are the same.

    Comments, other fields and an event without its closing blank line are left out.
    """

    def __init__(self) -> None:
        self._start = True
        self._after_return = False
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> list[str]:
        """The data of every event that this chunk finished."""
        buffer = self._rest + chunk
        if self._start:
            if len(buffer) < len(_BOM) and _BOM.startswith(buffer):
                self._rest = buffer
                return []
            self._start, buffer = False, buffer.removeprefix(_BOM)
        events: list[str] = []
        begin = 0
        while True:
            if self._after_return and begin < len(buffer):
                self._after_return = False
                begin += buffer[begin : begin + 1] == b"\n"
            end = _line_end(buffer, begin)
            if end < 0:
                break
            self._line(buffer[begin:end], events)
            self._after_return = buffer[end : end + 1] == b"\r"
            begin = end + 1
        self._rest = buffer[begin:]
        return events

    def _line(self, line: bytes, events: list[str]) -> None:
        if not line:
            if self._data:
                events.append(b"\n".join(self._data).decode("utf-8", "replace"))
            self._data = []
            return
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))


def _line_end(buffer: bytes, begin: int) -> int:
    ends = [at for at in (buffer.find(b"\n", begin), buffer.find(b"\r", begin)) if at >= 0]
    return min(ends, default=-1)
