"""Databases that nobody tidied up, each through `riverrun init` and `run --until data`: it runs, or says why not.

Both commands run as a person types them, in processes of their own. The model is the tests' empty one (a config, no
weights): selecting asks no question, so nothing is computed with it. A refusal is exit code 2 and one sentence.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from bench.common import ROOT, Done, Row, home, run, say
from tests.data.hostile import REFUSED, SCHEMAS, make

__all__ = ["NAME", "Outcome", "judge", "measure", "outcome", "rows", "rows_of"]

NAME = "hostile databases that run or refuse with one clear sentence"
CLI = [sys.executable, "-m", "riverrun.cli.main"]
MODEL = ROOT / "tests" / "chain" / "app" / "model"
OPEN = "open elsewhere, in WAL mode"
SMALL = ("synthesis.train=150", "synthesis.dev=10", "synthesis.sealed=30")


@dataclass(frozen=True)
class Outcome:
    """What became of one database: `said` is the sentence of a refusal or the number of questions."""

    name: str
    said: str
    problems: tuple[str, ...] = ()
    seconds: float = 0.0


def judge(done: Done) -> tuple[str, list[str]]:
    """The sentence a command refused with ("" when it ran), and what is wrong with how it ended."""
    lines = [line for line in done.output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    if done.code == 0:
        return "", [f"says {errors[0]} and ends with code 0"] if errors else []
    problems = [] if done.code == 2 else [f"exit code {done.code}"]
    if "Traceback (most recent call last)" in done.output:
        problems.append(f"a traceback: {lines[-1]}")
    if len(errors) != 1 or lines[-1] != errors[0]:
        problems.append("not one sentence" if errors else "no sentence")
    return (errors or lines or ["nothing"])[-1].removeprefix("error: "), problems


def outcome(
    name: str, write: Callable[[Path], object], folder: Path, *, language: str = "en", small: bool, refused: str = ""
) -> Outcome:
    """`init` and `run` over a database that `write` makes in `folder`. refused: words of the sentence; "" must run."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write(folder / "business data.sqlite")
    init = ["init", "app", "--database", "business data.sqlite", "--candidate", str(MODEL), "--language", language]
    first = run([*CLI, *init], log=folder / "init.log", cwd=folder, env={"PYTHONPATH": str(ROOT)})
    said, problems = judge(first)
    seconds = first.seconds
    if not first.code:
        options = ["--out", "run", "--until", "data", "--progress", "lines", "select.dev_questions=0"]
        command = [*CLI, "run", "app", *options, *(SMALL if small else ())]
        second = run(command, log=folder / "run.log", cwd=folder, env={"PYTHONPATH": str(ROOT)})
        said, problems = judge(second)
        seconds += second.seconds
    if bool(said) != bool(refused) and not problems:
        problems.append(f"refused: {said}" if said else "runs, though there is nothing to ask")
    elif refused and refused not in said:
        problems.append(f"its sentence does not say '{refused}': {said}")
    if not said:
        summary = json.loads((folder / "run" / "summary.json").read_text(encoding="utf-8"))
        asked = summary["stages"]["data"]["counts"]["train_by_kind"]
        said = f"runs: {sum(asked.values())} training questions of {len(asked)} kinds"
    return Outcome(name, said, tuple(problems), seconds)


def measure(*, quick: bool, folder: Path | None = None) -> list[Outcome]:
    """Every database; `quick` makes fewer questions."""
    work = folder or home() / "hostile"
    out = []
    for name in SCHEMAS:
        for language in ("en", "zh") if name == "chinese" else ("en",):
            shown = name if language == "en" else f"{name}, asked in Chinese"
            write = lambda path, name=name: make(name, path)  # noqa: E731
            out.append(outcome(shown, write, work / f"{name}-{language}", language=language, small=quick))
            say(f"  {out[-1].name}: {out[-1].said}")
    for name, (spoil, words) in REFUSED.items():
        out.append(outcome(name, spoil, work / name, small=quick, refused=words))
        say(f"  {out[-1].name}: {out[-1].said}")
    return [*out, open_elsewhere(work / "open", small=quick)]


def open_elsewhere(folder: Path, *, small: bool) -> Outcome:
    """A database whose last rows are still in the log of a program that has it open: the run's copy must hold them."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with closing(sqlite3.connect(folder / "live.sqlite", isolation_level=None)) as writer:
        writer.execute("PRAGMA journal_mode = WAL")
        writer.execute("PRAGMA wal_autocheckpoint = 0")
        writer.execute("CREATE TABLE guests (id INTEGER PRIMARY KEY, name TEXT, city TEXT)")
        rows = [(n, f"Guest {n}", ("Leeds", "York")[n % 2]) for n in range(40)]
        writer.executemany("INSERT INTO guests VALUES (?, ?, ?)", rows)
        write = lambda path: path.symlink_to(folder / "live.sqlite")  # noqa: E731
        made = outcome(OPEN, write, folder / "app", small=small)
    data = folder / "app" / "run" / "data"
    problems = list(made.problems)
    if not problems:
        with closing(sqlite3.connect((data / "shop.sqlite").as_uri() + "?mode=ro", uri=True)) as copy:
            count = copy.execute("SELECT COUNT(*) FROM guests").fetchone()[0]
        if count != 40:
            problems.append(f"the run's copy has {count} of 40 rows")
        if left := [path.name for path in data.glob("shop.sqlite-*")]:
            problems.append(f"left beside the copy: {', '.join(left)}")
    return Outcome(OPEN, made.said, tuple(problems), made.seconds)


def rows(*, quick: bool) -> list[Row]:
    """What any_business shows of them."""
    return rows_of(measure(quick=quick))


def rows_of(outcomes: Sequence[Outcome]) -> list[Row]:
    """The issue's row, then one for each database."""
    right = sum(not made.problems for made in outcomes)
    bad = "; ".join(f"{made.name}: {', '.join(made.problems)}" for made in outcomes if made.problems)
    refused = sum(not made.said.startswith("runs: ") for made in outcomes)
    note = bad or f"{len(outcomes) - refused} run, {refused} are refused"
    first = Row(NAME, right, f"of {len(outcomes)}", len(outcomes), "at least", note=note, holds=len(outcomes) >= 12)
    return [first, *(Row(f"hostile: {made.name}", made.seconds, "s", note=made.said) for made in outcomes)]
