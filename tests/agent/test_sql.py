"""The database tool: useful answers, clear errors, and nothing a model writes gets further than a bounded SELECT."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from riverrun.agent.tool import Tool
from riverrun.agent.tools.sql import DatabaseTool
from riverrun.agent.tools.sql_rules import _like, _trim, joined_columns
from riverrun.base.artifacts import digest_file
from riverrun.base.errors import InputError

SCRIPT = """
CREATE TABLE customers(id INTEGER PRIMARY KEY, name TEXT, city TEXT, email TEXT);
CREATE TABLE books(id INTEGER PRIMARY KEY, title TEXT, author TEXT, price REAL, stock INTEGER);
CREATE VIEW mailing AS SELECT name, email AS contact FROM customers;
CREATE VIEW cheap AS SELECT title FROM books WHERE price < 10;
CREATE INDEX by_email ON customers(email);
INSERT INTO customers VALUES (1, 'Ada Vale', 'Bonn', 'ada@x.org'), (2, 'Bo Reed', 'Graz', NULL);
INSERT INTO books VALUES (1, 'The Salt Road', 'M. Kerr', 12.5, 3), (2, 'O''Hara''s Lamp', 'M. Kerr', 8.0, 0);
ANALYZE;
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "odd #name?.sqlite"
    connection = sqlite3.connect(file)
    connection.executescript(SCRIPT)
    connection.close()
    return file


@pytest.fixture
def shop(path: Path) -> DatabaseTool:
    return DatabaseTool(path, deny_columns=["email"], seconds=0.2)


def content(tool: DatabaseTool, sql: str) -> str:
    return tool.run({"sql": sql}).content


def test_answers(shop: DatabaseTool) -> None:
    assert isinstance(shop, Tool)
    assert content(shop, "SELECT price FROM books WHERE title = 'The Salt Road';") == "price: 12.5"
    assert (
        content(shop, "SELECT title, price FROM books -- all")
        == "title | price\nThe Salt Road | 12.5\nO'Hara's Lamp | 8"
    )
    assert content(shop, "SELECT title FROM books WHERE price > 99") == "(no rows)"
    assert content(shop, "SELECT sum(price) * 1.1 AS total FROM books") == "total: 22.55"
    assert content(shop, "SELECT max(price) FROM books WHERE id > 9") == "max(price): NULL"
    assert content(shop, "WITH c AS (SELECT title FROM cheap) SELECT count(*) AS n FROM c") == "n: 1"
    assert content(shop, "SELECT x'00ff' AS raw, 'a' || char(10) || 'b' AS two") == "raw | two\n<2 bytes> | a b"
    result = shop.run({"sql": "SELECT title, stock FROM books ORDER BY stock"})
    assert result.data == {
        "columns": ["title", "stock"], "rows": [["O'Hara's Lamp", 0], ["The Salt Road", 3]], "more": False,
        "sql": "SELECT title, stock FROM books ORDER BY stock",
    }  # fmt: skip
    assert not result.is_error


def test_spec_and_schema(shop: DatabaseTool) -> None:
    assert shop.spec.parameters == {"type": "object", "properties": {"sql": {"type": "string"}}, "required": ["sql"]}
    assert shop.schema_text() == (
        "customers(id, name, city)\nbooks(id, title, author, price, stock)\nmailing(name, contact)\ncheap(title)"
    )
    assert shop.run({"query": "x"}).content.startswith("error: query_database has no argument 'query'")


