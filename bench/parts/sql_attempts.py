"""What the query tool is attacked with: a database, and statements that must write nothing, tell nothing, never hang.

Sorted by what they try. `REFUSED` kinds must be answered with an error; the others may be answered, in time.
"""

from __future__ import annotations

import random
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["ATTEMPTS", "DENIED", "OUTSIDE", "REFUSED", "SCRIPT", "SECRET", "mutations"]

OUTSIDE = Path(tempfile.gettempdir()) / "riverrun-evil.sqlite"
"""A file that no attempt may make."""
SECRET = "xyzzy-secret"
"""Stands in every private value and in no attempt; an answer that holds it told something."""
DENIED = ("email", "users.token")
SCRIPT = f"""
CREATE TABLE customers(id INTEGER PRIMARY KEY, name TEXT, city TEXT, email TEXT);
CREATE TABLE books(id INTEGER PRIMARY KEY, title TEXT, author TEXT, price REAL, stock INTEGER);
CREATE TABLE users(token TEXT PRIMARY KEY, name TEXT, customer_id INTEGER REFERENCES customers(id)) WITHOUT ROWID;
CREATE TABLE log(at TEXT, what TEXT);
CREATE VIEW mailing AS SELECT name, email AS contact FROM customers;
CREATE VIEW cheap AS SELECT title FROM books WHERE price < 10;
CREATE INDEX by_email ON customers(email);
CREATE TRIGGER logged AFTER UPDATE ON books BEGIN INSERT INTO log VALUES ('now', 'updated'); END;
CREATE TRIGGER through INSTEAD OF INSERT ON cheap BEGIN INSERT INTO books(title) VALUES (new.title); END;
CREATE VIRTUAL TABLE pages USING fts5(title, body);
CREATE VIRTUAL TABLE shapes USING rtree(id, low, high);
INSERT INTO customers VALUES (1, 'Ada Vale', 'Bonn', 'ada-{SECRET}'), (2, 'Bo Reed', 'Graz', 'bo-{SECRET}');
INSERT INTO users VALUES ('t1-{SECRET}', 'Ada', 1), ('t2-{SECRET}', 'Bo', 2);
INSERT INTO pages VALUES ('Returns', 'Thirty days to send a book back'), ('Delivery', 'Two days');
INSERT INTO shapes VALUES (1, 0, 1), (2, 1, 2);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 400)
INSERT INTO books SELECT i, 'Book ' || i, 'Author ' || (i % 20), 5 + i % 30, i % 7 FROM n;
ANALYZE;
"""
NUMBERS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)"
DOUBLING = ", ".join(
    ["t0 AS (SELECT 1 FROM books)"] + [f"t{i} AS (SELECT 1 FROM t{i - 1} a, t{i - 1} b)" for i in range(1, 40)]
)
LONG = "'aaaaaaaaa'"
for _ in range(4):
    LONG = f"replace({LONG}, 'a', 'aaaaaaaaaa')"  # 90,000 letters

