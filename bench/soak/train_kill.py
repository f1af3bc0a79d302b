"""kill -9 at random moments of a training, also while it saves, and what the runs after it make of it.

`python -m bench.soak.train_kill [--quick] [--json FILE]`, also `make soak-train_kill`. One run is left alone; others
are killed again and again (20 in all), at seeded random moments: some in the middle of a save (a folder that ends in
.incomplete is there), the others after a random time. Asked of them: after each kill every complete checkpoint is
whole by its digests and none that was complete is lost before a newer one stands; the runs end with the very bytes of
the undisturbed one.

Peers do not apply. `--quick` kills three times.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.common import ROOT, Row, home, main_of, parser, read_options, say, table, write_report
from bench.parts.machine import machine
from riverrun.base.artifacts import digest_file
from riverrun.base.errors import RiverrunError

__all__ = ["NAME", "Kill", "prepare", "rows_of", "soak"]

NAME = "training, kill -9 at random moments"
KILLS, QUICK_KILLS, SEED = 20, 3, 0
KILLS_A_RUN = 5
STEPS = 60
POLL_SECONDS = 0.002
RECIPE: dict[str, Any] = {
    "model": "m",
    "data": {"train": "rows.jsonl", "max_tokens": 200},
    "method": "full",
    "optimizer": {"learning_rate": 3e-3},
    "batch": {"micro_tokens": 256, "global_tokens": 512},
    "run": {"length": f"{STEPS} steps", "dtype": "float32", "save_every": "1 steps"},
}
"""Saves after every step, so that many kills meet one."""


@dataclass(frozen=True)
class Kill:
    """One kill: the newest complete step before and after it, whether a save was under way, and what was wrong."""

    before: int
    after: int
    saving: bool
    problem: str = ""


def prepare(folder: Path) -> None:
    """A tiny model, its rows and the recipe."""
    from tests.tiny_model import write_rows, write_tiny

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_tiny(folder / "m")
    write_rows(folder / "rows.jsonl", 24)
    (folder / "recipe.yaml").write_text(json.dumps(RECIPE), encoding="utf-8")


def complete(work: Path) -> list[int]:
    """Steps of the complete checkpoints."""
    names = [path.name.removeprefix("step-") for path in work.glob("step-*") if path.is_dir()]
    return sorted(int(name) for name in names if name.isdigit())


def damage(work: Path) -> str:
    """The first complete checkpoint that is not what its state says; "" when all are."""
    for step in complete(work):
        folder = work / f"step-{step:06d}"
        try:
            state = json.loads((folder / "trainer_state" / "state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            return f"step {step} has no state ({error!r})"
        wrong = [name for name, sha in state["files"].items() if digest_file(folder / name) != sha]
        if wrong:
            return f"step {step}: {wrong[0]} is damaged"
    return ""


def start(folder: Path, out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "riverrun.cli.main", "train", "run", str(folder), "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    log = open(out.with_suffix(".log"), "ab")  # noqa: SIM115
    with log:
        return subprocess.Popen(
            [*command, "--progress", "quiet"],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            cwd=ROOT,
            env=environment,
            start_new_session=True,
        )


def kill_once(folder: Path, out: Path, rng: random.Random) -> Kill | None:
    """Start or go on, and kill at a drawn moment; None when the run ended before."""
    work = out / "work"
    had = complete(work)
    newest = had[-1] if had else 0
    wanted, in_save, rest = newest + rng.randint(2, 6), rng.random() < 0.6, rng.random() * 0.05
    process = start(folder, out)
    saving = False
    try:
        while process.poll() is None:
            now = complete(work)
            if now and now[-1] >= wanted:
                saving = any(work.glob("step-*.incomplete"))
                if saving or not in_save:
                    time.sleep(0.0 if saving else rest)
                    break
            time.sleep(POLL_SECONDS)
        else:
            return None
        before = complete(work)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.returncode != -signal.SIGKILL:
        return None
    after = complete(work)
    lost = "a complete checkpoint was lost" if not after or after[-1] < before[-1] else ""
    return Kill(before[-1], after[-1] if after else 0, saving, lost or damage(work))


def soak(folder: Path, kills: int, seed: int = SEED) -> tuple[list[Kill], list[str]]:
    """The kills, and what differs in the end between killed runs and the undisturbed one."""
    prepare(folder)
    calm = folder / "calm"
    if start(folder, calm).wait() != 0:
        raise RiverrunError(f"the undisturbed run failed: see {calm.with_suffix('.log')}")
    rng, done, differing = random.Random(seed), list[Kill](), list[str]()
    number = 0
    while len(done) < kills:
        out = folder / f"killed-{number}"
        number += 1
        for _ in range(min(KILLS_A_RUN, kills - len(done))):
            made = kill_once(folder, out, rng)
            if made is None:
                break
            done.append(made)
            say(f"kill {len(done)} of {kills}: step {made.before}, {'saving' if made.saving else 'between saves'}")
        if start(folder, out).wait() != 0:
            raise RiverrunError(f"the run after the kills failed: see {out.with_suffix('.log')}")
        differing += different(calm, out)
        if number > kills + 5:
            raise RiverrunError(f"the runs end before they can be killed: {len(done)} kills in {number} runs")
    return done, differing


def different(one: Path, other: Path) -> list[str]:
    """Files of the result that are not the same, and the losses."""
    names = sorted(path.name for path in (one / "model").iterdir())
    found = [f"{other.name}/{n}" for n in names if digest_file(one / "model" / n) != digest_file(other / "model" / n)]
    losses = [json.loads((each / "result.json").read_text(encoding="utf-8"))["losses"] for each in (one, other)]
    return found + ([f"{other.name}: losses"] if losses[0] != losses[1] else [])


def rows_of(kills: list[Kill], differing: list[str]) -> list[Row]:
    right = sum(not kill.problem for kill in kills)
    bad = [kill.problem for kill in kills if kill.problem] + differing
    saving = sum(kill.saving for kill in kills)
    note = "; ".join(bad) or f"{saving} of them during a save; all runs end with the bytes of the undisturbed one"
    return [
        Row(NAME, right, f"of {len(kills)} kills lost nothing", len(kills), "at least", note=note),
        Row(f"{NAME}: files that differ in the end", len(differing), "files", 0, "at most"),
    ]


def main() -> int:
    chosen = read_options(parser((__doc__ or "").split("\n\n")[0]).parse_args(), ())
    kills, differing = soak(home() / "train-kill-soak", QUICK_KILLS if chosen.quick else KILLS)
    rows = rows_of(kills, differing)
    print(table(rows))
    write_report(chosen.json, machine(), rows)
    return 0 if all(row.passed for row in rows) else 1


if __name__ == "__main__":
    main_of(main)
