"""The rows a question is about: all of a table, those with a value, of a parent, from a year, without any child.

A set is FROM and WHERE with marks. FROM names the one table whose rows are spoken of; columns of other tables stand in
WHERE with their table's name, and the joins follow from the keys (`wire.joins`). Only where the keys allow two ways (a
table that links to itself, two links to one parent) the join is written out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from riverrun.base.sql import quote_name
from riverrun.data.composition import MANY, Composition, Slot, unit_of, value_query
from riverrun.data.names import concept_of, is_label_name, is_minor, is_secret, names_table, without_identifier
from riverrun.data.names import split_name as words_of
from riverrun.data.schema import Column, Link, Schema, Table, make_joiner

__all__ = ["Path", "RowSet", "RowSets"]

FAR = 4
"""Links between a table and the farthest one it is asked about together with."""


@dataclass(frozen=True)
class Path:
    """The way from a table to a parent, as FROM; `alias` is how the parent is spoken of."""

    source: str
    alias: str
    parent: Table
    link: Link
    form: str
    written: bool
    """Whether the join stands in `source`; else it follows from the keys."""
    length: int = 1

    def names(self, columns: Sequence[str]) -> str:
        return ", ".join(f"{quote_name(self.alias)}.{quote_name(name)}" for name in columns)


@dataclass(frozen=True)
class RowSet:
    """Rows of a table: FROM, WHERE with marks, and what the wording needs."""

    form: str
    kind: str
    table: Table
    source: str
    where: tuple[str, ...] = ()
    slots: tuple[Slot, ...] = ()
    written: bool = False
    """Whether `source` holds a join, so that the table's own columns need its name."""
    by: Column | None = None
    parent: Table | None = None
    child: Table | None = None
    over: Column | None = None
    role: str = ""
    weight: float = 1.0

    def column(self, column: Column) -> str:
        return f"{self.table.sql}.{column.sql}" if self.written else column.sql

    def names(self, names: Sequence[str]) -> str:
        return ", ".join(self.column(self.table.by_name[name]) for name in names)

    def select(self, head: str, *more: str, tail: str = "") -> str:
        where = " AND ".join([*self.where, *more])
        return " ".join(filter(None, [f"SELECT {head} FROM {self.source}", f"WHERE {where}" if where else "", tail]))

    def ask(self, op: str, sql: str, *, column: Column | None = None, weight: float = 1.0, kind: str = "",
            slots: tuple[Slot, ...] = (), tie: str = "") -> Composition:  # fmt: skip
        return Composition(
            op, self.form, kind or self.kind, self.table, sql, (*self.slots, *slots), column, self.over, self.by,
            self.parent, self.child, self.role, self.weight * weight, tie,
        )  # fmt: skip


