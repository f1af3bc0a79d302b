"""A query that names columns of other tables without joining them, completed along the database's keys.

`SELECT COUNT(*) FROM Track WHERE Artist.Name = 'AC/DC'` says all that a question says; which tables lie between follows
from the keys. A small model that leaves the joins out has less to learn and less to get wrong. FROM names the rows that
are spoken of: tables that are reached from child to parent are joined; conditions on tables that would multiply the
rows (parent to child) become EXISTS, unless their columns are also selected, grouped or sorted by. An EXISTS that says
nothing about the query around it is tied to it by the keys. Names that the database has not got are first read as the
nearest ones (`identifiers`). A query that needs nothing of this, or cannot be parsed (sqlglot,
https://github.com/tobymao/sqlglot), comes back as it was. The idea of SQL without joins for question answering: NatSQL
(arXiv 2109.05153).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count
from typing import TYPE_CHECKING

from riverrun.base.optional import require
from riverrun.wire.identifiers import identifier as _identifier
from riverrun.wire.identifiers import mend

if TYPE_CHECKING:
    from sqlglot import exp

__all__ = ["ForeignKey", "Joiner"]

DOWN = 1.01
"""Price of a step from parent to child; up costs 1: of two ways of one length the one that multiplies less is taken."""


@dataclass(frozen=True)
class ForeignKey:
    """`table`.columns hold keys of `parent`."""

    table: str
    columns: tuple[str, ...]
    parent: str
    parent_columns: tuple[str, ...]


@dataclass(frozen=True)
class _Step:
    """From a table to a neighbour; `pairs` are (own column, its column)."""

    start: str
    end: str
    pairs: tuple[tuple[str, str], ...]
    down: bool


class Joiner:
    """tables: name -> columns; keys: the links between them, the preferred ones first.

    labels: (table, link column) -> the columns that name what it leads to. Whoever selects such a link is shown the
    name: for columns that a prompt does not tell of, so that nobody can have asked for the key itself.
    """

    def __init__(
        self,
        tables: Mapping[str, Sequence[str]],
        keys: Sequence[ForeignKey],
        labels: Mapping[tuple[str, str], Sequence[str]] | None = None,
    ) -> None:
        self.labels = {(t.lower(), c.lower()): tuple(names) for (t, c), names in (labels or {}).items()}
        self.names = {name.lower(): name for name in tables}
        self.columns = {name.lower(): {column.lower() for column in columns} for name, columns in tables.items()}
        self.steps: dict[str, list[_Step]] = {name: [] for name in self.names}
        for key in keys:
            child, parent = key.table.lower(), key.parent.lower()
            if child == parent or child not in self.steps or parent not in self.steps:
                continue
            pairs = tuple(zip(key.columns, key.parent_columns, strict=True))
            self.steps[child].append(_Step(child, parent, pairs, False))
            back = tuple((other, own) for own, other in pairs)
            self.steps[parent].append(_Step(parent, child, back, True))
        self.tables = {name: tuple(columns) for name, columns in tables.items()}
        self.keys = {key.parent.lower(): key.parent_columns for key in reversed(keys)}
        require("sqlglot", extra="agent")
        self.complete = lru_cache(maxsize=4096)(self._complete)

    def _complete(self, sql: str) -> str:
        import sqlglot

        try:
            tree = sqlglot.parse_one(sql, read="sqlite")
            if not isinstance(tree, sqlglot.exp.Query):
                return sql
            mended = mend(tree, self.tables, self.keys)
            selects = list(tree.find_all(sqlglot.exp.Select))
            # a list first: every select is completed, the innermost first
            changed = [mended, *(_Scope(self, select).complete() for select in reversed(selects))]
            return str(tree.sql("sqlite")) if any(changed) else sql
        except (sqlglot.errors.SqlglotError, RecursionError):
            return sql

    def path(self, starts: Sequence[str], ends: Sequence[str]) -> list[_Step] | None:
        """The cheapest way from one of the tables to one of the others; None when there is none."""
        order = count()
        heap: list[tuple[float, int, str, tuple[_Step, ...]]] = [(0.0, next(order), start, ()) for start in starts]
        seen: set[str] = set()
        while heap:
            price, _, here, steps = heapq.heappop(heap)
            if here in ends:
                return list(steps)
            if here in seen:
                continue
            seen.add(here)
            for step in self.steps.get(here, ()):
                if step.end not in seen:
                    cost = price + (DOWN if step.down else 1.0)
                    heapq.heappush(heap, (cost, next(order), step.end, (*steps, step)))
        return None


@dataclass
class _Scope:
    """One SELECT. `sources`: alias -> table (lower case); "" for a subquery or a table that is not known."""

    joiner: Joiner
    select: exp.Select
    sources: dict[str, str] = field(default_factory=dict)
    spelled: dict[str, str] = field(default_factory=dict)
    added: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sources, self.spelled = self._sources(self.select)

    def _sources(self, select: exp.Select) -> tuple[dict[str, str], dict[str, str]]:
        from sqlglot import exp

        start = select.args.get("from_") or select.args.get("from")
        nodes = [start.this] if start is not None else []
        nodes += [join.this for join in select.args.get("joins") or ()]
        found = {}
        for node in nodes:
            known = isinstance(node, exp.Table) and node.name.lower() in self.joiner.names
            found[node.alias_or_name.lower()] = node.name.lower() if known else ""
        return found, {node.alias_or_name.lower(): node.alias_or_name for node in nodes}

    def complete(self) -> bool:
        """Add what is missing; whether anything was."""
        from sqlglot import exp

        if not any(self.sources.values()):
            return False
        named = self.joiner.labels and self.select.parent is None and self._name_links()
        outside, conjuncts = self._parts()
        bound: list[tuple[exp.Column, str]] = []
        needed = [t for part in outside for t in self._needed(part, bound)]
        inside = [(part, self._needed(part, bound)) for part in conjuncts]
        for table in dict.fromkeys(needed):
            self._join(table)
        moved: dict[_Step, list[tuple[exp.Expr, list[str]]]] = {}
        kept: list[exp.Expr] = []
        for part, tables in inside:
            first = None
            for table in dict.fromkeys(tables):
                first = self._reach(table) or first
            (moved.setdefault(first, []).append((part, tables)) if first else kept.append(part))
        if self.added or moved:
            self._qualify(bound)
            self._name_stars()
        for step, parts in moved.items():
            kept.append(self._exists(step, parts))
        tied = self._tie() if isinstance(self.select.parent, exp.Exists) else None
        if tied is not None:
            kept.append(tied)
        if moved or tied is not None:
            self.select.set("where", exp.Where(this=exp.and_(*kept, copy=False)))
        return bool(named or self.added or moved or tied is not None)

    def _name_links(self) -> bool:
        """Selected links as the names of what they lead to."""
        from sqlglot import exp

        out: list[exp.Expr] = []
        for item in self.select.expressions:
            step, labels = self._label(item) if isinstance(item, exp.Column) else (None, ())
            if step is None or (step.end in self._tables() and step.end not in self.added):
                out.append(item)
                continue
            if step.end not in self.added:
                self._add(step)
            name = self.joiner.names[step.end]
            out += [exp.Column(this=_identifier(label), table=_identifier(name)) for label in labels]
        changed = out != self.select.expressions
        self.select.set("expressions", out)
        return changed

    def _label(self, column: exp.Column) -> tuple[_Step | None, Sequence[str]]:
        """The step that a selected link takes, and what names its end."""
        said, name = column.table.lower(), column.name.lower()
        real = [self.sources[said]] if said in self.sources else self._tables() if not said else []
        for table in real:
            labels = self.joiner.labels.get((table, name), ())
            for step in self.joiner.steps.get(table, ()) if labels else ():
                if not step.down and [own.lower() for own, _ in step.pairs] == [name]:
                    return step, labels
        return None, ()

    # What is named.

    def _parts(self) -> tuple[list[exp.Expr], list[exp.Expr]]:
        """Everything but WHERE, and the conditions of WHERE that are joined by AND."""
        from sqlglot import exp

        outside: list[exp.Expr] = []
        for name, value in self.select.args.items():
            if name not in ("where", "from", "from_", "with", "with_"):
                outside += [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, exp.Expr)]
        where = self.select.args.get("where")
        return outside, list(where.this.flatten()) if where is not None and isinstance(where.this, exp.And) else (
            [where.this] if where is not None else []
        )

    def _columns(self, node: exp.Expr) -> Iterator[exp.Column]:
        """Columns below a node that belong to this SELECT."""
        from sqlglot import exp

        if isinstance(node, exp.Query):
            return
        if isinstance(node, exp.Column):
            yield node
            return
        for child in node.iter_expressions():
            yield from self._columns(child)

    def _needed(self, part: exp.Expr, bound: list[tuple[exp.Column, str]]) -> list[str]:
        """Tables that columns of a part name and FROM does not; columns of FROM's tables are noted in `bound`."""
        out = []
        outer = self._outer()
        aliases = {item.alias.lower() for item in self.select.expressions if item.alias}
        for column in self._columns(part):
            table, name = column.table.lower(), column.name.lower()
            if table:
                if table not in self.sources and table not in outer and table in self.joiner.names:
                    out.append(table)
                continue
            holders = [alias for alias, real in self.sources.items() if name in self.joiner.columns.get(real, ())]
            if len(holders) == 1:
                bound.append((column, holders[0]))
            if holders or name in aliases or "" in self.sources.values() or name in ("*", "rowid"):
                continue
            if any(name in self.joiner.columns.get(real, ()) for real in outer.values()):
                continue
            if owner := self._owner(name):
                column.set("table", _identifier(self.joiner.names[owner]))
                out.append(owner)
        return out

    def _owner(self, column: str) -> str:
        """The nearest table that has the column, where one alone is nearest; else ""."""
        ranked = []
        for table, columns in self.joiner.columns.items():
            if column in columns and (steps := self.joiner.path(self._tables(), [table])) is not None:
                ranked.append((len(steps), table))
        ranked.sort()
        return ranked[0][1] if ranked and (len(ranked) == 1 or ranked[0][0] < ranked[1][0]) else ""

    def _outer(self) -> dict[str, str]:
        """Sources of the queries around this one."""
        from sqlglot import exp

        found: dict[str, str] = {}
        node = self.select.find_ancestor(exp.Select)
        while node is not None:
            found = self._sources(node)[0] | found
            node = node.find_ancestor(exp.Select)
        return found

    def _tables(self) -> list[str]:
        return [table for table in self.sources.values() if table]

    def _alias(self, table: str) -> str:
        """How a table of this SELECT is spoken of."""
        alias = next(alias for alias, real in self.sources.items() if real == table)
        return self.spelled.get(alias, self.joiner.names[table])

    # What is added.

    def _add(self, step: _Step) -> None:
        """Join the end of a step to the rows."""
        from sqlglot import exp

        name = self.joiner.names[step.end]
        on = exp.and_(*(_equal(self._alias(step.start), own, name, other) for own, other in step.pairs), copy=False)
        self.select.append("joins", exp.Join(this=exp.Table(this=_identifier(name)), on=on))
        self.sources[step.end] = step.end
        self.spelled[step.end] = name
        self.added.append(step.end)

    def _join(self, table: str) -> None:
        """Join every table on the way."""
        if table not in self._tables():
            for step in self.joiner.path(self._tables(), [table]) or ():
                self._add(step)

    def _reach(self, table: str) -> _Step | None:
        """Join tables upwards as far as the way goes up; the first step down, if there is one."""
        if table in self._tables():
            return None
        for step in self.joiner.path(self._tables(), [table]) or ():
            if step.down:
                return step
            self._add(step)
        return None

    def _exists(self, step: _Step, parts: Sequence[tuple[exp.Expr, list[str]]]) -> exp.Expr:
        """EXISTS over the table below, with the conditions that speak of it and what lies beyond."""
        from sqlglot import exp

        child = self.joiner.names[step.end]
        inner = exp.Select(expressions=[exp.Literal.number(1)])
        inner.set("from_", exp.From(this=exp.Table(this=_identifier(child))))
        scope = _Scope(self.joiner, inner, {step.end: step.end}, {step.end: child})
        scope.sources, scope.spelled = {step.end: step.end}, {step.end: child}
        for _, tables in parts:
            for table in tables:
                if table not in self._tables():
                    scope._join(table)
        ties = [_equal(child, other, self._alias(step.start), own) for own, other in step.pairs]
        inner.set("where", exp.Where(this=exp.and_(*(part for part, _ in parts), *ties, copy=False)))
        return exp.Exists(this=inner)

    def _tie(self) -> exp.Expr | None:
        """The condition that ties an EXISTS to the rows of the query around it, where nothing does yet."""
        from sqlglot import exp

        around = self.select.find_ancestor(exp.Select)
        if around is None:
            return None
        outer = _Scope(self.joiner, around)
        for column in self.select.find_all(exp.Column):
            if column.table and column.table.lower() in outer.sources and column.table.lower() not in self.sources:
                return None
        ends = [table for table in outer._tables() if table not in self._tables()][:1]
        steps = self.joiner.path(self._tables(), ends) if ends else None
        if not steps:
            return None
        for step in steps[:-1]:
            self._add(step)
        last = steps[-1]
        pairs = (_equal(self._alias(last.start), own, outer._alias(last.end), other) for own, other in last.pairs)
        return exp.and_(*pairs, copy=False)

    def _qualify(self, bound: Sequence[tuple[exp.Column, str]]) -> None:
        """Say whose columns the bare ones are: the tables that came may have columns of the same name."""
        for column, alias in bound:
            column.set("table", _identifier(self.spelled[alias]))

    def _name_stars(self) -> None:
        """`*` stays what it was: the columns of the tables that FROM named."""
        from sqlglot import exp

        own = [alias for alias in self.sources if alias not in self.added]
        out: list[exp.Expr] = []
        for item in self.select.expressions:
            if isinstance(item, exp.Star):
                out += [exp.Column(this=exp.Star(), table=_identifier(self.spelled[alias])) for alias in own]
            else:
                out.append(item)
        self.select.set("expressions", out)


def _equal(table: str, column: str, other_table: str, other: str) -> exp.Expr:
    from sqlglot import exp

    left = exp.Column(this=_identifier(column), table=_identifier(table))
    return exp.EQ(this=left, expression=exp.Column(this=_identifier(other), table=_identifier(other_table)))
