"""Lengths into packs by best fit, in a shuffled order that stays shuffled.

Sorting by length first (best fit decreasing) fills best, but then a pack holds rows of one length, which are rows of
one kind. Here a pack takes rows as they come until one does not fit; the gap is closed from a small pool of other rows,
each time with the longest that fits. The pool is drawn from the far end of the same order, so packs stay a sample of
all rows but for the one or two that close the gap. Rows are handled a run at a time: most cost no step of their own.
"""

from __future__ import annotations

from bisect import bisect_right, insort

import numpy as np
from numpy.typing import NDArray

__all__ = ["WINDOW", "fill"]

Ints = NDArray[np.int64]
WINDOW = 1 << 16
"""Rows that are packed together."""
POOL = 512
GAP, MORE = 0.01, 64
"""Share of a pack that may stay empty before the pool is given more rows to choose from, and how many."""
FEW = 4
"""A pack of fewer rows than this, on average, is filled from the pool alone."""
TAIL = 32
"""So few rows that are left are packed the longest first."""
_BITS = 20


def fill(lengths: Ints, capacity: int) -> tuple[Ints, Ints]:
    """(order, ends): rows order[ends[k-1]:ends[k]] are pack k. Every row once; no pack above `capacity` tokens.

    `lengths` [rows] in the order in which they should be seen, none above `capacity`; WINDOW rows are packed at a time.
    """
    assert not len(lengths) or int(lengths.max()) <= capacity
    order: list[Ints] = []
    ends: list[Ints] = []
    before = 0
    for start in range(0, len(lengths), WINDOW):
        rows, counts = _window(lengths[start : start + WINDOW], capacity)
        order.append(np.array(rows, dtype=np.int64) + start)
        ends.append(np.cumsum(counts, dtype=np.int64) + before)
        before += len(rows)
    if not order:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    return np.concatenate(order), np.concatenate(ends)


def _window(lengths: Ints, capacity: int) -> tuple[list[int], list[int]]:
    """(rows pack after pack, rows of each pack) of at most WINDOW rows."""
    sums = [0, *np.cumsum(lengths).tolist()]
    sizes: list[int] = lengths.tolist()
    first, last = 0, len(sizes)  # rows [first, last) are not yet taken
    pool: list[int] = []  # length and row in one number, sorted
    # where a pack has few rows each has to be chosen: the longest first, and then what fits best
    long = sums[-1] * FEW > capacity * len(sizes)
    target = min(4 * POOL, len(sizes)) if long else min(POOL, len(sizes) // 8)
    rows: list[int] = []
    counts: list[int] = []

    def refill(count: int) -> None:
        nonlocal last
        for row in range(max(first, last - count), last):
            insort(pool, sizes[row] << _BITS | row)
        last = max(first, last - count)

    def take(place: int) -> int:
        item = pool.pop(place)
        rows.append(item & ((1 << _BITS) - 1))
        return item >> _BITS

    refill(target)
    while first < last or (pool and (long or len(pool) <= TAIL)):
        before, room = len(rows), capacity
        # rows that are too long to close a gap gather in the pool
        if pool and (long or first == last or len(pool) > target + MORE):
            room -= take(-1)
        if not long and (end := min(last, bisect_right(sums, sums[first] + room, first) - 1)) > first:
            rows.extend(range(first, end))
            room -= sums[end] - sums[first]
            first = end
        while pool and (at := bisect_right(pool, (room + 1 << _BITS) - 1)):
            room -= take(at - 1)
        counts.append(len(rows) - before)
        missing = target - len(pool)
        if room > GAP * capacity and missing > -8 * target:
            missing = max(missing, min(MORE, target))
        if missing > 0:
            refill(missing)
    if pool:  # the same again with what is left, so that it does not end up sorted
        left = sorted(item & ((1 << _BITS) - 1) for item in pool)
        drawn, more = _window(lengths[left], capacity)
        rows += [left[row] for row in drawn]
        counts += more
    return rows, counts
