"""The last lines of a run: where the report is, answers that were right, commands that exist."""

from __future__ import annotations

from pathlib import Path

import pytest

from riverrun.chain.closing import closing, pick_answers, program
from riverrun.chain.run import open_context
from riverrun.chain.stage import read_jsonl


def row(kind: str, *, success: bool = True, number: int = 0) -> dict[str, object]:
    step = {"tool": "query_database", "arguments": {"sql": "SELECT 1"}}
    return {"question": f"{kind} {number}?", "kind": kind, "success": success, "answer": "One.", "steps": [step]}


def test_the_lines_of_a_finished_run(recipe: Path, finished: Path) -> None:
    lines = list(closing(open_context(recipe, out=finished)))
    text = "\n".join(lines)
    assert lines[0] == f"report: {finished / 'report' / 'index.html'}"
    asked = [line.removeprefix("\n  > ") for line in lines if line.startswith("\n  > ")]
    right = {item["question"] for item in read_jsonl(finished / "agent" / "answers.jsonl") if item["success"]}
    assert len(asked) == 3
    assert set(asked) <= right
    assert "[query_database] SELECT" in text
    assert f"{program()} chat " in text
    assert f"{program()} serve " in text


def test_wrong_answers_and_empty_ones_are_not_shown_off() -> None:
    rows = [row("lookup", success=False), row("count"), {**row("page"), "answer": " "}, {**row("chat"), "steps": []}]
    assert pick_answers(rows) == [rows[1]]


def test_kinds_come_before_more_of_the_same() -> None:
    rows = [row("aggregate"), row("lookup", number=1), row("lookup", number=2), row("page")]
    assert [item["question"] for item in pick_answers(rows)] == ["lookup 1?", "page 0?", "aggregate 0?"]
    assert len(pick_answers(rows[1:])) == 3


def test_the_program_is_named_as_it_was_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    script = tmp_path / ".venv" / "bin" / "riverrun"
    script.parent.mkdir(parents=True)
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    monkeypatch.setattr("sys.argv", [".venv/bin/riverrun", "run"])
    assert program() == ".venv/bin/riverrun"
    monkeypatch.setenv("PATH", str(script.parent))
    monkeypatch.setattr("sys.argv", [str(script), "run"])
    assert program() == "riverrun"
    monkeypatch.setattr("sys.argv", ["main.py", "run"])
    assert program() == "riverrun"
