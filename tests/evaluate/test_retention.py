"""Retention: text windows, perplexity of a model whose probabilities are known, sums and how answers are read."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from riverrun.base.errors import InputError
from riverrun.base.fakes import FakeModel
from riverrun.base.protocols import Request, Score
from riverrun.base.types import Message, ToolCall
from riverrun.evaluate.retention import (
    compare_perplexity,
    compare_sums,
    cpython_topics,
    held_out,
    read_sum,
    run_perplexity,
    run_sums,
    score_perplexity,
    score_sums,
    two_digit_sums,
    windows,
)


class ByteModel(FakeModel):
    """Every byte is a token; vowels cost `vowel` nats, other bytes 2."""

    def __init__(self, vowel: float) -> None:
        super().__init__()
        self.vowel = vowel

    def score(self, prefix: str | Sequence[Message], continuations: Sequence[str]) -> list[Score]:
        assert prefix == ""
        return [
            Score(tuple(-self.vowel if byte in b"aeiou" else -2.0 for byte in text.encode()), False)
            for text in continuations
        ]


@settings(derandomize=True, max_examples=80, deadline=None)
@given(st.text(alphabet="ab \n.", max_size=200), st.integers(1, 40))
def test_windows_lose_nothing_but_white_space(text: str, characters: int) -> None:
    pieces = windows(text, characters)
    assert all(0 < len(piece) <= characters and piece.strip() for piece in pieces)
    assert re.sub(r"\s", "", "".join(pieces)) == re.sub(r"\s", "", text)


def test_windows_end_at_lines_or_spaces() -> None:
    assert windows("one two\nthree four five\n", 12) == ["one two\n", "three four ", "five\n"]
    assert windows("abcdefgh", 3) == ["abc", "def", "gh"]


def test_held_out_is_stable_under_additions() -> None:
    texts = [(f"topic {n}", "word " * 50) for n in range(60)]
    kept = held_out(texts, share=0.3, characters=10_000)
    assert 8 <= len(kept) <= 30
    assert held_out(reversed(texts), share=0.3, characters=10_000) == kept
    names = {name for name, _ in kept}
    assert names <= {name for name, _ in held_out([*texts, ("new", "text")], share=0.3, characters=20_000)}
    assert sum(len(text) for _, text in held_out(texts, characters=777)) == 777
    with pytest.raises(InputError, match="got 2 and 10"):
        held_out(texts, share=2, characters=10)


def test_the_reference_that_ships_with_cpython_is_long_enough() -> None:
    topics = list(cpython_topics())
    assert [name for name, _ in topics] == sorted(name for name, _ in topics)
    assert sum(len(text) for _, text in held_out(topics, characters=40_000)) == 40_000


def test_perplexity_is_weighted_by_tokens() -> None:
    texts = [("a", "aaaa"), ("b", "bb")]
    records = run_perplexity(ByteModel(1.0), texts)
    report = score_perplexity(records)
    assert report["nats_per_token"] == pytest.approx((4 * 1 + 2 * 2) / 6)
    assert report["perplexity"] == pytest.approx(math.exp(8 / 6))
    assert report["bits_per_byte"] == pytest.approx(8 / 6 / math.log(2))
    assert (report["tokens"], report["bytes"], report["windows"]) == (6, 6, 2)


def test_perplexity_ratio_with_its_interval() -> None:
    texts = [("t", "the quick brown fox jumps over a lazy dog " * 60)]
    before, after = (run_perplexity(ByteModel(vowel), texts, characters=97) for vowel in (2.0, 2.3))
    report = compare_perplexity(before, after)
    vowels = sum(letter in "aeiou" for letter in texts[0][1])
    assert report["ratio"] == pytest.approx(math.exp(0.3 * vowels / len(texts[0][1])), rel=1e-3)
    assert 1 < report["low"] < report["ratio"] < report["high"] < 1.15
    assert compare_perplexity(before, before)["ratio"] == 1.0
    with pytest.raises(InputError, match="different windows"):
        compare_perplexity(before, after[1:])


def test_other_tokens_are_not_compared() -> None:
    class WordModel(ByteModel):
        def score(self, prefix: str | Sequence[Message], continuations: Sequence[str]) -> list[Score]:
            return [Score(tuple(-3.0 for _ in text.split()), False) for text in continuations]

    texts = [("t", "one two three")]
    with pytest.raises(InputError, match="'t#0' has 13 and 3 tokens: the tokenizers differ"):
        compare_perplexity(run_perplexity(ByteModel(1.0), texts), run_perplexity(WordModel(1.0), texts))
    with pytest.raises(InputError, match="at least one window"):
        run_perplexity(ByteModel(1.0), [("empty", "  \n")])


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("82", 82),
        ("82.", 82),
        ("The answer is 82.", 82),
        ("47 + 35 = 82", 82),
        ("47+35 is 82.", 82),
        ("35 plus 47 equals **82**", 82),
        ("The sum of 47 and 35 is 82, since 40 + 30 = 70.", 82),
        ("Adding 47 to 35 gives 81", 81),
        ("It is 82, because 40 + 30 is 70 and 7 + 5 is 12.", 82),
        ("\\(47 + 35 = 82\\)", 82),
        ("47 + 35", None),
        ("Sure!", None),
        ("", None),
        ("147 + 35 = 182", 147),
        ("82.5", None),
    ],
)
def test_read_sum(text: str, read: int | None) -> None:
    assert read_sum(text, 47, 35) == read


def test_sums_are_distinct_seeded_two_digit_pairs() -> None:
    sums = two_digit_sums(300, seed=4)
    assert sums == two_digit_sums(300, seed=4) != two_digit_sums(300, seed=5)
    assert len({(each.a, each.b) for each in sums}) == 300
    assert all(10 <= each.a <= 99 and 10 <= each.b <= 99 for each in sums)
    assert len(two_digit_sums(8100)) == 8100
    with pytest.raises(InputError, match="asked for 8101"):
        two_digit_sums(8101)


def test_run_sums_scores_and_compares() -> None:
    def able(request: Request) -> str:
        a, b = map(int, re.findall(r"\d+", request.messages[-1].text))
        return f"{a} + {b} = {a + b}"

    def half(request: Request) -> str | ToolCall:
        a, b = map(int, re.findall(r"\d+", request.messages[-1].text))
        return f"That is {a + b}." if a % 2 else ToolCall("query_database", {"sql": "SELECT 1"})

    sums = two_digit_sums(80)
    good, bad = run_sums(FakeModel(able), sums), run_sums(FakeModel(half), sums, system="Be brief.")
    odd = sum(each.a % 2 for each in sums)
    assert score_sums(good)["value"] == 1.0
    assert score_sums(bad)["successes"] == odd
    report = compare_sums(good, bad)
    assert report["losses"] == 80 - odd
    assert report["high"] < 0
    with pytest.raises(InputError, match="different sums"):
        compare_sums(good, bad[1:])
