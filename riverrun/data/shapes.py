"""What can be asked of a schema: compositions of an operation, a set of rows and columns, each with one form of SQL.

A set of rows ("albums by AC/DC", "invoices from 2010") is a condition on a table (`row_sets`); an operation (list,
count, sum, top) is done on it. How a composition is worded is not decided here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

from riverrun.base.sql import quote_name
from riverrun.data.composition import Composition, Slot
from riverrun.data.names import concept_of, is_minor, is_person_table, lexicon
from riverrun.data.row_sets import RowSet, RowSets
from riverrun.data.schema import Column, Schema, Table

__all__ = ["compositions"]

SIMPLE = (
    *("all", "equal", "parent", "year", "month", "grand", "parent_year", "equal_year", "parent_equal"),
    *("parent_value", "parent_month", "equal_equal"),
)
"""Sets that are summed up; what is most of them is asked of fewer."""


def compositions(schema: Schema) -> list[Composition]:
    """Everything that can be asked, in a stable order; compositions of the same name are given once."""
    shapes = _Shapes(RowSets(schema))
    found: dict[str, Composition] = {}
    for table in schema.tables:
        for item in shapes.of(table):
            found.setdefault(item.name, item)
    return list(found.values())


class _Shapes:
    def __init__(self, sets: RowSets) -> None:
        self.sets = sets

    def of(self, table: Table) -> Iterator[Composition]:
        """All compositions of a table; an empty one is only counted."""
        base = self.sets.weights[table.name]
        for rows in self.sets.of(table):
            if not table.rows and rows.form != "all":
                continue
            for item in self._on_set(rows):
                yield replace(item, weight=item.weight * base)
        if table.rows:
            for item in (*self._lookups(table), *self._groups(table), *self._names(table)):
                yield replace(item, weight=item.weight * base)

    def _on_set(self, rows: RowSet) -> Iterator[Composition]:
        table = rows.table
        plain = 2.5 if rows.form == "all" else 1.0  # the simple questions are asked most
        yield rows.ask("count", rows.select("COUNT(*)"), kind="count", weight=plain)
        if not table.rows:
            return
        if table.handle:
            yield rows.ask("list", rows.select(rows.names(table.handle)), weight=1.2)
            if rows.form in ("equal", "parent", "grand", "over", "junction", "year", "flag", "parent_equal"):
                for column in self._facts(table)[:4]:
                    sql = rows.select(f"{rows.names(table.handle)}, {rows.column(column)}")
                    if column is not rows.by:
                        yield rows.ask("list_with", sql, column=column, weight=0.25)
        if rows.form not in SIMPLE:
            return
        amounts = self.sets.revenue(table) if rows.form in ("all", "parent", "grand", "parent_equal") else []
        for column in (*self.sets.numbers(table), *amounts):
            name, weight, about = rows.column(column), self.sets.weight(column), concept_of(column.name)
            known = {**dict.fromkeys(lexicon()["never_summed"], 0.0), **dict.fromkeys(lexicon()["summed"], 2.0)}
            weight *= {"all": 4.0, "year": 2.0}.get(rows.form, 0.5) * (3.0 if column in amounts else 1.0)
            only = {"sum"} if column in amounts else {"sum", "avg", "max", "min"}
            for op, share in (("sum", known.get(about, 0.5)), ("avg", 1.0), ("max", 0.6), ("min", 0.4)):
                if share and op in only:
                    yield rows.ask(op, rows.select(f"{op.upper()}({name})"), column=column, weight=share * weight,
                                   kind="aggregate")  # fmt: skip
        for column in self.sets.dates(table) if rows.form in ("parent", "grand", "equal") else ():
            for op, way, share in (("latest", "MAX", 1.5), ("earliest", "MIN", 0.7)):
                sql = rows.select(f"{way}({rows.column(column)})")
                yield rows.ask(op, sql, column=column, weight=share * self.sets.weight(column), kind="date")
        if rows.form in ("all", "parent", "equal"):
            yield from self._tops(rows)
            yield from self._distinct(rows)

    def _facts(self, table: Table) -> list[Column]:
        """Columns that are asked for often."""
        plain = (column for column in self.sets.plain(table) if column.name not in table.handle)
        return [column for column in plain if not is_minor(column.name) and column.kind != "flag"]

    def _distinct(self, rows: RowSet) -> Iterator[Composition]:
        for column in self.sets.categories(rows.table):
            if column is rows.by:
                continue
            filled = (f"{rows.column(column)} IS NOT NULL",) if column.nulls else ()
            name, weight = rows.column(column), 0.7 if rows.form == "all" else 0.15
            yield rows.ask("distinct", rows.select(f"DISTINCT {name}", *filled), column=column, weight=weight,
                           kind="distinct")  # fmt: skip
            if rows.form == "all":
                yield rows.ask("count_distinct", rows.select(f"COUNT(DISTINCT {name})"), column=column, weight=0.6,
                               kind="count")  # fmt: skip

    def _tops(self, rows: RowSet) -> Iterator[Composition]:
        table = rows.table
        if not table.handle:
            return
        years = [column for column in self.sets.plain(table) if column.kind == "year"]
        for column in (*self.sets.numbers(table), *self.sets.dates(table), *years):
            if column is rows.by:
                continue
            name = rows.column(column)
            weight = self.sets.weight(column) * (3.0 if rows.form == "all" else 0.6)
            for op, direction in (("top", "DESC"), ("low", "ASC")):
                if op == "low" and column.nulls:
                    continue  # SQLite sorts what is missing first
                share = weight * (1.0 if op == "top" else 0.6)
                sort = f"ORDER BY {name} {direction} LIMIT"
                sql = rows.select(rows.names(table.handle), tail=f"{sort} 1")
                tie = rows.select(name, tail=f"{sort} 2")
                yield rows.ask(op, sql, column=column, weight=share, kind="top", tie=tie)
                if rows.form == "all":
                    limit = Slot("n", "limit", split=False)
                    sql = rows.select(rows.names(table.handle), tail=f"{sort} {{n}}")
                    tie = rows.select(name, tail=f"{sort} {{n}} + 1")
                    yield rows.ask(f"{op}_n", sql, column=column, weight=share, kind="top", slots=(limit,), tie=tie)

    def _lookups(self, table: Table) -> Iterator[Composition]:
        """A fact about one row, in its own table or a parent's."""
        if not table.handle:
            return
        slot, rows = self.sets.entity(table), RowSet("one", "lookup", table, table.sql)
        facts = [column for column in self.sets.plain(table) if column.name not in table.label]
        for column in facts:
            sql = f"SELECT {column.sql} FROM {table.sql} WHERE {{e}}"
            yield rows.ask("lookup", sql, column=column, slots=(slot,), weight=2 * self.sets.weight(column))
        if table.label and len(table.key) == 1 and table.key[0] not in table.label:
            column = table.by_name[table.key[0]]
            sql = f"SELECT {column.sql} FROM {table.sql} WHERE {{e}}"
            yield rows.ask("lookup", sql, column=column, slots=(slot,), weight=0.15)
        main = [column for column in facts if not is_minor(column.name)]
        for first, second in pairwise(main):
            sql = f"SELECT {first.sql}, {second.sql} FROM {table.sql} WHERE {{e}}"
            yield replace(rows.ask("lookup_two", sql, column=first, slots=(slot,), weight=0.4), other=second)
        for path in self.sets.paths(table):
            if not path.parent.label:
                continue
            own = self.sets.entity(table, table.name) if path.written else slot
            near = path.form != "grand"
            role = self.sets.role(path.link) if near else ""
            shape = replace(rows, kind="join" if near else "join2", slots=(own,), parent=path.parent, role=role,
                            form=path.form)  # fmt: skip
            sql = f"SELECT {path.names(path.parent.label)} FROM {path.source} WHERE {{e}}"
            yield shape.ask("parent", sql, weight=3.0 if near else 3.0 / path.length)
            if path.form == "own" or path.length > 2:
                continue
            for column in self.sets.plain(path.parent):
                if column.name not in path.parent.label:
                    sql = f"SELECT {path.names([column.name])} FROM {path.source} WHERE {{e}}"
                    weight = 0.5 * self.sets.weight(column) / path.length
                    yield shape.ask("parent_fact", sql, column=column, weight=weight)

    def _groups(self, table: Table) -> Iterator[Composition]:
        """Which parent or value has most rows, and counts and sums for each."""
        amounts = [c for c in self.sets.numbers(table) if concept_of(c.name) in lexicon()["summed"]]
        amounts = sorted(amounts, key=lambda c: lexicon()["summed"].index(concept_of(c.name)))[:2]
        amounts = self.sets.revenue(table) + amounts
        for path in self.sets.paths(table):
            if not path.parent.label or path.form == "own":
                continue
            names = path.names(path.parent.label)
            group = "GROUP BY " + path.names(path.parent.key or path.parent.label)
            role = "" if path.form == "grand" else self.sets.role(path.link)
            shape = RowSet(path.form, "group", table, path.source, written=path.written, parent=path.parent, role=role,
                           weight=1.0 if path.form == "parent" else 1.0 / path.length)  # fmt: skip
            yield from _ranked(shape, names, group, amounts, path.parent.rows)
            for column in self.sets.categories(path.parent) if path.length <= 2 and not path.written else ():
                name = path.names([column.name])
                where = (f"{name} IS NOT NULL",) if column.nulls else ()
                weight = 0.4 * self.sets.weight(column) / path.length
                by = replace(shape, form="parent_column", where=where, by=column, weight=weight)
                yield from _ranked(by, name, f"GROUP BY {name}", amounts, column.distinct)
        for column in self.sets.categories(table):
            where = (f"{column.sql} IS NOT NULL",) if column.nulls else ()
            weight = 0.8 * self.sets.weight(column)
            shape = RowSet("column", "group", table, table.sql, where=where, by=column, weight=weight)
            yield from _ranked(shape, column.sql, f"GROUP BY {column.sql}", amounts, column.distinct)
            for date in self.sets.dates(table)[:1]:
                year = replace(shape, form="column_year", where=(*where, f"{date.sql} LIKE {{y}}"), weight=0.4 * weight)
                for size in (4, 7):
                    slotted = replace(
                        year, slots=(self.sets.year(table, date, size),), role="" if size == 4 else "month"
                    )
                    yield from _ranked(slotted, column.sql, f"GROUP BY {column.sql}", amounts[:1], column.distinct)
        for column in self.sets.dates(table)[:1]:
            where = (f"{column.sql} IS NOT NULL",) if column.nulls else ()
            for form, size, weight in (("each_year", 4, 1.0), ("each_month", 7, 0.4)):
                part = f"substr({column.sql}, 1, {size})"
                shape = RowSet(form, "group", table, table.sql, where=where, by=column, weight=weight)
                yield from _ranked(shape, part, "GROUP BY 1", amounts, 12 if size == 4 else 60)

    def _names(self, table: Table) -> Iterator[Composition]:
        """A first name that several people share: which one is meant has to be asked back."""
        if not table.label or not is_person_table(table.name):
            return
        names = ", ".join(quote_name(name) for name in table.label)
        first = quote_name(table.label[0])
        columns = [c for c in self.sets.plain(table) if c.name not in table.label and not is_minor(c.name)]
        if len(table.label) == 2:
            query = f"SELECT {first} FROM {table.sql} GROUP BY {first} HAVING COUNT(*) BETWEEN 2 AND 6"
            where, form = f"{first} = {{v}}", "value"
        else:
            part = f"substr({first}, 1, instr({first}, ' '))"
            query = f"SELECT {part} FROM {table.sql} WHERE {part} != '' GROUP BY 1 HAVING COUNT(*) BETWEEN 2 AND 6"
            where, form = f"{first} LIKE {{v}}", "name"
        slot = Slot("v", "value" if form == "value" else "name", query, split=False)
        rows = RowSet("ambiguous", "ambiguous", table, table.sql, slots=(slot,))
        for column in columns[:6]:
            yield rows.ask("ambiguous", f"SELECT {names} FROM {table.sql} WHERE {where}", column=column)


