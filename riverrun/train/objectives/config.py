"""Settings of the objectives, without torch: one class for each family of them, found by the objective's name."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from riverrun.base.config import Config, build_config
from riverrun.base.errors import ConfigError, nearest

__all__ = ["OBJECTIVES", "ObjectiveConfig", "SupervisedConfig", "read_objective"]


class ObjectiveConfig(Config):
    """What every objective has."""

    name: str = Field(description="what is minimised")


class SupervisedConfig(ObjectiveConfig):
    """Next-token loss."""

    name: Literal["pretrain", "sft"] = Field(
        default="sft",
        description="pretrain: every token is learned; sft: what the assistant says and the token that ends its turn",
    )


OBJECTIVES: dict[str, type[ObjectiveConfig]] = {"pretrain": SupervisedConfig, "sft": SupervisedConfig}


def read_objective(value: Any) -> ObjectiveConfig:
    """Settings from a name or a mapping with a name; ConfigError names the nearest objectives or keys."""
    if isinstance(value, ObjectiveConfig):
        return value
    given = {"name": value} if isinstance(value, str) else value
    if not isinstance(given, dict):
        raise ConfigError(f"objective must be a name or a mapping with a name, it is {given!r}")
    name = str(given.get("name", "sft"))
    if name not in OBJECTIVES:
        raise ConfigError(f"objective '{name}' does not exist.{nearest(name, OBJECTIVES)}")
    return build_config(OBJECTIVES[name], given, origin="objective")
