"""What is minimised. An objective is built with the model and its own settings, then called with micro-batches.

    count(batch)  units of a micro-batch (label tokens; pairs for preferences), known before any forward
    __call__      their summed loss, differentiable, and sums of whatever else is to be seen

The loop sums `count` over all micro-batches of a step first and divides every sum by that one number: how a step is
cut into micro-batches changes nothing.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from riverrun.base.progress import Progress
from riverrun.data.packing import Pack

if TYPE_CHECKING:
    from torch import Tensor

    from riverrun.models.transformer import CausalLM
    from riverrun.train.objectives.config import ObjectiveConfig

__all__ = ["FACTORIES", "Loss", "Objective", "WithHead", "WithReference", "make_objective"]


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


@runtime_checkable
class WithHead(Protocol):
    """An objective that has parameters of its own beside the model's."""

    def parameters(self) -> dict[str, Tensor]: ...

    def save(self, folder: Path) -> None:
        """Write them beside the adapter or model in `folder`."""
        ...


@runtime_checkable
class WithReference(Protocol):
    """An objective that compares with the model of the start."""

    def prepare_reference(
        self, packs: Iterable[Pack], work: Path, *, identity: str, progress: Progress | None = None
    ) -> None:
        """Called once before training, with the packs of the first epoch."""
        ...


FACTORIES: dict[str, str] = {
    "pretrain": "riverrun.train.objectives.supervised:Supervised",
    "sft": "riverrun.train.objectives.supervised:Supervised",
    "dpo": "riverrun.train.objectives.preference:DPO",
    "ipo": "riverrun.train.objectives.preference:IPO",
    "simpo": "riverrun.train.objectives.preference:SimPO",
    "orpo": "riverrun.train.objectives.preference:ORPO",
    "kto": "riverrun.train.objectives.preference:KTO",
    "reward": "riverrun.train.objectives.reward:Reward",
    "distill": "riverrun.train.objectives.distill:Distill",
    "grpo": "riverrun.train.objectives.rl:GRPO",
    "ppo": "riverrun.train.objectives.rl:PPO",
}
"""Name -> "module:class", called with (model, config, **models)."""


def make_objective(model: CausalLM, config: ObjectiveConfig, **models: CausalLM) -> Objective:
    """The objective that `config.name` names. `models`: others that do not learn (`teacher` of distill)."""
    module, _, name = FACTORIES[config.name].partition(":")
    made: Any = getattr(importlib.import_module(module), name)(model, config, **models)
    return made  # type: ignore[no-any-return]
