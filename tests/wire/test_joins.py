"""Queries without joins: completed ones bring what a query written out by hand, or plain Python, brings."""

from __future__ import annotations

import sqlite3
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from riverrun.wire.joins import ForeignKey, Joiner

SCRIPT = """
CREATE TABLE artist(artist_id INTEGER PRIMARY KEY, name TEXT);
CREATE TABLE album(album_id INTEGER PRIMARY KEY, title TEXT, artist_id INTEGER);
CREATE TABLE genre(genre_id INTEGER PRIMARY KEY, name TEXT);
CREATE TABLE track(track_id INTEGER PRIMARY KEY, name TEXT, album_id INTEGER, genre_id INTEGER, price REAL);
CREATE TABLE playlist(playlist_id INTEGER PRIMARY KEY, name TEXT);
CREATE TABLE playlist_track(playlist_id INTEGER, track_id INTEGER);
CREATE TABLE "order"("order no" INTEGER PRIMARY KEY, buyer TEXT, total REAL);
CREATE TABLE line("order no" INTEGER, track_id INTEGER, price REAL);
INSERT INTO artist VALUES (1, 'Blur'), (2, 'Cake'), (3, 'Dido');
INSERT INTO album VALUES (1, 'Park', 1), (2, 'Fashion', 2), (3, 'Pressure', 2);
INSERT INTO genre VALUES (1, 'Rock'), (2, 'Pop');
INSERT INTO track VALUES (1, 'Girls', 1, 1, 1.0), (2, 'Daria', 2, 1, 2.0),
  (3, 'Frank', 2, 2, 3.0), (4, 'Dime', 3, 2, 4.0);
INSERT INTO playlist VALUES (1, 'Gym'), (2, 'Sleep');
INSERT INTO playlist_track VALUES (1, 1), (1, 2), (2, 2);
INSERT INTO "order" VALUES (1, 'Ann', 5.0), (2, 'Ben', 4.0);
INSERT INTO line VALUES (1, 1, 1.0), (1, 4, 4.0), (2, 4, 4.0);
"""
KEYS = [
    ForeignKey("album", ("artist_id",), "artist", ("artist_id",)),
    ForeignKey("track", ("album_id",), "album", ("album_id",)),
    ForeignKey("track", ("genre_id",), "genre", ("genre_id",)),
    ForeignKey("playlist_track", ("playlist_id",), "playlist", ("playlist_id",)),
    ForeignKey("playlist_track", ("track_id",), "track", ("track_id",)),
    ForeignKey("line", ("order no",), "order", ("order no",)),
    ForeignKey("line", ("track_id",), "track", ("track_id",)),
]


@pytest.fixture(scope="module")
def shop() -> tuple[sqlite3.Connection, Joiner]:
    connection = sqlite3.connect(":memory:")
    connection.executescript(SCRIPT)
    names = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    tables = {n: [r[1] for r in connection.execute("SELECT * FROM pragma_table_info(?)", (n,))] for n in names}
    return connection, Joiner(tables, KEYS)


