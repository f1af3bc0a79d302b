"""One thing that can be asked of a database: its SQL with marks, and what goes into the marks.

The SQL leaves joins out (`SELECT Name FROM Track WHERE Artist.Name = {e}`): `wire.joins` completes it along the keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from riverrun.base.sql import quote_name
from riverrun.data.names import split_name
from riverrun.data.schema import Column, Table

__all__ = ["MANY", "Composition", "Slot", "SlotForm", "unit_of", "value_query"]

SlotForm = Literal["entity", "value", "prefix", "part", "number", "limit", "name"]
MANY = 12
"""A column with at most this many values is a vocabulary: every split may use all of them."""


@dataclass(frozen=True)
class Slot:
    """A mark in the SQL and in the wording. `query` gives the choices, a row each.

    entity: becomes conditions on `columns`. value: a literal. prefix, part: a LIKE pattern. number: a threshold found
    among the values of the query. limit: a small number. name: the first of two names that several rows share.
    """

    name: str
    form: SlotForm
    query: str = ""
    columns: tuple[str, ...] = ()
    split: bool = True
    show: str = ""
    """How a value is said: "" as it is, "month", "day", "of TABLE" for a key, or a unit's name."""
    factor: int = 1
    """What one of the unit is in the column's own measure."""
    codes: tuple[tuple[Any, str], ...] = ()
    """(value, how it is said), for short codes whose meaning is known."""


@dataclass(frozen=True)
class Composition:
    """One thing to ask. `form` names the set of rows, `kind` is what scores are grouped by."""

    op: str
    form: str
    kind: str
    table: Table
    sql: str
    slots: tuple[Slot, ...] = ()
    column: Column | None = None
    other: Column | None = None
    by: Column | None = None
    parent: Table | None = None
    child: Table | None = None
    role: str = ""
    weight: float = 1.0
    tie: str = ""
    """Gives the sort keys of one row more than asked for: equal ones at the end make the answer ambiguous."""

    @property
    def name(self) -> str:
        """Tells compositions apart, also across runs."""
        parts = [self.op, self.form, self.table.name]
        parts += [column.name for column in (self.column, self.other, self.by) if column is not None]
        parts += [table.name for table in (self.parent, self.child) if table is not None]
        return ".".join([*parts, self.role] if self.role else parts)


def value_query(table: Table, columns: Sequence[str]) -> str:
    """All different values of some columns, none of them missing."""
    names = [quote_name(name) for name in columns]
    filled = " AND ".join(f"{name} IS NOT NULL AND {name} != ''" for name in names)
    return f"SELECT DISTINCT {', '.join(names)} FROM {table.sql} WHERE {filled} LIMIT 5000"


def unit_of(column: Column) -> tuple[str, int]:
    """The unit people use for a column that is kept in a small one: minutes for milliseconds."""
    last = split_name(column.name)[-1:]
    high = column.high if isinstance(column.high, int | float) else 0
    if last == ("milliseconds",) and high > 60_000:
        return "minutes", 60_000
    if last == ("seconds",) and high > 180:
        return "minutes", 60
    if last == ("bytes",) and high > 2_000_000:
        return "MB", 1_000_000
    return "", 1
