"""NF4, the 4-bit grid of QLoRA (https://arxiv.org/abs/2305.14314), with double quantisation. numpy only.

The layout is that of bitsandbytes: blocks of 64 values of the flattened tensor share the largest magnitude `absmax`;
each value / absmax becomes the nearest of 16 levels, two codes a byte, the first in the high nibble. With double
quantisation absmax - mean(absmax) is itself stored in 8 bits, in blocks of 256 with an fp32 scale: 4.127 bits a value.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from riverrun.base.errors import ConfigError

__all__ = [
    "BLOCK",
    "NF4_LEVELS",
    "NF4_MIDDLES",
    "Nf4",
    "dequantize_nf4",
    "double_absmax",
    "dynamic_levels",
    "quantize_nf4",
]

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

NF4_LEVELS: Floats = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
        *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
        *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    dtype=np.float32,
)
"""Quantiles of the normal distribution, scaled to [-1, 1], with an exact 0 (bitsandbytes `get_4bit_type`)."""
NF4_MIDDLES: Floats = (NF4_LEVELS[:-1] + NF4_LEVELS[1:]) / np.float32(2)
"""Above which of them a value is decides its level."""
_PAIRS: Floats = np.stack([np.repeat(NF4_LEVELS, 16), np.tile(NF4_LEVELS, 16)], axis=1)  # both levels of a byte
BLOCK = 64
_ABSMAX_BLOCK = 256
_CHUNK_BLOCKS = 1 << 10


@dataclass(frozen=True, slots=True)
class Nf4:
    """A tensor of `shape` (its size a multiple of `block`, which is even).

    packed: uint8 [size / 2]
    absmax: float32 [size / block], or its uint8 codes where `absmax_scale` float32 [ceil(size / block / 256)] is given;
            then absmax = level of the code * its scale + `absmax_mean`
    """

    packed: Bytes
    absmax: Floats | Bytes
    shape: tuple[int, ...]
    block: int = BLOCK
    absmax_scale: Floats | None = None
    absmax_mean: float = 0.0

    @property
    def nbytes(self) -> int:
        scale = 0 if self.absmax_scale is None else self.absmax_scale.nbytes + 4
        return self.packed.nbytes + self.absmax.nbytes + scale


@cache
def dynamic_levels() -> Floats:
    """The 256 levels of the signed 8-bit dynamic map, rising: 0, 1 and ±10**-e * (2**(6-e) even steps of 0.1 to 1).

    bitsandbytes `create_dynamic_map`; the steps are the middles of neighbours, formed in float32.
    """
    levels = [0.0, 1.0]
    for exponent in range(7):
        ends = _linspace(0.1, 1.0, 2**exponent + 1)
        middles = (ends[:-1] + ends[1:]) / np.float32(2)
        scaled = np.float32(10.0 ** (exponent - 6)) * middles
        levels += [*scaled.tolist(), *(-scaled).tolist()]
    return np.sort(np.array(levels, dtype=np.float32))


def _linspace(low: float, high: float, count: int) -> Floats:
    """`torch.linspace` in float32: up from `low`, in the second half down from `high`; each sum rounded once."""
    first, last = np.float32(low), np.float32(high)
    step, steps = np.float64((last - first) / np.float32(count - 1)), np.arange(count)
    up, down = np.float64(first) + step * steps, np.float64(last) - step * steps[::-1]
    return np.where(steps < count // 2, up, down).astype(np.float32)


def quantize_nf4(weight: Floats, *, block: int = BLOCK, double: bool = True) -> Nf4:
    """Round a float32 tensor to NF4. ConfigError when its size is no multiple of `block`."""
    if block % 2 or weight.size % block:
        raise ConfigError(f"NF4 block {block} must be even and divide the tensor's size {weight.size}: try 64 or 32")
    blocks = np.ascontiguousarray(weight, dtype=np.float32).reshape(-1, block)
    absmax = np.abs(blocks).max(axis=1)
    packed = np.empty((len(blocks), block // 2), dtype=np.uint8)
    for start in range(0, len(blocks), _CHUNK_BLOCKS):
        piece = slice(start, start + _CHUNK_BLOCKS)
        scaled = blocks[piece] * _inverse(absmax[piece])[:, None]
        codes = np.zeros(scaled.shape, dtype=np.uint8)
        for middle in NF4_MIDDLES:
            codes += scaled > middle
        packed[piece] = (codes[:, 0::2] << 4) | codes[:, 1::2]
    plain = Nf4(packed.reshape(-1), absmax, weight.shape, block)
    return double_absmax(plain) if double else plain


def double_absmax(tensor: Nf4) -> Nf4:
    """Store the absmax of a tensor in 8 bits, too (double quantisation)."""
    assert tensor.absmax.dtype == np.float32, "absmax is quantised already"
    mean = tensor.absmax.mean(dtype=np.float32)
    codes, scale = _to_dynamic(tensor.absmax - mean)
    return Nf4(tensor.packed, codes, tensor.shape, tensor.block, scale, float(mean))


def _inverse(scale: Floats) -> Floats:
    return np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 0)


def _to_dynamic(values: Floats) -> tuple[Bytes, Floats]:
    """8-bit codes of the dynamic map and a scale per 256 values."""
    blocks = np.zeros((-(-len(values) // _ABSMAX_BLOCK), _ABSMAX_BLOCK), dtype=np.float32)
    blocks.reshape(-1)[: len(values)] = values
    scale = np.abs(blocks).max(axis=1)
    levels = dynamic_levels()
    middles = (levels[:-1] + levels[1:]) / np.float32(2)
    scaled = blocks * _inverse(scale)[:, None]
    codes = np.searchsorted(middles, scaled.reshape(-1)[: len(values)], side="left").astype(np.uint8)
    return codes, scale


def dequantize_nf4(tensor: Nf4, first: int = 0, last: int | None = None) -> Floats:
    """The float32 values, level * absmax; of the blocks from `first` to before `last` alone, in a row, where given."""
    whole = first == 0 and last is None
    last = len(tensor.absmax) if last is None else last
    absmax = tensor.absmax[first:last]
    if tensor.absmax_scale is not None:
        scale = tensor.absmax_scale[np.arange(first, last) // _ABSMAX_BLOCK]
        absmax = dynamic_levels()[absmax] * scale + np.float32(tensor.absmax_mean)
    out = np.empty((last - first, tensor.block), dtype=np.float32)
    packed = tensor.packed.reshape(len(tensor.absmax), -1)[first:last]
    for start in range(0, len(absmax), _CHUNK_BLOCKS):
        piece = slice(start, start + _CHUNK_BLOCKS)
        np.multiply(_PAIRS[packed[piece]].reshape(-1, tensor.block), absmax[piece, None], out=out[piece])
    return out.reshape(tensor.shape) if whole else out
