"""Thousands of requests at a server, many of them broken off, broken or read slowly: nothing leaks, nothing hangs.

`python -m bench.soak.serve [--quick] [--json FILE] [--seed N]`, also `make soak-serve`. A real server of a tiny model
(`riverrun serve`) gets 5,000 requests (`--quick`: 400), 24 at a time: 30 % are broken off at a random
moment, 5 % are malformed, 1 % read slowly; the rest are chats, completions, streams, several answers, JSON
schemas, tools, scores, embeddings and sessions. Afterwards no block of the cache is in use, and the resident memory of
the server is what it was after a fifth of the requests.

Peers do not apply.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from bench.common import Row, main_of, parser, read_options, say, table, write_report
from bench.parts.load_servers import our_server
from bench.parts.machine import machine
from riverrun.base.errors import RiverrunError

__all__ = ["Tally", "soak"]

REQUESTS, QUICK, AT_ONCE = 5000, 400, 24
ABORTED, MALFORMED, SLOW = 0.30, 0.05, 0.01
HANG_SECONDS = 60.0
SCHEMA = {"type": "object", "properties": {"title": {"type": "string", "maxLength": 8}}, "required": ["title"]}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
MALFORMED_BODIES: tuple[bytes, ...] = (
    b"{",
    b"[]",
    b'{"model": "tiny"}',
    b'{"model": "tiny", "messages": "hello"}',
    b'{"model": "tiny", "messages": [{"role": "robot", "content": "x"}]}',
    b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "temperature": "hot"}',
    b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": -1}',
    b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "no_such_field": 1}',
    b'{"model": "none", "messages": [{"role": "user", "content": "x"}]}',
    b'{"model": "tiny", "messages": [{"role": "user", "content": "\xff"}]}',
    b'{"model": "tiny", "messages": [{"role": "user", "content": "' + b"long " * 4000 + b'"}]}',
    b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "response_format": {"type": "json_schema"}}',
)


@dataclass
class Tally:
    """What became of the requests; `wrong` tells those that were neither answered nor refused."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    hangs: int = 0


def _body(dice: random.Random, number: int) -> tuple[str, dict[str, Any]]:
    """(path, body) of a request that is well formed."""
    word = dice.choice(["book", "map", "sea", "harbour"])
    text = f"How much is the {word} {number % 97}? " + "It is old. " * dice.randrange(12)
    tokens = dice.randrange(1, 40)
    chat = {"model": "tiny", "messages": [{"role": "user", "content": text}], "max_tokens": tokens, "seed": number}
    prompt = {"model": "tiny", "prompt": text, "max_tokens": tokens, "temperature": 1.0, "seed": number}
    json_format = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("/v1/chat/completions", chat | {"stream": True}),
        ("/v1/chat/completions", chat),
        ("/v1/completions", prompt | {"stream": True, "logprobs": 2}),
        ("/v1/completions", prompt | {"n": 2}),
        ("/v1/chat/completions", chat | {"response_format": json_format, "max_tokens": 60}),
        ("/v1/chat/completions", chat | {"tools": [TOOL], "tool_choice": "required", "max_tokens": 60}),
        ("/v1/responses", {"model": "tiny", "input": text, "max_output_tokens": tokens}),
        ("/v1/messages", {key: chat[key] for key in ("model", "messages", "max_tokens")} | {"stream": True}),
        ("/v1/score", {"model": "tiny", "prefix": text, "continuations": [" yes", " no"]}),
        ("/v1/embeddings", {"model": "tiny", "input": [text, word]}),
        ("/get_ppl", {"model": "tiny", "input": text}),
        ("/v1/chat/interactive", {"model": "tiny", "prompt": text, "request_output_len": tokens, "stream": True}),
    ]
    return dice.choice(kinds)


