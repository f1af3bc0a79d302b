"""Small invented business databases, built from domains/*.yaml: a seed draws the style of the names, the rows, the values.

A domain says what a business keeps (tables, columns, links); `build_domain` writes an SQLite file of it. The same
domain and seed give the same schema and rows.
"""

from __future__ import annotations

import random
import re
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from riverrun.base.config import load_yaml
from riverrun.base.errors import ConfigError, InputError, nearest
from riverrun.base.sql import quote_name
from riverrun.data.names import lexicon, plural, same_thing

__all__ = ["Domain", "DomainTable", "Generator", "build_domain", "load_domains"]

_FOLDER = Path(__file__).parent / "domains"
_HAN = re.compile(r"[\u3400-\u9fff]")
_PLAIN = ("first_name", "last_name", "full_name", "city", "country", "street", "phone", "email", "company", "flag")
_LISTS = ("of", "unique")
_RANGES: Mapping[str, int] = {"integer": 2, "number": 3, "money": 2, "date": 2, "datetime": 2, "year": 2}
_KINDS = (*_PLAIN, *_LISTS, *_RANGES, "names", "code", "link")
_NAMING = ("first_name", "last_name", "full_name", "names", "unique", "code", "link")
"""Columns that are never left out: what rows are called by, and links."""


@dataclass(frozen=True)
class Generator:
    """How a column's values are made; `nulls` is the share of missing ones."""

    kind: str
    argument: Any = None
    nulls: float = 0.0


@dataclass(frozen=True)
class DomainTable:
    """A noun in the singular, about how many rows it has, its columns; `plain`: without a key of its own."""

    name: str
    rows: int
    columns: Mapping[str, Generator]
    plain: bool = False

    @property
    def links(self) -> dict[str, str]:
        """Columns that hold keys, with the table they lead to."""
        return {name: made.argument for name, made in self.columns.items() if made.kind == "link"}


@dataclass(frozen=True)
class Domain:
    """One business: its name, what it is about, its tables with parents before children."""

    name: str
    language: str
    about: str
    tables: tuple[DomainTable, ...]


def load_domains(language: str) -> dict[str, Domain]:
    """Every domain of domains/{language}*.yaml by its name. InputError for a malformed one, naming domain and table."""
    out: dict[str, Domain] = {}
    for path in sorted(_FOLDER.glob(f"{language}*.yaml")):
        for name, data in load_yaml(path).items():
            if name in out:
                raise InputError(f"domain {name} of {path.name} is there already: give it another name")
            out[name] = _domain(name, language, data)
    if not out:
        raise InputError(f"there are no domains in language '{language}': add domains/{language}.yaml")
    return out


def _domain(name: str, language: str, data: Any) -> Domain:
    if not isinstance(data, dict) or set(data) != {"about", "tables"} or not isinstance(data["tables"], dict):
        raise InputError(f"domain {name} must be a mapping of about and tables, got {data!r:.80}")
    tables: dict[str, DomainTable] = {}
    for noun, table in data["tables"].items():
        where = f"domain {name}, table {noun}"
        if not isinstance(table, dict) or not {"rows", "columns"} <= set(table) <= {"rows", "columns", "plain"}:
            raise InputError(f"{where}: give rows, columns and, if you like, plain; got {table!r:.80}")
        rows, columns = table["rows"], table["columns"]
        if not isinstance(rows, int) or rows < 3 or not isinstance(columns, dict) or not columns:
            raise InputError(f"{where}: rows must be a whole number from 3 and columns a mapping, rows is {rows!r}")
        made = {str(column): _generator(f"{where}, column {column}", how) for column, how in columns.items()}
        for column, how in made.items():
            parent = noun if how.kind == "link" and how.argument == noun else None
            if how.kind == "link" and parent is None and (how.argument not in tables or tables[how.argument].plain):
                raise InputError(f"{where}: {column} links to '{how.argument}', which is no table with a key above it")
            if (most := _most(how)) is not None and most < rows:
                raise InputError(f"{where}: {column} has {most} unique values for {rows} rows: add values")
        tables[str(noun)] = DomainTable(str(noun), rows, made, bool(table.get("plain")))
    return Domain(name, language, str(data["about"]), tuple(tables.values()))


