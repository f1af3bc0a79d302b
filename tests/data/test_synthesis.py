"""Synthesised questions: every gold query runs, what is named stands in the text, splits share nothing."""

from __future__ import annotations

import re
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from riverrun.agent.tools.sql import DatabaseTool
from riverrun.base.errors import InputError
from riverrun.base.sql import quote_name
from riverrun.data.intents import SPLITS
from riverrun.data.phrasing import LANGUAGES, wording
from riverrun.data.questions import Question
from riverrun.data.schema import read_schema
from riverrun.data.shapes import compositions
from riverrun.data.synthesis import SHARES, SynthesisConfig, Synthesised, synthesise, talk_questions
from tests.data.hostile import CITIES, NAMES, SCHEMAS, make

SMALL = SynthesisConfig(train=120, dev=15, sealed=40)


def synthesised(
    name: str, folder: Path, language: str = "en", config: SynthesisConfig = SMALL, seed: int = 1
) -> Synthesised:
    path = make(name, folder / f"{name}.sqlite")
    return synthesise(path, read_schema(path), config, language=language, seed=seed)


def shared(sets: Mapping[str, set[str]]) -> set[str]:
    """What stands in more than one of the sets."""
    counts = Counter(text for texts in sets.values() for text in texts)
    return {text for text, number in counts.items() if number > 1}


def rows_of(path: Path, sql: str) -> list[list[object]]:
    with closing(sqlite3.connect(path)) as connection:
        connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
        return [list(row) for row in connection.execute(sql)]


def literals(question: Question) -> list[str]:
    """The texts a query compares with, without the wildcards of LIKE."""
    return [
        text.replace("''", "'").strip("%") for text in re.findall(r"(?:=|!=|LIKE) '((?:[^']|'')*)'", question.sql or "")
    ]


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", SCHEMAS)
def test_every_gold_query_gives_its_rows(name: str, language: str, tmp_path: Path) -> None:
    made = synthesised(name, tmp_path, language)
    assert made.questions["train"]
    tool = DatabaseTool(tmp_path / f"{name}.sqlite", seconds=20)
    for split, questions in made.questions.items():
        for question in questions:
            assert question.sql
            assert rows_of(tmp_path / f"{name}.sqlite", question.sql)[:20] == question.rows
            assert tool.run({"sql": question.sql}).data["rows"] == question.rows
            if question.reply:
                assert (question.rows == []) == (question.kind == "none_found")
            else:  # about a thing that was invented, to be copied into the call
                assert split == "train"
            assert len(question.rows or ()) <= SMALL.max_rows
            told = question.reply
            for value in (value for row in question.rows or () for value in row if isinstance(value, str)):
                told = told.replace(value, "")
            assert not re.search(r"[{}]", question.text + told)
            assert question.kind in SHARES


@pytest.mark.parametrize("name", ["undeclared", "chinese", "quoted", "sixty"])
def test_what_a_query_names_stands_in_the_question(name: str, tmp_path: Path) -> None:
    for questions in synthesised(name, tmp_path).questions.values():
        for question in questions:
            for text in literals(question):
                said = re.fullmatch(r"\d{4}(-\d\d)*", text) is not None  # dates may be said with the month's name
                assert said or text.strip() in question.text, (question.text, question.sql)


@pytest.mark.parametrize("language", LANGUAGES)
def test_splits_share_no_text_and_no_entity(language: str, tmp_path: Path) -> None:
    made = synthesised("chinese", tmp_path, language, SynthesisConfig(train=400, dev=60, sealed=120))
    texts = {split: {question.text.casefold() for question in made.questions[split]} for split in SPLITS}
    assert not shared(texts)
    with closing(sqlite3.connect(tmp_path / "chinese.sqlite")) as connection:
        names = {name for (name,) in connection.execute("SELECT 姓名 FROM 客户")}
    people = {
        split: {text for q in made.questions[split] if q.kind != "none_found" for text in literals(q) if text in names}
        for split in SPLITS
    }
    assert all(people.values())
    assert not shared(people)


def test_a_share_of_the_training_questions_names_what_does_not_exist(tmp_path: Path) -> None:
    config = SynthesisConfig(train=200, dev=20, sealed=20, invented=0.5)
    made = synthesised("undeclared", tmp_path, config=config).questions
    invented = [question for question in made["train"] if not question.reply]
    assert len(invented) > 10
    assert not any(not question.reply for split in ("dev", "sealed") for question in made[split])
    none = SynthesisConfig(train=200, dev=20, sealed=20, invented=0)
    (tmp_path / "plain").mkdir()
    plain = synthesised("undeclared", tmp_path / "plain", config=none)
    assert all(question.reply for question in plain.questions["train"])


