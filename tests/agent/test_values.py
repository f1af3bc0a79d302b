"""Values in a query that a column has not got."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from riverrun.agent.tools.mentions import Mentions
from riverrun.agent.tools.values import mend_values

BRANCHES = ["North End Reading Room", "Central Library", "Riverside", "Riverside Annex"]


@pytest.fixture(scope="module")
def mentions(tmp_path_factory: pytest.TempPathFactory) -> Mentions:
    path = tmp_path_factory.mktemp("values") / "library.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE branch (id INTEGER PRIMARY KEY, name TEXT, city TEXT)")
        connection.execute("CREATE TABLE loan (id INTEGER PRIMARY KEY, branch_id INTEGER, status TEXT, secret TEXT)")
        connection.executemany("INSERT INTO branch (name, city) VALUES (?, 'Bath')", [(name,) for name in BRANCHES])
        rows = [("checked out", "it's")] * 3 + [("returned", "North End")]
        connection.executemany("INSERT INTO loan (branch_id, status, secret) VALUES (1, ?, ?)", rows)
        connection.commit()
    return Mentions(path, {"branch": ["name", "city"], "loan": ["status"]})


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("SELECT id FROM branch WHERE name = 'North End'",
         "SELECT id FROM branch WHERE name = 'North End Reading Room'"),
        ("SELECT id FROM loan WHERE status = 'Checked Out'", "SELECT id FROM loan WHERE status = 'checked out'"),
        ("SELECT id FROM loan WHERE 'Returned' = status", "SELECT id FROM loan WHERE 'returned' = status"),
        (
            "SELECT COUNT(*) FROM loan JOIN branch ON loan.branch_id = branch.id "
            "WHERE branch.name IN ('central', 'Riverside')",
            "SELECT COUNT(*) FROM loan JOIN branch ON loan.branch_id = branch.id "
            "WHERE branch.name IN ('Central Library', 'Riverside')",
        ),
        (
            "SELECT id FROM branch AS b WHERE EXISTS(SELECT 1 FROM loan WHERE b.name = 'Central')",
            "SELECT id FROM branch AS b WHERE EXISTS(SELECT 1 FROM loan WHERE b.name = 'Central Library')",
        ),
        # stands there; several fit; nothing fits; too short; not in the index; no equality; no query
        ("SELECT id FROM branch WHERE name = 'Riverside'", None),
        ("SELECT id FROM branch WHERE name = 'r'", None),
        ("SELECT id FROM branch WHERE name = 'Library Room'", None),
        ("SELECT id FROM branch WHERE name = 'South End'", None),
        ("SELECT id FROM loan WHERE secret = 'north end'", None),
        ("SELECT id FROM branch WHERE name LIKE 'North End'", None),
        ("SELECT id FROM dragons WHERE name = 'North End'", None),
        ("SELECT 'North End'", None),
        ("not sql 'North End'", None),
    ],
)  # fmt: skip
def test_a_value_is_read_as_the_one_it_can_stand_for(written: str, read: str | None, mentions: Mentions) -> None:
    assert mend_values(written, mentions) == (read or written)


def test_several_values_that_fit_are_no_answer(mentions: Mentions) -> None:
    assert mentions.meant("branch", "name", "riverside") == "Riverside"
    assert mentions.meant("branch", "name", "river") is None
    assert mentions.meant("branch", "name", "Annex") == "Riverside Annex"
    assert mentions.has("branch", "name", "Riverside")
    assert not mentions.has("branch", "name", "riverside")
