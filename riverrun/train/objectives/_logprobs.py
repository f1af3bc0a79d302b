"""Log-probability of chosen tokens against the head, in chunks; differentiable.

N = rows with a label, E = hidden_size, V = vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

__all__ = ["token_logprobs"]

CHUNK = 256


def _chunk(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    logits = linear(hidden, head)
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return torch.log_softmax(wide, dim=1).gather(1, targets[:, None]).squeeze(1)


def token_logprobs(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """hidden [N, E], head [V, E], targets [N] -> natural-log probabilities [N] in fp32; logits are formed again for
    the backward, `CHUNK` rows at a time."""
    assert hidden.shape[0] == targets.shape[0], f"{hidden.shape[0]} rows, {targets.shape[0]} targets"
    parts = []
    for start in range(0, hidden.shape[0], CHUNK):
        rows, wanted = hidden[start : start + CHUNK], targets[start : start + CHUNK]
        if torch.is_grad_enabled():
            parts.append(checkpoint(_chunk, rows, head, wanted, use_reentrant=False))
        else:
            parts.append(_chunk(rows, head, wanted))
    return torch.cat(parts) if parts else hidden.new_zeros(0)
