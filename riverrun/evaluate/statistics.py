"""Intervals and paired tests for scores. Shares are fractions (0 to 1), never percent.

- one share: Wilson's score interval (Wilson, JASA 22:209, 1927)
- two runs over the same 0/1 items: Tango's score interval for the paired difference (Tango, Statistics in Medicine
  17:891, 1998) and McNemar's exact test
- two runs over the same measured items: BCa bootstrap (Efron, JASA 82:171, 1987), resampled with a fixed seed
- two shares of different items: Newcombe's interval of the difference (Statistics in Medicine 17:873, 1998)
- before running: the smallest paired difference that n items would show (Connor, Biometrics 43:207, 1987)

Not covered: corrections for many comparisons, sequential looks at the data, rank intervals.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from riverrun.base.errors import InputError

__all__ = [
    "Difference",
    "Interval",
    "PairedComparison",
    "Rate",
    "compare_outcomes",
    "mcnemar_exact",
    "minimum_detectable_effect",
    "newcombe",
    "paired_bootstrap",
    "paired_interval",
    "tango",
    "weighted_bootstrap",
    "wilson",
]

Floats = NDArray[np.float64]
_NORMAL = NormalDist()
_RESAMPLES = 10_000
_BLOCK_CELLS = 4_000_000  # resampled counts held at once: 32 MB


class Interval(NamedTuple):
    low: float
    high: float


class Difference(NamedTuple):
    """after - before, with the ends of its confidence interval."""

    difference: float
    low: float
    high: float


def _z(confidence: float) -> float:
    if not 0.0 < confidence < 1.0:
        raise InputError(f"confidence must lie between 0 and 1, got {confidence}")
    return _NORMAL.inv_cdf(0.5 + confidence / 2)


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Score interval of a share of n trials; (0, 1) when n is 0. It never leaves [0, 1] and holds the share itself."""
    if not 0 <= successes <= n:
        raise InputError(f"successes must lie between 0 and n = {n}, got {successes}")
    if n == 0:
        return Interval(0.0, 1.0)
    z = _z(confidence)
    share, spread = successes / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread * spread / 4) / (1 + spread)
    # At the two ends the formula is exact; the comparison keeps rounding from excluding the share.
    return Interval(max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)))


@dataclass(frozen=True, slots=True)
class Rate:
    """k successes of n, with the 95 % Wilson interval."""

    successes: int
    n: int

    @property
    def value(self) -> float:
        return self.successes / self.n if self.n else 0.0

    @property
    def interval(self) -> Interval:
        return wilson(self.successes, self.n)

    @classmethod
    def of(cls, outcomes: Sequence[bool]) -> Rate:
        return cls(sum(map(bool, outcomes)), len(outcomes))

    def as_dict(self) -> dict[str, float]:
        low, high = self.interval
        return {"value": self.value, "low": low, "high": high, "successes": self.successes, "n": self.n}


def newcombe(first: Rate, second: Rate) -> Difference:
    """first - second for shares of different items, with the 95 % interval made of their Wilson ones (method 10)."""
    difference = first.value - second.value
    (low, high), (other_low, other_high) = first.interval, second.interval
    below = math.hypot(first.value - low, other_high - second.value)
    above = math.hypot(high - first.value, second.value - other_low)
    return Difference(difference, max(-1.0, difference - below), min(1.0, difference + above))


def mcnemar_exact(losses: int, gains: int) -> float:
    """Two-sided exact p of "losses and gains are equally likely", given the items whose outcome changed."""
    if losses < 0 or gains < 0:
        raise InputError(f"losses and gains are counts, got {losses} and {gains}")
    changed, fewer = losses + gains, min(losses, gains)
    tail = sum(math.comb(changed, i) for i in range(fewer + 1))
    return min(1.0, 2 * tail / (1 << changed))


def tango(losses: int, gains: int, n: int, confidence: float = 0.95) -> Difference:
    """Score interval of (gains - losses) / n for n paired 0/1 items.

    The ends solve |gains - losses - n d| = z * sqrt(n (2 q + d (1 - d))), q being the maximum-likelihood share of
    losses under the difference d. Unlike Wald's interval it has a width when nothing or everything changed.
    """
    if losses < 0 or gains < 0 or n < 1 or losses + gains > n:
        raise InputError(f"{losses} losses and {gains} gains do not fit into {n} paired items")
    z, estimate = _z(confidence), (gains - losses) / n

    def distance(d: float) -> float:
        gap: float = gains - losses - n * d
        a, c = 2.0 * n, -losses * d * (1 - d)
        b = -gains - losses + (2 * n - gains + losses) * d
        q = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
        variance = n * (2 * q + d * (1 - d))
        if gap == 0:
            return 0.0
        return math.copysign(math.inf, gap) if variance <= 0 else gap / math.sqrt(variance)

    low = _bisect(lambda d: distance(d) - z, -1.0, estimate)
    high = _bisect(lambda d: distance(d) + z, estimate, 1.0)
    return Difference(estimate, min(low, estimate), max(high, estimate))


