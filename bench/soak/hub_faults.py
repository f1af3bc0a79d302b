"""Fetching under random faults: nothing corrupted, nothing left behind, and every fetch ends right.

`python -m bench.soak.hub_faults [--quick] [--json FILE] [--seed N]`, also `make soak-hub_faults`. A loopback server
speaks the protocols of Hugging Face and ModelScope and plain HTTP. Each of 50 seeded runs (`--quick`: 15) takes a
source, up to three faults that meet its next requests (cut, wrong byte, 404, 500, slow, silent, longer than announced,
redirect) or a kill -9 of the fetching process, and fetches until it ends right. After every try all stored files are
compared with their digests.

Peers do not apply.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.common import ROOT, Row, main_of, parser, read_options, say, table, write_report
from bench.parts.machine import machine
from riverrun.base.errors import InputError
from riverrun.base.progress import Progress
from riverrun.hub.card import Card
from riverrun.hub.catalog import card_of
from riverrun.hub.store import Store
from tests.hub.loopback import Behaviour, cut, hold, redirect, status
from tests.hub.protocols import ProtocolServer, Repository

__all__ = ["FAULTS", "Outcome", "run_one", "servers", "soak"]

RUNS, QUICK = 50, 15
TRIES = 6
SILENCE_SECONDS = 2.0
"""A server that says nothing for so long is given up: long enough for a machine that is busy with other work."""
SOURCES = ("hf", "modelscope", "https")
CHILD = """
import sys
from pathlib import Path
from riverrun.base.progress import Progress
from riverrun.hub.card import Card
from riverrun.hub.store import Store
progress = Progress("json", stream=sys.stdout, every_seconds=0)
Store(Path(sys.argv[1])).fetch(Card.model_validate_json(sys.argv[2]), progress)
"""


@dataclass
class Outcome:
    """One run: what met it, how many tries it took, and every problem that was seen."""

    source: str
    faults: tuple[str, ...]
    tries: int = 0
    corrupted: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def _wrong_byte(dice: random.Random) -> Behaviour:
    def behave(handler: Any, body: bytes) -> None:
        place = dice.randrange(len(body)) if body else 0
        handler.begin(200, len(body))
        handler.wfile.write(body[:place] + bytes([body[place] ^ 0x55]) + body[place + 1 :] if body else b"")

    return behave


def _slow(dice: random.Random) -> Behaviour:
    def behave(handler: Any, body: bytes) -> None:
        handler.begin(200, len(body))
        for start in range(0, len(body), max(1, len(body) // 5)):
            handler.wfile.write(body[start : start + max(1, len(body) // 5)])
            handler.wfile.flush()
            time.sleep(0.02)

    return behave


def _silent(dice: random.Random) -> Behaviour:
    def behave(handler: Any, body: bytes) -> None:
        handler.begin(200, len(body))
        handler.wfile.write(body[: len(body) // 2])
        handler.wfile.flush()
        time.sleep(SILENCE_SECONDS * 2)

    return behave


def _longer(dice: random.Random) -> Behaviour:
    def behave(handler: Any, body: bytes) -> None:
        handler.begin(200, len(body) + 10)
        handler.wfile.write(body + b"0123456789")

    return behave


FAULTS: dict[str, Callable[[random.Random], Behaviour]] = {
    "cut": lambda dice: cut(dice.randrange(1, 20_000)),
    "wrong byte": _wrong_byte,
    "404": lambda dice: status(404),
    "500": lambda dice: status(500),
    "slow": _slow,
    "silent": _silent,
    "longer": _longer,
    "redirect loop": lambda dice: redirect("/round"),
}


def _round(handler: Any, body: bytes) -> None:
    handler.begin(302, 0, Location="/round")


@contextmanager
def servers(seed: int) -> Iterator[ProtocolServer]:
    """A server of all protocols that the sources' environment points at."""
    dice = random.Random(seed)
    names = {"HF_ENDPOINT": "", "MODELSCOPE_ENDPOINT": ""}
    before = {name: os.environ.get(name) for name in names}
    with ProtocolServer() as server:
        files = {f"part-{n}.bin": dice.randbytes(dice.randrange(1, 60_000)) for n in range(3)}
        server.repositories["team/many"] = Repository({**files, "deep/config.json": b'{"a": 1}'})
        server.files["/one.bin"] = dice.randbytes(80_000)
        server.files["/round"] = b"never given"
        os.environ.update(dict.fromkeys(names, server.url))
        try:
            yield server
        finally:
            for name, value in before.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value


