"""How many prompt tokens a step may compute so that running answers do not stall."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Pace"]

WEIGHT = 0.2
"""Of the newest measurement in the running means."""


@dataclass
class Pace:
    """`target`: seconds that a step with running answers should take. `most` prompt tokens when nothing else runs.

    A step's time is taken to be that of its answers alone plus so much for each prompt token; both are learned.
    """

    target: float = 0.1
    most: int = 1024
    least: int = 32
    _answers: float = 0.0
    _token: float = 0.0

    def prompt_tokens(self, answering: int) -> int:
        """For the next step beside so many running answers."""
        if not answering:
            return self.most
        if not self._token:
            return min(self.most, 4 * self.least)  # nothing is known yet
        fits = int((self.target - self._answers) / self._token)
        return max(self.least, min(self.most, fits // self.least * self.least))

    def learn(self, answering: int, prompt_tokens: int, seconds: float) -> None:
        """A step of so many answers and prompt tokens took so long."""
        if not prompt_tokens:
            self._answers += (seconds - self._answers) * (WEIGHT if self._answers else 1.0)
            return
        if prompt_tokens < self.least:
            return
        own = self._answers if answering else 0.0
        token = max(seconds - own, seconds * 0.1) / prompt_tokens
        self._token += (token - self._token) * (WEIGHT if self._token else 1.0)