def test_some_compositions_are_only_tested(tmp_path: Path) -> None:
    made = synthesised("sixty", tmp_path, config=SynthesisConfig(train=400, dev=60, sealed=200, held_out=0.3))
    trained = {question.intent for question in made.questions["train"]}
    assert made.held_out
    assert not trained & made.held_out
    assert {question.intent for question in made.questions["sealed"]} & made.held_out
    none = synthesised("undeclared", tmp_path, config=SynthesisConfig(train=50, dev=5, sealed=5, held_out=0))
    assert not none.held_out


def test_equal_seeds_give_equal_questions(tmp_path: Path) -> None:
    first, again, other = (
        synthesised("undeclared", tmp_path / f"{n}", seed=seed) for n, seed in enumerate(_made(tmp_path))
    )
    assert first.questions == again.questions
    assert first.questions != other.questions


def _made(folder: Path) -> list[int]:
    for number in range(3):
        (folder / f"{number}").mkdir()
    return [1, 1, 2]


def test_counts_are_kept(tmp_path: Path) -> None:
    made = synthesised("undeclared", tmp_path)
    sizes = {split: len(questions) for split, questions in made.questions.items()}
    assert sizes["train"] >= 0.97 * SMALL.train
    assert sizes["sealed"] >= 0.9 * SMALL.sealed
    assert max(sizes.values()) <= SMALL.train
    assert sum(made.by_kind("train").values()) == sizes["train"]
    assert any("ambiguous" in reason for reason in made.left_out)


def test_long_lists_are_trained_on_as_the_tool_shows_them(tmp_path: Path) -> None:
    path = make("one_table", tmp_path / "x.sqlite")
    config = SynthesisConfig(train=60, dev=5, sealed=20, max_rows=5)
    made = synthesise(path, read_schema(path), config, language="en", seed=1, row_limit=12)
    lists = [q for q in made.questions["train"] if q.sql == "SELECT word FROM words"]
    assert lists
    assert all(q.rows == rows_of(path, "SELECT word FROM words LIMIT 12") for q in lists)
    assert all(len(q.rows or ()) <= 5 for split in ("dev", "sealed") for q in made.questions[split])


def test_names_that_several_share_are_asked_back(tmp_path: Path) -> None:
    path = tmp_path / "people.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(
            "CREATE TABLE customers (id INTEGER PRIMARY KEY, first_name TEXT, last_name TEXT, city TEXT)"
        )
        rows = [
            (n, name.split()[0] if n % 3 else "Mark", name.split()[1], CITIES[n % 3]) for n, name in enumerate(NAMES)
        ]
        connection.executemany("INSERT INTO customers VALUES (?, ?, ?, ?)", rows)
        connection.commit()
    made = synthesise(path, read_schema(path), SMALL, language="en", seed=1)
    asked = [question for question in made.questions["train"] if question.kind == "ambiguous"]
    assert asked
    assert all(q.sql == "SELECT first_name, last_name FROM customers WHERE first_name = 'Mark'" for q in asked)
    assert all(q.reply.endswith("Which one do you mean?") and "Mark" in q.text for q in asked)
    assert all(len(q.rows or ()) == 4 for q in asked)


def test_a_tie_at_the_end_is_not_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "ties.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE cars (id INTEGER PRIMARY KEY, model TEXT, price INTEGER)")
        connection.executemany(
            "INSERT INTO cars VALUES (?, ?, ?)", [(n, f"Car {n}", 5 if n < 19 else 1) for n in range(20)]
        )
        connection.commit()
    made = synthesise(path, read_schema(path), SMALL, language="en", seed=1)
    tops = {q.sql for q in made.questions["train"] if q.kind == "top"}
    assert tops <= {"SELECT model FROM cars ORDER BY price ASC LIMIT 1"}


def test_one_form_of_sql_for_each_shape(tmp_path: Path) -> None:
    schema = read_schema(make("undeclared", tmp_path / "x.sqlite"))
    sql = {item.name: item.sql for item in compositions(schema)}
    assert sql["count.parent.tbl_orders.tbl_customers"] == "SELECT COUNT(*) FROM tbl_orders WHERE {e}"
    assert sql["parent.parent.tbl_orders.tbl_customers"] == "SELECT tbl_customers.full_name FROM tbl_orders WHERE {e}"
    assert sql["list.without.tbl_customers.tbl_orders"] == (
        "SELECT full_name FROM tbl_customers WHERE NOT EXISTS (SELECT * FROM tbl_orders)"
    )
    assert sql["count.year.tbl_orders.ord_dt"] == "SELECT COUNT(*) FROM tbl_orders WHERE ord_dt LIKE {v}"
    assert sql["lookup.one.tbl_products.price"] == "SELECT price FROM tbl_products WHERE {e}"


