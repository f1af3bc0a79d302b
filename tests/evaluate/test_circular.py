"""Rotations and metrics against a plain re-implementation and the vectors of the published evaluators."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from riverrun.base.errors import InputError
from riverrun.evaluate.circular import Outcome, Variant, measure, permutations, rotations

FRUIT = ("apple", "pear", "plum", "fig")


def test_rotation_follows_the_published_rule() -> None:
    """Pattern P = K[i:] + K[:i]; item[P[j]] = origin[K[j]]; the answer moves along."""
    keys = "ABCD"
    for shift, variant in enumerate(rotations(FRUIT, 2)):
        pattern = keys[shift:] + keys[:shift]
        assert "".join(keys[place] for place in variant.pattern) == pattern
        item = {pattern[j]: FRUIT[j] for j in range(4)}
        assert variant.options == tuple(item[key] for key in keys)
        assert keys[variant.answer] == pattern[keys.index("C")]
        assert variant.options[variant.answer] == "plum"
        assert [FRUIT[variant.original(place)] for place in range(4)] == list(variant.options)


def test_permutations_are_all_different_and_contain_the_rotations() -> None:
    everything = permutations(FRUIT, 1)
    assert len({variant.options for variant in everything}) == math.factorial(4)
    assert everything[0] == Variant((0, 1, 2, 3), FRUIT, 1)
    assert set(rotations(FRUIT, 1)) <= set(everything)
    with pytest.raises(InputError, match="all orders of 7 options"):
        permutations("abcdefg", 0)


def test_always_the_first_letter_earns_a_quarter_and_no_perfect_question() -> None:
    golds = [0, 1, 1, 3, 2, 0]
    outcomes = [
        Outcome(str(number), variant.pattern, variant.answer, 0)
        for number, gold in enumerate(golds)
        for variant in rotations(FRUIT, gold)
    ]
    metrics = measure(outcomes)
    assert metrics.acc == 0.25
    assert metrics.perf == 0.0
    assert metrics.origin == pytest.approx(golds.count(0) / len(golds))
    assert metrics.prior == {"A": 1.0, "B": 0.0, "C": 0.0, "D": 0.0, "-": 0.0}
    assert metrics.more == {1: 1.0, 2: 0.0, 3: 0.0}


def test_an_oracle_is_perfect_and_has_no_favourite() -> None:
    outcomes = [Outcome(str(n), v.pattern, v.answer, v.answer) for n in range(5) for v in rotations(FRUIT, n % 4)]
    metrics = measure(outcomes)
    assert (metrics.origin, metrics.acc, metrics.perf, metrics.vote) == (1.0, 1.0, 1.0, 1.0)
    assert metrics.more == {1: 1.0, 2: 1.0, 3: 1.0}
    assert all(metrics.prior[letter] == 0.25 for letter in "ABCD")


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.integers(2, 5), st.data())
def test_metrics_equal_a_plain_reimplementation(count: int, data: st.DataObject) -> None:
    questions = data.draw(st.integers(1, 6))
    options = [f"option {index}" for index in range(count)]
    outcomes, shown = [], []
    for number in range(questions):
        gold = data.draw(st.integers(0, count - 1))
        for variant in rotations(options, gold):
            picked = data.draw(st.none() | st.integers(0, count - 1))
            outcomes.append(Outcome(f"q{number}", variant.pattern, variant.answer, picked))
            text = None if picked is None else variant.options[picked]
            shown.append((number, options[gold], text, picked))
    metrics = measure(outcomes)
    right = [sum(text == gold for n, gold, text, _ in shown if n == number) for number in range(questions)]
    assert metrics.acc == pytest.approx(sum(right) / (questions * count))
    assert metrics.perf == pytest.approx(sum(each == count for each in right) / questions)
    for k in range(1, count):
        assert metrics.more[k] == pytest.approx(sum(each >= k for each in right) / questions)
    won = 0
    for number in range(questions):
        texts = [text for n, _, text, _ in shown if n == number and text is not None]
        gold = next(gold for n, gold, _, _ in shown if n == number)
        if texts:
            most = max(Counter(texts).values())
            won += next(text for text in texts if texts.count(text) == most) == gold
    assert metrics.vote == pytest.approx(won / questions)
    for place in range(count):
        share = sum(picked == place for *_, picked in shown) / len(shown)
        assert metrics.prior["ABCDE"[place]] == pytest.approx(share)
    assert metrics.prior["-"] == pytest.approx(sum(picked is None for *_, picked in shown) / len(shown))
    assert sum(metrics.prior.values()) == pytest.approx(1.0)


def test_circular_part_of_all_orders() -> None:
    """A reader that is right in the rotations only: all orders show it, the circular part does not."""
    ring = {variant.pattern for variant in rotations(FRUIT, 0)}
    outcomes = [
        Outcome("q", v.pattern, v.answer, v.answer if v.pattern in ring else None) for v in permutations(FRUIT, 0)
    ]
    assert measure(outcomes).acc == pytest.approx(4 / 24)
    assert measure(outcomes).perf == 0.0
    assert measure(outcomes, circular_only=True).perf == 1.0
    assert measure(outcomes).prior["-"] == pytest.approx(20 / 24)


def test_refusals() -> None:
    outcome = Outcome("q", (0, 1), 0, 0)
    with pytest.raises(InputError, match="'q' has the same rotation twice"):
        measure([outcome, outcome])
    with pytest.raises(InputError, match="at least one question"):
        measure([])
    with pytest.raises(InputError, match="between 0 and 3, got 4"):
        rotations(FRUIT, 4)
    with pytest.raises(InputError, match="got 1"):
        rotations(["only"], 0)
    assert len(list(itertools.chain(rotations(FRUIT, 0)))) == 4
