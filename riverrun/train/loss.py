"""Cross-entropy of chosen rows against the head, without ever holding the whole logit matrix.

N = rows with a label, E = hidden_size, V = vocabulary. Rows without a label are never multiplied. Works in chunks of
`CHUNK` rows: the peak is CHUNK * V * 6 bytes in bf16.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["CHUNK", "linear_cross_entropy"]

CHUNK = 256
STEP = 64


class _LinearCrossEntropy(torch.autograd.Function):
    """Sum of -log softmax(hidden head^T)[target]; gradients are formed with the loss, the head's where it learns."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        grads = torch.empty_like(hidden)
        d_head = torch.zeros_like(head, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for start in range(0, hidden.shape[0], CHUNK):
            rows, wanted = hidden[start : start + CHUNK], targets[start : start + CHUNK]
            count = rows.shape[0]
            # few distinct shapes, see models.attention.PackedCausal
            rows = torch.nn.functional.pad(rows, (0, 0, 0, -count % STEP))
            logprobs = torch.log_softmax(torch.nn.functional.linear(rows, head).float(), dim=1)  # [c, V]
            total -= logprobs[:count].gather(1, wanted[:, None]).sum(dtype=torch.float64)
            probabilities = logprobs.exp_()
            probabilities[torch.arange(count), wanted] -= 1
            grads[start : start + CHUNK] = (probabilities.to(hidden.dtype) @ head)[:count]
            if d_head is not None:
                d_head += probabilities[:count].T @ rows[:count].float()
        ctx.save_for_backward(grads, d_head)
        return total.to(torch.float32)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor | None, None]:
        grads, d_head = ctx.saved_tensors
        if d_head is not None:
            d_head = (d_head * upstream[0]).to(grads.dtype)
        return grads * upstream[0].to(grads.dtype), d_head, None


def linear_cross_entropy(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """hidden [N, E], head [V, E], targets [N] -> summed loss in nats (fp32 scalar)."""
    assert hidden.shape[0] == targets.shape[0], f"{hidden.shape[0]} rows, {targets.shape[0]} targets"
    return _LinearCrossEntropy.apply(hidden, head, targets)  # type: ignore[no-any-return,no-untyped-call]
