"""Which packs an optimizer step sees: a pure function of (rows, sizes, seed, step), so seeking costs nothing."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np

from riverrun.data.order import Mixture
from riverrun.data.packing import Group, Pack, PackStats, plan_epoch
from riverrun.data.preferences import cut_groups
from riverrun.data.rows import ListRows
from riverrun.data.tokens import TokenRow

__all__ = ["GroupSampler", "MixedPackSampler", "PackSampler", "Prefetch"]


class PackSampler:
    """Steps of `packs_per_step` packs; every epoch has its own order, and its last step may be short."""

    def __init__(
        self, rows: Sequence[TokenRow], *, micro_tokens: int, packs_per_step: int, seed: int, share: bool = True
    ) -> None:
        assert rows, "a sampler needs rows"
        self.rows, self.micro_tokens, self.packs_per_step, self.seed, self.share = (
            list(rows),
            micro_tokens,
            packs_per_step,
            seed,
            share,
        )
        self._epoch: tuple[int, list[Pack]] = (-1, [])
        self._steps: dict[int, int] = {}  # of every epoch asked for: seeking plans no epoch twice
        self._lock = threading.RLock()  # several threads may ask

    def epoch_packs(self, epoch: int) -> list[Pack]:
        with self._lock:
            if self._epoch[0] != epoch:
                self._epoch = (epoch, self._plan(epoch))
            return self._epoch[1]

    def _plan(self, epoch: int) -> list[Pack]:
        return plan_epoch(self.rows, micro_tokens=self.micro_tokens, seed=self.seed, epoch=epoch, share=self.share)

    def steps_in_epoch(self, epoch: int) -> int:
        if epoch not in self._steps:
            self._steps[epoch] = -(-len(self.epoch_packs(epoch)) // self.packs_per_step)
        return self._steps[epoch]

    def total_steps(self, epochs: int) -> int:
        return sum(self.steps_in_epoch(epoch) for epoch in range(epochs))

    def stats(self, epochs: int) -> PackStats:
        """Packing of all epochs together."""
        return PackStats.of([pack for epoch in range(epochs) for pack in self.epoch_packs(epoch)])

    def batch(self, step: int) -> list[Pack]:
        """The packs of global step `step`."""
        epoch = 0
        while step >= (count := self.steps_in_epoch(epoch)):
            step -= count
            epoch += 1
        packs = self.epoch_packs(epoch)
        return packs[step * self.packs_per_step : (step + 1) * self.packs_per_step]


class MixedPackSampler(PackSampler):
    """Rows of several sources, each seen as often as its weight says, with the beginnings that they share computed
    once. All rows are held in memory."""

    def __init__(self, mixture: Mixture, *, micro_tokens: int, packs_per_step: int, seed: int) -> None:
        rows = [_as_tuples(mixture.row(index)) for index in range(len(mixture))]
        super().__init__(rows, micro_tokens=micro_tokens, packs_per_step=packs_per_step, seed=seed)
        self.mixture = mixture

    def _plan(self, epoch: int) -> list[Pack]:
        rows = [self.rows[index] for index in np.sort(self.mixture.order(epoch)).tolist()]
        return plan_epoch(rows, micro_tokens=self.micro_tokens, seed=self.seed, epoch=epoch, share=self.share)


def _as_tuples(row: TokenRow) -> TokenRow:
    """A row that may lie in a shard, as one that can be sorted and compared."""
    if isinstance(row.ids, tuple):
        return row
    return TokenRow(row.id, tuple(np.asarray(row.ids).tolist()), tuple(np.asarray(row.learned).tolist()))


class GroupSampler(PackSampler):
    """Steps of packs of whole groups (judged answers) of several sources, each seen as often as its weight says."""

    def __init__(
        self,
        sets: Sequence[Sequence[Group]],
        weights: Sequence[float] = (),
        *,
        micro_tokens: int,
        packs_per_step: int,
        seed: int,
    ) -> None:
        self.groups = [group for groups in sets for group in groups]
        rows = [row for group in self.groups for row in group.rows]
        super().__init__(rows, micro_tokens=micro_tokens, packs_per_step=packs_per_step, seed=seed)
        firsts = [ListRows([group.rows[0] for group in groups]) for groups in sets]
        self.mixture = Mixture(firsts, weights, seed=seed)

    def _plan(self, epoch: int) -> list[Pack]:
        return cut_groups([self.groups[index] for index in self.mixture.order(epoch).tolist()], self.micro_tokens)

    def every_pack(self) -> Iterator[Pack]:
        """Packs in which every group stands once, whatever its source's weight: those of epoch 0 where that is so."""
        whole = set(self.mixture.weights) == {1.0}
        yield from self.epoch_packs(0) if whole else cut_groups(self.groups, self.micro_tokens)


class _Batches(Protocol):
    def batch(self, step: int) -> list[Pack]: ...


class Prefetch:
    """The same batches, each prepared in a thread while the steps before are computed.

    What a step sees does not depend on the number of threads: a batch is a function of its step.
    """

    def __init__(self, batches: _Batches, workers: int, *, ahead: int = 2) -> None:
        self._batches, self._ahead = batches, max(ahead, workers)
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="packs") if workers else None
        self._coming: OrderedDict[int, Future[list[Pack]]] = OrderedDict()

    def batch(self, step: int) -> list[Pack]:
        if self._pool is None:
            return self._batches.batch(step)
        for other in [each for each in self._coming if not step <= each <= step + self._ahead]:
            self._coming.pop(other).cancel()
        for each in range(step, step + self._ahead + 1):
            if each not in self._coming:
                self._coming[each] = self._pool.submit(self._batches.batch, each)
        return self._coming.pop(step).result()

    def close(self) -> None:
        """Stop the threads."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
