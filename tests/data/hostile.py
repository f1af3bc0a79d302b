"""Databases that nobody tidied up: what real files hold and demos do not, and files that are none."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

__all__ = ["REFUSED", "SCHEMAS", "make"]

NAMES = [
    "Ada Park",
    "Ben Moor",
    "Cleo Ray",
    "Dan O'Neil",
    "Eve Stone",
    "Finn Hall",
    "Gus Lane",
    "Hal West",
    "Ida Bloom",
    "Jon Reed",
    "Kit Marsh",
    "Lea Frost",
]
CITIES = ["Leeds", "York", "Hull"]
Rows = Iterator[tuple[str, Sequence[tuple[object, ...]]]]


def quoted() -> Rows:
    """Spaces, quotes and brackets in names."""
    yield (
        'CREATE TABLE "Order Details" ("Order ID" INTEGER PRIMARY KEY, "Ship ""Name""" TEXT, "Unit Price ($)" REAL)',
        [],
    )
    values = [(n, f'{name}\'s "ship"', n * 1.5) for n, name in enumerate(NAMES)]
    yield 'INSERT INTO "Order Details" VALUES (?, ?, ?)', values


def sql_words() -> Rows:
    """Tables and columns called like SQL."""
    yield 'CREATE TABLE "group" (id INTEGER PRIMARY KEY, "name" TEXT, "order" INTEGER, "select" TEXT)', []
    yield 'CREATE TABLE "table" (id INTEGER PRIMARY KEY, "values" TEXT, "group" INTEGER REFERENCES "group"(id))', []
    yield 'INSERT INTO "group" VALUES (?, ?, ?, ?)', [(n, name, n % 5, CITIES[n % 3]) for n, name in enumerate(NAMES)]
    yield 'INSERT INTO "table" VALUES (?, ?, ?)', [(n, f"thing {n}", n % 12) for n in range(40)]


def no_keys() -> Rows:
    """Neither keys nor links, only columns."""
    yield "CREATE TABLE sales (region TEXT, amount REAL, sold_on TEXT)", []
    days = [f"2023-{1 + n % 12:02d}-{1 + n % 28:02d}" for n in range(60)]
    yield "INSERT INTO sales VALUES (?, ?, ?)", [(CITIES[n % 3], n * 10.25, day) for n, day in enumerate(days)]


def one_table() -> Rows:
    """A single table of a single column."""
    yield "CREATE TABLE words (word TEXT)", []
    yield "INSERT INTO words VALUES (?)", [(f"word{n:03d}",) for n in range(30)]


def sixty() -> Rows:
    """Sixty tables; those with many rows and links matter."""
    for number in range(60):
        link = f", module_{number - 1:02d}_id INTEGER REFERENCES module_{number - 1:02d}(id)" if number else ""
        extra = "".join(f", attribute_{part} TEXT" for part in range(6))
        yield f"CREATE TABLE module_{number:02d} (id INTEGER PRIMARY KEY, name TEXT{extra}{link})", []
        rows = [(n, f"{name} {number}", n % 12) for n, name in enumerate(NAMES)]
        if number:
            yield f"INSERT INTO module_{number:02d}(id, name, module_{number - 1:02d}_id) VALUES (?, ?, ?)", rows


def empty() -> Rows:
    """Tables without a row."""
    yield "CREATE TABLE visitors (id INTEGER PRIMARY KEY, name TEXT, seen DATE)", []
    yield "CREATE TABLE rooms (id INTEGER PRIMARY KEY, name TEXT, seats INTEGER)", []


def chinese() -> Rows:
    """Chinese names and values."""
    yield "CREATE TABLE 客户 (客户编号 INTEGER PRIMARY KEY, 姓名 TEXT, 城市 TEXT, 生日 TEXT)", []
    yield "CREATE TABLE 订单 (订单编号 INTEGER PRIMARY KEY, 客户编号 INTEGER, 金额 REAL, 下单日期 TEXT)", []
    people = [
        (
            n,
            f"{'王李张刘陈'[n % 5]}{'伟芳娜敏静丽强磊'[n % 8]}{n}",
            "北京上海广州"[n % 3 * 2 :][:2],
            f"19{60 + n}-05-0{1 + n % 9}",
        )
        for n in range(24)
    ]
    yield "INSERT INTO 客户 VALUES (?, ?, ?, ?)", people
    yield "INSERT INTO 订单 VALUES (?, ?, ?, ?)", [(n, n % 20, n * 3.5, f"2024-0{1 + n % 9}-11") for n in range(80)]


