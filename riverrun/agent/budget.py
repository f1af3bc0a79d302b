"""How much an agent may do for one request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from riverrun.base.errors import InputError

__all__ = ["Budget", "Limit"]

Limit = Literal["", "steps", "seconds", "tool_calls"]


@dataclass(frozen=True, slots=True)
class Budget:
    """steps: model turns in which tools are offered; when they are used up, one more turn without tools must answer.
    seconds: wall time after which nothing new but that last turn is begun (a running call is not interrupted).
    tool_calls: calls carried out in all."""

    steps: int = 4
    seconds: float = 60.0
    tool_calls: int = 16

    def __post_init__(self) -> None:
        if self.steps < 1 or self.seconds <= 0 or self.tool_calls < 0:
            raise InputError(
                f"a budget needs steps >= 1, seconds > 0 and tool_calls >= 0, "
                f"got {self.steps}, {self.seconds} and {self.tool_calls}"
            )

    def spent(self, *, steps: int, seconds: float, tool_calls: int) -> Limit:
        """The limit that is reached, "" for none; "steps" only when no other is."""
        if seconds >= self.seconds:
            return "seconds"
        if tool_calls >= self.tool_calls:
            return "tool_calls"
        return "steps" if steps >= self.steps else ""
