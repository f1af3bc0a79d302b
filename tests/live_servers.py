"""Private PostgreSQL and MariaDB servers of the test session, each with the same shop in it, and its users."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from riverrun.base.servers import Server

__all__ = ["PASSWORD", "connect", "mariadb", "postgres", "shop_statements"]

PASSWORD = "s3cret:/@ %pw"
SKIP = "not run here: "


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _account(*names: str) -> dict[str, Any]:
    """Servers refuse to run as root: the account of the first name that there is, for subprocess."""
    if os.getuid():
        return {}
    import pwd

    known = {entry.pw_name: entry for entry in pwd.getpwall()}
    entry = next(known[name] for name in (*names, "nobody") if name in known)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


@contextmanager
def _folder(account: dict[str, Any]) -> Iterator[Path]:
    """A short path: a socket's name has at most 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="rr"))
    try:
        if account:
            os.chown(folder, account["user"], account["group"])
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(command: list[str], **more: Any) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, **more)
    assert done.returncode == 0, f"{command[0]}: {done.stdout[-2000:]}{done.stderr[-2000:]}"


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """The shop as its owner, schema `Shop Data`; reader has SELECT only; both have PASSWORD."""
    psycopg = pytest.importorskip("psycopg", reason=f"{SKIP}psycopg")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or [Path(shutil.which("initdb") or "")]
    if not found[-1].is_file():
        pytest.skip(f"{SKIP}PostgreSQL (initdb)")
    binaries, account, port = found[-1].parent, _account("postgres"), free_port()
    with _folder(account) as folder:
        data, words = folder / "data", folder / "pw"
        words.write_text(PASSWORD)
        words.chmod(0o644)
        _run([str(binaries / "initdb"), "-D", str(data), "-U", "owner", "--auth=scram-sha-256", f"--pwfile={words}",
              "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"], cwd=folder, **account)  # fmt: skip
        options = f"-k {folder} -p {port} -c listen_addresses=127.0.0.1 -c fsync=off"
        _run([str(binaries / "pg_ctl"), "-D", str(data), "-l", str(folder / "log"), "-o", options, "-w", "start"],
             cwd=folder, **account)  # fmt: skip
        try:
            owner = Server("postgres", "127.0.0.1", port, "owner", "shop", "Shop Data", password=PASSWORD)
            connect = {"host": "127.0.0.1", "port": port, "user": "owner", "password": PASSWORD, "autocommit": True}
            with psycopg.connect(**connect, dbname="postgres") as connection:
                connection.execute("CREATE DATABASE shop")
            with psycopg.connect(**connect, dbname="shop") as connection:
                for statement in shop_statements("postgres"):
                    connection.execute(statement)
            yield owner
        finally:
            _run([str(binaries / "pg_ctl"), "-D", str(data), "-m", "immediate", "-w", "stop"], cwd=folder, **account)


@pytest.fixture(scope="session")
def mariadb() -> Iterator[Server]:
    """The shop as its owner; reader has SELECT only; both have PASSWORD."""
    pymysql = pytest.importorskip("pymysql", reason=f"{SKIP}PyMySQL")
    daemon, install = (shutil.which(name) for name in ("mariadbd", "mariadb-install-db"))
    if not daemon or not install:
        pytest.skip(f"{SKIP}MariaDB (mariadbd, mariadb-install-db)")
    account, port = _account("mysql"), free_port()
    with _folder(account) as folder:
        data, sock = folder / "data", folder / "s"
        _run([install, "--no-defaults", f"--datadir={data}", "--auth-root-authentication-method=normal",
              "--skip-test-db"], cwd=folder, **account)  # fmt: skip
        server = subprocess.Popen(
            [daemon, "--no-defaults", f"--datadir={data}", f"--socket={sock}", f"--port={port}",
             "--bind-address=127.0.0.1", f"--pid-file={folder / 'pid'}", f"--log-error={folder / 'log'}",
             "--innodb-buffer-pool-size=64M", f"--secure-file-priv={folder}"],
            cwd=folder, **account,
        )  # fmt: skip
        try:
            _run([shutil.which("mariadb-admin") or "mariadb-admin", "--no-defaults", f"--socket={sock}", "-uroot",
                  "--wait=60", "--connect-timeout=60", "ping"])  # fmt: skip
            owner = Server("mysql", "127.0.0.1", port, "owner", "shop", password=PASSWORD)
            root = {"unix_socket": str(sock), "user": "root", "charset": "utf8mb4", "autocommit": True}
            with pymysql.connect(**root) as connection, connection.cursor() as cursor:
                for statement in shop_statements("mysql"):
                    cursor.execute(statement)
            yield owner
        finally:
            server.terminate()
            server.wait(60)