def blob() -> Rows:
    """Pictures, and text where bytes were declared."""
    yield "CREATE TABLE pictures (id INTEGER PRIMARY KEY, title TEXT, image BLOB, note)", []
    yield (
        "INSERT INTO pictures VALUES (?, ?, ?, ?)",
        [(n, f"Picture of {x}", b"\0\xff" * 9, None) for n, x in enumerate(NAMES)],
    )


def views() -> Rows:
    """Views, one of them broken, one slow to read."""
    yield "CREATE TABLE cars (id INTEGER PRIMARY KEY, model TEXT, price REAL, city TEXT)", []
    yield (
        "INSERT INTO cars VALUES (?, ?, ?, ?)",
        [(n, f"Model {name}", 1000.0 * n, CITIES[n % 3]) for n, name in enumerate(NAMES)],
    )
    yield "CREATE VIEW cheap_cars AS SELECT model, price FROM cars WHERE price < 5000", []
    yield "CREATE VIEW broken AS SELECT missing FROM nowhere", []


def composite() -> Rows:
    """Keys of two columns, and links over two."""
    yield "CREATE TABLE seats (hall TEXT, number INTEGER, price REAL, PRIMARY KEY (hall, number))", []
    yield (
        (
            "CREATE TABLE bookings (id INTEGER PRIMARY KEY, guest TEXT, hall TEXT, seat INTEGER, "
            "FOREIGN KEY (hall, seat) REFERENCES seats(hall, number))"
        ),
        [],
    )
    yield "INSERT INTO seats VALUES (?, ?, ?)", [("AB"[n % 2], n, 10.0 + n) for n in range(30)]
    yield "INSERT INTO bookings VALUES (?, ?, ?, ?)", [(n, name, "AB"[n % 2], n) for n, name in enumerate(NAMES)]


def undeclared() -> Rows:
    """Links that no one declared, over names and values; a junction; a manager."""
    yield "CREATE TABLE tbl_customers (customer_id INTEGER, full_name TEXT, city TEXT, boss_no INTEGER)", []
    yield "CREATE TABLE tbl_products (product_id INTEGER, product_name TEXT, price REAL)", []
    yield (
        "CREATE TABLE tbl_orders (order_no INTEGER, customer_id INTEGER, product_id INTEGER, qty INTEGER, ord_dt TEXT)",
        [],
    )
    yield "INSERT INTO tbl_customers VALUES (?, ?, ?, ?)", [(n, name, CITIES[n % 3], 0) for n, name in enumerate(NAMES)]
    yield (
        "INSERT INTO tbl_products VALUES (?, ?, ?)",
        [(100 + n, f"Thing {name}", 2.5 * n) for n, name in enumerate(NAMES)],
    )
    rows = [(n, n % 10, 100 + n % 11, 1 + n % 4, f"2022-0{1 + n % 9}-15 08:00:00") for n in range(90)]
    yield "INSERT INTO tbl_orders VALUES (?, ?, ?, ?, ?)", rows


def wide() -> Rows:
    """A table of 120 columns."""
    columns = ", ".join(f"measure{n} REAL" for n in range(118))
    yield f"CREATE TABLE readings (id INTEGER PRIMARY KEY, station TEXT, {columns})", []
    marks = ", ".join("?" * 120)
    yield (
        f"INSERT INTO readings VALUES ({marks})",
        [(n, CITIES[n % 3], *(n * m / 7 for m in range(118))) for n in range(30)],
    )