def _card(source: str, server: ProtocolServer) -> tuple[Card, dict[str, bytes]]:
    """What is fetched and the bytes that are right."""
    if source != "https":
        return card_of(f"{source}:team/many"), server.repositories["team/many"].files
    body = server.files["/one.bin"]
    card = Card(
        name="one",
        licence="mit",
        file_name="one.bin",
        size_bytes=len(body),
        sha256=hashlib.sha256(body).hexdigest(),
        sources=(f"{server.url}/one.bin",),
    )
    return card, {"one.bin": body}


def run_one(server: ProtocolServer, root: Path, seed: int) -> Outcome:
    """One seeded run in a store of its own."""
    dice = random.Random(seed)
    source = dice.choice(SOURCES)
    killed = dice.random() < 0.2
    names = tuple(dice.choice(list(FAULTS)) for _ in range(dice.randrange(1, 4)))
    outcome = Outcome(source, ("kill -9", *names) if killed else names)
    card, files = _card(source, server)
    store = Store(root, attempts=2, pause_seconds=0.0, timeout_seconds=SILENCE_SECONDS)
    server.script = []
    if killed:
        outcome.tries += 1
        _kill(server, store, card, dice)
        _check(store, outcome)
    server.script = [FAULTS[name](dice) for name in names]
    while outcome.tries < TRIES + killed:
        outcome.tries += 1
        loops = [_round] * 8 if "redirect loop" in names else []
        server.script += [] if outcome.tries > 3 else loops[: dice.randrange(9)] if loops else []
        try:
            path = store.fetch(card, Progress("quiet"))
        except InputError:
            _check(store, outcome)
            continue
        finally:
            if outcome.tries >= 3:
                server.script = []
        found = {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}
        found = found if path.is_dir() else {path.name: path.read_bytes()}
        outcome.wrong += [name for name in {*found, *files} if found.get(name) != files.get(name)]
        break
    else:
        outcome.wrong.append(f"did not end right in {TRIES} tries")
    _check(store, outcome)
    partial = store.root / ".partial"
    outcome.leftovers += sorted(p.name for p in [*partial.rglob("*"), *root.rglob("*.tmp")])
    return outcome


def _kill(server: ProtocolServer, store: Store, card: Card, dice: random.Random) -> None:
    """Let another process begin, kill it in the middle of a file."""
    release = threading.Event()
    server.script = [hold(dice.randrange(1, 5_000), release)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", CHILD, str(store.root), card.model_dump_json()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if '"done": 0' not in line and '"done"' in line:
                break
        child.kill()
    release.set()


def _check(store: Store, outcome: Outcome) -> None:
    """Every file that has a name has the digest of its folder."""
    for folder in (store.root / "sha256").glob("*"):
        for path in folder.iterdir():
            if path.name != "verified.json" and hashlib.sha256(path.read_bytes()).hexdigest() != folder.name:
                outcome.corrupted.append(str(path))


def soak(runs: int, seed: int) -> list[Outcome]:
    """All runs, one after the other."""
    outcomes = []
    with servers(seed) as server, tempfile.TemporaryDirectory() as folder:
        for number in range(runs):
            root = Path(folder) / str(number)
            outcomes.append(run_one(server, root, seed * 1_000 + number))
            shutil.rmtree(root, ignore_errors=True)
            last = outcomes[-1]
            if last.corrupted or last.leftovers or last.wrong:
                say(f"  seed {seed * 1_000 + number}: {last}")
    return outcomes


def rows_of(outcomes: list[Outcome]) -> list[Row]:
    """What the bar asks for, and how often each fault was met."""
    met = {name: sum(name in o.faults for o in outcomes) for name in (*FAULTS, "kill -9")}
    note = ", ".join(f"{name} {count}" for name, count in met.items())
    sources = ", ".join(f"{name} {sum(o.source == name for o in outcomes)}" for name in SOURCES)
    return [
        Row("corrupted files", sum(len(o.corrupted) for o in outcomes), "files", 0, note=f"runs meeting: {note}"),
        Row("leftovers", sum(len(o.leftovers) for o in outcomes), "files", 0, note=f"runs by source: {sources}"),
        Row("fetches that did not end right", sum(bool(o.wrong) for o in outcomes), "runs", 0),
        Row("most tries one fetch took", max(o.tries for o in outcomes), "tries", TRIES),
        Row("runs", len(outcomes), "runs"),
    ]


def main() -> int:
    options = parser((__doc__ or "").split("\n\n")[0])
    options.add_argument("--seed", type=int, default=1, help="of the faults")
    chosen = read_options(options.parse_args(), ())
    began = time.monotonic()
    rows = rows_of(soak(QUICK if chosen.quick else RUNS, chosen.rest.seed))
    print(table(rows))
    write_report(chosen.json, machine(), rows, seconds=time.monotonic() - began)
    return 1 if any(row.passed is False for row in rows) else 0


if __name__ == "__main__":
    main_of(main)
