"""Which tokens stand in which slot of an engine, and where a new prompt goes. Pure bookkeeping.

Finished sequences stay where they are until the slot is needed: together with the running ones they are the prefix
cache. Conservation: every slot is either free or owned by exactly one running sequence.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["SlotTable", "common_prefix", "shared_beginning"]


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """Number of leading tokens two sequences share."""
    limit = min(len(first), len(second))
    if list(first[:limit]) == list(second[:limit]):
        return limit
    low, high = 0, limit  # invariant: first[:low] equal, first[:high] not
    while high - low > 1:
        middle = (low + high) // 2
        if list(first[low:middle]) == list(second[low:middle]):
            low = middle
        else:
            high = middle
    return low


def shared_beginning(sequences: Sequence[Sequence[int]]) -> int:
    """Number of leading tokens that all sequences share."""
    length = len(sequences[0])
    for other in sequences[1:]:
        if not length:
            break
        length = common_prefix(sequences[0][:length], other)
    return length


class SlotTable:
    """`tokens[slot]` are the ids whose keys and values the engine holds there, at positions of `keys[slot]`."""

    def __init__(self, slots: int) -> None:
        self.tokens: list[list[int]] = [[] for _ in range(slots)]
        self.keys = [0] * slots
        self._free: list[int] = list(range(slots))  # least recently used first

    @property
    def free(self) -> int:
        return len(self._free)

    def best_prefix(self, prompt: Sequence[int], key: int = 0) -> tuple[int, int]:
        """(slot, tokens) with the longest usable beginning of the prompt; its last token is always computed."""

        def usable(slot: int) -> int:
            return common_prefix(self.tokens[slot], prompt) if self.keys[slot] == key else 0

        best = max(range(len(self.tokens)), key=usable)
        return best, min(usable(best), len(prompt) - 1)

    def take(self, source: int, shared: int) -> int:
        """Own a free slot: the source itself when nothing of it would be lost, else the one unused for longest."""
        assert self._free, "take() needs a free slot"
        if source in self._free and (shared == len(self.tokens[source]) or len(self._free) == 1):
            self._free.remove(source)
            return source
        slot = self._free[0] if self._free[0] != source or len(self._free) == 1 else self._free[1]
        self._free.remove(slot)
        return slot

    def give_back(self, slot: int) -> None:
        """The owner has finished; what it left stays usable as a prefix."""
        assert slot not in self._free, f"slot {slot} is free already"
        self._free.append(slot)

    def check_integrity(self, running: Sequence[int]) -> None:
        """free + owned = all, no slot twice; call it when idle and in tests."""
        assert sorted([*self._free, *running]) == list(range(len(self.tokens))), f"free {self._free}, running {running}"
