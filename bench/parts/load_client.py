"""One client for any OpenAI-style server: requests at moments that are fixed beforehand (open loop), each token timed.

An open loop sends a request when its moment has come, whatever became of those before: a slow server gets a queue, not
fewer requests. While it runs the client keeps bytes and their times alone, because it takes its share of the same
cores; what they say is read when all is over.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import h11
import httpx

from riverrun.serve.http.sse import EventParser

__all__ = ["Asked", "Outcome", "Summary", "arrivals", "drive", "percentile", "summarize"]


@dataclass(frozen=True)
class Asked:
    """A request `at` seconds after the start: path and body of a streamed completion or chat."""

    at: float
    body: Mapping[str, Any]
    path: str = "/chat/completions"


@dataclass
class Outcome:
    """Seconds since the start of the run: sent, each piece of text, end. `error` is empty when all went well."""

    sent: float = 0.0
    pieces: list[float] = field(default_factory=list)
    ended: float = 0.0
    text: str = ""
    error: str = ""
    usage: Mapping[str, Any] = field(default_factory=dict)
    received: list[tuple[float, bytes]] = field(default_factory=list)
    """Bytes of the answer that were not read yet, and when they came."""

    @property
    def first(self) -> float:
        """Time to the first token."""
        return self.pieces[0] - self.sent

    @property
    def gaps(self) -> list[float]:
        """Times between pieces."""
        return [b - a for a, b in zip(self.pieces, self.pieces[1:], strict=False)]

    @property
    def tokens(self) -> int:
        return int(self.usage.get("completion_tokens") or len(self.pieces))


def arrivals(count: int, rate: float, seed: int = 0) -> list[float]:
    """Moments of a Poisson process of `rate` requests a second; rate 0: all at once."""
    rng, now, out = random.Random(seed), 0.0, []
    for _ in range(count):
        out.append(now)
        now += rng.expovariate(rate) if rate else 0.0
    return out


SECONDS = 600.0
"""After so long an answer is given up."""


class _Wire(asyncio.Protocol):
    """One connection, one request: the bytes of its answer with the moments at which they came."""

    def __init__(self, request: bytes) -> None:
        self.request, self.received = request, list[tuple[float, bytes]]()
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.received.append((time.perf_counter(), data))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.over.done():
            self.over.set_result(None)


def _written(url: httpx.URL, asked: Asked, headers: Mapping[str, str]) -> bytes:
    """The request; its answer ends with the connection."""
    body = json.dumps({**asked.body, "stream": True, "stream_options": {"include_usage": True}}).encode()
    named = {"Host": url.netloc.decode(), "Content-Type": "application/json", "Content-Length": str(len(body))}
    lines = [f"{name}: {value}\r\n" for name, value in {**named, "Connection": "close", **headers}.items()]
    return f"POST {url.path.rstrip('/')}{asked.path} HTTP/1.1\r\n{''.join(lines)}\r\n".encode() + body


async def _ask(url: httpx.URL, asked: Asked, start: float, outcome: Outcome, headers: Mapping[str, str]) -> None:
    request = _written(url, asked, headers)
    await asyncio.sleep(max(0.0, asked.at - (time.perf_counter() - start)))
    outcome.sent = time.perf_counter() - start
    wire = _Wire(request)
    try:
        transport, _ = await asyncio.get_running_loop().create_connection(lambda: wire, url.host, url.port or 80)
        try:
            await asyncio.wait_for(wire.over, SECONDS)
        finally:
            transport.close()
    except OSError as error:  # a TimeoutError, too
        outcome.error = repr(error)
    outcome.ended = time.perf_counter() - start
    outcome.received = [(moment - start, data) for moment, data in wire.received]


def _read(outcome: Outcome) -> None:
    """What the bytes say: status, events, each with the moment of its last byte."""
    http, parser, failure = h11.Connection(h11.CLIENT), EventParser(), b""
    http.send(h11.Request(method="POST", target="/", headers=[("Host", "any")]))
    http.send(h11.EndOfMessage())
    status = 0
    try:
        for moment, data in [*outcome.received, (outcome.ended, b"")]:
            http.receive_data(data)
            while isinstance(event := http.next_event(), (h11.Response, h11.Data, h11.EndOfMessage)):
                if isinstance(event, h11.Response):
                    status = event.status_code
                elif isinstance(event, h11.EndOfMessage):
                    break
                elif status != 200:
                    failure += bytes(event.data)
                else:
                    for text in parser.feed(bytes(event.data)):
                        _read_event(text, outcome, moment)
    except (h11.RemoteProtocolError, ValueError) as error:
        outcome.error = outcome.error or repr(error)
    if status != 200:
        outcome.error = outcome.error or f"{status}: {failure.decode('utf-8', 'replace')[:300]}"
    outcome.received = []


def _read_event(text: str, outcome: Outcome, moment: float) -> None:
    if text == "[DONE]":
        return
    event = json.loads(text)
    if error := event.get("error"):
        outcome.error = str(error)[:300]
    outcome.usage = event.get("usage") or outcome.usage
    for choice in event.get("choices", ()):
        piece = choice.get("text") or (choice.get("delta") or {}).get("content")
        if piece:
            outcome.pieces.append(moment)
            outcome.text += piece


async def _drive(base_url: str, requests: Sequence[Asked], headers: Mapping[str, str]) -> list[Outcome]:
    outcomes, url = [Outcome() for _ in requests], httpx.URL(base_url)
    start = time.perf_counter()
    pairs = zip(requests, outcomes, strict=True)
    await asyncio.gather(*(_ask(url, asked, start, outcome, headers) for asked, outcome in pairs))
    return outcomes


def drive(base_url: str, requests: Sequence[Asked], headers: Mapping[str, str] | None = None) -> list[Outcome]:
    """Send all at their moments and wait for the last answer. `base_url` ends in /v1."""
    outcomes = asyncio.run(_drive(base_url, requests, headers or {}))
    for outcome in outcomes:
        _read(outcome)
    return outcomes


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of all lie; 0 of none."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@dataclass(frozen=True)
class Summary:
    """Of one run: seconds, answers a second, tokens a second, times in seconds, share of requests within the bar."""

    seconds: float
    requests_per_second: float
    tokens_per_second: float
    first_p50: float
    first_p99: float
    gap_p50: float
    gap_p99: float
    goodput: float
    failed: int


def summarize(outcomes: Sequence[Outcome], *, first_bar: float = 2.0, gap_bar: float = 0.2) -> Summary:
    """Goodput: requests a second whose first token came within `first_bar` and whose mean gap is within `gap_bar`."""
    good = [each for each in outcomes if not each.error and each.pieces]
    seconds = max((each.ended for each in outcomes), default=0.0) - min((each.sent for each in outcomes), default=0.0)
    within = [
        each
        for each in good
        if each.first <= first_bar and (sum(each.gaps) / len(each.gaps) if each.gaps else 0.0) <= gap_bar
    ]
    gaps = [gap for each in good for gap in each.gaps]
    firsts = [each.first for each in good]
    return Summary(
        seconds=seconds,
        requests_per_second=len(good) / seconds,
        tokens_per_second=sum(each.tokens for each in good) / seconds,
        first_p50=percentile(firsts, 0.5),
        first_p99=percentile(firsts, 0.99),
        gap_p50=percentile(gaps, 0.5),
        gap_p99=percentile(gaps, 0.99),
        goodput=len(within) / seconds,
        failed=len(outcomes) - len(good),
    )
