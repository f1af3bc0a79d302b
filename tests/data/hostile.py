"""Twelve databases that nobody tidied up: what real files hold and demos do not."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

__all__ = ["SCHEMAS", "make"]

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
Rows = Iterator[tuple[str, list[tuple[object, ...]]]]


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
    )
}


def make(name: str, path: Path) -> Path:
    """Write one of the databases."""
    with closing(sqlite3.connect(path)) as connection:
        for sql, rows in SCHEMAS[name]():
            connection.executemany(sql, rows) if rows else connection.execute(sql)
        connection.commit()
    return path
