"""Blocks of ggml: the values of a row in groups of 32 or 256 that share a scale. numpy only.

Layouts and formulas are those of ggml (`ggml-common.h`, `ggml-quants.c`); decoding equals the `gguf` package in float32
to the bit, also for scales that are NaN, infinite or denormal, and encoding equals it to the byte. n = blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from riverrun.base.errors import ConfigError, UnsupportedError

__all__ = ["BLOCK_TYPES", "BlockType", "block_type", "block_type_of", "dequantize_blocks", "quantize_blocks"]

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

_CHUNK_VALUES = 1 << 16
"""Values worked on at a time: what lies between bytes and floats stays in the cache."""


@dataclass(frozen=True, slots=True)
class BlockType:
    """A ggml tensor type: `block_values` values stand in `block_bytes` bytes.

    decode: bytes [n, block_bytes] -> float32 [n, block_values] into its second argument
    encode: float32 [n, block_values] -> bytes [n, block_bytes]; None where the type is only read
    """

    name: str
    code: int
    block_values: int
    block_bytes: int
    decode: Callable[[Bytes, Floats], None]
    encode: Callable[[Floats], Bytes] | None = None

    def bytes_of(self, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor of that shape; its last axis must hold whole blocks."""
        count = 1
        for size in shape:
            count *= size
        return count // self.block_values * self.block_bytes


def _half(blocks: Bytes, start: int) -> Floats:
    """The fp16 at that byte of each block, [n, 1]."""
    return np.ascontiguousarray(blocks[:, start : start + 2]).view(np.float16).astype(np.float32)


def _halves(packed: Bytes) -> tuple[Bytes, Bytes]:
    """Low and high nibbles of each byte."""
    return packed & np.uint8(15), packed >> np.uint8(4)


def _by_half(out: Floats, low: Bytes, high: Bytes, scale: Floats) -> None:
    """[n, 32]: low nibbles are values 0..15, high nibbles 16..31."""
    np.multiply(low, scale, out=out[:, :16], dtype=np.float32)
    np.multiply(high, scale, out=out[:, 16:], dtype=np.float32)


def _f32(blocks: Bytes, out: Floats) -> None:
    out[...] = blocks.view(np.float32)


def _f16(blocks: Bytes, out: Floats) -> None:
    out[...] = blocks.view(np.float16)


def _bf16(blocks: Bytes, out: Floats) -> None:
    np.left_shift(blocks.view(np.uint16), 16, out=out.view(np.uint32), dtype=np.uint32)


def _q4_0(blocks: Bytes, out: Floats) -> None:
    low, high = _halves(blocks[:, 2:])
    _by_half(out, (low - 8).view(np.int8), (high - 8).view(np.int8), _half(blocks, 0))  # type: ignore[arg-type]


def _q4_1(blocks: Bytes, out: Floats) -> None:
    _by_half(out, *_halves(blocks[:, 4:]), _half(blocks, 0))
    out += _half(blocks, 2)


def _with_fifth(blocks: Bytes, start: int) -> Bytes:
    """5-bit codes [n, 32]: 32 fifth bits in 4 bytes at `start`, then 16 bytes of nibbles."""
    high = np.unpackbits(blocks[:, start : start + 4], axis=1, bitorder="little")
    codes = np.concatenate(_halves(blocks[:, start + 4 :]), axis=1)
    codes |= high << 4
    return codes


def _q5_0(blocks: Bytes, out: Floats) -> None:
    np.multiply((_with_fifth(blocks, 2) - 16).view(np.int8), _half(blocks, 0), out=out, dtype=np.float32)


def _q5_1(blocks: Bytes, out: Floats) -> None:
    np.multiply(_with_fifth(blocks, 4), _half(blocks, 0), out=out, dtype=np.float32)
    out += _half(blocks, 2)


def _q8_0(blocks: Bytes, out: Floats) -> None:
    np.multiply(blocks[:, 2:].view(np.int8), _half(blocks, 0), out=out, dtype=np.float32)


