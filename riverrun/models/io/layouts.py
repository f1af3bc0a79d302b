"""Families whose files hold several of our matrices in one tensor: InternLM2's wqkv. torch inside.

Its rows are grouped by key head: [q of the head's n queries, k, v], head_dim rows each, so that
W.view(K, n + 2, D, E)[:, :n] are the queries (tools/convert2llama.py of InternLM).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from riverrun.models.config import ModelConfig

__all__ = ["join_parts", "split_parts", "stored_shape"]


def stored_shape(config: ModelConfig, parts: Sequence[str]) -> tuple[int, ...]:
    """Shape of the tensor that holds these of our tensors."""
    shapes = [config.layer_shapes().get(name.split(".", 3)[-1]) or config.shapes()[name] for name in parts]
    return (sum(shape[0] for shape in shapes), *shapes[0][1:])


def split_parts(config: ModelConfig, tensor: Tensor, parts: Sequence[str]) -> list[Tensor]:
    """Our tensors out of a stored one: itself, or q, k and v (weights [rows, E] or biases [rows])."""
    if len(parts) == 1:
        return [tensor]
    queries = config.queries_per_kv
    groups = tensor.reshape(config.num_key_value_heads, queries + 2, config.head_dim, *tensor.shape[1:])
    return [
        groups[:, where].reshape(-1, *tensor.shape[1:])
        for where in (slice(0, queries), slice(queries, queries + 1), slice(queries + 1, queries + 2))
    ]


def join_parts(config: ModelConfig, tensors: Sequence[Tensor]) -> Tensor:
    """The stored tensor of q, k and v, or the one tensor itself; undoes `split_parts` to the bit."""
    if len(tensors) == 1:
        return tensors[0]
    kv_heads = config.num_key_value_heads
    grouped = [tensor.reshape(kv_heads, -1, config.head_dim, *tensor.shape[1:]) for tensor in tensors]
    return torch.cat(grouped, dim=1).reshape(-1, *tensors[0].shape[1:])
