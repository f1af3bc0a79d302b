"""A server's database copied into an SQLite file, as it stood at one moment.

Everything else reads that file: the schema, the questions made of it, the queries while a model learns and is tested.
Names, primary and foreign keys and NOT NULL are kept; values are those of `riverrun.base.server_tables`. A view becomes
a table, because its definition is in the server's SQL.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from riverrun.base.errors import InputError
from riverrun.base.server_tables import Field, ServerTable, read_tables, reader_grants, rights, select_fields
from riverrun.base.servers import Server, ServerError, Session

__all__ = ["Snapshot", "snapshot"]

BATCH = 1000
SECONDS = 600.0
"""Time for one statement, so for the copy of one table."""
_TYPES = {"integer": "INTEGER", "number": "REAL", "text": "TEXT", "flag": "BOOLEAN", "blob": "BLOB"}


@dataclass(frozen=True)
class Snapshot:
    """What was copied: rows by table, a note on everything left out or cut, and what the role could have changed."""

    rows: dict[str, int]
    notes: tuple[str, ...]
    rights: str = ""
    grants: tuple[str, ...] = ()


def snapshot(server: Server, out: Path, *, rows_per_table: int, seconds: float = SECONDS) -> Snapshot:
    """Copy the tables and views that the role may read into `out`, all as of one moment; written whole or not at all.

    Of a longer table the first `rows_per_table` rows by key are taken. Memory: BATCH rows. InputError when the server
    cannot be read.
    """
    half = out.with_name(f".{out.name}.{os.getpid()}")
    half.unlink(missing_ok=True)
    try:
        with server.session(seconds) as session, closing(sqlite3.connect(half)) as target:
            tables, notes = read_tables(session)
            rows = {}
            for table in tables:
                count = _copy(session, table, target, rows_per_table, notes)
                if count is not None:
                    rows[table.name] = count
            target.commit()
            done = Snapshot(rows, tuple(notes), rights(session), tuple(reader_grants(session)))
        if not rows:
            raise InputError(f"{server.url}: no table could be copied: {notes[0]}")
        half.replace(out)
        return done
    except (ServerError, sqlite3.Error) as error:
        raise InputError(f"{server.url}: the copy stopped ({error})") from None
    finally:
        half.unlink(missing_ok=True)


def _copy(
    session: Session, table: ServerTable, target: sqlite3.Connection, limit: int,
    notes: list[str],
) -> int | None:  # fmt: skip
    """Rows copied, or None for a table that cannot be read: the note says why, and the others are still copied."""
    postgres = session.server.dialect == "postgres"
    key = ", ".join(session.server.quote(name) for name in table.key)
    order = f" ORDER BY {key}" if key else ""
    sql = f"SELECT {select_fields(session, table.fields)} FROM {table.path}{order} LIMIT {limit + 1}"
    target.execute(f"CREATE TABLE {_declare(table)}")
    places = ", ".join("?" * len(table.fields))
    count = 0
    if postgres:
        session.run("SAVEPOINT one_table")  # an error would end the whole transaction
    try:
        for batch in session.stream(sql, BATCH):
            kept = batch[: limit - count]
            values = ([_value(f, v) for f, v in zip(table.fields, row, strict=True)] for row in kept)
            target.executemany(f"INSERT INTO {_name(table.name)} VALUES ({places})", values)
            count += len(kept)
            if len(kept) < len(batch):
                notes.append(f"{table.name}: only the first {limit} rows are copied (rows_per_table)")
                break
    except ServerError as error:
        notes.append(f"{table.name}: cannot be read ({error}); left out")
        target.execute(f"DROP TABLE {_name(table.name)}")
        if postgres:
            session.run("ROLLBACK TO SAVEPOINT one_table")
        return None
    return count


def _declare(table: ServerTable) -> str:
    """Name, columns and keys as SQLite's CREATE TABLE takes them."""
    parts = [f"{_name(f.name)} {_TYPES[f.kind]}{' NOT NULL' if f.required else ''}" for f in table.fields]
    if table.key:
        parts.append(f"PRIMARY KEY ({_names(table.key)})")
    for link in table.references:
        parts.append(
            f"FOREIGN KEY ({_names(link.columns)}) REFERENCES {_name(link.parent)} ({_names(link.parent_columns)})"
        )
    return f"{_name(table.name)} ({', '.join(parts)})"


def _name(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _names(names: Sequence[str]) -> str:
    return ", ".join(map(_name, names))


def _value(field: Field, value: Any) -> Any:
    """A driver's value as SQLite stores it."""
    if value is None or isinstance(value, float | str):
        return value
    if isinstance(value, Decimal):
        value = int(value) if field.kind in ("integer", "flag") else float(value)
    if isinstance(value, int):  # SQLite's integers have 64 bits
        return value if -(2**63) <= value < 2**63 else float(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value) if field.kind == "blob" else bytes(value).decode("utf-8", "replace")
    return str(value)
