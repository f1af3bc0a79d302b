"""Thoughts told apart from answers, however the text is cut."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from riverrun.base.types import ToolCall
from riverrun.wire.hermes import HERMES
from riverrun.wire.thoughts import Thought, ThoughtParser, opens_thought

CALL = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'


def read(parts: list[str], *, thinking: bool | None = False, inner: bool = False) -> tuple[str, str, list[ToolCall]]:
    parser = ThoughtParser(HERMES.parser() if inner else None, thinking=thinking)
    pieces = [piece for part in parts for piece in parser.feed(part)] + parser.close()
    thought = "".join(piece.text for piece in pieces if isinstance(piece, Thought))
    text = "".join(piece for piece in pieces if isinstance(piece, str))
    return thought, text, [piece for piece in pieces if isinstance(piece, ToolCall)]


@pytest.mark.parametrize(
    ("text", "thinking", "thought", "answer"),
    [
        ("<think>\nHm, 2.\n</think>\n\nTwo.", False, "Hm, 2.", "Two."),
        ("\n <think>a</think>b", False, "a", "b"),
        ("Hm, 2.\n</think>\nTwo.", True, "Hm, 2.", "Two."),
        ("<think></think>Two.", False, "", "Two."),
        ("<think>never ends </thin", False, "never ends </thin", ""),
        ("<think>a < b, </b> and </think > go on</think> x", False, "a < b, </b> and </think > go on", "x"),
        ("The tag <think> opens a thought</think>.", False, "", "The tag <think> opens a thought</think>."),
        ("<think>a</think>one <think>b</think>", False, "a", "one <think>b</think>"),
        ("<thin", False, "", "<thin"),
        ("  plain ", False, "", "  plain "),
        ("<think>a</think>b", None, "", "<think>a</think>b"),
        ("", True, "", ""),
    ],
)
def test_thought_and_answer(text: str, thinking: bool | None, thought: str, answer: str) -> None:
    assert read([text], thinking=thinking) == (thought, answer, [])
    assert read(list(text), thinking=thinking) == (thought, answer, [])


def test_calls_stand_behind_a_thought_and_not_in_it() -> None:
    thought, text, calls = read([f"<think>I could {CALL}</think>\nLet me see. {CALL}"], inner=True)
    assert thought == f"I could {CALL}"
    assert text == "Let me see."
    assert [call.name for call in calls] == ["f"]


@pytest.mark.parametrize(
    ("pieces", "thinking", "count"),
    [
        (["\n", "<thi", "nk>", "a", "</think>", "\n", "b"], False, 5),
        (["<think>a</think>b", "c"], False, 1),
        (["a", "</think>", "b"], True, 2),
        (["<think>", "never", "ends"], False, 3),
        (["<thin", "g"], False, 0),
        (["<think>", "a"], None, 0),
    ],
)
def test_pieces_of_a_thought_are_counted(pieces: list[str], thinking: bool | None, count: int) -> None:
    parser = ThoughtParser(thinking=thinking)
    for piece in pieces:
        parser.feed(piece)
    parser.feed_rest("held back")
    parser.close()
    assert parser.thought_pieces == count


ALPHABET = ["<think>", "</think>", "<", "think", "</", ">", " ", "\n", "a", "字", CALL]


@settings(deadline=None)  # a busy machine is no failure
@given(st.lists(st.sampled_from(ALPHABET), max_size=12), st.booleans(), st.booleans(), st.data())
def test_cuts_change_nothing(parts: list[str], thinking: bool, inner: bool, data: st.DataObject) -> None:
    text = "".join(parts)
    places = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    cuts = [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]
    assert read(cuts, thinking=thinking, inner=inner) == read([text], thinking=thinking, inner=inner)


@given(st.text(max_size=60))
def test_without_a_thought_nothing_changes(text: str) -> None:
    if not text.lstrip().startswith("<think>"):
        assert read([text]) == ("", text, [])


def test_a_prompt_that_opens_a_thought() -> None:
    assert opens_thought("<|im_start|>assistant\n<think>\n")
    assert not opens_thought("<think>\n\n</think>\n\n")
