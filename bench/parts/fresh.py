"""A stranger's first quarter of an hour: the project cloned anew, `make quickstart`, then `make test`, both timed.

The clone is of the last commit (what is not committed is not in it), with a virtual environment and a model store of
its own; pip's cache is the user's.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from bench.common import ROOT, Done, Row, home, run, say
from riverrun.base.errors import InputError

__all__ = ["QUICKSTART", "TEST", "clone", "quickstart_rows", "run_make", "test_row"]

QUICKSTART = "make quickstart in a fresh clone, packages cached by pip, 2 cores"
TEST = "make test"
_FOREIGN = ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME", "MAKEFLAGS", "MAKELEVEL", "MFLAGS")


def clone() -> Path:
    """A fresh clone of the last commit; InputError outside of git."""
    out = home() / "fresh" / "riverrun"
    shutil.rmtree(out.parent, ignore_errors=True)
    out.parent.mkdir(parents=True)
    done = subprocess.run(["git", "clone", "--quiet", str(ROOT), str(out)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"{ROOT} cannot be cloned ({done.stderr.strip()}): run this bench in a git checkout")
    changed = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True, check=False)
    if changed.stdout.strip():
        say(f"note: {len(changed.stdout.splitlines())} files are changed or not committed; the clone is without them")
    return out


def run_make(target: str, folder: Path) -> Done:
    """`make TARGET` there, in an environment that knows nothing of the one around it."""
    say(f"make {target} in {folder} ...")
    env = {"RIVERRUN_HOME": str(folder.parent / "store")}
    return run(["make", target], log=folder.parent / f"make-{target}.log", cwd=folder, env=env, unset=_FOREIGN)


def answered(folder: Path, output: str) -> int:
    """How many of the run's own sealed questions stand in what was printed."""
    path = folder / "runs" / "bookshop" / "agent" / "answers.jsonl"
    if not path.is_file():
        return 0
    questions = {json.loads(line)["question"] for line in path.read_text(encoding="utf-8").splitlines() if line}
    return sum(question in output for question in questions)


def reported(folder: Path, output: str) -> bool:
    """Whether the path of a report that exists was printed."""
    found = re.findall(r"\S*report/index\.html", output)
    return any((folder / path).is_file() for path in found)


def quickstart_rows(done: Done, folder: Path) -> list[Row]:
    """Minutes, and the seconds of each stage."""
    summary_file = folder / "runs" / "bookshop" / "summary.json"
    summary: dict[str, Any] = json.loads(summary_file.read_text(encoding="utf-8")) if summary_file.is_file() else {}
    questions, report = answered(folder, done.output), reported(folder, done.output)
    note = (
        f"exit code {done.code}, report {'printed' if report else 'NOT printed'}, {questions} answered questions shown"
    )
    holds = done.code == 0 and report and questions >= 3
    rows = [Row(QUICKSTART, done.seconds / 60, "min", 15, note=note, holds=holds)]
    stages = summary.get("stages", {})
    rows += [Row(f"{QUICKSTART}: {name}", stage["seconds"], "s") for name, stage in stages.items()]
    inside = sum(stage["seconds"] for stage in stages.values())
    return [*rows, Row(f"{QUICKSTART}: installation and the rest", done.seconds - inside, "s")]


def test_row(done: Done) -> Row:
    """Minutes; holds when green."""
    last = (done.output.strip().splitlines() or ["no output"])[-1]
    return Row(TEST, done.seconds / 60, "min", 10, note=f"exit code {done.code}: {last}", holds=done.code == 0)
