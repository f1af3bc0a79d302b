"""One file per stage; `get_stage(name)` imports it."""

from __future__ import annotations

from riverrun.base.registry import Registry
from riverrun.chain.stage import STAGES, Stage

__all__ = ["get_stage"]

_STAGES: Registry[type[Stage]] = Registry("stage")
for _name in STAGES:
    _STAGES.add(_name, f"riverrun.chain.stages.{_name}:{_name.capitalize()}")


def get_stage(name: str) -> Stage:
    """The stage of a name; InputError with the nearest names when there is none."""
    return _STAGES.get(name)()
