"""kill -9 in the middle of every stage of a real run on a tiny budget, and what the rerun makes of it.

`python -m bench.soak.kill [--quick] [--json FILE] [--recipe FOLDER]`, also `make soak-kill`. One run is left alone; a
second is killed, all its processes at once, in each stage in turn, and started again each time. Asked of it: what
was finished is not run again, nothing of the killed stage passes for finished, and the deterministic stages end with
the very files of the first run.

Peers do not apply. `--quick` kills in fine-tuning and quantising only.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.common import ROOT, Row, home, main_of, parser, read_options, run, say, table, write_report
from bench.parts.machine import machine
from riverrun.base.artifacts import LINEAGE_FILE, read_lineage
from riverrun.base.errors import RiverrunError
from riverrun.chain.stage import STAGES

__all__ = ["DETERMINISTIC", "NAME", "TINY", "Attempt", "changed_files", "rows_of", "soak"]

NAME = "kill -9 in each stage, rerun"
TINY = (
    "select.dev_questions=2",
    "data.train_per_intent=2",
    "data.dev_per_intent=1",
    "data.sealed_per_intent=1",
    "data.choice_rotations=0",
    "data.replay=4",
    "safety=''",
    "finetune.epochs=1",
    "finetune.save_every=2",
    "evaluate.max_tokens=32",
    "evaluate.retention_characters=3000",
    "evaluate.sums=8",
    "evaluate.choices=4",
    *(
        f"gates.{name}=null"
        for name in ("success", "retention_perplexity", "sums_change", "quantized_drop", "through_agent")
    ),
)
"""A real run in two or three minutes: every stage does its work, no bar is asked of it."""
DETERMINISTIC = {"data": "", "plan": "", "finetune": "", "quantize": "q4-"}
"""Stages whose files are a function of their inputs, with the beginning of the names concerned. The answers of a model
that serves several at once may differ in the last bit, the report shows the clock."""
IN_THE_MIDDLE = {
    "finetune": ".work/train/step-*/trainer_state/state.json",
    "evaluate": "records_base.jsonl",
    "quantize": ".work/made.json",
}
"""Files whose appearance shows that the stage is half done; the other stages are killed at half their time."""
POLL_SECONDS = 0.01
ATTEMPTS = 6
QUICK = ("finetune", "quantize")


@dataclass
class Attempt:
    """What was seen of one killed stage; `seconds_in` it was killed."""

    stage: str
    seconds_in: float
    passed_for_finished: bool
    redone: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    note: str = ""

    @property
    def problems(self) -> list[str]:
        found = []
        if self.passed_for_finished:
            found.append("the killed stage passed for finished")
        if self.redone:
            found.append(f"run again though finished: {', '.join(self.redone)}")
        if self.changed and self.stage in DETERMINISTIC:
            found.append(f"other files than undisturbed: {', '.join(self.changed)}")
        return found


def finished(out: Path) -> set[str]:
    return {stage for stage in STAGES if (out / stage / LINEAGE_FILE).is_file()}


def events(out: Path) -> list[dict[str, Any]]:
    """run.log so far; a line that is being written is left for the next look."""
    path = out / "run.log"
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines]


def kill_in(stage: str, start: Sequence[str], out: Path, usual_seconds: float, share: float) -> float | None:
    """Start a run and kill it in the middle of `stage`; seconds it was in the stage, None when that was over before."""
    seen = len(events(out))
    with open(out.with_suffix(".log"), "ab") as log:
        process = subprocess.Popen(
            list(start), stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=ROOT, start_new_session=True
        )
    try:
        while process.poll() is None:
            news = [event for event in events(out)[seen:] if event.get("stage") == stage]
            if any(event["event"] in ("stage_end", "stage_skip") for event in news):
                return None
            began = next((event["time"] for event in news if event["event"] == "stage_start"), None)
            if began is not None and _halfway(stage, out, time.time() - began, share * usual_seconds):
                return float(time.time() - began)
            time.sleep(POLL_SECONDS)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    raise RiverrunError(f"the run ended with code {process.returncode} before stage '{stage}': see {out}.log")


def _halfway(stage: str, out: Path, inside: float, half: float) -> bool:
    mark = IN_THE_MIDDLE.get(stage)
    return any((out / stage).glob(mark)) if mark else inside >= half


def attempt(stage: str, start: Sequence[str], out: Path, usual_seconds: float) -> tuple[Attempt, set[str]]:
    """Kill one stage; where it was over too soon, take its result away and try earlier. Returns what is finished."""
    for number in range(ATTEMPTS):
        before, seen = finished(out), len(events(out))
        inside = kill_in(stage, start, out, usual_seconds, share=0.5 ** (number + 1))
        redone = started(events(out)[seen:]) & before
        now = finished(out)
        if inside is not None:
            return Attempt(stage, inside, stage in now, sorted(redone)), now
        for later in STAGES[STAGES.index(stage) :]:
            shutil.rmtree(out / later, ignore_errors=True)
    raise RiverrunError(
        f"stage '{stage}' was over each time before it could be killed ({ATTEMPTS} tries): see {out}.log"
    )


def started(news: Sequence[Mapping[str, Any]]) -> set[str]:
    """Stages that began to work, as the log has it."""
    return {event["stage"] for event in news if event["event"] == "stage_start"}


def changed_files(stage: str, one: Path, other: Path) -> list[str]:
    """Names of a stage's files that differ between two runs, or that only one of them has."""
    first, second = (_outputs(out / stage) for out in (one, other))
    beginning = DETERMINISTIC.get(stage, "")
    names = sorted(name for name in {*first, *second} if name.startswith(beginning))
    return [name for name in names if first.get(name) != second.get(name)]


