"""A business database as a tool: one read-only SELECT at a time, bounded in time, rows and memory.

Layers: the file is opened with mode=ro and query_only; an authorizer allows SELECT on the database's own tables and a
list of functions, nothing else; private columns are refused by name; a progress handler and the authorizer stop what
runs or compiles too long; values are limited in length. Errors are written for the model: SQLite's message and the
nearest names. Not covered: what a generated column or a full-text index copies out of a private column (deny it, too),
and questions whose answer tells about few persons (there is no guard against statistics).
"""

from __future__ import annotations

import math
import re
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from riverrun.agent.tool import Arguments, Effects, clip, failure
from riverrun.agent.tools.sql_rules import PATTERN_CHARACTERS, Authorizer, install_functions, joined_columns
from riverrun.base.errors import InputError, ToolError, nearest
from riverrun.base.sql import VALUE_BYTES, quote_name, read_only_uri
from riverrun.base.types import ToolResult, ToolSpec

__all__ = ["SQL_CHARACTERS", "DatabaseTool", "plain_value"]

SQL_CHARACTERS = 10_000
COLUMNS = 100
CELL_CHARACTERS = 2_000  # longest value kept in `data`; the content shows less


class DatabaseTool:
    """`run({"sql": ...})`: content is a header line and rows "a | b"; a single value is "price: 12.5".

    path: an SQLite file, else InputError. deny_columns: "email" or "customers.email". show: the tables and columns that
    `schema_text` names (all, when empty), hide: those it leaves out; they can be queried. seconds: wall time of one
    query, waiting for locks included. characters: longest content. rewrite: what is done to a query before it runs
    (missing joins completed, say). data = {"columns", "rows", "more", "sql"}, sql as it was run.
    Thread-safe: each query has its own connection.
    """

    effects: Effects = "read"

    def __init__(
        self,
        path: Path | str,
        *,
        deny_columns: Sequence[str] = (),
        show: Mapping[str, Sequence[str]] | None = None,
        hide: Mapping[str, Sequence[str]] | None = None,
        row_limit: int = 20,
        seconds: float = 2.0,
        characters: int = 1500,
        rewrite: Callable[[str], str] | None = None,
        name: str = "query_database",
        description: str = "Run one read-only SQL SELECT on the database.",
    ) -> None:
        if row_limit < 1 or seconds <= 0 or characters < 50:
            raise InputError(
                f"a database tool needs row_limit >= 1, seconds > 0 and characters >= 50, "
                f"got {row_limit}, {seconds} and {characters}"
            )
        self.path, self.row_limit, self.seconds, self.characters = Path(path), row_limit, seconds, characters
        self.rewrite = rewrite or (lambda sql: sql)
        self.tables = self._read_tables()
        self._denied = _denied(deny_columns, self.tables, self.path)
        self._shown = _shown(show or {}, self.tables, self.path)
        self._hidden = {(table, column) for table, columns in (hide or {}).items() for column in columns}
        self._arguments = Arguments(_signature)
        self._arguments.tool = name
        self.spec = ToolSpec(name, description, self._arguments.schema)

    def _read_tables(self) -> dict[str, list[str]]:
        tables, self._virtual = _read_schema(self.path)
        return tables

    def schema_text(self) -> str:
        """One line a table, "books(id, title, price)", as a query must write the names; private columns left out."""
        lines = []
        for table, columns in self._shown.items():
            kept = [column for column in columns if (table, column) not in self._hidden]
            seen = [quote_name(column) for column in kept if (table.lower(), column.lower()) not in self._denied]
            if kept:
                lines.append(f"{quote_name(table)}({', '.join(seen)})")
        return "\n".join(lines)

    def run(self, arguments: Mapping[str, Any]) -> ToolResult:
        name = self.spec.name
        try:
            sql = self._arguments.check(arguments)["sql"]
            if len(sql) <= SQL_CHARACTERS:
                sql = self.rewrite(sql)
            columns, rows, more = self._query(sql)
        except ToolError as error:
            return failure(name, str(error))
        data = {"columns": columns, "rows": rows, "more": more, "sql": sql}
        return ToolResult("", name, self._content(columns, rows, more), data=data)

    def _query(self, sql: str) -> tuple[list[str], list[list[Any]], bool]:
        if len(sql) > SQL_CHARACTERS:
            raise ToolError(f"the query has {len(sql)} characters, at most {SQL_CHARACTERS} are allowed")
        if self._denied and (reason := joined_columns(sql, [column for _, column in self._denied])):
            raise ToolError(reason)
        deadline = time.monotonic() + self.seconds
        authorizer = Authorizer(self.tables, self._denied, deadline)
        late = False

        def too_late() -> bool:
            nonlocal late
            late = late or time.monotonic() > deadline
            return late

        try:
            connection = _open(self.path, self.seconds)
        except (sqlite3.Error, OSError) as error:
            raise ToolError(f"the database cannot be opened: {error}") from None
        try:
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, VALUE_BYTES)
            connection.setlimit(sqlite3.SQLITE_LIMIT_COLUMN, COLUMNS)
            connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
            install_functions(connection)
            connection.set_progress_handler(too_late, 100)
            for table in self._virtual:  # declares its columns at first use, which the authorizer would see as a write
                with suppress(sqlite3.Error):
                    connection.execute(f"SELECT 1 FROM {quote_name(table)} LIMIT 0")
            connection.set_authorizer(authorizer)
            return self._fetch(connection, sql)
        except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError, MemoryError) as error:
            raise ToolError(self._explain(error, authorizer, late, sql)) from None
        finally:
            connection.set_authorizer(None)
            connection.close()

    def _fetch(self, connection: sqlite3.Connection, sql: str) -> tuple[list[str], list[list[Any]], bool]:
        cursor = connection.execute(sql)
        if cursor.description is None:
            raise ToolError("there is no SELECT in the query: write one SELECT")
        columns = [clip(str(item[0]), 100) for item in cursor.description]
        rows: list[list[Any]] = []
        while (row := cursor.fetchone()) is not None:
            if len(rows) == self.row_limit:
                return columns, rows, True
            rows.append([plain_value(value) for value in row])
        return columns, rows, False

    def _explain(self, error: BaseException, authorizer: Authorizer, late: bool, sql: str) -> str:
        text = str(error).strip()
        if late or authorizer.timed_out or "interrupted" in text:
            return f"the query ran longer than {self.seconds:g} s and was stopped: join tables on their keys, read less"
        if authorizer.refusal:
            return authorizer.refusal
        if "one statement at a time" in text:
            return "only one statement is allowed: write one SELECT"
        if "too big" in text:
            return f"a value is longer than {VALUE_BYTES} bytes: select less"
        if "user-defined function" in text:
            return f"a LIKE pattern is longer than {PATTERN_CHARACTERS} characters"
        if "number of bindings" in text:
            return "the query has a placeholder: write the value itself into the SQL"
        if isinstance(error, UnicodeError | MemoryError):
            return "the query cannot be read as text" if isinstance(error, UnicodeError) else "the query needs too much"
        return clip(text, 200) + self._hint(text)

    def _hint(self, text: str) -> str:
        """The nearest table or column names for SQLite's "no such ..."."""
        if match := re.match(r"no such table: (?:\w+\.)?(.+)", text):
            return f".{nearest(match[1], self.tables)}"
        match = re.match(r"no such column: (?:.*\.)?(.+)", text) or re.match(r"ambiguous column name: (.+)", text)
        if not match:
            return ""
        owners: dict[str, list[str]] = {}
        for table, columns in self.tables.items():
            for column in columns:
                if (table.lower(), column.lower()) not in self._denied:
                    owners.setdefault(column.lower(), []).append(f"{table}.{column}")
        name = match[1].strip("\"'`[] ").lower()
        if name in owners:
            return f": it is {' or '.join(owners[name])}"
        return "." + re.sub(r"'([^']*)'", lambda found: " or ".join(owners[found[1]]), nearest(name, owners))

    def _content(self, columns: list[str], rows: list[list[Any]], more: bool) -> str:
        if not rows:
            return "(no rows)"
        if len(rows) == len(columns) == 1 and not more:
            return clip(f"{columns[0]}: {_show(rows[0][0])}", self.characters)
        note = "(… more rows)"
        lines = [clip(" | ".join(columns), self.characters // 2)]
        room = self.characters - len(lines[0]) - len(note) - 1
        for row in rows:
            line = " | ".join(_show(value) for value in row)
            if len(line) + 1 > room:
                more = True
                if len(lines) == 1:
                    lines.append(clip(line, max(1, room - 1)))
                break
            lines.append(line)
            room -= len(line) + 1
        return "\n".join([*lines, note] if more else lines)


def _signature(sql: str) -> None:
    """The arguments of the tool."""


def plain_value(value: Any) -> Any:
    """A value as JSON can hold it."""
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return clip(value, CELL_CHARACTERS) if isinstance(value, str) else value


def _show(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, float):
        return f"{value:.10g}"
    return clip(" ".join(str(value).split()), 300)


def _open(path: Path, seconds: float) -> sqlite3.Connection:
    connection = sqlite3.connect(
        read_only_uri(path), uri=True, timeout=seconds, isolation_level=None, check_same_thread=False
    )
    connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
    for setting in ("query_only=ON", "trusted_schema=OFF", "cell_size_check=ON", "cache_size=-4000", "temp_store=FILE"):
        connection.execute(f"PRAGMA {setting}")
    return connection


def _read_schema(path: Path) -> tuple[dict[str, list[str]], list[str]]:
    """Tables and views with their columns, in the order they were made, and which of them are virtual."""
    if not path.is_file():
        raise InputError(f"{path} is not a file: give the path of an SQLite database")
    try:
        with path.open("rb") as handle:
            header = handle.read(16)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    if header != b"SQLite format 3\x00":
        found = "it is empty" if not header else f"it begins with {header[:8]!r}"
        raise InputError(f"{path} is not an SQLite database ({found}): give an SQLite 3 file")
    try:
        connection = _open(path, 2.0)
        try:
            query = (
                "SELECT name, type = 'table' AND rootpage = 0 FROM sqlite_master "
                "WHERE type IN ('table', 'view') AND substr(name, 1, 7) != 'sqlite_'"
            )
            names = connection.execute(query).fetchall()
            described = {name: _columns(connection, name) for name, _ in names}
            tables = {name: columns for name, columns in described.items() if columns}
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise InputError(f"{path} is not a readable SQLite database ({error}): check or rebuild the file") from None
    if not tables:
        raise InputError(f"{path} holds no tables: give a database with data")
    return tables, [name for name, virtual in names if virtual and name in tables]


def _columns(connection: sqlite3.Connection, table: str) -> list[str]:
    """The columns of a table or view, generated ones too; none for a view that leads nowhere or back to itself."""
    query = "SELECT name FROM pragma_table_xinfo(?) WHERE hidden != 1"  # 1: hidden columns of virtual tables
    try:
        return [row[0] for row in connection.execute(query, (table,))]
    except sqlite3.OperationalError as error:
        if "no such" in str(error) or "circularly" in str(error):
            return []
        raise


def _shown(
    show: Mapping[str, Sequence[str]], tables: Mapping[str, Sequence[str]], path: Path
) -> Mapping[str, Sequence[str]]:
    """The tables and columns to name, as the database spells them; InputError for one that is not there."""
    out: dict[str, Sequence[str]] = {}
    for table, columns in show.items():
        if table not in tables:
            raise InputError(f"show: {path.name} has no table '{table}'.{nearest(table, tables)}")
        for column in columns:
            if column not in tables[table]:
                raise InputError(
                    f"show: table {table} of {path.name} has no column '{column}'.{nearest(column, tables[table])}"
                )
        out[table] = columns or tables[table]
    return out or tables


def _denied(names: Sequence[str], tables: Mapping[str, Sequence[str]], path: Path) -> frozenset[tuple[str, str]]:
    """(table, column) pairs in lower case; InputError for a name that fits no column: a typo would protect nothing."""
    out = set()
    for name in names:
        wanted_table, _, wanted = name.lower().rpartition(".")
        found = {
            (table.lower(), column.lower())
            for table, columns in tables.items()
            for column in columns
            if column.lower() == wanted and wanted_table in ("", table.lower())
        }
        if not found:
            known = [f"{table}.{column}" for table, columns in tables.items() for column in columns]
            raise InputError(f"deny_columns: {path.name} has no column '{name}'.{nearest(name, known)}")
        out |= found
    return frozenset(out)