def test_limits_of_rows_and_characters(path: Path) -> None:
    rows = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 50) SELECT i, 'word' AS w FROM n"
    few = DatabaseTool(path, row_limit=3).run({"sql": rows})
    assert few.content == "i | w\n1 | word\n2 | word\n3 | word\n(… more rows)"
    assert len(few.data["rows"]) == 3
    assert few.data["more"]
    short = DatabaseTool(path, row_limit=50, characters=100).run({"sql": rows})
    assert len(short.content) <= 100
    assert short.content.endswith("(… more rows)")
    assert len(short.data["rows"]) == 50
    wide = DatabaseTool(path, characters=100).run({"sql": "SELECT " + LONG + " AS x, 1 AS y"})
    assert len(wide.content) <= 100
    assert len(wide.data["rows"][0][0]) == 2000


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        ("SELECT titel FROM books", "no such column: titel. Did you mean books.title"),
        ("SELECT city FROM books", "no such column: city: it is customers.city"),
        ("SELECT * FROM book", "no such table: book. Did you mean 'books'?"),
        ("SELEC * FROM books", 'near "SELEC": syntax error'),
        ("SELECT title FROM books, cheap", "ambiguous column name: title: it is books.title or cheap.title"),
        ("SELECT upper(title, 1) FROM books", "wrong number of arguments"),
        ("SELECT nosuch(1)", "no such function"),
        ("SELECT title FROM books WHERE id = ?", "write the value itself"),
        ("SELECT * FROM (SELECT 1", "incomplete input"),
        ("", "write one SELECT"),
        ("-- nothing", "write one SELECT"),
        ("SELECT '\ud800'", "cannot be read as text"),
        ("SELECT 1\x00", "null character"),
        ("SELECT " + "1," * 9000 + "1", "at most 10000"),
    ],
)
def test_errors_help_the_model(shop: DatabaseTool, sql: str, words: str) -> None:
    result = shop.run({"sql": sql})
    assert result.is_error
    assert words in result.content
    assert "\n" not in result.content


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT email FROM customers",
        "SELECT * FROM customers",
        "SELECT name FROM customers WHERE email LIKE 'a%'",
        "SELECT name FROM customers ORDER BY email",
        "SELECT count(EMAIL) FROM customers",
        "SELECT contact FROM mailing",
        "SELECT name FROM mailing",
        "SELECT q FROM (SELECT email AS q FROM customers)",
        "WITH c AS (SELECT * FROM customers) SELECT 1 FROM c",
        'SELECT c."email" FROM customers AS c',
        "SELECT name FROM customers NATURAL JOIN (SELECT 'ada@x.org' AS email)",
        "SELECT name FROM customers JOIN (SELECT 'ada@x.org' AS email) USING (email)",
        "SELECT name FROM customers JOIN (SELECT 'ada@x.org' AS email) USING/**/(id, \"Email\")",
        "SELECT sample FROM sqlite_stat4",
    ],
)
def test_private_columns_stay_private(shop: DatabaseTool, sql: str) -> None:
    result = shop.run({"sql": sql})
    assert result.is_error
    assert "ada" not in result.content.lower().replace("'ada@x.org'", "")
    assert "private" in result.content or "NATURAL" in result.content or "sqlite_stat4" in result.content


def test_what_only_looks_private(shop: DatabaseTool, path: Path) -> None:
    assert content(shop, "SELECT 'natural join using (email)' AS t") == "t: natural join using (email)"
    assert content(shop, "SELECT count(*) AS n FROM customers JOIN customers AS d USING (id)") == "n: 2"
    assert content(DatabaseTool(path), "SELECT email FROM customers WHERE id = 1") == "email: ada@x.org"
    assert joined_columns("SELECT natural FROM t", ["email"]) == ""
    with pytest.raises(InputError, match="emial"):
        DatabaseTool(path, deny_columns=["customers.emial"])


