"""The process that runs one cell: `python -m riverrun.chain.study.worker`, started by the runner."""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path

from riverrun.base.memory import keep_freed_memory
from riverrun.base.progress import Progress
from riverrun.chain.process import die_with_parent, show_error
from riverrun.chain.study.runner import run_cell
from riverrun.chain.study.study import load_study

__all__ = ["main"]


def main() -> int:
    """Read the job, run the cell; says nothing on standard output but an error, as JSON."""
    job = json.loads(sys.stdin.read())
    die_with_parent(job["parent"])
    keep_freed_memory()
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        study = load_study(Path(job["recipe"]), job["overrides"])
        cell = next(each for each in study.cells() if each.name == job["cell"])
        run_cell(study, cell, Path(job["out"]), Progress(job["mode"]))
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if os.environ.get("RIVERRUN_DEBUG"):
            traceback.print_exc()
        answer.write(json.dumps(show_error(error)))
        answer.close()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