def _ranked(shape: RowSet, names: str, group: str, amounts: Sequence[Column], groups: int) -> Iterator[Composition]:
    """Compositions over groups: most rows, the first n, one count each, the highest sum, more than so many."""
    if groups < 2:
        return
    measures: list[tuple[str, str, Column | None]] = [("count", "COUNT(*)", None)]
    measures += [("sum", f"SUM({shape.column(column)})", column) for column in amounts]
    for label, measure, column in measures:
        money = column is not None and concept_of(column.name) in ("amount", "quantity")
        share = 1.0 if label == "count" else 1.2 if money else 0.4
        sort = f"{group} ORDER BY {measure} DESC LIMIT"
        yield shape.ask(f"most_{label}", shape.select(names, tail=f"{sort} 1"), column=column, weight=2 * share,
                        tie=shape.select(measure, tail=f"{sort} 2"))  # fmt: skip
        if groups > 5:
            limit = Slot("n", "limit", split=False)
            tie = shape.select(measure, tail=f"{sort} {{n}} + 1")
            for op, head, part in (("n", names, 1.0), ("n_with", f"{names}, {measure}", 0.6)):
                sql = shape.select(head, tail=f"{sort} {{n}}")
                yield shape.ask(f"most_{label}_{op}", sql, column=column, slots=(limit,), weight=part * share, tie=tie)
            query = shape.select(measure, tail=f"{group} ORDER BY 1 LIMIT 20000")
            least = Slot("n", "number", query, split=False)
            sql = shape.select(names, tail=f"{group} HAVING {measure} > {{n}}")
            yield shape.ask(f"over_{label}", sql, column=column, slots=(least,), weight=0.7 * share)
        if groups <= 20:
            sql = shape.select(f"{names}, {measure}", tail=group)
            yield shape.ask(f"each_{label}", sql, column=column, weight=share)
