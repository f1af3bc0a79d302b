"""How one model is split over several processes: the table of what is cut where, and a model of one part.

Projections into heads and into the feed-forward width are cut by rows (each process has whole heads), those back into
the residual stream by columns: their products are partial sums, which all processes add up (Megatron-LM,
https://arxiv.org/abs/1909.08053, section 3). Embedding, norms and head are whole everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import torch
from torch import Tensor

from riverrun.base.errors import InputError
from riverrun.models.config import ModelConfig
from riverrun.models.load import Checkpoint, checkpoint_weights
from riverrun.models.transformer import CausalLM

__all__ = ["SPLITS", "load_shard", "shard_config", "shard_tensor"]

Cut = Literal["rows", "columns"]
SPLITS: dict[str, Cut] = {
    "q_proj": "rows",
    "k_proj": "rows",
    "v_proj": "rows",
    "gate_proj": "rows",
    "up_proj": "rows",
    "o_proj": "columns",
    "down_proj": "columns",
}
"""Projection -> where its weight [out, in] is cut; its bias is cut by rows, or belongs to the first process alone."""


def shard_config(config: ModelConfig, size: int) -> ModelConfig:
    """The shape of one of `size` parts; InputError names what `size` does not divide."""
    cut = ("num_attention_heads", "num_key_value_heads", "intermediate_size")
    for name in cut:
        if getattr(config, name) % size:
            raise InputError(f"{size} processes do not divide {name} ({getattr(config, name)}): choose another number")
    return config.model_copy(update={name: getattr(config, name) // size for name in cut})


def shard_tensor(name: str, tensor: Tensor, rank: int, size: int) -> Tensor:
    """The part of a checkpoint's tensor that process `rank` of `size` holds."""
    part, _, kind = name.rpartition(".")
    cut = SPLITS.get(part.rpartition(".")[2])
    if cut is None:
        return tensor
    if cut == "rows":
        return tensor.chunk(size, dim=0)[rank]
    if kind == "bias":
        return tensor if rank == 0 else torch.zeros_like(tensor)
    return tensor.chunk(size, dim=1)[rank]


def load_shard(
    checkpoint: Checkpoint, dtype: torch.dtype, rank: int, size: int, add_up: Callable[[Tensor], Tensor]
) -> CausalLM:
    """Part `rank`; `add_up` gives the sum of a partial product over all processes."""
    model = CausalLM(shard_config(checkpoint.config, size), dtype)
    with torch.no_grad():
        model.load(_parts(checkpoint_weights(checkpoint), rank, size), str(checkpoint.path))
    for _, matrix in model.linears():
        if all(SPLITS[part] == "columns" for part in matrix.parts):
            matrix.add_up = add_up
    return model.eval()


def _parts(weights: Iterable[tuple[str, Tensor]], rank: int, size: int) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in weights:
        yield name, shard_tensor(name, tensor, rank, size)
