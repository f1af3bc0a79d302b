"""One client for any OpenAI-style server: requests at moments that are fixed beforehand (open loop), each token timed.

An open loop sends a request when its moment has come, whatever became of those before: a slow server gets a queue, not
fewer requests.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

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


async def _ask(client: httpx.AsyncClient, asked: Asked, start: float, outcome: Outcome) -> None:
    await asyncio.sleep(max(0.0, asked.at - (time.perf_counter() - start)))
    outcome.sent = time.perf_counter() - start
    body = {**asked.body, "stream": True, "stream_options": {"include_usage": True}}
    try:
        async with client.stream("POST", asked.path, json=body) as response:
            if response.status_code != 200:
                outcome.error = f"{response.status_code}: {(await response.aread()).decode()[:300]}"
                return
            rest = b""
            async for data in response.aiter_raw():
                *events, rest = (rest + data).split(b"\n\n")
                for line in events:
                    _read(line, outcome, time.perf_counter() - start)
    except (httpx.HTTPError, ValueError) as error:
        outcome.error = repr(error)
    finally:
        outcome.ended = time.perf_counter() - start


def _read(line: bytes, outcome: Outcome, now: float) -> None:
    """One event."""
    if not line.startswith(b"data: ") or line == b"data: [DONE]":
        return
    event = json.loads(line[6:])
    outcome.usage = event.get("usage") or outcome.usage
    for choice in event.get("choices", ()):
        piece = choice.get("text") or (choice.get("delta") or {}).get("content")
        if piece:
            outcome.pieces.append(now)
            outcome.text += piece


async def _drive(base_url: str, requests: Sequence[Asked], headers: Mapping[str, str]) -> list[Outcome]:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    outcomes = [Outcome() for _ in requests]
    async with httpx.AsyncClient(
        base_url=base_url, timeout=600, limits=limits, headers=dict(headers), trust_env=False
    ) as client:
        start = time.perf_counter()
        pairs = zip(requests, outcomes, strict=True)
        await asyncio.gather(*(_ask(client, asked, start, outcome) for asked, outcome in pairs))
    return outcomes


def drive(base_url: str, requests: Sequence[Asked], headers: Mapping[str, str] | None = None) -> list[Outcome]:
    """Send all at their moments and wait for the last answer. `base_url` ends in /v1."""
    return asyncio.run(_drive(base_url, requests, headers or {}))


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