def odd_names() -> Rows:
    """Quotes, dots, brackets, emoji, right-to-left, digits in front, blanks behind, 200 characters, no character."""
    tables = [
        "a.b",
        "[x]",
        "it's",
        'say "hi"',
        "2024 sales",
        "🚀 launches",
        "جدول",
        "trailing ",
        "n" * 200,
        "{v}",
        "%s",
    ]
    columns = ["", "col.umn", "br[ac]ket", 'q"uote', "1st", "🦄", "اسم", "name ", "c" * 200, "{e}", "-- x", "a;b"]
    for number, table in enumerate(tables):
        inside = ", ".join('"' + column.replace('"', '""') + '" TEXT' for column in columns)
        name = '"' + table.replace('"', '""') + '"'
        yield f"CREATE TABLE {name} (id INTEGER PRIMARY KEY, {inside})", []
        rows = [(n, *(f"{person} {m % 3} {number}" for m in range(len(columns)))) for n, person in enumerate(NAMES)]
        yield f"INSERT INTO {name} VALUES ({', '.join('?' * (len(columns) + 1))})", rows


def control_characters() -> Rows:
    """Line ends, tabs and bells in names, in a table that links and in one that is empty."""
    yield 'CREATE TABLE "two\nlines" (id INTEGER PRIMARY KEY, "na\nme" TEXT, "bell\x07" TEXT, email TEXT)', []
    yield 'CREATE TABLE "bell\x07s" (id INTEGER PRIMARY KEY, "tab\tbed" TEXT, "two\nlines_id" INTEGER)', []
    yield 'CREATE TABLE "em\x07pty\u2028" (id INTEGER PRIMARY KEY, "user\x07 email" TEXT)', []
    yield 'INSERT INTO "two\nlines" VALUES (?, ?, ?, ?)', [(n, x, CITIES[n % 3], "e") for n, x in enumerate(NAMES)]
    yield 'INSERT INTO "bell\x07s" VALUES (?, ?, ?)', [(n, f"Bell {n}", n % 12) for n in range(30)]


def no_text() -> Rows:
    """One table of numbers only, without a key."""
    yield "CREATE TABLE samples (a INTEGER, b REAL, c INTEGER)", []
    yield "INSERT INTO samples VALUES (?, ?, ?)", [(n, n * 0.37, n % 4) for n in range(50)]


def all_null() -> Rows:
    """Rows whose columns hold nothing."""
    yield "CREATE TABLE forms (id INTEGER PRIMARY KEY, name TEXT, sent DATE, total REAL)", []
    yield "INSERT INTO forms VALUES (?, NULL, NULL, NULL)", [(n,) for n in range(20)]


def generated() -> Rows:
    """Columns that are computed, stored and not."""
    yield (
        "CREATE TABLE lines (id INTEGER PRIMARY KEY, title TEXT, price REAL, qty INTEGER, "
        "total REAL GENERATED ALWAYS AS (price * qty) STORED, upper_title TEXT AS (upper(title)))",
        [],
    )
    rows = [(n, f"Line {name}", n * 1.5, 1 + n % 4) for n, name in enumerate(NAMES)]
    yield "INSERT INTO lines(id, title, price, qty) VALUES (?, ?, ?, ?)", rows


def strict() -> Rows:
    """STRICT and WITHOUT ROWID."""
    yield "CREATE TABLE cities (code TEXT PRIMARY KEY, city TEXT NOT NULL, people INT) STRICT, WITHOUT ROWID", []
    yield (
        "INSERT INTO cities VALUES (?, ?, ?)",
        [(f"C{n:02d}", f"{n}ton {name}", n * 900) for n, name in enumerate(NAMES)],
    )


def indexes() -> Rows:
    """Full-text and R-tree tables with their shadow tables."""
    yield "CREATE TABLE notes (id INTEGER PRIMARY KEY, title TEXT, body TEXT)", []
    yield (
        "INSERT INTO notes VALUES (?, ?, ?)",
        [(n, f"Note of {name}", f"{name} wrote") for n, name in enumerate(NAMES)],
    )
    yield "CREATE VIRTUAL TABLE notes_search USING fts5(title, body, content='notes', content_rowid='id')", []
    yield "INSERT INTO notes_search(notes_search) VALUES ('rebuild')", []
    yield "CREATE VIRTUAL TABLE places USING rtree(id, low, high, +label TEXT)", []
    yield "INSERT INTO places VALUES (?, ?, ?, ?)", [(n, n * 1.0, n + 2.0, name) for n, name in enumerate(NAMES)]