def test_a_schema_with_nothing_to_ask_is_refused(tmp_path: Path) -> None:
    path = make("one_table", tmp_path / "x.sqlite")
    with pytest.raises(InputError, match="offers nothing to ask"):
        synthesise(path, read_schema(path).narrowed({"words": ()}, ["word"]), SMALL, language="en", seed=1)


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_sentence_stands_in_two_splits(language: str) -> None:
    words = wording(language)
    parts = {
        **words["ops"],
        **{f"set {k}": v for k, v in words["sets"].items() if k != "all"},
        "both": words["both"],
        "pages": words["pages"],
        "claims": words["claims"],
    }
    parts |= {f"{name} {op}": lists for name, ops in words["concepts"].items() for op, lists in ops.items()}
    parts |= {f"chat {number}": group for number, group in enumerate(words["chat"])}
    for name, lists in parts.items():
        assert lists["train"], name
        assert not shared({split: set(lists[split]) for split in SPLITS}), name
    for name, lists in {**words["ops"], **words["sets"]}.items():
        assert name == "all" or sum(len(lists[split]) for split in SPLITS) >= 11, name
        assert all(any("{adj}" not in text for text in lists[split]) for split in SPLITS), name


MARKS = set(
    re.findall(
        r"\w+",
        "t ts at c cs ac c2 ac2 many_c many_c2 e he thing buyer v w u y n p ps at_p k ks at_k adj top g who who_all"
        " who_p whom who_buys person people buyers done set",
    )
)


@pytest.mark.parametrize("language", LANGUAGES)
def test_sentences_of_one_split_are_in_no_other_and_their_marks_are_known(language: str) -> None:
    words = wording(language)

    def lists(node: Any) -> Iterator[Any]:
        if "train" in node:
            yield node
        else:
            for part in node.values():
                yield from lists(part)

    found: dict[str, set[str]] = {split: set() for split in SPLITS}
    for part in ("sets", "ops", "asked", "concepts"):
        for node in lists({name: node for name, node in words[part].items() if (part, name) != ("sets", "all")}):
            assert all(node[split] for split in SPLITS)
            for split in SPLITS:
                found[split] |= {text.casefold().rstrip(".?。") for text in node[split]}
    assert not shared(found)
    used = {mark for texts in found.values() for text in texts for mark in re.findall(r"\{(\w+)\}", text)}
    assert used <= MARKS, used - MARKS


def test_both_languages_have_the_same_parts() -> None:
    en, zh = wording("en"), wording("zh")
    assert set(en) == set(zh)
    for part in ("sets", "ops", "aggregates", "levels", "units", "replies"):
        assert set(en[part]) == set(zh[part]), part
    assert len(en["chat"]) == len(zh["chat"])


def test_small_talk_needs_nothing() -> None:
    (*asked,) = talk_questions("en", "sealed", 8, name="shop", topics="books", seed=1)
    assert len(asked) == 8
    assert all(q.sql is None and q.page is None and q.kind == "chat" and q.reply for q in asked)
    assert not any("{" in q.reply for q in talk_questions("zh", "train", 200, name="店", topics="书", seed=1))


KINDS = {
    "INTEGER": st.integers(0, 9),
    "TEXT": st.sampled_from([*NAMES, *CITIES, "it's", 'say "x"', "北京", " ", ""]),
    "REAL": st.floats(0, 99),
    "DATE": st.sampled_from(["2023-05-06", "2024-01-31", "2024-02-01"]),
}
COLUMN = st.sampled_from(
    ["name", "order", "Unit Price", "city", 'o"k', "价格", "hire_date", "total", "from", "is_new", "parent_id"]
)


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_questions_of_any_schema_run(data: st.DataObject) -> None:
    import tempfile

    columns = data.draw(
        st.lists(st.tuples(COLUMN, st.sampled_from(list(KINDS))), min_size=1, max_size=5, unique_by=lambda c: c[0])
    )
    rows = data.draw(st.lists(st.tuples(*(KINDS[kind] | st.none() for _, kind in columns)), max_size=25))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "any.sqlite"
        with closing(sqlite3.connect(path)) as connection:
            declared = ", ".join(f"{quote_name(name)} {kind}" for name, kind in columns)
            connection.execute(f'CREATE TABLE "my group" (id INTEGER PRIMARY KEY, {declared})')
            numbered = [(number, *row) for number, row in enumerate(rows)]
            connection.executemany(f'INSERT INTO "my group" VALUES ({", ".join("?" * (len(columns) + 1))})', numbered)
            connection.commit()
        config = SynthesisConfig(train=40, dev=5, sealed=10)
        made = synthesise(path, read_schema(path), config, language="en", seed=3)
        for questions in made.questions.values():
            for question in questions:
                assert rows_of(path, question.sql or "")[:20] == question.rows
                assert all(
                    text.strip() in question.text or re.fullmatch(r"\d{4}[-\d]*", text) for text in literals(question)
                )
