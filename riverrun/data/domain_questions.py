"""Questions that people would type, written for the invented businesses and put over a database built from one.

domains/asked/*.yaml: a domain's name -> a list of {q, sql}. Names stand as the domain's nouns: [book] is the table,
[book.title] a column, always with its table, [book.#] the key. The SQL leaves joins out (`wire.joins`); FROM names the
rows that are spoken of. {author.country} is a value drawn from the database, the same in text and SQL; values of one
table come from one row, {author.country#2} from another. A date may be {loan.loan date:year}, :month, :day (all three
with LIKE) or plain (compared); {book.title:word} is a word of a text, for LIKE. A question whose table or column a
database has not, or which brings nothing there, is left out.
"""

from __future__ import annotations

import random
import re
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cache
from typing import Any

from riverrun.base.config import load_yaml
from riverrun.base.errors import InputError
from riverrun.base.sql import quote_literal, quote_name
from riverrun.data.domain_format import FOLDER
from riverrun.data.domains import Spelled
from riverrun.data.questions import Question
from riverrun.wire.joins import Joiner

__all__ = ["domain_questions", "load_asked"]

TRIES = 25
_NAME = re.compile(r"\[([^\[\].]+)(?:\.([^\[\]]+))?\]")
_VALUE = re.compile(r"\{([^{}.#:]+)\.([^{}.#:]+)(#\d)?(?::(year|month|day|word))?\}")
_TEXT = re.compile(r"'(?:[^']|'')*'")
_WORD = re.compile(r"[^\W\d_]{4,}")
_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)


class _Missing(Exception):
    """The database has not got what the question is about."""


@dataclass(frozen=True)
class _Asked:
    q: str
    sql: str


@cache
def load_asked(language: str) -> Mapping[str, tuple[_Asked, ...]]:
    """Every question of domains/asked/{language}*.yaml by its domain. InputError for a malformed one."""
    out: dict[str, tuple[_Asked, ...]] = {}
    for path in sorted((FOLDER / "asked").glob(f"{language}*.yaml")):
        for name, items in load_yaml(path).items():
            for item in items:
                if not isinstance(item, dict) or set(item) != {"q", "sql"}:
                    raise InputError(f"{path.name}, {name}: a question is a mapping of q and sql, got {item!r:.80}")
                if missing := set(_VALUE.findall(item["q"])) ^ set(_VALUE.findall(item["sql"])):
                    raise InputError(
                        f"{path.name}, {name}: {sorted(missing)[0]} stands in one of q and sql: {item['q']}"
                    )
            out[name] = (*out.get(name, ()), *(_Asked(item["q"], item["sql"]) for item in items))
    return out


def domain_questions(
    asked: Sequence[_Asked], spelled: Spelled, connection: sqlite3.Connection, joiner: Joiner, *, language: str,
    seed: int, row_limit: int = 50, left_out: list[tuple[str, str]] | None = None,
) -> list[Question]:  # fmt: skip
    """One question of each that the database can answer, in a drawn order; `left_out` takes the others and why."""
    out, read = [], _Rows(spelled, connection)
    for number, item in enumerate(asked):
        rng = random.Random(f"{seed}/{item.q}")
        try:
            text, sql, rows = _drawn(item, spelled, read, joiner, language, rng, row_limit)
            name = f"asked/{number}"
            out.append(Question(f"asked-{number}", text, name, "asked", "train", sql, None, rows, ""))
        except (_Missing, sqlite3.Error) as error:
            if left_out is not None:
                left_out.append((item.q, str(error)))
    random.Random(seed).shuffle(out)
    return out


def _drawn(
    item: _Asked, spelled: Spelled, read: _Rows, joiner: Joiner, language: str, rng: random.Random, row_limit: int
) -> tuple[str, str, list[list[Any]]]:
    """Text, SQL and rows of the first draw that brings something."""
    marks = list(dict.fromkeys(match[0] for match in _VALUE.finditer(item.sql)))
    held = item.sql
    for place, mark in enumerate(marks):  # joins are completed once, around stand-ins for the values
        held = held.replace(mark, f"'\u00a7{place}'")
    held = spell(held, spelled)
    whole = joiner.complete(held)
    for _ in range(TRIES if marks else 1):
        values = _Values(read, language, rng).of(marks)
        rows = [list(row) for row in read.connection.execute(_filled(whole, values)).fetchmany(row_limit)]
        if rows and any(value not in (None, 0) for row in rows for value in row):
            said = item.q
            for mark, (text, _) in zip(marks, values, strict=True):
                said = said.replace(mark, text)
            lower = language == "en" and rng.random() < 0.15
            return said.lower() if lower else said, _filled(held, values), rows
    raise _Missing(f"no rows: {whole}")


def _filled(sql: str, values: Sequence[tuple[str, str]]) -> str:
    return re.sub("'\u00a7(\\d+)'", lambda match: values[int(match[1])][1], sql)


