"""Which tokens of which sequences are computed in the next step, under one budget of tokens and one pool of blocks.

Every running answer goes first, one token each (or a token and its drafts); what is left of the budget goes to prompts,
the oldest first, in pieces. There is no difference between a prompt and an answer but how many tokens are missing, so
a sequence that was put off for want of blocks simply computes its tokens again, most of them from the cache.

- Blocks: who needs one takes it from the youngest running sequence that is younger, which goes back to the queue.
  The oldest can always go on, so there is no deadlock, and a request that no pool could hold is never admitted.
- Shared beginnings: a prompt whose next block is being computed by another one waits for that block.
- Fairness: among keys the one that was served the fewest tokens comes first (virtual token counter,
  arXiv:2401.00588), within a key who came first. Who was away cannot save up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from riverrun.serve.blocks import BlockPool
from riverrun.serve.request import Sequence

__all__ = ["FairQueue", "Piece", "Scheduler"]


class FairQueue:
    """Waiting sequences by key. `charge` what a key was given; iterating goes from who is next to who is last."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[Sequence]] = {}
        self._served: dict[str, float] = {}
        self._active: dict[str, int] = {}  # sequences waiting or running

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def __iter__(self) -> Iterator[Sequence]:
        """In order, as if each were admitted and charged for its prompt at once."""
        served = dict(self._served)
        left = {key: deque(each) for key, each in self._waiting.items() if each}
        while left:
            key = min(left, key=lambda name: (served[name], left[name][0].number))
            sequence = left[key].popleft()
            served[key] += sequence.uncomputed
            if not left[key]:
                del left[key]
            yield sequence

    def enter(self, sequence: Sequence) -> None:
        """A new request; its key starts level with the least served of those that are here."""
        key = sequence.key
        if not self._active.get(key):
            here = [self._served[name] for name, count in self._active.items() if count]
            self._served[key] = max(self._served.get(key, 0.0), min(here, default=0.0))
        self._active[key] = self._active.get(key, 0) + 1
        self._waiting.setdefault(key, deque()).append(sequence)

    def leave(self, sequence: Sequence) -> None:
        """The request is over."""
        self._active[sequence.key] -= 1
        if not self._active[sequence.key]:
            del self._active[sequence.key]
            if not any(self._active.values()):
                self._served.clear()

    def take(self, sequence: Sequence) -> None:
        """It waits no longer."""
        waiting = self._waiting[sequence.key]
        waiting.remove(sequence)
        if not waiting:
            del self._waiting[sequence.key]

    def put_back(self, sequence: Sequence) -> None:
        """It waits again, before all others of its key."""
        self._waiting.setdefault(sequence.key, deque()).appendleft(sequence)

    def charge(self, key: str, tokens: int) -> None:
        if key in self._active:
            self._served[key] += tokens


@dataclass(frozen=True, slots=True)
class Piece:
    """`count` tokens of a sequence from the one at `start` on; `drafts` of them are guesses that follow its last."""

    sequence: Sequence
    start: int
    count: int
    drafts: tuple[int, ...] = ()

    @property
    def tokens(self) -> list[int]:
        return [*self.sequence.tokens_from(self.start, self.count - len(self.drafts)), *self.drafts]

    @property
    def is_last(self) -> bool:
        """Whether the next token is chosen behind it."""
        return self.start + self.count - len(self.drafts) == self.sequence.length


