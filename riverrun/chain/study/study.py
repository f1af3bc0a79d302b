"""What a study is: settings from a recipe, cells in an order, a page at the end. Kinds are found by the key `study`.

A cell is one training or measurement. It may read the folders of cells before it, never of cells after it.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol

from pydantic import Field

from riverrun.base.artifacts import digest_json
from riverrun.base.config import Config, apply_overrides, build_config, load_yaml
from riverrun.base.errors import ConfigError, nearest
from riverrun.base.progress import Progress
from riverrun.models.load import Checkpoint, load_checkpoint

__all__ = ["KINDS", "Base", "Cell", "Outcome", "Study", "StudyConfig", "cell_key", "load_study", "model_path"]

KINDS = {
    "tuning": "riverrun.chain.study.tuning:TuningStudy",
    "continued_pretraining": "riverrun.chain.study.pretraining:PretrainingStudy",
}


class StudyConfig(Config):
    """What every study has."""

    study: str = Field(description="kind of the study")
    model: str = Field(default="smollm2-135m-instruct", description="name of the catalogue, model folder or file")
    seed: int = Field(default=0, description="of everything drawn that is the same in all cells")


@dataclass(frozen=True, slots=True)
class Cell:
    """One point of a study: its folder's name, what makes it this point, and how long it may take."""

    name: str
    settings: Mapping[str, Any]
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a finished cell stored: `result` as it was returned, wall seconds and peak memory of its process."""

    name: str
    settings: Mapping[str, Any]
    seconds: float
    peak_bytes: int
    result: Mapping[str, Any] = field(default_factory=dict)


class Study(Protocol):
    """A kind of study. Constructed from its settings and the recipe's folder; knows nothing of processes."""

    Settings: ClassVar[type[StudyConfig]]
    config: StudyConfig

    def __init__(self, config: Any, recipe: Path) -> None: ...

    def inputs(self) -> dict[str, str]:
        """Digests of what lies outside the recipe's keys: the model, files."""
        ...

    def cells(self) -> Sequence[Cell]:
        """All points, in the order in which they can be run."""
        ...

    def run(self, cell: Cell, folder: Path, out: Path, progress: Progress) -> dict[str, Any]:
        """Carry one point out; `out / "cells" / NAME` are the folders of those before it. Goes on where it stopped."""
        ...

    def close(self, outcomes: Mapping[str, Outcome], out: Path) -> dict[str, Any]:
        """Findings of all points; writes the page and whatever else is made of them."""
        ...


class Base:
    """The model that a study starts from, opened once and read lazily."""

    def __init__(self, name: str, recipe: Path) -> None:
        self.path = model_path(name, recipe)

    @cached_property
    def opened(self) -> Checkpoint:
        return load_checkpoint(self.path)

    @cached_property
    def digest(self) -> str:
        return self.opened.digest()


def model_path(name: str, recipe: Path) -> Path:
    """A path (relative to the recipe's folder), or the store's copy of a name of the catalogue, fetched if need be."""
    beside = (recipe / name).resolve()
    if beside.exists():
        return beside
    from riverrun.hub.catalog import get_card
    from riverrun.hub.store import Store

    return Path(Store().fetch(get_card(name)))


def load_study(path: Path, overrides: Sequence[str] = ()) -> Study:
    """The study of a recipe (a YAML file, or a folder with recipe.yaml); ConfigError names kinds and keys."""
    file = path / "recipe.yaml" if path.is_dir() else path
    data = apply_overrides(load_yaml(file), overrides)
    name = str(data.get("study", ""))
    if name not in KINDS:
        what = f"'{name}' is no kind of study" if name else "key 'study' is required"
        raise ConfigError(f"{file}: {what}, kinds: {', '.join(KINDS)}.{nearest(name, KINDS)}")
    module, _, attribute = KINDS[name].partition(":")
    kind = getattr(importlib.import_module(module), attribute)
    study: Study = kind(build_config(kind.Settings, data, origin=str(file)), file.resolve().parent)
    return study


def cell_key(study: Study, cell: Cell) -> str:
    """What a finished cell is recognised by: kind, settings, and everything outside the recipe that it is made of."""
    return digest_json([study.config.study, cell.name, dict(cell.settings), study.inputs()])