ROWS = [
    ("SELECT name FROM track WHERE artist.name = 'Cake'", [("Daria",), ("Frank",), ("Dime",)]),
    ("SELECT COUNT(*) FROM track WHERE artist.name = 'Cake' AND genre.name = 'Pop'", [(2,)]),
    ("SELECT COUNT(*) FROM artist WHERE genre.name = 'Pop'", [(1,)]),  # Cake once, not once a track
    ("SELECT name FROM artist WHERE NOT EXISTS (SELECT * FROM album)", [("Dido",)]),
    ("SELECT name FROM artist WHERE NOT EXISTS (SELECT * FROM track WHERE genre.name = 'Pop')", [("Blur",), ("Dido",)]),
    ("SELECT name FROM artist WHERE EXISTS (SELECT * FROM album WHERE title = 'Park')", [("Blur",)]),
    ("SELECT name FROM track WHERE playlist.name = 'Gym'", [("Girls",), ("Daria",)]),
    ("SELECT COUNT(*) FROM track WHERE NOT EXISTS (SELECT * FROM playlist_track)", [(2,)]),
    ("SELECT DISTINCT artist.name FROM line WHERE buyer = 'Ann'", [("Blur",), ("Cake",)]),
    ('SELECT artist.name FROM track WHERE "order".buyer = \'Ben\'', [("Cake",)]),
    ("SELECT artist.name, COUNT(*) FROM track GROUP BY artist.artist_id ORDER BY COUNT(*) DESC LIMIT 1", [("Cake", 3)]),
    ("SELECT genre.name FROM track GROUP BY genre.name HAVING SUM(price) > 3 ORDER BY 1", [("Pop",)]),
    ("SELECT title FROM track WHERE name = 'Frank'", [("Fashion",)]),
    ("SELECT SUM(price) FROM line WHERE artist.name = 'Cake'", [(8.0,)]),  # the line's price, not the track's
    ("SELECT name FROM track WHERE price > (SELECT AVG(price) FROM track WHERE artist.name = 'Cake')", [("Dime",)]),
    ("SELECT t.name FROM track AS t WHERE artist.name = 'Blur'", [("Girls",)]),
    ("SELECT * FROM album WHERE artist.name = 'Blur'", [(1, "Park", 1)]),
    ("SELECT COUNT(DISTINCT genre.name) AS n FROM track WHERE artist.name = 'Cake' ORDER BY n", [(2,)]),
    ("SELECT NAME FROM TRACK WHERE ARTIST.NAME = 'Blur'", [("Girls",)]),
    ("SELECT name FROM artist WHERE genre.name = 'Pop' OR genre.name = 'Rock'", [("Blur",), ("Cake",)]),
    ("SELECT name FROM track WHERE genre.name = 'Rock' UNION SELECT name FROM artist WHERE album.title = 'Park'",
     [("Blur",), ("Daria",), ("Girls",)]),
]  # fmt: skip


@pytest.mark.parametrize(("sql", "rows"), ROWS)
def test_missing_joins_are_completed(shop: tuple[sqlite3.Connection, Joiner], sql: str, rows: list[Any]) -> None:
    connection, joiner = shop
    assert connection.execute(joiner.complete(sql)).fetchall() == rows


UNTOUCHED = [
    "SELECT name FROM track",
    "SELECT track.name FROM track JOIN genre ON track.genre_id = genre.genre_id WHERE genre.name = 'Pop'",
    "SELECT a.name FROM artist a WHERE a.artist_id IN (SELECT artist_id FROM album)",
    "SELECT name FROM artist WHERE NOT EXISTS (SELECT * FROM album WHERE album.artist_id = artist.artist_id)",
    "SELECT x FROM nowhere WHERE y = 1",
    "SELECT nothing FROM track",
    "WITH few AS (SELECT * FROM track) SELECT name FROM few",
    "SELECT COUNT(*) FROM (SELECT name FROM track)",
    "SELECT garbage FROM FROM x",
    "DELETE FROM track",
    "",
    "SELECT '" + "(" * 2000,
]


@pytest.mark.parametrize("sql", UNTOUCHED)
def test_what_needs_nothing_or_cannot_be_read_comes_back(shop: tuple[sqlite3.Connection, Joiner], sql: str) -> None:
    assert shop[1].complete(sql) == sql


def test_the_way_that_multiplies_less_is_taken_and_the_first_key_of_two() -> None:
    tables = {"team": ["id", "name"], "game": ["home_id", "away_id"]}
    keys = [ForeignKey("game", ("away_id",), "team", ("id",)), ForeignKey("game", ("home_id",), "team", ("id",))]
    assert "game.away_id = team.id" in Joiner(tables, keys).complete("SELECT COUNT(*) FROM game WHERE team.name = 'A'")
    assert "game.home_id = team.id" in Joiner(tables, keys[::-1]).complete("SELECT * FROM game WHERE team.name = 'A'")


