"""Cloze items and plain instructions: what counts as right, on models whose answers are known."""

from __future__ import annotations

import pytest

from riverrun.base.config import build_config
from riverrun.base.errors import ConfigError, InputError
from riverrun.base.fakes import FakeModel
from riverrun.evaluate import cloze, instructions
from riverrun.evaluate.cloze import Cloze, ClozeRecord
from riverrun.evaluate.instructions import Instruction, InstructionRecord


def test_cloze_takes_the_likeliest_ending() -> None:
    items = [
        Cloze("a", "The sky is", (" green.", " blue."), 1, "The sky is blue."),
        Cloze("b", "Grass is", (" green.", " loud."), 0),
    ]
    model = FakeModel(prefers=[" blue.", " loud."])
    records = cloze.run(model, items)
    assert [record.pick for record in records] == [1, 1]
    assert [record.success for record in records] == [True, False]
    assert [record.greedy for record in records] == [True, False]
    assert cloze.score(records).value == cloze.greedy_rate(records).value == 0.5
    assert records[0].nats == pytest.approx((2.0, 0.1))
    assert ClozeRecord.from_dict(records[0].as_dict()) == records[0]
    assert Cloze.from_dict(items[0].as_dict()) == items[0]


def test_cloze_puts_the_fact_before_the_sentence_in_open_book() -> None:
    seen: list[str] = []

    class Spy(FakeModel):
        def score(self, prefix, continuations):  # type: ignore[no-untyped-def]
            seen.append(prefix)
            return super().score(prefix, continuations)

    item = Cloze("a", "The sky is", (" green.", " blue."), 1, "Blue is the sky.")
    cloze.run(Spy(), [item])
    cloze.run(Spy(), [item], open_book=True)
    assert seen == ["The sky is", "Blue is the sky.\n\nThe sky is"]


@pytest.mark.parametrize(("options", "answer"), [((" a.",), 0), ((" a.", " b."), 2), ((" a.", " a."), 0)])
def test_cloze_refuses_items_without_a_choice(options: tuple[str, ...], answer: int) -> None:
    with pytest.raises(InputError, match="cloze 'x'"):
        Cloze("x", "It is", options, answer)


ANSWERS = [
    ("Which planet is known as the Red Planet?", "It is Mars.", True),
    ("Which planet is known as the Red Planet?", "Marsupials.", False),
    ("List the three primary colours.", "red, BLUE and yellow", True),
    ("List the three primary colours.", "red and blue", False),
    ("Write one sentence about a dog.", "A dog barks.", True),
    ("Write one sentence about a dog.", "A dog barks.\n\nA cat does not.", False),
    ("Rewrite in capital letters: hello", "HELLO", True),
    ("Rewrite in capital letters: hello", "Hello", False),
    ("Is the sun a star? Answer with yes or no.", "Yes, it is.", True),
    ("Is the sun a star? Answer with yes or no.", "Well, yes.", False),
]


@pytest.mark.parametrize(("prompt", "answer", "right"), ANSWERS)
def test_instructions_are_judged_by_what_is_said(prompt: str, answer: str, right: bool) -> None:
    (asked,) = [each for each in instructions.instructions() if each.prompt == prompt]
    assert instructions.judge(asked, answer) is right


def test_instructions_are_asked_as_plain_turns() -> None:
    asked = instructions.instructions(3)
    model = FakeModel(["Paris", "Tokyo", "Venus"])
    records = instructions.run(model, asked, max_tokens=7)
    assert [record.success for record in records] == [True, True, False]
    assert instructions.score(records).successes == 2
    assert [request.params.max_tokens for request in model.requests] == [7, 7, 7]
    assert [len(request.messages) for request in model.requests] == [1, 1, 1]
    assert InstructionRecord.from_dict(records[0].as_dict()) == records[0]


def test_measured_and_replayed_prompts_are_apart() -> None:
    measured = {each.prompt for each in instructions.instructions()}
    assert len(measured) == len(instructions.instructions()) >= 30
    assert not measured & set(instructions.replay_prompts())
    assert len(instructions.replay_prompts(5)) == 5


def test_an_expression_that_does_not_compile_is_refused() -> None:
    with pytest.raises((ConfigError, Exception), match="unterminated"):
        build_config(Instruction, {"prompt": "a", "expect": ["["]})