def _generator(where: str, how: Any) -> Generator:
    given = {how: True} if isinstance(how, str) else dict(how) if isinstance(how, dict) else {}
    nulls = given.pop("nulls", 0.0)
    if len(given) != 1 or not isinstance(nulls, int | float) or not 0 <= nulls < 1:
        raise InputError(f"{where}: give one generator and nulls from 0 to 1, got {how!r}")
    ((kind, argument),) = given.items()
    if kind not in _KINDS:
        raise InputError(f"{where}: unknown generator '{kind}'.{nearest(str(kind), _KINDS)}")
    if kind in _PLAIN:
        good = argument is True
    elif kind in _LISTS:
        good = _is_list(argument, 2)
    elif kind == "names":
        good = isinstance(argument, list) and len(argument) == 2 and all(_is_list(part, 1) for part in argument)
    elif kind in _RANGES:
        good = _is_list(argument, _RANGES[kind]) and len(argument) == _RANGES[kind]
        good = good and not any(isinstance(value, str) for value in argument) and argument[0] < argument[1]
    else:
        good = isinstance(argument, str) and (kind == "link" or "#" in argument)
    if not good:
        raise InputError(f"{where}: {kind} cannot be made of {argument!r:.100}")
    return Generator(kind, argument, float(nulls))


def _is_list(value: Any, least: int) -> bool:
    """A list of at least so many texts and numbers, none twice; YAML's own reading of yes and dates is refused."""
    plain = isinstance(value, list) and all(isinstance(v, str | int | float) and not isinstance(v, bool) for v in value)
    return plain and len(value) >= least and (len(set(value)) == len(value) or not isinstance(value[0], str))


def _most(how: Generator) -> int | None:
    """How many different values there are, for a generator that gives none twice."""
    if how.kind == "names":
        return len(how.argument[0]) * len(how.argument[1])
    return len(how.argument) if how.kind == "unique" else None


@cache
def _words(language: str) -> Mapping[str, list[str]]:
    known = load_yaml(_FOLDER / "words.yaml")
    if language not in known:
        raise ConfigError(f"words.yaml has no names of people and places in '{language}': add them")
    words: Mapping[str, list[str]] = known[language]
    return words


# Names.


@dataclass
class _Style:
    """How one database spells its names, drawn once."""

    rng: random.Random
    short: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        draw = self.rng
        self.table_case, self.column_case = draw.choices(
            [("snake", "snake"), ("pascal", "pascal"), ("camel", "camel"), ("pascal", "camel"), ("pascal", "snake"),
             ("snake", "camel"), ("lower", "lower")],
            [45, 22, 8, 8, 8, 4, 5],
        )[0]  # fmt: skip
        self.plural, self.declared = draw.random() < 0.6, draw.random() < 0.8
        self.prefix = "tbl" if draw.random() < 0.08 else ""
        self.key = draw.choices(["id", "{} id", "{} no"], [40, 50, 10])[0]
        self.types = draw.choice(
            [("INTEGER", "REAL", "TEXT", "TEXT"), ("INT", "DECIMAL(10,2)", "VARCHAR(100)", "DATE")]
        )
        self.order = draw.choice([0, 0, -1, 1])  # links as written, first, last
        if draw.random() < 0.2 and self.column_case != "lower":
            for short, word in lexicon()["abbreviations"].items():
                if draw.random() < 0.5:
                    self.short[str(word)] = str(short)

    def spell(self, phrase: str, case: str) -> str:
        if _HAN.search(phrase):
            return re.sub(r"\s+", "", phrase)
        words = re.findall(r"[^\W_]+", phrase.lower())
        if case == "snake":
            return "_".join(words)
        joined = "".join(words) if case == "lower" else "".join(word[:1].upper() + word[1:] for word in words)
        return joined[:1].lower() + joined[1:] if case == "camel" else joined

    def table(self, noun: str) -> str:
        if _HAN.search(noun):
            return self.spell(noun, "") + ("表" if self.prefix else "")
        return self.spell(f"{self.prefix} {plural(noun) if self.plural else noun}", self.table_case)

    def columns(self, table: DomainTable) -> dict[str, str]:
        """The name of each column, and of the key under ""; no two are equal but for case."""
        out: dict[str, str] = {}
        ending = "no" if self.key == "{} no" else "id"
        wanted = {} if table.plain else {"": [self.key.format(table.name), "id", f"{table.name} key"]}
        for noun in sorted(table.columns, key=lambda noun: noun not in table.links):
            if noun in table.links:
                wanted[noun] = [self._shortened(f"{noun} {ending}"), f"{noun} id", f"{noun} key"]
            else:
                wanted[noun] = [self._shortened(noun), noun, f"{noun} text"]
        for noun, phrases in wanted.items():
            if _HAN.search(table.name) and (noun == "" or noun in table.links):
                phrases = [re.sub(r" ?(id|no)$", "编号", phrase) for phrase in phrases]
            names = [self.spell(phrase, self.column_case) for phrase in phrases]
            out[noun] = next(name for name in names if name.lower() not in {taken.lower() for taken in out.values()})
        return out

    def _shortened(self, phrase: str) -> str:
        whole = self.short.get(phrase)
        return whole or " ".join(self.short.get(word, word) for word in phrase.split(" "))


# Values.


