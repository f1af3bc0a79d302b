"""Guesses of what comes next, to be verified in one step: the text that followed the last words when they stood before.

Prompt look-up (https://github.com/apoorvumang/prompt-lookup-decoding). A guess costs nothing to make; a wrong one costs
the computing of its tokens. The loop keeps a guess exactly as far as the sampler chooses the same tokens, so answers do
not change: greedy ones are equal, and a seeded one draws its numbers in the same order.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from riverrun.serve.request import Sequence

__all__ = ["Lookup"]

PATIENCE = 3
"""Guesses in a row of which nothing was right, before a pause."""
PAUSE = 16
"""Tokens without a guess after that."""


@dataclass
class _Index:
    """Where each run of tokens ended last."""

    places: dict[tuple[int, ...], int] = field(default_factory=dict)
    read: int = 0
    offered: int = 0
    length: int = 0
    failed: int = 0
    rest: int = 0


@dataclass
class Lookup:
    """`most` tokens of a guess, found by runs of `longest` tokens, or shorter ones down to `shortest`."""

    most: int = 6
    longest: int = 3
    shortest: int = 2
    running: int = 4
    """Only while no more sequences run: beyond that verifying costs more than it saves."""

    def __call__(self, sequence: Sequence, running: int) -> tuple[int, ...]:
        if sequence.lookup is None:
            sequence.lookup = _Index()
        index: _Index = sequence.lookup
        self._learn(sequence, index)
        if running > self.running or self._rests(sequence, index):
            return ()
        tokens = sequence.tokens
        for size in range(self.longest, self.shortest - 1, -1):
            place = index.places.get(tuple(tokens[-size:]))
            if place is not None:
                found = tuple(tokens[place : place + self.most])
                index.offered, index.length = len(found), sequence.length
                return found
        return ()

    def _learn(self, sequence: Sequence, index: _Index) -> None:
        """Note every run that ends before the last token: what follows it is known."""
        tokens, end = sequence.tokens, sequence.length - 1
        for stop in range(max(index.read, self.shortest), end + 1):
            for size in range(self.shortest, self.longest + 1):
                if stop >= size:
                    index.places[tuple(tokens[stop - size : stop])] = stop
        index.read = end + 1

    def _rests(self, sequence: Sequence, index: _Index) -> bool:
        """Whether guesses have been wrong too often of late."""
        if index.offered:
            right = sequence.length - index.length - 1
            index.failed = 0 if right > 0 else index.failed + 1
            index.offered = 0
            if index.failed >= PATIENCE:
                index.failed, index.rest = 0, sequence.length + PAUSE
        return sequence.length < index.rest
