"""Rows as training reads them: lengths in memory, tokens when a row is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from riverrun.data.tokens import TokenRow

__all__ = ["ListRows", "Rows"]

Ints = NDArray[np.int64]


class Rows(Protocol):
    """A set of token rows. `lengths` and `labels` count tokens and label tokens of each row; `tags` and `shared` are
    those of `riverrun.data.shards`: what a row is to a preference objective, and the beginning it shares with its
    pair's other row."""

    def __len__(self) -> int: ...

    @property
    def lengths(self) -> Ints: ...

    @property
    def labels(self) -> Ints: ...

    @property
    def paired(self) -> bool:
        """Whether rows 2i and 2i+1 are the chosen and the rejected answer to one prompt."""
        ...

    def row(self, index: int) -> TokenRow: ...

    def shared(self, index: int) -> int:
        """Tokens that row `index` and the other of its pair begin with; 0 for rows that are no pairs."""
        ...

    def tag(self, index: int) -> int:
        """0 plain, 1 good (chosen, desirable), 2 bad (rejected, undesirable)."""
        ...


class ListRows:
    """Rows that are in memory."""

    def __init__(
        self,
        rows: Sequence[TokenRow],
        *,
        paired: bool = False,
        tags: Sequence[int] = (),
        shared: Sequence[int] = (),
    ) -> None:
        assert not paired or len(rows) % 2 == 0, "pairs come in twos"
        assert all(not given or len(given) == len(rows) for given in (tags, shared))
        self.rows, self.paired, self.tags, self._shared = list(rows), paired, tags, shared
        self.lengths: Ints = np.array([len(row.ids) for row in rows], dtype=np.int64)
        self.labels: Ints = np.array([row.label_tokens for row in rows], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, index: int) -> TokenRow:
        return self.rows[index]

    def shared(self, index: int) -> int:
        return self._shared[index] if self._shared else 0

    def tag(self, index: int) -> int:
        return self.tags[index] if self.tags else 0
