"""The live tool against real servers: the answers of the SQLite tool on a snapshot, and nothing else gets through."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from riverrun.agent.tools.sql import DatabaseTool
from riverrun.agent.tools.sql_server import ServerTool
from riverrun.base.servers import Server, ServerError
from riverrun.data.servers import snapshot

Pair = tuple[ServerTool, DatabaseTool]


@pytest.fixture(scope="module", params=["postgres", "mariadb"])
def server(request: pytest.FixtureRequest) -> Server:
    """The shop as its owner, who could change it."""
    found: Server = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="module")
def file(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("snapshot") / "shop.sqlite"
    snapshot(server, out, rows_per_table=10_000, seconds=5)
    return out


@pytest.fixture(scope="module")
def pair(server: Server, file: Path) -> Pair:
    limits: dict[str, Any] = {"row_limit": 50, "seconds": 60}
    return ServerTool(server, **limits), DatabaseTool(file, **limits)


SELECTS = r"""
SELECT * FROM books ORDER BY id
SELECT Title, PRICE FROM Books WHERE price > 20 ORDER BY price DESC LIMIT 5
SELECT title FROM books WHERE id = 7
SELECT title FROM books WHERE id = '7'
SELECT COUNT(*) FROM books
SELECT COUNT(genre), COUNT(DISTINCT genre) FROM books
SELECT genre, COUNT(*) AS n FROM books GROUP BY genre ORDER BY n DESC, genre
SELECT genre, AVG(price), SUM(price), MIN(price), MAX(price), TOTAL(price) FROM books GROUP BY genre ORDER BY 1
SELECT AVG(pages), SUM(pages), SUM(pages) / COUNT(*), AVG(stock) FROM books
SELECT pages / 7, pages % 7, pages * 1.0 / 7, price / 2, -pages FROM books ORDER BY id
SELECT pages / (id - id) FROM books LIMIT 1
SELECT title FROM books WHERE title LIKE 'SALT%' ORDER BY title
SELECT title FROM books WHERE title LIKE '%\ m%' ORDER BY id
SELECT title FROM books WHERE title LIKE '50!%%' ESCAPE '!' ORDER BY id
SELECT title FROM books WHERE title NOT LIKE '%a%' ORDER BY id
SELECT title FROM books WHERE title LIKE '%it''%' ORDER BY id
SELECT COUNT(*) FROM orders WHERE ordered LIKE '2016%'
SELECT id FROM orders WHERE ordered >= '2018-01-01' AND ordered < '2019' ORDER BY id
SELECT id FROM orders WHERE ordered BETWEEN '2016-03-01' AND '2016-06-30' ORDER BY id
SELECT id, ordered, paid_at FROM orders ORDER BY ordered DESC, id LIMIT 10
SELECT DATE(ordered), TIME(ordered), DATETIME(ordered) FROM orders WHERE id = 9
SELECT strftime('%Y', ordered) AS y, COUNT(*) FROM orders GROUP BY y ORDER BY y
SELECT strftime('%Y-%m', ordered), COUNT(*) FROM orders GROUP BY strftime('%Y-%m', ordered) ORDER BY 1
SELECT strftime('%w', ordered), strftime('%j', ordered), strftime('%d/%m/%Y %H:%M:%S', ordered) FROM orders ORDER BY id
SELECT DATE(ordered, '+7 days'), DATE(ordered, 'start of month'), DATE(ordered, '-1 year') FROM orders ORDER BY id
SELECT MAX(julianday(ordered)) - MIN(julianday(ordered)) FROM orders
SELECT unixepoch(ordered) FROM orders WHERE id = 5
SELECT COUNT(*) FROM orders WHERE ordered < DATE('now') AND ordered < CURRENT_TIMESTAMP AND DATE('now', '-1 day') > ordered
SELECT "First Name", [Last Name] FROM customers WHERE `CustomerId` < 5 ORDER BY customerid
SELECT "First Name" || ' ' || "Last Name" AS name FROM Customers ORDER BY CustomerId
SELECT "First Name" FROM Customers ORDER BY "First Name", CustomerId
SELECT "Last Name" FROM Customers ORDER BY "Last Name" DESC, CustomerId
SELECT MIN("First Name"), MAX("First Name") FROM Customers
SELECT CustomerId FROM Customers WHERE active = 1 ORDER BY 1
SELECT CustomerId FROM Customers WHERE active ORDER BY 1
SELECT CustomerId FROM Customers WHERE NOT active AND since IS NOT NULL ORDER BY 1
SELECT CustomerId FROM Customers WHERE active = TRUE AND boss IS NOT 3 ORDER BY 1
SELECT active, COUNT(*) FROM Customers GROUP BY active ORDER BY active
SELECT SUM(active), AVG(active), SUM(city = 'York') FROM Customers
SELECT since FROM Customers ORDER BY since, CustomerId
SELECT since FROM Customers ORDER BY since DESC, CustomerId
SELECT c."First Name", o.id FROM Customers c JOIN orders o ON o.customer = c.CustomerId WHERE o.state = 'paid' ORDER BY o.id
SELECT c.city, COUNT(*) FROM orders o JOIN Customers AS c ON c.CustomerId = o.customer GROUP BY c.city ORDER BY 2 DESC, 1
SELECT c."First Name", COUNT(o.id) FROM Customers c LEFT JOIN orders o ON o.customer = c.CustomerId GROUP BY c.CustomerId ORDER BY 2 DESC, c.CustomerId
SELECT b.title, SUM(l.quantity) AS sold FROM order_lines l JOIN books b ON b.id = l.book GROUP BY b.id HAVING sold > 12 ORDER BY sold DESC, b.id
SELECT b.title, SUM(l.quantity * b.price) FROM order_lines l, books b WHERE l.book = b.id GROUP BY b.title ORDER BY b.title
SELECT e."First Name", m."First Name" FROM Customers e JOIN Customers m ON e.boss = m.CustomerId ORDER BY e.CustomerId
SELECT title FROM books WHERE id NOT IN (SELECT book FROM order_lines WHERE quantity > 3) ORDER BY id
SELECT title FROM books b WHERE EXISTS (SELECT 1 FROM order_lines l WHERE l.book = b.id AND l.quantity = 4) ORDER BY id
SELECT title FROM books WHERE price = (SELECT MAX(price) FROM books)
SELECT title, (SELECT COUNT(*) FROM order_lines WHERE book = books.id) AS n FROM books ORDER BY n DESC, id LIMIT 5
SELECT title FROM books WHERE price > (SELECT AVG(price) FROM books) ORDER BY price
SELECT DISTINCT genre FROM books ORDER BY genre
SELECT DISTINCT city, active FROM Customers ORDER BY city, active
SELECT city FROM Customers UNION SELECT "城市" FROM "门店" ORDER BY 1
SELECT city FROM Customers EXCEPT SELECT 城市 FROM 门店 ORDER BY city
SELECT city FROM Customers INTERSECT SELECT 城市 FROM 门店
SELECT 名称 FROM 门店 WHERE 城市 = '北京' ORDER BY 编号
SELECT COUNT(*) FROM 门店 WHERE 名称 LIKE '%店'
WITH big AS (SELECT id, title, price FROM books WHERE pages > 200) SELECT title FROM big WHERE price > 30 ORDER BY id
WITH n AS (SELECT customer, COUNT(*) AS k FROM orders GROUP BY customer) SELECT MAX(k), AVG(k) FROM n
SELECT title, RANK() OVER (ORDER BY price DESC) FROM books WHERE price IS NOT NULL ORDER BY price DESC LIMIT 4
SELECT id, ROW_NUMBER() OVER (PARTITION BY genre ORDER BY id), SUM(pages) OVER (ORDER BY id) FROM books ORDER BY id
SELECT CASE WHEN price > 50 THEN 'dear' WHEN price IS NULL THEN 'unknown' ELSE 'cheap' END AS k, COUNT(*) FROM books GROUP BY k ORDER BY k
SELECT CASE genre WHEN 'crime' THEN 1 ELSE 0 END, IIF(pages > 200, 'long', 'short') FROM books ORDER BY id
SELECT COALESCE(genre, 'none'), IFNULL(price, 0), NULLIF(stock, 0) FROM books WHERE id IN (13, 17, 26) ORDER BY id
SELECT UPPER(title), LOWER(title), LENGTH(title), SUBSTR(title, 2, 3), SUBSTR(title, -3), INSTR(title, ' ') FROM books ORDER BY id
SELECT REPLACE(title, ' ', '_'), TRIM('  x '), LTRIM(title, 'S'), ROUND(price, 1), ROUND(price), ABS(-pages) FROM books ORDER BY id
SELECT CAST(price AS INTEGER), CAST(pages AS TEXT), CAST(SUBSTR(ordered, 1, 4) AS INTEGER) + 1 FROM books JOIN orders ON books.id = orders.id ORDER BY books.id
SELECT GROUP_CONCAT(genre, '; ') FROM books WHERE id = 2
SELECT title FROM books WHERE title = 'Paper \ Moons 2'
SELECT title FROM books WHERE genre IN ('crime', 'travel') AND stock IN (1, '2') ORDER BY id
SELECT title FROM books WHERE isbn = '00000000-0000-0000-0000-000000000009'
SELECT facts, isbn, cover FROM books WHERE id = 10
SELECT state, COUNT(*) FROM orders GROUP BY state ORDER BY state
SELECT state FROM orders WHERE state > 'm' ORDER BY id
SELECT "order", "per cent %s" FROM books WHERE "order" > 7 ORDER BY id
SELECT order_id, line, reason FROM returns JOIN order_lines USING (order_id, line) ORDER BY order_id
SELECT COUNT(*) FROM returns NATURAL JOIN order_lines
SELECT pieces FROM order_totals WHERE id = 12
SELECT * FROM empty_one
SELECT COUNT(*), SUM(id), AVG(id) FROM empty_one
SELECT title FROM books WHERE genre IS NULL ORDER BY id
SELECT title FROM books WHERE genre = "crime" ORDER BY id
SELECT title FROM books ORDER BY title COLLATE NOCASE, id
SELECT genre FROM books GROUP BY genre HAVING COUNT(*) > 14 ORDER BY genre
SELECT 1 + 1, 'a' || 'b', 5 / 2, 5 / 2.0, 2 > 1, NULL
SELECT title, price FROM books ORDER BY price, id LIMIT 3 OFFSET 2
SELECT title FROM books ORDER BY id LIMIT 2, 3
SELECT note FROM orders WHERE note <> '' ORDER BY id
SELECT COUNT(*) FROM orders o JOIN orders p ON o.customer = p.customer AND o.id < p.id
SELECT c.* FROM 门店 c ORDER BY 1
SELECT MAX(quantity), order_id / 10 AS d FROM order_lines GROUP BY d ORDER BY d
SELECT id FROM books WHERE (genre, stock) = ('crime', 4) ORDER BY id
SELECT id FROM orders WHERE paid_at IS NULL AND id < 20 ORDER BY id
SELECT title FROM main.books WHERE books.id = 3
SELECT weight FROM books WHERE weight = 0.375
SELECT UPPER(title) AS title FROM books WHERE title LIKE 'salt %' AND title > 'a' ORDER BY title
SELECT UPPER(genre) AS title, COUNT(*) AS n FROM books GROUP BY title ORDER BY n DESC, 1
SELECT price AS pages, pages + 1 AS id FROM books WHERE pages > 200 ORDER BY pages, books.id
SELECT title, price * 2 AS twice FROM books WHERE twice > 100 ORDER BY twice + id DESC
SELECT COUNT(*) FILTER (WHERE active), COUNT(*) FILTER (WHERE city = 'Hull') FROM Customers
SELECT x.id FROM (SELECT id, price FROM books WHERE price < 5) AS x ORDER BY x.id
SELECT title FROM books WHERE pages > '250' AND title > 'T' ORDER BY id
"""  # noqa: E501


def alike(left: Any, right: Any) -> bool:
    if isinstance(left, list):
        return isinstance(right, list) and len(left) == len(right) and all(map(alike, left, right))
    if isinstance(left, float) or isinstance(right, float):
        return None not in (left, right) and not {str} & {type(left), type(right)} and abs(left - right) < 1e-6
    return type(left) is type(right) and bool(left == right)


@pytest.mark.parametrize("sql", SELECTS.strip().splitlines())
def test_the_same_rows_as_on_the_snapshot(pair: Pair, sql: str) -> None:
    live, copied = (tool.run({"sql": sql}) for tool in pair)
    assert not copied.is_error, copied.content
    assert not live.is_error, live.content
    assert live.data is not None
    assert copied.data is not None
    assert live.data["columns"] == copied.data["columns"]
    assert live.data["more"] == copied.data["more"]
    assert alike(live.data["rows"], copied.data["rows"]), f"{live.content}\n-- {copied.content}"


ATTEMPTS = """
INSERT INTO books (id, title) VALUES (999, 'x')
UPDATE books SET title = 'x'
DELETE FROM order_lines
DROP TABLE returns
TRUNCATE TABLE returns
ALTER TABLE books ADD COLUMN x int
CREATE TABLE t AS SELECT * FROM books
CREATE VIEW v AS SELECT * FROM books
GRANT ALL ON books TO PUBLIC
SELECT 1; DELETE FROM returns
SELECT 1; SELECT 2
SELECT 1 /* ; */; DROP TABLE returns --
WITH gone AS (DELETE FROM returns RETURNING *) SELECT * FROM gone
WITH gone AS (INSERT INTO empty_one VALUES (1, 'x') RETURNING *) SELECT * FROM gone
SELECT * INTO stolen FROM books
SELECT * FROM books INTO OUTFILE '/tmp/riverrun_stolen.txt'
SELECT title INTO DUMPFILE '/tmp/riverrun_stolen.txt' FROM books LIMIT 1
SELECT LOAD_FILE('/etc/passwd')
SELECT pg_read_file('/etc/passwd')
SELECT pg_ls_dir('/')
SELECT lo_import('/etc/passwd')
SELECT * FROM dblink('host=127.0.0.1', 'DELETE FROM returns') AS t(x int)
SELECT query_to_xml('DELETE FROM returns', true, true, '')
SELECT pg_sleep(30)
SELECT SLEEP(30)
SELECT BENCHMARK(1000000000, SHA2('x', 512))
SELECT GET_LOCK('x', 30)
SELECT pg_advisory_lock(1)
SELECT pg_terminate_backend(1)
SELECT set_config('transaction_read_only', 'off', false)
SELECT nextval('x')
SELECT version()
SELECT current_user
SELECT @@version
SELECT /*! SLEEP(30) */ 1 FROM books WHERE /*!50000 1=SLEEP(30) OR */ nope = 1
SET SESSION TRANSACTION READ WRITE
SET default_transaction_read_only = off
COPY books TO PROGRAM 'touch /tmp/riverrun_stolen.txt'
COPY books FROM '/etc/passwd'
LOAD DATA INFILE '/etc/passwd' INTO TABLE empty_one
PRAGMA writable_schema = 1
ATTACH DATABASE '/tmp/riverrun_stolen.txt' AS x
BEGIN
COMMIT
CALL shop.wipe()
DO 1
EXPLAIN ANALYZE DELETE FROM returns
VACUUM
LOCK TABLES books WRITE
PREPARE p AS DELETE FROM returns
SELECT * FROM information_schema.tables
SELECT * FROM pg_catalog.pg_shadow
SELECT * FROM mysql.user
SELECT * FROM pg_user
SELECT books FROM books
SELECT title FROM books FOR UPDATE
SELECT title FROM books WHERE id = ?
SELECT title FROM books WHERE id = :id
SELECT title::regclass FROM books
SELECT CAST(title AS regclass) FROM books
SELECT * FROM generate_series(1, 1000000000)
SELECT * FROM books, LATERAL (SELECT 1) x
VALUES (1)
WITH RECURSIVE t(x) AS (SELECT 'a' UNION ALL SELECT x || x FROM t) SELECT length(x) FROM t
SELECT replace(replace(title, 'a', 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa'), 'a', 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa') FROM books
SELECT title FROM books LIMIT (SELECT 1)
""".strip().splitlines()  # noqa: E501
ATTEMPTS += [
    "SELECT 1 -- \n; DELETE FROM returns",
    "SELECT 1 AS x\0; DELETE FROM returns",
    "SELECT 'a\\'; DELETE FROM returns -- '",
]


def everything(server: Server, out: Path) -> list[Any]:
    """All rows of all tables, read from the server."""
    snapshot(server, out, rows_per_table=10_000, seconds=5)
    with closing(sqlite3.connect(out)) as connection:
        names = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY 1")]
        return [(name, connection.execute(f'SELECT * FROM "{name}"').fetchall()) for name in names]


@pytest.fixture(scope="module")
def untouched(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("untouched")
    before = everything(server, folder / "before.sqlite")
    yield
    assert everything(server, folder / "after.sqlite") == before
    assert not Path("/tmp/riverrun_stolen.txt").exists()


@pytest.mark.parametrize("sql", ATTEMPTS)
def test_nothing_but_a_select_gets_through(pair: Pair, untouched: None, sql: str) -> None:
    """As a role that may do all of it; none of them reaches the server as it is."""
    result = pair[0].run({"sql": sql})
    assert result.is_error, result.content
    assert len(result.content) < 400
    assert "syntax" not in result.content.lower(), "the server read it"


PRIVATE = """
SELECT email FROM Customers
SELECT * FROM customers
SELECT c.EMAIL FROM Customers c
SELECT 1 FROM Customers WHERE email LIKE 'u1%'
SELECT CustomerId FROM Customers ORDER BY email
SELECT a.CustomerId FROM Customers a JOIN Customers b USING (email)
SELECT COUNT(*) FROM Customers NATURAL JOIN (SELECT * FROM Customers)
WITH x AS (SELECT * FROM Customers) SELECT city FROM x
SELECT (SELECT email FROM Customers LIMIT 1)
SELECT "email" FROM Customers
SELECT COUNT(DISTINCT email) FROM Customers
SELECT city FROM Customers GROUP BY city HAVING MAX(email) > 'a'
SELECT x.e FROM (SELECT email e FROM Customers) x
SELECT city FROM books JOIN Customers ON email = title
SELECT city FROM Customers UNION SELECT email FROM Customers
SELECT Customers.* FROM Customers
SELECT MAX(1) OVER (ORDER BY email) FROM Customers
""".strip().splitlines()


@pytest.mark.parametrize("sql", PRIVATE)
def test_private_columns_stay_private(server: Server, sql: str) -> None:
    tool = ServerTool(server, deny_columns=["Customers.email"])
    result = tool.run({"sql": sql})
    assert result.is_error
    assert "@example.org" not in result.content
    assert "Customers.email is private" in result.content
    assert not tool.run({"sql": "SELECT COUNT(*) FROM Customers"}).is_error
    assert "email" not in tool.schema_text()


def test_the_session_refuses_what_would_get_past_the_checks(server: Server) -> None:
    """Statements given to the session itself, as a role that may write."""
    table = f"{server.quote(server.schema or server.database)}.empty_one"
    with server.session(2) as session, pytest.raises(ServerError, match=r"(?i)read.only"):
        session.rows(f"INSERT INTO {table} VALUES (1, 'x')")
    with server.session(2) as session, pytest.raises(ServerError):
        session.rows(f"SELECT 1; DELETE FROM {table}")
    slow = "SELECT pg_sleep(20)" if server.dialect == "postgres" else "SELECT SLEEP(20)"
    with server.session(0.2) as session, pytest.raises(ServerError) as caught:
        session.rows(slow)
    assert caught.value.late


def test_a_runaway_is_stopped(server: Server) -> None:
    tool = ServerTool(server, seconds=0.3)
    lines = ", ".join(f"order_lines l{n}" for n in range(5))
    result = tool.run(
        {"sql": f"SELECT COUNT(*) FROM {lines} WHERE l0.quantity + l1.quantity + l2.quantity + l3.line = l4.line"}
    )
    assert "ran longer than 0.3 s and was stopped" in result.content
    doubled = ", ".join(["title AS c0", *(f"c{n} || c{n} AS c{n + 1}" for n in range(40))])
    assert tool.run({"sql": f"SELECT {doubled} FROM books"}).is_error
    listed = "SELECT title FROM books WHERE id IN (" + ",".join(map(str, range(2000))) + ")"
    assert "IN takes at most" in tool.run({"sql": listed}).content
    assert tool.run({"sql": "SELECT " + "(" * 4000 + "1" + ")" * 4000}).is_error


def test_errors_help_the_model(pair: Pair) -> None:
    live = pair[0]
    for sql, words in (
        ("SELECT titel FROM books", "no such column: titel. Did you mean books.title"),
        ("SELECT title FROM bookz", "no such table: bookz. Did you mean 'books'"),
        ("SELECT id FROM books, orders", "no such column: id: it is books.id or"),
        ("SELECT price * 2 AS d0, d0 + d0 AS d1 FROM books", "no such column: d0"),
        ("SELECT FROM WHERE", "the query cannot be read"),
        ("", "write one SELECT"),
        ("SELECT strftime('%Q', ordered) FROM orders", "strftime() does not know '%Q'"),
    ):
        assert words in live.run({"sql": sql}).content, sql


def test_rows_are_cut_and_a_rewrite_comes_first(server: Server) -> None:
    tool = ServerTool(server, row_limit=3, rewrite=lambda sql: sql.replace("tomes", "books"))
    result = tool.run({"sql": "SELECT id FROM tomes ORDER BY id"})
    assert result.data == {"columns": ["id"], "rows": [[1], [2], [3]], "more": True,
                           "sql": "SELECT id FROM books ORDER BY id"}  # fmt: skip
    assert result.content.endswith("(… more rows)")


def test_a_server_that_is_gone_is_an_answer(server: Server) -> None:
    tool = ServerTool(server)
    tool.server = replace(tool.server, port=1)
    result = tool.run({"sql": "SELECT 1"})
    assert result.content == "error: the database server cannot be reached: try again later"
