"""Learning-rate schedules as pure functions of (step, total): a factor between 0 and 1."""

from __future__ import annotations

import math
from collections.abc import Callable

from riverrun.base.errors import ConfigError

__all__ = ["SCHEDULES", "factor"]


def _constant(_: float) -> float:
    return 1.0


def _linear(progress: float) -> float:
    return 1.0 - progress


def _cosine(progress: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * progress))


SCHEDULES: dict[str, Callable[[float], float]] = {"constant": _constant, "cosine": _cosine, "linear": _linear}


def factor(name: str, step: int, total: int, warmup: int) -> float:
    """Factor for optimizer step `step` (from 0) of `total`; the first `warmup` steps rise linearly to 1."""
    if name not in SCHEDULES:
        raise ConfigError(f"schedule '{name}' is not one of {', '.join(SCHEDULES)}")
    if step < warmup:
        return (step + 1) / warmup
    return SCHEDULES[name]((step - warmup) / max(1, total - warmup))
