"""The kinds of operators a document passes, as narrow protocols: measure, judge, change, compare with others.

Signal   document -> values          stored under metadata["signals"], so that a rule's threshold can be looked up
Rule     document -> Drop or None    sees the values
Edit     document -> changed document with counts, or Drop
Grouped  all documents -> Drops by id
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

from riverrun.base.types import Document

__all__ = ["Drop", "Edit", "Edited", "Grouped", "Operator", "Rule", "Signal", "signals_of", "with_signals"]


@dataclass(frozen=True, slots=True)
class Drop:
    """Why a document goes: a reason from a small vocabulary, and a sentence with the value that decided."""

    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Edited:
    """A document after an edit; `counts` says what was changed, by kind."""

    document: Document
    counts: Mapping[str, int] = field(default_factory=dict)


@runtime_checkable
class Signal(Protocol):
    name: str

    def measure(self, document: Document) -> Mapping[str, float]: ...


@runtime_checkable
class Rule(Protocol):
    name: str

    def check(self, document: Document) -> Drop | None: ...


@runtime_checkable
class Edit(Protocol):
    name: str

    def edit(self, document: Document) -> Edited | Drop: ...


@runtime_checkable
class Grouped(Protocol):
    name: str

    def group(self, documents: Sequence[Document]) -> Mapping[str, Drop]: ...


Operator = Signal | Rule | Edit | Grouped


def signals_of(document: Document) -> Mapping[str, float]:
    """The values measured so far."""
    values: Mapping[str, float] = document.metadata.get("signals", {})
    return values


def with_signals(document: Document, values: Mapping[str, float]) -> Document:
    merged = {**signals_of(document), **{name: round(value, 4) for name, value in values.items()}}
    return replace(document, metadata={**document.metadata, "signals": merged})