def _uneven(values: Sequence[Any], rng: random.Random, power: float = 0.8) -> tuple[list[Any], list[float]]:
    """The values in a drawn order and their cumulated weights, which fall by rank."""
    order = rng.sample(list(values), len(values))
    return order, list(accumulate(1 / (rank + 1.5) ** power for rank in range(len(order))))


class _Maker:
    """Values of one database's columns. Names and address of a row belong to one person."""

    def __init__(self, language: str, rng: random.Random) -> None:
        self.words, self.chinese = _words(language), language == "zh"
        self.places = {
            kind: _uneven(rng.sample(self.words[kind], min(len(self.words[kind]), rng.randint(low, high))), rng)
            for kind, low, high in (("city", 8, 24), ("country", 4, 14))
        }

    def column(self, how: Generator, count: int, rng: random.Random, rows: list[dict[str, Any]]) -> list[Any]:
        """`count` values; `rows` holds what earlier columns said of the same row."""
        kind, argument = how.kind, how.argument
        if kind == "unique":
            values = list(argument[:count])
        elif kind == "names":
            first, second = argument
            gap = "" if self.chinese else " "
            drawn = rng.sample(range(len(first) * len(second)), count)
            values = [f"{first[n // len(second)]}{gap}{second[n % len(second)]}" for n in drawn]
        elif kind == "code":
            values = []
            while len(values) < count:
                value = re.sub("#", lambda _: str(rng.randint(0, 9)), argument)
                if value not in values or len(values) >= 10 ** argument.count("#") // 2:
                    values.append(value)
        elif kind == "of" or kind in self.places:
            order, weights = _uneven(argument, rng) if kind == "of" else self.places[kind]
            values = rng.choices(order, cum_weights=weights, k=count)
        elif kind == "flag":
            share = rng.uniform(0.2, 0.85)
            values = [int(rng.random() < share) for _ in range(count)]
        elif kind in ("date", "datetime"):
            values = [self._date(kind, argument, rng, row) for row in rows]
        elif kind in _RANGES:
            values = self._numbers(kind, argument, count, rng)
        else:
            values = [self._of_person(kind, rng, row) for row in rows]
        return [None if how.nulls and rng.random() < how.nulls else value for value in values]

    def _numbers(self, kind: str, argument: Sequence[Any], count: int, rng: random.Random) -> list[Any]:
        low, high = argument[:2]
        peak = rng.uniform(low, low + (high - low) * 0.6)
        if kind in ("integer", "year"):
            return [min(high, int(rng.triangular(low, high + 1, peak))) for _ in range(count)]
        digits = argument[2] if kind == "number" else rng.choice([2, 2, 2, 0 if high >= 200 else 1])
        return [float(round(rng.triangular(low, high, peak), digits)) for _ in range(count)]

    def _date(self, kind: str, years: Sequence[int], rng: random.Random, row: dict[str, Any]) -> str:
        """A day of these years; a second date of a row comes after the first."""
        mark = f"{kind}/{years}"
        if mark in row:
            day = row[mark] + timedelta(days=rng.randint(1, 40), minutes=rng.randint(0, 600))
        else:
            span = (datetime(years[1] + 1, 1, 1) - datetime(years[0], 1, 1)).days
            day = datetime(years[0], 1, 1, 7) + timedelta(days=int(span * rng.random() ** 0.8))
            day += timedelta(minutes=rng.randint(0, 840))
        row[mark] = day
        return day.strftime("%Y-%m-%d" if kind == "date" else "%Y-%m-%d %H:%M:%S")

    def _of_person(self, kind: str, rng: random.Random, row: dict[str, Any]) -> str:
        words = self.words
        if kind == "street":
            return rng.choice(words["street"]) + f"{rng.randint(1, 180)}号" if self.chinese else (
                f"{rng.randint(1, 180)} {rng.choice(words['street'])}"
            )  # fmt: skip
        if kind == "phone":
            return "".join(rng.choice("0123456789") if mark == "#" else mark for mark in rng.choice(words["phone"]))
        if kind == "company":
            return rng.choice(words["company"]) + ("" if self.chinese else " ") + rng.choice(words["company_end"])
        if "person" not in row or kind in row["said"]:  # a second name in a row is somebody else's
            row["person"], row["said"] = (rng.choice(words["first_name"]), rng.choice(words["last_name"])), set()
        row["said"].add(kind)
        first, last = row["person"]
        if kind == "email":
            local = (
                f"user{rng.randint(1000, 9999)}" if self.chinese else re.sub("[^a-z.]", "", f"{first}.{last}".lower())
            )
            return f"{local}@{rng.choice(words['mail'])}"
        if kind == "full_name":
            return last + first if self.chinese else f"{first} {last}"
        return first if kind == "first_name" else last


# The database.


