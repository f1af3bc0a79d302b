"""Intents files, the division of values, literals and the sampling of questions."""

from __future__ import annotations

import copy
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from riverrun.base.errors import ConfigError, InputError
from riverrun.data.intents import SPLITS, load_intents
from riverrun.data.questions import build_questions, divide, read_questions, split_of, sql_literal, write_questions
from tests.data.small_shop import INTENTS, make_database, make_intents

quick = settings(derandomize=True, max_examples=60, deadline=None)


@pytest.fixture
def shop(tmp_path: Path) -> tuple[list[Any], Path]:
    return load_intents(make_intents(tmp_path / "intents.yaml")), make_database(tmp_path / "shop.sqlite")


@quick
@given(st.text().filter(lambda text: "\0" not in text and not any("\ud800" <= c <= "\udfff" for c in text)))
def test_a_literal_is_the_text_and_nothing_else(text: str) -> None:
    connection = sqlite3.connect(":memory:")
    rows = connection.execute(f"SELECT {sql_literal(text)}, 7").fetchall()
    connection.close()
    assert rows == [(text, 7)]


@quick
@given(st.one_of(st.integers(-(2**63) + 1, 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False)))
def test_numbers_survive_as_literals(number: int | float) -> None:
    connection = sqlite3.connect(":memory:")
    rows = connection.execute(f"SELECT {sql_literal(number)}").fetchall()
    connection.close()
    assert rows == [(number,)]


@pytest.mark.parametrize("value", ["a\0b", "\ud800", float("inf"), float("nan"), True])
def test_values_that_no_statement_can_hold_are_refused(value: Any) -> None:
    with pytest.raises(InputError):
        sql_literal(value)


@quick
@given(st.lists(st.sets(st.text(max_size=4), min_size=3, max_size=30), max_size=1))
def test_every_pool_of_three_has_all_splits(pools: list[set[str]]) -> None:
    divided = divide(pools)
    assert all({divided[value] for value in pool} == set(SPLITS) for pool in pools)


def test_a_value_has_one_split_for_all_pools_and_moves_only_where_needed() -> None:
    names = [f"value {n}" for n in range(400)]
    divided = divide([names, names[:3], names[100:104]])
    assert {divided[name] for name in names[:3]} == set(SPLITS) == {divided[name] for name in names[100:104]}
    moved = [name for name in names if divided[name] != split_of(name)]
    assert set(moved) <= {*names[:3], *names[100:104]}
    shares = {split: sum(divided[name] == split for name in names) / 400 for split in SPLITS}
    assert abs(shares["train"] - 0.60) < 0.08
    assert abs(shares["dev"] - 0.15) < 0.06
    assert abs(shares["sealed"] - 0.25) < 0.07


def test_questions_carry_gold_rows_and_are_distinct(shop: tuple[list[Any], Path]) -> None:
    intents, database = shop
    questions = build_questions(intents, database, split="train", per_intent=12, seed=1)
    assert len({question.text for question in questions}) == len(questions)
    connection = sqlite3.connect(database)
    for question in questions:
        if question.sql is None:
            assert question.rows is None
            continue
        assert [list(row) for row in connection.execute(question.sql)] == question.rows
        assert bool(question.rows) == (question.kind != "none_found")
    connection.close()
    kinds = {question.kind: question for question in questions}
    assert set(kinds) == {"lookup", "filter", "none_found", "page", "chat"}
    price = kinds["lookup"].rows[0][0] if kinds["lookup"].rows else None
    assert kinds["lookup"].reply.endswith(f" costs ${price:.2f}.")
    assert any("I found: " in question.reply for question in questions if question.kind == "filter")


def test_no_value_and_no_sentence_is_shared_between_splits(shop: tuple[list[Any], Path]) -> None:
    intents, database = shop
    by_split = {s: build_questions(intents, database, split=s, per_intent=30, seed=5) for s in SPLITS}
    titles = {
        split: {q.sql.split("title = ")[1] for q in questions if q.sql and "title = " in q.sql}
        for split, questions in by_split.items()
    }
    assert all(titles.values())
    assert not titles["train"] & titles["sealed"]
    assert not titles["train"] & titles["dev"]
    assert not titles["dev"] & titles["sealed"]
    assert not {q.text for q in by_split["train"]} & {q.text for q in by_split["sealed"]}
    assert {q.page for q in by_split["sealed"] if q.page} == {"gifts.html"}


