"""Blocks of the KV cache: who holds them, what stands in them, and which go first. Pure bookkeeping.

A block holds the keys and values of `size` tokens in a row. A full one is named by a digest of its tokens and of all
before them, so one look-up finds how much of a new prompt is there already, whoever computed it and whether that one
still runs. Blocks that nobody holds keep their content until they are needed: they are the prefix cache, and the
least recently used of them goes first.

Conservation: held + cached + empty = all. `check_integrity` says so when nothing runs, and in tests.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

__all__ = ["BlockPool", "CacheCounts", "Digest", "chain", "root"]

Digest = bytes


def root(*key: object) -> Digest:
    """Where chains begin that may share blocks: same model, adapter, rotary base and kind of KV."""
    return blake2b(repr(key).encode(), digest_size=16).digest()


def chain(tokens: Sequence[int], size: int, before: Digest) -> list[Digest]:
    """The digest of every full block of `tokens`, which follow what `before` names.

    128 bits of BLAKE2b: equal digests are equal tokens, no comparison needed.
    """
    raw, step = memoryview(array("I", tokens)).cast("B"), 4 * size
    out = []
    for end in range(step, len(raw) + 1, step):
        before = blake2b(raw[end - step : end], key=before, digest_size=16).digest()
        out.append(before)
    return out


@dataclass
class CacheCounts:
    """Since the start: prompt tokens that were looked up, those that were found, blocks that lost their content."""

    queried: int = 0
    found: int = 0
    evicted: int = 0


class BlockPool:
    """`blocks` blocks of `size` tokens, numbered from 0. Not thread-safe: one thread owns it."""

    def __init__(self, blocks: int, size: int) -> None:
        assert min(blocks, size) > 0, f"{blocks} blocks of {size} tokens"
        self.size, self.total = size, blocks
        self.counts = CacheCounts()
        self._holders = [0] * blocks
        self._digests: list[Digest | None] = [None] * blocks
        self._known: dict[Digest, int] = {}
        self._free = OrderedDict.fromkeys(range(blocks))  # first to go first

    @property
    def free(self) -> int:
        """Blocks that can be taken: empty, or cached and held by nobody."""
        return len(self._free)

    @property
    def cached(self) -> int:
        """Free blocks whose content may be found again."""
        return sum(self._digests[block] is not None for block in self._free)

    def needed(self, tokens: int) -> int:
        """Blocks that so many tokens take."""
        return -(-tokens // self.size)

    def match(self, digests: Iterable[Digest]) -> list[int]:
        """The blocks of the longest known beginning of a chain. Hold them before anything is taken."""
        out = []
        for digest in digests:
            block = self._known.get(digest)
            if block is None:
                break
            out.append(block)
        return out

    def hold(self, blocks: Iterable[int]) -> None:
        """One more holder for each."""
        for block in blocks:
            if not self._holders[block]:
                del self._free[block]
            self._holders[block] += 1

    def take(self, count: int) -> list[int] | None:
        """So many empty blocks with one holder; None, and nothing changed, when there are fewer."""
        if count > len(self._free):
            return None
        out = []
        for _ in range(count):
            block, _ = self._free.popitem(last=False)
            self._forget(block, evicted=True)
            self._holders[block] = 1
            out.append(block)
        return out

    def release(self, blocks: Sequence[int]) -> None:
        """One holder less for each; of a chain that nobody holds the last block goes first."""
        for block in reversed(blocks):
            assert self._holders[block] > 0, f"block {block} is held by nobody"
            self._holders[block] -= 1
            if not self._holders[block]:
                self._free[block] = None
                if self._digests[block] is None:
                    self._free.move_to_end(block, last=False)

    def publish(self, block: int, digest: Digest) -> int:
        """Name a block that has become full. The block that bears the name: this one, or another of the same content.

        Another one is held for the caller in place of `block`, which is released.
        """
        assert self._holders[block] > 0, f"block {block} is held by nobody"
        other = self._known.get(digest)
        if other is None:
            assert self._digests[block] is None, f"block {block} has a name"
            self._known[digest], self._digests[block] = block, digest
            return block
        if other != block:
            self.hold([other])
            self.release([block])
        return other

    def forget(self) -> None:
        """Nothing that stands in any block may be found again: the weights have changed."""
        for block in range(self.total):
            self._forget(block)

    def _forget(self, block: int, *, evicted: bool = False) -> None:
        digest = self._digests[block]
        if digest is not None:
            self._digests[block] = None
            del self._known[digest]
            self.counts.evicted += evicted

    def check_integrity(self, held: Iterable[Sequence[int]] = ()) -> None:
        """`held`: the blocks of everyone who holds some. AssertionError when a count or a name is wrong."""
        count = [0] * self.total
        for blocks in held:
            for block in blocks:
                count[block] += 1
        assert count == self._holders, f"holders are {self._holders}, those who hold say {count}"
        free = [block for block, holders in enumerate(self._holders) if not holders]
        assert sorted(self._free) == free, f"free are {sorted(self._free)}, nobody holds {free}"
        named = {digest: block for block, digest in enumerate(self._digests) if digest is not None}
        assert named == self._known, "a name and its block do not agree"
