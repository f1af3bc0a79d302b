"""Unknown names are read as the nearest known ones; what is known is never touched."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from riverrun.wire.identifiers import nearest_name
from riverrun.wire.joins import ForeignKey, Joiner

TABLES = {
    "pets": ["id", "owner_id", "name", "is_insured", "born_on", "weight_kg"],
    "owners": ["id", "first_name", "last_name", "city", "on_care_plan"],
    "invoices": ["id", "pet_id", "issued_on", "due_on", "total_amount", "paid_on"],
    "clinics": ["id", "name", "city", "has_parking", "opened_on", "closed_on"],
}
KEYS = [ForeignKey("pets", ("owner_id",), "owners", ("id",)), ForeignKey("invoices", ("pet_id",), "pets", ("id",))]
JOINER = Joiner(TABLES, KEYS)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("SELECT COUNT(*) FROM pets WHERE insured = 1", "SELECT COUNT(*) FROM pets WHERE is_insured = 1"),
        ("SELECT name FROM clinics WHERE parking = 1 AND open_on > '2020'", 
         "SELECT name FROM clinics WHERE has_parking = 1 AND opened_on > '2020'"),
        ("SELECT SUM(amount) FROM invoices", "SELECT SUM(total_amount) FROM invoices"),
        ("SELECT Name FROM Pet", "SELECT Name FROM pets"),
        ("SELECT pet.name FROM pet", "SELECT pets.name FROM pets"),
        ("SELECT p.insured FROM pets AS p", "SELECT p.is_insured FROM pets AS p"),
        (
            "SELECT owners.last_name, COUNT(*) FROM pets GROUP BY owners.owner_id",
            "SELECT owners.last_name, COUNT(*) FROM pets JOIN owners ON pets.owner_id = owners.id GROUP BY owners.id",
        ),
        ("SELECT COUNT(*) FROM pets WHERE owner.city = 'Bath'",
         "SELECT COUNT(*) FROM pets JOIN owners ON pets.owner_id = owners.id WHERE owners.city = 'Bath'"),
        ("SELECT weigth_kg FROM pets", "SELECT weight_kg FROM pets"),
        # what is known, aliased, ambiguous or far from everything stays
        ("SELECT COUNT(*) AS insured FROM pets ORDER BY insured", None),
        ("SELECT name FROM clinics WHERE on_fire = 1", None),
        ("SELECT colour FROM pets", None),
        ("SELECT name FROM dragons", None),
        ("SELECT x.insured FROM (SELECT is_insured AS insured FROM pets) AS x", None),
        ("WITH pet AS (SELECT 1 AS a) SELECT a FROM pet", None),
        ("SELECT rowid FROM pets", None),
        ('SELECT "insured" FROM pets', None),  # SQLite takes it for a text
    ],
)  # fmt: skip
def test_unknown_names_are_read_as_the_nearest(written: str, read: str | None) -> None:
    assert JOINER.complete(written) == (read or written)


def test_nearest_name_wants_one_best() -> None:
    assert nearest_name("date", ["issued_date", "due_date"]) == ""
    assert nearest_name("due", ["issued_on", "due_on"]) == "due_on"
    assert nearest_name("InvoiceTotal", ["Total", "InvoiceDate", "InvoiceId"]) == "Total"
    assert nearest_name("", ["a"]) == ""


COLUMN = st.sampled_from(
    [f"{table}.{column}" for table, columns in TABLES.items() for column in columns] + ["name", "id", "city"]
)


@given(
    st.lists(COLUMN, min_size=1, max_size=3),
    st.sampled_from(sorted(TABLES)),
    st.sampled_from(["id", "name", "insured", "x y", "total"]),
)
@settings(max_examples=150, deadline=None)
def test_a_query_that_runs_is_never_changed(columns: list[str], table: str, alias: str) -> None:
    """Against SQLite itself: whatever it accepts without joins to be added comes back word for word."""
    sql = f'SELECT {", ".join(columns)} AS "{alias}" FROM {table}'
    with closing(sqlite3.connect(":memory:")) as connection:
        for name, names in TABLES.items():
            connection.execute(f"CREATE TABLE {name} ({', '.join(names)})")
        try:
            connection.execute(sql)
        except sqlite3.OperationalError:
            return
    assert JOINER.complete(sql) == sql