def _bisect(falling: Callable[[float], float], low: float, high: float) -> float:
    """Where a falling function crosses zero; the end that is nearer to zero when it does not cross."""
    if falling(low) <= 0:
        return low
    if falling(high) >= 0:
        return high
    for _ in range(100):
        middle = (low + high) / 2
        if falling(middle) > 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def weighted_bootstrap(
    statistic: Callable[[Floats], Floats],
    n: int,
    *,
    confidence: float = 0.95,
    resamples: int = _RESAMPLES,
    seed: int = 0,
) -> Difference:
    """BCa interval of a statistic of n items.

    `statistic` takes counts [rows, n] (how often each item was drawn; all ones is the sample itself) and gives one
    figure a row. The same seed gives the same interval. With fewer than 2 items the interval is the estimate itself.
    """
    z = _z(confidence)
    if n < 1:
        raise InputError("an interval needs at least one item, got 0")
    estimate = float(statistic(np.ones((1, n)))[0])
    if n < 2:
        return Difference(estimate, estimate, estimate)
    generator = np.random.default_rng(seed)
    rows = max(1, _BLOCK_CELLS // n)
    share = np.full(n, 1.0 / n)
    sizes = [min(rows, resamples - start) for start in range(0, resamples, rows)]
    drawn = np.concatenate([statistic(generator.multinomial(n, share, size).astype(np.float64)) for size in sizes])
    if float(np.ptp(drawn)) <= 1e-12 * max(1.0, abs(estimate)):
        return Difference(estimate, estimate, estimate)
    left_out = np.concatenate([statistic(1.0 - np.eye(n)[start : start + rows]) for start in range(0, n, rows)])
    pull = left_out.mean() - left_out
    acceleration = float((pull**3).sum() / (6 * max((pull**2).sum(), 1e-300) ** 1.5))
    # Ties count half: figures of few values would otherwise look biased.
    below = float((drawn < estimate).mean() + 0.5 * (drawn == estimate).mean())
    bias = _NORMAL.inv_cdf(min(max(below, 0.5 / resamples), 1 - 0.5 / resamples))
    ends = []
    for sign in (-1, 1):
        shifted = bias + sign * z
        stretched = bias + shifted / max(1e-9, 1 - acceleration * shifted)
        ends.append(float(np.quantile(drawn, _NORMAL.cdf(stretched))))
    return Difference(estimate, min(ends[0], estimate), max(ends[1], estimate))


def paired_bootstrap(
    before: Sequence[float],
    after: Sequence[float],
    confidence: float = 0.95,
    *,
    resamples: int = _RESAMPLES,
    seed: int = 0,
) -> Difference:
    """Mean of after - before over the same items, with its BCa interval."""
    change = _changes(before, after)
    return weighted_bootstrap(
        lambda counts: (counts @ change) / counts.sum(axis=1),
        len(change),
        confidence=confidence,
        resamples=resamples,
        seed=seed,
    )


def _changes(before: Sequence[float], after: Sequence[float]) -> Floats:
    if len(before) != len(after):
        raise InputError(f"a paired comparison needs the same items twice, got {len(before)} and {len(after)}")
    if not before:
        raise InputError("a paired comparison needs at least one item, got 0")
    return np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)


def paired_interval(
    before: Sequence[float], after: Sequence[float], confidence: float = 0.95, *, seed: int = 0
) -> Difference:
    """(difference, low, high) of after - before over the same items in the same order.

    Items that are all 0 or 1 (or False, True) get Tango's score interval; any other figures the BCa bootstrap of
    their mean difference (10,000 resamples, seeded, so that a second call gives the same ends).
    """
    change = _changes(before, after)
    if all(value in (0, 1) for value in before) and all(value in (0, 1) for value in after):
        return tango(int((change < 0).sum()), int((change > 0).sum()), len(change), confidence)
    return paired_bootstrap(before, after, confidence, seed=seed)


@dataclass(frozen=True, slots=True)
class PairedComparison:
    """Two runs over the same 0/1 items: shares, their difference with Tango's interval, McNemar's exact p."""

    n: int
    before: float
    after: float
    gains: int
    losses: int
    difference: float
    low: float
    high: float
    p: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def compare_outcomes(before: Sequence[bool], after: Sequence[bool], confidence: float = 0.95) -> PairedComparison:
    """Compare two runs over the same items in the same order."""
    change = _changes([float(value) for value in before], [float(value) for value in after])
    n, gains, losses = len(change), int((change > 0).sum()), int((change < 0).sum())
    difference, low, high = tango(losses, gains, n, confidence)
    shares = sum(map(bool, before)) / n, sum(map(bool, after)) / n
    return PairedComparison(n, *shares, gains, losses, difference, low, high, mcnemar_exact(losses, gains))


def minimum_detectable_effect(n: int, changed: float, *, confidence: float = 0.95, power: float = 0.8) -> float | None:
    """Smallest difference of two paired shares that n items show with this power.

    `changed` is the share of items on which the two runs disagree. Solves d sqrt(n) = z_a sqrt(p) + z_b sqrt(p - d^2)
    with p = changed. None when even d = changed (all disagreements on one side) would be missed too often.
    """
    if n < 1 or not 0.0 < changed <= 1.0 or not 0.0 < power < 1.0:
        raise InputError(f"need n >= 1, 0 < changed <= 1, 0 < power < 1; got {n}, {changed}, {power}")
    z_alpha, z_power = _z(confidence), _NORMAL.inv_cdf(power)

    def shortfall(d: float) -> float:
        spread = max(0.0, changed - d * d)
        return z_alpha * math.sqrt(changed) + z_power * math.sqrt(spread) - d * math.sqrt(n)

    return None if shortfall(changed) > 0 else _bisect(shortfall, 0.0, changed)
