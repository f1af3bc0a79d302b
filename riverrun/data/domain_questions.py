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
from collections.abc import Iterator, Mapping, Sequence
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
                    raise InputError(f"{path.name}, {name}: {sorted(missing)[0]} stands in one of q and sql: {item['q']}")
            out[name] = (*out.get(name, ()), *(_Asked(item["q"], item["sql"]) for item in items))
    return out


def domain_questions(
    asked: Sequence[_Asked], spelled: Spelled, connection: sqlite3.Connection, joiner: Joiner, *, language: str,
    seed: int, row_limit: int = 50, left_out: list[tuple[str, str]] | None = None,
) -> list[Question]:  # fmt: skip
    """One question of each that the database can answer, in a drawn order; `left_out` takes the others and why."""
    out = []
    for number, item in enumerate(asked):
        rng = random.Random(f"{seed}/{item.q}")
        why = ""
        try:
            out += _question(item, number, spelled, connection, joiner, language, rng, row_limit)
        except (_Missing, sqlite3.Error) as error:
            why = str(error)
        if left_out is not None and why:
            left_out.append((item.q, why))
    random.Random(seed).shuffle(out)
    return out


def _question(
    item: _Asked, number: int, spelled: Spelled, connection: sqlite3.Connection, joiner: Joiner, language: str,
    rng: random.Random, row_limit: int,
) -> Iterator[Question]:  # fmt: skip
    why = "no value fits"
    for _ in range(TRIES if _VALUE.search(item.sql) else 1):
        said, meant = _Values(spelled, connection, language, rng).of(item.q, item.sql)
        sql = spell(meant, spelled)
        rows = connection.execute(joiner.complete(sql)).fetchmany(row_limit)
        if rows and any(value not in (None, 0) for row in rows for value in row):
            text = said.lower() if language == "en" and rng.random() < 0.15 else said
            yield Question(f"asked-{number}", text, f"asked/{number}", "asked", "train", sql, None,
                           [list(row) for row in rows], "")  # fmt: skip
            return
        why = f"no rows: {sql}"
    raise _Missing(why)


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
    scopes, around, where = [0], {0: 0}, []
    count = 0
    tokens = re.finditer(r"\(\s*SELECT\b|\(|\)|\[[^\[\]]*\]", hidden, re.IGNORECASE)
    for token in tokens:
        if token[0] == "(":
            scopes.append(scopes[-1])
        elif token[0].startswith("("):
            count += 1
            around[count] = scopes[-1]
            scopes.append(count)
        elif token[0] == ")":
            scopes.pop()
        else:
            where.append(scopes[-1])
            match = _NAME.fullmatch(token[0])
            if match and match[2] is None and re.search(r"\bFROM\s*$", hidden[: token.start()], re.IGNORECASE):
                homes[scopes[-1]] = match[1]
    return [(m.start(), m.end(), m[1], m[2], homes.get(scope, "")) for m, scope in zip(names, where, strict=True)]


class _Values:
    """One draw: a row of each table that a question names values of."""

    def __init__(
        self, spelled: Spelled, connection: sqlite3.Connection, language: str, rng: random.Random
    ) -> None:
        self.spelled, self.connection, self.language, self.rng = spelled, connection, language, rng
        self.rows: dict[tuple[str, str], sqlite3.Row] = {}
        self.said: dict[str, str] = {}

    def of(self, text: str, sql: str) -> tuple[str, str]:
        """The text with the values as people write them, the SQL with them as literals."""
        meant = _VALUE.sub(lambda match: self._literal(*match.groups()), sql)
        said = _VALUE.sub(lambda match: self.said[match[0]], text)
        return said, meant

    def _row(self, table: str, number: str) -> sqlite3.Row:
        if (table, number) not in self.rows:
            name = self.spelled.tables.get(table)
            if name is None:
                raise _Missing(f"no table {table}")
            cursor = self.connection.cursor()
            cursor.row_factory = sqlite3.Row
            rows = cursor.execute(f"SELECT * FROM {quote_name(name)}").fetchall()
            self.rows[table, number] = self.rng.choice(rows)
        return self.rows[table, number]

    def _literal(self, table: str, column: str, number: str | None, form: str | None) -> str:
        own = self.spelled.columns.get(table, {}).get(column)
        if own is None:
            raise _Missing(f"no column {table}.{column}")
        value = self._row(table, number or "")[own]
        mark = "{" + f"{table}.{column}{number or ''}" + (f":{form}" if form else "") + "}"
        if value is None:
            name = quote_name(self.spelled.tables[table])
            query = f"SELECT {quote_name(own)} FROM {name} WHERE {quote_name(own)} IS NOT NULL"
            value = self.rng.choice([row[0] for row in self.connection.execute(query)] or [None])
        if value is None:
            raise _Missing(f"{table}.{column} is empty")
        said, literal = self._written(value, form)
        self.said[mark] = said
        return literal

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
            return self.rng.choice([f"{month} {day.year}", f"{month} {day.year}", f"{day:%Y-%m}", f"{month[:3]} {day.year}"])
        return self.rng.choice([f"{day.day} {month} {day.year}", f"{month} {day.day}, {day.year}", day.isoformat()])
