"""What is read from a database nobody described: kinds, keys, labels, links, and what a prompt has no room for."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from riverrun.base.errors import InputError
from riverrun.base.sql import quote_literal, quote_name
from riverrun.data.names import concept_of, other_words, plural, same_thing, say_column, say_table, singular, split_name
from riverrun.data.schema import Link, Schema, read_schema
from riverrun.data.shapes import compositions
from riverrun.data.shown import ROOM, choose_shown, estimate_tokens, schema_line
from tests.data.hostile import SCHEMAS, make

WORDS = """
ABORT ACTION ADD AFTER ALL ALTER ANALYZE AND AS ASC ATTACH BEGIN BETWEEN BY CASCADE CASE CAST CHECK COLLATE COLUMN
COMMIT CREATE CROSS CURRENT CURRENT_DATE DATABASE DEFAULT DELETE DESC DISTINCT DROP ELSE END ESCAPE EXCEPT EXISTS
FALSE FILTER FIRST FOR FOREIGN FROM FULL GLOB GROUP HAVING IF IN INDEX INNER INSERT INTERSECT INTO IS ISNULL JOIN
KEY LAST LEFT LIKE LIMIT MATCH NATURAL NO NOT NOTHING NOTNULL NULL OF OFFSET ON OR ORDER OUTER OVER PLAN PRIMARY
QUERY RAISE RANGE REFERENCES REGEXP REPLACE RETURNING RIGHT ROW ROWS SELECT SET TABLE TEMP THEN TO TRANSACTION
TRIGGER TRUE UNION UNIQUE UPDATE USING VALUES VIEW VIRTUAL WHEN WHERE WINDOW WITH WITHOUT
"""
KEYWORDS = WORDS.split()


def schema_of(name: str, folder: Path) -> Schema:
    return read_schema(make(name, folder / "file.sqlite"))


@given(
    st.sampled_from(KEYWORDS) | st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1)
)
@settings(max_examples=150, deadline=None)
def test_a_quoted_name_is_read_as_that_name(name: str) -> None:
    word = quote_name(name)
    with closing(sqlite3.connect(":memory:")) as connection:
        always = '"' + name.replace('"', '""') + '"'
        connection.execute(f"CREATE TABLE {always}({always} TEXT, other TEXT)")
        connection.execute(f"INSERT INTO {word} VALUES ('v', 'w')")
        both = f"{word}.{word}"
        sql = f"SELECT {both} FROM {word} JOIN {word} AS other_one ON {both} = other_one.{word} WHERE {both} = 'v'"
        assert connection.execute(f"{sql} GROUP BY {both} ORDER BY {both} DESC LIMIT 1").fetchall() == [("v",)]
        assert connection.execute(f"SELECT {word} FROM {word} WHERE {word} LIKE 'v%'").fetchall() == [("v",)]


@pytest.mark.parametrize("name", ["AlbumId", "unit_price", "客户编号", "Title", "name", "date", "key", "type", "_x1"])
def test_a_plain_name_stays_bare(name: str) -> None:
    assert quote_name(name) == name


@given(st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0")) | st.integers(-(2**62), 2**62))
@settings(max_examples=100, deadline=None)
def test_a_literal_is_read_as_that_value(value: str | int) -> None:
    with closing(sqlite3.connect(":memory:")) as connection:
        assert connection.execute(f"SELECT {quote_literal(value)}").fetchone() == (value,)


def test_names_become_words() -> None:
    assert split_name("SupportRepId") == ("support", "representative", "id")
    assert split_name("cust_nm") == ("customer", "name")
    assert split_name("HTMLPage2") == ("html", "page", "2")
    assert say_table("tbl_OrderItems", "en") == "order item"
    assert say_column("customer_name", "customers", "en") == "name"
    assert say_column("unit_price", "t_product", "zh") == "单价"
    assert say_table("Customer", "zh") == "客户"
    assert say_table("客户", "en") == "customer"
    assert [plural(word) for word in ("city", "box", "person", "bus", "invoice line", "status", "key", "客户")] == [
        "cities",
        "boxes",
        "people",
        "buses",
        "invoice lines",
        "statuses",
        "keys",
        "客户",
    ]
    assert [singular(word) for word in ("cities", "boxes", "people", "status", "addresses", "news")] == [
        "city",
        "box",
        "person",
        "status",
        "address",
        "news",
    ]
    assert [
        concept_of(name) for name in ("UnitPrice", "Milliseconds", "hire_date", "BillingCity", "ReportsTo", "x7")
    ] == ["price", "duration", "hired", "city", "manager", ""]


@pytest.mark.parametrize(
    ("column", "table", "key", "same"),
    [
        ("customer_id", "customers", "id", True),
        ("CustomerId", "Customer", "CustomerId", True),
        ("cust_id", "customers", "id", True),
        ("客户编号", "客户", "客户编号", True),
        ("city", "cities", "id", True),
        ("status", "customers", "id", False),
        ("id", "customers", "id", True),
        ("billing_customer_id", "customers", "id", True),
    ],
)
def test_a_columns_name_may_speak_of_a_table(column: str, table: str, key: str, same: bool) -> None:
    assert same_thing(column, table, key) is same


def test_links_that_no_one_declared_are_found_by_name_and_value(tmp_path: Path) -> None:
    schema = schema_of("undeclared", tmp_path)
    assert [table.key for table in schema.tables] == [("customer_id",), ("product_id",), ("order_no",)]
    assert schema.links == (
        Link("tbl_orders", ("customer_id",), "tbl_customers", ("customer_id",), False),
        Link("tbl_orders", ("product_id",), "tbl_products", ("product_id",), False),
    )
    with closing(sqlite3.connect(tmp_path / "file.sqlite")) as connection:
        connection.execute("UPDATE tbl_orders SET product_id = 99999 WHERE order_no = 3")
        connection.commit()
    assert [link.parent for link in read_schema(tmp_path / "file.sqlite").links] == ["tbl_customers"]


def test_values_say_what_a_column_is(tmp_path: Path) -> None:
    path = tmp_path / "kinds.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(
            "CREATE TABLE t (id INTEGER, day TEXT, year INT, is_open INT, x ANY, amount, b BLOB, nil, "
            "first_name, last_name)"
        )
        rows = [
            (n, f"2024-01-{n + 1:02d}", 1990 + n, n % 2, f"t{n}", n + 0.5, b"x", None, f"Al{n}", f"Bo{n}")
            for n in range(20)
        ]
        connection.executemany("INSERT INTO t VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
        connection.commit()
    (table,) = read_schema(path).tables
    kinds = [column.kind for column in table.columns]
    assert kinds == ["integer", "date", "year", "flag", "text", "number", "blob", "empty", "text", "text"]
    assert table.key == ("id",)
    assert table.label == ("first_name", "last_name")


def test_days_that_are_not_written_year_first_are_no_amounts(tmp_path: Path) -> None:
    schema = schema_of("dates", tmp_path)
    visits = schema.by_name["visits"]
    kinds = {column.name: (column.kind, column.moment) for column in visits.columns}
    assert kinds == {
        "id": ("integer", ""),
        "guest": ("text", ""),
        "iso": ("date", ""),
        "stamp": ("date", ""),
        "european": ("text", "day first"),
        "american": ("text", "month first"),
        "german": ("text", "day first"),
        "seconds_at": ("integer", "seconds"),
        "millis_ts": ("integer", "milliseconds"),
        "digits": ("integer", "digits"),
        "time_only": ("text", ""),
        "month_only": ("text", ""),
    }
    asked = [item for item in compositions(schema) if item.column and item.column.moment]
    assert asked, "they are asked for as they stand"
    assert {item.op for item in asked} <= {
        "lookup",
        "lookup_two",
        "list_with",
        "distinct",
        "count_distinct",
        "parent_fact",
    }
    assert not [item.sql for item in asked if item.column and f"{item.column.name} LIKE" in item.sql]


@pytest.mark.parametrize(
    ("name", "values", "moment"),
    [
        ("sold", ["31/12/2010", "01/02/2011"], "day first"),
        ("sold", ["12/31/2010", "01/02/2011 08:15"], "month first"),
        ("sold", ["1-2-2010", "3-4-2011"], "day or month first"),
        ("sold", ["31/31/2010", "01/02/2011"], ""),
        ("sold", ["31/12/2010", "12/31/2010"], ""),
        ("ratio", ["1/2", "3/4"], ""),
        ("version", ["1.2.3000x", "1.2.3"], ""),
        ("number", [20101231, 20110101], "digits"),
        ("number", [20101331, 20110101], ""),
        ("number", [20101231, 5], ""),
        ("created_at", [1262304000, 1293840000], "seconds"),
        ("createdAt", [1262304000000, 1293840000000], "milliseconds"),
        ("population", [1262304000, 1393840000], ""),
        ("created_at", [5, 1262304000], ""),
    ],
)
def test_forms_of_days(name: str, values: list[object], moment: str, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "x.sqlite")) as connection:
        connection.execute(f"CREATE TABLE t (id INTEGER PRIMARY KEY, {name})")
        connection.executemany(f"INSERT INTO t({name}) VALUES (?)", [(value,) for value in values])
        connection.commit()
    column = read_schema(tmp_path / "x.sqlite").by_name["t"].by_name[name]
    assert column.moment == moment
    assert column.is_number == (isinstance(values[0], int) and not moment)


def test_composite_keys_and_links(tmp_path: Path) -> None:
    schema = schema_of("composite", tmp_path)
    assert schema.by_name["seats"].key == ("hall", "number")
    assert schema.links == (Link("bookings", ("hall", "seat"), "seats", ("hall", "number"), True),)


def test_a_broken_view_is_passed_over_and_named(tmp_path: Path) -> None:
    schema = schema_of("views", tmp_path)
    assert [table.name for table in schema.tables] == ["cars", "cheap_cars"]
    assert "broken" in schema.notes[0]


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_prompt_holds_what_fits(name: str, tmp_path: Path) -> None:
    schema = schema_of(name, tmp_path)
    shown = choose_shown(schema)
    assert shown.tokens <= ROOM or len(shown.tables) == 1
    assert shown.tokens <= estimate_tokens(schema_line(shown.tables))


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    sixty = choose_shown(schema_of("sixty", tmp_path))
    assert 5 <= len(sixty.tables) < 60
    assert any("tables (no room" in note for note in sixty.left_out)
    assert "module_00" not in sixty.tables  # empty
    blob = choose_shown(schema_of("blob", tmp_path / ".."))
    assert blob.tables == {"pictures": ("id", "title")}
    assert blob.left_out == ("pictures: image (holds bytes, not text)", "pictures: note (has no value in any row)")


def test_credentials_are_denied(tmp_path: Path) -> None:
    path = tmp_path / "users.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT, password_hash TEXT, api_key TEXT)")
        connection.execute("INSERT INTO users VALUES (1, 'Ada', 'x', 'y')")
        connection.commit()
    shown = choose_shown(read_schema(path))
    assert shown.denied == ("users.password_hash", "users.api_key")
    assert shown.tables == {"users": ("id", "name")}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "does not exist"),
        (b"", "holds no table"),
        (b"PK\3\4 something else entirely, long enough", "is not an SQLite database"),
    ],
)
def test_what_is_no_database_is_refused(content: bytes | None, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        read_schema(path)


NAME = st.sampled_from(["order", "Unit Price", 'a"b', "客户", "select", "name", "CustId", "x", "date", "total", "city"])
TYPES = st.sampled_from(["INTEGER", "TEXT", "REAL", "BLOB", "", "NVARCHAR(10)", "DATE"])
VALUE = (
    st.none()
    | st.integers(-5, 5)
    | st.text(max_size=6)
    | st.sampled_from(["2024-02-03", "Ada Park"])
    | st.floats(-9, 9)
    | st.binary(max_size=3)
)


@st.composite
def tables(draw: st.DrawFn) -> tuple[str, list[tuple[str, str]], list[list[object]]]:
    columns = draw(st.lists(st.tuples(NAME, TYPES), min_size=1, max_size=6, unique_by=lambda pair: pair[0].lower()))
    rows = draw(st.lists(st.lists(VALUE, min_size=len(columns), max_size=len(columns)), max_size=12))
    return draw(NAME), columns, rows


@given(st.lists(tables(), min_size=1, max_size=3, unique_by=lambda table: table[0].lower()))
@settings(max_examples=60, deadline=None)
def test_any_schema_is_read_back(generated: list[tuple[str, list[tuple[str, str]], list[list[object]]]]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "any.sqlite"
        with closing(sqlite3.connect(path)) as connection:
            for name, columns, rows in generated:
                declared = ", ".join(f"{quote_name(column)} {kind}" for column, kind in columns)
                connection.execute(f"CREATE TABLE {quote_name(name)} ({declared})")
                connection.executemany(f"INSERT INTO {quote_name(name)} VALUES ({', '.join('?' * len(columns))})", rows)
            connection.commit()
        schema = read_schema(path)
    assert [(table.name, [c.name for c in table.columns], table.rows) for table in schema.tables] == [
        (name, [column for column, _ in columns], len(rows)) for name, columns, rows in generated
    ]
    for table in schema.tables:
        assert set(table.key) | set(table.label) <= set(table.by_name)
        for column in table.columns:
            if any(isinstance(value, bytes) for value in column.values):
                assert column.kind == "blob"


def test_other_words_lead_to_tables_and_columns() -> None:
    tables = [("owners", ["last_name", "phone_ext"]), ("vets", ["last_name", "salary"]), ("pets", ["microchip_no"])]
    found = other_words(tables)
    assert found["client"] == ["owners"]
    assert found["surname"] == ["owners.last_name", "vets.last_name"]
    assert found["extension"] == ["owners.phone_ext"]
    assert found["pay"] == ["vets.salary"]
    assert found["chip"] == ["pets.microchip_no"]
    assert "number" not in found, "half of all columns are numbers of something"
    many = [(f"t{n}", ["price"]) for n in range(5)]
    assert "cost" not in other_words(many), "it would stand for too much"


def test_links_by_role_and_by_the_parents_key(tmp_path: Path) -> None:
    """Undeclared: a role among people, a name that ends with the parent's key, in English and Chinese."""
    path = tmp_path / "roles.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            "CREATE TABLE branch (branchId INTEGER PRIMARY KEY, branchName TEXT, managerId INTEGER, lotId INTEGER);"
            "CREATE TABLE staffMember (staffId INTEGER PRIMARY KEY, fullName TEXT);"
            "CREATE TABLE event (eventId INTEGER PRIMARY KEY, title TEXT, hostStaffId INTEGER, homeBranchId INTEGER);"
            "CREATE TABLE 员工 (工号 TEXT PRIMARY KEY, 姓名 TEXT);"
            "CREATE TABLE 门店 (编号 INTEGER PRIMARY KEY, 店名 TEXT, 店长工号 TEXT);"
            "CREATE TABLE 会员 (会员号 TEXT PRIMARY KEY, 注册门店 INTEGER);"
        )
        for number in range(1, 6):
            connection.execute(
                "INSERT INTO branch VALUES (?, ?, ?, ?)", (number, f"B{number}", 6 - number, number + 90)
            )
            connection.execute("INSERT INTO staffMember VALUES (?, ?)", (number, f"Name {number}"))
            connection.execute("INSERT INTO event VALUES (?, ?, 2, ?)", (number, f"E{number}", number))
            connection.execute("INSERT INTO 员工 VALUES (?, ?)", (f"G{number}", f"张{number}"))
            connection.execute("INSERT INTO 门店 VALUES (?, ?, ?)", (number, f"店{number}", f"G{number}"))
            connection.execute("INSERT INTO 会员 VALUES (?, ?)", (f"V{number}", number))
        connection.commit()
    found = {(link.table, link.columns[0], link.parent) for link in read_schema(path).links}
    assert found == {
        ("branch", "managerId", "staffMember"),
        ("event", "hostStaffId", "staffMember"),
        ("event", "homeBranchId", "branch"),
        ("门店", "店长工号", "员工"),
        ("会员", "注册门店", "门店"),
    }
