"""What a training says while it runs: JSON lines always, TensorBoard's event files where asked for. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from riverrun.base.artifacts import write_text
from riverrun.train.eventfile import EventFile

__all__ = ["TrainLog"]


class TrainLog:
    """`path` has one JSON object a line: {"event": "step" | "eval" | "sample" | ..., "step": finished steps, ...}."""

    def __init__(self, path: Path, *, tensorboard: Path | None = None) -> None:
        """`tensorboard`: folder for its event files."""
        self.path, self._folder = path, tensorboard
        self._events: EventFile | None = None
        self.opening: list[tuple[str, Mapping[str, Any]]] = []
        """(event, values) that are written at the next `begin`, such as what was measured before it."""

    def begin(self, step: int) -> None:
        """Start, or go on behind finished step `step`: lines of later steps are taken out, one says where it began."""
        kept = []
        if step and self.path.is_file():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                try:
                    if int(json.loads(line)["step"]) <= step:
                        kept.append(line + "\n")
                except (ValueError, KeyError, TypeError):
                    continue  # a line that was being written when the process ended
        write_text(self.path, "".join(kept))
        if self._folder is not None:
            self._events = EventFile(self._folder)
        for event, values in (("begin", {}), *self.opening):
            self.write(event, step, values)

    def write(self, event: str, step: int, values: Mapping[str, Any]) -> None:
        line = {"event": event, "step": step, **values}
        with open(self.path, "a", encoding="utf-8") as handle:
            handle.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")
        if self._events is not None:
            group = f"{event}/{values['name']}" if "name" in values else event
            numbers = {key: value for key, value in values.items() if isinstance(value, int | float)}
            if numbers:
                self._events.scalars(step, {f"{group}/{key}": float(value) for key, value in numbers.items()})
