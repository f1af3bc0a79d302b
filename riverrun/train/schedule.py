"""Learning-rate schedules as pure functions of what is done of the whole: a factor between 0 and 1. No torch.

`done` and `total` are in one unit: steps, tokens or seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from riverrun.base.errors import ConfigError, nearest

__all__ = ["DECAYS", "SCHEDULES", "factor"]


def _constant(_: float) -> float:
    return 1.0


def _linear(progress: float) -> float:
    return 1.0 - progress


def _cosine(progress: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def _sqrt(progress: float) -> float:
    """1 - sqrt: falls fast at first (https://arxiv.org/abs/2405.18392)."""
    return 1.0 - math.sqrt(progress)


SCHEDULES: dict[str, Callable[[float], float]] = {"constant": _constant, "cosine": _cosine, "linear": _linear}
DECAYS: dict[str, Callable[[float], float]] = {"linear": _linear, "sqrt": _sqrt}
"""How wsd (warm-up, stable, decay: https://arxiv.org/abs/2404.06395) falls in its last part."""


def factor(
    name: str,
    done: float,
    total: float,
    warmup: float,
    *,
    ahead: float = 1.0,
    decay: float = 0.2,
    shape: str = "sqrt",
    final: float = 0.0,
) -> float:
    """Factor for the step that begins at `done` of `total` and is `ahead` long; the first `warmup` rises linearly to 1.

    wsd is constant until the last `decay` share of the whole and falls by `shape`; every fall ends at `final`.
    """
    if name not in (*SCHEDULES, "wsd"):
        raise ConfigError(f"schedule '{name}' is not one of {', '.join(sorted([*SCHEDULES, 'wsd']))}")
    if done < warmup:
        return min(1.0, (done + ahead) / warmup)
    if name == "constant":
        return 1.0
    if name == "wsd":
        if shape not in DECAYS:
            raise ConfigError(f"decay '{shape}' does not exist.{nearest(shape, DECAYS)}")
        start = max(warmup, total * (1.0 - decay))
        progress = 0.0 if done < start else (done - start) / max(1e-12, total - start)
        fall = DECAYS[shape]
    else:
        progress, fall = (done - warmup) / max(1e-12, total - warmup), SCHEDULES[name]
    return final + (1.0 - final) * fall(min(1.0, progress))
