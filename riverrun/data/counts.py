"""What became of records: kept, or set aside with a reason; the conservation law, and how much is too much."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from riverrun.base.errors import InputError
from riverrun.data.chunks import EncodedChunk
from riverrun.data.examples import REASONS

__all__ = ["Counts", "check_bad"]


@dataclass
class Counts:
    """What became of the records of one file: records = kept + sum(bad). `rows` is more than kept where texts are
    split or answers come in pairs."""

    records: int = 0
    kept: int = 0
    rows: int = 0
    tokens: int = 0
    labels: int = 0
    bad: Counter[str] = field(default_factory=Counter)

    def add(self, chunk: EncodedChunk) -> None:
        self.records += chunk.records
        self.kept += chunk.kept
        self.rows += len(chunk.lengths)
        self.tokens += len(chunk.ids)
        self.labels += int(chunk.labels.sum())
        self.bad.update(bad.reason for bad in chunk.bad)
        self.check()

    def check(self) -> None:
        """The conservation law."""
        assert self.records == self.kept + sum(self.bad.values()), f"records were lost: {self}"

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.records + other.records,
            self.kept + other.kept,
            self.rows + other.rows,
            self.tokens + other.tokens,
            self.labels + other.labels,
            self.bad + other.bad,
        )

    @property
    def too_long(self) -> int:
        """Dropped by the policy for long rows; not bad in themselves."""
        return self.bad["too_long"]

    @property
    def quarantined(self) -> int:
        return sum(self.bad.values()) - self.too_long

    def to_json(self) -> dict[str, Any]:
        names = ("records", "kept", "rows", "tokens", "labels")
        return {name: getattr(self, name) for name in names} | {"bad": dict(sorted(self.bad.items()))}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Counts:
        return cls(**{**value, "bad": Counter(value["bad"])})

    def told(self) -> str:
        """What was set aside, by reason."""
        return "; ".join(f"{count} x {reason} ({REASONS[reason]})" for reason, count in self.bad.most_common())


def check_bad(total: Counts, limit: float, where: Path | str, *, refuse: str = "") -> None:
    """InputError when more rows were set aside than `limit` allows (a share below 1, a count from 1 on), or none is
    left. Rows dropped for their length do not count towards the limit; `refuse` says what to do when none may be."""
    most = limit if limit >= 1 or not limit else limit * total.records
    if total.quarantined > most:
        allowed = f"{limit:g}" if limit >= 1 or not limit else f"{100 * limit:g} % of {total.records}"
        raise InputError(
            f"{total.quarantined} rows cannot be used, {allowed} are allowed (bad_rows): {total.told()}. "
            f"They stand in {where}: mend them, or raise bad_rows"
        )
    if refuse and total.too_long:
        raise InputError(f"{total.too_long} rows are too long ({where}); {refuse}")
    if not total.rows:
        raise InputError(f"no row is left to learn from: {total.told() or 'the files are empty'} ({where})")