ATTACKS = """
INSERT INTO books VALUES (9, 'x', 'y', 1, 1)
UPDATE books SET price = 0
DELETE FROM books
REPLACE INTO books VALUES (1, 'x', 'y', 1, 1)
INSERT INTO books SELECT * FROM books RETURNING id
UPDATE books SET price = 0 RETURNING price
WITH x AS (SELECT 1) DELETE FROM books
WITH x AS (SELECT 1) INSERT INTO books SELECT 8, 'x', 'y', 1, 1
DROP TABLE books
DROP VIEW cheap
DROP INDEX by_email
CREATE TABLE evil(x)
CREATE TABLE evil AS SELECT * FROM books
CREATE TEMP TABLE evil(x)
CREATE TEMP VIEW evil AS SELECT 1
CREATE VIEW evil AS SELECT 1
CREATE INDEX evil ON books(title)
CREATE TRIGGER evil AFTER INSERT ON books BEGIN DELETE FROM books; END
CREATE VIRTUAL TABLE evil USING fts5(x)
CREATE VIRTUAL TABLE evil USING csv(filename='/etc/passwd')
ALTER TABLE books ADD COLUMN evil
ALTER TABLE books RENAME TO evil
REINDEX
ANALYZE
VACUUM
VACUUM INTO 'evil.sqlite'
ATTACH DATABASE 'evil.sqlite' AS evil
ATTACH ':memory:' AS evil
ATTACH 'file:evil.sqlite?mode=rwc' AS evil
DETACH main
EXPLAIN ATTACH 'evil.sqlite' AS evil
EXPLAIN DELETE FROM books
PRAGMA writable_schema = ON
PRAGMA journal_mode = WAL
PRAGMA query_only = OFF
PRAGMA user_version = 7
PRAGMA table_info(books)
PRAGMA database_list
PRAGMA temp_store_directory = 'evil'
PRAGMA wal_checkpoint
BEGIN
BEGIN IMMEDIATE
COMMIT
ROLLBACK
SAVEPOINT evil
RELEASE evil
SELECT 1; DELETE FROM books
SELECT 1; SELECT 2
DELETE FROM books; SELECT 1
SELECT load_extension('evil.so')
SELECT load_extension('evil.so', 'init')
SELECT writefile('evil.txt', 'x')
SELECT readfile('/etc/passwd')
SELECT edit('x', 'sh')
SELECT fts3_tokenizer('simple')
SELECT fts3_tokenizer('evil', x'4141414141414141')
SELECT randomblob(1000000000)
SELECT zeroblob(1000000000)
SELECT hex(zeroblob(900000000))
SELECT sqlite_compileoption_get(1)
SELECT sqlite_offset(id) FROM books
SELECT * FROM pragma_table_info('customers')
SELECT * FROM pragma_database_list
SELECT * FROM json_each('[1]')
SELECT * FROM dbstat
SELECT * FROM sqlite_dbpage
SELECT * FROM sqlite_stat1
SELECT * FROM temp.sqlite_temp_master
SELECT printf('%.*c', 2000000000, 'x')
SELECT printf('%2000000000d', 1)
SELECT format('%d', 1)
SELECT 'a' GLOB '*a*a*a*a*a*a*b'
SELECT title FROM books FOR UPDATE
SELECT title INTO evil FROM books
.shell touch evil
.output evil.txt
"""


@pytest.mark.parametrize("sql", ATTACKS.strip().split("\n"))
def test_refused(shop: DatabaseTool, path: Path, sql: str) -> None:
    before = digest_file(path)
    result = shop.run({"sql": sql})
    assert result.is_error, result.content
    assert len(result.content) < 300
    assert digest_file(path) == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert not Path("evil.sqlite").exists()
    assert content(shop, "SELECT count(*) AS n FROM books") == "n: 2"


NUMBERS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)"
DOUBLING = ", ".join(
    ["t0 AS (SELECT 1 FROM books)"] + [f"t{i} AS (SELECT 1 FROM t{i - 1} a, t{i - 1} b)" for i in range(1, 40)]
)
LONG = "'aaaaaaaaa'"
for _ in range(4):
    LONG = f"replace({LONG}, 'a', 'aaaaaaaaaa')"  # 90,000 letters


@pytest.mark.parametrize(
    "sql",
    [
        f"{NUMBERS} SELECT count(*) FROM n",
        f"{NUMBERS} SELECT i FROM n WHERE i < 0",
        f"{NUMBERS} SELECT max(a.i) FROM n a, n b",
        f"{NUMBERS} SELECT sum(length(hex(i))) FROM n",
        f"{NUMBERS} SELECT i FROM n ORDER BY i DESC",
        f"{NUMBERS} SELECT DISTINCT i % 7 FROM n",
        f"{NUMBERS}, m AS (SELECT i FROM n LIMIT 100000) SELECT count(*) FROM m a, m b, m c",
        f"{NUMBERS} SELECT count(*) FROM n WHERE {LONG} || i LIKE '%a%a%a%a%a%a%a%a%a%a%a%b'",
        f"{NUMBERS} SELECT count(*) FROM n WHERE instr({LONG} || i, substr({LONG}, 1, 45000) || 'b')",
        f"{NUMBERS} SELECT count(*) FROM n WHERE trim({LONG}, {LONG} || i) = ''",
        f"{NUMBERS} SELECT count(*) FROM n WHERE replace({LONG} || i, 'a', 'b') = ''",
        f"{NUMBERS} SELECT i, sum(i) OVER (ORDER BY i DESC) FROM n",
        f"WITH {DOUBLING} SELECT count(*) FROM t39",
        f"{NUMBERS} SELECT (SELECT count(*) FROM n b WHERE b.i < a.i) FROM n a WHERE a.i > 100000",
    ],
)
def test_runaways_are_stopped(shop: DatabaseTool, sql: str) -> None:
    result = shop.run({"sql": sql})
    assert result.is_error
    assert "was stopped" in result.content or "too big" in result.content or "too many references" in result.content


