"""Where a run is, and what keeps it from going on: numbers that are not finite, weights that do not move."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from riverrun.base.errors import RiverrunError
from riverrun.models.kernels import sum_squares

__all__ = ["FIRST_SCALE", "Position", "check_finite", "check_moved", "skip"]

STILL_STEPS = 20
"""Steps without any gradient after which a run is refused."""
FIRST_SCALE, GROWS_AFTER, LARGEST_SCALE = 2.0**16, 2000, 2.0**24
"""Of the loss in float16: it doubles after so many good steps (https://arxiv.org/abs/1710.03740)."""


@dataclass(slots=True)
class Position:
    """Where a run is; stored with every checkpoint. `tokens` and `seconds` of all finished steps, also of resumed ones;
    `checked`: the first step moved what it should; `scale`, `good`: the loss scale and the steps it has held."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    skipped: int = 0
    still: int = 0
    checked: bool = False
    scale: float = 1.0
    good: int = 0

    def worked(self) -> None:
        """One more step that the loss scale has held."""
        self.good += 1
        if self.good >= GROWS_AFTER and self.scale < LARGEST_SCALE:
            self.scale, self.good = self.scale * 2, 0

    @property
    def counts(self) -> dict[str, float]:
        return {"steps": self.step, "tokens": self.tokens, "seconds": self.seconds}


def check_moved(
    at: Position, same: Sequence[str], found: Mapping[str, Tensor], parameters: Mapping[str, Tensor], norm: float
) -> None:
    """After the first step with a gradient everything must have moved; a LoRA's A stands still while its B is zero."""
    if at.checked:
        return
    if norm == 0.0:
        at.still += 1
        if at.still == STILL_STEPS:
            raise RiverrunError(f"{STILL_STEPS} steps gave no gradient at all: no token is learned, or nothing can be")
        return
    at.checked = True
    without = [name for name in parameters if name not in found]
    still = [
        name for name in same if not (name.endswith("lora_A") and not found[name].any() and name[:-1] + "B" not in same)
    ]
    if without or still:
        parts = [
            f"{len(names)} of {len(parameters)} parameters {what} ({', '.join(names[:3])}{', ...' * (len(names) > 3)})"
            for names, what in ((without, "got no gradient"), (still, "did not move"))
            if names
        ]
        raise RiverrunError(
            f"step {at.step + 1}: {' and '.join(parts)}: they are no part of the loss, "
            "or the learning rate is too small"
        )


def check_finite(at: Position, parameters: Mapping[str, Tensor], rate: float, rate_name: str) -> None:
    if not all(math.isfinite(sum_squares(tensor)) for tensor in parameters.values()):
        raise RiverrunError(
            f"step {at.step + 1}: with a rate of {rate:.4g} the parameters are not finite: lower {rate_name}"
        )


def skip(at: Position, loss: float, norm: float, *, scaling: bool, most: int, rate_name: str) -> None:
    """Leave a step out, or refuse to go on after `most` such steps; in float16 (`scaling`) a smaller loss scale comes
    first."""
    if scaling and at.scale > 1.0 and math.isfinite(loss):
        at.scale, at.good = at.scale / 2, 0
        return
    at.skipped += 1
    if at.skipped > most:
        before = f" ({most} such steps were skipped before)" if most else ""
        raise RiverrunError(
            f"step {at.step + 1}: loss {loss} and gradient norm {norm} are not finite{before}: lower {rate_name}"
        )
