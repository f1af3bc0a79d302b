"""The sampler against the definition of temperature, top-k and top-p, written out plainly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from riverrun.base.types import SamplingParams
from riverrun.serve import sampler
from riverrun.serve.sampler import choose, generator


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