REFUSED: Mapping[str, Sequence[str]] = {
    "write": (
        "INSERT INTO books VALUES (9999, 'x', 'y', 1, 1)",
        "INSERT INTO books DEFAULT VALUES",
        "INSERT INTO cheap VALUES ('x')",
        "INSERT OR REPLACE INTO books VALUES (1, 'x', 'y', 1, 1)",
        "INSERT INTO books(id) VALUES (1) ON CONFLICT(id) DO UPDATE SET price = 0",
        "INSERT INTO books SELECT * FROM books RETURNING id",
        "INSERT INTO pages VALUES ('x', 'y')",
        "INSERT INTO pages(pages) VALUES ('optimize')",
        "INSERT INTO pages(pages, rank) VALUES ('rank', 'bm25(10.0)')",
        "INSERT INTO shapes VALUES (9, 0, 1)",
        "REPLACE INTO books VALUES (1, 'x', 'y', 1, 1)",
        "UPDATE books SET price = 0",
        "UPDATE books SET price = 0 RETURNING price",
        "UPDATE books SET price = c.id FROM customers AS c WHERE c.id = books.id",
        "UPDATE OR IGNORE books SET id = 1",
        "UPDATE books SET stock = 0 ORDER BY id LIMIT 1",
        "DELETE FROM books",
        "DELETE FROM books WHERE id = 1 RETURNING *",
        "WITH x AS (SELECT 1) DELETE FROM books",
        "WITH x AS (SELECT 1) INSERT INTO books SELECT 8000, 'x', 'y', 1, 1",
        "WITH x(i) AS (VALUES (1)) UPDATE books SET price = 0 WHERE id IN (SELECT i FROM x)",
        "INSERT INTO sqlite_master VALUES ('table', 'evil', 'evil', 0, 'CREATE TABLE evil(x)')",
        "UPDATE sqlite_master SET sql = 'CREATE TABLE books(x)' WHERE name = 'books'",
        "UPDATE sqlite_schema SET sql = NULL",
        "DELETE FROM sqlite_master",
        "DELETE FROM sqlite_stat1",
        "UPDATE sqlite_sequence SET seq = 9",
        "EXPLAIN DELETE FROM books",
        "EXPLAIN QUERY PLAN DELETE FROM books",
        "dELeTe/**/frOM\tbooks",
        "\ufeffDELETE FROM books",
        "(DELETE FROM books)",
        "SELECT * FROM (DELETE FROM books RETURNING *)",
        "WITH d AS (DELETE FROM books RETURNING id) SELECT * FROM d",
    ),
    "schema": (
        "DROP TABLE books",
        "DROP TABLE IF EXISTS main.books",
        "DROP VIEW cheap",
        "DROP INDEX by_email",
        "DROP TRIGGER logged",
        "CREATE TABLE evil(x)",
        "CREATE TABLE evil AS SELECT * FROM books",
        "CREATE TABLE IF NOT EXISTS books(x)",
        "CREATE TEMP TABLE evil(x)",
        "CREATE TABLE temp.evil(x)",
        "CREATE TEMP VIEW evil AS SELECT 1",
        "CREATE TEMP TRIGGER evil AFTER INSERT ON books BEGIN SELECT 1; END",
        "CREATE VIEW evil AS SELECT 1",
        "CREATE INDEX evil ON books(title)",
        "CREATE UNIQUE INDEX evil ON books(title) WHERE stock > 0",
        "CREATE TRIGGER evil AFTER INSERT ON books BEGIN DELETE FROM books; END",
        "CREATE VIRTUAL TABLE evil USING fts5(x)",
        "CREATE VIRTUAL TABLE evil USING fts3(tokenize=icu)",
        "CREATE VIRTUAL TABLE evil USING fts5(x, tokenize = 'unicode61 tokenchars ''evil''')",
        "CREATE VIRTUAL TABLE temp.evil USING rtree(id, a, b)",
        "CREATE VIRTUAL TABLE evil USING csv(filename='/etc/passwd')",
        "CREATE VIRTUAL TABLE evil USING dbstat",
        "CREATE VIRTUAL TABLE evil USING fts5vocab('pages', 'row')",
        "ALTER TABLE books ADD COLUMN evil",
        "ALTER TABLE books DROP COLUMN stock",
        "ALTER TABLE books RENAME TO evil",
        "ALTER TABLE books RENAME COLUMN title TO evil",
        "REINDEX",
        "ANALYZE",
        "ANALYZE books",
        "VACUUM",
        "SELECT title INTO evil FROM books",
        "SELECT * INTO OUTFILE '/tmp/riverrun-evil.sqlite' FROM books",
        "COPY books TO '/tmp/riverrun-evil.sqlite'",
        "GRANT ALL ON books TO evil",
        "TRUNCATE TABLE books",
        "EXEC xp_cmdshell 'touch evil'",
    ),
    "file": (
        "VACUUM INTO 'evil.sqlite'",
        f"VACUUM INTO '{OUTSIDE}'",
        "VACUUM main INTO 'file:evil.sqlite?mode=rwc'",
        "VACUUM INTO 'evil' || '.sqlite'",
        "ATTACH DATABASE 'evil.sqlite' AS evil",
        "ATTACH 'evil.sqlite' evil",
        f"ATTACH '{OUTSIDE}' AS evil",
        "ATTACH ':memory:' AS evil",
        "ATTACH '' AS evil",
        "ATTACH 'file:evil.sqlite?mode=rwc' AS evil",
        "ATTACH 'file:///etc/passwd?immutable=1' AS evil",
        "ATTACH 'evil' || char(46) || 'sqlite' AS evil",
        "ATTACH (SELECT 'evil.sqlite') AS evil",
        "attach/**/database\n'evil.sqlite'\rAS\t\"evil\"",
        "EXPLAIN ATTACH 'evil.sqlite' AS evil",
        "DETACH main",
        "DETACH DATABASE temp",
        "SELECT writefile('evil.txt', 'x')",
        "SELECT readfile('/etc/passwd')",
        "SELECT * FROM fsdir('/')",
        "SELECT edit('x', 'sh')",
        "SELECT load_extension('evil.so')",
        "SELECT load_extension('evil.so', 'init')",
        "SELECT LOAD_EXTENSION('./evil' || '.so')",
        "SELECT \"load_extension\"('evil.so')",
        "SELECT title FROM books ORDER BY load_extension('evil.so')",
        "SELECT fts3_tokenizer('simple')",
        "SELECT fts3_tokenizer('evil', x'4141414141414141')",
        "SELECT fts5(x'00')",
        "SELECT rtreecheck('shapes')",
        "SELECT rtreenode(2, x'0000')",
        ".shell touch evil",
        ".output evil.txt",
        ".import /etc/passwd books",
        "\\! touch evil",
    ),
    "setting": (
        "PRAGMA writable_schema = ON",
        "PRAGMA main.journal_mode = WAL",
        "PRAGMA journal_mode = DELETE",
        "PRAGMA query_only = OFF",
        "PRAGMA query_only(0)",
        "pragma/**/query_only=0",
        "PRAGMA user_version = 7",
        "PRAGMA application_id = 7",
        "PRAGMA temp_store_directory = 'evil'",
        "PRAGMA data_store_directory = 'evil'",
        "PRAGMA wal_checkpoint(TRUNCATE)",
        "PRAGMA incremental_vacuum",
        "PRAGMA optimize",
        "PRAGMA trusted_schema = ON",
        "PRAGMA hard_heap_limit = 0",
        "PRAGMA cache_size = -100000000",
        "PRAGMA mmap_size = 100000000000",
        "PRAGMA threads = 64",
        "PRAGMA integrity_check",
        "PRAGMA foreign_key_check",
        "PRAGMA table_info(books)",
        "PRAGMA database_list",
        "PRAGMA data_version",
        "EXPLAIN PRAGMA query_only = OFF",
        "SELECT * FROM pragma_table_info('customers')",
        "SELECT * FROM pragma_database_list",
        "SELECT * FROM pragma_query_only(0)",
        "SELECT * FROM pragma_journal_mode('wal')",
        "SELECT * FROM pragma_user_version",
        "SELECT (SELECT file FROM pragma_database_list LIMIT 1)",
        "SELECT b.title FROM books b JOIN pragma_table_info('books') p",
        "BEGIN",
        "BEGIN IMMEDIATE",
        "BEGIN EXCLUSIVE",
        "COMMIT",
        "END TRANSACTION",
        "ROLLBACK",
        "ROLLBACK TO evil",
        "SAVEPOINT evil",
        "RELEASE evil",
    ),
    "stacked": (
        "SELECT 1; DELETE FROM books",
        "SELECT 1; SELECT 2",
        "DELETE FROM books; SELECT 1",
        ";DELETE FROM books",
        "SELECT 1;/*;*/ATTACH 'evil.sqlite' AS evil",
        "SELECT 1 -- \nUNION SELECT 2;\nDROP TABLE books",
        "SELECT ';' ; DROP TABLE books --",
        "SELECT 1\x00; DELETE FROM books",
        "DELETE FROM books\x00",
        "SELECT 1 UNION DELETE FROM books",
        "SELECT '\ud800'; DELETE FROM books",
    ),
    "private": (
        "SELECT email FROM customers",
        "SELECT * FROM customers",
        "SELECT customers.* FROM customers",
        "SELECT count(EMAIL) FROM customers",
        "SELECT name FROM customers WHERE email LIKE 'a%'",
        "SELECT name FROM customers ORDER BY [email]",
        "SELECT name FROM customers GROUP BY `email`",
        "SELECT name FROM customers INDEXED BY by_email WHERE \"email\" > ''",
        "SELECT contact FROM mailing",
        "SELECT name FROM mailing",
        "SELECT q FROM (SELECT email AS q FROM customers)",
        "WITH c AS (SELECT * FROM customers) SELECT 1 FROM c",
        "WITH c(a, b, d, e) AS (SELECT * FROM customers) SELECT e FROM c",
        "SELECT (SELECT max(email) FROM customers)",
        "SELECT max(c.email) OVER () FROM customers AS c",
        "SELECT name FROM customers NATURAL JOIN (SELECT 'x' AS email)",
        "SELECT a.name FROM customers a JOIN customers b USING (id, email)",
        "SELECT name FROM customers WHERE EXISTS (SELECT 1 FROM books WHERE title = email)",
        "SELECT name FROM customers WHERE (id, email) = (1, 'x')",
        "SELECT CASE WHEN email > 'm' THEN 1 ELSE 0 END FROM customers",
        "SELECT id FROM customers UNION SELECT email FROM customers",
        "SELECT token FROM users",
        "SELECT u.name FROM users u WHERE u.token > 'a'",
        "TABLE customers",
        "SELECT sample FROM sqlite_stat4",
        "SELECT * FROM sqlite_stat1",
        "SELECT data FROM sqlite_dbpage",
        "SELECT * FROM dbstat",
        "SELECT * FROM sqlite_stmt",
        "SELECT * FROM bytecode('SELECT 1')",
        "SELECT * FROM temp.sqlite_temp_master",
    ),
    "function": (
        "SELECT randomblob(1000000000)",
        "SELECT zeroblob(1000000000)",
        "SELECT hex(zeroblob(900000000))",
        "SELECT printf('%.*c', 2000000000, 'x')",
        "SELECT printf('%2000000000d', 1)",
        "SELECT format('%d', 1)",
        "SELECT sqlite_compileoption_get(1)",
        "SELECT sqlite_offset(id) FROM books",
        "SELECT sqlite_source_id()",
        "SELECT last_insert_rowid(), changes(), total_changes()",
        "SELECT 'a' GLOB '*a*a*a*a*a*a*b'",
        "SELECT glob('*a*', 'a')",
        "SELECT 'aaaaaaaaaaaaaaaaaaaaaaaaaaaa!' REGEXP '(a+)+$'",
        "SELECT soundex('x')",
        "SELECT * FROM json_each('[1]')",
        "SELECT json_extract('{}', '$')",
        f"SELECT json('{'[' * 3000}')",
        "SELECT json_group_array(title) FROM books",
        "SELECT * FROM generate_series(1, 1000000000)",
        "SELECT title FROM books FOR UPDATE",
        "SELECT unistr('x'), sha3('x')",
    ),
}
"""Statements that must be answered with an error."""