def bad_views() -> Rows:
    """Views that lead to each other, never end, or call what is not there."""
    yield from views()
    yield "CREATE VIEW one AS SELECT * FROM other", []
    yield "CREATE VIEW other AS SELECT * FROM one", []
    yield "CREATE VIEW endless AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n", []
    yield "CREATE VIEW unknown AS SELECT no_such_function(model) AS x FROM cars", []
    yield "CREATE VIEW twice AS SELECT model, model FROM cars", []


def same_but_for_case() -> Rows:
    """Names that Python's lower() makes equal and SQLite does not; a column called like its table."""
    yield 'CREATE TABLE "Ärzte" (id INTEGER PRIMARY KEY, Name TEXT, "Ärzte" TEXT)', []
    yield 'CREATE TABLE "ärzte" (id INTEGER PRIMARY KEY, "É" TEXT, "é" TEXT, arzt_id REFERENCES "Ärzte"(id))', []
    yield 'INSERT INTO "Ärzte" VALUES (?, ?, ?)', [(n, name, name.upper()) for n, name in enumerate(NAMES)]
    yield 'INSERT INTO "ärzte" VALUES (?, ?, ?, ?)', [(n, name, CITIES[n % 3], n) for n, name in enumerate(NAMES)]


def dates() -> Rows:
    """Days and times in the forms that people and programs write them."""
    yield (
        "CREATE TABLE visits (id INTEGER PRIMARY KEY, guest TEXT, iso TEXT, stamp TEXT, european TEXT, american TEXT, "
        "german TEXT, seconds_at INTEGER, millis_ts INTEGER, digits INTEGER, time_only TEXT, month_only TEXT)",
        [],
    )
    rows = []
    for n, name in enumerate(NAMES * 3):
        year, month, day = 2010 + n % 5, 1 + n % 12, 1 + n % 28
        second = 1262304000 + n * 5_000_000
        iso = f"{year}-{month:02d}-{day:02d}"
        rows.append(
            (n, f"{name} {n}", iso, f"{iso}T08:{n:02d}:00Z", f"{day:02d}/{month:02d}/{year}",
             f"{month:02d}/{day:02d}/{year}", f"{day}.{month}.{year}", second, second * 1000 + n,
             year * 10_000 + month * 100 + day, f"{n % 24:02d}:30", f"{year}-{month:02d}")
        )  # fmt: skip
    yield f"INSERT INTO visits VALUES ({', '.join('?' * 12)})", rows


def very_wide() -> Rows:
    """A table of 300 columns."""
    columns = ", ".join(f"measure_of_sensor_{n} REAL" for n in range(298))
    yield f"CREATE TABLE readings (id INTEGER PRIMARY KEY, station TEXT, {columns})", []
    marks = ", ".join("?" * 300)
    yield f"INSERT INTO readings VALUES ({marks})", [(n, CITIES[n % 3], *range(n, n + 298)) for n in range(20)]