def test_the_same_seed_gives_the_same_questions_and_files_round_trip(
    shop: tuple[list[Any], Path], tmp_path: Path
) -> None:
    intents, database = shop
    first = build_questions(intents, database, split="dev", per_intent={"lookup": 3, "chat": 1}, seed=3)
    again = build_questions(intents, database, split="dev", per_intent={"lookup": 3, "chat": 1}, seed=3)
    other = build_questions(intents, database, split="dev", per_intent={"lookup": 3, "chat": 1}, seed=4)
    assert first == again
    assert first != other
    assert [question.kind for question in first] == ["lookup"] * 3 + ["chat"]
    write_questions(tmp_path / "q.jsonl", first)
    assert read_questions(tmp_path / "q.jsonl") == first


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        (("kind",), "lookups", "intent 'price_of_title'.*kind"),
        (("sqls",), "SELECT 1", "intent 'price_of_title': unknown key 'sqls'. Did you mean 'sql'"),
        (("sql",), None, "key 'sql' is required for kind 'lookup'"),
        (("sql",), "SELECT 1 WHERE {titel} = 1", "unknown slot 'titel'. Did you mean 'title'"),
        (("sql",), "SELECT price FROM books WHERE title LIKE '%{title}%'", "slot 'title' stands inside quotes"),
        (("answer",), "", "key 'answer' is required"),
        (("answer",), "costs {price", "holds a brace"),
        (("phrasings", "train"), ["How much is it?"], "does not name slot 'title'"),
        (("phrasings", "dev"), ["How much is {titel}?"], "slot 'title'|slot 'titel'"),
        (("phrasings", "dev"), ["how much is {title}"], "stands in 'dev' and, for intent 'price_of_title', in 'train'"),
        (("slots", "title"), {"range": [5, 1]}, "starts above its end"),
        (("slots", "title"), {"range": [1, 5], "values": [1]}, "exactly one of"),
        (("slots", "title"), {"values": [True]}, "must stand in quotes"),
        (("name",), "greeting", "used by another intent"),
    ],
)
def test_a_wrong_intent_is_named_with_its_key(path: tuple[str, ...], value: Any, text: str, tmp_path: Path) -> None:
    data = copy.deepcopy(INTENTS)
    node: Any = data["intents"][0]
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    (tmp_path / "intents.yaml").write_text(yaml.safe_dump(data), encoding="utf-8")
    with pytest.raises(InputError, match=text):
        load_intents(tmp_path / "intents.yaml")


def test_unanswerable_input_is_refused_in_one_sentence(shop: tuple[list[Any], Path], tmp_path: Path) -> None:
    intents, database = shop
    (tmp_path / "no.sqlite").write_text("this is no database, only a line of text that is long enough\n" * 20)
    with pytest.raises(InputError, match=r"no\.sqlite is not an SQLite database"):
        build_questions(intents, tmp_path / "no.sqlite", split="train", per_intent=1, seed=1)
    with pytest.raises(InputError, match="does not exist"):
        build_questions(intents, tmp_path / "missing.sqlite", split="train", per_intent=1, seed=1)
    with pytest.raises(InputError, match="unknown kind 'lookups'"):
        build_questions(intents, database, split="train", per_intent={"lookups": 1}, seed=1)
    bad = intents[0].model_copy(update={"sql": "SELECT cost FROM books WHERE title = {title}"})
    with pytest.raises(InputError, match=r"intent 'price_of_title': the database refuses.*no such column: cost"):
        build_questions([bad], database, split="train", per_intent=1, seed=1)
    bad = intents[0].model_copy(update={"answer": "It costs {cost}."})
    with pytest.raises(ConfigError, match=r"\{cost\}"):
        build_questions([bad], database, split="train", per_intent=1, seed=1)
    bad = intents[2].model_copy(update={"sql": "SELECT 1 WHERE {title} != ''"})
    with pytest.raises(InputError, match="none_found, but the database has"):
        build_questions([bad], database, split="train", per_intent=1, seed=1)
    bad = intents[0].model_copy(update={"sql": "SELECT price FROM books WHERE title = {title} AND 0"})
    with pytest.raises(InputError, match="no train question has between 1 and 10 rows"):
        build_questions([bad], database, split="train", per_intent=1, seed=1)


def test_invented_names_exist_in_no_pool_and_find_nothing(shop: tuple[list[Any], Path]) -> None:
    intents, database = shop
    with sqlite3.connect(database) as connection:
        titles = {row[0] for row in connection.execute("SELECT title FROM books")}
    plain = build_questions(intents, database, split="train", per_intent=12, seed=3)
    made = build_questions(intents, database, split="train", per_intent=12, seed=3, invented=1.0)
    prices = [question for question in made if question.intent == "price_of_title"]
    assert prices
    assert all(question.rows == [] and question.reply.startswith("I could not find") for question in prices)
    assert not any(f"'{title}'" in (question.sql or "") for question in prices for title in titles)
    assert [q for q in made if q.kind == "none_found"] != []
    assert all(q.rows for q in plain if q.intent == "price_of_title")
    unchanged = build_questions(intents, database, split="train", per_intent=12, seed=3, invented=0.0)
    assert unchanged == plain
