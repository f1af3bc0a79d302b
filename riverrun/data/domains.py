"""Small invented business databases: a seed draws the style of the names, the rows and the values of a domain.

The same domain and seed give the same schema and rows. What a domain is stands in `domain_format`.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from riverrun.base.sql import quote_name
from riverrun.data.domain_format import LISTS, Domain, DomainTable, load_domains, most_values
from riverrun.data.domain_values import NameStyle, ValueMaker, uneven
from riverrun.data.names import same_thing

__all__ = ["Domain", "Spelled", "build_domain", "load_domains"]

_NAMING = ("first_name", "last_name", "full_name", "names", "unique", "code", "link")
"""Columns that are never left out: what rows are called by, and links."""


@dataclass(frozen=True)
class Spelled:
    """How a database spells its domain's nouns: table -> name, and table -> column -> name, the key under ""."""

    tables: Mapping[str, str]
    columns: Mapping[str, Mapping[str, str]]


def build_domain(domain: Domain, path: Path, *, seed: int) -> Spelled:
    """Write the domain's SQLite file in the style and with the rows that the seed draws; a file there is replaced."""
    style, rng = NameStyle(random.Random(f"{domain.name}/{seed}/style")), random.Random(f"{domain.name}/{seed}/rows")
    maker = ValueMaker(domain.language, rng)
    path.unlink(missing_ok=True)
    kept = _kept(domain, rng)
    counts: dict[str, int] = {}
    first = rng.choice([1, 1, 1, 101, 1001])
    with closing(sqlite3.connect(path)) as connection:
        for table in kept:
            names = style.columns(table)
            wanted = max(3, round(table.rows * rng.uniform(0.6, 1.4)))
            limits = [most for how in table.columns.values() if (most := most_values(how)) is not None]
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
    columns = {table.name: style.columns(table) for table in kept}
    return Spelled({table.name: style.table(table.name) for table in kept}, columns)


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
    table: DomainTable, count: int, maker: ValueMaker, counts: Mapping[str, int], first: int, rng: random.Random
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
            order, weights = uneven(range(first, first + counts[how.argument]), rng, 0.55)
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
    table: DomainTable, kept: Sequence[DomainTable], names: Mapping[str, str], order: Sequence[str], style: NameStyle
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
        parts = how.argument if how.kind in LISTS else [""]
        numbers = not any(isinstance(value, str) for value in parts)
        if how.kind in ("integer", "year", "link") or (numbers and all(isinstance(value, int) for value in parts)):
            kind = whole
        else:
            kind = number if numbers or how.kind in ("number", "money") else text
        if how.kind in ("date", "datetime", "flag"):
            kind = {"date": date, "datetime": "TEXT" if date == "TEXT" else "DATETIME", "flag": "BOOLEAN"}[how.kind]
        out.append(f"{name} {kind}")
        if how.kind == "link":
            parent = next(other for other in kept if other.name == how.argument)
            key, called = style.columns(parent)[""], style.table(parent.name)
            if style.declared or parent.name == table.name or not same_thing(names[noun], called, key):
                keys.append(f"FOREIGN KEY ({name}) REFERENCES {quote_name(called)} ({quote_name(key)})")
    if table.plain and table.links:
        out.append(f"PRIMARY KEY ({', '.join(quote_name(names[noun]) for noun in table.links)})")
    return [*out, *keys]