def tree() -> Rows:
    """Rows that are their own parents' children, one of them its own parent."""
    yield "CREATE TABLE parts (id INTEGER PRIMARY KEY, name TEXT, parent_id INTEGER REFERENCES parts(id))", []
    yield "INSERT INTO parts VALUES (?, ?, ?)", [(n, f"Part {name}", n // 3) for n, name in enumerate(NAMES)]


def circle() -> Rows:
    """Foreign keys in a circle, one to a table that is not there, one to a column that is not there."""
    yield "CREATE TABLE teams (id INTEGER PRIMARY KEY, name TEXT, captain_id INTEGER REFERENCES players(id))", []
    yield (
        "CREATE TABLE players (id INTEGER PRIMARY KEY, name TEXT, team_id INTEGER REFERENCES teams(id), "
        "club_id INTEGER REFERENCES clubs(id), city TEXT REFERENCES teams(town))",
        [],
    )
    yield "INSERT INTO teams VALUES (?, ?, ?)", [(n, f"Team {n}", n * 2) for n in range(4)]
    yield "INSERT INTO players VALUES (?, ?, ?, ?, ?)", [(n, x, n % 4, n, CITIES[n % 3]) for n, x in enumerate(NAMES)]


def one_row() -> Rows:
    """A single row."""
    yield "CREATE TABLE company (id INTEGER PRIMARY KEY, name TEXT, founded DATE, capital REAL)", []
    yield "INSERT INTO company VALUES (?, ?, ?, ?)", [(1, "Acme", "1999-04-01", 5000.0)]


def odd_values() -> Rows:
    """What columns can hold: NUL, line ends, marks of a template, a megabyte, no UTF-8, the largest numbers."""
    yield "CREATE TABLE things (id INTEGER PRIMARY KEY, name TEXT, size INTEGER, weight REAL, mixed)", []
    texts = ["a\0b", "two\nlines", "{v} {e} %s", "<script>", "' OR 1=1 --", "", " ", "x" * 1_000_000, "\ufeffmark"]
    sizes = [2**63 - 1, -(2**63), 0, 1, 2, 3, 4, 5, 6]
    weights = [float("inf"), float("-inf"), 1e308, -1e308, 5e-324, 0.1, 0.2, 0.3, 0.4]
    rows = [(n, *values, b"\xff" if n == 4 else n) for n, values in enumerate(zip(texts, sizes, weights, strict=True))]
    yield "INSERT INTO things VALUES (?, ?, ?, ?, ?)", rows
    yield "INSERT INTO things(id, name, size) VALUES (?, CAST(? AS TEXT), ?)", [(90, b"\xff\xfe no text", 7)]
    yield "INSERT INTO things(id, name, size) VALUES (?, ?, ?)", [(100 + n, name, n) for n, name in enumerate(NAMES)]


def utf16() -> Rows:
    """A file whose text is UTF-16, with automatic keys."""
    yield "PRAGMA encoding = 'UTF-16le'", []
    yield "CREATE TABLE stores (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT, city TEXT)", []
    yield "INSERT INTO stores(name, city) VALUES (?, ?)", [(f"Störe {x}", CITIES[n % 3]) for n, x in enumerate(NAMES)]


SCHEMAS: dict[str, Callable[[], Rows]] = {
    maker.__name__: maker
    for maker in (
        quoted,
        sql_words,
        no_keys,
        one_table,
        sixty,
        empty,
        chinese,
        blob,
        views,
        composite,
        undeclared,
        wide,
        odd_names,
        control_characters,
        no_text,
        all_null,
        generated,
        strict,
        indexes,
        bad_views,
        same_but_for_case,
        dates,
        very_wide,
        tree,
        circle,
        one_row,
        odd_values,
        utf16,
    )
}


def make(name: str, path: Path) -> Path:
    """Write one of the databases."""
    with closing(sqlite3.connect(path)) as connection:
        for sql, rows in SCHEMAS[name]():
            connection.executemany(sql, rows) if rows else connection.execute(sql)
        connection.commit()
    return path


def zero_bytes(path: Path) -> None:
    """An empty file."""
    path.write_bytes(b"")


def garbage(path: Path) -> None:
    """Bytes of no form, as an encrypted database looks."""
    path.write_bytes(random.Random(1).randbytes(20_000))


def broken(path: Path) -> None:
    """A database whose pages after the first are overwritten."""
    make("undeclared", path)
    head = path.read_bytes()[:100]
    path.write_bytes(head + b"\x07" * 20_000)


def cut(path: Path) -> None:
    """A database of which half arrived."""
    make("sixty", path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def only_bytes(path: Path) -> None:
    """A table of nothing but a BLOB."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE cache (data BLOB)")
        connection.execute("INSERT INTO cache VALUES (x'00ff')")
        connection.commit()


def folder(path: Path) -> None:
    """A folder where a file should be."""
    path.mkdir()


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "zero_bytes": (zero_bytes, "is empty"),
    "garbage": (garbage, "is not an SQLite database"),
    "broken": (broken, "is not a readable SQLite database"),
    "cut": (cut, "is not a readable SQLite database"),
    "only_bytes": (only_bytes, "nothing to ask about"),
    "folder": (folder, "is a folder"),
}
"""What makes a file that is refused, and words of the sentence."""