def _outputs(folder: Path) -> Mapping[str, str]:
    lineage = read_lineage(folder)
    assert lineage, f"{folder} is not finished"
    return lineage.outputs


def soak(
    stages: Sequence[str], folder: Path, make_command: Callable[[Path], list[str]]
) -> tuple[list[Attempt], dict[str, float]]:
    """The attempts, and the wall time of both runs. `folder` is emptied first."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    calm, killed = folder / "undisturbed", folder / "killed"
    say("undisturbed run ...")
    done = run(make_command(calm), log=folder / "undisturbed.log")
    if done.code:
        raise RiverrunError(f"the undisturbed run ended with code {done.code}: see {folder / 'undisturbed.log'}")
    usual = {event["stage"]: event["seconds"] for event in events(calm) if event["event"] == "stage_end"}
    attempts: list[Attempt] = []
    began = time.monotonic()
    for stage in stages:
        made, before = attempt(stage, make_command(killed), killed, usual[stage])
        say(f"killed in {stage} after {made.seconds_in:.2f} s of {usual[stage]:.2f} s")
        attempts.append(made)
    seen = len(events(killed))
    last = run(make_command(killed), log=folder / "killed-last.log")
    if last.code:
        raise RiverrunError(f"the last rerun ended with code {last.code}: see {folder / 'killed-last.log'}")
    attempts[-1].redone += sorted(started(events(killed)[seen:]) & before)
    for made in attempts:
        made.changed = changed_files(made.stage, calm, killed)
        made.note = _note(made, killed)
    return attempts, {"undisturbed_seconds": done.seconds, "killed_seconds": time.monotonic() - began}


def _note(made: Attempt, out: Path) -> str:
    lineage = read_lineage(out / made.stage)
    counts = lineage.counts.get("counts", {}) if lineage else {}
    resumed = f"resumed from step {counts['resumed_from']}, " if counts.get("resumed_from") else ""
    if made.problems:
        return resumed + "; ".join(made.problems)
    same = "same files" if not made.changed else f"{', '.join(made.changed)} differ (not asked of this stage)"
    return resumed + same


def rows_of(attempts: Sequence[Attempt]) -> list[Row]:
    """The issue's row, then one for each stage (seconds after which it was killed)."""
    right = sum(not made.problems for made in attempts)
    bad = [f"{made.stage}: {made.note}" for made in attempts if made.problems]
    note = "; ".join(bad) or f"killed in {', '.join(made.stage for made in attempts)}; nothing finished was run again"
    first = Row(NAME, right, f"of {len(attempts)} stages right", len(attempts), "at least", note=note)
    return [first, *(Row(f"{NAME}: {m.stage}", m.seconds_in, "s into the stage", note=m.note) for m in attempts)]


def command(recipe: Path, out: Path) -> list[str]:
    """A run of the recipe on the tiny budget."""
    start = [sys.executable, "-m", "riverrun.cli.main", "run", str(recipe)]
    return [*start, *TINY, "--out", str(out), "--progress", "lines"]


def measure(recipe: Path, *, quick: bool) -> tuple[list[Row], dict[str, float]]:
    attempts, times = soak(QUICK if quick else STAGES, home() / "kill-soak", lambda out: command(recipe, out))
    return rows_of(attempts), times


def main() -> int:
    options = parser((__doc__ or "").split("\n\n")[0])
    options.add_argument("--recipe", type=Path, default=ROOT / "recipes" / "bookshop", help="recipe to run")
    chosen = read_options(options.parse_args(), ())
    rows, times = measure(chosen.rest.recipe, quick=chosen.quick)
    print(table(rows))
    write_report(chosen.json, machine(), rows, times=times)
    return 0 if rows[0].passed else 1


if __name__ == "__main__":
    main_of(main)
