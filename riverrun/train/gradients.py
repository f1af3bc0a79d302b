"""Gradients of one optimizer step: where they are gathered, how long they are.

Gradients of 16-bit weights come in 16 bits. Where a step has several micro-batches they are summed in fp32, each moved
over as soon as it is formed; with one micro-batch they are used as they come.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from riverrun.models.kernels import sum_squares

__all__ = ["Gradients"]


class Gradients:
    """A context: hooks sit on the 16-bit parameters while it is open."""

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self._parameters = dict(parameters)
        self._sums: dict[str, Tensor] = {}
        self._several = False
        self._hooks: list[Any] = []

    def __enter__(self) -> Gradients:
        for name, parameter in self._parameters.items():
            if parameter.dtype in (torch.bfloat16, torch.float16):
                hook = self._mover(name)
                self._hooks.append(parameter.register_post_accumulate_grad_hook(hook))  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self.clear()

    def _mover(self, name: str) -> Any:
        def move(parameter: Tensor) -> None:
            if parameter.grad is not None and parameter.grad.is_sparse:  # of a tied table whose head was not used
                parameter.grad = parameter.grad.to_dense()
            if not self._several or parameter.grad is None:
                return
            if name in self._sums:
                self._sums[name] += parameter.grad
            else:
                self._sums[name] = parameter.grad.float()
            parameter.grad = None

        return move

    def begin(self, micro_batches: int) -> None:
        self.clear()
        self._several = micro_batches > 1

    def take(self) -> dict[str, Tensor]:
        """The summed gradient of every parameter that has one."""
        own = {name: p.grad for name, p in self._parameters.items() if p.grad is not None}
        own = {name: grad.to_dense() if grad.is_sparse else grad for name, grad in own.items()}
        together = self._sums | own
        return {name: together[name] for name in self._parameters if name in together}

    def clear(self) -> None:
        self._sums = {}
        for parameter in self._parameters.values():
            parameter.grad = None

    @staticmethod
    def norm(gradients: Mapping[str, Tensor]) -> float:
        """Length of all gradients together."""
        return math.sqrt(sum(map(sum_squares, gradients.values())))
