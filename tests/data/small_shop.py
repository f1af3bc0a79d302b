"""A shop of forty books, its intents and its tools: the fixture of the question and conversation tests."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import yaml

from riverrun.base.types import ToolCall, ToolResult, ToolSpec

GENRES = ["crime", "poetry", "travel", "cooking", "history"]

INTENTS = {
    "intents": [
        {
            "name": "price_of_title",
            "kind": "lookup",
            "slots": {"title": {"query": "SELECT title FROM books"}},
            "sql": "SELECT price FROM books WHERE title = {title}",
            "answer": "{title} costs ${price}.",
            "answer_none": "I could not find a book called {title}.",
            "phrasings": {
                "train": ["How much is {title}?", "Price of {title}?", "What does {title} cost?"],
                "dev": ["Tell me the price of {title}."],
                "sealed": ["I'd like to know what you charge for {title}.", "{title}, how expensive"],
            },
        },
        {
            "name": "cheap_in_genre",
            "kind": "filter",
            "slots": {
                "genre": {"query": "SELECT DISTINCT genre FROM books"},
                "price": {"range": [6, 40]},
                "limit": {"values": [2, 3], "split": False},
            },
            "sql": "SELECT title, price FROM books WHERE genre = {genre} AND price < {price} ORDER BY id LIMIT {limit}",
            "answer": "There is {title} for ${price}.",
            "answer_many": "I found: {rows}.",
            "phrasings": {
                "train": ["Show {limit} {genre} books under {price} dollars.", "{limit} {genre} titles below {price}?"],
                "dev": ["Which {limit} {genre} books cost less than {price}?"],
                "sealed": ["I have {price} dollars and like {genre}; name {limit} books."],
            },
        },
        {
            "name": "no_such_title",
            "kind": "none_found",
            "slots": {"title": {"values": [f"The Lost Ship {n}" for n in range(24)]}},
            "sql": "SELECT price FROM books WHERE title = {title}",
            "answer_none": "I could not find a book called {title}.",
            "phrasings": {
                "train": ["How much is {title}?", "Price of {title}?"],
                "dev": ["Tell me the price of {title}."],
                "sealed": ["{title}, how expensive"],
            },
        },
        {
            "name": "page_shipping",
            "kind": "page",
            "page": "shipping.html",
            "answer": "Three days.",
            "phrasings": {"train": ["How long does shipping take?"], "dev": ["When will my parcel come?"]},
        },
        {
            "name": "page_gifts",
            "kind": "page",
            "page": "gifts.html",
            "answer": "Yes, for two dollars.",
            "phrasings": {"sealed": ["Can you wrap a present?"]},
        },
        {
            "name": "greeting",
            "kind": "chat",
            "answers": ["Hello! How can I help?", "Good day!"],
            "phrasings": {"train": ["Hello", "Hi there"], "dev": ["Good morning"], "sealed": ["Hey, shop!"]},
        },
    ]
}

TOOLS = (
    ToolSpec("query_database", "Run SQL.", {"type": "object", "properties": {"sql": {"type": "string"}}}),
    ToolSpec("search_policies", "Search.", {"type": "object", "properties": {"query": {"type": "string"}}}),
)


def make_database(path: Path) -> Path:
    """Forty books, some with an apostrophe in the title."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE books(id INTEGER PRIMARY KEY, title TEXT, genre TEXT, price REAL)")
        for number in range(40):
            title = f"The Widow's Tale {number}" if number % 4 == 0 else f"Salt Road {number}"
            row = (number, title, GENRES[number % len(GENRES)], 5 + (number * 7 % 36) + 0.5)
            connection.execute("INSERT INTO books VALUES (?, ?, ?, ?)", row)
        connection.commit()
    return path


def make_intents(path: Path) -> Path:
    path.write_text(yaml.safe_dump(INTENTS), encoding="utf-8")
    return path


def tool_runner(
    database: Path, *, found: tuple[str, ...] = ("shipping.html", "gifts.html")
) -> Callable[[ToolCall], ToolResult]:
    """Runs SQL on the database; the search always brings up `found`."""

    def run(call: ToolCall) -> ToolResult:
        if call.name == "search_policies":
            return ToolResult(call.id, call.name, "passages", data={"pages": list(found)})
        with closing(sqlite3.connect(database)) as connection:
            cursor = connection.execute(str(call.arguments["sql"]))
            columns, rows = [c[0] for c in cursor.description], [list(row) for row in cursor.fetchall()]
        lines = [" | ".join(columns), *(" | ".join(map(str, row)) for row in rows)]
        return ToolResult(call.id, call.name, "\n".join(lines), data={"columns": columns, "rows": rows})

    return run
