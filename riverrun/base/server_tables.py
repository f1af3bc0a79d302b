"""What a server's database holds, as the role may read it, and each column as an SQLite value.

`Field.sql` is the one home of the mapping: a snapshot copies it and a live query reads it, so both see the same values.
Whole numbers and flags (0/1) are integers, other numbers doubles, bytes stay bytes; everything else is text: dates as
ISO (times with a zone in UTC), enums, UUIDs, JSON and arrays as the server writes them. Text compares by its bytes, as
in SQLite, except in keys, where the server's index is worth more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from riverrun.base.errors import InputError
from riverrun.base.servers import ServerError, Session

__all__ = ["Field", "Reference", "ServerTable", "read_tables", "reader_grants", "rights", "select_fields"]

Kind = Literal["integer", "number", "text", "flag", "blob"]


@dataclass(frozen=True)
class Field:
    """A column. `sql` is the server's expression for its value."""

    name: str
    kind: Kind
    required: bool
    sql: str


@dataclass(frozen=True)
class Reference:
    """A foreign key to `parent`."""

    columns: tuple[str, ...]
    parent: str
    parent_columns: tuple[str, ...]


@dataclass
class ServerTable:
    """A table or view; `key` is its primary key, `path` its name in quotes with its schema."""

    name: str
    path: str
    view: bool
    fields: list[Field] = field(default_factory=list)
    key: tuple[str, ...] = ()
    references: list[Reference] = field(default_factory=list)


def select_fields(session: Session, fields: Sequence[Field], names: Sequence[str] | None = None) -> str:
    """The list after SELECT; the columns are named as they are, or by `names`."""
    quote = session.server.quote
    return ", ".join(
        f"{f.sql} AS {quote(name)}" for f, name in zip(fields, names or [f.name for f in fields], strict=True)
    )


def read_tables(session: Session) -> tuple[list[ServerTable], list[str]]:
    """Tables, then views, each by name; and a note on everything left out. InputError when nothing can be read."""
    try:
        described = _postgres(session) if session.server.dialect == "postgres" else _mysql(session)
    except ServerError as error:
        raise InputError(f"{session.server.url}: the tables cannot be listed ({error})") from None
    columns, keys, references, notes = described
    tables: dict[str, ServerTable] = {}
    for table, view, column, required, kind, sql in columns:
        entry = tables.setdefault(table, ServerTable(table, _path(session, table), view))
        if any(known.name.lower() == column.lower() for known in entry.fields):
            notes.append(f"{table}.{column}: another column has this name in other case; left out")
        else:
            entry.fields.append(Field(column, kind, required and not view, sql))
    for name in sorted(tables):
        twin = next((other for other in sorted(tables) if other < name and other.lower() == name.lower()), "")
        if twin or name.lower().startswith("sqlite_"):
            notes.append(
                f"{name}: {f'{twin} has this name in other case' if twin else 'a name SQLite keeps'}; left out"
            )
            del tables[name]
    for table, names in keys.items():
        if table in tables and set(names) <= {f.name for f in tables[table].fields}:
            tables[table].key = tuple(names)
    for table, reference in references:
        there = table in tables and reference.parent in tables
        if there and set(reference.columns) <= {f.name for f in tables[table].fields}:
            tables[table].references.append(reference)
    if not tables:
        where = f"schema '{session.server.schema}'" if session.server.schema else f"'{session.server.database}'"
        raise InputError(f"{session.server.url}: {where} holds no table that {session.server.user} may read: "
                         f"give another database or schema, or GRANT SELECT")  # fmt: skip
    return sorted(tables.values(), key=lambda table: (table.view, table.name)), notes


def _path(session: Session, table: str) -> str:
    server = session.server
    return f"{server.quote(server.schema or server.database)}.{server.quote(table)}"


Described = tuple[
    list[tuple[str, bool, str, bool, Kind, str]], dict[str, list[str]], list[tuple[str, Reference]], list[str]
]

