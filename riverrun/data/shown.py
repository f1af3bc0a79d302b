"""Which tables and columns a prompt names when there is no room for all: what people ask about first, the rest said.

A BLOB, a column without any value and a credential are never named. Then, while the text is too long, go: columns that
are rarely asked for, columns of very wide tables, and whole tables, empty and lonely ones first.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from riverrun.base.sql import quote_name
from riverrun.data.names import concept_of, is_minor, is_secret
from riverrun.data.schema import Column, Schema, Table

__all__ = ["ROOM", "Shown", "choose_shown", "estimate_tokens", "schema_line", "without_keys"]

ROOM = 300
"""Estimated tokens for the schema in the system text; a vocabulary of 49k words takes up to a sixth more."""
_PIECE = re.compile(r"[A-Z]?[a-z]{1,9}|[A-Z]{1,3}|\d|_|[(),;\"]+|[^\W\d_]|[^\w\s]")
WIDE = 16
"""Columns kept of a table when the text is too long."""


@dataclass(frozen=True)
class Shown:
    """Tables with the columns that are named, and a sentence for everything left out."""

    tables: Mapping[str, tuple[str, ...]]
    left_out: tuple[str, ...]
    denied: tuple[str, ...]
    """Columns that look like credentials, as `table.column`."""
    tokens: int
    """Estimated, of the line in the system text."""


def estimate_tokens(text: str) -> int:
    """About as many tokens as a byte-level vocabulary makes of names: digits and underscores are dear, words are not.

    Within a sixth of SmolLM2's tokenizer on the schemas of the tests.
    """
    return sum(1 if piece.isascii() else 2 for piece in _PIECE.findall(text))


def schema_line(tables: Mapping[str, Sequence[str]]) -> str:
    """The schema as the system text holds it."""
    parts = (f"{quote_name(table)}({', '.join(map(quote_name, columns))})" for table, columns in tables.items())
    return "; ".join(parts)


def without_keys(schema: Schema) -> dict[str, tuple[str, ...]]:
    """Tables with the columns that a query names when its joins are completed: no links, and no numbers that only
    tell rows apart where these have names. A table that holds nothing else is left out, unless it is alone."""
    out: dict[str, tuple[str, ...]] = {}
    for table in schema.tables:
        hidden = schema.linked(table.name)
        if table.label:
            hidden |= {name for name in table.key if table.by_name[name].kind == "integer"} - set(table.label)
        out[table.name] = tuple(column.name for column in table.columns if column.name not in hidden)
    kept = {name: columns for name, columns in out.items() if columns}
    return kept or {table.name: tuple(table.by_name) for table in schema.tables}


def choose_shown(schema: Schema, room: int = ROOM) -> Shown:
    """What is named within about so many tokens (keys do not count); at least one table always is."""
    notes: list[str] = []
    visible = without_keys(schema)
    secrets = tuple(
        f"{t.name}.{c.name}" for t in schema.tables for c in t.columns if is_secret(c.name) and c.name not in t.key
    )
    kept = {
        table.name: [c for c in table.columns if f"{table.name}.{c.name}" not in secrets] for table in schema.tables
    }
    _drop(kept, notes, lambda column: column.kind == "blob", "holds bytes, not text")
    _drop(kept, notes, lambda column: column.kind == "empty" and column.rows > 0, "has no value in any row")
    used = {(link.table, name) for link in schema.links for name in link.columns}
    used |= {(link.parent, name) for link in schema.links for name in link.parent_columns}
    used |= {(table.name, name) for table in schema.tables for name in (*table.key, *table.label)}
    for name in [name for name, columns in kept.items() if not columns]:
        notes.append(f"{name}: no column is left to ask about")
        del kept[name]
    if _length(kept, visible) > room:
        for name, columns in kept.items():
            minor = [c for c in columns if is_minor(c.name) and (name, c.name) not in used]
            if minor:
                kept[name] = [column for column in columns if column not in minor]
                notes.append(f"{name}: {_few([c.name for c in minor])} (rarely asked for, no room)")
    if _length(kept, visible) > room:
        for name, columns in kept.items():
            if len(columns) > WIDE:
                best = sorted(columns, key=lambda c, name=name: -_worth(c, (name, c.name) in used))[:WIDE]  # type: ignore[misc]
                kept[name] = [column for column in columns if column in best]
                notes.append(f"{name}: {len(columns) - WIDE} of its {len(columns)} columns (no room)")
    dropped = []
    for table in sorted(schema.tables, key=lambda table: relevance(schema, table)):
        if _length(kept, visible) <= room or len(kept) == 1:
            break
        if kept.pop(table.name, None) is not None:
            dropped.append(table.name)
    if dropped:
        notes.append(f"{len(dropped)} tables (no room, few rows or links): {_few(dropped)}")
    tables = {name: tuple(column.name for column in columns) for name, columns in kept.items()}
    return Shown(tables, tuple(notes), secrets, _length(kept, visible))


def relevance(schema: Schema, table: Table) -> float:
    """How likely a table is asked about: its rows, its links, whether its rows have names."""
    if not table.rows:
        return 0.0
    links = sum(table.name in (link.table, link.parent) for link in schema.links)
    return math.log10(1 + table.rows) + 1.5 * bool(table.label) + min(links, 6) * 0.7 - 0.5 * table.view


def _worth(column: Column, used: bool) -> float:
    filled = 1 - column.nulls / max(1, column.rows)
    return 3.0 * used + bool(concept_of(column.name)) + filled - is_minor(column.name)


def _drop(kept: dict[str, list[Column]], notes: list[str], wrong, why: str) -> None:  # type: ignore[no-untyped-def]
    for name, columns in kept.items():
        if out := [column.name for column in columns if wrong(column)]:
            kept[name] = [column for column in columns if column.name not in out]
            notes.append(f"{name}: {_few(out)} ({why})")


def _few(names: Sequence[str], most: int = 12) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _length(kept: Mapping[str, Sequence[Column]], visible: Mapping[str, Sequence[str]]) -> int:
    """Estimated tokens of the schema in the prompt."""
    named = {name: [c.name for c in columns if c.name in visible.get(name, ())] for name, columns in kept.items()}
    return estimate_tokens(schema_line({name: columns for name, columns in named.items() if columns}))
