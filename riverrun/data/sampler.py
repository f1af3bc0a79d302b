"""Which packs an optimizer step sees: a pure function of lengths, sizes, seed and step. Rows are read when asked for.

In memory are the lengths and, for the epochs in use, which rows form which pack; tokens stay where they are. Nothing
depends on how many processes read, and a step can be asked for without those before it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from riverrun.base.errors import CapacityError
from riverrun.data.fill import WINDOW, fill
from riverrun.data.order import Mixture, Permutation
from riverrun.data.packing import MIN_SHARED, Group, Pack, PackStats
from riverrun.data.rows import Rows

__all__ = ["RowSampler"]

Ints = NDArray[np.int64]


class RowSampler:
    """Steps of `packs_per_step` packs of at most `micro_tokens` tokens; the last step of an epoch may be short.

    The two rows of a pair stand in one pack, and what they begin with is computed once unless `share` is false.
    """

    def __init__(
        self, rows: Rows | Mixture, *, micro_tokens: int, packs_per_step: int, seed: int, share: bool = True
    ) -> None:
        assert len(rows), "a sampler needs rows"
        self.rows = rows if isinstance(rows, Mixture) else Mixture([rows], seed=seed)
        self.micro_tokens, self.packs_per_step, self.seed, self.share = micro_tokens, packs_per_step, seed, share
        self._costs = self._unit_costs()
        if len(self._costs) and (worst := int(self._costs.max())) > micro_tokens:
            row = int(self._costs.argmax()) * self.rows.unit
            raise CapacityError(
                f"row '{self.rows.row(row).id}' needs {worst} tokens, a pack holds {micro_tokens}: "
                "raise micro_tokens, or lower max_tokens where rows are read"
            )
        self._plans: dict[int, tuple[Ints, Ints]] = {}
        self._steps: dict[int, int] = {}
        self._lock = threading.Lock()  # several threads may ask

    def _unit_costs(self) -> Ints:
        """Tokens to compute for each row, or each pair."""
        if not self.rows.paired:
            return self.rows.lengths
        both: Ints = self.rows.lengths.reshape(-1, 2).sum(axis=1)
        shared = np.array([self._shared(index) for index in range(0, len(self.rows), 2)], dtype=np.int64)
        return both - shared

    def _shared(self, first: int) -> int:
        count = self.rows.shared(first)
        return count if self.share and count >= MIN_SHARED else 0

    def plan(self, epoch: int) -> tuple[Ints, Ints]:
        """(rows, ends): pack k of the epoch has the units whose first rows are rows[ends[k-1]:ends[k]]."""
        with self._lock:
            return self._planned(epoch)

    def _planned(self, epoch: int) -> tuple[Ints, Ints]:
        if epoch not in self._plans:
            order = self.rows.order(epoch)
            costs = self._costs[order // self.rows.unit]
            parts: list[Ints] = []
            sizes: list[Ints] = []
            for window, start in enumerate(range(0, len(order), WINDOW)):
                drawn, ends = fill(costs[start : start + WINDOW], self.micro_tokens)
                packs = Permutation(len(ends), self.seed, "packs", epoch, window).at(np.arange(len(ends)))
                begins = np.concatenate([[0], ends[:-1]])
                counts = (ends - begins)[packs]
                # rows of the packs, in the packs' new order
                jump = np.repeat(begins[packs] - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts)
                parts.append(order[start : start + WINDOW][drawn[np.arange(len(drawn)) + jump]])
                sizes.append(counts)
            while len(self._plans) >= 2:
                self._plans.pop(next(iter(self._plans)))
            counts = np.concatenate(sizes) if sizes else np.zeros(0, dtype=np.int64)
            rows = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
            self._plans[epoch] = (rows, np.cumsum(counts))
        return self._plans[epoch]

    def packs_in_epoch(self, epoch: int) -> int:
        return len(self.plan(epoch)[1])

    def steps_in_epoch(self, epoch: int) -> int:
        if epoch not in self._steps:
            self._steps[epoch] = -(-self.packs_in_epoch(epoch) // self.packs_per_step)
        return self._steps[epoch]

    def total_steps(self, epochs: int) -> int:
        return sum(self.steps_in_epoch(epoch) for epoch in range(epochs))

    def pack(self, epoch: int, number: int) -> Pack:
        """Pack `number` of an epoch, its rows read."""
        rows, ends = self.plan(epoch)
        first = int(ends[number - 1]) if number else 0
        units = rows[first : int(ends[number])].tolist()
        if self.rows.paired:
            pairs = [(self.rows.row(index), self.rows.row(index + 1)) for index in units]
            return Pack(tuple(Group(pair, self._shared(index)) for pair, index in zip(pairs, units, strict=True)))
        # by length: rows of like length are padded together in the attention
        return Pack.of(sorted((self.rows.row(index) for index in units), key=lambda row: len(row.ids)))

    def every_pack(self) -> Iterator[Pack]:
        """Packs in which every row of the sets stands once, whatever its weight: those of epoch 0 where that is so."""
        whole = self
        if set(self.rows.weights) != {1.0}:
            plain = Mixture(self.rows.sets, seed=self.seed)
            sizes = {"micro_tokens": self.micro_tokens, "packs_per_step": self.packs_per_step}
            whole = RowSampler(plain, **sizes, seed=self.seed, share=self.share)
        for number in range(whole.packs_in_epoch(0)):
            yield whole.pack(0, number)

    def batch(self, step: int) -> list[Pack]:
        """The packs of global step `step`, counted over all epochs."""
        epoch = 0
        while step >= (count := self.steps_in_epoch(epoch)):
            step -= count
            epoch += 1
        first = step * self.packs_per_step
        return [self.pack(epoch, k) for k in range(first, min(first + self.packs_per_step, self.packs_in_epoch(epoch)))]

    def stats(self, epochs: int) -> PackStats:
        """Packing of all epochs together, from lengths alone."""
        done = [self._stats(epoch) for epoch in range(epochs)]
        return PackStats(*(sum(values) for values in zip(*done, strict=True)))

    def _stats(self, epoch: int) -> Iterator[int]:
        rows, ends = self.plan(epoch)
        unit = self.rows.unit
        every = (rows[:, None] + np.arange(unit)).ravel()
        yield from (len(every), len(ends), int(self.rows.lengths[every].sum()))
        yield from (int(self._costs[rows // unit].sum()), int(self.rows.labels[every].sum()))
