"""The tasks by name: how their records are read, scored and compared. Running a model is each task's own `run`.

A folder of results holds `<task>_<label>.jsonl` (records) and `<label>.json` (scores of all tasks of that label).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from riverrun.base.artifacts import write_json
from riverrun.base.registry import Registry
from riverrun.evaluate import choice, retention, safety, tooltasks
from riverrun.evaluate.log import read_records, write_records

__all__ = ["TASKS", "Task", "compare_saved", "rescore", "save"]


@dataclass(frozen=True)
class Task:
    """`read` makes a record of a JSON object; `score` and `compare` turn records into plain figures."""

    name: str
    read: Callable[[Mapping[str, Any]], Any]
    score: Callable[[Sequence[Any]], Mapping[str, Any]]
    compare: Callable[[Sequence[Any], Sequence[Any]], Mapping[str, Any]]


TASKS: Registry[Task] = Registry("evaluation task")
TASKS.add(
    "tooltasks",
    Task(
        "tooltasks",
        tooltasks.Record.from_dict,
        lambda records: tooltasks.score(records).as_dict(),
        lambda before, after: tooltasks.compare(before, after).as_dict(),
    ),
)
TASKS.add(
    "choice",
    Task(
        "choice",
        choice.ChoiceRecord.from_dict,
        choice.score,
        lambda before, after: choice.compare(before, after).as_dict(),
    ),
)
TASKS.add(
    "perplexity",
    Task("perplexity", retention.WindowRecord.from_dict, retention.score_perplexity, retention.compare_perplexity),
)
TASKS.add("sums", Task("sums", retention.SumRecord.from_dict, retention.score_sums, retention.compare_sums))
TASKS.add(
    "safety",
    Task(
        "safety",
        safety.SafetyRecord.from_dict,
        safety.score,
        lambda before, after: {"worse": [asdict(each) for each in safety.compare(before, after)]},
    ),
)


def _records_path(folder: Path, task: str, label: str) -> Path:
    return folder / f"{task}_{label}.jsonl"


def save(folder: Path, label: str, task: str, records: Sequence[Any]) -> Mapping[str, Any]:
    """Write the records of a task and enter its scores in `<label>.json`; gives the scores."""
    write_records(_records_path(folder, task, label), records)
    scores = TASKS.get(task).score(records)
    path = folder / f"{label}.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    write_json(path, {**known, task: scores})
    return scores


def rescore(folder: Path, label: str, task: str) -> Mapping[str, Any]:
    """The scores of saved records, from the records alone."""
    entry = TASKS.get(task)
    return entry.score(read_records(_records_path(folder, task, label), entry.read))


def compare_saved(folder: Path, before: str, after: str, task: str) -> Mapping[str, Any]:
    """The paired comparison of two labels' saved records."""
    entry = TASKS.get(task)
    first, second = (read_records(_records_path(folder, task, label), entry.read) for label in (before, after))
    return entry.compare(first, second)
