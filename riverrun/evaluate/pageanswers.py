"""Answers from pages: does the answer say the fact? And which of several ways to answer is kept.

A question counts when its fact is known and its own text does not say it: an echo would be right otherwise. The match
is that of `base.facts`: numbers, times and names must be equal, words may stand otherwise. Not covered: whether an
answer that says the fact also says something wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from riverrun.base.facts import says
from riverrun.evaluate.statistics import PairedComparison, Rate, compare_outcomes
from riverrun.evaluate.tooltasks import ToolQuestion

__all__ = ["AnswerRecord", "Kept", "answerable", "choose", "judge", "score"]


@dataclass(frozen=True, slots=True)
class AnswerRecord:
    """One page question's answer."""

    id: str
    question: str
    page: str
    fact: str
    answer: str
    success: bool

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> AnswerRecord:
        return cls(**value)


def answerable(questions: Sequence[ToolQuestion]) -> list[ToolQuestion]:
    """The page questions whose fact is known and not given away."""
    return [
        question
        for question in questions
        if question.kind == "page" and question.page and question.fact and not says(question.text, question.fact)
    ]


def judge(questions: Sequence[ToolQuestion], answers: Sequence[str]) -> list[AnswerRecord]:
    """Each answer against its question's fact."""
    return [
        AnswerRecord(q.id, q.text, q.page or "", q.fact, answer, says(answer, q.fact))
        for q, answer in zip(questions, answers, strict=True)
    ]


def score(records: Sequence[AnswerRecord]) -> Rate:
    return Rate.of([record.success for record in records])


@dataclass(frozen=True)
class Kept:
    """The way that is kept, why, and the best one's gain over each other, paired."""

    mode: str
    why: str
    best: str
    over: Mapping[str, PairedComparison]


def choose(records: Mapping[str, Sequence[AnswerRecord]], cheapest_first: Sequence[str]) -> Kept:
    """The cheapest way that is not proven worse than the best: the 95 % interval of its paired loss includes 0.

    With no question all are alike. `records` may lack ways that could not be tried.
    """
    modes = [mode for mode in cheapest_first if mode in records]
    rates = {mode: score(records[mode]) for mode in modes}
    if not rates[modes[0]].n:
        return Kept(modes[0], f"no question to compare on: {modes[0]} is the cheapest", modes[0], {})
    best = max(modes, key=lambda mode: (rates[mode].value, -modes.index(mode)))
    outcomes = {mode: [record.success for record in records[mode]] for mode in modes}
    over = {mode: compare_outcomes(outcomes[mode], outcomes[best]) for mode in modes if mode != best}
    kept = next(mode for mode in modes if mode == best or over[mode].low <= 0)
    figures = ", ".join(f"{mode} {rates[mode].successes}/{rates[mode].n}" for mode in modes)
    if kept == best:
        why = f"{kept} is the best ({figures})" + ("" if kept == modes[0] else ", and what is cheaper is proven worse")
    else:
        loss = over[kept]
        why = (
            f"{kept} is the cheapest that is not proven worse ({figures}): {best} gains {100 * loss.difference:.1f} "
            f"points, 95 % interval {100 * loss.low:.1f} to {100 * loss.high:.1f}"
        )
    return Kept(kept, why, best, over)
