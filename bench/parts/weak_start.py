"""From a deliberately weak start: does the chain reach its gate in three rounds, without a look at the sealed test?

The bare model without the adapter that ships and few training questions; everything else is what `init` drafts. Every
file that a stage's process opens is written down by an audit hook. `python -m bench.parts.weak_start [--work FOLDER]`
runs Chinook up to `evaluate`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.common import ROOT, Row, home, main_of, run, table
from riverrun.base.errors import RiverrunError

__all__ = ["WATCH", "WEAK", "main", "sealed_came_last", "weak_start", "weak_start_rows"]

ROUNDS = 3
NAME = "from a deliberately weak start: rounds to the gate on the development questions"
WEAK = (
    "finetune.start=''",
    "synthesis.train=300",
    "finetune.learning_rate=1.0e-3",
    "evaluate.base_questions=20",
    f"rounds.most={ROUNDS}",
)
CLI = [sys.executable, "-m", "riverrun.cli.main"]
WATCH = """
import os, sys
stage = "riverrun.chain.worker" in sys.orig_argv
log = os.open(os.environ["RIVERRUN_OPENED"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
def watch(event, values):
    if stage and event == "open" and isinstance(values[0], (str, os.PathLike)):
        name = os.path.basename(values[0])
        if any(part in name for part in ("questions_", "rounds.json", "dev_records")):
            os.write(log, f"{os.getpid()} {name}\\n".encode())
sys.addaudithook(watch)
"""
"""A sitecustomize.py: each stage's process says which files of questions and rounds it opens.

The process that runs the stages is left out: it digests every output for the lineage and hands on no content."""


def sealed_came_last(lines: Sequence[str]) -> bool:
    """Whether rounds.json had been written when the sealed questions were first opened, and by another process.

    The lines are those that WATCH wrote; a file is written under a temporary name that holds its own.
    """
    opened = [tuple(line.split(maxsplit=1)) for line in lines]
    sealed = [place for place, (_, name) in enumerate(opened) if name == "questions_sealed.jsonl"]
    written = [place for place, (_, name) in enumerate(opened) if name.startswith(".rounds.json.")]
    if not sealed or not written:
        return False
    tuning = {opened[place][0] for place in written}
    return max(written) < sealed[0] and not any(opened[place][0] in tuning for place in sealed)


def weak_start(database: Path, work: Path) -> Path:
    """`init` and a crippled `run` up to evaluate, in a folder made anew; returns the run's folder."""
    shutil.rmtree(work, ignore_errors=True)
    (work / "watch").mkdir(parents=True)
    (work / "watch" / "sitecustomize.py").write_text(WATCH, encoding="utf-8")
    first = run([*CLI, "init", "weak", "--database", str(database)], log=work / "init.log", cwd=work, env=_path())
    if first.code:
        raise RiverrunError(f"init ended with code {first.code}: see {work / 'init.log'}")
    env = _path(work / "watch") | {"RIVERRUN_OPENED": str(work / "opened.log")}
    command = [*CLI, "run", "weak", *WEAK, "--out", "run", "--until", "evaluate"]
    done = run(command, log=work / "run.log", cwd=work, env=env)
    if done.code not in (0, 3):  # 3: a gate was missed, which the rows say
        raise RiverrunError(f"run ended with code {done.code}: see {work / 'run.log'}")
    return work / "run"


def _path(*first: Path) -> dict[str, str]:
    before = os.environ.get("PYTHONPATH", "")
    return {"PYTHONPATH": os.pathsep.join([*map(str, first), str(ROOT), *([before] if before else [])])}


def weak_start_rows(finished: Path, opened: Path) -> list[Row]:
    """The bar of the issue, judged by a run's own records."""
    summary = json.loads((finished / "summary.json").read_text(encoding="utf-8"))
    rounds = summary["rounds"]
    numbers = sorted(rounds["by_number"], key=int)
    told = [f"{rounds['by_number'][n]['change']} {100 * rounds['by_number'][n]['success']:.0f} %" for n in numbers]
    last = sealed_came_last(opened.read_text(encoding="utf-8").splitlines())
    sealed, optimism = summary["scores"]["tool"]["tuned"], rounds["optimism"]
    note = f"{', '.join(told)}; sealed {100 * sealed['success']:.1f} %, n = {sealed['n']}; optimism "
    note += f"{100 * optimism['difference']:+.1f} [{100 * optimism['low']:.1f}, {100 * optimism['high']:.1f}] points; "
    note += "the sealed test was opened after the rounds" if last else "THE SEALED TEST WAS OPENED BEFORE"
    return [Row(NAME, rounds["count"], "rounds", ROUNDS, note=note, holds=last and rounds["stopped"] == "met")]


def main() -> int:
    from bench.any_business import chinook

    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    options.add_argument("--work", type=Path, default=home() / "weak-start", help="folder that is made anew")
    work = options.parse_args().work.absolute()
    rows = weak_start_rows(weak_start(chinook(), work), work / "opened.log")
    print(table(rows))
    return 1 if any(row.passed is False for row in rows) else 0


if __name__ == "__main__":
    main_of(main)
