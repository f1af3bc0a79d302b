"""Permutations without memory, and sources mixed by weight: which row stands at a place is computed, not looked up.

A keyed Feistel network (Luby and Rackoff 1988) on numbers of an even count of bits is a bijection; walking on while the
result is not below `size` (cycle walking, Black and Rogaway 2002) makes it one of [0, size).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from riverrun.data.rows import Rows
from riverrun.data.tokens import TokenRow

__all__ = ["Mixture", "Permutation", "shares"]

Ints = NDArray[np.int64]
ROUNDS = 6


class Permutation:
    """A bijection of [0, size), a function of `key` alone: any place in O(1), whole arrays at once."""

    def __init__(self, size: int, *key: object) -> None:
        assert 0 <= size < 1 << 62
        self.size = size
        self._half = max(1, -(-max(1, (size - 1).bit_length()) // 2))
        self._mask = np.uint64((1 << self._half) - 1)
        seed = hashlib.sha256("/".join(map(str, key)).encode()).digest()
        more = hashlib.sha256(seed).digest()
        self._keys = np.frombuffer(seed + more, dtype="<u8")[:ROUNDS]

    def at(self, places: Ints) -> Ints:
        """What stands at each of the places."""
        assert not len(places) or (int(places.min()) >= 0 and int(places.max()) < self.size)
        out = self._network(places.astype(np.uint64))
        size = np.uint64(self.size)
        while len(far := np.flatnonzero(out >= size)):
            out[far] = self._network(out[far])
        return out.astype(np.int64)

    def __getitem__(self, place: int) -> int:
        return int(self.at(np.array([place], dtype=np.int64))[0])

    def _network(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        half = np.uint64(self._half)
        left, right = values >> half, values & self._mask
        for key in self._keys:
            left, right = right, left ^ (_mix(right ^ key) & self._mask)
        return (left << half) | right


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    out: NDArray[np.uint64] = values ^ (values >> np.uint64(31))
    return out


def shares(wanted: Sequence[Fraction]) -> list[int]:
    """Whole numbers next to the wanted ones, with the same sum (rounded): the largest remainders are rounded up."""
    floors = [int(each) for each in wanted]
    left = round(sum(wanted)) - sum(floors)
    by_rest = sorted(range(len(wanted)), key=lambda i: (floors[i] - wanted[i], i))
    for i in by_rest[:left]:
        floors[i] += 1
    return floors


class Mixture:
    """Several sets of rows as one, each row of set i seen `weights[i]` times an epoch; `rows.Rows` over all of them.

    Counts of an epoch are exact (largest remainder). A set of which only a part is seen gives another part next time:
    the passes over it follow one another, and all of its rows are seen before one is seen again.
    """

    def __init__(self, sets: Sequence[Rows], weights: Sequence[float] = (), *, seed: int = 0) -> None:
        assert sets, "a mixture needs rows"
        assert not weights or len(weights) == len(sets), "a weight for each set"
        assert all(each.paired == sets[0].paired for each in sets), "pairs are not mixed with other rows"
        self.sets, self.seed, self.paired = list(sets), seed, sets[0].paired
        self.weights = [float(weight) for weight in weights] or [1.0] * len(sets)
        self.unit = 2 if self.paired else 1
        self._units = [len(each) // self.unit for each in sets]
        wanted = [Fraction(w).limit_denominator(10**6) * n for w, n in zip(self.weights, self._units, strict=True)]
        self.seen = shares(wanted)
        """Units (rows, or pairs) of each set that an epoch has."""
        self._starts = np.cumsum([0, *(len(each) for each in sets)])
        self.lengths: Ints = np.concatenate([each.lengths for each in sets])
        self.labels: Ints = np.concatenate([each.labels for each in sets])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _place(self, index: int) -> tuple[Rows, int]:
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self.sets[number], index - int(self._starts[number])

    def row(self, index: int) -> TokenRow:
        rows, at = self._place(index)
        return rows.row(at)

    def shared(self, index: int) -> int:
        rows, at = self._place(index)
        return rows.shared(at)

    def tag(self, index: int) -> int:
        rows, at = self._place(index)
        return rows.tag(at)

    @property
    def epoch_units(self) -> int:
        """Rows, or pairs, of one epoch."""
        return sum(self.seen)

    def order(self, epoch: int, start: int = 0, stop: int | None = None) -> Ints:
        """The (first) rows of units `start` to `stop` of an epoch, in the order in which they are seen."""
        total = self.epoch_units
        places = np.arange(start, total if stop is None else min(stop, total), dtype=np.int64)
        drawn = Permutation(total, self.seed, "epoch", epoch).at(places)
        out = np.empty_like(drawn)
        before = 0
        for number, (count, size) in enumerate(zip(self.seen, self._units, strict=True)):
            mine = np.flatnonzero((drawn >= before) & (drawn < before + count))
            stream = drawn[mine] - before + epoch * count
            passes, inside = np.divmod(stream, size) if size else (stream, stream)
            for each in np.unique(passes).tolist():
                at = mine[passes == each]
                chosen = Permutation(size, self.seed, "set", number, each).at(inside[passes == each])
                out[at] = self._starts[number] + chosen * self.unit
            before += count
        return out
