"""Page answers: what counts, what is kept, and why."""

from __future__ import annotations

import pytest

from riverrun.evaluate.pageanswers import AnswerRecord, answerable, choose, judge, score
from riverrun.evaluate.tooltasks import ToolQuestion

ORDER = ("extract", "prompt", "tuned")


def question(number: int, text: str, fact: str, kind: str = "page") -> ToolQuestion:
    return ToolQuestion(f"q{number}", text, "page.a", kind, "dev", None if kind == "page" else "SELECT 1", "a", fact)


def test_a_question_counts_when_its_fact_is_known_and_not_given_away() -> None:
    kept = question(0, "How long do refunds take?", "7 working days")
    others = [
        question(1, "Tell me about refunds.", ""),
        question(2, "Is it true that refunds take seven working days?", "Refunds take 7 working days."),
        question(3, "How many, and how long do refunds take?", "7 working days", "both"),
    ]
    assert answerable([kept, *others]) == [kept]


def test_answers_are_judged_by_their_facts() -> None:
    asked = [question(0, "How long?", "30 days"), question(1, "How much?", "£2.80"), question(2, "Who?", "Ann Lee")]
    records = judge(asked, ["Within thirty days.", "2.85 pounds", "Ann"])
    assert [record.success for record in records] == [True, False, False]
    assert judge([question(1, "How much?", "£2.80\n£3")], ["It is 3 pounds."])[0].success
    assert score(records).successes == 1
    assert AnswerRecord.from_dict(records[0].as_dict()) == records[0]


def outcomes(right: int, n: int = 30) -> list[AnswerRecord]:
    return [AnswerRecord(f"q{i}", "?", "a", "f", "x", i < right) for i in range(n)]


@pytest.mark.parametrize(
    ("right", "kept"),
    [
        ({"extract": 20, "prompt": 20, "tuned": 20}, "extract"),
        ({"extract": 20, "prompt": 2, "tuned": 21}, "extract"),
        ({"extract": 5, "prompt": 2, "tuned": 25}, "tuned"),
        ({"extract": 5, "prompt": 24, "tuned": 25}, "prompt"),
        ({"prompt": 5, "tuned": 6}, "prompt"),
    ],
)
def test_the_cheapest_that_is_not_proven_worse_is_kept(right: dict[str, int], kept: str) -> None:
    chosen = choose({mode: outcomes(number) for mode, number in right.items()}, ORDER)
    assert chosen.mode == kept
    assert kept in chosen.why
    assert f"{right[kept]}/30" in chosen.why
    assert set(chosen.over) == set(right) - {chosen.best}


def test_without_questions_the_cheapest_is_kept() -> None:
    chosen = choose({"extract": [], "tuned": []}, ORDER)
    assert chosen.mode == "extract"
    assert "no question" in chosen.why