def test_no_way_between_two_tables_leaves_the_query_alone() -> None:
    joiner = Joiner({"a": ["x"], "b": ["y"]}, [])
    assert joiner.complete("SELECT x FROM a WHERE b.y = 1") == "SELECT x FROM a WHERE b.y = 1"


@given(
    links=st.lists(st.integers(0, 5), min_size=6, max_size=6),
    rows=st.lists(st.lists(st.integers(0, 4), min_size=2, max_size=2), min_size=4, max_size=20),
    start=st.integers(0, 5),
    named=st.integers(0, 5),
    value=st.integers(0, 4),
)
@settings(max_examples=150, deadline=None)
def test_a_count_is_that_of_plain_python(
    links: list[int], rows: list[list[int]], start: int, named: int, value: int
) -> None:
    """Random trees of tables: rows of `start` whose row of `named`, over the keys, has the value (or has any such)."""
    parents = {child: parent % child for child, parent in enumerate(links) if child}
    data = {t: [(i, r[0] % max(1, i + 1), r[1]) for i, r in enumerate(rows[t % 3 :])] for t in range(6)}
    connection = sqlite3.connect(":memory:")
    for table, content in data.items():
        connection.execute(f"CREATE TABLE t{table}(id, p, v{table})")
        connection.executemany(f"INSERT INTO t{table} VALUES (?, ?, ?)", content)
    keys = [ForeignKey(f"t{child}", ("p",), f"t{parent}", ("id",)) for child, parent in parents.items()]
    joiner = Joiner({f"t{t}": ["id", "p", f"v{t}"] for t in data}, keys)

    def reached(table: int, row: tuple[int, int, int], seen: frozenset[int]) -> bool:
        if table == named:
            return row[2] == value
        ups = [parents[table]] if table in parents and parents[table] not in seen else []
        downs = [child for child, parent in parents.items() if parent == table and child not in seen]
        return any(reached(other, r, seen | {other}) for other in ups for r in data[other] if r[0] == row[1]) or any(
            reached(other, r, seen | {other}) for other in downs for r in data[other] if r[1] == row[0]
        )

    expected = sum(reached(start, row, frozenset({start})) for row in data[start])
    sql = joiner.complete(f"SELECT COUNT(*) FROM t{start} WHERE t{named}.v{named} = {value}")
    assert connection.execute(sql).fetchall() == [(expected,)]


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (
            "SELECT manager_id FROM branch WHERE name = 'X'",
            "SELECT staff.first, staff.last FROM branch JOIN staff ON branch.manager_id = staff.id "
            "WHERE branch.name = 'X'",
        ),
        (
            "SELECT branch.manager_id, COUNT(*) FROM branch GROUP BY manager_id",
            "SELECT staff.first, staff.last, COUNT(*) FROM branch JOIN staff ON branch.manager_id = staff.id "
            "GROUP BY branch.manager_id",
        ),
        ("SELECT COUNT(DISTINCT manager_id) FROM branch", None),
        ("SELECT name FROM branch WHERE manager_id IN (SELECT boss_id FROM branch)", None),
        ("SELECT boss_id FROM branch", None),  # no name is known of what it leads to
    ],
)
def test_a_selected_link_is_shown_as_a_name(written: str, read: str | None) -> None:
    tables = {"branch": ["id", "name", "manager_id", "boss_id"], "staff": ["id", "first", "last"], "boss": ["id"]}
    keys = [
        ForeignKey("branch", ("manager_id",), "staff", ("id",)),
        ForeignKey("branch", ("boss_id",), "boss", ("id",)),
    ]
    joiner = Joiner(tables, keys, {("branch", "manager_id"): ("first", "last")})
    assert joiner.complete(written) == (read or written)
    assert Joiner(tables, keys).complete(written) == written, "only where it is asked for"
