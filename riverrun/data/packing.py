"""Rows into packs of at most `micro_tokens`, every row isolated; rows that begin alike share that beginning.

A chat application's rows all begin with the same system turn. When a group of rows agrees on at least
`MIN_SHARED` first tokens that nobody learns, a pack holds them once, and each row continues from there
(`models.attention.PackedCausal`): the result is that of computing every row alone, for a fraction of the tokens.

The plan is a pure function of (rows, micro_tokens, seed, epoch): order and content do not depend on workers or resume.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from riverrun.base.errors import CapacityError
from riverrun.data.tokens import TokenRow

__all__ = ["Group", "Pack", "PackStats", "plan_epoch", "shared_prefix"]

Ints = NDArray[np.int64]
MIN_SHARED = 16
# A branch of so many rows is worth packs of its own.
MIN_BRANCH = 16


@dataclass(frozen=True, slots=True)
class Group:
    """Rows of one beginning: its `prefix` tokens, those of the first row, stand once, then each row's rest."""

    rows: tuple[TokenRow, ...]
    prefix: int = 0

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row behind the prefix."""
        return [len(row.ids) - self.prefix for row in self.rows]

    @property
    def computed_tokens(self) -> int:
        return self.prefix + sum(self.lengths)


@dataclass(frozen=True, slots=True)
class Pack:
    """A micro-batch: the tokens of its groups one after another; no row sees another's own tokens."""

    groups: tuple[Group, ...]

    @classmethod
    def of(cls, rows: Sequence[TokenRow], prefix: int = 0) -> Pack:
        """A pack of one group."""
        return cls((Group(tuple(rows), prefix),))

    @property
    def rows(self) -> tuple[TokenRow, ...]:
        return tuple(row for group in self.groups for row in group.rows)

    @property
    def layout(self) -> list[tuple[int, list[int]]]:
        """(prefix, lengths behind it) of every group, as `CausalLM.packed_groups` takes them."""
        return [(group.prefix, group.lengths) for group in self.groups]

    @property
    def computed_tokens(self) -> int:
        return sum(group.computed_tokens for group in self.groups)

    @property
    def row_tokens(self) -> int:
        """Tokens as the rows have them, each with its own prefix."""
        return sum(len(row.ids) for row in self.rows)

    @property
    def label_tokens(self) -> int:
        return sum(row.label_tokens for row in self.rows)

    @property
    def plain_text(self) -> bool:
        """Every token but the first of each row is learned: texts, not conversations."""
        return all(row.label_tokens >= len(row.ids) - 1 for row in self.rows)

    def ids(self) -> Ints:
        """Token ids [computed_tokens]."""
        parts: list[Sequence[int]] = []
        for group in self.groups:
            parts += [group.rows[0].ids[: group.prefix], *(row.ids[group.prefix :] for row in group.rows)]
        return np.concatenate([np.asarray(part, dtype=np.int64) for part in parts])

    def targets(self) -> tuple[Ints, Ints]:
        """(place in the pack whose output predicts, token to predict) of every label, row after row."""
        places, tokens, start = [], [], 0
        for group in self.groups:
            start += group.prefix
            for row in group.rows:
                # the first own token is never learned: nothing before it is the row's own (see shared_prefix)
                at = np.flatnonzero(np.asarray(row.learned[group.prefix + 1 :], dtype=np.bool_))
                places.append(at + start)
                tokens.append(np.asarray(row.ids[group.prefix + 1 :], dtype=np.int64)[at])
                start += len(row.ids) - group.prefix
        return np.concatenate(places).astype(np.int64), np.concatenate(tokens)


@dataclass(frozen=True, slots=True)
class PackStats:
    """What packing did to an epoch."""

    rows: int
    packs: int
    row_tokens: int
    computed_tokens: int
    label_tokens: int

    @classmethod
    def of(cls, packs: Sequence[Pack]) -> PackStats:
        return cls(
            sum(len(p.rows) for p in packs),
            len(packs),
            sum(p.row_tokens for p in packs),
            sum(p.computed_tokens for p in packs),
            sum(p.label_tokens for p in packs),
        )


def shared_prefix(rows: Sequence[TokenRow]) -> int:
    """Length of the longest beginning that all rows have, none learns, and none ends within; 0 if below MIN_SHARED."""
    if len(rows) < 2:
        return 0
    begins = [tuple(row.ids) for row in rows]
    first, last = min(begins), max(begins)
    count = 0
    while count < min(len(first), len(last)) and first[count] == last[count]:
        count += 1
    for row in rows:
        learned = next((i for i, flag in enumerate(row.learned) if flag), len(row.ids))
        count = min(count, learned - 1, len(row.ids) - 1)
    return count if count >= MIN_SHARED else 0


def _groups(rows: Sequence[TokenRow]) -> Iterator[tuple[list[TokenRow], int]]:
    """(rows, tokens of the beginning they share): a trie is cut where a branch shares much more than its parent."""
    by_start: dict[tuple[int, ...], list[TokenRow]] = {}
    for row in rows:
        by_start.setdefault(tuple(row.ids[:MIN_SHARED]), []).append(row)
    for group in by_start.values():
        yield from _split(group)


def _split(group: list[TokenRow]) -> Iterator[tuple[list[TokenRow], int]]:
    prefix = shared_prefix(group)
    branches: dict[int, list[TokenRow]] = {}
    for row in group:
        branches.setdefault(row.ids[prefix], []).append(row)
    rest: list[TokenRow] = []
    for branch in branches.values():
        if prefix and len(branch) >= MIN_BRANCH and shared_prefix(branch) >= prefix + MIN_SHARED:
            yield from _split(branch)
        else:
            rest += branch
    if rest:
        yield rest, prefix if len(rest) > 1 else 0


def plan_epoch(rows: Sequence[TokenRow], *, micro_tokens: int, seed: int, epoch: int, share: bool = True) -> list[Pack]:
    """All packs of one epoch: every row exactly once, no pack above `micro_tokens` computed tokens."""
    packs: list[Pack] = []
    for group, prefix in _groups(rows) if share else [(list(rows), 0)]:
        order = list(group)
        random.Random(f"{seed}/{epoch}/{len(packs)}").shuffle(order)
        # in this order, not by length: rows of one length are rows of one kind, and a step would learn that kind alone
        packs += _cut(order, prefix, micro_tokens)
    random.Random(f"{seed}/{epoch}/packs").shuffle(packs)
    return packs


def _cut(rows: Sequence[TokenRow], prefix: int, micro_tokens: int) -> Iterator[Pack]:
    taken: list[TokenRow] = []
    used = prefix
    for row in rows:
        own = len(row.ids) - prefix
        if prefix + own > micro_tokens:
            raise CapacityError(
                f"row '{row.id}' has {len(row.ids)} tokens, a pack holds {micro_tokens}: "
                "raise micro_tokens or drop the row"
            )
        if taken and used + own > micro_tokens:
            yield _pack(taken, prefix)
            taken, used = [], prefix
        taken.append(row)
        used += own
    if taken:
        yield _pack(taken, prefix)


def _pack(rows: Sequence[TokenRow], prefix: int) -> Pack:
    """By length: rows of like length are padded together in the attention."""
    return Pack.of(sorted(rows, key=lambda row: len(row.ids)), prefix)
