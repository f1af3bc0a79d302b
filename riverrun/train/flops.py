"""Operations of a micro-batch, for the model FLOP utilisation (MFU). One multiply-add counts as two.

MFU = model FLOPs / seconds / measured rate of a bare matrix product in the same numbers. Model FLOPs of a pack, with N
weights in linear layers, N_t trained ones, T computed tokens, R label rows, H = 2 E V the head, and causal attention
A = 4 layers x query width x (keys that the tokens see, summed):

    full     6 N T + 3 A + 3 H R
    LoRA     (4 N + 6 N_t) T + 3 A + 2 H R

Recomputed activations, norms, embedding and optimizer count as nothing (PaLM's convention, https://arxiv.org/abs/2204.02311,
with the head on label rows only).
"""

from __future__ import annotations

from collections.abc import Callable

from riverrun.data.packing import Pack
from riverrun.models.config import ModelConfig

__all__ = ["pack_flops"]


def _keys(start: int, stop: int) -> float:
    """Keys that the tokens at places start .. stop - 1 of a document see, each itself included."""
    return (stop * (stop + 1) - start * (start + 1)) / 2


def pack_flops(config: ModelConfig, *, lora_parameters: int | None) -> Callable[[Pack], float]:
    """FLOPs of forward and backward of a pack; `lora_parameters` is None when all weights are trained."""
    linear = config.num_hidden_layers * sum(out * inner for out, inner in config.linear_shapes().values())
    head = 2.0 * config.hidden_size * config.vocab_size
    per_key = 4.0 * config.num_hidden_layers * config.query_size
    each = 6.0 * linear if lora_parameters is None else 4.0 * linear + 6.0 * lora_parameters
    head_passes = 3 if lora_parameters is None else 2

    def flops(pack: Pack) -> float:
        keys = sum(
            _keys(0, group.prefix) + sum(_keys(group.prefix, group.prefix + length) for length in group.lengths)
            for group in pack.groups
        )
        return each * pack.computed_tokens + 3.0 * per_key * keys + head_passes * head * pack.label_tokens

    return flops
