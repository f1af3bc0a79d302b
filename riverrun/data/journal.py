"""What became of every document, on disk: kept.jsonl, dropped.jsonl and, written last, funnel.json.

Each file is whole or absent; nothing in them depends on the clock or the machine, so equal inputs give equal bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from riverrun.base.artifacts import atomic_file, write_json
from riverrun.base.errors import InputError
from riverrun.base.types import Document

__all__ = [
    "DROPPED_FILE",
    "FUNNEL_FILE",
    "KEPT_FILE",
    "Dropped",
    "Funnel",
    "Step",
    "read_documents",
    "read_dropped",
    "read_funnel",
    "write_documents",
    "write_journal",
]

T = TypeVar("T")
KEPT_FILE, DROPPED_FILE, FUNNEL_FILE = "kept.jsonl", "dropped.jsonl", "funnel.json"


@dataclass(frozen=True)
class Dropped:
    """One dropped document: by which operator, for which reason, with the value that decided."""

    id: str
    reason: str
    operator: str
    detail: str


@dataclass(frozen=True)
class Step:
    """What one operator did. `edited` counts documents, `counts` the changes by kind; came_in = went_out + dropped."""

    operator: str
    kind: str
    came_in: int
    went_out: int
    dropped: Mapping[str, int] = field(default_factory=dict)
    edited: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Funnel:
    """The whole way, operator by operator."""

    documents: int
    kept: int
    dropped: int
    reasons: Mapping[str, int]
    steps: tuple[Step, ...]

    def check(self) -> None:
        """The conservation law, for each step and for the whole."""
        flow = self.documents
        for step in self.steps:
            assert step.came_in == flow, f"{step.operator} saw {step.came_in} of {flow} documents"
            assert step.came_in == step.went_out + sum(step.dropped.values()), f"{step.operator} lost documents: {step}"
            flow = step.went_out
        assert flow == self.kept, f"{flow} documents went out, {self.kept} were kept"
        assert self.documents == self.kept + self.dropped, f"{self.documents} != {self.kept} + {self.dropped}"
        assert sum(self.reasons.values()) == self.dropped, f"{self.reasons} do not sum up to {self.dropped}"


def write_journal(folder: Path, kept: Sequence[Document], dropped: Sequence[Dropped], funnel: Funnel) -> None:
    """All three files; funnel.json last, so its presence says that the others are complete."""
    funnel.check()
    assert len(kept) == funnel.kept, f"{len(kept)} documents for a funnel that kept {funnel.kept}"
    assert len(dropped) == funnel.dropped, f"{len(dropped)} drops for a funnel that dropped {funnel.dropped}"
    (folder / FUNNEL_FILE).unlink(missing_ok=True)
    write_documents(folder / KEPT_FILE, kept)
    with atomic_file(folder / DROPPED_FILE) as handle:
        for item in dropped:
            handle.write(json.dumps(asdict(item), ensure_ascii=False) + "\n")
    write_json(folder / FUNNEL_FILE, asdict(funnel))


def write_documents(path: Path, documents: Iterable[Document]) -> None:
    """One document a line."""
    with atomic_file(path) as handle:
        for document in documents:
            handle.write(json.dumps(asdict(document), ensure_ascii=False) + "\n")


def read_documents(path: Path) -> list[Document]:
    """The inverse of `write_documents`. InputError names the line that cannot be read."""
    return [
        _record(path, number, value, lambda item: Document(**item))
        for number, value in enumerate(_lines(path), 1)
        if value
    ]


def read_dropped(path: Path) -> list[Dropped]:
    return [
        _record(path, number, value, lambda item: Dropped(**item))
        for number, value in enumerate(_lines(path), 1)
        if value
    ]


def read_funnel(path: Path) -> Funnel:
    def build(item: Any) -> Funnel:
        return Funnel(**{**item, "steps": tuple(Step(**step) for step in item["steps"])})

    return _record(path, 1, "\n".join(_lines(path)), build)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None


def _record(path: Path, number: int, line: str, build: Callable[[Any], T]) -> T:
    try:
        return build(json.loads(line))
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}, line {number}: not a record of this kind ({error})") from None
