"""When an answer to a question in a person's words is exact, and why it is not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bench.any_business import QUESTIONS, cause, exact

PAIRS = [["Rock", 3], ["Jazz", 2]]


@pytest.mark.parametrize(
    ("gold", "rows", "sql", "right"),
    [
        (PAIRS, [["Jazz", 2], ["Rock", 3]], "", True),
        (PAIRS, [[3, "Rock"], [2, "Jazz"]], "", True),
        (PAIRS, [["Rock"], ["Jazz"]], "", True),
        (PAIRS, [["Rock", 2], ["Jazz", 3]], "", False),
        (PAIRS, [["Rock", 3]], "", False),
        (PAIRS, None, "", False),
        (PAIRS, [], "", False),
        ([], [], "", True),
        ([["Ada", "Park"]], [["Park", "Ada"]], "", False),
        ([[1, 9]], [[9, 1]], "", False),
        ([[1.5, 9.5]], [[9.5, 1.5]], "", False),
        ([[5.65]], [[5.651941747572825]], "SELECT ROUND(AVG(Total), 2) FROM Invoice", True),
        ([[5.651941747572825]], [[5.65]], "SELECT AVG(Total) FROM Invoice", True),
        ([[5.651941747572825]], [[5.6519]], "SELECT AVG(Total) FROM Invoice", False),
        ([[5.65]], [[5.66]], "SELECT ROUND(AVG(Total), 2) FROM Invoice", False),
        ([[5.7]], [[5.651941747572825]], "SELECT ROUND(AVG(Total), 1) FROM Invoice", True),
        ([[5.7]], [[5.65]], "SELECT AVG(Total) FROM Invoice", False),
        ([[394.0]], [[393.599212]], "SELECT round( avg(ms) / 1000, 0 ) FROM Track", True),
        ([[2.13]], [[2.125]], "SELECT ROUND(AVG(x), 2) FROM t", True),
        ([[-2.13]], [[-2.125]], "SELECT ROUND(AVG(x), 2) FROM t", True),
        ([[412]], [[412.001]], "SELECT COUNT(*) FROM t", False),
        ([["Rock", 5.65]], [[5.651941, "Rock"]], "SELECT n, ROUND(AVG(x), 2) FROM t", True),
        ([[None, "x"]], [["x", None]], "", True),
    ],
)
def test_exact(gold: list[list[Any]], rows: list[list[Any]] | None, sql: str, right: bool) -> None:
    assert exact(gold, rows, sql) is right


def test_causes() -> None:
    gold = "SELECT Name FROM Artist WHERE ArtistId = 1"
    assert cause({"sql": "SELECT x FROM Artist", "error": "no such column"}, gold) == "the query fails"
    assert cause({"page": "returns.html"}, gold) == "the pages are searched"
    assert cause({"answer": "Hello"}, gold) == "no query"
    assert cause({"sql": "SELECT Title FROM Album"}, gold) == "other tables"
    assert cause({"sql": "SELECT Name FROM Artist"}, gold) == "other columns or conditions"


def test_the_questions_are_sixty() -> None:
    lines = [json.loads(line) for line in QUESTIONS.read_text(encoding="utf-8").splitlines()]
    assert len(lines) == len({line["question"] for line in lines}) == 60
    assert all(line["sql"].upper().startswith(("SELECT", "WITH")) for line in lines)
