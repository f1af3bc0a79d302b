"""Guesses from what was said before: exact under greedy choice, exact with a seed, unbiased without one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from riverrun.base.protocols import Request
from riverrun.base.types import SamplingParams
from riverrun.serve.blocks import root
from riverrun.serve.draft import PATIENCE, PAUSE, Lookup
from riverrun.serve.llm import LLM
from riverrun.serve.request import Sequence
from riverrun.serve.sampler import Sampler
from tests.tiny_model import write_tiny

REPEATING = "How much is the book? How much is the book? How much is the book? How much"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("lookup"))


@pytest.mark.parametrize("temperature", [0.0, 0.4, 1.0])
def test_answers_are_equal_with_and_without(folder: Path, temperature: float) -> None:
    requests = [
        Request(
            prompt=text, params=SamplingParams(max_tokens=40, temperature=temperature, seed=seed, logprobs=1, **more)
        )
        for seed, text in enumerate([REPEATING, "SELECT price", REPEATING + " is"])
        for more in ({}, {"repetition_penalty": 1.2}, {"stop": ("book",)})
    ]
    answers = {}
    for lookup in (0, 6):
        with LLM(folder, dtype="float32", slots=3, lookup=lookup) as model:
            if lookup:
                model.loop._draft.shortest = 1  # type: ignore[union-attr]
            answers[lookup] = model.generate(requests)
            model.loop.run(model.loop.scheduler.check_integrity)
            drafted = model.observer.drafted  # type: ignore[attr-defined]
            assert bool(drafted) == bool(lookup)
    for one, other in zip(answers[0], answers[6], strict=True):
        assert (one.raw, one.finish_reason) == (other.raw, other.finish_reason)
        assert [each.id for each in one.logprobs] == [each.id for each in other.logprobs]
        assert [each.logprob for each in one.logprobs] == pytest.approx([e.logprob for e in other.logprobs], abs=1e-4)


def sequence(tokens: list[int]) -> Sequence:
    params = SamplingParams(max_tokens=100)
    return Sequence(tokens, params, 1000, root=root("m"), sampler=Sampler(params, tokens))


def test_a_guess_is_what_followed_the_last_words_when_they_stood_before() -> None:
    lookup, one = Lookup(most=3), sequence([1, 2, 3, 4, 5, 6, 9, 3, 4])
    assert lookup(one, 1) == (5, 6, 9)
    assert lookup(one, 9) == (), "with many running sequences there is no guess"
    one.append(5)
    assert lookup(one, 1) == (6, 9, 3)
    one.append(7)
    assert lookup(one, 1) == ()
    longest = sequence([1, 2, 3, 8, 2, 3, 9, 1, 2, 3])
    assert Lookup(most=1)(longest, 1) == (8,), "the longer run decides"


def test_wrong_guesses_are_followed_by_a_pause() -> None:
    lookup, one = Lookup(most=4, shortest=1), sequence([1, 2, 3, 1, 3, 2, 1, 1, 2, 2, 3, 3])
    offered = []
    for _ in range(PATIENCE + PAUSE + 1):
        guess = lookup(one, 1)
        offered.append(bool(guess))
        one.append(1 if guess[:1] != (1,) else 2)  # what was guessed never comes
    assert offered == [True] * PATIENCE + [False] * PAUSE + [True]


def test_what_is_drawn_behind_a_guess_has_the_models_shares(folder: Path) -> None:
    """The first two tokens of 1,500 answers without a seed, with guesses and without: the same distribution."""
    counts = {}
    for lookup in (0, 4):
        with LLM(folder, dtype="float32", slots=16, lookup=lookup) as model:
            if lookup:
                model.loop._draft.running = 99  # type: ignore[union-attr]
            params = SamplingParams(max_tokens=3, temperature=0.35, ignore_end=True, logprobs=0)
            done = model.generate([Request(prompt=REPEATING, params=params)] * 1500)
            counts[lookup] = Counter(tuple(token.id for token in each.logprobs)[:2] for each in done)
    keys = [key for key, count in (counts[0] + counts[4]).items() if count > 40]
    assert len(keys) > 3
    for key in keys:
        a, b = counts[0][key], counts[4][key]
        assert abs(a - b) <= 4.5 * np.sqrt(a + b), f"{key}: {a} without, {b} with guesses"