def spell(sql: str, spelled: Spelled) -> str:
    """The SQL in the database's own names; a column of the table that FROM names goes without its table."""
    marks = _marks(sql)
    out, at = [], 0
    for start, end, table, column, home in marks:
        out.append(sql[at:start])
        name = spelled.tables.get(table)
        if name is None:
            raise _Missing(f"no table {table}")
        if column is None:
            out.append(quote_name(name))
        else:
            own = spelled.columns[table].get("" if column == "#" else column)
            if own is None:
                raise _Missing(f"no column {table}.{column}")
            out.append(quote_name(own) if table == home else f"{quote_name(name)}.{quote_name(own)}")
        at = end
    return "".join([*out, sql[at:]])


def _marks(sql: str) -> list[tuple[int, int, str, str | None, str]]:
    """(start, end, table, column, the table that FROM names in the SELECT around it) of every name."""
    hidden = _TEXT.sub(lambda match: " " * len(match[0]), sql)
    names = list(_NAME.finditer(hidden))
    homes: dict[int, str] = {}
    scopes, where, count = [0], [], 0
    tokens = re.finditer(r"\(\s*SELECT\b|\(|\)|\[[^\[\]]*\]", hidden, re.IGNORECASE)
    for token in tokens:
        if token[0] == "(":
            scopes.append(scopes[-1])
        elif token[0].startswith("("):
            count += 1
            scopes.append(count)
        elif token[0] == ")":
            scopes.pop()
        else:
            where.append(scopes[-1])
            match = _NAME.fullmatch(token[0])
            if match and match[2] is None and re.search(r"\bFROM\s*$", hidden[: token.start()], re.IGNORECASE):
                homes[scopes[-1]] = match[1]
    return [(m.start(), m.end(), m[1], m[2], homes.get(scope, "")) for m, scope in zip(names, where, strict=True)]


class _Rows:
    """The rows of the database's tables, each read once."""

    def __init__(self, spelled: Spelled, connection: sqlite3.Connection) -> None:
        self.spelled, self.connection = spelled, connection
        self.tables: dict[str, list[sqlite3.Row]] = {}

    def of(self, table: str) -> list[sqlite3.Row]:
        if table not in self.tables:
            if table not in self.spelled.tables:
                raise _Missing(f"no table {table}")
            cursor = self.connection.cursor()
            cursor.row_factory = sqlite3.Row
            name = quote_name(self.spelled.tables[table])
            self.tables[table] = cursor.execute(f"SELECT * FROM {name}").fetchall()
        return self.tables[table]

    def column(self, table: str, column: str) -> str:
        own = self.spelled.columns.get(table, {}).get(column)
        if own is None:
            raise _Missing(f"no column {table}.{column}")
        return own


class _Values:
    """One draw: a row of each table that a question names values of."""

    def __init__(self, read: _Rows, language: str, rng: random.Random) -> None:
        self.read, self.language, self.rng = read, language, rng
        self.rows: dict[tuple[str, str], sqlite3.Row] = {}

    def of(self, marks: Sequence[str]) -> list[tuple[str, str]]:
        """Each mark's value as people write it, and as a literal of SQL."""
        found = []
        for mark in marks:
            match = _VALUE.fullmatch(mark)
            assert match is not None
            found.append(self._written(self._value(match[1], match[2], match[3] or ""), match[4]))
        return found

    def _value(self, table: str, column: str, number: str) -> Any:
        own = self.read.column(table, column)
        rows = self.read.of(table)
        if (table, number) not in self.rows:
            self.rows[table, number] = self.rng.choice(rows)
        value = self.rows[table, number][own]
        if value is None:
            value = self.rng.choice([row[own] for row in rows if row[own] is not None] or [None])
        if value is None:
            raise _Missing(f"{table}.{column} is empty")
        return value

    def _written(self, value: Any, form: str | None) -> tuple[str, str]:
        if form == "word":
            words = _WORD.findall(str(value)) or [str(value)]
            word = self.rng.choice(words)
            return word, quote_literal(f"%{word}%")
        if isinstance(value, str) and re.fullmatch(r"\d{4}-\d\d-\d\d( .*)?", value):
            day = date.fromisoformat(value[:10])
            length = {"year": 4, "month": 7}.get(form or "", 10)
            literal = quote_literal(value[:length] + ("%" if form else ""))
            return self._dated(day, length), literal
        if isinstance(value, int | float):
            return f"{value:.10g}", quote_literal(value)
        return str(value), quote_literal(value)

    def _dated(self, day: date, length: int) -> str:
        """A year, month or day as people write it."""
        if length == 4:
            return f"{day.year}" + ("年" if self.language == "zh" else "")
        if self.language == "zh":
            return f"{day.year}年{day.month}月" + (f"{day.day}日" if length == 10 else "")
        month = _MONTHS[day.month - 1]
        if length == 7:
            return self.rng.choice(
                [f"{month} {day.year}", f"{month} {day.year}", f"{day:%Y-%m}", f"{month[:3]} {day.year}"]
            )
        return self.rng.choice([f"{day.day} {month} {day.year}", f"{month} {day.day}, {day.year}", day.isoformat()])
