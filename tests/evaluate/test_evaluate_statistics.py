"""Intervals against published and independently computed figures, and the properties every interval must have."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from riverrun.base.errors import InputError
from riverrun.evaluate.statistics import (
    Rate,
    compare_outcomes,
    mcnemar_exact,
    minimum_detectable_effect,
    newcombe,
    paired_bootstrap,
    paired_interval,
    tango,
    weighted_bootstrap,
    wilson,
)

SETTINGS = settings(derandomize=True, max_examples=60, deadline=None)
Z = 1.959963984540054


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_newcombes_published_intervals(successes: int, n: int, low: float, high: float) -> None:
    """Newcombe, Statistics in Medicine 17:857 (1998), table I, method 3."""
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


@SETTINGS
@given(st.integers(1, 500), st.data())
def test_wilson_holds_the_share_and_mirrors(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    low, high = wilson(k, n)
    assert 0 <= low <= k / n <= high <= 1
    assert wilson(n - k, n) == pytest.approx((1 - high, 1 - low), abs=1e-12)
    wider = wilson(k, n, 0.99)
    assert wider.low <= low
    assert wider.high >= high


@pytest.mark.parametrize(
    ("first", "second", "low", "high"),
    [((56, 70), (48, 80), 0.0524, 0.3339), ((9, 10), (3, 10), 0.1705, 0.8090), ((10, 10), (0, 10), 0.6075, 1.0)],
)
def test_newcombe_gives_his_published_intervals(
    first: tuple[int, int], second: tuple[int, int], low: float, high: float
) -> None:
    """Newcombe, Statistics in Medicine 17:873 (1998), table II, method 10."""
    found = newcombe(Rate(*first), Rate(*second))
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)
    assert found.difference == pytest.approx(first[0] / first[1] - second[0] / second[1])
    mirrored = newcombe(Rate(*second), Rate(*first))
    assert (-mirrored.high, -mirrored.low) == pytest.approx((found.low, found.high))


def test_rate_of_nothing_says_that_nothing_is_known() -> None:
    assert Rate.of([]).as_dict() == {"value": 0.0, "low": 0.0, "high": 1.0, "successes": 0, "n": 0}
    assert Rate.of([True, False, True]).value == pytest.approx(2 / 3)


def _tango_statistic(losses: int, gains: int, n: int, d: float) -> float:
    """The score statistic with the nuisance share found by searching the likelihood instead of the closed form."""
    grid = np.linspace(max(0.0, -d), (1 - d) / 2, 400_001)[1:-1]
    likelihood = losses * np.log(grid) + gains * np.log(grid + d) + (n - losses - gains) * np.log(1 - 2 * grid - d)
    q = grid[np.argmax(likelihood)]
    return float((gains - losses - n * d) / math.sqrt(n * (2 * q + d - d * d)))


@pytest.mark.parametrize(("losses", "gains", "n"), [(2, 12, 50), (14, 6, 100), (1, 3, 44), (30, 31, 240)])
def test_tango_ends_are_where_the_score_statistic_reaches_z(losses: int, gains: int, n: int) -> None:
    estimate, low, high = tango(losses, gains, n)
    assert estimate == pytest.approx((gains - losses) / n)
    assert _tango_statistic(losses, gains, n, low) == pytest.approx(Z, abs=2e-3)
    assert _tango_statistic(losses, gains, n, high) == pytest.approx(-Z, abs=2e-3)


@pytest.mark.parametrize("n", [1, 7, 50, 1000])
def test_tango_without_any_change_has_the_closed_form_width(n: int) -> None:
    half = Z * Z / (n + Z * Z)
    assert tango(0, 0, n) == pytest.approx((0.0, -half, half), abs=1e-9)


@SETTINGS
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_paired_outcomes_hold_the_estimate_and_mirror(pairs: list[tuple[bool, bool]]) -> None:
    before, after = [a for a, _ in pairs], [b for _, b in pairs]
    difference, low, high = paired_interval(before, after)
    assert -1 <= low <= difference <= high <= 1
    assert low < high
    assert paired_interval(after, before) == pytest.approx((-difference, -high, -low), abs=1e-9)
    report = compare_outcomes(before, after)
    assert (report.difference, report.low, report.high) == (difference, low, high)
    assert report.after - report.before == pytest.approx(difference)
    assert report.gains - report.losses == round(difference * report.n)


def test_tango_covers_the_true_difference() -> None:
    generator = np.random.default_rng(5)
    truth, n, held = 0.1, 80, 0
    for row in generator.multinomial(n, [0.05, 0.15, 0.8], 1500):
        _, low, high = tango(int(row[0]), int(row[1]), n)
        held += low <= truth <= high
    assert 0.935 <= held / 1500 <= 0.965


def test_mcnemar_matches_the_binomial_and_is_symmetric() -> None:
    assert mcnemar_exact(2, 10) == pytest.approx(0.03857421875)
    assert mcnemar_exact(14, 6) == pytest.approx(0.11531829833984375)
    assert mcnemar_exact(0, 5) == pytest.approx(0.0625)
    assert mcnemar_exact(7, 7) == 1.0
    assert mcnemar_exact(0, 0) == 1.0
    assert mcnemar_exact(3, 9) == mcnemar_exact(9, 3)
    assert 0 < mcnemar_exact(900, 1100) < 1e-4


# A skewed sample; scipy.stats.bootstrap(method="BCa", 200,000 resamples) gives its mean the interval (0.2154, 0.5924),
# give or take 0.0007 by seed.
SKEWED = [0.176, 0.181, -0.278, 1.378, -0.235, 0.164, 1.255, -0.081, -0.023, 0.517]
SKEWED += [-0.213, 0.077, -0.037, 0.427, 0.254, 0.101, 0.201, -0.269, 0.749, 0.002]
SKEWED += [1.101, 0.267, 0.932, 1.194, 0.305, -0.076, -0.093, -0.02, -0.223, 0.746]
SKEWED += [1.801, -0.234, 1.985, 0.272, 0.163, 0.558, 1.755, 0.296, -0.065, 0.112]


def test_bootstrap_agrees_with_scipys_bca() -> None:
    before = [1.0 + 0.01 * index for index in range(len(SKEWED))]
    after = [value + change for value, change in zip(before, SKEWED, strict=True)]
    difference, low, high = paired_interval(before, after)
    assert difference == pytest.approx(sum(SKEWED) / len(SKEWED))
    assert (low, high) == pytest.approx((0.2154, 0.5924), abs=0.006)
    assert low - difference != pytest.approx(difference - high, abs=0.02), "BCa follows the skew"


def test_bootstrap_is_the_same_twice_and_differs_by_seed() -> None:
    before, after = [0.0] * len(SKEWED), SKEWED
    assert paired_bootstrap(before, after) == paired_bootstrap(before, after)
    assert paired_bootstrap(before, after, seed=1) != paired_bootstrap(before, after, seed=2)


@settings(derandomize=True, max_examples=15, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=30))
def test_bootstrap_holds_the_estimate(changes: list[float]) -> None:
    difference, low, high = paired_bootstrap([0.0] * len(changes), changes, resamples=500)
    assert low <= difference <= high
    assert min(changes) - 1e-9 <= low
    assert high <= max(changes) + 1e-9


def test_equal_runs_have_no_difference_and_one_item_no_width() -> None:
    assert paired_bootstrap([0.5, 0.25, 3.0], [0.5, 0.25, 3.0]) == (0.0, 0.0, 0.0)
    assert paired_bootstrap([1.0], [3.5]) == (2.5, 2.5, 2.5)


def test_weighted_bootstrap_of_a_ratio() -> None:
    generator = np.random.default_rng(0)
    tokens = generator.integers(50, 200, 60).astype(float)
    nats = tokens * generator.normal(2.0, 0.2, 60)
    estimate, low, high = weighted_bootstrap(lambda counts: (counts @ nats) / (counts @ tokens), 60)
    assert estimate == pytest.approx(nats.sum() / tokens.sum())
    assert low < 2.0 < high
    assert high - low == pytest.approx(2 * Z * 0.2 / math.sqrt(60), rel=0.3)


def test_minimum_detectable_effect_is_found_with_the_power_asked() -> None:
    n, changed = 240, 0.2
    effect = minimum_detectable_effect(n, changed)
    assert effect is not None
    shares = [(changed - effect) / 2, (changed + effect) / 2, 1 - changed]
    draws = np.random.default_rng(11).multinomial(n, shares, 20_000)
    losses, gains = draws[:, 0], draws[:, 1]
    found = (gains - losses) / np.sqrt(np.maximum(1, gains + losses)) > Z
    assert 0.77 <= found.mean() <= 0.83
    assert minimum_detectable_effect(4 * n, changed) == pytest.approx(effect / 2, rel=0.05)
    assert minimum_detectable_effect(10, 0.05) is None


@pytest.mark.parametrize(
    ("call", "values"),
    [
        (lambda: wilson(5, 3), "n = 3, got 5"),
        (lambda: wilson(1, 3, 95), "got 95"),
        (lambda: paired_interval([1, 0], [1]), "got 2 and 1"),
        (lambda: paired_interval([], []), "got 0"),
        (lambda: tango(3, 3, 5), "3 losses and 3 gains do not fit into 5"),
        (lambda: mcnemar_exact(-1, 2), "got -1 and 2"),
        (lambda: minimum_detectable_effect(0, 0.5), "got 0, 0.5"),
    ],
)
def test_wrong_figures_are_refused_with_both_values(call, values: str) -> None:
    with pytest.raises(InputError, match=values):
        call()
