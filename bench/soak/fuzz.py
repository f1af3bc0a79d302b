"""Thousands of made-up requests at a server, by HTTP and gRPC: an answer or a refusal, never an error of the server.

`python -m bench.soak.fuzz [--quick] [--json FILE] [--seed N]`, also `make soak-fuzz`. A real server of a tiny model
(`riverrun serve`, every route on) gets 10,000 cases that schemathesis makes from its /openapi.json, right ones and
wrong ones of every operation; 2,000 bodies of our own from the same document, also with values and bytes changed; and
4,000 gRPC messages, half of them with bytes changed (`--quick`: 300, 100, 200). Afterwards the server still answers,
nothing runs, and no block of the cache is in use. schemathesis is installed in an environment of its own
(`--peers none` leaves it out).
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from bench.common import PEERS, Row, child, home, main_of, parser, peer_python, read_options, say, table, write_report
from bench.parts import fuzz_grpc, fuzz_http
from bench.parts.load_servers import free_ports, our_server
from bench.parts.machine import machine

__all__ = ["soak"]

MODEL = "tiny"
KNOWN = {"model": [MODEL, MODEL, MODEL, "shop"], "session_id": ["fuzz-0", "fuzz-1", "fuzz-2"], "name": ["shop"],
         "path": ["shop"], "file": ["kept"], "request_id": ["mine"]}  # fmt: skip
"""Names that there are, or may be after another request, by the field that takes them."""
SECONDS = 180.0
"""A request that is not answered after so long hangs; the server ends its own after `--timeout`."""
OPTIONS = (
    *("--slots", "8", "--context", "256", "--threads", "1", "--dtype", "float32", "--cache-gb", "0.02"),
    *("--no-page", "--timeout", "90"),
)


@dataclass(frozen=True)
class Sizes:
    """Cases of each kind."""

    schemathesis: int = 10_000
    bodies: int = 2_000
    messages: int = 4_000


QUICK = Sizes(300, 100, 200)


def _write(folder: Path) -> None:
    """A model, an adapter of it that may be loaded, and a folder for sessions."""
    import torch

    from riverrun.models.io.adapter import add_adapters, save_adapter
    from riverrun.models.load import load_checkpoint, load_model
    from tests.tiny_model import write_tiny

    model = load_model(load_checkpoint(write_tiny(folder / MODEL)), torch.float32)
    add_adapters(model, 4, 8.0, targets=("q_proj", "down_proj"), seed=0)
    save_adapter(model, folder / "adapters" / "shop")
    (folder / "sessions").mkdir()


def _by_schemathesis(url: str, cases: int, seed: int) -> dict[str, Any]:
    """What bench/peers/schemathesis_cases.py found."""
    job = {"url": url, "known": KNOWN, "cases": cases, "seed": seed, "seconds": SECONDS}
    return child(peer_python("schemathesis"), [PEERS / "schemathesis_cases.py"], job, "schemathesis")


def _at_rest(url: str, sessions: list[str]) -> tuple[dict[str, Any], list[str]]:
    """(status once nothing runs, what is wrong with the server): sessions are closed, adapters unloaded first."""
    problems = []
    with httpx.Client(base_url=url, timeout=SECONDS, trust_env=False) as http:
        for name in {*sessions, *KNOWN["session_id"]}:
            http.post("/v1/sessions/close", json={"model": MODEL, "session_id": name})
        for name in [each["id"] for each in http.get("/v1/models").json()["data"] if each["id"] != MODEL]:
            http.post("/v1/lora/unload", json={"model": MODEL, "name": name})
        deadline = time.monotonic() + 60
        while True:
            body = http.get("/status").json()
            state = dict(body["models"][MODEL]) | {"running": body["running"]}
            busy = [key for key in ("running", "num_requests_running", "num_requests_waiting") if state[key]]
            if not busy or time.monotonic() > deadline:
                break
            time.sleep(0.2)
        problems += [f"{key} = {state[key]} when all was over" for key in busy]
        if state["kv_cache_usage_perc"]:
            problems.append(f"{100 * state['kv_cache_usage_perc']:.1f} % of the blocks are in use when all was over")
        answer = http.post("/v1/completions", json={"model": MODEL, "prompt": "hello", "max_tokens": 2})
        if answer.status_code != 200:
            problems.append(f"after it all a plain request got {answer.status_code}: {answer.text[:200]}")
    return state, problems


def _tracebacks() -> int:
    """Errors that the server wrote into its log with their traces."""
    log = home() / "jobs" / "fuzz-server.log"
    return len(re.findall(r"^Traceback", log.read_text(encoding="utf-8", errors="replace"), re.MULTILINE))


def _show(what: str, lines: list[str]) -> None:
    for line in lines[:10]:
        say(f"  {what}: {line}")


def soak(sizes: Sizes, seed: int, *, peers: tuple[str, ...] = ("schemathesis",)) -> list[Row]:
    """The rows of one server under all three."""
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        _write(folder)
        port, grpc_port = free_ports(2)
        options = ["--grpc-port", str(grpc_port), "--sessions", str(folder / "sessions")]
        options += ["--adapters", str(folder / "adapters"), "--adapter", f"shop={folder / 'adapters' / 'shop'}"]
        with our_server(folder / MODEL, *OPTIONS, *options, name="fuzz-server", port=port) as base:
            url = base.removesuffix("/v1")
            found = _by_schemathesis(url, sizes.schemathesis, seed) if peers else {}
            say(f"  HTTP by schemathesis: {found.get('cases', 0)} cases: {found.get('statuses', {})}")
            messages = fuzz_grpc.attack(f"127.0.0.1:{grpc_port}", sizes.messages, seed, model=MODEL, seconds=SECONDS)
            say(f"  gRPC: {sizes.messages} messages: {messages.told}")
            bodies = fuzz_http.attack(url, sizes.bodies, seed, model=MODEL, seconds=SECONDS)
            say(f"  HTTP: {sizes.bodies} bodies: {bodies.told}")
            try:
                state, problems = _at_rest(url, found.get("sessions", []))
            except httpx.HTTPError as error:
                state, problems = {}, [f"the server is gone: {error!r}"]
            traces = _tracebacks()
    say(f"  at rest: {state}")
    return _rows(sizes, messages, bodies, found, problems, traces)


def _rows(
    sizes: Sizes,
    messages: fuzz_grpc.Outcome,
    bodies: fuzz_http.Outcome,
    found: Mapping[str, Any],
    problems: list[str],
    traces: int,
) -> list[Row]:
    told: Mapping[str, list[str]] = found.get("told", {})
    counts: Mapping[str, int] = found.get("counts", {})
    failed = counts.get("failed", 0) + len(bodies.failed)
    gone = counts.get("broken", 0) + counts.get("hung", 0) + len(bodies.broken) + len(problems)
    strange = counts.get("undocumented", 0) + len(bodies.undocumented)
    faults: list[str] = found.get("faults", [])
    for what, lines in (
        ("5xx", [*told.get("failed", ()), *bodies.failed]),
        ("broken", [*told.get("broken", ()), *told.get("hung", ()), *bodies.broken, *problems]),
        ("not as documented", [*told.get("undocumented", ()), *bodies.undocumented]),
        ("document", faults),
        ("gRPC", [*messages.failed, *messages.broken]),
    ):
        _show(what, lines)
    cases, whole = int(found.get("cases", 0)), sizes.schemathesis if found else 0
    modes = ", ".join(f"{name}: {number}" for name, number in found.get("modes", {}).items())
    statuses = ", ".join(f"{name}: {number}" for name, number in sorted(found.get("statuses", {}).items()))
    by_peer = f"{cases} cases by schemathesis ({modes}) of {found.get('operations', 0)} operations: {statuses}"
    by_us = f"{sizes.bodies} bodies of our own: {bodies.told}"
    slowest = max(bodies.slowest, float(found.get("slowest", 0.0)))
    return [
        Row("fuzz, HTTP: answers with 5xx", float(failed), "", 0.0, note=f"{by_peer}; {by_us}", holds=cases >= whole),
        Row("fuzz, HTTP: crashes and hangs", float(gone), "", 0.0, note=f"slowest answer {slowest:.1f} s"),
        Row("fuzz, HTTP: answers not as documented", float(strange), "", 0.0),
        Row("fuzz, HTTP: faults of the OpenAPI document", float(len(faults)) if found else None, "", 0.0),
        Row("fuzz, gRPC: internal errors", float(len(messages.failed)), "", 0.0, note=messages.told),
        Row(
            "fuzz, gRPC: crashes and hangs", float(len(messages.broken)), "", 0.0,
            note=f"{sizes.messages} messages, slowest answer {messages.slowest:.1f} s",
        ),
        Row("fuzz: errors with a trace in the server's log", float(traces), "", 0.0),
    ]  # fmt: skip


def main() -> int:
    options = parser((__doc__ or "").split("\n\n")[0])
    options.add_argument("--seed", type=int, default=1, help="of all that is random")
    given = read_options(options.parse_args(), ("schemathesis",))
    began = time.monotonic()
    rows = soak(QUICK if given.quick else Sizes(), given.rest.seed, peers=given.peers)
    print(table(rows))
    write_report(given.json, machine(), rows, seconds=time.monotonic() - began)
    return 1 if any(row.passed is False for row in rows) else 0


if __name__ == "__main__":
    main_of(main)
