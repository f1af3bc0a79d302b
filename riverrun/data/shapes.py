"""What can be asked of a schema: compositions of an operation, a set of rows and columns, each with one form of SQL.

A set of rows ("albums by AC/DC", "invoices from 2010") is a condition on a table; an operation (list, count, sum, top)
is done on it. Joins always read `FROM child JOIN parent ON child.key = parent.key`, nothing has an alias except the
parent of a table that links to itself. How a composition is worded is not decided here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal

from riverrun.base.sql import quote_name
from riverrun.data.names import (
    concept_of,
    is_label_name,
    is_minor,
    is_person_table,
    is_secret,
    lexicon,
    names_table,
    without_identifier,
)
from riverrun.data.names import split_name as words_of
from riverrun.data.schema import Column, Link, Schema, Table

__all__ = ["Composition", "Slot", "SlotForm", "compositions", "value_query"]

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


@dataclass(frozen=True)
class _Set:
    """Rows of a table: FROM, WHERE with marks, and what the wording needs."""

    form: str
    kind: str
    table: Table
    source: str
    where: tuple[str, ...] = ()
    slots: tuple[Slot, ...] = ()
    joined: bool = False
    by: Column | None = None
    parent: Table | None = None
    child: Table | None = None
    over: Column | None = None
    role: str = ""
    weight: float = 1.0
    repeats: bool = False
    """Whether a row of the table can come more than once."""

    def column(self, name: str) -> str:
        return f"{self.table.sql}.{quote_name(name)}" if self.joined else quote_name(name)

    def columns(self, names: Sequence[str]) -> str:
        return ", ".join(self.column(name) for name in names)

    def select(self, head: str, *more: str, tail: str = "") -> str:
        where = " AND ".join([*self.where, *more])
        return " ".join(filter(None, [f"SELECT {head} FROM {self.source}", f"WHERE {where}" if where else "", tail]))

    def ask(self, op: str, sql: str, *, column: Column | None = None, weight: float = 1.0, kind: str = "",
            slots: tuple[Slot, ...] = (), tie: str = "") -> Composition:  # fmt: skip
        return Composition(
            op, self.form, kind or self.kind, self.table, sql, (*self.slots, *slots), column, self.over, self.by,
            self.parent, self.child, self.role, self.weight * weight, tie,
        )  # fmt: skip


def value_query(table: Table, columns: Sequence[str]) -> str:
    """All different values of some columns, none of them missing."""
    names = [quote_name(name) for name in columns]
    filled = " AND ".join(f"{name} IS NOT NULL AND {name} != ''" for name in names)
    return f"SELECT DISTINCT {', '.join(names)} FROM {table.sql} WHERE {filled} LIMIT 5000"


def compositions(schema: Schema) -> list[Composition]:
    """Everything that can be asked, in a stable order; compositions of the same name are given once."""
    shapes = _Shapes(schema)
    found: dict[str, Composition] = {}
    for table in schema.tables:
        for item in shapes.of(table):
            found.setdefault(item.name, item)
    return list(found.values())


@dataclass
class _Path:
    """The way from a table to a parent, as FROM; `alias` is how the parent is spoken of."""

    source: str
    alias: str
    parent: Table
    link: Link
    form: str


@dataclass
class _Shapes:
    schema: Schema
    weights: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for table in self.schema.tables:
            weight = (1.0 if table.label else 0.5) * (0.4 + 0.35 * math.log10(max(1, table.rows)))
            self.weights[table.name] = weight * (0.3 if self.is_junction(table) else 1.0) * (0.6 if table.view else 1.0)

    # What columns are good for.

    def plain(self, table: Table) -> list[Column]:
        """Columns that hold facts: no keys, no links, no BLOBs, nothing secret."""
        keys = self.schema.linked(table.name) | (set(table.key) - set(table.label))
        return [
            column
            for column in table.columns
            if column.name not in keys
            and column.kind not in ("blob", "empty")
            and not is_secret(column.name)
            and not (column.kind == "integer" and without_identifier(words_of(column.name)) != words_of(column.name))
        ]

    def numbers(self, table: Table) -> list[Column]:
        return [column for column in self.plain(table) if column.is_number and column.distinct > 1]

    def dates(self, table: Table) -> list[Column]:
        return [column for column in self.plain(table) if column.kind == "date" and column.distinct > 1]

    def categories(self, table: Table) -> list[Column]:
        """Columns whose values several rows share, or could."""
        found = []
        for column in self.plain(table):
            filled = max(1, column.rows - column.nulls)
            shared = column.distinct <= max(MANY, 0.5 * filled) or concept_of(column.name) in (
                "city",
                "country",
                "region",
            )
            unfit = is_label_name(column.name, table.name) == 0 and column.kind == "text"
            if column.name in table.label or unfit or column.distinct < 2 or column.length > 40:
                continue
            if (column.kind == "text" and shared) or column.kind == "year":
                found.append(column)
        return found

    def is_junction(self, table: Table) -> bool:
        """A table that mostly ties two others together."""
        if table.label or table.view:
            return False
        links = [link for link in self.schema.links_of(table.name) if not link.own]
        others = [c for c in table.columns if c.name not in self.schema.linked(table.name) and c.name not in table.key]
        return len(links) >= 2 and len(others) <= 3

    def weight(self, column: Column) -> float:
        return 0.3 if is_minor(column.name) else 1.0 if concept_of(column.name) else 0.8

    # Sets of rows.

    def entity(self, table: Table, alias: str = "") -> Slot:
        """The slot for one row of a table, by its label or key."""
        dot = f"{quote_name(alias)}." if alias else ""
        columns = tuple(dot + quote_name(name) for name in table.handle)
        show = "" if table.label else f"of {table.name}"
        return Slot("e", "entity", value_query(table, table.handle), columns, show=show)

    def role(self, link: Link) -> str:
        """What a parent is to its child, where the column says more than the parent's name; always for a self link."""
        column = link.columns[0]
        return "" if not link.own and names_table(column, link.parent) else column

    def paths(self, table: Table) -> Iterator[_Path]:
        """Over one key and over two, to parents that can be named."""
        for link in self.schema.links_of(table.name):
            parent = self.schema.by_name[link.parent]
            alias = parent.name if not link.own else "p" if table.name.lower() != "p" else "q"
            source = f"{table.sql} {_join(link, alias)}"
            if parent.handle:
                yield _Path(source, alias, parent, link, "own" if link.own else "parent")
            if link.own:
                continue
            for further in self.schema.links_of(parent.name):
                grand = self.schema.by_name[further.parent]
                if grand.label and grand.name not in (table.name, parent.name):
                    yield _Path(f"{source} {_join(further, grand.name)}", grand.name, grand, further, "grand")

    def sets(self, table: Table) -> Iterator[_Set]:
        """The sets whose questions are asked of `table`."""
        base = _Set("all", "list", table, table.sql)
        yield replace(base, weight=1.5)
        yield from self._by_value(base)
        yield from self._by_number(base)
        yield from self._by_date(base)
        yield from self._by_link(base)
        yield from self._without(base)
        if len(table.label) == 1:
            label = quote_name(table.label[0])
            slot = Slot("v", "part", value_query(table, table.label), split=True)
            column = table.by_name[table.label[0]]
            yield replace(
                base, form="contains", kind="filter", where=(f"{label} LIKE {{v}}",), slots=(slot,), by=column
            )

    def _by_value(self, base: _Set) -> Iterator[_Set]:
        table = base.table
        for column in self.categories(table):
            weight = self.weight(column)
            slot = Slot("v", "value", value_query(table, [column.name]), split=column.distinct > MANY)
            shape = replace(base, kind="filter", slots=(slot,), by=column)
            yield replace(shape, form="equal", where=(f"{column.sql} = {{v}}",), weight=3 * weight)
            if column.kind == "text" and column.nulls == 0:
                yield replace(
                    shape, form="not", kind="negation", where=(f"{column.sql} != {{v}}",), weight=0.7 * weight
                )
            for number in self.numbers(table)[:2]:
                threshold = self._threshold(table, number, "n")
                where: tuple[str, ...] = (f"{column.sql} = {{v}}", f"{number.sql} > {{n}}")
                both = replace(shape, form="equal_over", where=where, slots=(slot, threshold), over=number)
                yield replace(both, weight=0.7 * weight)
        for column in self.plain(table):
            if column.kind == "flag" and set(column.values) <= {0, 1}:
                for form, value in (("flag", 1), ("unflag", 0)):
                    where = (f"{column.sql} = {value}",)
                    kind = "filter" if value else "negation"
                    yield replace(base, form=form, kind=kind, where=where, by=column, weight=1.5 if value else 0.7)
            elif column.kind == "flag":
                slot = Slot("v", "value", value_query(table, [column.name]), split=False)
                where = (f"{column.sql} = {{v}}",)
                yield replace(base, form="equal", kind="filter", where=where, slots=(slot,), by=column)
            if 0.03 * column.rows < column.nulls < 0.97 * column.rows and column.name not in table.label:
                where = (f"{column.sql} IS NULL",)
                yield replace(
                    base, form="missing", kind="negation", where=where, by=column, weight=0.7 * self.weight(column)
                )

    def _threshold(self, table: Table, column: Column, name: str) -> Slot:
        query = f"SELECT {column.sql} FROM {table.sql} WHERE {column.sql} IS NOT NULL ORDER BY 1 LIMIT 20000"
        unit, factor = _unit(column)
        return Slot(name, "number", query, split=False, show=unit, factor=factor)

    def _by_number(self, base: _Set) -> Iterator[_Set]:
        for column in self.numbers(base.table):
            slot, weight = self._threshold(base.table, column, "v"), self.weight(column)
            shape = replace(base, kind="range", slots=(slot,), by=column)
            yield replace(shape, form="over", where=(f"{column.sql} > {{v}}",), weight=2 * weight)
            yield replace(shape, form="under", where=(f"{column.sql} < {{v}}",), weight=1.5 * weight)
            if column.distinct > 8:
                second = replace(slot, name="w")
                where = (f"{column.sql} BETWEEN {{v}} AND {{w}}",)
                yield replace(shape, form="between", where=where, slots=(slot, second), weight=weight)

    def _by_date(self, base: _Set) -> Iterator[_Set]:
        for column in self.plain(base.table):
            if column.kind == "year" and column.distinct > 2:
                slot = Slot("v", "value", value_query(base.table, [column.name]), split=False)
                shape = replace(base, kind="date", slots=(slot,), by=column)
                yield replace(shape, form="after_year", where=(f"{column.sql} > {{v}}",))
                yield replace(shape, form="before_year", where=(f"{column.sql} < {{v}}",))
        for column in self.dates(base.table):
            name = column.sql
            for form, size, weight in (("year", 4, 2.0), ("month", 7, 1.0)):
                query = f"SELECT DISTINCT substr({name}, 1, {size}) FROM {base.table.sql} WHERE {name} != ''"
                slot = Slot("v", "prefix", query, split=form == "month", show=form)
                shape = replace(base, kind="date", by=column, slots=(slot,), weight=weight)
                yield replace(shape, form=form, where=(f"{name} LIKE {{v}}",))
            query = f"SELECT DISTINCT substr({name}, 1, 10) FROM {base.table.sql} WHERE {name} != '' LIMIT 5000"
            slot = Slot("v", "value", query, show="day")
            shape = replace(base, kind="date", by=column, slots=(slot,), weight=0.8)
            yield replace(shape, form="after", where=(f"{name} > {{v}}",))
            yield replace(shape, form="before", where=(f"{name} < {{v}}",))

    def _by_link(self, base: _Set) -> Iterator[_Set]:
        for path in self.paths(base.table):
            slot = self.entity(path.parent, path.alias)
            few = path.parent.rows <= MANY
            shape = replace(
                base,
                form=path.form,
                kind="join2" if path.form == "grand" else "join",
                source=path.source,
                where=("{e}",),
                slots=(replace(slot, split=not few),),
                joined=True,
                parent=path.parent,
                role=self.role(path.link) if path.form != "grand" else "",
                weight=1.0 if path.form == "grand" else 3.0,
            )
            yield shape
            for number in self.numbers(base.table)[:2] if path.form == "parent" else ():
                threshold = self._threshold(base.table, number, "n")
                where = ("{e}", f"{base.table.sql}.{number.sql} > {{n}}")
                both = replace(shape, form="parent_over", where=where, slots=(*shape.slots, threshold))
                yield replace(both, by=number, weight=0.4)
        yield from self._by_junction(base)

    def _by_junction(self, base: _Set) -> Iterator[_Set]:
        """Rows tied to a row of another table by a third one."""
        for tie in self.schema.tables:
            if not self.is_junction(tie):
                continue
            links = [link for link in self.schema.links_of(tie.name) if not link.own]
            for mine in (link for link in links if link.parent == base.table.name):
                for other in links:
                    parent = self.schema.by_name[other.parent]
                    if other is mine or not parent.handle or parent.name == base.table.name:
                        continue
                    keyed = set(tie.key) and set(tie.key) <= {*mine.columns, *other.columns}
                    yield replace(
                        base,
                        form="junction",
                        kind="join2",
                        source=f"{tie.sql} {_join(mine, mine.parent)} {_join(other, other.parent)}",
                        where=("{e}",),
                        slots=(replace(self.entity(parent, parent.name), split=parent.rows > MANY),),
                        joined=True,
                        parent=parent,
                        child=tie,
                        weight=2.0 if parent.label else 0.7,
                        repeats=not keyed,
                    )

    def _without(self, base: _Set) -> Iterator[_Set]:
        """Rows of the table to which no row of another links."""
        for link in self.schema.links:
            if link.parent != base.table.name or link.own or len(link.columns) != 1:
                continue
            child = self.schema.by_name[link.table]
            column, filled = child.by_name[link.columns[0]], ""
            if column.nulls:
                filled = f" WHERE {column.sql} IS NOT NULL"
            inner = f"SELECT {column.sql} FROM {child.sql}{filled}"
            where = (f"{quote_name(link.parent_columns[0])} NOT IN ({inner})",)
            role = self.role(link)
            yield replace(base, form="without", kind="negation", where=where, child=child, role=role, weight=1.5)

    # Operations.

    def of(self, table: Table) -> Iterator[Composition]:
        """All compositions of a table; an empty one is only counted."""
        base = self.weights[table.name]
        for rows in self.sets(table):
            if not table.rows and rows.form != "all":
                continue
            for item in self._on_set(rows):
                yield replace(item, weight=item.weight * base)
        if table.rows:
            for item in (*self._lookups(table), *self._groups(table), *self._names(table)):
                yield replace(item, weight=item.weight * base)

    def _on_set(self, rows: _Set) -> Iterator[Composition]:
        table = rows.table
        head = rows.column(table.key[0]) if rows.repeats and len(table.key) == 1 else ""
        plain = 2.5 if rows.form == "all" else 1.0  # the simple questions are asked most
        yield rows.ask(
            "count", rows.select(f"COUNT(DISTINCT {head})" if head else "COUNT(*)"), kind="count", weight=plain
        )
        if not table.rows:
            return
        if table.handle:
            distinct = "DISTINCT " if rows.repeats else ""
            yield rows.ask("list", rows.select(distinct + rows.columns(table.handle)), weight=1.2)
        simple = rows.form in ("all", "equal", "parent", "year", "grand")
        if not simple or rows.repeats:
            return
        for column in self.numbers(table):
            name, weight, about = rows.column(column.name), self.weight(column), concept_of(column.name)
            known = {**dict.fromkeys(lexicon()["never_summed"], 0.0), **dict.fromkeys(lexicon()["summed"], 2.0)}
            weight *= {"all": 4.0, "year": 2.0}.get(rows.form, 0.5)
            for op, share in (("sum", known.get(about, 0.5)), ("avg", 1.0), ("max", 0.6), ("min", 0.4)):
                if share:
                    yield rows.ask(op, rows.select(f"{op.upper()}({name})"), column=column, weight=share * weight,
                                   kind="aggregate")  # fmt: skip
        if rows.form != "grand":
            yield from self._tops(rows)
        for column in self.categories(table):
            if rows.form in ("all", "parent", "equal") and column is not rows.by:
                filled = (f"{rows.column(column.name)} IS NOT NULL",) if column.nulls else ()
                name, weight = rows.column(column.name), 0.7 if rows.form == "all" else 0.15
                yield rows.ask("distinct", rows.select(f"DISTINCT {name}", *filled), column=column, weight=weight,
                               kind="distinct")  # fmt: skip
                if rows.form == "all":
                    yield rows.ask("count_distinct", rows.select(f"COUNT(DISTINCT {name})"), column=column, weight=0.6,
                                   kind="count")  # fmt: skip

    def _tops(self, rows: _Set) -> Iterator[Composition]:
        table = rows.table
        if not table.handle:
            return
        years = [column for column in self.plain(table) if column.kind == "year"]
        for column in (*self.numbers(table), *self.dates(table), *years):
            if column is rows.by:
                continue
            name = rows.column(column.name)
            weight = self.weight(column) * (3.0 if rows.form == "all" else 0.6)
            for op, direction in (("top", "DESC"), ("low", "ASC")):
                if op == "low" and column.nulls:
                    continue  # SQLite sorts what is missing first
                share = weight * (1.0 if op == "top" else 0.6)
                sort = f"ORDER BY {name} {direction} LIMIT"
                sql = rows.select(rows.columns(table.handle), tail=f"{sort} 1")
                tie = rows.select(name, tail=f"{sort} 2")
                yield rows.ask(op, sql, column=column, weight=share, kind="top", tie=tie)
                if rows.form == "all":
                    limit = Slot("n", "limit", split=False)
                    sql = rows.select(rows.columns(table.handle), tail=f"{sort} {{n}}")
                    tie = rows.select(name, tail=f"{sort} {{n}} + 1")
                    yield rows.ask(f"{op}_n", sql, column=column, weight=share, kind="top", slots=(limit,), tie=tie)

    def _lookups(self, table: Table) -> Iterator[Composition]:
        """A fact about one row, in its own table or a parent's."""
        if not table.handle:
            return
        slot, rows = self.entity(table), _Set("one", "lookup", table, table.sql)
        facts = [column for column in self.plain(table) if column.name not in table.label]
        for column in facts:
            sql = f"SELECT {column.sql} FROM {table.sql} WHERE {{e}}"
            yield rows.ask("lookup", sql, column=column, slots=(slot,), weight=2 * self.weight(column))
        if table.label and len(table.key) == 1 and table.key[0] not in table.label:
            column = table.by_name[table.key[0]]
            sql = f"SELECT {column.sql} FROM {table.sql} WHERE {{e}}"
            yield rows.ask("lookup", sql, column=column, slots=(slot,), weight=0.3)
        main = [column for column in facts if not is_minor(column.name)]
        for first, second in pairwise(main):
            sql = f"SELECT {first.sql}, {second.sql} FROM {table.sql} WHERE {{e}}"
            yield replace(rows.ask("lookup_two", sql, column=first, slots=(slot,), weight=0.4), other=second)
        for path in self.paths(table):
            if not path.parent.label:
                continue
            names = ", ".join(f"{quote_name(path.alias)}.{quote_name(name)}" for name in path.parent.label)
            slots = (self.entity(table, table.name),)
            shape = replace(rows, kind="join2" if path.form == "grand" else "join", slots=slots, parent=path.parent,
                            role=self.role(path.link) if path.form != "grand" else "", form=path.form)  # fmt: skip
            sql = f"SELECT {names} FROM {path.source} WHERE {{e}}"
            yield shape.ask("parent", sql, weight=1.5 if path.form == "grand" else 3.0)

    def _groups(self, table: Table) -> Iterator[Composition]:
        """Which parent or value has most rows, and counts and sums for each."""
        amounts = [c for c in self.numbers(table) if concept_of(c.name) in lexicon()["summed"]]
        amounts = sorted(amounts, key=lambda c: lexicon()["summed"].index(concept_of(c.name)))[:2]
        for path in self.paths(table):
            if not path.parent.label or path.form == "own":
                continue
            names = ", ".join(f"{quote_name(path.alias)}.{quote_name(name)}" for name in path.parent.label)
            key = path.parent.key or path.parent.label
            group = "GROUP BY " + ", ".join(f"{quote_name(path.alias)}.{quote_name(name)}" for name in key)
            role = "" if path.form == "grand" else self.role(path.link)
            shape = _Set(path.form, "group", table, path.source, joined=True, parent=path.parent, role=role,
                         weight=1.0 if path.form == "parent" else 0.5)  # fmt: skip
            yield from _ranked(shape, names, group, amounts, path.parent.rows)
        for column in self.categories(table):
            where = (f"{column.sql} IS NOT NULL",) if column.nulls else ()
            shape = _Set("column", "group", table, table.sql, where=where, by=column, weight=0.8 * self.weight(column))
            yield from _ranked(shape, column.sql, f"GROUP BY {column.sql}", amounts, column.distinct)

    def _names(self, table: Table) -> Iterator[Composition]:
        """A first name that several people share: which one is meant has to be asked back."""
        if not table.label or not is_person_table(table.name):
            return
        names = ", ".join(quote_name(name) for name in table.label)
        first = quote_name(table.label[0])
        columns = [
            column for column in self.plain(table) if column.name not in table.label and not is_minor(column.name)
        ]
        if len(table.label) == 2:
            query = f"SELECT {first} FROM {table.sql} GROUP BY {first} HAVING COUNT(*) BETWEEN 2 AND 6"
            where, form = f"{first} = {{v}}", "value"
        else:
            part = f"substr({first}, 1, instr({first}, ' '))"
            query = f"SELECT {part} FROM {table.sql} WHERE {part} != '' GROUP BY 1 HAVING COUNT(*) BETWEEN 2 AND 6"
            where, form = f"{first} LIKE {{v}}", "name"
        slot = Slot("v", "value" if form == "value" else "name", query, split=False)
        rows = _Set("ambiguous", "ambiguous", table, table.sql, slots=(slot,))
        for column in columns[:6]:
            yield rows.ask("ambiguous", f"SELECT {names} FROM {table.sql} WHERE {where}", column=column)


