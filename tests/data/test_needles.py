"""Facts in long texts: where they stand, that nothing else answers, that documents keep to their length."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from riverrun.base.errors import InputError
from riverrun.data.needles import NAMES, make, rows, sentences

HAY = [f"Sentence number {number} speaks of something else entirely." for number in range(40)]


def words(text: str) -> int:
    return len(text.split())


@settings(derandomize=True, max_examples=80, deadline=None)
@given(st.integers(120, 900), st.lists(st.floats(0, 1), min_size=1, max_size=6), st.integers(0, 50))
def test_a_needle_stands_at_its_depth(tokens: int, depths: list[float], seed: int) -> None:
    found = make(tokens, depths, HAY, words, random.Random(seed), ask=1)
    (asked,) = found.needles
    assert asked.depth == depths[0]
    assert found.text.count(asked.sentence) == 1
    total = words(found.text)
    assert words(found.messages()[0]["content"] + asked.answer) <= tokens
    before = words(found.text[: found.text.index(asked.sentence)])
    around = total - 6 * len(depths)
    # within one sentence and the other needles of the place that was asked for
    assert abs(before - depths[0] * around) <= 8 + 6 * len(depths)


def test_names_and_codes_tell_needles_apart() -> None:
    found = make(600, [0.1, 0.5, 0.9, 0.9], HAY, words, random.Random(1))
    assert sorted(needle.depth for needle in found.needles) == [0.1, 0.5, 0.9, 0.9]
    assert len({needle.name for needle in found.needles}) == 4
    turns = found.messages()
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * 4
    for needle, question, answer in zip(found.needles, turns[::2], turns[1::2], strict=True):
        assert question["content"].endswith(needle.question)
        assert answer["content"] == f"{needle.code}."
        assert turns[0]["content"].startswith(found.text)


def test_rows_keep_to_their_lengths_and_are_seeded() -> None:
    first, again = (list(rows(30, HAY, words, shortest=60, longest=700, needles=5, seed=4)) for _ in range(2))
    assert first == again
    lengths = [sum(words(turn["content"]) for turn in row["messages"]) for row in first]  # type: ignore[index,attr-defined]
    assert max(lengths) <= 700
    assert min(lengths) < 120
    assert len(set(NAMES)) == len(NAMES)


def test_sentences_are_cut_and_too_few_are_refused() -> None:
    assert sentences(["One sentence that is long enough. And\nanother one on two lines!\n\nshort"] * 5)[:2] == [
        "One sentence that is long enough.",
        "And another one on two lines!",
    ]
    with pytest.raises(InputError, match="at least 10"):
        sentences(["Only this one sentence stands here."])


def test_needles_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="do not fit 20 tokens"):
        make(20, [0.5] * 4, HAY, words, random.Random(0))
