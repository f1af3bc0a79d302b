"""The recipe's own content through the data room: every planted page caught, no good page lost, questions for all."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

from riverrun.base.types import Document
from riverrun.data.choices import build_choice_rows, load_choices, load_safety
from riverrun.data.conversations import build_conversations, build_questions, load_intents
from riverrun.data.intents import SPLITS, SQL_KINDS
from riverrun.data.journal import read_documents, read_dropped
from riverrun.data.personal import find_personal
from riverrun.data.pipeline import clean_folder
from tests.data.small_shop import TOOLS, tool_runner

RECIPE = Path(__file__).parents[2] / "recipes" / "bookshop"


@pytest.fixture(scope="module")
def cleaned(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Document], dict[str, str]]:
    out = tmp_path_factory.mktemp("site")
    clean_folder(RECIPE / "site", out)
    kept = {document.id: document for document in read_documents(out / "kept.jsonl")}
    return kept, {item.id: item.reason for item in read_dropped(out / "dropped.jsonl")}


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shop") / "shop.sqlite"
    subprocess.run([sys.executable, str(RECIPE / "make_database.py"), str(path)], check=True, capture_output=True)
    return path


def test_the_site_is_cleaned_as_its_author_expects(cleaned: tuple[dict[str, Document], dict[str, str]]) -> None:
    kept, dropped = cleaned
    expected = yaml.safe_load((RECIPE / "site_expected.yaml").read_text(encoding="utf-8"))
    assert dropped == expected["drop"]
    assert sorted(kept) == sorted(expected["keep"])
    masked = {
        name: sorted(document.metadata["masked"]) for name, document in kept.items() if "masked" in document.metadata
    }
    assert masked == {name: sorted(kinds) for name, kinds in expected["mask"].items()}
    assert not any(find_personal(document.text) for document in kept.values())


def test_the_menus_and_notices_of_the_site_are_gone(cleaned: tuple[dict[str, Document], dict[str, str]]) -> None:
    for document in cleaned[0].values():
        for noise in ("cookies to remember", "Accept all", "Back to top", "Imprint", "Most read", "dataLayer"):
            assert noise not in document.text


def test_every_intent_gives_questions_in_each_of_its_splits(database: Path) -> None:
    intents = load_intents(RECIPE / "intents.yaml")
    asked: dict[str, set[str]] = {}
    for split in SPLITS:
        questions = build_questions(intents, database, split=split, per_intent=8, seed=11)
        count = Counter(question.intent for question in questions)
        assert set(count) == {intent.name for intent in intents if intent.phrasings.of(split)}
        assert all(count[i.name] == 8 for i in intents if i.kind in SQL_KINDS and split != "dev")
        asked[split] = {question.text for question in questions}
        conversations = build_conversations(
            [question for question in questions if question.sql], system="", tools=TOOLS, run_tool=tool_runner(database)
        )
        assert len(conversations) == sum(question.sql is not None for question in questions)
    assert not asked["train"] & asked["sealed"]


def test_no_value_of_a_sealed_question_was_trained_on(database: Path) -> None:
    intents = load_intents(RECIPE / "intents.yaml")
    divided = {intent.name for intent in intents if any(slot.split for slot in intent.slots.values())}
    asked = {}
    for split in SPLITS:
        questions = build_questions(intents, database, split=split, per_intent=40, seed=11)
        asked[split] = {(q.intent, q.sql) for q in questions if q.sql and q.intent in divided}
    assert all(len(pairs) > 200 for pairs in asked.values())
    assert not asked["train"] & asked["sealed"]
    assert not asked["train"] & asked["dev"]
    assert not asked["dev"] & asked["sealed"]


def test_choices_are_answered_by_the_pages_that_were_kept(
    cleaned: tuple[dict[str, Document], dict[str, str]],
) -> None:
    pages = {name: document.text for name, document in cleaned[0].items()}
    choices = load_choices(RECIPE / "choices.yaml")
    rows = build_choice_rows([*choices.train, *choices.sealed], pages, rotations=2, seed=1)
    assert len(rows) == 2 * (len(choices.train) + len(choices.sealed))
    letters: Counter[str] = Counter()
    for row in rows:
        lettered = row.messages[0].text.splitlines()[-5:-1]
        letters.update(line[0] for line in lettered if line[3:] == row.messages[-1].text)
    assert letters.total() == len(rows)
    assert max(letters.values()) - min(letters.values()) <= 1
    safety = load_safety(RECIPE / "safety.yaml")
    assert len(safety.train) >= 60
    assert len(safety.sealed) >= 60
