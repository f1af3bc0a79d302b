"""Figures with their sources, as data."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from riverrun.base.config import load_yaml

__all__ = ["read_table", "read_values"]


@cache
def read_table(name: str, section: str) -> Mapping[str, Any]:
    """One section of `<name>.yaml` beside this file."""
    return MappingProxyType(load_yaml(Path(__file__).with_name(f"{name}.yaml"))[section])


@cache
def read_values(name: str, section: str) -> Mapping[str, float]:
    """The `value` of every entry of a section."""
    return MappingProxyType({key: float(entry["value"]) for key, entry in read_table(name, section).items()})
