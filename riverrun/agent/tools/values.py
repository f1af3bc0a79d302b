"""Values in a query that a column has not got, read as the one value that they can stand for.

`Branch.name = 'North End'` where the branch is called 'North End Reading Room', `status = 'Cancelled'` where it is
written cancelled: SQLite compares letter by letter, and the answer would be "no rows". A value is replaced where one
alone of the column's values has the same words, or holds them one after another; one that stands in the column, or that
nothing or several things fit, is kept. The index is that of `mentions`, which leaves private columns out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from riverrun.agent.tools.mentions import Mentions
from riverrun.base.optional import require

if TYPE_CHECKING:
    from sqlglot import exp

__all__ = ["mend_values"]


def mend_values(sql: str, mentions: Mentions) -> str:
    """The query with such values replaced; as it was when there are none, or it cannot be parsed."""
    require("sqlglot", extra="agent")
    import sqlglot
    from sqlglot import exp

    if "'" not in sql:
        return sql
    try:
        tree = sqlglot.parse_one(sql, read="sqlite")
    except (sqlglot.errors.SqlglotError, RecursionError):
        return sql
    changed = False
    for literal in list(tree.find_all(exp.Literal)) if isinstance(tree, exp.Query) else ():
        if not literal.is_string:
            continue
        compared = _compared(literal)
        if compared is None:
            continue
        places = _places(compared, mentions)
        found = {value for place in places if (value := mentions.meant(*place, literal.this)) is not None}
        if len(found) == 1 and not any(mentions.has(*place, literal.this) for place in places):
            literal.replace(exp.Literal.string(found.pop()))
            changed = True
    return str(tree.sql("sqlite")) if changed else sql


def _compared(literal: exp.Literal) -> exp.Column | None:
    """The column that a text is compared with by = or IN."""
    from sqlglot import exp

    parent = literal.parent
    if isinstance(parent, exp.EQ):
        other = parent.expression if parent.this is literal else parent.this
        return other if isinstance(other, exp.Column) else None
    if isinstance(parent, exp.In) and isinstance(parent.this, exp.Column):
        return parent.this
    return None


def _places(column: exp.Column, mentions: Mentions) -> list[tuple[str, str]]:
    """(table, column) that a column of a query can be."""
    from sqlglot import exp

    tables: Mapping[str, str] = {}
    select = column.find_ancestor(exp.Select)
    while select is not None:
        own = {node.alias_or_name.lower(): node.name for node in select.find_all(exp.Table)}
        tables = {**own, **tables}
        select = select.find_ancestor(exp.Select)
    said = column.table.lower()
    names = [tables[said]] if said in tables else list(dict.fromkeys(tables.values())) if not said else []
    known = {table.lower(): table for table in mentions.columns}
    out: list[tuple[str, str]] = []
    for name in names:
        held = known.get(name.lower(), "")
        out += [(held, own) for own in mentions.columns.get(held, ()) if own.lower() == column.name.lower()]
    return out
