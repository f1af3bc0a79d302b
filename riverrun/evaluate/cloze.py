"""Cloze: does a model prefer the right ending of a sentence to others of the same kind, and would it write it itself?

The pick is the ending with the greatest total log-probability after the same beginning. Chance is one over the number
of endings, whatever their lengths, when every ending is right as often as any other. `greedy` asks for more: that the
model, left alone, writes the right ending token by token. An optional context stands before the sentence: with the fact
in it, the same items show whether a model can do the form at all (the control for a model at chance).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from riverrun.base.errors import InputError
from riverrun.base.protocols import LanguageModel
from riverrun.evaluate.statistics import Rate

__all__ = ["Cloze", "ClozeRecord", "greedy_rate", "run", "score"]


@dataclass(frozen=True, slots=True)
class Cloze:
    """A sentence's beginning, its possible endings and the index of the right one; `context` says the fact."""

    id: str
    prefix: str
    options: tuple[str, ...]
    answer: int
    context: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.answer < len(self.options) or len(self.options) < 2:
            raise InputError(f"cloze '{self.id}': answer {self.answer} of {len(self.options)} endings is none of them")
        if len(set(self.options)) < len(self.options):
            raise InputError(f"cloze '{self.id}' has the same ending twice: {', '.join(self.options)}")

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Cloze:
        return cls(**{**value, "options": tuple(value["options"])})


@dataclass(frozen=True, slots=True)
class ClozeRecord:
    """One item's pick; `nats` are the negative log-probabilities of the endings."""

    id: str
    pick: int
    answer: int
    greedy: bool
    nats: tuple[float, ...]

    @property
    def success(self) -> bool:
        return self.pick == self.answer

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> ClozeRecord:
        return cls(**{**value, "nats": tuple(value["nats"])})


def run(model: LanguageModel, items: Sequence[Cloze], *, open_book: bool = False) -> list[ClozeRecord]:
    """Score every ending of every item; with `open_book` its context stands before the sentence."""
    records = []
    for item in items:
        prefix = f"{item.context}\n\n{item.prefix}" if open_book else item.prefix
        scores = model.score(prefix, item.options)
        nats = tuple(-each.total for each in scores)
        pick = min(range(len(nats)), key=nats.__getitem__)
        records.append(ClozeRecord(item.id, pick, item.answer, scores[item.answer].is_greedy, nats))
    return records


def score(records: Sequence[ClozeRecord]) -> Rate:
    """Share of right picks."""
    return Rate.of([record.success for record in records])


def greedy_rate(records: Sequence[ClozeRecord]) -> Rate:
    """Share of items whose right ending greedy decoding writes."""
    return Rate.of([record.greedy for record in records])
