"""The system text: the spec's words and one line of tables, `Tables: books(id, title); orders(id, ordered)`.

Columns that may not be read are left out, so the model does not learn their names. Types and keys are left out too:
they cost tokens in every request.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from contextlib import closing
from pathlib import Path

from riverrun.base.errors import InputError

__all__ = ["schema_line", "system_text"]


def schema_line(database: Path, deny_columns: Collection[str] = ()) -> str:
    """`Tables: a(x, y); b(z)` in the order of creation. InputError when the file holds no table."""
    denied = {name.lower() for name in deny_columns}
    tables = []
    with closing(sqlite3.connect(database.resolve().as_uri() + "?mode=ro", uri=True)) as connection:
        query = "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite_%'"
        for (table,) in connection.execute(query).fetchall():
            columns = [row[0] for row in connection.execute("SELECT name FROM pragma_table_info(?)", (table,))]
            shown = [c for c in columns if not {c.lower(), f"{table}.{c}".lower()} & denied]
            if shown:
                tables.append(f"{table}({', '.join(shown)})")
    if not tables:
        raise InputError(f"{database} holds no table that may be read: check the database and database.deny_columns")
    return f"Tables: {'; '.join(tables)}"


def system_text(words: str, database: Path, deny_columns: Collection[str] = ()) -> str:
    """The spec's words with the schema line at `{schema}`, or at the end when they do not name any tables."""
    if "{schema}" in words:
        return words.replace("{schema}", schema_line(database, deny_columns))
    if "Tables:" in words:
        return words
    return f"{words.rstrip()}\n{schema_line(database, deny_columns)}"