CITIES = ("Leeds", "York", "Hull", "Zürich", "北京")
FIRST = ("Ada", "ben", "Cleo", "Dan", "Eve", "finn", "Gus", "Ida")
LAST = ("Park", "Moor", "O'Neil", "stone", "Hall", "Bloom", "李", "Ångström")
GENRES = ("crime", "poetry", "travel", "cooking")
TITLES = ("Salt Road", "salt", "Paper \\ Moons", "50% of 'it'")
STATES = ("paid", "open", "lost")


def shop_statements(dialect: str) -> Iterator[str]:
    """The shop in the server's own SQL: types, keys and names of all kinds, and rows that depend on nothing."""
    pg = dialect == "postgres"

    def q(name: str) -> str:
        return f'"{name}"' if pg else f"`{name}`"

    def literal(value: object) -> str:
        if value is None:
            return "NULL"
        if isinstance(value, bytes):
            return f"'\\x{value.hex()}'::bytea" if pg else f"x'{value.hex()}'"
        if isinstance(value, bool):
            return str(value).upper()
        text = str(value).replace("'", "''")
        return (
            str(value) if isinstance(value, int | float) else f"'{text if pg else text.replace(chr(92), chr(92) * 2)}'"
        )

    def insert(table: str, rows: list[tuple[object, ...]]) -> str:
        values = ", ".join(f"({', '.join(map(literal, row))})" for row in rows)
        return f"INSERT INTO {q(table)} VALUES {values}"

    secret = PASSWORD.replace("'", "''")
    if pg:
        yield 'CREATE SCHEMA "Shop Data"'
        yield 'SET search_path = "Shop Data"'
        yield "CREATE TYPE state AS ENUM ('paid', 'open', 'lost')"
        yield "CREATE DOMAIN price AS numeric(10, 2) CHECK (VALUE >= 0)"
        state, price, js, uid, blob, when = "state", "price", "jsonb", "uuid", "bytea", "timestamptz"
        flag, stamp, cased, double = "boolean", "timestamp", 'text COLLATE "en-x-icu"', "double precision"
    else:
        yield f"CREATE USER owner@'%' IDENTIFIED BY '{secret}'"
        yield "CREATE DATABASE shop CHARACTER SET utf8mb4"
        yield "GRANT ALL PRIVILEGES ON *.* TO owner@'%' WITH GRANT OPTION"
        yield "USE shop"
        state, price, js, uid, blob = "enum('paid', 'open', 'lost')", "decimal(10, 2)", "json", "char(36)", "blob"
        when, flag, stamp, cased, double = "timestamp NULL", "boolean", "datetime", "varchar(200)", "double"
    yield (f"CREATE TABLE {q('Customers')} ({q('CustomerId')} int PRIMARY KEY, {q('First Name')} {cased} NOT NULL, "
           f"{q('Last Name')} {cased}, email varchar(200), city varchar(80), active {flag} NOT NULL, since date, "
           f"boss int, FOREIGN KEY (boss) REFERENCES {q('Customers')} ({q('CustomerId')}))")  # fmt: skip
    yield (f"CREATE TABLE books (id bigint PRIMARY KEY, title varchar(200) NOT NULL, genre varchar(40), "
           f"price {price}, pages smallint, weight {double}, cover {blob}, isbn {uid}, facts {js}, "
           f"stock decimal(8, 0), {q('order')} int, {q('per cent %s')} int)")  # fmt: skip
    yield (f"CREATE TABLE orders (id int PRIMARY KEY, customer int NOT NULL, ordered {stamp}, paid_at {when}, "
           f"state {state}, note text, "
           f"FOREIGN KEY (customer) REFERENCES {q('Customers')} ({q('CustomerId')}))")  # fmt: skip
    yield ("CREATE TABLE order_lines (order_id int, line int, book bigint, quantity int NOT NULL, "
           "PRIMARY KEY (order_id, line), FOREIGN KEY (order_id) REFERENCES orders (id), "
           "FOREIGN KEY (book) REFERENCES books (id))")  # fmt: skip
    yield "CREATE TABLE returns (order_id int, line int, reason text, PRIMARY KEY (order_id, line), " \
          "FOREIGN KEY (order_id, line) REFERENCES order_lines (order_id, line))"  # fmt: skip
    yield f"CREATE TABLE {q('门店')} ({q('编号')} int PRIMARY KEY, {q('名称')} varchar(80), {q('城市')} varchar(80))"
    yield "CREATE TABLE empty_one (id int PRIMARY KEY, x text)"
    yield insert("Customers", [
        (n, FIRST[n % 8], None if n % 11 == 0 else LAST[n % 7], f"u{n}@example.org", CITIES[n % 5], n % 3 != 0,
         None if n % 9 == 0 else f"20{10 + n % 12}-0{1 + n % 9}-1{n % 10}", None if n < 3 else n // 3)
        for n in range(1, 41)
    ])  # fmt: skip
    yield insert("books", [
        (n, f"{TITLES[n % 4]} {n}", None if n % 13 == 0 else GENRES[n % 4],
         None if n % 17 == 0 else n * 1.25 + 0.1, 100 + n * 7 % 300, n / 8, None if n % 5 else bytes([0, n, 255]),
         f"00000000-0000-0000-0000-{n:012d}", f'{{"n": {n}}}', n % 7, n % 10, n % 4)
        for n in range(1, 61)
    ])  # fmt: skip
    yield insert("orders", [
        (n, 1 + n % 37, f"20{15 + n % 7}-{1 + n % 12:02d}-{1 + n % 28:02d} {n % 24:02d}:30:00",
         None if n % 4 == 0 else f"2021-0{1 + n % 9}-03 12:00:{n % 60:02d}" + ("+00" if pg else ""),
         STATES[n % 3], None if n % 6 else ("", "gift", "Fragile!\nTop up")[n % 18 // 6])
        for n in range(1, 121)
    ])  # fmt: skip
    yield insert("order_lines", [(n, k, 1 + (n * k) % 60, 1 + (n + k) % 4) for n in range(1, 121) for k in range(1, 4)])
    yield insert("returns", [(n, 2, ("torn", "late", "wrong book")[n % 3]) for n in range(5, 121, 5)])
    yield insert("门店", [(1, "中心店", "北京"), (2, "河边店", "上海"), (3, "港口店", "北京")])
    total = (
        "SELECT o.id, o.customer, SUM(l.quantity) AS pieces "
        "FROM orders o JOIN order_lines l ON l.order_id = o.id GROUP BY o.id, o.customer"
    )
    yield f"CREATE VIEW order_totals AS {total}"
    if pg:
        yield "CREATE VIEW broken AS SELECT id / (id - id) AS x FROM books"
        yield "CREATE VIEW slow AS SELECT pg_sleep(id)::text AS x FROM books"
        yield f"CREATE ROLE reader LOGIN PASSWORD '{secret}'"
        yield 'GRANT USAGE ON SCHEMA "Shop Data" TO reader'
        yield 'GRANT SELECT ON ALL TABLES IN SCHEMA "Shop Data" TO reader'
        yield "REVOKE SELECT ON orders FROM reader"
        yield "GRANT SELECT (id, customer, ordered, paid_at, state) ON orders TO reader"
        yield "ALTER ROLE reader SET search_path = 'Shop Data'"
        yield "REVOKE CREATE ON SCHEMA public FROM PUBLIC"
    else:
        yield "CREATE VIEW broken AS SELECT (SELECT id FROM books) AS x FROM books"
        yield f"CREATE USER reader@'%' IDENTIFIED BY '{secret}'"
        yield "GRANT SELECT, SHOW VIEW ON shop.* TO reader@'%'"


@contextmanager
def connect(server: Server) -> Iterator[Any]:
    """A connection that may write, as the server's user."""
    if server.dialect == "postgres":
        import psycopg

        with psycopg.connect(
            host=server.host, port=server.port, user=server.user, password=server.password, dbname=server.database,
            autocommit=True, options='-c search_path="Shop\\ Data"',
        ) as connection:  # fmt: skip
            yield connection
        return
    import pymysql

    with pymysql.connect(
        host=server.host, port=server.port, user=server.user, password=server.password, database=server.database,
        charset="utf8mb4", autocommit=True,
    ) as connection:  # fmt: skip
        yield connection
