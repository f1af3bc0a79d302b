"""What a database holds, read from it and not told: tables, columns and what they mean, keys, links, names of rows.

Declared types and keys are believed where the values bear them out; what is not declared is inferred from names and
values (a link needs both: a fitting name, and every value among the parent's keys). Reads at most SAMPLE rows of a
column. Nothing here knows a business.
"""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from riverrun.base.errors import InputError
from riverrun.base.sql import quote_name, read_only_uri
from riverrun.data.comments import MOST_CODES, code_meanings, column_comments, spoken_name
from riverrun.data.names import (
    concept_of,
    is_label_name,
    is_person_role,
    is_person_table,
    names_table,
    plural,
    same_thing,
    singular,
    split_name,
)
from riverrun.wire.joins import ForeignKey, Joiner

__all__ = ["Column", "ColumnKind", "Link", "Moment", "Schema", "Table", "make_joiner", "read_only", "read_schema"]

ColumnKind = Literal["integer", "number", "text", "date", "year", "flag", "blob", "empty"]
Moment = Literal["", "day first", "month first", "day or month first", "digits", "seconds", "milliseconds"]
"""How a column that is no `date` holds days: 31/12/2010, 12/31/2010, either, 20101231, since 1970."""

SAMPLE = 20_000
"""Rows of a column that are looked at."""
SECONDS = 5.0
"""Time for one statement of the introspection; a view that takes longer is passed over."""
_DATE = re.compile(r"[12]\d{3}-(0\d|1[0-2])-([0-2]\d|3[01])([ T]\d\d:\d\d(:\d\d)?.*)?")
_SLASHED = re.compile(r"(\d\d?)([/.-])(\d\d?)\2[12]\d{3}([ T].*)?")
_HAN = re.compile(r"[\u3400-\u9fff]")
_DIGITS = re.compile(r"(19|20|21)\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])")
_TIME_WORDS = "at created date day epoch modified on seen time timestamp ts unix updated 日期 时间 时间戳"
_TIMED = frozenset(_TIME_WORDS.split())
_SINCE_1980, _UNTIL_2100 = 315_532_800, 4_102_444_800
_FLAGS = ({"0", "1"}, {"yes", "no"}, {"y", "n"}, {"true", "false"}, {"t", "f"}, {"是", "否"})


@dataclass(frozen=True)
class Column:
    """One column. `distinct` and `nulls` count among the sampled rows; `low` and `high` are of numbers and dates."""

    name: str
    declared: str
    kind: ColumnKind
    rows: int = 0
    distinct: int = 0
    nulls: int = 0
    low: Any = None
    high: Any = None
    values: tuple[Any, ...] = ()
    """Up to 60 of the distinct values, the most frequent first."""
    length: float = 0.0
    """Mean length of the values as text."""
    moment: Moment = ""
    spoken: str = ""
    """What the database's author calls it, in a comment."""
    codes: tuple[tuple[Any, str], ...] = ()
    """(value, what it means), where a comment says so."""

    @property
    def sql(self) -> str:
        """Its name in a statement; a computed one (declared as `=price * quantity`) is its expression."""
        return self.declared[1:] if self.declared.startswith("=") else quote_name(self.name)

    @property
    def is_number(self) -> bool:
        """Whether its values can be added and compared as amounts; days that are kept as numbers cannot."""
        return self.kind in ("integer", "number") and not self.moment

    @property
    def unique(self) -> bool:
        return self.rows > 0 and self.nulls == 0 and self.distinct == self.rows


@dataclass(frozen=True)
class Link:
    """`table`.columns hold the keys of `parent`. declared: by a foreign key of the schema, else inferred."""

    table: str
    columns: tuple[str, ...]
    parent: str
    parent_columns: tuple[str, ...]
    declared: bool

    @property
    def own(self) -> bool:
        """A table that links to itself (a manager, a parent category)."""
        return self.table == self.parent


