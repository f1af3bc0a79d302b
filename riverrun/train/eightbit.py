"""AdamW's moments in 8 bits: blocks of 256 values, each scaled by its largest, in the codes of a dynamic map.

The map has more codes near zero: for each decimal exponent from -7 to -1 twice as many values as for the one before
(https://arxiv.org/abs/2110.02861); signed for the first moment, unsigned for the second. The update uses the moments
before they are rounded. Tensors below `LEAST` values keep 32 bits.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

__all__ = ["BLOCK", "LEAST", "adamw8bit_", "dequantize", "dynamic_map", "empty_state", "kernel_state", "quantize"]

BLOCK = 256
LEAST = 4096
CHUNK = BLOCK * 4096
"""Values updated at once: bounds what exists in 32 bits."""


@cache
def dynamic_map(signed: bool) -> Tensor:
    """The 256 values in [-1, 1] or [0, 1], ascending, fp32."""
    values = [0.0, 1.0]
    for exponent in range(7):
        count = 2**exponent if signed else 2 ** (exponent + 1)
        edges = torch.linspace(0.1, 1.0, count + 1, dtype=torch.float32)
        middles = (10.0 ** (exponent - 6) * ((edges[:-1] + edges[1:]) / 2.0)).tolist()
        values += middles + ([-value for value in middles] if signed else [])
    return torch.tensor(sorted(values), dtype=torch.float32)


@cache
def _edges(signed: bool) -> Tensor:
    """Half-way between neighbours."""
    table = dynamic_map(signed).double()
    return ((table[1:] + table[:-1]) / 2).float()


def empty_state(like: Tensor) -> dict[str, Tensor]:
    """Codes and scales of moments that are zero."""
    blocks = -(-like.numel() // BLOCK)
    state: dict[str, Tensor] = {}
    for name in ("exp_avg", "exp_avg_sq"):
        state[f"{name}_codes"] = torch.zeros(like.numel(), dtype=torch.uint8, device=like.device)
        state[f"{name}_scales"] = torch.zeros(blocks, dtype=torch.float32, device=like.device)
    return state


def kernel_state(state: dict[str, Tensor]) -> list[Tensor]:
    """The moments and the two maps in the order of the native kernel `adamw8bit`."""
    moments = [state[f"{name}_{part}"] for name in ("exp_avg", "exp_avg_sq") for part in ("codes", "scales")]
    return [*moments, dynamic_map(True), dynamic_map(False)]


def quantize(values: Tensor, *, signed: bool) -> tuple[Tensor, Tensor]:
    """fp32 [n] -> (nearest codes [n] u8, largest absolute value of each block [n / 256, rounded up])."""
    padded = torch.nn.functional.pad(values, (0, -values.numel() % BLOCK)).view(-1, BLOCK)
    scales = padded.abs().amax(dim=1)
    ratio = padded / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    codes = torch.bucketize(ratio, _edges(signed).to(values.device), out_int32=True).to(torch.uint8)
    return codes.view(-1)[: values.numel()], scales


def dequantize(codes: Tensor, scales: Tensor, *, signed: bool) -> Tensor:
    """[n] u8 and scales -> fp32 [n]."""
    values = dynamic_map(signed).to(codes.device)[codes.int()]
    padded = torch.nn.functional.pad(values, (0, -values.numel() % BLOCK)).view(-1, BLOCK)
    return (padded * scales[:, None]).view(-1)[: codes.numel()]


def adamw8bit_(
    value: Tensor,
    gradient: Tensor,
    state: dict[str, Tensor],
    *,
    rate: float,
    betas: tuple[float, float],
    eps: float,
    step: int,
) -> None:
    """Update `value` and its `state` in place by an fp32 gradient; `step` counts from 1. Decay comes before."""
    first, second = betas
    one, two = 1.0 - first**step, float(np.sqrt(1.0 - second**step))
    flat_value, flat_gradient = value.view(-1), gradient.reshape(-1)
    for start in range(0, flat_value.numel(), CHUNK):
        some, blocks = slice(start, start + CHUNK), slice(start // BLOCK, (start + CHUNK) // BLOCK)
        grad = flat_gradient[some].float()
        mean = dequantize(state["exp_avg_codes"][some], state["exp_avg_scales"][blocks], signed=True)
        square = dequantize(state["exp_avg_sq_codes"][some], state["exp_avg_sq_scales"][blocks], signed=False)
        mean.mul_(first).add_(grad, alpha=1.0 - first)
        square.mul_(second).addcmul_(grad, grad, value=1.0 - second)
        flat_value[some] -= (rate / one) * (mean / (square.sqrt() / two + eps)).to(value.dtype)
        for name, moment, signed in (("exp_avg", mean, True), ("exp_avg_sq", square, False)):
            codes, scales = quantize(moment, signed=signed)
            state[f"{name}_codes"][some] = codes
            state[f"{name}_scales"][blocks] = scales
