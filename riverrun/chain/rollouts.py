"""A policy that writes its own rollouts: serving and training of one model in one process.

The engine is put onto the very module that learns. There is no second copy and nothing is sent: without gradients a
layer multiplies by its merged weight, which the loop forms again after every step. What must go is what was computed
from older weights: `refresh` drops all cached keys and values.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from riverrun.serve.llm import LLM

if TYPE_CHECKING:
    from riverrun.models.transformer import CausalLM

__all__ = ["PolicyModel"]


class PolicyModel(LLM):
    """`model`, which was loaded from `path`, as a LanguageModel. Its `info.digest` is that of the start."""

    def __init__(
        self, model: CausalLM, path: Path, *, slots: int = 32, context: int = 0, codec: str = "hermes"
    ) -> None:
        """`context` is the most tokens of prompt and answer; 0 takes the model's own length, at most 4096."""
        from riverrun.serve.engines.torch import TorchEngine

        longest = model.config.longest
        size = context or min(longest or 4096, 4096)
        super().__init__(path, context=size, codec=codec, slots=slots, engine=TorchEngine(model, tokens=slots * size))

    def refresh(self) -> None:
        """Take over the weights as they are now."""
        self.forget()
