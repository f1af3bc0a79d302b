"""Written questions over invented databases: every one is right in form, works somewhere and means what it says."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from riverrun.base.errors import InputError
from riverrun.data import domain_questions as asked
from riverrun.data.domain_questions import domain_questions, load_asked, spell
from riverrun.data.domains import Spelled, build_domain, load_domains
from riverrun.data.schema import make_joiner, read_schema

SAMPLE = [(language, name) for language in ("en", "zh") for name in list(load_asked(language))[::6]]
COLUMNS = {
    "book": {"": "BookID", "title": "Title", "pages": "pages"},
    "loan": {"": "id", "loan date": "loanDate"},
    "order line": {"": "No", "price": "Unit Price"},
}
SPELLED = Spelled({"book": "Books", "loan": "loan", "order line": "Order"}, COLUMNS)


@pytest.mark.parametrize(
    ("sql", "wanted"),
    [
        ("SELECT [book.title] FROM [book]", "SELECT Title FROM Books"),
        (
            "SELECT COUNT(*) FROM [loan] WHERE [book.title] = 'a [b] (c'",
            "SELECT COUNT(*) FROM loan WHERE Books.Title = 'a [b] (c'",
        ),
        ("SELECT MAX([book.pages]) FROM [book]", "SELECT MAX(pages) FROM Books"),
        (
            "SELECT [book.title] FROM [book] WHERE [book.pages] > (SELECT AVG([book.pages]) FROM [book])",
            "SELECT Title FROM Books WHERE pages > (SELECT AVG(pages) FROM Books)",
        ),
        (
            "SELECT [book.title] FROM [book] WHERE NOT EXISTS "
            "(SELECT * FROM [loan] WHERE [loan.loan date] > [book.pages])",
            "SELECT Title FROM Books WHERE NOT EXISTS (SELECT * FROM loan WHERE loanDate > Books.pages)",
        ),
        (
            "SELECT [book.title] FROM [order line] GROUP BY [book.#] ORDER BY SUM([order line.price])",
            'SELECT Books.Title FROM "Order" GROUP BY Books.BookID ORDER BY SUM("Unit Price")',
        ),
    ],
)
def test_names_are_spelled_as_the_database_spells_them(sql: str, wanted: str) -> None:
    assert spell(sql, SPELLED) == wanted


def test_a_name_that_is_not_there_is_told() -> None:
    with pytest.raises(Exception, match=r"no column book\.colour"):
        spell("SELECT [book.colour] FROM [book]", SPELLED)
    with pytest.raises(Exception, match="no table shelf"):
        spell("SELECT COUNT(*) FROM [shelf]", SPELLED)


def questions_of(name: str, language: str, folder: Path, seed: int) -> list[asked.Question]:
    path = folder / f"{seed}.sqlite"
    spelled = build_domain(load_domains(language)[name], path, seed=seed)
    with closing(sqlite3.connect(path)) as connection:
        joiner = make_joiner(read_schema(path))
        found = domain_questions(load_asked(language)[name], spelled, connection, joiner, language=language, seed=seed)
        for question in found:
            assert question.sql
            rows = connection.execute(joiner.complete(question.sql)).fetchmany(50)
            assert [list(row) for row in rows] == question.rows
    return found


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_file_is_well_formed_and_names_known_domains(language: str) -> None:
    for name, written in load_asked(language).items():
        domain = load_domains(language)[name]
        nouns = {table.name: {"#", *table.columns} for table in domain.tables}
        assert len({item.q.casefold() for item in written}) == len(written)
        for item in written:
            for table, column in re.findall(
                r"[\[{]([^\[\]{}.#:]+)(?:\.([^\[\]{}:]+?))?(?:#\d)?(?::\w+)?[\]}]", item.sql
            ):
                assert column in {"", *nouns[table]}, item.sql


@pytest.mark.parametrize(("language", "name"), SAMPLE)
def test_most_questions_work_in_one_database(language: str, name: str, tmp_path: Path) -> None:
    """All of them over four builds: `make soak-questions`."""
    assert len(questions_of(name, language, tmp_path, 0)) >= 0.6 * len(load_asked(language)[name])


def test_values_stand_in_text_and_sql_alike(tmp_path: Path) -> None:
    name = next(iter(load_asked("en")))
    for question in questions_of(name, "en", tmp_path, 7):
        assert question.sql is not None
        assert not re.search(r"[\[\]{}]", question.text + question.sql)
        for value in re.findall(r"'([^'%]+)'", question.sql):
            if re.search(r"= '" + re.escape(value), question.sql) and not value[:2].isdigit() and " " in value:
                assert value.casefold() in question.text.casefold()
    again = questions_of(name, "en", tmp_path, 7)
    assert again == questions_of(name, "en", tmp_path, 7)


def test_a_malformed_file_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asked, "FOLDER", tmp_path)
    (tmp_path / "asked").mkdir()
    load_asked.cache_clear()
    try:
        (tmp_path / "asked" / "en.yaml").write_text('shop: [{q: "how many {a.b}", sql: "SELECT 1"}]', encoding="utf-8")
        with pytest.raises(InputError, match="stands in one of q and sql"):
            load_asked("en")
        (tmp_path / "asked" / "en.yaml").write_text('shop: [{question: "how many"}]', encoding="utf-8")
        with pytest.raises(InputError, match="a mapping of q and sql"):
            load_asked("en")
    finally:
        load_asked.cache_clear()
