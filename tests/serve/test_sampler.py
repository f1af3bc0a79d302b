"""The sampler against the definition of temperature, top-k and top-p, written out plainly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from riverrun.base.errors import InputError
from riverrun.base.types import SamplingParams
from riverrun.serve import sampler
from riverrun.serve.sampler import Sampler, choose, generator, ranked


def wanted(logits: NDArray[np.float32], params: SamplingParams) -> NDArray[np.float64]:
    """The probability of every token by the definition: sort, cut to top_k, share out, cut to top_p, share out."""
    order = np.argsort(-logits, kind="stable")[: params.top_k or None]
    share = np.exp((logits[order].astype(np.float64) - logits[order[0]]) / params.temperature)
    share /= share.sum()
    kept = int(np.searchsorted(share.cumsum(), params.top_p)) + 1 if params.top_p < 1 else len(order)
    out = np.zeros(len(logits))
    out[order[:kept]] = share[:kept] / share[:kept].sum()
    return out


class Steps:
    """A source of numbers that go through [0, 1) in even steps: what is drawn are the shares themselves."""

    def __init__(self, count: int) -> None:
        self.numbers = iter((np.arange(count) + 0.5) / count)

    def random(self) -> float:
        return float(next(self.numbers))


def drawn(logits: NDArray[np.float32], params: SamplingParams, count: int) -> NDArray[np.float64]:
    source = Steps(count)
    got = [choose(logits, params, source) for _ in range(count)]  # type: ignore[arg-type]
    return np.bincount(got, minlength=len(logits)) / count


@pytest.mark.parametrize("size", [1, 7, 600, 3000])
@pytest.mark.parametrize(
    "settings", [{}, {"top_k": 5}, {"top_p": 0.7}, {"top_k": 8, "top_p": 0.9}, {"top_k": 900, "top_p": 0.5}]
)
@pytest.mark.parametrize("spread", [0.01, 2.0])  # nearly equal: the first HEAD tokens do not make up top_p
def test_what_is_drawn_has_the_shares_of_the_definition(size: int, settings: dict[str, float], spread: float) -> None:
    logits = (np.random.default_rng(size).normal(size=size) * spread).astype(np.float32)
    params = SamplingParams(temperature=0.8, **settings)  # type: ignore[arg-type]
    count = 4000
    order = np.argsort(-logits, kind="stable") if settings else np.arange(size)  # the order in which shares are summed
    difference = np.abs(np.cumsum((drawn(logits, params, count) - wanted(logits, params))[order])).max()
    assert difference <= 1.5 / count + 1e-4


@given(
    st.lists(st.floats(-60, 60, width=32) | st.just(float("-inf")), min_size=1, max_size=40),
    st.floats(1e-6, 2),
    st.integers(0, 50),
    st.floats(0.01, 1),
)
@settings(max_examples=200, deadline=None)
def test_only_what_the_definition_allows_is_drawn(
    values: list[float], temperature: float, top_k: int, top_p: float
) -> None:
    logits = np.array(values, dtype=np.float32)
    if not np.isfinite(logits).any():
        logits[0] = 0
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p)
    allowed = wanted(logits, SamplingParams(temperature=temperature, top_k=top_k, top_p=min(1.0, top_p + 1e-5)))
    for token in {choose(logits, params, generator(SamplingParams(seed=seed))) for seed in range(5)}:
        assert allowed[token] > 0 or np.isclose(logits[token], logits[allowed > 0].min())


def test_the_head_is_enough_and_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a head of 4 the same tokens are drawn as with a sorted vocabulary."""
    logits = np.random.default_rng(3).normal(size=200).astype(np.float32) * 4
    params = SamplingParams(temperature=0.7, top_p=0.9)
    whole = [choose(logits, params, generator(SamplingParams(seed=seed))) for seed in range(200)]
    for head in (4, 64):
        monkeypatch.setattr(sampler, "HEAD", head)
        assert [choose(logits, params, generator(SamplingParams(seed=seed))) for seed in range(200)] == whole


def test_greedy_takes_the_first_of_equal_ones() -> None:
    assert choose(np.array([1, 3, 3], dtype=np.float32), SamplingParams(), generator(SamplingParams())) == 1


# ---- what changes logits, against the definitions written out -----------------------------------------------------


class Seen(Sampler):
    """Keeps the logits that were drawn from."""

    last: NDArray[np.float32]

    def _changed(self, logits: NDArray[np.float32], allowed: NDArray[np.bool_] | None) -> NDArray[np.float32]:
        self.last = super()._changed(logits, allowed)
        return self.last


