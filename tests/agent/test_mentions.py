"""What a question names is found in the database and put behind it as the database writes it."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from riverrun.agent.tools.mentions import Mentions

SCRIPT = """
CREATE TABLE people(first TEXT, last TEXT, country TEXT, secret TEXT);
CREATE TABLE works(title TEXT, kind TEXT, Milliseconds INTEGER, weight_g INTEGER);
INSERT INTO people VALUES ('Jane', 'Peacock', 'Germany', 'Hidden'), ('Luís', 'de Sá', 'Brazil', 'Hidden'),
  ('Jarvis', 'Bell', 'Germany', 'Hidden');
INSERT INTO works VALUES ('AC/DC Live', 'rock', 1, 1), ('One', 'dog', 2, 2), ('The Ides of March', 'paid', 3, 3),
  ('Piano Sonata', 'MPEG audio', 4, 4), ('O''Hara''s "Lamp"', '摇滚', 5, 5), ('春江花月夜', '民乐', 6, 6);
"""


@pytest.fixture
def found(tmp_path: Path) -> Mentions:
    path = tmp_path / "shop.sqlite"
    connection = sqlite3.connect(path)
    connection.executescript(SCRIPT)
    connection.close()
    return Mentions(
        path,
        {"people": ["first", "last", "country"], "works": ["title", "kind"]},
        pairs=[("people", "first", "last")],
        numbers=[("works", "Milliseconds"), ("works", "weight_g")],
        nouns=["people", "works", "title", "kind", "paid on"],
        synonyms={"client": ["people"], "pay": ["people.salary"]},
    )


NOTES = [
    ("who is jane peacock", "people.first: 'Jane', people.last: 'Peacock'"),
    ("Peacock, Jane?", "people.first: 'Jane', people.last: 'Peacock'"),
    ("where does Luis de Sa live", "people.first: 'Luís', people.last: 'de Sá'"),
    ("how long is ac/dc live", "works.title: 'AC/DC Live'"),
    ("How long is AC/DC  live?", "works.title: 'AC/DC Live'"),
    ("how many german people", "people.country: 'Germany'"),
    ("brazilian people", "people.country: 'Brazil'"),
    ("works of the dogs", "works.kind: 'dog'"),
    ("paid works", "works.kind: 'paid'"),
    ("Is there a work called One?", ""),
    ("How long is Piano Sonnata?", "works.title: 'Piano Sonata'"),
    ("works by O'Hara's \"Lamp\"", "works.title: 'O''Hara''s \"Lamp\"'"),
    ("有没有春江花月夜", "works.title: '春江花月夜'"),
    ("摇滚有几首", "works.kind: '摇滚'"),
    ("works from March 2010", "March 2010: '2010-03'"),
    ("works of 3rd of may 2011", "3rd of may 2011: '2011-05-03'"),
    ("2010年3月的作品", "2010年3月: '2010-03'"),
    ("works longer than 5 minutes", "5 minutes: 300000 Milliseconds"),
    ("works over 2.5 kg", "2.5 kg: 2500 weight_g"),
    ("how many clients", "clients: people"),
    ("what is their pay", "pay: people.salary"),
    ("Hidden", ""),
    ("how many are there in all", ""),
    ("", ""),
]


@pytest.mark.parametrize(("question", "note"), NOTES)
def test_what_a_question_names_stands_behind_it(found: Mentions, question: str, note: str) -> None:
    assert found.note(question) == (f"{question}\n({note})" if note else question)


def test_the_index_follows_the_file(found: Mentions) -> None:
    assert found.find("works of Zanzibar") == []
    with sqlite3.connect(found.path) as connection:
        connection.execute("INSERT INTO works VALUES ('Zanzibar', 'new', 7, 7)")
        connection.execute(f"INSERT INTO works VALUES ('{'x' * 9000}', 'new', 7, 7)")
    connection.close()
    (mention,) = found.find("works of Zanzibar")
    assert mention.columns == (("works", "title", "Zanzibar"),)
    assert (mention.start, mention.end) == (9, 17)


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_text_gets_a_note_of_one_line_behind_it(text: str) -> None:
    mentions = Mentions.__new__(Mentions)
    mentions.__init__("/nonexistent", {})  # type: ignore[misc]
    mentions._fresh = lambda: mentions._index  # type: ignore[method-assign]
    note = mentions.note(text)
    assert note.startswith(text)
    assert "\n" not in note[len(text) + 1 :] or "\n" in text