def _ranked(shape: _Set, names: str, group: str, amounts: Sequence[Column], groups: int) -> Iterator[Composition]:
    """Compositions over groups: most rows, the first n, one count each, the highest sum."""
    if groups < 2:
        return
    measures: list[tuple[str, str, Column | None]] = [("count", "COUNT(*)", None)]
    measures += [("sum", f"SUM({shape.column(column.name)})", column) for column in amounts]
    for label, measure, column in measures:
        money = column is not None and concept_of(column.name) in ("amount", "quantity")
        share = 1.0 if label == "count" else 1.2 if money else 0.4
        sort = f"{group} ORDER BY {measure} DESC LIMIT"
        yield shape.ask(f"most_{label}", shape.select(names, tail=f"{sort} 1"), column=column, weight=2 * share,
                        tie=shape.select(measure, tail=f"{sort} 2"))  # fmt: skip
        if groups > 5:
            limit = Slot("n", "limit", split=False)
            yield shape.ask(f"most_{label}_n", shape.select(names, tail=f"{sort} {{n}}"), column=column, slots=(limit,),
                            weight=share, tie=shape.select(measure, tail=f"{sort} {{n}} + 1"))  # fmt: skip
        if groups <= 20:
            yield shape.ask(
                f"each_{label}", shape.select(f"{names}, {measure}", tail=group), column=column, weight=share
            )


def _join(link: Link, alias: str) -> str:
    """`JOIN parent ON child.key = parent.key`."""
    name = quote_name(link.parent) if alias == link.parent else f"{quote_name(link.parent)} AS {alias}"
    on = " AND ".join(
        f"{quote_name(link.table)}.{quote_name(own)} = {quote_name(alias)}.{quote_name(other)}"
        for own, other in zip(link.columns, link.parent_columns, strict=True)
    )
    return f"JOIN {name} ON {on}"


def _unit(column: Column) -> tuple[str, int]:
    """The unit people use for a column that is kept in a small one: minutes for milliseconds."""
    last = words_of(column.name)[-1:]
    high = column.high if isinstance(column.high, int | float) else 0
    if last == ("milliseconds",) and high > 60_000:
        return "minutes", 60_000
    if last == ("seconds",) and high > 180:
        return "minutes", 60
    if last == ("bytes",) and high > 2_000_000:
        return "MB", 1_000_000
    return "", 1