@dataclass
class Scheduler:
    """`most`: sequences that run at once. `budget`: tokens of a step; see `plan`."""

    pool: BlockPool
    most: int = 64
    budget: int = 1024
    running: list[Sequence] = field(default_factory=list)  # by admission
    queue: FairQueue = field(default_factory=FairQueue)
    preemptions: int = 0

    def submit(self, sequence: Sequence) -> None:
        self.queue.enter(sequence)

    @property
    def is_idle(self) -> bool:
        return not self.running and not len(self.queue)

    @property
    def decoding(self) -> int:
        """Running sequences that are past their prompts."""
        return sum(sequence.is_answering for sequence in self.running)

    def plan(self, prompt_tokens: int | None = None) -> list[Piece]:
        """The next step: all answers, then at most `prompt_tokens` (default: the budget) of prompts.

        Blocks for these tokens belong to their sequences afterwards. Call `computed` for each piece that was computed.
        """
        left = self.budget if prompt_tokens is None else prompt_tokens
        pieces: list[Piece] = []
        for sequence in list(self.running):
            if sequence.is_answering and sequence in self.running:
                drafts, count = sequence.drafts, sequence.uncomputed
                if drafts and not self._reserve(sequence, count + len(drafts), alone=True):
                    drafts = ()
                if self._reserve(sequence, count):
                    pieces.append(Piece(sequence, sequence.computed, count + len(drafts), drafts))
        for sequence in list(self.running):
            if left > 0 and not sequence.is_answering and sequence in self.running:
                count = min(left, sequence.uncomputed)
                if self._reserve(sequence, count):
                    pieces.append(Piece(sequence, sequence.computed, count))
                    left -= count
        pieces = [piece for piece in pieces if piece.sequence in self.running]  # some were put off for others
        return pieces + self._admit(left)

    def _admit(self, left: int) -> list[Piece]:
        pieces = []
        coming = {digest for sequence in self.running for digest in sequence.coming()}
        for sequence in list(self.queue):
            if left <= 0 or len(self.running) >= self.most:
                break
            usable = sequence.digests[: sequence.needed_from // self.pool.size]  # what is looked at is always computed
            known = self.pool.match(usable)
            if len(known) < len(usable) and usable[len(known)] in coming:
                continue
            self.pool.hold(known)
            there = len(known) * self.pool.size
            count = min(left, sequence.length - there)
            new = self.pool.take(self.pool.needed(there + count) - len(known))
            if new is None:
                self.pool.release(known)
                break  # smaller ones that came later must not starve it
            self.queue.take(sequence)
            self.running.append(sequence)
            sequence.begin([*known, *new], there)
            self.pool.counts.queried += sequence.length
            self.pool.counts.found += there
            pieces.append(Piece(sequence, there, count))
            coming |= set(sequence.coming())
            left -= count
        return pieces

    def _reserve(self, sequence: Sequence, count: int, *, alone: bool = False) -> bool:
        """Blocks for `count` more tokens. Unless `alone`, younger sequences are put off for it, or it is itself."""
        missing = self.pool.needed(sequence.computed + count) - len(sequence.blocks)
        while (new := self.pool.take(max(0, missing))) is None:
            if alone:
                return False
            victim = self.running[-1]
            self._put_off(victim)
            if victim is sequence:
                return False
        sequence.blocks += new
        return True

    def _put_off(self, sequence: Sequence) -> None:
        """Give its blocks back; it starts again from what the cache still knows."""
        self.preemptions += 1
        self.running.remove(sequence)
        self.pool.release(sequence.blocks)
        sequence.pause()
        self.queue.put_back(sequence)

    def computed(self, piece: Piece, accepted: int = 0) -> None:
        """The piece stands in the cache; `accepted` of its drafts were right. New full blocks get their names."""
        sequence = piece.sequence
        sequence.computed = piece.start + piece.count - len(piece.drafts) + accepted
        self.queue.charge(sequence.key, piece.count - len(piece.drafts) + accepted)

    def publish(self, sequence: Sequence) -> None:
        """Name the blocks that are full and whose tokens are final; call when its tokens are appended."""
        full = min(sequence.computed, sequence.length) // self.pool.size
        digests = sequence.chain_to(full)
        for place in range(sequence.published, full):
            sequence.blocks[place] = self.pool.publish(sequence.blocks[place], digests[place])
        sequence.published = max(sequence.published, full)

    def finish(self, sequence: Sequence) -> None:
        """It is over, wherever it was; its blocks stay as cache."""
        if sequence in self.running:
            self.running.remove(sequence)
            if sequence.keep is not None:
                sequence.keep(sequence)
            self.pool.release(sequence.blocks)
            sequence.blocks = []
        else:
            self.queue.take(sequence)
        self.queue.leave(sequence)

    def check_integrity(self, *others: list[int]) -> None:
        """Blocks are held by running sequences and by `others` (sessions) alone."""
        self.pool.check_integrity([*(sequence.blocks for sequence in self.running), *others])