_PG_COLUMNS = """
WITH RECURSIVE plain AS (
  SELECT oid AS type, oid AS base FROM pg_type WHERE typtype != 'd'
  UNION ALL SELECT t.oid, p.base FROM pg_type t JOIN plain p ON t.typtype = 'd' AND t.typbasetype = p.type)
SELECT c.relname::text, c.relkind IN ('v', 'm'), a.attname::text, b.typname::text, a.attnotnull, a.atttypmod,
  EXISTS (SELECT 1 FROM pg_constraint k
    WHERE k.conrelid = c.oid AND k.contype IN ('p', 'f') AND a.attnum = ANY (k.conkey)),
  has_column_privilege(c.oid, a.attnum, 'SELECT'), b.typcategory::text
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
JOIN plain p ON p.type = a.atttypid JOIN pg_type b ON b.oid = p.base
WHERE c.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = {schema})
  AND c.relkind IN ('r', 'p', 'v', 'm', 'f') AND NOT c.relispartition AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY c.relname, a.attnum
"""
_PG_KEYS = """
SELECT c.relname::text, k.contype::text, f.relname::text, n.nspname::text,
  ARRAY(SELECT a.attname::text FROM unnest(k.conkey) WITH ORDINALITY u(n, o) JOIN pg_attribute a
        ON a.attrelid = k.conrelid AND a.attnum = u.n ORDER BY u.o),
  ARRAY(SELECT a.attname::text FROM unnest(k.confkey) WITH ORDINALITY u(n, o) JOIN pg_attribute a
        ON a.attrelid = k.confrelid AND a.attnum = u.n ORDER BY u.o)
FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid
LEFT JOIN pg_class f ON f.oid = k.confrelid LEFT JOIN pg_namespace n ON n.oid = f.relnamespace
WHERE k.contype IN ('p', 'f') AND c.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = {schema})
ORDER BY c.relname, k.conname
"""


def _postgres(session: Session) -> Described:
    server = session.server
    schema = server.literal(server.schema)
    known = [row[0] for row in session.rows("SELECT nspname::text FROM pg_namespace WHERE nspname !~ '^pg_'")]
    if server.schema not in known:
        raise InputError(f"{server.url}: no schema '{server.schema}': there are {', '.join(sorted(known))}")
    notes: list[str] = []
    columns: list[tuple[str, bool, str, bool, Kind, str]] = []
    for table, view, name, kind, required, modifier, key, readable, category in session.rows(
        _PG_COLUMNS.format(schema=schema)
    ):
        if readable:
            columns.append((table, view, name, required, *_pg_value(server.quote(name), kind, modifier, category, key)))
        else:
            notes.append(f"{table}.{name}: {server.user} may not read it; left out")
    keys: dict[str, list[str]] = {}
    references = []
    for table, kind, parent, parent_schema, own, other in session.rows(_PG_KEYS.format(schema=schema)):
        if kind == "p":
            keys[table] = own
        elif parent_schema == server.schema:
            references.append((table, Reference(tuple(own), parent, tuple(other))))
    return columns, keys, references, notes


def _pg_value(name: str, kind: str, modifier: int, category: str, key: bool) -> tuple[Kind, str]:
    """Kind and expression of a column of PostgreSQL type `kind` (as pg_type names it)."""
    if kind in ("int2", "int4", "int8"):
        return "integer", name
    if kind == "oid":
        return "integer", f"CAST({name} AS BIGINT)"
    if kind == "numeric" and modifier >= 4 and (modifier - 4) & 0xFFFF == 0 and (modifier - 4) >> 16 <= 18:
        return "integer", f"CAST({name} AS BIGINT)"
    if kind == "money":
        return "number", f"CAST(CAST({name} AS NUMERIC) AS DOUBLE PRECISION)"
    if kind == "float8":
        return "number", name
    if category == "N":
        return "number", f"CAST({name} AS DOUBLE PRECISION)"
    if kind == "bool":
        return "flag", f"CAST({name} AS INT)"
    if kind == "bytea":
        return "blob", name
    if kind == "timestamptz":
        name = f"({name} AT TIME ZONE 'UTC')"
    plain = kind in ("text", "varchar")
    return "text", name if plain and key else f'{name if plain else f"CAST({name} AS TEXT)"} COLLATE "C"'