@dataclass(frozen=True)
class Table:
    """A table or view. key: its primary key, declared or inferred. label: the columns that name a row (none, one, or
    first and last name)."""

    name: str
    columns: tuple[Column, ...]
    key: tuple[str, ...] = ()
    rows: int = 0
    view: bool = False
    label: tuple[str, ...] = ()

    @property
    def sql(self) -> str:
        return quote_name(self.name)

    @cached_property
    def by_name(self) -> dict[str, Column]:
        return {column.name: column for column in self.columns}

    @property
    def handle(self) -> tuple[str, ...]:
        """The columns by which one speaks of a row: its label, else a key of one column."""
        return self.label or (self.key if len(self.key) == 1 else ())


@dataclass(frozen=True)
class Schema:
    """Tables in the order they were made, links between them, and remarks on what was passed over."""

    tables: tuple[Table, ...]
    links: tuple[Link, ...] = ()
    notes: tuple[str, ...] = ()
    _cache: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def by_name(self) -> dict[str, Table]:
        return {table.name: table for table in self.tables}

    def links_of(self, table: str) -> list[Link]:
        """Links that leave a table, to parents."""
        return [link for link in self.links if link.table == table]

    def linked(self, table: str) -> set[str]:
        """Columns of a table that hold keys of parents."""
        return {column for link in self.links_of(table) for column in link.columns}

    def narrowed(self, shown: Mapping[str, Sequence[str]], denied: Sequence[str] = ()) -> Schema:
        """Only these tables and columns (an empty list: all of a table's; no tables: all), without denied ones."""
        private = {name.lower() for name in denied}
        tables = []
        for table in self.tables:
            if shown and table.name not in shown:
                continue
            wanted = set(shown.get(table.name) or table.by_name)
            kept = tuple(
                column
                for column in table.columns
                if column.name in wanted and not {column.name.lower(), f"{table.name}.{column.name}".lower()} & private
            )
            names = {column.name for column in kept}
            key = table.key if set(table.key) <= names else ()
            label = table.label if set(table.label) <= names else ()
            if kept:
                tables.append(Table(table.name, kept, key, table.rows, table.view, label))
        there = {(table.name, column.name) for table in tables for column in table.columns}
        links = tuple(
            link
            for link in self.links
            if all((link.table, column) in there for column in link.columns)
            and all((link.parent, column) in there for column in link.parent_columns)
        )
        return Schema(tuple(tables), links, self.notes)


def make_joiner(schema: Schema, told: Mapping[str, Sequence[str]] | None = None) -> Joiner:
    """The joiner over a schema's links; of two links to one parent the one that is named after it comes first.

    told: table -> the columns that a prompt names. Links that are not among them are shown by the name of what they
    lead to; without `told` a link stays what it is.
    """
    links = sorted(schema.links, key=lambda link: not names_table(link.columns[0], link.parent))
    keys = [ForeignKey(link.table, link.columns, link.parent, link.parent_columns) for link in links]
    labels = {}
    for link in schema.links if told is not None else ():
        label = schema.by_name[link.parent].label
        hidden = len(link.columns) == 1 and link.columns[0] not in (told or {}).get(link.table, ())
        if hidden and label and link.table != link.parent and set(label) <= set((told or {}).get(link.parent, ())):
            labels[link.table, link.columns[0]] = label
    return Joiner({table.name: [column.name for column in table.columns] for table in schema.tables}, keys, labels)


