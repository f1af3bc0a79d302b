"""The bench of a weak start: its settings are a spec's, its verdict on the sealed test follows the order of opens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.parts.weak_start import WEAK, sealed_came_last, weak_start_rows
from riverrun.chain.drafting import draft_app, write_draft
from riverrun.chain.spec import load_app
from riverrun.data.synthesis import SynthesisConfig
from tests.data.hostile import make

DEV, DONE, SEALED = "7 questions_dev.jsonl", "7 .rounds.json.x1.tmp", "8 questions_sealed.jsonl"


def test_its_settings_can_be_run(tmp_path: Path) -> None:
    database = make("undeclared", tmp_path / "x.sqlite")
    draft = draft_app("weak", tmp_path / "weak", str(database), None, language="en", candidates=())
    write_draft(draft, tmp_path / "weak", force=False)
    plain, weak = load_app(tmp_path / "weak")[0], load_app(tmp_path / "weak", WEAK)[0]
    assert weak.rounds.most == 3
    assert plain.rounds.most == 2
    assert plain.rounds.success == plain.gates.success, "the draft aims at its own gate"
    assert plain.synthesis is not None
    assert weak.synthesis is not None
    assert weak.synthesis.train < SynthesisConfig().train / 3
    assert plain.finetune.start == "shipped"
    assert not weak.finetune.start


@pytest.mark.parametrize(
    ("lines", "last"),
    [
        ([DEV, DONE, SEALED], True),
        ([DEV, SEALED, DONE, SEALED], False),
        ([DEV, DONE, "7 questions_sealed.jsonl"], False),
        ([DEV, DONE], False),
        ([SEALED], False),
        ([], False),
    ],
)
def test_the_order_of_opens(lines: list[str], last: bool) -> None:
    assert sealed_came_last(lines) == last


@pytest.mark.parametrize(
    ("stopped", "lines", "passed"),
    [("met", [DONE, SEALED], True), ("most", [DONE, SEALED], False), ("met", [SEALED, DONE], False)],
)
def test_the_bar(stopped: str, lines: list[str], passed: bool, tmp_path: Path) -> None:
    rounds = {
        "count": 2,
        "stopped": stopped,
        "by_number": {"1": {"change": "first", "success": 0.2}, "2": {"change": "data", "success": 0.65}},
        "optimism": {"difference": 0.03, "low": -0.05, "high": 0.11},
    }
    summary = {"rounds": rounds, "scores": {"tool": {"tuned": {"success": 0.62, "n": 240}}}}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "opened.log").write_text("\n".join(lines))
    (row,) = weak_start_rows(tmp_path, tmp_path / "opened.log")
    assert row.passed is passed
    assert row.note.startswith("first 20 %, data 65 %; sealed 62.0 %, n = 240; optimism +3.0 [-5.0, 11.0] points; ")
