"""Runs a study cell by cell; finished cells are skipped, so an interrupted study goes on where it was.

out/cells/NAME            what a cell wrote; cell.json, written last, says that it is finished and holds its result
out/study.json            settings, findings and every cell's figures; written when all are finished
out/index.html            the page

Each cell runs in a process of its own: its peak of memory is measured and given back, and a killed cell costs itself.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from riverrun.base.artifacts import write_json
from riverrun.base.errors import InputError
from riverrun.base.progress import Progress
from riverrun.chain.process import peak_memory, raise_ended, raise_error, reset_peak_memory, run_module
from riverrun.chain.stage import read_json
from riverrun.chain.study.study import Cell, Outcome, Study, cell_key, load_study

__all__ = ["CELL_FILE", "finished", "forecast", "plan_text", "run_cell", "run_study"]

CELL_FILE = "cell.json"


def finished(study: Study, cell: Cell, out: Path) -> Outcome | None:
    """The stored outcome of a cell. InputError when the folder holds one of other settings."""
    file = out / "cells" / cell.name / CELL_FILE
    if not file.is_file():
        return None
    stored = read_json(file)
    if stored.pop("key") != cell_key(study, cell):
        raise InputError(
            f"{file.parent} holds a cell of other settings or another model: give another --out, or delete it"
        )
    return Outcome(**stored)


def forecast(study: Study, out: Path) -> tuple[int, int, float]:
    """(cells, cells to do, seconds that those may take)."""
    cells = study.cells()
    left = [cell for cell in cells if finished(study, cell, out) is None]
    return len(cells), len(left), sum(cell.seconds for cell in left)


def plan_text(study: Study, out: Path) -> str:
    """What would be done: every cell with its seconds, and the whole."""
    total, left, seconds = forecast(study, out)
    lines = []
    for cell in study.cells():
        done = finished(study, cell, out)
        lines.append(f"{cell.name}: " + (f"finished, {done.seconds:.0f} s" if done else f"about {cell.seconds:.0f} s"))
    return "\n".join([*lines, f"{left} of {total} cells to do, about {_minutes(seconds)}"])


def run_cell(study: Study, cell: Cell, out: Path, progress: Progress) -> Outcome:
    """Carry a cell out in this process and write its marker."""
    folder = out / "cells" / cell.name
    folder.mkdir(parents=True, exist_ok=True)
    reset_peak_memory()
    began = time.monotonic()
    result = study.run(cell, folder, out, progress)
    done = Outcome(cell.name, cell.settings, time.monotonic() - began, peak_memory(), result)
    fields = {name: getattr(done, name) for name in Outcome.__slots__}
    write_json(folder / CELL_FILE, {"key": cell_key(study, cell)} | fields)
    return done


def run_study(
    recipe: Path, overrides: Sequence[str], out: Path, *, progress: Progress, isolate: bool = True
) -> dict[str, Any]:
    """All cells, then the page. Returns the findings."""
    study = load_study(recipe, overrides)
    cells = study.cells()
    total, left, seconds = forecast(study, out)
    if left:
        progress.say(f"{left} of {total} cells to do, about {_minutes(seconds)}: {out} keeps what is finished")
    outcomes: dict[str, Outcome] = {}
    expected = spent = 0.0
    for number, cell in enumerate(cells, 1):
        done = finished(study, cell, out)
        if done is None:
            if isolate:
                _in_child(recipe, overrides, cell, out, progress.mode)
                done = finished(study, cell, out)
                assert done is not None, f"cell {cell.name} ended without its marker"
            else:
                done = run_cell(study, cell, out, progress)
            if done.seconds > cell.seconds / 10:  # one that was gone on with says nothing of the pace
                expected, spent = expected + cell.seconds, spent + done.seconds
            ahead = sum(each.seconds for each in cells[number:] if finished(study, each, out) is None)
            pace = spent / expected if expected else 1.0
            progress.say(f"{number}/{total} {cell.name}: {done.seconds:.0f} s; about {_minutes(ahead * pace)} to go")
        outcomes[cell.name] = done
    findings = study.close(outcomes, out)
    write_json(out / "study.json", _record(study, outcomes, findings))
    return findings


def _record(study: Study, outcomes: Mapping[str, Outcome], findings: Mapping[str, Any]) -> dict[str, Any]:
    cells = [{name: getattr(each, name) for name in Outcome.__slots__} for each in outcomes.values()]
    return {"settings": study.config.model_dump(mode="json"), "findings": dict(findings), "cells": cells}


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def _in_child(recipe: Path, overrides: Sequence[str], cell: Cell, out: Path, mode: str) -> None:
    """Run one cell in a child; its error is raised here."""
    job = {"recipe": str(recipe), "overrides": list(overrides), "cell": cell.name, "out": str(out), "mode": mode}
    said, code = run_module("riverrun.chain.study.worker", job | {"parent": os.getpid()})
    if said:
        raise_error(json.loads(said))
    if code:
        raise_ended(f"cell '{cell.name}'", code)
