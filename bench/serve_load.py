"""Serving under load: requests that share a beginning, a long prompt among running answers, what HTTP and guides cost.

    python -m bench.serve_load [--quick] [--peers none|llamaserver] [--only prefix,stall,...] [--json FILE]

One client (`parts/load_client.py`) asks our server and llama.cpp's the same at the same moments; each server runs
alone, in turns. Both have SmolLM2-135M-Instruct, ours in bf16 where the processor multiplies it, llama.cpp's in each
of its files; its best counts. `load` sends requests of ShareGPT-like lengths at rising rates and draws a chart.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import Any

import httpx

from bench.common import (
    ROOT,
    Row,
    child,
    home,
    interleave,
    main_of,
    middle,
    parser,
    read_options,
    run,
    say,
    table,
    write_report,
)
from bench.parts.load_client import Asked, Outcome, Summary, arrivals, drive, summarize
from bench.parts.load_servers import llama_server, our_server
from bench.parts.machine import machine
from riverrun.base.artifacts import write_text
from riverrun.base.errors import InputError, RiverrunError, nearest
from riverrun.base.progress import Progress
from riverrun.hub.catalog import get_card
from riverrun.hub.store import Store
from riverrun.web.charts import Series, line_chart
from riverrun.web.page import Both, page, section

__all__ = ["main"]

MODEL = "smollm2-135m-instruct"
PARTS = ("prefix", "stall", "http", "guided", "session", "load")
PREFIX, SHARING, ANSWER = 2000, 8, 16
Server = Callable[[], AbstractContextManager[str]]
Answer = dict[str, float]


@cache
def _model() -> Path:
    """The GGUF file of the model."""
    return Path(Store().fetch(get_card(MODEL), Progress()))


@cache
def _texts(tokens: int, seed: int = 0) -> str:
    """A text of so many tokens: words of this project's own pages, in an order of their own for each seed."""
    from riverrun.models.load import load_checkpoint

    tokenizer = load_checkpoint(_model()).tokenizer
    words = (ROOT / "docs" / "log.md").read_text(encoding="utf-8").split()
    random.Random(seed).shuffle(words)
    ids = tokenizer.encode(" ".join(words * (1 + tokens // len(words))))[:tokens]
    return str(tokenizer.decode(ids))


def _peer_files() -> dict[str, Path]:
    """Forms of the model for llama.cpp: the file as it is, and two that its kernels are made for."""
    files = {"Q4_1": _model()}
    for kind in ("Q4_0", "BF16"):
        path = home() / "models" / f"{MODEL}-{kind}.gguf"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            command: list[str | Path] = [sys.executable, "-m", "riverrun.cli.main", "models", "convert", _model(), path]
            command += ["--to", "gguf", "--kind", kind]
            done = run(command, log=home() / "jobs" / f"convert-{kind}.log")
            if done.code:
                raise RiverrunError(f"{path} could not be written: {done.output[-300:]}")
        files[kind] = path
    return files


def _servers(peers: Sequence[str], *, slots: int, context: int, ours: Sequence[str] = ()) -> dict[str, Server]:
    """Ours, and llama.cpp's for each file."""
    options = ["--slots", str(slots), "--context", str(context), "--no-page", *ours]
    out: dict[str, Server] = {"riverrun": lambda: our_server(_model(), *options)}
    if "llamaserver" in peers:
        for kind, path in _peer_files().items():
            out[f"llama.cpp {kind}"] = lambda path=path: llama_server(path, slots=slots, context=context)  # type: ignore[misc]
    return out


def _body(prompt: str, tokens: int, **more: Any) -> dict[str, Any]:
    plain = {"model": _model().stem, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    return {**plain, **more}


def _asked(at: float, prompt: str, tokens: int, **more: Any) -> Asked:
    return Asked(at, _body(prompt, tokens, **more), "/completions")


def _told(outcomes: Sequence[Outcome]) -> None:
    for each in outcomes:
        if each.error:
            raise RiverrunError(f"a request failed: {each.error}")


def _warm(url: str, streams: int) -> None:
    _told(drive(url, [_asked(0, _texts(40, 900 + n), 8) for n in range(streams)]))


def _in_turns(servers: Mapping[str, Server], measure: Callable[[str, int], Answer], rounds: int) -> dict[str, Answer]:
    """The median of each figure, every server started anew for each turn."""

    def turn(server: Server, numbers: list[int]) -> Answer:
        with server() as url:
            return measure(url, numbers.pop())

    counts = {name: list(range(rounds)) for name in servers}
    found = interleave({name: lambda n=name: turn(servers[n], counts[n]) for name in servers}, rounds)  # type: ignore[misc]
    return {name: {key: middle([a[key] for a in answers]) for key in answers[0]} for name, answers in found.items()}


# ---- the parts --------------------------------------------------------------------------------------------------


def prefix(peers: Sequence[str], rounds: int) -> list[Row]:
    """Eight requests at once that begin with the same 2,000 tokens."""

    def measure(url: str, turn: int) -> Answer:
        _warm(url, SHARING)
        shared = _texts(PREFIX, 10 + turn)
        outcomes = drive(url, [_asked(0, f"{shared}\n\nQuestion {n}:", ANSWER) for n in range(SHARING)])
        _told(outcomes)
        return {"seconds": summarize(outcomes).seconds}

    found = _in_turns(_servers(peers, slots=SHARING, context=PREFIX + 128), measure, rounds)
    own, shown = found.pop("riverrun")["seconds"], {name: each["seconds"] for name, each in found.items()}
    name = f"{SHARING} requests that share {PREFIX:,} tokens, over llama.cpp's server"
    if not shown:
        return [Row(name, None, "x", 0.25, note=f"ours {own:.2f} s; no peer was asked for")]
    note = f"seconds: ours {own:.2f}; {ANSWER} tokens each, at once; the peer's best file counts"
    return [Row(name, own / min(shown.values()), "x", 0.25, peers=shown, note=note)]


STREAMS, STREAM_TOKENS, LATE = 3, 160, 0.6


def stall(peers: Sequence[str], rounds: int) -> list[Row]:
    """Three answers are written while a prompt of 2,000 tokens arrives."""

    def measure(url: str, turn: int) -> Answer:
        _warm(url, STREAMS + 1)
        running = [_asked(0, _texts(60, 100 * turn + n), STREAM_TOKENS) for n in range(STREAMS)]
        outcomes = drive(url, [*running, _asked(LATE, _texts(PREFIX, 50 + turn), 8)])
        _told(outcomes)
        late = outcomes[-1]
        gaps = [
            later - earlier
            for each in outcomes[:-1]
            for earlier, later in zip(each.pieces, each.pieces[1:], strict=False)
            if later >= late.sent and earlier <= late.pieces[0]
        ]
        seconds = max(each.ended for each in outcomes)
        return {"gap": max(gaps, default=0.0), "seconds": seconds, "first": late.first}

    context = PREFIX + STREAM_TOKENS + 64
    servers = _servers(peers, slots=STREAMS + 1, context=context)
    hurried = ["--slots", str(STREAMS + 1), "--context", str(context), "--no-page", "--step-ms", "100000"]
    servers["unpaced"] = lambda: our_server(_model(), *hurried)
    found = _in_turns(servers, measure, rounds)
    own, hasty = found.pop("riverrun"), found.pop("unpaced")
    shown = {name: each["gap"] for name, each in found.items()}
    loss = own["seconds"] / hasty["seconds"] - 1
    note = f"ours {own['gap'] * 1000:.0f} ms (first token of the newcomer after {own['first']:.2f} s), "
    note += f"{hasty['gap'] * 1000:.0f} ms without pacing; peers in s, the smallest counts"
    name = "longest gap of 3 streams while 2,000 tokens arrive, over llama.cpp's server"
    rows = [Row(name, own["gap"] / min(shown.values()) if shown else None, "x", 0.2, peers=shown, note=note)]
    rows.append(Row("time lost by pacing, all answers", 100 * loss, "%", 10, note=f"{own['seconds']:.2f} s in all"))
    return rows


def http_cost(peers: Sequence[str], rounds: int) -> list[Row]:
    """Eight streams through HTTP and in process."""
    tokens = 256
    prompts = [_texts(64, 700 + n) for n in range(SHARING)]

    def through(url: str) -> float:
        _warm(url, SHARING)
        outcomes = drive(url, [_asked(0, prompt, tokens) for prompt in prompts])
        _told(outcomes)
        return summarize(outcomes).tokens_per_second

    def inside() -> float:
        job = {"model": str(_model()), "prompts": prompts, "tokens": tokens, "slots": SHARING}
        answer = child(sys.executable, ["-m", "bench.parts.serve_inside"], job, "serve_inside")
        return float(answer["tokens_per_second"])

    def outside() -> float:
        with our_server(_model(), "--slots", str(SHARING), "--context", "512", "--no-page") as url:
            return through(url)

    found = interleave({"http": outside, "in process": inside}, rounds)
    rates = {name: middle(values) for name, values in found.items()}
    note = f"tokens/s: {rates['http']:.0f} through HTTP, {rates['in process']:.0f} in process; {SHARING} streams"
    return [
        Row("HTTP over in process, tokens/s", rates["http"] / rates["in process"], "x", 0.95, "at least", note=note)
    ]


SCHEMA = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "minLength": 20, "maxLength": 60},
        "tags": {
            "type": "array",
            "items": {"type": "string", "minLength": 4, "maxLength": 20},
            "minItems": 6,
            "maxItems": 8,
        },
        "pages": {"type": "integer", "minimum": 1, "maximum": 2000},
        "note": {"type": "string", "minLength": 120, "maxLength": 200},
    },
    "required": ["title", "tags", "pages", "note"],
    "additionalProperties": False,
}


def guided(peers: Sequence[str], rounds: int) -> list[Row]:
    """Time per token of answers that follow a JSON schema, and of the same number of free tokens."""
    job = {"model": str(_model()), "schema": json.dumps(SCHEMA), "rounds": 3 * rounds}
    answer = child(sys.executable, ["-m", "bench.parts.serve_guided"], job, "serve_guided")
    over = 100 * (answer["guided_seconds"] / answer["free_seconds"] - 1)
    note = (
        f"{1000 * answer['guided_seconds']:.2f} ms a token guided, {1000 * answer['free_seconds']:.2f} free; "
        f"{answer['tokens']} tokens, {answer['forced']} of them forced and not asked for one by one; "
        f"{answer['valid']} of {answer['answers']} answers are valid by the schema"
    )
    holds = answer["valid"] == answer["answers"]
    return [Row("guided JSON: time per token over unguided", over, "%", 3, note=note, holds=holds)]


def session(peers: Sequence[str], rounds: int) -> list[Row]:
    """The next turn of a conversation of 4,000 tokens, and the same where nothing is kept."""
    history = _texts(4000, 300)

    def kept(url: str, number: int) -> float:
        with httpx.Client(base_url=url.removesuffix("/v1"), timeout=600, trust_env=False) as http:
            asked = {"model": _model().stem, "interactive_mode": True, "request_output_len": 1, "temperature": 0}
            opened = http.post("/v1/chat/interactive", json={**asked, "prompt": f"{number} {history}"}).json()
            new = {**asked, "prompt": "And what follows from that?", "session_id": opened["session_id"], "stream": True}
            began = time.perf_counter()
            with http.stream("POST", "/v1/chat/interactive", json=new) as answer:
                for line in answer.iter_lines():
                    if line.startswith("data: ") and json.loads(line[6:]).get("text"):
                        return time.perf_counter() - began
        raise RiverrunError("a session's turn gave no text")

    def anew(url: str, number: int) -> float:
        said = [{"role": "user", "content": f"{number + 500} {history}"}, {"role": "assistant", "content": "So."}]
        said.append({"role": "user", "content": "And what follows from that?"})
        outcomes = drive(url, [Asked(0, {"model": _model().stem, "messages": said, "max_tokens": 1, "temperature": 0})])
        _told(outcomes)
        return outcomes[0].first

    with our_server(_model(), "--slots", "2", "--context", "8192", "--no-page") as url:
        _warm(url, 1)
        pairs = [(kept(url, n), anew(url, n)) for n in range(rounds)]
    with_it, without = middle([a for a, _ in pairs]), middle([b for _, b in pairs])
    note = f"first token after {1000 * with_it:.0f} ms, {1000 * without:.0f} ms when the past is computed again"
    return [Row("session turn behind 4,000 tokens: faster by", without / with_it, "x", 10, "at least", note=note)]


# ---- load -------------------------------------------------------------------------------------------------------


def mixed(count: int, rate: float, seed: int) -> list[Asked]:
    """Requests of ShareGPT-like lengths: prompts log-normal around 160 tokens, answers around 110; a third of the
    prompts begin with one of four system texts."""
    rng, out = random.Random(seed), []
    for at in arrivals(count, rate, seed):
        size = max(8, min(1400, int(rng.lognormvariate(5.0, 1.0))))
        tokens = max(4, min(400, int(rng.lognormvariate(4.4, 0.8))))
        system = _texts(300, 2000 + rng.randrange(4)) + "\n\n" if rng.random() < 0.33 else ""
        out.append(_asked(at, system + _texts(size, 3000 + rng.randrange(10_000)), tokens))
    return out


def load(peers: Sequence[str], rounds: int) -> list[Row]:
    """Rates up to what is too much; goodput within a bar of 2 s to the first token and 200 ms a token."""
    seconds, rates = 20.0, (0.5, 1.0, 2.0, 4.0)
    found: dict[str, dict[float, Summary]] = {}
    servers = _servers(peers, slots=16, context=2048)
    for name, server in servers.items():
        for rate in rates:
            with server() as url:
                _warm(url, 4)
                say(f"  {name}: {rate:g} requests/s")
                found.setdefault(name, {})[rate] = summarize(drive(url, mixed(int(seconds * rate), rate, 7)))
    _draw(found)
    rows = []
    best = {name: max(each.goodput for each in by_rate.values()) for name, by_rate in found.items()}
    own = best.pop("riverrun")
    rows.append(Row("goodput, best rate", own, "requests/s", peers=best, note="first token in 2 s, 200 ms a token"))
    for rate in rates:
        each = found["riverrun"][rate]
        note = (
            f"first token p50 {1000 * each.first_p50:.0f}, p99 {1000 * each.first_p99:.0f} ms; "
            f"between tokens p50 {1000 * each.gap_p50:.1f}, p99 {1000 * each.gap_p99:.0f} ms; "
            f"{each.requests_per_second:.2f} answers/s, {each.failed} failed"
        )
        shown = {name: by_rate[rate].tokens_per_second for name, by_rate in found.items() if name != "riverrun"}
        rows.append(Row(f"load at {rate:g} requests/s", each.tokens_per_second, "tokens/s", peers=shown, note=note))
    return rows


def _draw(found: Mapping[str, Mapping[float, Summary]]) -> None:
    figures: dict[str, Callable[[Summary], float]] = {
        "First token, p50, s": lambda s: s.first_p50,
        "First token, p99, s": lambda s: s.first_p99,
        "Between tokens, p99, s": lambda s: s.gap_p99,
        "Tokens a second": lambda s: s.tokens_per_second,
        "Goodput, requests a second": lambda s: s.goodput,
    }
    charts = [
        line_chart(
            [Series(name, [(rate, read(each)) for rate, each in by_rate.items()]) for name, by_rate in found.items()],
            title=title,
            x_label="requests a second",
        )
        for title, read in figures.items()
    ]
    path = home() / "serve_load.html"
    write_text(path, page("Serving under load", section(Both("Rates", "请求速率"), *charts)))
    say(f"written: {path}")


def main() -> int:
    options = parser((__doc__ or "").splitlines()[0])
    options.add_argument("--only", default="", help=f"parts: {', '.join(PARTS)}")
    options.add_argument("--rounds", type=int, default=3, help="turns of each side")
    given = read_options(options.parse_args(), ("llamaserver",))
    parts = given.rest.only.split(",") if given.rest.only else list(PARTS)
    if unknown := [part for part in parts if part not in PARTS]:
        raise InputError(f"--only {unknown[0]}: there is no such part.{nearest(unknown[0], PARTS)}")
    rounds = 1 if given.quick else given.rest.rounds
    named: dict[str, Callable[[Sequence[str], int], list[Row]]] = {
        "prefix": prefix, "stall": stall, "http": http_cost, "guided": guided, "session": session, "load": load,
    }  # fmt: skip
    rows: list[Row] = []
    for part in parts:
        say(f"{part} ...")
        rows += named[part](given.peers, rounds)
    print(table(rows))
    write_report(given.json, machine(), rows)
    return 0 if all(row.passed is not False for row in rows) else 3


if __name__ == "__main__":
    main_of(main)