BOUNDED: Mapping[str, Sequence[str]] = {
    "runaway": (
        f"{NUMBERS} SELECT count(*) FROM n",
        f"{NUMBERS} SELECT i FROM n WHERE i < 0",
        f"{NUMBERS} SELECT max(a.i) FROM n a, n b",
        f"{NUMBERS} SELECT i FROM n ORDER BY i DESC",
        f"{NUMBERS} SELECT DISTINCT i FROM n",
        f"{NUMBERS} SELECT i % 1000, count(*) FROM n GROUP BY 1",
        f"{NUMBERS} SELECT i FROM n UNION SELECT i FROM n",
        f"{NUMBERS} SELECT sum(length(hex(i))) FROM n",
        f"{NUMBERS} SELECT i, sum(i) OVER (ORDER BY i DESC) FROM n",
        f"{NUMBERS} SELECT i, rank() OVER (PARTITION BY i % 3 ORDER BY -i) FROM n",
        f"{NUMBERS} SELECT count(*) FROM n WHERE {LONG} || i LIKE '%a%a%a%a%a%a%a%a%a%a%a%b'",
        f"{NUMBERS} SELECT count(*) FROM n WHERE {LONG} || i LIKE '{'_' * 999}%b'",
        f"{NUMBERS} SELECT count(*) FROM n WHERE instr({LONG} || i, substr({LONG}, 1, 45000) || 'b')",
        f"{NUMBERS} SELECT count(*) FROM n WHERE trim({LONG}, {LONG} || i) = ''",
        f"{NUMBERS} SELECT count(*) FROM n WHERE replace({LONG} || i, 'a', 'b') = ''",
        f"{NUMBERS} SELECT count(*) FROM n a WHERE i IN (SELECT i FROM n b)",
        f"{NUMBERS} SELECT (SELECT count(*) FROM n b WHERE b.i < a.i) FROM n a WHERE a.i > 100000",
        "WITH RECURSIVE n(s) AS (SELECT 'a' UNION ALL SELECT s || s FROM n) SELECT max(length(s)) FROM n",
        "WITH RECURSIVE n(s) AS (SELECT 'a' UNION SELECT s || 'a' FROM n) SELECT count(*) FROM n",
        f"WITH RECURSIVE n(i, s) AS (SELECT 1, {LONG} UNION ALL SELECT i + 1, s FROM n) SELECT i, s FROM n ORDER BY s",
        f"WITH RECURSIVE n(i, s) AS (SELECT 1, {LONG} UNION SELECT i + 1, s || '' FROM n) SELECT count(*) FROM n",
        "WITH RECURSIVE a(i) AS (SELECT 1 UNION ALL SELECT i FROM a ORDER BY 1) SELECT count(*) FROM a",
        f"WITH {DOUBLING} SELECT count(*) FROM t39",
        f"WITH {DOUBLING} SELECT * FROM t12",
        "SELECT count(*) FROM books a, books b, books c, books d",
        "SELECT max(a.title || b.title || c.title || d.title) FROM books a, books b, books c, books d",
        "SELECT DISTINCT a.id * b.id * c.id + d.id FROM books a, books b, books c, books d",
        "SELECT a.id FROM books a, books b, books c ORDER BY a.id + b.id * c.id DESC",
        "SELECT row_number() OVER (ORDER BY a.title || b.title || c.title) FROM books a, books b, books c",
        "SELECT count(*) FROM books a LEFT JOIN books b ON a.id <> b.id LEFT JOIN books c ON b.id <> c.id + a.id",
        "SELECT count(*) FROM pages WHERE pages MATCH 'a* OR b* OR c* NOT d*'",
        "SELECT sum(a.price) OVER (ROWS BETWEEN 9999 PRECEDING AND UNBOUNDED FOLLOWING) FROM books a, books b, books c",
        f"SELECT * FROM ({' UNION ALL '.join(['SELECT a.id FROM books a, books b, books c'] * 60)}) ORDER BY 1 DESC",
    ),
    "size": (
        f"{NUMBERS} SELECT group_concat({LONG}) FROM (SELECT i FROM n LIMIT 5)",
        f"{NUMBERS} SELECT group_concat(i) FROM n",
        "SELECT group_concat(a.title || b.title) FROM books a, books b, books c",
        f"SELECT count(*) FROM (SELECT {LONG} || a.id AS s FROM books a, books b) GROUP BY s",
        f"SELECT {LONG} || a.id FROM books a, books b ORDER BY 1",
        f"SELECT replace({LONG}, 'a', {LONG})",
        f"SELECT hex({LONG})",
        f"SELECT quote({LONG}), upper({LONG}), {LONG}",
        f"SELECT {LONG} || {LONG}",
        f"SELECT title FROM books WHERE title LIKE {LONG}",
        f"SELECT max({LONG} || id), min({LONG} || id) FROM books",
        f"SELECT {', '.join([LONG] * 40)} FROM books",
        "SELECT " + "*, " * 40 + "* FROM books, books AS c",
        "SELECT " + "1, " * 3000 + "1",
        "SELECT strftime('" + "%Y" * 4000 + "', 'now')",
        "SELECT substr('x', -9223372036854775808, 9223372036854775807)",
        "SELECT round(1e308, 2147483647), round(-1e-308, -2147483648)",
        "SELECT char(" + ", ".join(["1114111"] * 120) + ")",
        "SELECT title FROM books LIMIT 9223372036854775807 OFFSET 9223372036854775807",
        "SELECT title FROM books LIMIT -1 OFFSET -9223372036854775808",
        "SELECT 9223372036854775807 + 1, -9223372036854775808 - 1, abs(-9223372036854775807 - 1)",
        "SELECT 1e999, -1e999, 1e999 - 1e999, 1 / 0, 1 % 0",
        "SELECT " + "9" * 5000,
        "SELECT 0x" + "f" * 500,
        "SELECT x'" + "00" * 4000 + "'",
        "SELECT ntile(9223372036854775807) OVER () FROM books",
        "SELECT lag(title, 9223372036854775807) OVER () FROM books",
        "SELECT nth_value(title, 2147483648) OVER () FROM books",
    ),
    "depth": (
        "SELECT " + "(" * 4000 + "1" + ")" * 4000,
        "SELECT " + "(SELECT " * 600 + "1" + ")" * 600,
        "SELECT " + "NOT " * 2000 + "1",
        "SELECT " + "- " * 4000 + "1",
        "SELECT " + "1 + " * 2400 + "1",
        "SELECT 1 WHERE " + " OR ".join(["1 = 2"] * 900),
        "SELECT " + "CASE WHEN 1 THEN " * 400 + "1" + " END" * 400,
        "SELECT id FROM books WHERE id IN (" + ", ".join(map(str, range(1500))) + ")",
        "SELECT id FROM books WHERE (id, title) IN (VALUES " + ", ".join(["(1, 'x')"] * 800) + ")",
        " UNION ALL ".join(["SELECT 1"] * 600),
        " INTERSECT ".join(["SELECT title FROM books"] * 300),
        "SELECT 1 FROM " + ", ".join(f"books b{i}" for i in range(70)),
        "SELECT count(*) FROM " + " JOIN ".join(f"books b{i}" for i in range(60)),
        "SELECT count(*) FROM " + " LEFT JOIN ".join(f"books b{i}" for i in range(60)),
        "SELECT coalesce(" + "coalesce(1, " * 500 + "1" + ")" * 501,
        "SELECT max(" + ", ".join(["1"] * 1000) + ")",
        "WITH " + ", ".join(f"c{i} AS (SELECT * FROM books)" for i in range(250)) + " SELECT 1 FROM c249",
        "WITH " + ", ".join(f"c{i} AS (SELECT * FROM c{i + 1})" for i in range(250)) + " SELECT 1 FROM c0",
        "SELECT title FROM books WINDOW " + ", ".join(f"w{i} AS (ORDER BY id)" for i in range(300)),
        "SELECT " + ", ".join(f"sum(id) OVER (ORDER BY title, {i})" for i in range(90)) + " FROM books",
    ),
    "text": (
        "",
        " ",
        ";;;;",
        "-- nothing",
        "SELECT 1 /* ; DELETE FROM books",
        "/*",
        "\x00",
        "SELECT 1\x00",
        "SELECT '\ud800'",
        "SELECT '\udfff' || '\ufdd0\U0010ffff'",
        'SELECT "' + "a" * 9000 + '"',
        "SELECT '" + "é" * 9900 + "'",
        "SELECT " + "x" * 10_001,
        "SELECT " + "1," * 100_000 + "1",
        "'" * 9999,
        "\\" * 9999,
        "SELECT * FROM [books",
        "SELECT ?1, :a, @b, $c",
        "SELECT\u00a0title\u2028FROM\u3000books",
        "SELECT title FROM books WHERE title = 'O''Brien' -- it's",
        "SELECT title, bm25(pages) FROM pages WHERE pages MATCH 'book' ORDER BY rank",
        "SELECT id FROM shapes WHERE low < 1",
        "\u202eSELECT 1",
        "SELECT sql FROM sqlite_master",
        "SELECT * FROM pages_data",
        "SELECT date('now', '" + "+1 year" * 1000 + "')",
        "SELECT datetime('9999-12-31', '+1 day'), julianday('-4714-11-24'), date(1e300)",
        "VALUES (1), (2)",
        "EXPLAIN SELECT * FROM books",
        "EXPLAIN QUERY PLAN SELECT email FROM customers",
    ),
}
"""Statements that may be answered, within the tool's seconds."""
ATTEMPTS: Sequence[tuple[str, str]] = tuple(
    (kind, sql) for group in (REFUSED, BOUNDED) for kind, statements in group.items() for sql in statements
)