def _is_refusal(status: int, content: bytes) -> bool:
    try:
        return 400 <= status < 500 and bool(json.loads(content)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return False


async def _one(http: httpx.AsyncClient, dice: random.Random, number: int, tally: Tally) -> None:
    chance = dice.random()
    path, body = _body(dice, number)
    if chance < MALFORMED:
        headers = {"Content-Type": "application/json"}
        answer = await http.post("/v1/chat/completions", content=dice.choice(MALFORMED_BODIES), headers=headers)
        if not _is_refusal(answer.status_code, answer.content):
            tally.wrong.append(f"a malformed request got {answer.status_code}: {answer.text[:200]}")
        tally.counts["malformed, refused"] += 1
        return
    aborted, slow = chance < MALFORMED + ABORTED, chance > 1 - SLOW
    after = dice.randrange(6) if aborted else -1
    async with http.stream("POST", path, json=body) as answer:
        if aborted and not after:
            tally.counts["broken off"] += 1
            return
        lines = []
        async for line in answer.aiter_lines():
            if line and not line.startswith(":"):
                lines.append(line)
            if aborted and len(lines) >= after:
                tally.counts["broken off"] += 1
                return
            if slow:
                await asyncio.sleep(0.2)
    _judge(answer.status_code, lines, bool(body.get("stream")), path, tally)


def _judge(status: int, lines: list[str], streamed: bool, path: str, tally: Tally) -> None:
    text = "".join(lines)
    if status == 200 and streamed:
        last = lines[-1] if lines else ""
        ended = last == "data: [DONE]" or '"finish_reason"' in last or '"message_stop"' in last
        whole = ended and '"error"' not in text
    else:
        whole = status == 200
    if whole:
        tally.counts["answered"] += 1
    elif status == 429 and _is_refusal(status, text.encode()):
        tally.counts["told to come back (429)"] += 1
    else:
        tally.wrong.append(f"{path}: {status} {text[-200:]}")


async def _drive(url: str, count: int, seed: int, tally: Tally) -> None:
    """`AT_ONCE` requests at a time; each has `HANG_SECONDS`."""
    numbers = iter(range(count))
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=AT_ONCE)
    async with httpx.AsyncClient(base_url=url, timeout=HANG_SECONDS, limits=limits, trust_env=False) as http:

        async def worker() -> None:
            for number in numbers:
                try:
                    await asyncio.wait_for(_one(http, random.Random(seed * 1_000_003 + number), number, tally), 90)
                except (TimeoutError, httpx.TimeoutException):
                    tally.hangs += 1
                except httpx.HTTPError as error:
                    tally.wrong.append(f"request {number}: {error!r}")

        await asyncio.gather(*(worker() for _ in range(AT_ONCE)))


def _status(url: str) -> Mapping[str, Any]:
    body: dict[str, Any] = httpx.get(f"{url}/status", timeout=30, trust_env=False).json()
    return dict(body["models"]["tiny"]) | {"running": body["running"]}


def _idle(url: str) -> Mapping[str, Any]:
    """The status once nothing runs any more."""
    deadline = time.monotonic() + 30
    while True:
        found = _status(url)
        if not found["running"] and not found["num_requests_running"] and not found["num_requests_waiting"]:
            return found
        if time.monotonic() > deadline:
            return found
        time.sleep(0.2)


def _resident(url: str) -> int:
    """Bytes of the process that listens there."""
    port = int(url.rpartition(":")[2])
    inodes = {
        line.split()[9]
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
        if int(line.split()[1].partition(":")[2], 16) == port and line.split()[3] == "0A"
    }
    for process in Path("/proc").glob("[0-9]*"):
        try:
            links = {os.readlink(link) for link in (process / "fd").iterdir()}
            if links & {f"socket:[{inode}]" for inode in inodes}:
                return int((process / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except OSError:
            continue
    raise RiverrunError(f"no process listens on port {port}")


def soak(count: int, seed: int) -> list[Row]:
    from tests.tiny_model import write_tiny

    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:
        model = write_tiny(Path(folder) / "tiny")
        options = ["--slots", "8", "--waiting", "16", "--context", "512", "--dtype", "float32", "--cache-gb", "0.01"]
        with our_server(model, *options) as base:
            url = base.removesuffix("/v1")
            first = max(AT_ONCE, count // 5)
            asyncio.run(_drive(url, first, seed, tally))
            _idle(url)
            before = _resident(url)
            say(f"  {first} requests, {before / 1e6:.0f} MB")
            asyncio.run(_drive(url, count - first, seed + 1, tally))
            state = _idle(url)
            after = _resident(url)
    for problem in tally.wrong[:10]:
        say(f"  {problem}")
    told = ", ".join(f"{name}: {number}" for name, number in sorted(tally.counts.items()))
    growth = 100 * (after / before - 1)
    return [
        Row("blocks in use when nothing runs, share", float(state["kv_cache_usage_perc"]), "", 0.0, note=told),
        Row("requests that hung", float(tally.hangs), "", 0.0),
        Row("requests neither answered nor refused", float(len(tally.wrong)), "", 0.0, note="; ".join(tally.wrong[:2])),
        Row("requests that still run", float(state["running"]), "", 0.0),
        Row("growth of resident memory", growth, "%", 2.0, note=f"{before / 1e6:.0f} MB, {after / 1e6:.0f} MB"),
    ]


def main() -> int:
    options = parser((__doc__ or "").splitlines()[0])
    options.add_argument("--seed", type=int, default=0, help="of all that is random")
    given = read_options(options.parse_args(), ())
    rows = soak(QUICK if given.quick else REQUESTS, given.rest.seed)
    print(table(rows))
    write_report(given.json, machine(), rows)
    return 0 if all(row.passed is not False for row in rows) else 3


if __name__ == "__main__":
    main_of(main)
