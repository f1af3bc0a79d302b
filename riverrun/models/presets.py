"""Published model sizes by name: the shape alone, for plans, tests and models from scratch. No torch."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from riverrun.base.errors import InputError, nearest
from riverrun.models.config import ModelConfig

__all__ = ["load_preset", "preset_names", "published_parameters"]


@cache
def _table() -> dict[str, dict[str, Any]]:
    text = files("riverrun.models").joinpath("presets.yaml").read_text(encoding="utf-8")
    table: dict[str, dict[str, Any]] = yaml.safe_load(text)["presets"]
    return table


def preset_names() -> tuple[str, ...]:
    """Names in the order of presets.yaml."""
    return tuple(_table())


def load_preset(name: str) -> ModelConfig:
    """The shape of that name; InputError with the nearest names when there is none."""
    if name not in _table():
        raise InputError(f"no preset is named '{name}'.{nearest(name, _table())}")
    return ModelConfig.from_hf({k: v for k, v in _table()[name].items() if k not in ("published", "about")})


def published_parameters(name: str) -> tuple[int, bool]:
    """(count that the model's card states, whether it is exact)."""
    entry = _table()[name]
    return int(entry.get("published") or entry["about"]), "published" in entry