@pytest.mark.parametrize(
    "sql",
    [
        f"{NUMBERS} SELECT group_concat({LONG}) FROM (SELECT i FROM n LIMIT 5)",
        f"SELECT replace({LONG}, 'a', {LONG})",
        f"SELECT hex({LONG})",
        f"SELECT {LONG} || {LONG}",
        f"SELECT title FROM books WHERE title LIKE {LONG}",
        "SELECT " + "*, " * 40 + "* FROM books, customers AS c",
    ],
)
def test_big_values_are_refused(path: Path, sql: str) -> None:
    result = DatabaseTool(path).run({"sql": sql})
    assert result.is_error
    assert "longer than" in result.content or "too many columns" in result.content


def test_a_locked_database_is_an_answer(shop: DatabaseTool, path: Path) -> None:
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("BEGIN EXCLUSIVE")
    assert "locked" in content(shop, "SELECT count(*) FROM books")
    writer.execute("ROLLBACK")
    writer.close()
    assert content(shop, "SELECT count(*) AS n FROM books") == "n: 2"


def test_what_is_no_database(tmp_path: Path) -> None:
    text, empty, broken, bare = (tmp_path / name for name in ("a.txt", "empty", "broken", "bare"))
    text.write_text("hello, this is no database")
    empty.write_bytes(b"")
    broken.write_bytes(b"SQLite format 3\x00" + b"\x07" * 5000)
    connection = sqlite3.connect(bare)
    connection.execute("VACUUM")
    connection.close()
    sqlite3.connect(bare).execute("PRAGMA user_version = 1")
    for file, words in ((text, "begins with"), (empty, "empty"), (broken, "not a readable"), (bare, "no tables")):
        with pytest.raises(InputError, match=words):
            DatabaseTool(file)
    for missing in (tmp_path / "none.sqlite", tmp_path):
        with pytest.raises(InputError, match="not a file"):
            DatabaseTool(missing)
    assert not (tmp_path / "none.sqlite").exists()
    with pytest.raises(InputError, match="row_limit"):
        DatabaseTool(bare, row_limit=0)


def test_a_database_that_vanishes_is_an_answer(shop: DatabaseTool, path: Path) -> None:
    path.unlink()
    result = shop.run({"sql": "SELECT 1"})
    assert result.is_error
    assert not path.exists()


@settings(derandomize=True, max_examples=300, deadline=None)
@given(st.text("aAbé%_\\", max_size=6), st.text("aAbBé%_", max_size=8), st.sampled_from([None, "\\"]))
def test_like_is_sqlites_like(pattern: str, text: str, escape: str | None) -> None:
    plain = sqlite3.connect(":memory:")
    if escape is None:
        assert _like(pattern, text) == plain.execute("SELECT ? LIKE ?", (text, pattern)).fetchone()[0]
    elif not pattern.endswith(escape):
        assert (
            _like(pattern, text, escape)
            == plain.execute("SELECT ? LIKE ? ESCAPE ?", (text, pattern, escape)).fetchone()[0]
        )


@settings(derandomize=True, max_examples=50, deadline=None)
@given(st.text("ab ", max_size=8), st.text("ab", max_size=3))
def test_trim_is_sqlites_trim(text: str, marks: str) -> None:
    plain = sqlite3.connect(":memory:")
    assert _trim(text, marks, str.strip) == plain.execute("SELECT trim(?, ?)", (text, marks)).fetchone()[0]
    assert _trim(None, marks, str.strip) is None
