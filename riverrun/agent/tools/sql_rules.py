"""What SQL text from a model may do: the authorizer, and functions that cannot be made to run for ever.

SQLite asks the authorizer about every table, column and function while it compiles a statement, so what is refused here
never starts. Three things the authorizer does not see are handled beside it: columns joined by NATURAL or USING, the
time a statement takes to compile (views and CTEs can double at each step), and single calls that take seconds or
minutes (printf is not allowed; LIKE and TRIM are replaced by versions whose time is bounded by their arguments).
"""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache

from riverrun.agent.tool import clip
from riverrun.base.errors import nearest

__all__ = ["FUNCTIONS", "PATTERN_CHARACTERS", "Authorizer", "install_functions", "joined_columns"]

_NAMES = """
abs avg bm25 ceil ceiling char coalesce count cume_dist current_date current_time current_timestamp date datetime
dense_rank exp first_value floor group_concat highlight hex iif ifnull instr julianday lag last_value lead
length like likelihood likely ln log log10 log2 lower ltrim match max min mod nth_value ntile nullif percent_rank
pi pow power quote rank replace round row_number rtrim sign snippet sqrt strftime string_agg substr
substring sum time total trim trunc typeof unicode unixepoch unlikely upper
"""
FUNCTIONS = frozenset(_NAMES.split())
PATTERN_CHARACTERS = 1_000  # longest LIKE pattern
_SCHEMA_TABLES = {"sqlite_master", "sqlite_schema"}
_WORDS = {
    sqlite3.SQLITE_PRAGMA: "PRAGMA is not allowed: write one SELECT",
    sqlite3.SQLITE_ATTACH: "ATTACH is not allowed: write one SELECT on this database",
    sqlite3.SQLITE_DETACH: "DETACH is not allowed: write one SELECT",
    sqlite3.SQLITE_TRANSACTION: "transactions are not allowed: write one SELECT",
    sqlite3.SQLITE_SAVEPOINT: "transactions are not allowed: write one SELECT",
}
_WRITES = "only SELECT is allowed, this statement would change the database"


class Authorizer:
    """The callback of one statement. `refusal` is the first reason for a denial, written for the model."""

    def __init__(self, tables: Mapping[str, Sequence[str]], denied: Iterable[tuple[str, str]], deadline: float) -> None:
        self.tables = {name.lower() for name in tables} | _SCHEMA_TABLES
        self.names = sorted(tables)
        self.denied = frozenset(denied)
        self.deadline = deadline
        self.refusal = ""
        self.timed_out = False
        self.selects = False

    def __call__(self, action: int, first: str | None, second: str | None, _db: str | None, _by: str | None) -> int:
        if time.monotonic() > self.deadline:
            self.timed_out = True
            return sqlite3.SQLITE_DENY
        reason = self._reason(action, first or "", second or "")
        if not reason:
            return sqlite3.SQLITE_OK
        self.refusal = self.refusal or reason
        return sqlite3.SQLITE_DENY

    def _reason(self, action: int, first: str, second: str) -> str:
        if action in (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_RECURSIVE):
            self.selects = True
            return ""
        if action == sqlite3.SQLITE_READ:
            table, column = first.lower(), second.lower()
            if (table, column) in self.denied:
                return f"column {first}.{second} is private: leave it out and name the columns you need"
            if table not in self.tables and column:  # without a column: count(*), of a CTE as well
                return f"table {first} cannot be read.{nearest(first, self.names)}"
            return ""
        if action == sqlite3.SQLITE_FUNCTION:
            if second.lower() in FUNCTIONS:
                return ""
            advice = ": use round()" if second.lower() in ("printf", "format") else ""
            return f"function {second}() is not allowed{advice}"
        if action == sqlite3.SQLITE_PRAGMA and self.selects and first.lower() == "data_version" and not second:
            return ""  # a counter that full-text search reads on its own while a SELECT runs
        if action == sqlite3.SQLITE_UPDATE and first in _SCHEMA_TABLES:
            return f"table-valued functions are not allowed: read the tables {clip(', '.join(self.names), 200)}"
        return _WORDS.get(action, _WRITES)


