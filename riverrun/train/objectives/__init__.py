"""What is minimised. An objective is built with the model and its own settings, then called with micro-batches.

    count(batch)  units of a micro-batch (label tokens; pairs for preferences), known before any forward
    __call__      their summed loss, differentiable, and sums of whatever else is to be seen

The loop sums `count` over all micro-batches of a step first and divides every sum by that one number: how a step is
cut into micro-batches changes nothing.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from riverrun.data.packing import Pack

if TYPE_CHECKING:
    from torch import Tensor

    from riverrun.models.transformer import CausalLM
    from riverrun.train.objectives.config import ObjectiveConfig

__all__ = ["FACTORIES", "Loss", "Objective", "make_objective"]


@dataclass(frozen=True, slots=True)
class Loss:
    """`total`: scalar, the sum over the counted units. `metrics`: sums over the same units, logged as means."""

    total: Tensor
    metrics: Mapping[str, float] = field(default_factory=dict)


class Objective(Protocol):
    name: str

    def count(self, batch: Pack) -> int:
        """Counted units of a micro-batch."""
        ...

    def __call__(self, batch: Pack) -> Loss:
        """The summed loss of a micro-batch."""
        ...


FACTORIES: dict[str, str] = {
    "pretrain": "riverrun.train.objectives.supervised:Supervised",
    "sft": "riverrun.train.objectives.supervised:Supervised",
}
"""Name -> "module:class", called with (model, config)."""


def make_objective(model: CausalLM, config: ObjectiveConfig) -> Objective:
    """The objective that `config.name` names."""
    module, _, name = FACTORIES[config.name].partition(":")
    made: Any = getattr(importlib.import_module(module), name)(model, config)
    return made  # type: ignore[no-any-return]
