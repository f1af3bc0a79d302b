"""Open-book choice with models whose favourites are known."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from riverrun.base.errors import InputError
from riverrun.base.fakes import FakeModel
from riverrun.base.protocols import Score
from riverrun.base.types import Message
from riverrun.evaluate.choice import Choice, ChoiceRecord, compare, run, score

ITEMS = [
    Choice.from_dict(
        {"page": "returns.html", "question": "How long?", "options": ["30 days", "14", "60", "90"], "answer": 0}
    ),
    Choice.from_dict({"page": "faq.html", "question": "Who?", "options": ["Ann", "Bo", "Cy", "Di"], "answer": 2}),
]
PASSAGES = {"returns.html": "Returns within 30 days.", "faq.html": "Ask Cy."}


class Reader(FakeModel):
    """Gives one log-probability a word; `favour` says which continuations are likely."""

    def __init__(self, favour, *, words: bool = False) -> None:
        super().__init__()
        self.favour, self.words = favour, words
        self.asked: list[tuple[str, tuple[str, ...]]] = []

    def score(self, prefix: str | Sequence[Message], continuations: Sequence[str]) -> list[Score]:
        assert not isinstance(prefix, str)
        self.asked.append((prefix[-1].text, tuple(continuations)))
        out = []
        for text in continuations:
            value = -0.5 if self.favour(prefix[-1].text, text) else -1.0
            out.append(Score((value,) * (len(text.split()) if self.words else 1), False))
        return out


def reads(prompt: str, text: str) -> bool:
    return text.split(". ", 1)[1] in prompt.split("\n")[0]


def test_a_reader_is_perfect_and_a_letter_lover_is_not() -> None:
    reader = Reader(reads)
    records = run(reader, ITEMS, passages=PASSAGES, system="Read.")
    assert len(records) == 8
    report = score(records)
    assert (report["perf"], report["acc"], report["by_mean"]["perf"]) == (1.0, 1.0, 1.0)
    assert report["perf_interval"]["n"] == 2
    lover = run(Reader(lambda _, text: text.startswith("B.")), ITEMS, passages=PASSAGES)
    assert score(lover)["perf"] == 0.0
    assert score(lover)["acc"] == 0.25
    assert score(lover)["prior"]["B"] == 1.0


def test_rotations_of_a_question_follow_one_another_after_its_page() -> None:
    reader = Reader(reads)
    run(reader, ITEMS, passages=PASSAGES)
    assert [prompt.split("\n")[0] for prompt, _ in reader.asked] == [PASSAGES["returns.html"]] * 4 + [
        PASSAGES["faq.html"]
    ] * 4
    assert reader.asked[0][1] == ("A. 30 days", "B. 14", "C. 60", "D. 90")
    assert reader.asked[1][1] == ("A. 90", "B. 30 days", "C. 14", "D. 60")
    assert "B. 30 days" in reader.asked[1][0]


def test_total_and_mean_may_differ() -> None:
    """The right option has two words: its total is lowered, its mean is not."""
    records = run(Reader(lambda _, text: "30" in text, words=True), ITEMS[:1], passages=PASSAGES)
    assert [record.picked("mean") for record in records] == [record.answer for record in records]
    assert score(records)["by_mean"]["perf"] == 1.0
    assert records[0].totals == pytest.approx((-1.5, -2.0, -2.0, -2.0))
    assert records[0].means == pytest.approx((-0.5, -1.0, -1.0, -1.0))
    long = [Choice("x", "?", ("one two three four", "five"), 0)]
    records = run(Reader(lambda _, text: "one" in text, words=True), long)
    assert score(records)["perf"] == 0.0
    assert score(records)["by_mean"]["perf"] == 1.0


def test_compare_pairs_questions() -> None:
    right = run(Reader(reads), ITEMS, passages=PASSAGES)
    wrong = run(Reader(lambda _, text: text.startswith("A.")), ITEMS, passages=PASSAGES)
    report = compare(wrong, right).as_dict()
    assert report["perf"]["gains"] == 2
    assert report["perf"]["difference"] == 1.0
    assert report["acc"]["difference"] == pytest.approx(0.75)
    with pytest.raises(InputError, match="differ in 1 questions"):
        compare(right, right[:4])


def test_records_survive_json() -> None:
    records = run(Reader(reads), ITEMS, passages=PASSAGES)
    again = [ChoiceRecord.from_dict(json.loads(json.dumps(record.as_dict()))) for record in records]
    assert again == records


def test_refusals() -> None:
    with pytest.raises(InputError, match=r"1 pages .* the first is 'faq.html'"):
        run(Reader(reads), ITEMS, passages={"returns.html": ""})
    with pytest.raises(InputError, match="lacks the key 'answer'"):
        Choice.from_dict({"question": "?", "options": ["a", "b"]})
    with pytest.raises(InputError, match="from 0 to 1, got 2"):
        Choice("x", "?", ("a", "b"), 2)
    with pytest.raises(InputError, match="same option twice: a, a"):
        Choice("x", "?", ("a", "a"), 0)
