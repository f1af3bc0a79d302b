"""The event parser gives the same events for every way of cutting the bytes."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from riverrun.serve.http.sse import DONE, KEEP_ALIVE, EventParser, event_bytes

STREAM = (
    "\ufeffdata: one\n\n: a comment\n\nevent: x\nid: 3\ndata:two\r\ndata:  lines\r\n\r\ndata\n\n"
    "retry: 5\rdata: 中文 🙂\r\rdata: [DONE]\n\ndata: never finished"
).encode()
EVENTS = ["one", "two\n lines", "", "中文 🙂", "[DONE]"]


def parse(chunks: list[bytes]) -> list[str]:
    parser = EventParser()
    return [event for chunk in chunks for event in parser.feed(chunk)]


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({min(p, len(data)) for p in places} | {len(data)})
    return [data[a:b] for a, b in zip([0, *ends], ends, strict=False)]


def test_whole_and_byte_by_byte() -> None:
    assert parse([STREAM]) == EVENTS
    assert parse([bytes([b]) for b in STREAM]) == EVENTS


@settings(derandomize=True, max_examples=300, deadline=None)
@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_any_split(places: list[int]) -> None:
    assert parse(cut(STREAM, places)) == EVENTS


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.binary(max_size=60), st.lists(st.integers(0, 60), max_size=6))
def test_any_bytes_any_split(data: bytes, places: list[int]) -> None:
    assert parse(cut(data, places)) == parse([data])


@settings(derandomize=True, max_examples=100, deadline=None)
@given(st.lists(st.dictionaries(st.text(max_size=4), st.text(max_size=8), max_size=3), max_size=4), st.integers(1, 7))
def test_written_events_are_read_back(values: list[dict[str, str]], size: int) -> None:
    data = b"".join(event_bytes(value) + KEEP_ALIVE for value in values) + DONE
    read = parse([data[i : i + size] for i in range(0, len(data), size)])
    assert read[-1] == "[DONE]"
    # a lone surrogate has no UTF-8 form and arrives as '?'
    expected = [json.loads(json.dumps(v, ensure_ascii=False).encode("utf-8", "replace")) for v in values]
    assert [json.loads(event) for event in read[:-1]] == expected


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_every_kind_of_line_end(newline: str) -> None:
    text = newline.join(["data: a", "data: b", "", "data: c", "", ""])
    assert parse([text.encode()]) == ["a\nb", "c"]
