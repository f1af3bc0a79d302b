"""A PostgreSQL or MySQL/MariaDB server by URL: who, where, a read-only session, and errors without the password.

postgresql://user:password@host:5432/database?schema=shop, mysql://user:password@host:3306/database. Further keys after
`?`: `socket` (folder of PostgreSQL's socket, file of MySQL's), `sslmode` (prefer, disable, require, verify-full) and
`sslrootcert` (file). Drivers are packages of the extra `servers`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from riverrun.base.errors import InputError, ToolError, nearest
from riverrun.base.optional import require

__all__ = ["Server", "ServerError", "Session", "hide_password", "is_url"]

Dialect = Literal["postgres", "mysql"]
SCHEMES: dict[str, Dialect] = {
    "postgres": "postgres",
    "postgresql": "postgres",
    "mysql": "mysql",
    "mariadb": "mysql",
}
PORTS = {"postgres": 5432, "mysql": 3306}
SSL_MODES = ("prefer", "disable", "require", "verify-full")
KEYS = ("schema", "socket", "sslmode", "sslrootcert")
CONNECT_SECONDS = 10
_URL = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://")
_PASSWORD = re.compile(r"(://[^\s:@/'\"]*):[^\s'\"]*@")


def is_url(text: str) -> bool:
    """Whether a database is named by a URL rather than by a path."""
    return _URL.match(text) is not None


def hide_password(text: str) -> str:
    """The text with *** for the password of every URL in it."""
    return _PASSWORD.sub(r"\1:***@", text)


class ServerError(ToolError):
    """What a server answered, in its own words; `late` when a time limit stopped the statement."""

    def __init__(self, text: str, *, late: bool = False) -> None:
        super().__init__(text)
        self.late = late


@dataclass(frozen=True)
class Server:
    """A server's database. `schema` is PostgreSQL's; "" means the first of the role's search path."""

    dialect: Dialect
    host: str
    port: int
    user: str
    database: str
    schema: str = ""
    socket: str = ""
    sslmode: str = "prefer"
    sslrootcert: str = ""
    password: str = field(default="", repr=False)

    @classmethod
    def parse(cls, url: str, *, password: str = "") -> Server:
        """`password` is used when the URL holds none. InputError (without the password) for what is no such URL."""
        shown = hide_password(url)
        scheme = _URL.match(url)
        kind, _, driver = scheme[1].lower().partition("+") if scheme else ("", "", "")
        if kind not in SCHEMES or driver not in ("", "psycopg", "pymysql"):
            raise InputError(
                f"database {shown}: databases are SQLite files, postgresql://... and mysql://...; "
                f"export the tables you need into an SQLite file"
            )
        example = f"{kind}://user@host/database"
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise InputError(f"database {shown}: the address cannot be read: write it as {example}") from None
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        for key in options:
            if key not in KEYS:
                raise InputError(f"database {shown}: no such key '{key}'.{nearest(key, KEYS)}")
        if options.get("sslmode", "prefer") not in SSL_MODES:
            raise InputError(f"database {shown}: sslmode is one of {', '.join(SSL_MODES)}")
        dialect = SCHEMES[kind]
        if options.get("schema") and dialect == "mysql":
            raise InputError(f"database {shown}: MySQL has no schemas beside databases: leave schema out")
        database = unquote(parts.path.removeprefix("/"))
        if not database or not parts.username or "/" in parts.path.removeprefix("/"):
            raise InputError(f"database {shown}: a user and a database are needed: write it as {example}")
        return cls(
            dialect, parts.hostname or "localhost", port or PORTS[dialect], unquote(parts.username), database,
            **options, password=unquote(parts.password or "") or password,
        )  # fmt: skip

    @property
    def url(self) -> str:
        """The address without the password."""
        scheme = "postgresql" if self.dialect == "postgres" else "mysql"
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == PORTS[self.dialect] else f":{self.port}"
        options = {
            key: value for key in KEYS if (value := getattr(self, key)) and (key, value) != ("sslmode", "prefer")
        }
        query = f"?{urlencode(options, quote_via=quote, safe='/')}" if options else ""
        return f"{scheme}://{quote(self.user, safe='')}@{host}{port}/{quote(self.database, safe='')}{query}"

    def with_password(self, password: str) -> Server:
        return replace(self, password=password)

    def quote(self, name: str) -> str:
        """A name as this server reads it, always in quotes."""
        mark = '"' if self.dialect == "postgres" else "`"
        return mark + name.replace(mark, mark * 2) + mark

    def literal(self, text: str) -> str:
        """A text as this server reads it, whatever its settings for backslashes are."""
        if self.dialect == "mysql":
            return f"_utf8mb4 x'{text.encode().hex()}'" if text else "''"
        return "'" + text.replace("'", "''") + "'"

    @contextmanager
    def session(self, seconds: float) -> Iterator[Session]:
        """A session in one read-only, repeatable-read transaction; each statement may take so many seconds.

        MissingDependency without the driver; InputError, one sentence, when the server does not take us.
        """
        postgres = self.dialect == "postgres"
        driver = require("psycopg", extra="servers") if postgres else require("pymysql", extra="servers")
        try:
            raw = self._postgres(driver) if postgres else self._mysql(driver, seconds)
        except driver.Error as error:
            raise InputError(self._refused(error)) from None
        except (OSError, ValueError) as error:
            raise InputError(self._refused(error)) from None
        with closing(raw):
            session = Session(self, raw, driver)
            try:
                session.begin(seconds)
            except ServerError as error:
                raise InputError(f"{self.url} cannot be read: {error}") from None
            yield session

    def _postgres(self, driver: Any) -> Any:
        more = {"sslrootcert": self.sslrootcert} if self.sslrootcert else {}
        return driver.connect(
            host=self.socket or self.host, port=self.port, user=self.user, dbname=self.database, autocommit=True,
            password=self.password or None, connect_timeout=CONNECT_SECONDS, sslmode=self.sslmode,
            application_name="riverrun", client_encoding="utf8", tcp_user_timeout=60_000, **more,
        )  # fmt: skip

    def _mysql(self, driver: Any, seconds: float) -> Any:
        more: dict[str, Any] = {"unix_socket": self.socket} if self.socket else {"host": self.host, "port": self.port}
        if self.sslmode == "disable":
            more["ssl_disabled"] = True
        elif self.sslmode == "require":
            more["ssl"] = {"check_hostname": False, "verify_mode": False}
        elif self.sslmode == "verify-full":
            more |= {"ssl_ca": self.sslrootcert or None, "ssl_verify_cert": True, "ssl_verify_identity": True}
        return driver.connect(
            user=self.user, password=self.password, database=self.database, charset="utf8mb4", autocommit=True,
            connect_timeout=CONNECT_SECONDS, read_timeout=seconds + 10, local_infile=False, **more,
        )  # fmt: skip

    def _refused(self, error: BaseException) -> str:
        said = error.args[-1] if self.dialect == "mysql" and error.args else error
        lines = [line for line in str(said).splitlines() if line.strip()]
        text = next((line for line in lines if "FATAL" in line), lines[0] if lines else type(error).__name__).strip()
        if self.password:
            text = text.replace(self.password, "***")
        return f"{self.url} cannot be opened ({hide_password(text)}): check address, user, password and database"