@contextmanager
def read_only(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that cannot write; text that is no UTF-8 is read with replacement marks."""
    uri = read_only_uri(path)
    with closing(sqlite3.connect(uri, uri=True, timeout=SECONDS, isolation_level=None)) as connection:
        connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
        connection.execute("PRAGMA query_only=ON")
        connection.execute("PRAGMA trusted_schema=OFF")
        yield connection


def read_schema(path: Path) -> Schema:
    """Tables and views of an SQLite file. InputError when it is none, or holds no table that can be read."""
    if not path.is_file():
        raise InputError(f"{path} does not exist: give the path of an SQLite database")
    try:
        with read_only(path) as connection:
            return _Reader(connection).read(path)
    except sqlite3.DatabaseError as error:
        if "not a database" in str(error):
            raise InputError(f"{path} is not an SQLite database: give the path of one") from None
        raise InputError(f"{path} is not a readable SQLite database ({error}): check or rebuild the file") from None


class _Reader:
    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.notes: list[str] = []

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Rows of a statement that takes at most SECONDS; sqlite3.OperationalError ("interrupted") beyond."""
        deadline = time.monotonic() + SECONDS
        self.connection.set_progress_handler(lambda: time.monotonic() > deadline, 1000)
        try:
            return self.connection.execute(sql, values).fetchall()
        finally:
            self.connection.set_progress_handler(None, 0)

    def read(self, path: Path) -> Schema:
        tables = [table for name, view in self._names() if (table := self._table(name, view)) is not None]
        if not tables:
            why = f": {self.notes[0]}" if self.notes else ""
            raise InputError(f"{path} holds no table that can be read{why}: give a database with tables")
        links = self._declared(tables)
        links += self._inferred(tables, links)
        return Schema(tuple(tables), tuple(links), tuple(self.notes))

    def _names(self) -> Iterator[tuple[str, bool]]:
        """Tables and views; SQLite's own tables and the shadow tables of full-text indexes are left out."""
        shadows: set[str] = set()
        try:
            shadows = {row[1] for row in self.rows("PRAGMA table_list") if row[2] == "shadow"}
        except sqlite3.OperationalError:  # before SQLite 3.37
            shadows = set()
        if shadows:
            self.notes.append(f"{len(shadows)} tables belong to full-text indexes and are passed over")
        sql = (
            "SELECT name, type FROM sqlite_master WHERE type IN ('table', 'view') AND substr(name, 1, 7) != 'sqlite_' "
            "ORDER BY rowid"
        )
        for name, kind in self.rows(sql):
            if name not in shadows:
                yield name, kind == "view"

    def _table(self, name: str, view: bool) -> Table | None:
        try:
            columns_of = "SELECT name, type, pk FROM pragma_table_xinfo(?) WHERE hidden != 1 ORDER BY cid"
            described = self.rows(columns_of, (name,))
            rows = int(self.rows(f"SELECT COUNT(*) FROM {quote_name(name)}")[0][0])
            comments = self._comments(name, [column for column, _, _ in described])
            columns = tuple(
                self._column(name, column, str(kind or ""), rows, comments.get(column, ""))
                for column, kind, _ in described
            )
        except sqlite3.Error as error:
            self.notes.append(f"{'view' if view else 'table'} {name} cannot be read ({error})")
            return None
        if not columns:
            return None
        declared = tuple(row[0] for row in sorted((row for row in described if row[2]), key=lambda row: row[2]))
        key = declared or _inferred_key(name, columns)
        return Table(name, columns, key, rows, view, _label(name, columns, key))

    def _comments(self, name: str, columns: Sequence[str]) -> dict[str, str]:
        written = self.rows("SELECT sql FROM sqlite_master WHERE name = ? AND type = 'table'", (name,))
        return column_comments(str(written[0][0] or ""), columns) if written else {}

    def _column(self, table: str, name: str, declared: str, rows: int, comment: str = "") -> Column:
        source = f"(SELECT {quote_name(name)} AS v FROM {quote_name(table)} LIMIT {SAMPLE})"
        types = dict(self.rows(f"SELECT typeof(v), COUNT(*) FROM {source} GROUP BY 1"))
        sampled, nulls = sum(types.values()), types.pop("null", 0)
        if "blob" in types or "BLOB" in declared.upper():
            return Column(name, declared, "blob", sampled, 0, nulls)
        if not types:
            return Column(name, declared, "empty", sampled, 0, nulls)
        distinct, low, high, length = self.rows(
            f"SELECT COUNT(DISTINCT v), MIN(v), MAX(v), AVG(length(v)) FROM {source} WHERE v IS NOT NULL"
        )[0]
        frequent = self.rows(
            f"SELECT v FROM {source} WHERE v IS NOT NULL AND v != '' GROUP BY v ORDER BY COUNT(*) DESC, v LIMIT 60"
        )
        values = tuple(row[0] for row in frequent)
        kind = _kind(name, declared, types, values, distinct, low, high)
        moment = _moment(name, kind, values, low, high)
        codes = code_meanings(comment, values) if kind in ("text", "integer", "flag") and not moment else {}
        if codes:
            kind = "text"  # what has a meaning is not added up
        return Column(
            name, declared, kind, sampled, distinct, nulls, low, high, values, float(length or 0), moment,
            spoken_name(comment, codes, values[:MOST_CODES]), tuple(codes.items()),
        )  # fmt: skip

    def _declared(self, tables: Sequence[Table]) -> list[Link]:
        known = {table.name.lower(): table for table in tables}
        links = []
        for table in tables:
            grouped: dict[int, list[tuple[str, str, str | None]]] = {}
            query = 'SELECT id, seq, "table", "from", "to" FROM pragma_foreign_key_list(?) ORDER BY id, seq'
            for number, _, parent, own, other in self.rows(query, (table.name,)):
                grouped.setdefault(number, []).append((parent, own, other))
            for parts in grouped.values():
                target = known.get(parts[0][0].lower())
                if target is None:
                    self.notes.append(f"{table.name} links to {parts[0][0]}, which is not there")
                    continue
                others = tuple(o for _, _, o in parts if o) or target.key
                own = _spelled([own for _, own, _ in parts], table)
                spelled = _spelled(others, target)
                if own and spelled and len(own) == len(spelled):
                    links.append(Link(table.name, own, target.name, spelled, True))
        return sorted(
            links, key=lambda link: [c.name for c in known[link.table.lower()].columns].index(link.columns[0])
        )

    def _inferred(self, tables: Sequence[Table], declared: Sequence[Link]) -> list[Link]:
        """Links by name and by value: `customer_id` or `customer` whose every value is a key of customers."""
        linked = {(link.table, column) for link in declared for column in link.columns}
        links = []
        for table in tables:
            if table.view:
                continue
            for column in table.columns:
                if (table.name, column.name) in linked or column.kind in ("blob", "empty", "date", "number", "flag"):
                    continue
                if table.key == (column.name,) and column.kind == "integer":
                    continue
                named = [parent for parent in tables if len(parent.key) == 1 and _says(column, parent)]
                found = next((parent for parent in named if self._holds_keys(table, column, parent)), None)
                if found is None and is_person_role(column.name):  # `manager_id`, where one table of people fits
                    people = [parent for parent in tables if is_person_table(parent.name)]
                    fitting = [parent for parent in people if self._holds_keys(table, column, parent)]
                    found = fitting[0] if len(fitting) == 1 else None
                if found is not None:
                    links.append(Link(table.name, (column.name,), found.name, found.key, False))
        return links

    def _holds_keys(self, table: Table, column: Column, parent: Table) -> bool:
        """Whether every value of a column is a key of another table."""
        if parent.view or parent.name == table.name or len(parent.key) != 1:
            return False
        key = parent.by_name[parent.key[0]]
        if (key.kind == "text") != (column.kind == "text"):
            return False
        own, other = quote_name(column.name), quote_name(key.name)
        sql = (
            f"SELECT 1 FROM {table.sql} WHERE {own} IS NOT NULL AND {own} NOT IN "
            f"(SELECT {other} FROM {parent.sql} WHERE {other} IS NOT NULL) LIMIT 1"
        )
        try:
            return not self.rows(sql)
        except sqlite3.OperationalError:
            return False


def _says(column: Column, parent: Table) -> bool:
    """Whether a column's name speaks of the parent's key: `customer_id`, `hostStaffId` for a key `staffId`."""
    words, key = split_name(column.name), split_name(parent.key[0])
    if _HAN.search(column.name):  # written without gaps
        ends = (parent.key[0], parent.name.removesuffix("表"))
        if any(len(end) > 1 and _HAN.search(end) and column.name.endswith(end) for end in ends):
            return True
    return same_thing(column.name, parent.name, parent.key[0]) or (len(key) > 1 and words[-len(key) :] == key)


def _spelled(names: Sequence[str], table: Table) -> tuple[str, ...]:
    """The names as the table spells them; () if one is not there."""
    found = {column.name.lower(): column.name for column in table.columns}
    spelled = tuple(found.get(name.lower(), "") for name in names)
    return spelled if all(spelled) else ()


def _kind(
    name: str, declared: str, types: Mapping[str, int], values: Sequence[Any], distinct: int, low: Any, high: Any
) -> ColumnKind:
    """What the values are; the declared type decides only between a number and a flag."""
    words = set(split_name(name))
    texts = {str(value).strip().lower() for value in values}
    if distinct <= 2 and any(texts <= flags for flags in _FLAGS):
        numeric = "text" not in types
        said = "BOOL" in declared.upper() or bool(words & {"is", "has", "active", "enabled", "flag", "是否"})
        said = said or (texts == {"0", "1"} and not concept_of(name) and not _counts(name))
        if not numeric or said:
            return "flag" if distinct == 2 or said else "text"
    if "text" not in types:
        if set(types) == {"integer"}:
            years = words & {"year", "年份", "年"} or name.endswith("年份")
            return "year" if years and 1000 <= low <= high <= 2999 else "integer"
        return "number"
    dated = [value for value in values if isinstance(value, str) and _DATE.fullmatch(value)]
    return "date" if values and len(dated) >= 0.95 * len(values) else "text"


def _moment(name: str, kind: ColumnKind, values: Sequence[Any], low: Any, high: Any) -> Moment:
    """How the values are days, where they are: by their form, numbers since 1970 by the column's name as well."""
    if kind == "text":
        found = [match for value in values if isinstance(value, str) and (match := _SLASHED.fullmatch(value))]
        parts = [(int(match[1]), int(match[3])) for match in found]
        if not parts or len(parts) < 0.95 * len(values) or any(min(pair) < 1 or max(pair) > 31 for pair in parts):
            return ""
        first, second = (max(pair[place] for pair in parts) for place in (0, 1))
        if min(first, second) > 12:
            return ""
        return "day first" if first > 12 else "month first" if second > 12 else "day or month first"
    if kind == "integer" and len(values) > 1:
        if all(_DIGITS.fullmatch(str(value)) for value in (*values, low, high)):
            return "digits"
        if _TIMED & set(split_name(name)):
            for moment, factor in (("seconds", 1), ("milliseconds", 1000)):
                if _SINCE_1980 * factor <= low <= high <= _UNTIL_2100 * factor:
                    return moment  # type: ignore[return-value]
    return ""


def _counts(name: str) -> bool:
    """Whether the name is of something counted (`children`, `no_of_pets`), so that 0 and 1 are numbers."""
    *first, last = split_name(name) or ("",)
    return plural(last) == last or singular(last) != last or "number" in first or name.endswith("数")


def _inferred_key(table: str, columns: Sequence[Column]) -> tuple[str, ...]:
    """A unique column named `id`, `customer_id`, `CustomerNo` or the like, where no key is declared."""
    for column in columns:
        if column.unique and column.kind in ("integer", "text") and same_thing(column.name, table, "id"):
            return (column.name,)
    first = columns[0]
    words = split_name(first.name)
    named = bool(words) and (
        words[-1] in ("id", "number", "code", "key") or first.name.endswith(("编号", "号", "代码"))
    )
    return (first.name,) if first.unique and named and first.kind in ("integer", "text") else ()


def _label(table: str, columns: Sequence[Column], key: Sequence[str]) -> tuple[str, ...]:
    """The columns that name a row: first and last name, else the best-named text column that tells rows apart."""
    texts = [column for column in columns if column.kind == "text" and column.distinct and column.length <= 120]
    by_words = {" ".join(split_name(column.name)): column for column in texts}
    for first, last in (("first name", "last name"), ("given name", "family name"), ("first name", "surname")):
        if first in by_words and last in by_words:
            return by_words[first].name, by_words[last].name
    best: tuple[float, str] | None = None
    for column in texts:
        filled = max(1, column.rows - column.nulls)
        share = column.distinct / filled
        score = is_label_name(column.name, table)
        if score <= 0 or share < (0.3 if score >= 3 else 0.9) or column.nulls > 0.3 * max(1, column.rows):
            continue
        score += share - (0.5 if column.name in key else 0)
        if best is None or score > best[0]:
            best = (score, column.name)
    return (best[1],) if best else ()