def defined(
    logits: NDArray[np.float32],
    params: SamplingParams,
    prompt: list[int],
    answer: list[int],
    ends: set[int],
    bad: list[list[int]],
) -> NDArray[np.float64]:
    """Token by token, from the whole history."""
    history, out = prompt + answer, logits.astype(np.float64)
    for token in range(len(out)):
        if params.repetition_penalty != 1 and token in history:
            out[token] = (
                out[token] / params.repetition_penalty if out[token] > 0 else out[token] * params.repetition_penalty
            )
        count = answer.count(token)
        out[token] -= params.presence_penalty * (count > 0) + params.frequency_penalty * count
        bias = params.logit_bias.get(token, 0.0)
        out[token] = -np.inf if bias <= -100 else out[token] + bias
        size = params.no_repeat_ngram
        run = [*history[len(history) - size + 1 :], token] if size and len(history) >= size - 1 else None
        if run and any(history[at : at + size] == run for at in range(len(history) - size + 1)):
            out[token] = -np.inf
        if any(
            word == [*history[len(history) - len(word) + 1 :], token] for word in bad if len(word) - 1 <= len(history)
        ):
            out[token] = -np.inf
        if len(answer) < params.min_tokens and token in ends:
            out[token] = -np.inf
    return out


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.integers(0, 2**20),
    st.lists(st.integers(0, 7), max_size=8),
    st.integers(1, 10),
    st.sampled_from([1.0, 0.5, 1.7]),
    st.sampled_from([0.0, 1.5, -0.5]),
    st.sampled_from([0.0, 0.7]),
    st.integers(0, 3),
    st.dictionaries(st.integers(0, 7), st.sampled_from([-100.0, -1.0, 3.0]), max_size=3),
    st.integers(0, 4),
    st.lists(st.lists(st.integers(0, 7), min_size=1, max_size=3), max_size=3),
)
def test_changed_logits_are_those_of_the_definitions(
    seed: int, prompt: list[int], steps: int, repetition: float, presence: float, frequency: float, ngram: int,
    bias: dict[int, float], least: int, bad: list[list[int]],
) -> None:  # fmt: skip
    params = SamplingParams(
        max_tokens=20, repetition_penalty=repetition, presence_penalty=presence, frequency_penalty=frequency,
        no_repeat_ngram=ngram, logit_bias=bias, min_tokens=least, bad_words=tuple("x" for _ in bad),
    )  # fmt: skip
    source = np.random.default_rng(seed)
    own = Seen(params, prompt, ends=[2], bad=bad)
    answer: list[int] = []
    for _ in range(steps):
        logits = source.normal(size=8).astype(np.float32) * 3
        want = defined(logits, params, prompt, answer, {2}, bad)
        if not np.isfinite(want).any():
            with pytest.raises(InputError, match="no token may come next"):
                own.choose(logits)
            break
        token = own.choose(logits)
        if not own.plain:
            np.testing.assert_allclose(own.last, want, rtol=1e-5, atol=1e-5)
            assert token == int(np.argmax(own.last))
        own.took(token)
        answer.append(token)


@pytest.mark.parametrize("min_p", [0.05, 0.5, 1.0])
@pytest.mark.parametrize("other", [{}, {"top_k": 5}, {"top_p": 0.8}])
def test_min_p_keeps_what_is_likely_enough(min_p: float, other: dict[str, float]) -> None:
    logits = np.random.default_rng(5).normal(size=50).astype(np.float32) * 2
    params = SamplingParams(temperature=0.9, min_p=min_p, **other)  # type: ignore[arg-type]
    got, want = drawn(logits, params, 4000), wanted_by_token(logits, params)
    order = np.argsort(-logits, kind="stable") if other else np.arange(len(logits))
    assert np.abs(np.cumsum((got - want)[order])).max() <= 1e-3
    assert got[want == 0].sum() == 0


def wanted_by_token(logits: NDArray[np.float32], params: SamplingParams) -> NDArray[np.float64]:
    """Shares by token: top_k, top_p, then min_p of the likeliest."""
    order = np.argsort(-logits, kind="stable")[: params.top_k or None]
    share = np.exp((logits[order].astype(np.float64) - logits[order[0]]) / params.temperature)
    share /= share.sum()
    kept = int(np.searchsorted(share.cumsum(), params.top_p)) + 1 if params.top_p < 1 else len(order)
    share = np.where(np.arange(len(share)) < kept, share, 0)
    share = np.where(share >= params.min_p * share[0], share, 0)
    out = np.zeros(len(logits))
    out[order] = share / share.sum()
    return out


def test_only_allowed_tokens_are_drawn_and_nothing_is_changed() -> None:
    logits = np.arange(6, dtype=np.float32)
    allowed = np.array([True, False, True, False, False, False])
    before = logits.copy()
    assert Sampler(SamplingParams(), []).choose(logits, allowed) == 2
    assert np.array_equal(logits, before)


def test_any_whole_number_is_a_seed() -> None:
    seeds = (0, -1, -(2**63), 2**63 - 1, 10**30)
    draws = [generator(SamplingParams(seed=seed)).random() for seed in seeds]
    assert draws == [generator(SamplingParams(seed=seed)).random() for seed in seeds]
    assert len(set(draws)) == len(seeds)


def test_the_least_penalty_is_still_a_number() -> None:
    own = Seen(SamplingParams(repetition_penalty=5e-324), [0, 1, 2])
    assert own.choose(np.array([2.0, 0.0, -3.0, 1.0], np.float32)) == 0
    assert np.isfinite(own.last).all()


def test_a_request_that_forbids_every_token_is_told_so() -> None:
    logits = np.arange(4, dtype=np.float32)
    allowed = np.array([True, False, False, False])
    sampler = Sampler(SamplingParams(logit_bias={0: -100.0}), [])
    assert sampler.choose(logits) == 3
    with pytest.raises(InputError, match=r"no token may come next: .* leaves none that its guide allows"):
        sampler.choose(logits, allowed)


def test_log_probabilities_are_of_the_logits_as_they_came() -> None:
    logits = np.random.default_rng(0).normal(size=300).astype(np.float32) * 5
    share = logits.astype(np.float64) - np.log(np.exp(logits.astype(np.float64)).sum())
    found = ranked(logits, 7, 4)
    assert found.logprob == pytest.approx(share[7], abs=1e-5)
    assert [token for token, _ in found.top] == np.argsort(-logits)[:4].tolist()
    assert [p for _, p in found.top] == pytest.approx(sorted(share, reverse=True)[:4], abs=1e-5)
    assert ranked(logits, 7, 0).top == ()
    assert len(ranked(logits[:3], 1, 20).top) == 3