class RowSets:
    """Every set of rows of a schema's tables."""

    def __init__(self, schema: Schema) -> None:
        self.schema, self.joiner = schema, make_joiner(schema)

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

    def revenue(self, table: Table) -> list[Column]:
        """Price times quantity, where a table of sold things has both and no amount of its own."""
        about = {concept_of(column.name): column for column in self.numbers_and_constants(table)}
        if "amount" in about or not {"price", "quantity"} <= set(about) or not self.schema.links_of(table.name):
            return []
        price, quantity = about["price"], about["quantity"]
        return [Column("revenue", f"={price.sql} * {quantity.sql}", "number", table.rows, table.rows)]

    def numbers_and_constants(self, table: Table) -> list[Column]:
        return [column for column in self.plain(table) if column.is_number]

    def dates(self, table: Table) -> list[Column]:
        return [column for column in self.plain(table) if column.kind == "date" and column.distinct > 1]

    def categories(self, table: Table) -> list[Column]:
        """Columns whose values several rows share, or could."""
        found = []
        for column in self.plain(table):
            filled = max(1, column.rows - column.nulls)
            places = ("city", "country", "region")
            shared = column.distinct <= max(MANY, 0.5 * filled) or concept_of(column.name) in places
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

    @cached_property
    def weights(self) -> dict[str, float]:
        """How often a table is asked about, by the logarithm of its rows."""
        out = {}
        for table in self.schema.tables:
            weight = (1.0 if table.label else 0.5) * (0.4 + 0.35 * math.log10(max(1, table.rows)))
            out[table.name] = weight * (0.3 if self.is_junction(table) else 1.0) * (0.6 if table.view else 1.0)
        return out

    def weight(self, column: Column) -> float:
        return 0.3 if is_minor(column.name) else 1.0 if concept_of(column.name) else 0.8

    # Ways between tables.

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

    def paths(self, table: Table) -> Iterator[Path]:
        """Over one key and over several, to parents that can be named; each parent by its shortest way."""
        for link in self.schema.links_of(table.name):
            parent = self.schema.by_name[link.parent]
            if not parent.handle:
                continue
            if link.own:
                alias = "p" if table.name.lower() != "p" else "q"
                yield Path(f"{table.sql} {_join(link, alias)}", alias, parent, link, "own", True)
            elif self._follows([link]):
                yield Path(table.sql, parent.name, parent, link, "parent", False)
            else:
                yield Path(f"{table.sql} {_join(link, parent.name)}", parent.name, parent, link, "parent", True)
        for chain in self._chains(table):
            parent = self.schema.by_name[chain[-1].parent]
            yield Path(table.sql, parent.name, parent, chain[-1], "grand", False, len(chain))

    def _chains(self, table: Table) -> Iterator[list[Link]]:
        """Ways of two and more links upwards, to parents with names, as the joiner would go."""
        near = {link.parent for link in self.schema.links_of(table.name)} | {table.name}
        ways: list[list[Link]] = [[link] for link in self.schema.links_of(table.name) if not link.own]
        while ways:
            longer = [[*way, link] for way in ways for link in self.schema.links_of(way[-1].parent)]
            ways = []
            for way in longer:
                if way[-1].parent in near or len(way) > FAR or not self._follows(way):
                    continue
                near.add(way[-1].parent)
                ways.append(way)
                if self.schema.by_name[way[-1].parent].label:
                    yield way

    def _follows(self, way: Sequence[Link]) -> bool:
        """Whether the joiner, asked for the last table, takes this very way."""
        steps = self.joiner.path([way[0].table.lower()], [way[-1].parent.lower()]) or []
        wanted = [tuple(zip(link.columns, link.parent_columns, strict=True)) for link in way]
        return [step.pairs for step in steps] == wanted

    def related(self, table: Table) -> Iterator[tuple[Table, Table, int]]:
        """(other, first table below, length): tables that lie down and up from this one (an album's buyers)."""
        if not table.handle:
            return
        for other in self.schema.tables:
            steps = self.joiner.path([table.name.lower()], [other.name.lower()]) if other.label else None
            if steps and len(steps) <= FAR and steps[0].down and other is not table:
                yield other, self.schema.by_name[self.joiner.names[steps[0].end]], len(steps)

    # The sets.

    def of(self, table: Table) -> Iterator[RowSet]:
        """The sets whose questions are asked of `table`."""
        base = RowSet("all", "list", table, table.sql)
        yield replace(base, weight=1.5)
        yield from self._by_value(base)
        yield from self._by_number(base)
        yield from self._by_date(base)
        yield from self._by_link(base)
        yield from self._without(base)
        if len(table.label) == 1:
            column = table.by_name[table.label[0]]
            slot = Slot("v", "part", value_query(table, table.label), split=True)
            where = (f"{column.sql} LIKE {{v}}",)
            yield replace(base, form="contains", kind="filter", where=where, slots=(slot,), by=column)

    def _by_value(self, base: RowSet) -> Iterator[RowSet]:
        table = base.table
        for column in self.categories(table):
            weight = self.weight(column)
            slot = _one_of(table, column)
            shape = replace(base, kind="filter", slots=(slot,), by=column)
            yield replace(shape, form="equal", where=(f"{column.sql} = {{v}}",), weight=3 * weight)
            if column.kind == "text" and column.distinct > 2:
                second = replace(slot, name="u")
                where: tuple[str, ...] = (f"{column.sql} IN ({{v}}, {{u}})",)
                yield replace(shape, form="either", where=where, slots=(slot, second), weight=0.6 * weight)
            if column.kind == "text" and column.nulls == 0:
                where = (f"{column.sql} != {{v}}",)
                yield replace(shape, form="not", kind="negation", where=where, weight=0.7 * weight)
            for number in self.numbers(table)[:2]:
                threshold = self._threshold(table, number, "n")
                where = (f"{column.sql} = {{v}}", f"{number.sql} > {{n}}")
                both = replace(shape, form="equal_over", where=where, slots=(slot, threshold), over=number)
                yield replace(both, weight=0.7 * weight)
            yield from self._with_other(shape, column, slot)
            for date in self.dates(table)[:1]:
                where = (f"{column.sql} = {{v}}", f"{date.sql} LIKE {{y}}")
                slots = (slot, self.year(table, date))
                yield replace(shape, form="equal_year", kind="date", where=where, slots=slots, weight=0.7 * weight)
        for column in self.plain(table):
            yield from self._by_flag(base, column)
            if 0.03 * column.rows < column.nulls < 0.97 * column.rows and column.name not in table.label:
                where = (f"{column.sql} IS NULL",)
                weight = 0.7 * self.weight(column)
                dated = column.kind == "date" and concept_of(column.name) != "born"
                less = 0.4 if dated else 1.0
                yield replace(base, form="missing", kind="negation", where=where, by=column, weight=less * weight)
                if dated:  # not paid yet, still with us; paid, gone
                    yield replace(base, form="open", kind="negation", where=where, by=column, weight=1.5 * weight)
                    where = (f"{column.sql} IS NOT NULL",)
                    yield replace(base, form="happened", kind="filter", where=where, by=column, weight=weight)

    def _with_other(self, shape: RowSet, column: Column, slot: Slot) -> Iterator[RowSet]:
        """A value and another column's value or flag."""
        for other in self.plain(shape.table):
            if other is column or other.name in shape.table.label:
                continue
            if other.kind == "flag" and set(other.values) <= {0, 1}:
                where: tuple[str, ...] = (f"{column.sql} = {{v}}", f"{other.sql} = 1")
                yield replace(shape, form="equal_flag", where=where, slots=(slot,), over=other, weight=0.5)
            elif other in self.categories(shape.table) and other.kind == "text" and other.name > column.name:
                second = replace(_one_of(shape.table, other), name="u")
                where = (f"{column.sql} = {{v}}", f"{other.sql} = {{u}}")
                yield replace(shape, form="equal_equal", where=where, slots=(slot, second), over=other, weight=0.5)

    def _by_flag(self, base: RowSet, column: Column) -> Iterator[RowSet]:
        if column.kind == "flag" and set(column.values) <= {0, 1}:
            for form, value in (("flag", 1), ("unflag", 0)):
                kind, weight = ("filter", 1.5) if value else ("negation", 0.7)
                yield replace(base, form=form, kind=kind, where=(f"{column.sql} = {value}",), by=column, weight=weight)
        elif column.kind == "flag":
            slot = Slot("v", "value", value_query(base.table, [column.name]), split=False)
            yield replace(base, form="equal", kind="filter", where=(f"{column.sql} = {{v}}",), slots=(slot,), by=column)

    def _threshold(self, table: Table, column: Column, name: str) -> Slot:
        query = f"SELECT {column.sql} FROM {table.sql} WHERE {column.sql} IS NOT NULL ORDER BY 1 LIMIT 20000"
        unit, factor = unit_of(column)
        return Slot(name, "number", query, split=False, show=unit, factor=factor)

    def year(self, table: Table, column: Column, size: int = 4) -> Slot:
        """The slot {y} for a year of a date column, or for a month."""
        query = f"SELECT DISTINCT substr({column.sql}, 1, {size}) FROM {table.sql} WHERE {column.sql} != ''"
        return Slot("y", "prefix", query, split=size > 4, show="year" if size == 4 else "month")

    def _by_number(self, base: RowSet) -> Iterator[RowSet]:
        for column in self.numbers(base.table):
            slot, weight = self._threshold(base.table, column, "v"), self.weight(column)
            shape = replace(base, kind="range", slots=(slot,), by=column)
            yield replace(shape, form="over", where=(f"{column.sql} > {{v}}",), weight=2 * weight)
            yield replace(shape, form="under", where=(f"{column.sql} < {{v}}",), weight=1.5 * weight)
            if column.distinct > 8:
                second = replace(slot, name="w")
                where = (f"{column.sql} BETWEEN {{v}} AND {{w}}",)
                yield replace(shape, form="between", where=where, slots=(slot, second), weight=weight)
                mean = f"SELECT AVG({column.sql}) FROM {base.table.sql}"
                where = (f"{column.sql} > ({mean})",)
                yield replace(shape, form="above_mean", where=where, slots=(), weight=0.4 * weight)

    def _by_date(self, base: RowSet) -> Iterator[RowSet]:
        for column in self.plain(base.table):
            if column.kind == "year" and column.distinct > 2:
                slot = Slot("v", "value", value_query(base.table, [column.name]), split=False)
                shape = replace(base, kind="date", slots=(slot,), by=column)
                yield replace(shape, form="after_year", where=(f"{column.sql} > {{v}}",))
                yield replace(shape, form="before_year", where=(f"{column.sql} < {{v}}",))
        for column in self.dates(base.table):
            name = column.sql
            for form, size, weight in (("year", 4, 2.0), ("month", 7, 1.5)):
                query = f"SELECT DISTINCT substr({name}, 1, {size}) FROM {base.table.sql} WHERE {name} != ''"
                slot = Slot("v", "prefix", query, split=form == "month", show=form)
                shape = replace(base, kind="date", by=column, slots=(slot,), weight=weight)
                yield replace(shape, form=form, where=(f"{name} LIKE {{v}}",))
            query = f"SELECT DISTINCT substr({name}, 1, 10) FROM {base.table.sql} WHERE {name} != '' LIMIT 5000"
            slot = Slot("v", "value", query, show="day")
            shape = replace(base, kind="date", by=column, slots=(slot,), weight=0.8)
            yield replace(shape, form="after", where=(f"{name} > {{v}}",))
            yield replace(shape, form="before", where=(f"{name} < {{v}}",))
            day = replace(slot, form="prefix")
            yield replace(shape, form="day", where=(f"{name} LIKE {{v}}",), slots=(day,), weight=0.6)

    def _by_link(self, base: RowSet) -> Iterator[RowSet]:
        table = base.table
        for path in self.paths(table):
            few = path.parent.rows <= MANY
            near = path.form != "grand"
            shape = replace(
                base,
                form=path.form,
                kind="join" if near else "join2",
                source=path.source,
                where=("{e}",),
                slots=(replace(self.entity(path.parent, path.alias), split=not few),),
                written=path.written,
                parent=path.parent,
                role=self.role(path.link) if near else "",
                weight=3.0 if near else 2.0 / path.length,
            )
            yield shape
            if path.written:
                continue
            for number in self.numbers(table)[:2] if near else ():
                where: tuple[str, ...] = ("{e}", f"{number.sql} > {{n}}")
                slots = (*shape.slots, self._threshold(table, number, "n"))
                yield replace(shape, form="parent_over", where=where, slots=slots, by=number, weight=0.4)
            for date, size, weight in [(d, *w) for d in self.dates(table)[:1] for w in ((4, 0.6), (7, 0.4))]:
                where = ("{e}", f"{date.sql} LIKE {{y}}")
                slots = (*shape.slots, self.year(table, date, size))
                form = "parent_year" if size == 4 else "parent_month"
                yield replace(shape, form=form, where=where, slots=slots, by=date, weight=weight)
            for column in self.categories(table) if path.length <= 2 else ():
                where = ("{e}", f"{column.sql} = {{v}}")
                slots = (*shape.slots, _one_of(table, column))
                weight = 0.8 * self.weight(column) / path.length
                yield replace(shape, form="parent_value", where=where, slots=slots, by=column, weight=weight)
            for column in self.categories(path.parent) if path.length <= 2 else ():
                where = (f"{path.names([column.name])} = {{v}}",)
                slot = _one_of(path.parent, column)
                weight = 0.8 * self.weight(column) / path.length
                yield replace(shape, form="parent_equal", where=where, slots=(slot,), by=column, weight=weight)
        for other, below, length in self.related(table):
            weight = (2.0 if length == 2 and self.is_junction(below) else 1.2) / (length - 1 or 1)
            slot = replace(self.entity(other, other.name), split=other.rows > MANY)
            yield replace(base, form="junction", kind="join2", where=("{e}",), slots=(slot,), parent=other,
                          child=below, weight=weight)  # fmt: skip

    def _without(self, base: RowSet) -> Iterator[RowSet]:
        """Rows of the table to which no row of another links, or which some do."""
        for link in self.schema.links:
            if link.parent != base.table.name or link.own:
                continue
            child, role = self.schema.by_name[link.table], self.role(link)
            if self._follows([link]):
                where = (f"NOT EXISTS (SELECT * FROM {child.sql})",)
            elif len(link.columns) == 1:
                column = child.by_name[link.columns[0]]
                filled = f" WHERE {column.sql} IS NOT NULL" if column.nulls else ""
                key = quote_name(link.parent_columns[0])
                where = (f"{key} NOT IN (SELECT {column.sql} FROM {child.sql}{filled})",)
            else:
                continue
            yield replace(base, form="without", kind="negation", where=where, child=child, role=role, weight=1.5)


def _join(link: Link, alias: str) -> str:
    """`JOIN parent ON child.key = parent.key`."""
    name = quote_name(link.parent) if alias == link.parent else f"{quote_name(link.parent)} AS {alias}"
    on = " AND ".join(
        f"{quote_name(link.table)}.{quote_name(own)} = {quote_name(alias)}.{quote_name(other)}"
        for own, other in zip(link.columns, link.parent_columns, strict=True)
    )
    return f"JOIN {name} ON {on}"


def _one_of(table: Table, column: Column) -> Slot:
    """A value of a column, said by its meaning where it is a code."""
    many = column.distinct > MANY
    return Slot("v", "value", value_query(table, [column.name]), split=many, codes=column.codes)
