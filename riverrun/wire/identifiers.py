"""Names in a query that the database has not got, read as the nearest ones that it has.

A small model writes `insured` for is_insured, `amount` for total_amount, `owners.owner_id` where the key is called id.
Such a query can only fail, so nothing that runs is changed: a name is replaced where exactly one known name is nearest
(its words hold the written words or are held by them; else a few letters apart), and kept where there is doubt.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import lru_cache
from typing import TYPE_CHECKING

from riverrun.base.sql import quote_name
from riverrun.base.words import stem

if TYPE_CHECKING:
    from sqlglot import exp

__all__ = ["identifier", "mend", "nearest_name"]

CLOSE = 0.78
"""Least likeness of letters (difflib) for a name that shares no whole word."""
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+|[^\W\d_a-zA-Z]+")
_KEY = re.compile(r"(?:^|_|[a-z])(id|no|nr|key|number|code|编号)$", re.IGNORECASE)


def identifier(name: str) -> exp.Identifier:
    """A name as a node, in quotes where SQLite asks for them."""
    from sqlglot import exp

    return exp.Identifier(this=name, quoted=quote_name(name) != name)


@lru_cache(maxsize=4096)  # bounded: the names come from a model
def _words(name: str) -> frozenset[str]:
    return frozenset(stem(piece.lower()) for piece in _WORD.findall(name))


def nearest_name(name: str, known: Iterable[str]) -> str:
    """The one known name that a name can stand for; "" when there is none or more than one."""
    known = sorted(known)
    wanted = _words(name)
    if wanted:
        apart: dict[int, list[str]] = {}
        for other in known:
            words = _words(other)
            if words and (wanted <= words or words <= wanted):
                apart.setdefault(len(wanted ^ words), []).append(other)
        if apart:
            best = apart[min(apart)]
            return best[0] if len(best) == 1 else ""
    lower = {other.lower(): other for other in known}
    close = get_close_matches(name.lower(), lower, n=2, cutoff=CLOSE)
    return lower[close[0]] if len(close) == 1 else ""


def mend(tree: exp.Expr, tables: Mapping[str, Sequence[str]], keys: Mapping[str, Sequence[str]]) -> bool:
    """Replace what is not known in the tree; whether anything was. tables: name -> columns; keys: name -> its key."""
    from sqlglot import exp

    names = {name.lower(): name for name in tables}
    own = {cte.alias_or_name.lower() for cte in tree.find_all(exp.CTE)}
    changed = False
    for table in list(tree.find_all(exp.Table)):
        if (
            table.name.lower() not in names
            and table.name.lower() not in own
            and (near := nearest_name(table.name, tables))
        ):
            if not table.alias:
                _rename(tree, table.name, near)
            table.set("this", identifier(near))
            changed = True
    for column in list(tree.find_all(exp.Column)):
        changed = _mend_column(column, names, tables, keys, own) or changed
    return changed


def _rename(tree: exp.Expr, old: str, new: str) -> None:
    """Columns that spoke of a table under its wrong name."""
    from sqlglot import exp

    for column in tree.find_all(exp.Column):
        if column.table.lower() == old.lower():
            column.set("table", identifier(new))


def _mend_column(
    column: exp.Column,
    names: Mapping[str, str],
    tables: Mapping[str, Sequence[str]],
    keys: Mapping[str, Sequence[str]],
    own: Collection[str],
) -> bool:
    from sqlglot import exp

    if isinstance(column.this, exp.Star) or column.this.args.get("quoted"):  # what is quoted and unknown is a text
        return False
    sources, derived, aliases = _around(column, names, own)
    said, changed = column.table.lower(), False
    if said and said not in sources and said not in derived and said not in names:
        near = nearest_name(column.table, tables)
        if not near:
            return False
        column.set("table", identifier(near))
        said, changed = near.lower(), True
    if derived or (not said and column.name.lower() in aliases):
        return changed
    real = [sources.get(said, said)] if said else list(dict.fromkeys(sources.values()))
    lists = {name: tables[names[name]] for name in real if name in names}
    wanted = column.name.lower()
    if not lists or wanted == "rowid" or any(wanted == known.lower() for known in _flat(lists)):
        return changed
    if said and _KEY.search(column.name) and len(keys.get(said, ())) == 1 and column.find_ancestor(exp.Group):
        column.set("this", identifier(keys[said][0]))
        return True
    everywhere = [name for name, columns in tables.items() if any(wanted == known.lower() for known in columns)]
    if everywhere and not said:
        return changed  # of a table that is not named: the joins' affair
    if near := nearest_name(column.name, set(_flat(lists))):
        column.set("this", identifier(near))
        return True
    if said and len(everywhere) == 1:
        column.set("table", identifier(everywhere[0]))
        return True
    owners = [(name, found) for name, columns in tables.items() if (found := nearest_name(column.name, columns))]
    if not said and len(owners) == 1:
        column.set("table", identifier(owners[0][0]))
        column.set("this", identifier(owners[0][1]))
        return True
    return changed


def _flat(lists: Mapping[str, Sequence[str]]) -> list[str]:
    return [column for columns in lists.values() for column in columns]


def _around(
    column: exp.Column, names: Mapping[str, str], own: Collection[str]
) -> tuple[dict[str, str], set[str], set[str]]:
    """Of the queries around a column: alias -> table, the names of subqueries, and what SELECT calls its values."""
    from sqlglot import exp

    sources: dict[str, str] = {}
    derived: set[str] = set()
    aliases: set[str] = set()
    select = column.find_ancestor(exp.Select)
    while select is not None:
        start = select.args.get("from_") or select.args.get("from")
        nodes = [start.this] if start is not None else []
        nodes += [join.this for join in select.args.get("joins") or ()]
        for node in nodes:
            if isinstance(node, exp.Table) and node.name.lower() in names:
                sources.setdefault(node.alias_or_name.lower(), node.name.lower())
            elif isinstance(node, exp.Table) and node.name.lower() not in own:
                continue  # a table that nobody knows: the query fails, as it should
            else:
                derived.add(node.alias_or_name.lower())
        aliases |= {item.alias.lower() for item in select.expressions if item.alias}
        select = select.find_ancestor(exp.Select)
    return sources, derived, aliases
