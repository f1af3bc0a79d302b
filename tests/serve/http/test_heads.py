"""Bytes at the socket: heads are bounded and bodies are not counted, and what is no HTTP gets a clear answer."""

from __future__ import annotations

import json
import socket
import time
from itertools import pairwise

import pytest
from http_models import PATIENCE_SECONDS
from hypothesis import given, settings
from hypothesis import strategies as st

from riverrun.serve.http.heads import MAX_HEAD_BYTES
from riverrun.serve.http.server import BackgroundServer

LINE = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n"
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def answer(port: int, *pieces: bytes, pause: float = 0.0) -> bytes:
    """All that comes back; sending ends where the server hangs up."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(pause)
            while data := connection.recv(65536):
                received += data
        except ConnectionError:
            pass
    return received


def status_and_code(received: bytes) -> tuple[int, str]:
    head, _, body = received.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]["code"]


@pytest.mark.parametrize("size", [MAX_HEAD_BYTES, 5 * MAX_HEAD_BYTES])
@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("kind", ["one header", "many headers", "a long path"])
def test_a_head_that_is_too_long_is_refused(server: BackgroundServer, kind: str, size: int, cut: bool) -> None:
    head = {
        "one header": LINE + b"X-Long: " + b"a" * size + b"\r\n\r\n",
        "many headers": LINE + b"".join(b"X-%d: b\r\n" % n for n in range(size // 8)) + b"\r\n",
        "a long path": b"GET /" + b"a" * size + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    }[kind]
    pieces = [head[at : at + 10_000] for at in range(0, len(head), 10_000)] if cut else [head]
    received = answer(server.port, *pieces, pause=0.001 if cut else 0.0)
    # who goes on sending while it is refused may find the connection gone instead of the answer
    assert not received or status_and_code(received) == (431, "head_too_large")
    if size == MAX_HEAD_BYTES and not cut:
        assert received


def test_a_head_within_the_bound_is_read(server: BackgroundServer) -> None:
    head = LINE + b"X-Long: " + b"a" * (MAX_HEAD_BYTES - 2000) + b"\r\nConnection: close\r\n\r\n"
    assert answer(server.port, head).startswith(b"HTTP/1.1 200")
    text = json.dumps("a" * 5 * MAX_HEAD_BYTES).encode()
    body = b'{"model": "echo", "messages": [{"role": "user", "content": ' + text + b"}]}"
    request = POST + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    assert answer(server.port, request[:200], request[200:], pause=0.01).startswith(b"HTTP/1.1 200")


def test_trailers_and_marks_of_chunks_are_bounded_too(server: BackgroundServer) -> None:
    head = POST + b"Transfer-Encoding: chunked\r\n\r\n"
    for endless in (b"2;x=", b"2\r\n{}\r\n0\r\nX-Trailer: "):
        received = answer(server.port, head + endless, *[b"a" * 10_000] * 40, pause=0.001)
        assert not received or status_and_code(received) == (431, "head_too_large")


def test_what_is_no_http_is_told_so(server: BackgroundServer) -> None:
    for garbage in (b"hello\r\n\r\n", b"GET / HTTP/1.1\r\nno colon here\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00"):
        assert status_and_code(answer(server.port, garbage)) == (400, "invalid_request")


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 400), max_size=6), st.booleans())
def test_any_cut_gives_the_same_answer(server: BackgroundServer, cuts: list[int], keep: bool) -> None:
    body = b'{"model": "echo", "messages": [{"role": "user", "content": "hi"}], "temperature": 0}'
    head = POST + b"Content-Length: %d\r\n" % len(body)
    closing = b"Connection: close\r\n\r\n"
    request = head + b"\r\n" + body + LINE + closing if keep else head + closing + body
    places = sorted({0, len(request), *(cut for cut in cuts if cut < len(request))})
    pieces = [request[a:b] for a, b in pairwise(places)]
    received = answer(server.port, *pieces, pause=0.0005)
    assert received.count(b"HTTP/1.1 200") == (2 if keep else 1)