_TOKEN = re.compile(
    r"""--[^\n]*|/\*.*?(?:\*/|\Z)|'(?:[^']|'')*'|"(?:[^"]|"")*"|`(?:[^`]|``)*`|\[[^\]]*\]|\w+|[^\s\w]""", re.DOTALL
)


def joined_columns(sql: str, names: Iterable[str]) -> str:
    """Why a join by column name is refused ("" when it is not): NATURAL, or USING with one of the private `names`.

    SQLite does not ask its authorizer about columns compared by such joins.
    """
    private = {name.lower() for name in names}
    tokens = [token.lower() for token in _TOKEN.findall(sql) if not token.startswith(("--", "/*"))]
    for index, token in enumerate(tokens):
        following = tokens[index + 1 : index + 2]
        if token == "natural" and following and following[0] in ("join", "left", "right", "full", "inner", "cross"):
            return "NATURAL JOIN is not allowed here: write JOIN ... ON"
        if token == "using" and following == ["("]:
            end = tokens.index(")", index) if ")" in tokens[index:] else len(tokens)
            for name in (part.strip("'\"`[]") for part in tokens[index + 2 : end]):
                if name in private:
                    return f"column {name} is private: it cannot be used in a join"
    return ""


def install_functions(connection: sqlite3.Connection) -> None:
    """Replace LIKE and the TRIM family on this connection."""
    connection.create_function("like", 2, _like, deterministic=True)
    connection.create_function("like", 3, _like, deterministic=True)
    connection.create_function("trim", 2, lambda text, marks: _trim(text, marks, str.strip), deterministic=True)
    connection.create_function("ltrim", 2, lambda text, marks: _trim(text, marks, str.lstrip), deterministic=True)
    connection.create_function("rtrim", 2, lambda text, marks: _trim(text, marks, str.rstrip), deterministic=True)


SqlValue = str | int | float | bytes | None
_ASCII_LOWER = {code: code + 32 for code in range(65, 91)}


def _text(value: SqlValue) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _trim(text: SqlValue, marks: SqlValue, strip: Callable[[str, str], str]) -> str | None:
    if text is None or marks is None:
        return None
    return strip(_text(text), "".join(set(_text(marks))))


def _like(pattern: SqlValue, text: SqlValue, escape: SqlValue = "") -> int | None:
    """LIKE as SQLite defines it (case-blind for ASCII), in time linear in the text for each part of the pattern."""
    if pattern is None or text is None or escape is None:
        return None
    if len(_text(pattern)) > PATTERN_CHARACTERS:
        raise ValueError("pattern too long")
    return int(_matcher(_text(pattern), _text(escape)[:1])(_text(text).translate(_ASCII_LOWER)))


@lru_cache(maxsize=256)
def _matcher(pattern: str, escape: str) -> Callable[[str], bool]:
    parts: list[list[str]] = [[]]  # between the %: regex of one character each
    characters = iter(pattern)
    for char in characters:
        if escape and char == escape:
            parts[-1].append(re.escape(next(characters, "").translate(_ASCII_LOWER)))
        elif char == "%":
            parts.append([])
        else:
            parts[-1].append("." if char == "_" else re.escape(char.translate(_ASCII_LOWER)))
    compiled = [(re.compile("".join(part), re.DOTALL), len(part)) for part in parts]

    def match(text: str) -> bool:
        (first, size), (last, tail) = compiled[0], compiled[-1]
        if len(compiled) == 1:
            return first.fullmatch(text) is not None
        if not first.match(text):
            return False
        position = size
        for regex, _ in compiled[1:-1]:
            found = regex.search(text, position)
            if not found:
                return False
            position = found.end()
        return len(text) - tail >= position and last.fullmatch(text, len(text) - tail) is not None

    return match
