"""Snapshots of real servers: every row, value and key; one moment; whole or not at all."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from riverrun.agent.tools.sql_server import ServerTool
from riverrun.base.errors import InputError
from riverrun.base.servers import Server
from riverrun.data.schema import read_schema
from riverrun.data.servers import snapshot
from tests.live_servers import PASSWORD, connect


@pytest.fixture(scope="module", params=["postgres", "mariadb"])
def server(request: pytest.FixtureRequest) -> Server:
    found: Server = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="module")
def file(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("copy") / "shop.sqlite"
    done = snapshot(server, out, rows_per_table=10_000, seconds=5)
    assert done.rows == {"Customers": 40, "books": 60, "empty_one": 0, "order_lines": 360, "order_totals": 120,
                         "orders": 120, "returns": 24, "门店": 3}  # fmt: skip
    assert [note.partition(":")[0] for note in done.notes] == ["broken", "slow"][: len(done.notes)]
    return out


def rows(file: Path, sql: str) -> list[Any]:
    with closing(sqlite3.connect(file)) as connection:
        return connection.execute(sql).fetchall()


def test_values_are_those_of_the_server(server: Server, file: Path) -> None:
    assert rows(file, "SELECT * FROM books WHERE id = 10") == [
        (10, "Paper \\ Moons 10", "travel", 12.6, 170, 1.25, b"\x00\x0a\xff", f"00000000-0000-0000-0000-{10:012d}",
         '{"n": 10}', 3, 0, 2)
    ]  # fmt: skip
    assert rows(file, "SELECT genre, price FROM books WHERE id IN (13, 17) ORDER BY id") == [
        (None, 16.35),
        ("poetry", None),
    ]
    assert rows(file, "SELECT ordered, paid_at, state, note FROM orders WHERE id IN (4, 30) ORDER BY id") == [
        ("2019-05-05 04:30:00", None, "open", None),
        ("2017-07-03 06:30:00", "2021-04-03 12:00:30", "paid", "Fragile!\nTop up"),
    ]
    assert rows(file, 'SELECT "First Name", active, since, boss FROM Customers WHERE CustomerId IN (3, 9)') == [
        ("Dan", 0, "2013-04-13", 1), ("ben", 0, None, 3),
    ]  # fmt: skip
    assert rows(file, "SELECT 名称, 城市 FROM 门店 WHERE 编号 = 2") == [("河边店", "上海")]
    kinds = rows(
        file, "SELECT DISTINCT typeof(price), typeof(stock), typeof(pages), typeof(cover) FROM books ORDER BY 1, 4"
    )
    assert set(kinds) == {("real", "integer", "integer", "null"), ("real", "integer", "integer", "blob"),
                          ("null", "integer", "integer", "null")}  # fmt: skip


def test_keys_and_kinds_are_kept(file: Path) -> None:
    schema = read_schema(file)
    assert {link.table: (link.columns, link.parent) for link in schema.links if link.declared and not link.own} == {
        "order_lines": (("book",), "books"),
        "orders": (("customer",), "Customers"),
        "returns": (("order_id", "line"), "order_lines"),
    } | {"order_lines": next((k.columns, k.parent) for k in reversed(schema.links) if k.table == "order_lines")}
    assert schema.by_name["order_lines"].key == ("order_id", "line")
    assert {column.name: column.kind for column in schema.by_name["Customers"].columns} == {
        "CustomerId": "integer", "First Name": "text", "Last Name": "text", "email": "text", "city": "text",
        "active": "flag", "since": "date", "boss": "integer",
    }  # fmt: skip
    assert [schema.by_name["books"].by_name[name].kind for name in ("price", "cover", "stock", "facts")] == [
        *("number", "blob", "integer", "text"),
    ]
    with closing(sqlite3.connect(file)) as connection, pytest.raises(sqlite3.IntegrityError, match="NOT NULL"):
        connection.execute("INSERT INTO books (id) VALUES (1000)")


def test_long_tables_are_cut_and_the_note_says_so(server: Server, tmp_path: Path) -> None:
    out = tmp_path / "x.sqlite"
    done = snapshot(server, out, rows_per_table=60, seconds=2)
    assert "order_lines: only the first 60 rows are copied (rows_per_table)" in done.notes
    assert not any(note.startswith("books:") for note in done.notes)
    assert rows(out, "SELECT MIN(id), MAX(id), COUNT(*) FROM orders") == [(1, 60, 60)]
    assert [path.name for path in tmp_path.iterdir()] == ["x.sqlite"]


def test_what_the_role_could_change_is_said(server: Server, tmp_path: Path) -> None:
    done = snapshot(server, tmp_path / "x.sqlite", rows_per_table=10, seconds=1)
    assert done.rights in ("is a superuser", "holds ALL PRIVILEGES")
    reader = replace(server, user="reader", schema="")
    done = snapshot(reader, tmp_path / "x.sqlite", rows_per_table=10, seconds=1)
    assert done.rights == ""
    if server.dialect == "postgres":
        assert "orders.note: reader may not read it; left out" in done.notes
        assert "note" not in {row[1] for row in rows(tmp_path / "x.sqlite", "PRAGMA table_info(orders)")}
        assert not ServerTool(reader).run({"sql": "SELECT * FROM orders"}).is_error
    with connect(server) as connection:
        connection.cursor().execute("GRANT INSERT ON returns TO reader")
        try:
            done = snapshot(reader, tmp_path / "x.sqlite", rows_per_table=10, seconds=1)
        finally:
            connection.cursor().execute("REVOKE INSERT ON returns FROM reader")
    assert done.rights in ("may change returns", "holds INSERT")


def test_the_grants_that_are_given_make_a_role_that_reads(server: Server, tmp_path: Path) -> None:
    grants = snapshot(server, tmp_path / "x.sqlite", rows_per_table=10, seconds=1).grants
    with connect(server) as connection:
        for line in grants:
            connection.cursor().execute(line.replace("'...'", "'pw'").rstrip(";"))
    reader = replace(server, user="riverrun_reader", password="pw")
    assert snapshot(reader, tmp_path / "y.sqlite", rows_per_table=10, seconds=1).rights == ""


def test_one_moment(server: Server, tmp_path: Path) -> None:
    """What is written while the copy runs is not in it."""
    with server.session(5) as session, connect(server) as connection:
        before = session.rows(f"SELECT COUNT(*) FROM {server.quote(server.schema or 'shop')}.empty_one")
        connection.cursor().execute("INSERT INTO empty_one VALUES (1, 'x')")
        after = session.rows(f"SELECT COUNT(*) FROM {server.quote(server.schema or 'shop')}.empty_one")
        connection.cursor().execute("DELETE FROM empty_one")
    assert [tuple(row) for row in before] == [tuple(row) for row in after] == [(0,)]


def test_what_cannot_be_opened_is_one_sentence_without_the_password(server: Server, tmp_path: Path) -> None:
    wrong = "wr0ng-pw"
    changes: list[tuple[dict[str, Any], str]] = [
        ({"password": wrong}, "cannot be opened"),
        ({"user": "nobody"}, "cannot be opened"),
        ({"database": "nodb"}, "cannot be opened"),
        ({"port": 1}, "cannot be opened"),
        ({"host": "no-such-host.invalid"}, "cannot be opened"),
        ({"socket": str(tmp_path)}, "cannot be opened"),
        ({"sslmode": "require"}, "cannot be opened"),
        ({"sslmode": "verify-full", "sslrootcert": str(tmp_path / "none.pem")}, "cannot be opened"),
    ]
    if server.dialect == "postgres":
        changes.append(({"schema": "nope"}, "no schema 'nope': there are"))
        changes.append(({"schema": "public"}, "schema 'public' holds no table that owner may read"))
    for change, words in changes:
        with pytest.raises(InputError) as caught:
            snapshot(replace(server, **change), tmp_path / "x.sqlite", rows_per_table=10)
        text = str(caught.value)
        assert words in text, change
        assert "\n" not in text
        assert PASSWORD not in text
        assert wrong not in text
    assert not list(tmp_path.iterdir())
    assert snapshot(replace(server, sslmode="disable"), tmp_path / "x.sqlite", rows_per_table=1, seconds=1).rows


NAMES = st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Cn"], max_codepoint=0xFFFF), min_size=1, max_size=12
).filter(lambda name: name == name.strip() and not name.lower().startswith("sqlite_"))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    table=NAMES,
    column=NAMES,
    value=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40),
)
def test_any_name_and_any_value(server: Server, tmp_path: Path, table: str, column: str, value: str) -> None:
    """Made on the server, copied, and asked for by name and value through the live tool."""
    path = f"{server.quote('odd' if server.dialect == 'mysql' else server.schema)}.{server.quote(table)}"
    with connect(server) as connection:
        cursor = connection.cursor()
        if server.dialect == "mysql":
            cursor.execute("CREATE DATABASE IF NOT EXISTS odd CHARACTER SET utf8mb4")
        kind = "text" if server.dialect == "postgres" else "varchar(100) COLLATE utf8mb4_bin"
        try:
            cursor.execute(f"CREATE TABLE {path} (n int PRIMARY KEY, {server.quote(column)} {kind})")
        except Exception as error:
            if re.search("already exists|specified more than once|Duplicate column|multiple primary", str(error)):
                return
            raise
        try:
            cursor.execute(f"INSERT INTO {path} VALUES (1, {server.literal(value)}), (2, NULL)")
            here = replace(server, database="odd") if server.dialect == "mysql" else server
            if server.dialect == "mysql":
                snapshot(here, tmp_path / "x.sqlite", rows_per_table=10)
                quoted = table.replace('"', '""')
                assert rows(tmp_path / "x.sqlite", f'SELECT * FROM "{quoted}" ORDER BY n') == [(1, value), (2, None)]
            quoted, named = (name.replace('"', '""') for name in (table, column))
            text = value.replace("'", "''")
            sql = f'SELECT n, "{named}" FROM "{quoted}" WHERE "{named}" = \'{text}\' OR n = 2 ORDER BY n'
            result = ServerTool(here).run({"sql": sql})
            assert result.data is not None, result.content
            assert result.data["rows"] == [[1, value], [2, None]]
        finally:
            cursor.execute(f"DROP TABLE {path}")