def build_domain(domain: Domain, path: Path, *, seed: int) -> None:
    """Write the domain's SQLite file in the style and with the rows that the seed draws; a file there is replaced."""
    style, rng = _Style(random.Random(f"{domain.name}/{seed}/style")), random.Random(f"{domain.name}/{seed}/rows")
    maker = _Maker(domain.language, rng)
    path.unlink(missing_ok=True)
    kept = _kept(domain, rng)
    counts: dict[str, int] = {}
    first = rng.choice([1, 1, 1, 101, 1001])
    with closing(sqlite3.connect(path)) as connection:
        for table in kept:
            names = style.columns(table)
            wanted = max(3, round(table.rows * rng.uniform(0.6, 1.4)))
            limits = [most for how in table.columns.values() if (most := _most(how)) is not None]
            rows = _rows(table, min([wanted, *limits]), maker, counts, first, rng)
            counts[table.name] = len(rows)
            order = list(table.columns)
            if style.order:
                order.sort(key=lambda noun: style.order * (noun in table.links))
            order = order if table.plain else ["", *order]
            name = quote_name(style.table(table.name))
            connection.execute(f"CREATE TABLE {name} ({', '.join(_definitions(table, kept, names, order, style))})")
            marks = ", ".join("?" * len(order))
            connection.executemany(
                f"INSERT INTO {name} VALUES ({marks})", [[row[noun] for noun in order] for row in rows]
            )
        connection.commit()


def _kept(domain: Domain, rng: random.Random) -> list[DomainTable]:
    """The tables to build: now and then one that nothing leads to is left out, and columns that name nothing."""
    tables = list(domain.tables)
    parents = {parent for table in tables for parent in table.links.values()}
    ends = [table for table in tables if table.name not in parents]
    if rng.random() < 0.25 and len(tables) > 3 and len(ends) > 1:
        tables.remove(rng.choice(ends))
    out = []
    for table in tables:
        columns = {noun: how for noun, how in table.columns.items() if how.kind in _NAMING or rng.random() > 0.07}
        out.append(DomainTable(table.name, table.rows, columns or table.columns, table.plain))
    return out


def _rows(
    table: DomainTable, count: int, maker: _Maker, counts: Mapping[str, int], first: int, rng: random.Random
) -> list[dict[str, Any]]:
    """Rows by noun, the key under "". A link to the table itself leads to an earlier row; the first rows have none."""
    rows: list[dict[str, Any]] = [{"": first + number} for number in range(count)]
    notes: list[dict[str, Any]] = [{} for _ in rows]
    for noun, how in table.columns.items():
        if how.kind == "link" and how.argument == table.name:
            roots = max(1, count // 12)
            made = [None if n < roots else first + int(n * rng.random() ** 1.6) for n in range(count)]
            values = [None if how.nulls and rng.random() < how.nulls else value for value in made]
        elif how.kind == "link":
            order, weights = _uneven(range(first, first + counts[how.argument]), rng, 0.55)
            keys = rng.choices(order, cum_weights=weights, k=count)
            values = [None if how.nulls and rng.random() < how.nulls else key for key in keys]
        else:
            values = maker.column(how, count, rng, notes)
        for row, value in zip(rows, values, strict=True):
            row[noun] = value
    if table.plain and table.links:  # the links are the key
        rows = list({tuple(row[noun] for noun in table.links): row for row in rows}.values())
    return rows


def _definitions(
    table: DomainTable, kept: Sequence[DomainTable], names: Mapping[str, str], order: Sequence[str], style: _Style
) -> list[str]:
    """What stands in the brackets of CREATE TABLE. A link that its name does not give away is declared in any style."""
    whole, number, text, date = style.types
    out, keys = [], []
    for noun in order:
        name = quote_name(names[noun])
        if noun == "":
            out.append(f"{name} {whole} PRIMARY KEY")
            continue
        how = table.columns[noun]
        parts = how.argument if how.kind in _LISTS else [""]
        numbers = not any(isinstance(value, str) for value in parts)
        if how.kind in ("integer", "year", "link") or (numbers and all(isinstance(value, int) for value in parts)):
            kind = whole
        else:
            kind = number if numbers or how.kind in ("number", "money") else text
        kind = {"date": date, "datetime": date and text if date == "TEXT" else "DATETIME", "flag": "BOOLEAN"}.get(
            how.kind, kind
        )
        out.append(f"{name} {kind}")
        if how.kind == "link":
            parent = next(other for other in kept if other.name == how.argument)
            key, called = style.columns(parent)[""], style.table(parent.name)
            if style.declared or parent.name == table.name or not same_thing(names[noun], called, key):
                keys.append(f"FOREIGN KEY ({name}) REFERENCES {quote_name(called)} ({quote_name(key)})")
    if table.plain and table.links:
        out.append(f"PRIMARY KEY ({', '.join(quote_name(names[noun]) for noun in table.links)})")
    return [*out, *keys]