def _k_scales(blocks: Bytes) -> tuple[Floats, Floats]:
    """Scale and minimum [n, 8, 1] of the 32-value parts of Q4_K and Q5_K: two fp16, then 6-bit pairs in 12 bytes."""
    first, second, third = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scale = np.concatenate([first & 63, (third & 15) | ((first >> 2) & 48)], axis=1)
    low = np.concatenate([second & 63, (third >> 4) | ((second >> 2) & 48)], axis=1)
    return (_half(blocks, 0) * scale)[:, :, None], (_half(blocks, 2) * low)[:, :, None]


def _q4_k(blocks: Bytes, out: Floats) -> None:
    scale, low = _k_scales(blocks)
    parts, packed = out.reshape(-1, 8, 32), blocks[:, 16:].reshape(-1, 4, 32)
    np.multiply(packed & 15, scale[:, 0::2], out=parts[:, 0::2], dtype=np.float32)
    np.multiply(packed >> 4, scale[:, 1::2], out=parts[:, 1::2], dtype=np.float32)
    parts -= low


def _q5_k(blocks: Bytes, out: Floats) -> None:
    scale, low = _k_scales(blocks)
    parts, packed = out.reshape(-1, 8, 32), blocks[:, 48:].reshape(-1, 4, 32)
    high, codes = blocks[:, 16:48], np.empty((len(blocks), 8, 32), dtype=np.uint8)
    np.bitwise_and(packed, 15, out=codes[:, 0::2])
    np.right_shift(packed, 4, out=codes[:, 1::2])
    for part in range(8):
        codes[:, part] |= ((high >> part) & 1) << 4
    np.multiply(codes, scale, out=parts, dtype=np.float32)
    parts -= low


def _q6_k(blocks: Bytes, out: Floats) -> None:
    scale = _half(blocks, 208) * blocks[:, 192:208].view(np.int8)  # [n, 16], of 16 values each
    low, high = blocks[:, :128].reshape(-1, 2, 64), blocks[:, 128:192].reshape(-1, 2, 32)
    codes = np.empty((len(blocks), 2, 4, 32), dtype=np.uint8)
    np.bitwise_and(low, 15, out=codes[:, :, :2].reshape(-1, 2, 64))
    np.right_shift(low, 4, out=codes[:, :, 2:].reshape(-1, 2, 64))
    for part in range(4):
        codes[:, :, part] |= ((high >> 2 * part) & 3) << 4
    signed = (codes - 32).view(np.int8).reshape(-1, 16, 16)
    np.multiply(signed, scale[:, :, None], out=out.reshape(-1, 16, 16), dtype=np.float32)


def _to_f32(values: Floats) -> Bytes:
    return values.view(np.uint8)


def _to_f16(values: Floats) -> Bytes:
    with np.errstate(over="ignore"):
        return values.astype(np.float16).view(np.uint8)


