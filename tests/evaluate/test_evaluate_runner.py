"""Records on disk: what was scored once is scored again from the file alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from riverrun.base.errors import InputError
from riverrun.evaluate.choice import ChoiceRecord
from riverrun.evaluate.retention import SumRecord, WindowRecord
from riverrun.evaluate.runner import TASKS, compare_saved, rescore, save
from riverrun.evaluate.safety import Query, SafetyRecord
from riverrun.evaluate.tooltasks import Record

EXAMPLES: dict[str, list[Any]] = {
    "tooltasks": [
        Record("q1", "Wer?\u2028", "who", "lookup", [], "SELECT 1", [[1]], [[1]], True, "", "Antwort: ü", "raw"),
        Record("q2", "?", "who", "chat", [], None, None, None, False, "", "", ""),
    ],
    "choice": [ChoiceRecord("c", (0, 1), ("x", "y"), 0, (-1.0, -2.0), (-1.0, -0.5))],
    "perplexity": [WindowRecord("t#0", 40, 10, 21.5), WindowRecord("t#1", 30, 8, 20.0)],
    "sums": [SumRecord("10+11", 21, 21, "21"), SumRecord("10+12", 22, None, "?")],
    "safety": [SafetyRecord("s", "p", "abuse", 1, ("x",), "no", (Query("SELECT 1", True),))],
}


def test_every_task_has_an_example_here() -> None:
    assert TASKS.names() == sorted(EXAMPLES)


@pytest.mark.parametrize("task", sorted(EXAMPLES))
def test_rescoring_equals_the_first_score(tmp_path: Path, task: str) -> None:
    scores = save(tmp_path, "base", task, EXAMPLES[task])
    save(tmp_path, "tuned", task, EXAMPLES[task])
    assert rescore(tmp_path, "base", task) == scores
    assert json.loads((tmp_path / "base.json").read_text())[task] == json.loads(json.dumps(scores))
    assert compare_saved(tmp_path, "base", "tuned", task)


def test_scores_of_several_tasks_share_a_file(tmp_path: Path) -> None:
    for task, records in EXAMPLES.items():
        save(tmp_path, "base", task, records)
    assert sorted(json.loads((tmp_path / "base.json").read_text())) == sorted(EXAMPLES)


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    save(tmp_path, "base", "sums", EXAMPLES["sums"])
    path = tmp_path / "sums_base.jsonl"
    path.write_text(path.read_text() + '{"id": "x"}\n')
    with pytest.raises(InputError, match=r"sums_base.jsonl, line 3: not a record"):
        rescore(tmp_path, "base", "sums")
    with pytest.raises(InputError, match="does not exist"):
        rescore(tmp_path, "tuned", "sums")
    with pytest.raises(InputError, match="Did you mean 'sums'"):
        rescore(tmp_path, "base", "sum")
