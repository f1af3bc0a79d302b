"""Operations and seconds. One multiply-add counts as two operations; attention is causal, over `length` tokens.

Per token, with N weights in linear layers, N_t trained ones, H = 2 h V for the head on label rows only:
full fine-tuning 6 N, LoRA and QLoRA 4 N + 6 N_t (no gradient of frozen weights), all + 6 L a s for attention (a its
width); a recomputed forward pass adds its own cost once more (Korthikanti et al., arXiv:2205.05198).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from riverrun.base.errors import InputError
from riverrun.plan.hardware import Hardware
from riverrun.plan.shape import LINEARS, ModelShape, linear_parameters, lora_parameters, parameters, widths
from riverrun.plan.tables import read_values

__all__ = ["Training", "attention_flops", "decode_seconds", "forward_flops", "training_flops", "training_seconds"]

Training = Literal["full", "lora", "qlora"]


def attention_flops(shape: ModelShape, length: int) -> float:
    """Operations a token of one causal forward pass: scores and weighted values, s / 2 keys on average."""
    a, _ = widths(shape)
    return 2.0 * shape.num_hidden_layers * a * length


def forward_flops(shape: ModelShape, length: int, *, head_share: float = 1.0) -> float:
    """Operations a token of a forward pass; `head_share` of the tokens get logits."""
    head = 2.0 * shape.hidden_size * shape.vocab_size * head_share
    return 2.0 * linear_parameters(shape) + attention_flops(shape, length) + head


def training_flops(
    shape: ModelShape,
    method: Training,
    *,
    length: int,
    label_share: float = 1.0,
    rank: int = 0,
    targets: Sequence[str] = LINEARS,
    recompute: float = 0.0,
) -> float:
    """Operations a token of forward and backward. `length`: mean tokens of a packed document; `label_share`: R / T;
    `recompute`: share of the layers that run again. Unpacking four bits costs nothing beside the products."""
    if not 0 <= label_share <= 1 or length < 1:
        raise InputError(f"need 0 <= label_share <= 1 and length >= 1, got {label_share} and {length}")
    linear, attention = 2.0 * linear_parameters(shape), attention_flops(shape, length)
    head = 2.0 * shape.hidden_size * shape.vocab_size * label_share
    again = recompute * (linear + attention)
    if method == "full":
        return 3 * linear + 3 * attention + 3 * head + again
    adapters = 6.0 * lora_parameters(shape, rank, targets)
    return 2 * linear + adapters + 3 * attention + 2 * head + again


def training_seconds(flops: float, hardware: Hardware, *, dtype: str, steps: int = 0, trained: int = 0) -> float:
    """Seconds for so many operations at the measured rate, and for `steps` optimizer steps over `trained` weights."""
    traffic = read_values("training", "coefficients")["optimizer_traffic_bytes"] * trained * steps
    return flops / hardware.rate(dtype) + (traffic / hardware.bandwidth if hardware.bandwidth else 0.0)


def decode_seconds(shape: ModelShape, hardware: Hardware, *, weight_bytes: int, dtype: str, rows: int = 1) -> float:
    """Seconds a decoding step of `rows` sequences takes: reading all weights or computing, whichever is longer."""
    reading = weight_bytes / hardware.bandwidth if hardware.bandwidth else 0.0
    return max(reading, 2.0 * parameters(shape) * rows / hardware.rate(dtype))
