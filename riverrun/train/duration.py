"""How long, how often: "2 epochs", "500 steps", "1.5M tokens", "600 seconds". No torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer

__all__ = ["UNITS", "Duration", "DurationField", "Every", "parse_duration"]

UNITS = ("steps", "tokens", "epochs", "seconds")
_SCALE = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9}
_FORM = re.compile(
    r"\s*(\d+(?:\.\d+)?(?:e\d+)?)\s*([kmb]?)\s*(step|token|epoch|second|minute|hour)s?\s*", re.IGNORECASE
)
_SECONDS = {"minute": 60.0, "hour": 3600.0}


@dataclass(frozen=True, slots=True)
class Duration:
    """`amount` of a unit of UNITS. Tokens are those of the rows, each with its own beginning."""

    amount: float
    unit: str

    def __str__(self) -> str:
        return f"{self.amount:.12g} {self.unit}"

    def in_steps(self, steps_per_epoch: int) -> Duration:
        """Epochs as optimizer steps; other units as they are."""
        if self.unit != "epochs":
            return self
        return Duration(float(max(1, round(self.amount * steps_per_epoch))), "steps")

    def of(self, *, steps: float, tokens: float, seconds: float) -> float:
        """The one of three counts that is in this unit."""
        return {"steps": steps, "tokens": tokens, "seconds": seconds}[self.unit]


def parse_duration(text: str) -> Duration:
    """ValueError names the text and the form that is read."""
    found = _FORM.fullmatch(text)
    if not found or not (amount := float(found[1]) * _SCALE[found[2].lower()]):
        raise ValueError(
            f"'{text}' is not a duration above 0: write a number and one of {', '.join(UNITS)}, such as '1.5M tokens'"
        )
    unit = found[3].lower()
    return Duration(amount * _SECONDS.get(unit, 1.0), "seconds" if unit in _SECONDS else f"{unit}s")


def _read(value: Any) -> Any:
    return parse_duration(value) if isinstance(value, str) else value


DurationField = Annotated[Duration, BeforeValidator(_read), PlainSerializer(str)]
"""A pydantic field: written and read as text."""


class Every:
    """Says when one more `period` is over. None never is."""

    def __init__(self, period: Duration | None) -> None:
        assert period is None or period.unit != "epochs", "Duration.in_steps comes first"
        self.period, self._last = period, 0

    def start(self, *, steps: float, tokens: float, seconds: float) -> None:
        """Begin to count where a run goes on."""
        if self.period is not None:
            self._last = self._number(steps, tokens, seconds)

    def due(self, *, steps: float, tokens: float, seconds: float) -> bool:
        """True once for each period that ended since the last question."""
        if self.period is None or (number := self._number(steps, tokens, seconds)) == self._last:
            return False
        self._last = number
        return True

    def _number(self, steps: float, tokens: float, seconds: float) -> int:
        assert self.period is not None
        return int(self.period.of(steps=steps, tokens=tokens, seconds=seconds) / self.period.amount + 1e-9)
