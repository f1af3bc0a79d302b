"""Pairs and judged answers as groups of rows with one prompt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from riverrun.base.errors import InputError
from riverrun.base.types import Message
from riverrun.data.preferences import PreferencePair, completion_row, judged_groups, judged_of, pair_rows, split_prompt
from riverrun.data.tokens import TokenRow
from riverrun.models.load import Checkpoint, load_checkpoint
from riverrun.wire.codec import get_codec
from tests.tiny_model import write_tiny

SYSTEM = Message.of("system", "You are the assistant of a bookshop.")
FIRST = Message.of("user", "How much is the book?")


@dataclass
class Stored:
    """Rows with their tags."""

    rows: list[TokenRow]
    tags: list[int]

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, index: int) -> TokenRow:
        return self.rows[index]

    def tag(self, index: int) -> int:
        return self.tags[index]


def said(text: str) -> Message:
    return Message.of("assistant", text)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return load_checkpoint(write_tiny(Path(tmp_path_factory.mktemp("tiny"))))


def parts(opened: Checkpoint) -> tuple[Any, Any, Any]:
    return opened.tokenizer, opened.template, get_codec("hermes")


def learned_text(opened: Checkpoint, row: Any) -> str:
    return opened.tokenizer.decode(
        [i for i, flag in zip(row.ids, row.learned, strict=True) if flag], skip_special=False
    )


def test_only_the_answers_differ_and_only_they_are_learned(opened: Checkpoint) -> None:
    prompt = [SYSTEM, FIRST]
    chosen, rejected = pair_rows(prompt, said("It costs 12."), said("No idea."), *parts(opened), row_id="a")
    assert learned_text(opened, chosen) == "It costs 12.<|im_end|>"
    assert learned_text(opened, rejected) == "No idea.<|im_end|>"
    group = PreferencePair("a", chosen, rejected).group
    before = opened.template.encode(opened.tokenizer, prompt)
    assert chosen.ids[: len(before)] == rejected.ids[: len(before)] == tuple(before)
    assert group.prefix == len(before) - 1, "the last token of the prompt predicts what differs"
    assert group.computed_tokens == len(chosen.ids) + len(rejected.ids) - group.prefix


def test_earlier_turns_of_the_assistant_are_not_judged(opened: Checkpoint) -> None:
    prompt = [FIRST, said("Which book?"), Message.of("user", "Salt.")]
    chosen, rejected = pair_rows(prompt, said("12."), said("13."), *parts(opened))
    assert "Which book?" in opened.tokenizer.decode(list(chosen.ids))
    assert learned_text(opened, chosen) == "12.<|im_end|>"
    assert learned_text(opened, rejected) == "13.<|im_end|>"


def test_an_answer_of_several_messages_is_learned_whole(opened: Checkpoint) -> None:
    answer = [said("One moment."), Message.of("user", "Yes?"), said("12.")]
    row = completion_row([FIRST], answer, *parts(opened))
    assert learned_text(opened, row) == "One moment.<|im_end|>12.<|im_end|>"


def test_a_prompt_shorter_than_is_worth_sharing_is_not_shared(opened: Checkpoint) -> None:
    chosen, rejected = pair_rows([Message.of("user", "?")], said("a"), said("b"), *parts(opened))
    group = PreferencePair("a", chosen, rejected).group
    assert group.prefix in (0, len(opened.template.encode(opened.tokenizer, [Message.of("user", "?")])) - 1)


def test_the_prompt_of_two_conversations_is_what_they_share() -> None:
    prompt, chosen, rejected = split_prompt([SYSTEM, FIRST, said("a")], [SYSTEM, FIRST, said("b")])
    assert (prompt, chosen, rejected) == ((SYSTEM, FIRST), (said("a"),), (said("b"),))
    # the first assistant turn that both have is a part of what is judged, not of the prompt
    prompt, chosen, _ = split_prompt([FIRST, said("a"), FIRST, said("b")], [FIRST, said("a")])
    assert prompt == (FIRST,)
    assert chosen == (said("a"), FIRST, said("b"))


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected", "message"),
    [
        ([FIRST], "same", "same", "row 'r': chosen and rejected are equal, so nothing is preferred: drop the row"),
        ([FIRST], "  ", "b", "row 'r': the chosen answer is empty"),
        ([FIRST], "a", "", "row 'r': the rejected answer is empty"),
        ([], "a", "b", "row 'r' has no prompt"),
    ],
)
def test_pairs_that_teach_nothing_are_named(
    opened: Checkpoint, prompt: list[Message], chosen: str, rejected: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        pair_rows(prompt, said(chosen), said(rejected), *parts(opened), row_id="r")


def test_conversations_without_a_common_prompt_are_named() -> None:
    with pytest.raises(InputError, match="row 'r': chosen and rejected have no common prompt"):
        split_prompt([FIRST, said("a")], [SYSTEM, FIRST, said("b")], row_id="r")


def test_judged_answers_come_with_an_unrelated_one(opened: Checkpoint) -> None:
    other = Message.of("user", "Where is the shop, and when is it open on Sundays?")
    talks = [(FIRST, "12."), (FIRST, "a lot"), (other, "Here.")]
    rows = [completion_row([asked], said(text), *parts(opened), row_id=text) for asked, text in talks]
    groups = judged_groups(rows, [True, False, True])
    assert [group.desirable for group in groups] == [True, False, True]
    assert [group.rows[0] for group in groups] == rows
    unrelated = [learned_text(opened, group.rows[1]) for group in groups]
    # the next row's answer is to the same prompt, so the one after it is taken
    assert unrelated == ["Here.<|im_end|>", "Here.<|im_end|>", "12.<|im_end|>"]
    for (asked, _), answer, group in zip(talks, (said("Here."), said("Here."), said("12.")), groups, strict=True):
        assert group.rows[1].ids == completion_row([asked], answer, *parts(opened)).ids, "as if it had been rendered"
        before = opened.template.encode(opened.tokenizer, [asked])
        assert all(list(each.ids[: len(before)]) == before for each in group.rows)
    stored = Stored(rows, [1, 2, 1])
    assert judged_of(stored) == groups
    with pytest.raises(InputError, match="row 'a lot' is not judged"):
        judged_of(Stored(rows, [1, 0, 1]))
    with pytest.raises(InputError, match="all 2 rows have one prompt"):
        judged_groups(rows[:2], [True, False])