def _mysql(session: Session) -> Described:
    server = session.server
    here = server.literal(server.database)
    keys: dict[str, list[str]] = {}
    grouped: dict[tuple[str, str, str], list[tuple[str, str]]] = {}
    linked: set[tuple[str, str]] = set()
    for table, constraint, name, schema, parent, other in session.rows(
        "SELECT TABLE_NAME, CONSTRAINT_NAME, COLUMN_NAME, REFERENCED_TABLE_SCHEMA, REFERENCED_TABLE_NAME, "
        f"REFERENCED_COLUMN_NAME FROM information_schema.KEY_COLUMN_USAGE WHERE TABLE_SCHEMA = {here} "
        "ORDER BY TABLE_NAME, CONSTRAINT_NAME, ORDINAL_POSITION"
    ):
        if constraint == "PRIMARY":
            keys.setdefault(table, []).append(name)
        elif schema == server.database:
            grouped.setdefault((table, constraint, parent), []).append((name, other))
        if constraint == "PRIMARY" or parent:
            linked.add((table, name))
    references = [
        (table, Reference(tuple(own for own, _ in pairs), parent, tuple(other for _, other in pairs)))
        for (table, _, parent), pairs in grouped.items()
    ]
    columns = [
        (table, is_a != "BASE TABLE", name, null == "NO",
         *_mysql_value(server.quote(name), kind, scale, (table, name) in linked))
        for table, is_a, name, kind, scale, null in session.rows(
            "SELECT c.TABLE_NAME, t.TABLE_TYPE, c.COLUMN_NAME, c.DATA_TYPE, "
            "c.NUMERIC_SCALE, c.IS_NULLABLE FROM information_schema.COLUMNS c "
            "JOIN information_schema.TABLES t ON t.TABLE_SCHEMA = c.TABLE_SCHEMA AND t.TABLE_NAME = c.TABLE_NAME "
            f"WHERE c.TABLE_SCHEMA = {here} ORDER BY c.TABLE_NAME, c.ORDINAL_POSITION"
        )
    ]  # fmt: skip
    return columns, keys, references, []


def _mysql_value(name: str, kind: str, scale: Any, key: bool) -> tuple[Kind, str]:
    """Kind and expression of a column of MySQL type `kind` (as information_schema names it)."""
    kind = kind.lower()
    if kind.endswith("int") or kind in ("year", "bit"):
        return "integer", f"({name} + 0)" if kind in ("bit", "year") else name
    if kind == "decimal" and scale == 0:
        return "integer", f"CAST({name} AS SIGNED)"
    if kind in ("decimal", "float", "double"):
        return "number", f"({name} + 0e0)"
    if kind.endswith(("blob", "binary")):
        return "blob", name
    if kind in ("geometry", "point", "linestring", "polygon", "vector") or kind.startswith(("multi", "geom")):
        return "blob", f"CAST({name} AS BINARY)"
    text = kind.endswith(("char", "text"))
    if text and key:
        return "text", name
    return "text", f"CAST({name} AS CHAR CHARACTER SET utf8mb4) COLLATE utf8mb4_bin"


_PG_RIGHTS = """
SELECT r.rolsuper, has_schema_privilege({schema}, 'CREATE'),
  ARRAY(SELECT c.relname::text FROM pg_class c WHERE c.relkind IN ('r', 'p', 'v', 'f')
    AND c.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = {schema})
    AND has_table_privilege(c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE') ORDER BY 1)
FROM pg_roles r WHERE r.rolname = current_user
"""
_WRITES = ("ALL PRIVILEGES", "INSERT", "UPDATE", "DELETE", "CREATE", "DROP", "ALTER", "FILE", "SUPER")


def rights(session: Session) -> str:
    """What the role could change, in a few words; "" for a role that can only read."""
    server = session.server
    if server.dialect == "postgres":
        superuser, create, tables = session.rows(_PG_RIGHTS.format(schema=server.literal(server.schema)))[0]
        if superuser:
            return "is a superuser"
        more = f" and {len(tables) - 3} more" if len(tables) > 3 else ""
        parts = [f"may change {', '.join(tables[:3])}{more}"] if tables else []
        return " and ".join(parts + ([f"may create tables in {server.schema}"] if create else []))
    granted = " ; ".join(str(row[0]).partition(" ON ")[0].upper() for row in session.rows("SHOW GRANTS"))
    found = [word for word in _WRITES if word in granted.replace("CREATE VIEW", "")]
    return f"holds {', '.join(found)}" if found else ""


def reader_grants(session: Session) -> list[str]:
    """Statements that make a role which can only read this database."""
    server, quote = session.server, session.server.quote
    if server.dialect == "mysql":
        return [
            "CREATE USER riverrun_reader IDENTIFIED BY '...';",
            f"GRANT SELECT, SHOW VIEW ON {quote(server.database)}.* TO riverrun_reader;",
        ]
    return [
        "CREATE ROLE riverrun_reader LOGIN PASSWORD '...';",
        f"GRANT CONNECT ON DATABASE {quote(server.database)} TO riverrun_reader;",
        f"GRANT USAGE ON SCHEMA {quote(server.schema)} TO riverrun_reader;",
        f"GRANT SELECT ON ALL TABLES IN SCHEMA {quote(server.schema)} TO riverrun_reader;",
    ]
