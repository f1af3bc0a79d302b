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

    def position_key(self, prompt_tokens: int) -> int:
        """What a sequence's positions depend on beside themselves: sequences of other keys share no tokens.

        0 but for models whose rotary base follows the prompt's length (dynamic NTK).
        """
        ...

    def copy_prefix(self, source: int, target: int, tokens: int, key: int = 0) -> None:
        """`target` now holds the first `tokens` tokens of `source`, and those to come have that position key."""
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