class Session:
    """One connection inside its transaction. Every error is a ServerError."""

    def __init__(self, server: Server, raw: Any, driver: Any) -> None:
        self.server, self.raw, self.driver = server, raw, driver

    def begin(self, seconds: float) -> None:
        """Settings that make values and errors the same everywhere, then the transaction."""
        limit = round(seconds * 1000)
        if self.server.dialect == "postgres":
            # Nothing but the server's own functions and operators has a name without a schema from here on.
            statements = [
                "SET default_transaction_read_only = on", f"SET statement_timeout = {limit}",
                f"SET lock_timeout = {limit}", "SET timezone = 'UTC'", "SET datestyle = 'ISO, YMD'",
                "SET intervalstyle = 'postgres'", "SET standard_conforming_strings = on", "SET bytea_output = 'hex'",
                "SET extra_float_digits = 1",
            ]  # fmt: skip
            begin = "BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"
        else:
            maria = "mariadb" in str(self.rows("SELECT VERSION()")[0][0]).lower()
            timeout = f"max_statement_time = {seconds}" if maria else f"max_execution_time = {limit}"
            statements = [
                "SET NAMES utf8mb4", f"SET SESSION {timeout}",
                f"SET SESSION lock_wait_timeout = {max(1, int(seconds))}",
                "SET SESSION time_zone = '+00:00'", "SET SESSION group_concat_max_len = 100000",
                "SET SESSION sql_mode = 'PIPES_AS_CONCAT,NO_UNSIGNED_SUBTRACTION'",
                "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ", "SET SESSION TRANSACTION READ ONLY",
            ]  # fmt: skip
            begin = "START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY"
        for statement in ["; ".join(statements)] if self.server.dialect == "postgres" else statements:
            self.run(statement)
        if self.server.dialect == "postgres":
            if not self.server.schema:
                found = self.rows("SELECT current_schema()")[0][0]
                self.server = replace(self.server, schema=found or "public")
            self.run("SET search_path = pg_catalog")
        self.run(begin)

    def run(self, sql: str) -> None:
        """A statement without rows."""
        with self._errors(), closing(self.raw.cursor()) as cursor:
            cursor.execute(sql)

    def rows(self, sql: str) -> list[Sequence[Any]]:
        """All rows of one statement."""
        with self._errors(), closing(self.raw.cursor()) as cursor:
            if self.server.dialect == "postgres":
                cursor.execute(sql, prepare=False, binary=True)  # the extended protocol takes one statement only
            else:
                cursor.execute(sql)
            return list(cursor.fetchall())

    def stream(self, sql: str, batch: int) -> Iterator[list[Sequence[Any]]]:
        """The rows in batches; the server holds the rest."""
        postgres = self.server.dialect == "postgres"
        with self._errors():
            cursor = self.raw.cursor(name="riverrun") if postgres else self.raw.cursor(self.driver.cursors.SSCursor)
        with closing(cursor), self._errors():
            cursor.execute(sql)
            while found := cursor.fetchmany(batch):
                yield list(found)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except self.driver.Error as error:
            late = type(error).__name__ == "QueryCanceled" or (error.args and error.args[0] in (1969, 3024, 1028, 2013))
            said = error.args[-1] if self.server.dialect == "mysql" and error.args else error
            text = str(said).strip()
            raise ServerError(text.splitlines()[0] if text else type(error).__name__, late=bool(late)) from None