def _to_bf16(values: Floats) -> Bytes:
    """Round to the nearest, at a tie to the even; a NaN stays one (and becomes quiet)."""
    bits = values.view(np.uint32)
    rounded = (bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16
    if np.isnan(values).any():
        rounded = np.where(np.isnan(values), (bits >> 16) | 64, rounded)
    return rounded.astype(np.uint16).view(np.uint8)


def _inverse(scale: Floats) -> Floats:
    """1 / scale, 0 where the scale is 0 or too small to have one."""
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(1) / scale
    return np.where(np.isfinite(inverse), inverse, np.float32(0))


def _packed(scale: Floats, codes: Bytes) -> Bytes:
    with np.errstate(over="ignore"):
        return np.concatenate([scale.astype(np.float16).view(np.uint8), codes], axis=1)


def _to_q8_0(values: Floats) -> Bytes:
    """Halves are rounded away from zero, as C's roundf does."""
    scale = np.abs(values).max(axis=1, keepdims=True) / np.float32(127)
    scaled = values * _inverse(scale)
    whole = np.trunc(scaled)
    whole += np.trunc((scaled - whole) * 2)
    return _packed(scale, whole.astype(np.int8).view(np.uint8))


def _to_q4_0(values: Floats) -> Bytes:
    """The value of the largest magnitude, with its sign, becomes code 0 exactly; codes are value / scale + 8."""
    largest = np.take_along_axis(values, np.abs(values).argmax(axis=1)[:, None], axis=1)
    scale = largest / np.float32(-8)
    codes = np.minimum(values * _inverse(scale) + np.float32(8.5), np.float32(15)).astype(np.uint8)
    return _packed(scale, codes[:, :16] | (codes[:, 16:] << 4))


BLOCK_TYPES = {
    kind.code: kind
    for kind in (
        BlockType("F32", 0, 1, 4, _f32, _to_f32),
        BlockType("F16", 1, 1, 2, _f16, _to_f16),
        BlockType("Q4_0", 2, 32, 18, _q4_0, _to_q4_0),
        BlockType("Q4_1", 3, 32, 20, _q4_1),
        BlockType("Q5_0", 6, 32, 22, _q5_0),
        BlockType("Q5_1", 7, 32, 24, _q5_1),
        BlockType("Q8_0", 8, 32, 34, _q8_0, _to_q8_0),
        BlockType("Q4_K", 12, 256, 144, _q4_k),
        BlockType("Q5_K", 13, 256, 176, _q5_k),
        BlockType("Q6_K", 14, 256, 210, _q6_k),
        BlockType("BF16", 30, 1, 2, _bf16, _to_bf16),
    )
}
_UNREAD = {
    **{9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S"},
    **{20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64"},
    **{29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4"},
}


def block_type(code: int) -> BlockType:
    """The ggml type of that number; UnsupportedError names it otherwise."""
    if code not in BLOCK_TYPES:
        name = _UNREAD.get(code, f"number {code}")
        readable = ", ".join(kind.name for kind in BLOCK_TYPES.values())
        raise UnsupportedError(
            f"tensor type {name} is not read here, readable: {readable}; convert the file to one of them"
        )
    return BLOCK_TYPES[code]


def block_type_of(name: str) -> BlockType:
    """The ggml type of that name, which must be one that is written here; UnsupportedError otherwise."""
    writable = {kind.name: kind for kind in BLOCK_TYPES.values() if kind.encode is not None}
    if name not in writable:
        raise UnsupportedError(f"tensor type '{name}' is not written here, written: {', '.join(writable)}")
    return writable[name]


def dequantize_blocks(kind: BlockType, raw: Bytes, shape: tuple[int, ...]) -> Floats:
    """Bytes of a ggml tensor -> float32 of `shape` (last axis contiguous); needs no memory but its result."""
    out = np.empty(shape, dtype=np.float32)
    blocks, values = raw.reshape(-1, kind.block_bytes), out.reshape(-1, kind.block_values)
    assert len(blocks) == len(values), "the bytes are those of another shape"
    step = max(1, _CHUNK_VALUES // kind.block_values)
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        for start in range(0, len(blocks), step):
            kind.decode(blocks[start : start + step], values[start : start + step])
    return out


def quantize_blocks(kind: BlockType, values: Floats) -> Bytes:
    """float32 of any shape -> the bytes of its ggml tensor, flat. Values must be finite for the types with a scale.

    ConfigError when the last axis does not hold whole blocks.
    """
    assert kind.encode is not None, f"{kind.name} is not written"
    if values.shape[-1] % kind.block_values:
        raise ConfigError(f"{kind.name} needs rows of a multiple of {kind.block_values}, got {values.shape[-1]}")
    source = np.ascontiguousarray(values, dtype=np.float32).reshape(-1, kind.block_values)
    out = np.empty((len(source), kind.block_bytes), dtype=np.uint8)
    step = max(1, _CHUNK_VALUES // kind.block_values)
    for start in range(0, len(source), step):
        out[start : start + step] = kind.encode(source[start : start + step])
    return out.reshape(-1)
