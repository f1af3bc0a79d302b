"""Advice from a tuning study's table: each threshold moves the answer, and what no study shows is not said."""

from __future__ import annotations

import re

import pytest

import riverrun.plan.tuning as tuning
from riverrun.base.errors import InputError
from riverrun.plan.tables import read_table
from riverrun.plan.tuning import advise


def use(monkeypatch: pytest.MonkeyPatch, **values: float) -> None:
    table = {name: {"value": value, "source": f"study of {name}"} for name, value in values.items()}
    monkeypatch.setattr(tuning, "read_table", lambda name, section: table)


def test_each_threshold_moves_the_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, tuning_from_rows=100, enough_rank=4, full_from_rows=1000)
    assert [advise(rows).method for rows in (0, 99, 100, 999, 1000)] == ["prompt", "prompt", "lora", "lora", "full"]
    assert advise(500).rank == 4
    assert "study of enough_rank" in advise(500).why
    assert "study of tuning_from_rows" in advise(5).why
    assert "study of full_from_rows" in advise(5000).why


def test_what_no_study_shows_is_not_advised(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, enough_rank=4)
    assert advise(10**6).method == "prompt"
    use(monkeypatch, tuning_from_rows=10, enough_rank=4)
    assert advise(10**6).method == "lora"
    use(monkeypatch, tuning_from_rows=10)
    with pytest.raises(InputError, match="no enough_rank"):
        advise(20)
    with pytest.raises(InputError, match="cannot be -1"):
        advise(-1)


def test_a_table_without_figures_says_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch)
    with pytest.raises(InputError, match="riverrun study run recipes/tuning_study"):
        advise(100)


def test_every_figure_of_the_shipped_table_names_its_study() -> None:
    for section in ("thresholds", "measured"):
        for entry in read_table("tuning", section).values():
            assert re.search(r"\d+ rows, \d+ questions, \d+ seed", entry["source"])
    if read_table("tuning", "thresholds"):
        assert advise(10**6).why
