"""Circular evaluation: every question is asked once per rotation of its options, so a favourite letter earns nothing.

Rotation i of the letters K = (A, B, ...) is P = K[i:] + K[:i]; the option that stood at K[j] moves to P[j], and so does
the right answer (CircularEval of MMBench, arXiv:2307.06281; the same patterns and metrics as OpenCompass
`datasets/circular.py`, there in percent, here as fractions). `permutations` asks all n! orders instead.
"""

from __future__ import annotations

import itertools
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from riverrun.base.errors import InputError

__all__ = ["Metrics", "Outcome", "Variant", "by_question", "letters", "measure", "permutations", "rotations"]

_MOST_OPTIONS = 26
_MOST_PERMUTED = 6  # 720 orders


@dataclass(frozen=True, slots=True)
class Variant:
    """One order of the options. `pattern[j]` is the place to which original option j moved; `answer` is a place."""

    pattern: tuple[int, ...]
    options: tuple[str, ...]
    answer: int

    def original(self, place: int) -> int:
        """The original index of the option that now stands at a place."""
        return self.pattern.index(place)


def letters(count: int) -> str:
    """The first letters of the alphabet: "ABCD" for 4."""
    if not 2 <= count <= _MOST_OPTIONS:
        raise InputError(f"a question needs 2 to {_MOST_OPTIONS} options, got {count}")
    return string.ascii_uppercase[:count]


def _variant(options: Sequence[str], answer: int, pattern: tuple[int, ...]) -> Variant:
    if not 0 <= answer < len(options):
        raise InputError(f"the answer's index must lie between 0 and {len(options) - 1}, got {answer}")
    moved = [""] * len(options)
    for option, place in zip(options, pattern, strict=True):
        moved[place] = option
    return Variant(pattern, tuple(moved), pattern[answer])


def _shifts(count: int) -> list[tuple[int, ...]]:
    letters(count)
    return [tuple((j + shift) % count for j in range(count)) for shift in range(count)]


def rotations(options: Sequence[str], answer: int) -> list[Variant]:
    """The n rotations; the first is the question as it stands."""
    return [_variant(options, answer, pattern) for pattern in _shifts(len(options))]


def permutations(options: Sequence[str], answer: int) -> list[Variant]:
    """All n! orders (n <= 6); the first is the question as it stands."""
    if len(options) > _MOST_PERMUTED:
        raise InputError(f"all orders of {len(options)} options are too many (limit {_MOST_PERMUTED}): use rotations")
    return [_variant(options, answer, pattern) for pattern in itertools.permutations(range(len(options)))]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The place picked on one variant of one question, None when no option could be read from the answer."""

    question: str
    pattern: tuple[int, ...]
    answer: int
    picked: int | None

    @property
    def correct(self) -> bool:
        return self.picked == self.answer

    @property
    def vote(self) -> int | None:
        """The original index of the picked option."""
        return None if self.picked is None else self.pattern.index(self.picked)

    @property
    def right_vote(self) -> int:
        return self.pattern.index(self.answer)


@dataclass(frozen=True)
class Metrics:
    """Fractions of 1. `origin` is the accuracy on unrotated questions.

    acc: mean over all variants. perf: share of questions right on every variant. more[k]: share right on at least k.
    vote: share whose most-picked original option is the right one (ties: the one picked first).
    prior: how often each letter was picked, "-" for no letter; right answers are spread evenly over rotations,
    so a fair reader of 4 options has 0.25 everywhere.
    """

    questions: int
    origin: float
    acc: float
    perf: float
    more: Mapping[int, float]
    vote: float
    prior: Mapping[str, float]

    def as_dict(self) -> dict[str, Any]:
        return {
            "questions": self.questions,
            "origin": self.origin,
            "acc": self.acc,
            "perf": self.perf,
            **{f"more_{k}": share for k, share in self.more.items()},
            "vote": self.vote,
            "prior": dict(self.prior),
        }


def by_question(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """Outcomes grouped in the order of first appearance; InputError when a variant is there twice."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.question, []).append(outcome)
    for question, group in groups.items():
        if len({outcome.pattern for outcome in group}) < len(group):
            raise InputError(f"question '{question}' has the same rotation twice: score each variant once")
    return groups


def measure(outcomes: Sequence[Outcome], *, circular_only: bool = False) -> Metrics:
    """All metrics of the variants at hand; `circular_only` keeps the rotations out of all permutations."""
    if circular_only:
        outcomes = [outcome for outcome in outcomes if outcome.pattern in _shifts(len(outcome.pattern))]
    groups = by_question(outcomes)
    if not groups:
        raise InputError("circular metrics need at least one question, got 0")
    correct = [sum(outcome.correct for outcome in group) for group in groups.values()]
    variants = max(len(group) for group in groups.values())
    origin = [outcome.correct for outcome in outcomes if outcome.pattern == tuple(range(len(outcome.pattern)))]
    picks = Counter("-" if o.picked is None else letters(len(o.pattern))[o.picked] for o in outcomes)
    names = [*letters(max(len(outcome.pattern) for outcome in outcomes)), "-"]
    return Metrics(
        questions=len(groups),
        origin=sum(origin) / max(1, len(origin)),
        acc=sum(correct) / len(outcomes),
        perf=sum(right == len(group) for right, group in zip(correct, groups.values(), strict=True)) / len(groups),
        more={k: sum(right >= k for right in correct) / len(groups) for k in range(1, variants)},
        vote=sum(_voted_right(group) for group in groups.values()) / len(groups),
        prior={name: picks[name] / len(outcomes) for name in names},
    )


def _voted_right(group: Sequence[Outcome]) -> bool:
    votes = Counter(outcome.vote for outcome in group if outcome.vote is not None)
    return bool(votes) and votes.most_common(1)[0][0] == group[0].right_vote
