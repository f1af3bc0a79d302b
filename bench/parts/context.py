"""What the parts of a bench read from a finished run: its spec, its model, its rows. Loads no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from riverrun.base.errors import InputError
from riverrun.chain.candidates import base_model
from riverrun.chain.planning import trainer_settings
from riverrun.chain.spec import AppSpec
from riverrun.chain.stage import Context

__all__ = ["RunFolder"]


@dataclass(frozen=True)
class RunFolder:
    """A run folder as `riverrun run` leaves it. InputError names the file that is missing."""

    path: Path

    def json(self, name: str) -> dict[str, Any]:
        file = self.path / name
        if not file.is_file():
            raise InputError(f"{file} does not exist: give a finished run with --run, or none to make one")
        value: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return value

    @property
    def context(self) -> Context:
        stored = self.json("run.json")
        return Context(AppSpec.model_validate(stored["spec"]), Path(stored["recipe"]), self.path)

    @property
    def model(self) -> Path:
        """The base model's file, fetched when it is not here."""
        self.json("select/model.json")
        return base_model(self.context)

    @property
    def rows(self) -> Path:
        file = self.path / "data" / "train.jsonl"
        if not file.is_file():
            raise InputError(f"{file} does not exist: give a run with --run whose data stage is done")
        return file

    @property
    def settings(self) -> dict[str, Any]:
        """The trainer's settings of this run, with the plan's micro-batch."""
        return trainer_settings(self.context.spec, self.json("plan/plan.json")["micro_tokens"]).model_dump(mode="json")
