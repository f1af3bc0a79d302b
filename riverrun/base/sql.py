"""Names and values as SQLite reads them, quoted only where they must be; opening a file without a trace."""

from __future__ import annotations

import math
import re
from pathlib import Path

from riverrun.base.errors import InputError

__all__ = ["VALUE_BYTES", "has_log", "quote_literal", "quote_name", "read_only_uri"]

VALUE_BYTES = 100_000
"""Longest string or row the query tool lets SQLite build or read: it keeps single function calls short."""
_PLAIN = re.compile(r"[A-Za-z_\u0080-\U0010ffff][A-Za-z0-9_$\u0080-\U0010ffff]*")
_WORDS = """
add all alter and as autoincrement between case cast check collate commit constraint create cross current_date
current_time current_timestamp default deferrable delete distinct drop else escape except exists false foreign from full
group having in index inner insert intersect into is isnull join left like limit natural not nothing notnull null oid on
or order outer over primary raise references regexp returning right rowid select set table then to transaction true
union unique update using values when where with without _rowid_
"""
_RESERVED = frozenset(_WORDS.split())
"""Words SQLite does not take as a bare name everywhere, or takes for something else (https://sqlite.org/lang_keywords.html)."""


def has_log(path: Path) -> bool:
    """Whether an SQLite file is in WAL mode: its newest rows may stand in the file `NAME-wal` beside it."""
    with open(path, "rb") as handle:
        head = handle.read(20)
    return head[:16] == b"SQLite format 3\0" and head[18:] == b"\2\2"


def read_only_uri(path: Path) -> str:
    """The URI that opens an SQLite file for reading, for `sqlite3.connect(..., uri=True)`.

    In WAL mode SQLite makes two files beside the database even for a reader, and a reader leaves them there. Where
    there is no log, nobody has the database open and the file alone is read, as one that does not change.
    """
    file = path.resolve()
    alone = has_log(file) and not file.with_name(f"{file.name}-wal").exists()
    return f"{file.as_uri()}?mode=ro" + ("&immutable=1" if alone else "")


def quote_name(name: str) -> str:
    """A table's or column's name as it stands in a statement: bare where SQLite allows it, else in double quotes."""
    if _PLAIN.fullmatch(name) and name.lower() not in _RESERVED:
        return name
    return '"' + name.replace('"', '""') + '"'


def quote_literal(value: str | int | float) -> str:
    """A value as an SQLite literal. InputError for text SQLite cannot hold in a statement (NUL, lone surrogates)."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise InputError(f"a slot value must be text or a number, got {value!r}")
    if isinstance(value, str):
        if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
            raise InputError(f"slot value {value!r} holds a character that no SQL statement can hold, remove it")
        return "'" + value.replace("'", "''") + "'"
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"slot value {value!r} is no finite number")
    return repr(value)
