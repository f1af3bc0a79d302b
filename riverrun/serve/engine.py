"""What the serving loop asks of an engine: blocks that hold keys and values, forwards over new tokens, logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Engine", "Judged", "Work"]


@dataclass(frozen=True, slots=True)
class Work:
    """New tokens of one sequence: `tokens` from position `start` on, in the blocks of `table`.

    `wanted`: of so many of its last tokens the hidden states are asked for. `key`: `Engine.position_key` of its prompt.
    """

    tokens: Sequence[int]
    start: int
    table: Sequence[int]
    wanted: int = 1
    key: int = 0
    adapter: str = ""


@dataclass(frozen=True, slots=True)
class Judged:
    """Of a token behind given ones: natural-log probability, whether greedy decoding would have chosen it, and the
    likeliest tokens there (token, log-probability)."""

    logprob: float
    greedy: bool
    top: tuple[tuple[int, float], ...] = ()


class Engine(Protocol):
    """All calls come from one thread. A block holds `block_size` tokens; blocks are numbered from 0."""

    @property
    def blocks(self) -> int: ...

    @property
    def block_size(self) -> int: ...

    @property
    def kind(self) -> str:
        """How keys and values are stored: blocks of other kinds are never shared, nor restored from disk."""
        ...

    def position_key(self, prompt_tokens: int) -> int:
        """What a sequence's positions depend on beside themselves: sequences of other keys share no tokens.

        0 but for models whose rotary base follows the prompt's length (dynamic NTK).
        """
        ...

    def forward(self, work: Sequence[Work]) -> Any:
        """Compute the tokens and store their keys and values; hidden states [sum of wanted, E] in the work's order."""
        ...

    def logits(self, hidden: Any, rows: Sequence[int]) -> NDArray[np.float32]:
        """[len(rows), vocabulary] of those rows of what `forward` gave."""
        ...

    def judge(self, hidden: Any, rows: Sequence[int], targets: Sequence[int], top: int) -> list[Judged]:
        """How likely each target is as the token behind its row."""
        ...

    def total(self, hidden: Any, rows: Sequence[int]) -> NDArray[np.float32]:
        """Sum [E] of those rows."""
        ...

    def read(self, blocks: Sequence[int]) -> dict[str, NDArray[Any]]:
        """Everything that these blocks hold, as plain arrays."""
        ...

    def write(self, blocks: Sequence[int], stored: Mapping[str, NDArray[Any]]) -> None:
        """Put back what `read` gave, into these blocks."""
        ...

    def load_adapter(self, name: str, path: Path) -> None:
        """Sequences may now ask for that adapter."""
        ...

    def unload_adapter(self, name: str) -> None: ...

    def close(self) -> None:
        """Nothing is asked of it any more."""
        ...
