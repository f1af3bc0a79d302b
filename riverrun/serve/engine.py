"""What the serving loop asks of an engine: slots that hold sequences, forwards over new tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Branch", "Engine"]


class Engine(Protocol):
    """All calls come from one thread. Slots are numbered from 0 to `slots` - 1."""

    @property
    def slots(self) -> int: ...

    @property
    def context(self) -> int:
        """Most tokens one slot can hold."""
        ...

    def held(self, slot: int) -> int:
        """Tokens a slot holds."""
        ...

    def copy_prefix(self, source: int, target: int, tokens: int) -> None:
        """`target` now holds the first `tokens` tokens of `source`."""
        ...

    def forward(self, slots: Sequence[int], new: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Add `new[b]` to `slots[b]`; logits [B, vocabulary] after each sequence's last token."""
        ...

    def branch(self, slot: int, last: int, branches: Sequence[Sequence[int]]) -> list[Branch]:
        """Each branch after the slot's tokens and the token `last`; the slot does not change."""
        ...


@dataclass(frozen=True, slots=True)
class Branch:
    """Natural-log probability of each token of a branch, and whether greedy decoding would have chosen it."""

    logprobs: NDArray[np.float32]
    greedy: NDArray[np.bool_]
