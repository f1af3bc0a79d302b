"""A live PostgreSQL or MySQL database as the tool that a model learned on the snapshot: same SQL, same form of answer.

Layers: the query is understood, checked and rewritten (`sql_dialect`); the session is read-only with only the server's
own functions in reach; the server stops a statement after `seconds`; at most one row more than the limit is fetched.
Give the server a role that can only read, too: `riverrun init` says how.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from riverrun.agent.tool import clip
from riverrun.agent.tools.sql import SQL_CHARACTERS, DatabaseTool, plain_value
from riverrun.agent.tools.sql_dialect import Translator
from riverrun.base.errors import InputError, ToolError
from riverrun.base.server_tables import read_tables
from riverrun.base.servers import Server, ServerError

__all__ = ["ServerTool"]


class ServerTool(DatabaseTool):
    """As DatabaseTool, over a server. rewrite: what is done to a query first.

    MissingDependency without driver or sqlglot, InputError when the server cannot be read. Thread-safe: each query has
    its own connection.
    """

    def __init__(
        self,
        server: Server,
        *,
        deny_columns: Sequence[str] = (),
        show: Mapping[str, Sequence[str]] | None = None,
        hide: Mapping[str, Sequence[str]] | None = None,
        row_limit: int = 20,
        seconds: float = 2.0,
        characters: int = 1500,
        rewrite: Callable[[str], str] | None = None,
    ) -> None:
        with server.session(max(seconds, 10.0)) as session:
            self._described = read_tables(session)[0]
            self.server = session.server
        super().__init__(
            server.database, deny_columns=deny_columns, show=show, hide=hide, row_limit=row_limit, seconds=seconds,
            characters=characters, rewrite=rewrite,
        )  # fmt: skip
        self._translator = Translator(self.server, self._described, self._denied, row_limit)

    def _read_tables(self) -> dict[str, list[str]]:
        return {table.name: [field.name for field in table.fields] for table in self._described}

    def _query(self, sql: str) -> tuple[list[str], list[list[Any]], bool]:
        if len(sql) > SQL_CHARACTERS:
            raise ToolError(f"the query has {len(sql)} characters, at most {SQL_CHARACTERS} are allowed")
        try:
            statement = self._translator.translate(sql)
        except ToolError as error:
            raise ToolError(f"{error}{self._hint(str(error))}") from None
        try:
            with self.server.session(self.seconds) as session:
                found = session.rows(statement.sql)
        except InputError:
            raise ToolError("the database server cannot be reached: try again later") from None
        except ServerError as error:
            late = f"the query ran longer than {self.seconds:g} s and was stopped: join tables on their keys, read less"
            raise ToolError(late if error.late else clip(str(error), 200)) from None
        rows = [[_plain(value) for value in row] for row in found]
        columns = [clip(name, 100) for name in statement.columns]
        return columns, rows[: self.row_limit], len(rows) > self.row_limit


def _plain(value: Any) -> Any:
    """A driver's value as the tool over SQLite would give it."""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, Decimal):
        exponent = value.as_tuple().exponent
        return int(value) if isinstance(exponent, int) and exponent >= 0 else plain_value(float(value))
    if isinstance(value, bytearray | memoryview):
        return plain_value(bytes(value))
    return plain_value(value if value is None or isinstance(value, int | float | str | bytes) else str(value))
