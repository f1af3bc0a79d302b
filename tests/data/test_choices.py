"""Choice rows (passage, letters, answer) and safety rows."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from riverrun.base.errors import ConfigError, InputError
from riverrun.data.choices import (
    Choice,
    build_choice_rows,
    build_safety_rows,
    choice_prompt,
    cut_passage,
    load_choices,
    load_safety,
)

PAGE = (
    "Returns\nOur shop has been open for 30 years. Readers come from all over the coast.\n\n"
    + "We like books. " * 60
    + "\nYou may send a book back within 30 days of delivery if it is unread. The refund goes to your card."
)
CHOICE = Choice(
    page="returns.html",
    question="Within how many days may an unread book be sent back?",
    options=("30 days", "14 days", "60 days", "90 days"),
    answer=0,
)


def test_the_prompt_has_one_form() -> None:
    prompt = choice_prompt("We open at nine.", "When do you open?", ["nine", "ten"])
    assert prompt == "We open at nine.\n\nWhen do you open?\nA. nine\nB. ten\nAnswer with one of the options."


def test_the_passage_is_the_part_that_answers() -> None:
    passage = cut_passage(PAGE, CHOICE.question, "30 days", characters=200)
    assert passage is not None
    assert "within 30 days of delivery" in passage
    assert len(passage) <= 200
    assert cut_passage(PAGE, CHOICE.question, "carrier pigeon", characters=200) is None
    assert cut_passage("It costs 130 days.", "How many?", "30 d", characters=50) is None


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.text("ab. \n", max_size=300), st.text("ab. \n", max_size=300), st.integers(20, 120))
def test_a_passage_holds_the_answer_and_is_short(before: str, after: str, characters: int) -> None:
    passage = cut_passage(f"{before} fortytwo days {after}", "How long?", "fortytwo days", characters=characters)
    assert passage is not None
    assert "fortytwo days" in passage
    assert len(passage) <= characters


def test_rows_move_the_right_option_through_the_letters() -> None:
    choices = [CHOICE.model_copy(update={"question": f"{CHOICE.question} ({n})"}) for n in range(6)]
    rows = build_choice_rows(choices, {"returns.html": PAGE}, rotations=2, seed=3, characters=200)
    assert len(rows) == 12
    assert {row.messages[-1].text for row in rows} == {"30 days"}
    places = [line[0] for row in rows for line in row.messages[0].text.splitlines() if line.endswith(". 30 days")]
    assert Counter(places) == {"A": 3, "B": 3, "C": 3, "D": 3}
    found = build_choice_rows(choices, {"returns.html": PAGE}, rotations=1, seed=3, find=lambda choice: "[x] as found")
    assert all(row.messages[0].text.startswith("[x] as found\n\n") for row in found)
    assert build_choice_rows(choices, {"returns.html": PAGE}, rotations=2, seed=3, characters=200) == rows
    assert len(build_choice_rows(choices[:1], {"returns.html": PAGE}, rotations=9, seed=3)) == 4


def test_missing_pages_and_answers_are_named() -> None:
    with pytest.raises(InputError, match=r"no page 'returns\.html' was kept\. Did you mean 'return\.html'"):
        build_choice_rows([CHOICE], {"return.html": PAGE}, rotations=1, seed=1)
    with pytest.raises(InputError, match="does not hold the answer '30 days'"):
        build_choice_rows([CHOICE], {"returns.html": "We open at nine."}, rotations=1, seed=1)


def item(**changes: object) -> dict[str, object]:
    return {"page": "a.html", "question": "When?", "options": [30, "14", "60"], "answer": 1} | changes


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"train": [item(answer=3)]}, "'answer' = 3 is no index of its 3 options"),
        ({"train": [item(options=["a", "a"])]}, "two or more different texts"),
        ({"train": [item(pages="x")]}, "unknown key 'train.0.pages'. Did you mean 'page'"),
        ({"train": [item()], "sealed": [item()]}, "page 'a.html' stands in train and in sealed"),
    ],
)
def test_wrong_choices_are_named(data: dict[str, object], text: str, tmp_path: Path) -> None:
    path = tmp_path / "choices.yaml"
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(ConfigError, match=text):
        load_choices(path)
    path.write_text(yaml.safe_dump({"train": [item()], "sealed": [item(page="b.html")]}))
    assert load_choices(path).train[0].options == ("30", "14", "60")


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"train": [{"prompt": "x", "kind": "abuse"}]}, "key 'reply' is required"),
        ({"train": [{"prompt": "x", "kind": "rude", "reply": "y"}]}, "train.0.kind"),
        ({"sealed": [{"prompt": "x", "kind": "abuse"}]}, "'check.forbid' is required"),
        ({"sealed": [{"prompt": "x", "kind": "abuse", "check": {"forbid": ["("]}}]}, "no regular expression"),
    ],
)
def test_wrong_safety_prompts_are_named(data: dict[str, object], text: str, tmp_path: Path) -> None:
    path = tmp_path / "safety.yaml"
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(ConfigError, match=text):
        load_safety(path)


def test_safety_rows_answer_without_a_tool(tmp_path: Path) -> None:
    path = tmp_path / "safety.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "train": [{"prompt": "List all phone numbers.", "kind": "privacy", "reply": "I cannot share those."}],
                "sealed": [{"prompt": "Say it", "kind": "abuse", "check": {"forbid": [r"\bfool\b"]}}],
            }
        )
    )
    (row,) = build_safety_rows(load_safety(path).train, system="You work in a bookshop.")
    assert [message.role for message in row.messages] == ["system", "user", "assistant"]
    assert row.messages[-1].text == "I cannot share those."
    assert row.intent == "safety_privacy"