_TOKEN = re.compile(r"'(?:[^']|'')*'|\w+|\s+|[^\s\w]")
_BITS = (
    *(
        "--",
        "/*",
        "*/",
        ";",
        "\x00",
        "'",
        '"',
        "`",
        "[",
        "]",
        "(",
        ")",
        "\ud83d",
        "\ufeff",
        "\u00a0",
        "NULL",
        "?",
        "||",
    ),
    *(
        "9223372036854775807",
        "-1",
        "1e999",
        "0x7fffffffffffffff",
        "books",
        "customers",
        "email",
        "token",
        "sqlite_master",
    ),
    *(
        "RECURSIVE",
        "UNION ALL",
        "NATURAL JOIN",
        "USING (email)",
        "RETURNING *",
        "temp.",
        "main.",
        "EXPLAIN ",
        "OVER ()",
    ),
    *("pragma_table_info('books')", "load_extension('evil')", "ATTACH 'evil.sqlite' AS e;", "INTO", "COLLATE NOCASE"),
)


def mutations(count: int, seed: int) -> list[str]:
    """So many changed attempts: tokens taken out, doubled, swapped, replaced; statements put into each other."""
    rng = random.Random(f"{seed}/mutations")
    texts = [sql for _, sql in ATTEMPTS if len(sql) < 5000]
    out: list[str] = []
    while len(out) < count:
        sql = rng.choice(texts)
        for _ in range(rng.randint(1, 3)):
            sql = _mutate(sql, rng.choice(texts), rng)
        out.append(sql[:12_000])
    return out


def _mutate(sql: str, other: str, rng: random.Random) -> str:
    tokens, more = _TOKEN.findall(sql) or [" "], _TOKEN.findall(other) or [" "]
    place, way = rng.randrange(len(tokens)), rng.randrange(12)
    if way < 8:
        part = slice(place, place + rng.randint(1, 4))
        new = {
            0: [],
            1: tokens[part] * rng.choice((2, 3, 50)),
            2: [rng.choice(_BITS)],
            3: [rng.choice(_BITS), *tokens[part]],
            4: [rng.choice(more)],
            5: tokens[part][::-1],
            6: [token.swapcase() for token in tokens[part]],
            7: [rng.choice(("/**/", "\t", "\n", "\f", "\v"))],
        }[way]
        tokens[part] = new
        return "".join(tokens)
    wrapped = {
        8: f"SELECT * FROM ({sql}) AS a, ({other}) AS b",
        9: f"WITH a AS ({sql}), b AS MATERIALIZED ({other}) SELECT * FROM a, b, books c",
        10: f"{sql} UNION ALL {other}",
        11: f"SELECT ({sql}) FROM customers WHERE id IN ({other})",
    }
    return wrapped[way]
