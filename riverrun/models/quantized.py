"""Every quantisation grid and packing, once. numpy only.

Block layouts are those of ggml (`ggml-common.h`, `ggml-quants.c`); the group grid is that of AWQ and
GPTQ: unsigned 4-bit codes, an fp16 scale and a 4-bit zero point per `group_size` values of a row;
value = (code - zero) * scale.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from riverrun.base.errors import ConfigError, UnsupportedError

__all__ = [
    "BLOCK_TYPES",
    "BlockType",
    "GroupQuantized",
    "block_type",
    "dequantize_blocks",
    "dequantize_groups",
    "dequantize_rows",
    "quantize_groups",
    "quantize_rows",
]

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class BlockType:
    """A ggml tensor type: `block_values` values stand in `block_bytes` bytes."""

    name: str
    code: int
    block_values: int
    block_bytes: int
    decode: Callable[[Bytes], Floats]


def _half(blocks: Bytes, start: int) -> Floats:
    return blocks[:, start : start + 2].copy().view(np.float16).astype(np.float32)  # [n, 1]


def _nibbles(packed: Bytes) -> Floats:
    """[n, 16] bytes -> [n, 32]: low nibbles are values 0..15, high nibbles 16..31."""
    return np.concatenate([packed & 15, packed >> 4], axis=1).astype(np.float32)


def _f32(blocks: Bytes) -> Floats:
    return blocks.view(np.float32)


def _f16(blocks: Bytes) -> Floats:
    return blocks.view(np.float16).astype(np.float32)


def _bf16(blocks: Bytes) -> Floats:
    return (blocks.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def _q4_0(blocks: Bytes) -> Floats:
    return (_nibbles(blocks[:, 2:]) - 8) * _half(blocks, 0)


def _q4_1(blocks: Bytes) -> Floats:
    return _nibbles(blocks[:, 4:]) * _half(blocks, 0) + _half(blocks, 2)


def _q8_0(blocks: Bytes) -> Floats:
    return blocks[:, 2:].view(np.int8).astype(np.float32) * _half(blocks, 0)


BLOCK_TYPES = {
    kind.code: kind
    for kind in (
        BlockType("F32", 0, 1, 4, _f32),
        BlockType("F16", 1, 1, 2, _f16),
        BlockType("Q4_0", 2, 32, 18, _q4_0),
        BlockType("Q4_1", 3, 32, 20, _q4_1),
        BlockType("Q8_0", 8, 32, 34, _q8_0),
        BlockType("BF16", 30, 1, 2, _bf16),
    )
}
_KNOWN_UNREAD = {6: "Q5_0", 7: "Q5_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K"}


def block_type(code: int) -> BlockType:
    """The ggml type of that number; UnsupportedError names it otherwise."""
    if code not in BLOCK_TYPES:
        name = _KNOWN_UNREAD.get(code, f"number {code}")
        readable = ", ".join(kind.name for kind in BLOCK_TYPES.values())
        raise UnsupportedError(
            f"tensor type {name} is not read here, readable: {readable}; convert the file to one of them"
        )
    return BLOCK_TYPES[code]


def dequantize_blocks(kind: BlockType, raw: Bytes, shape: tuple[int, ...]) -> Floats:
    """Bytes of a ggml tensor -> float32 of `shape` (last axis contiguous), equal to the bit to the `gguf` package."""
    if kind.block_values == 1:
        return kind.decode(raw).reshape(shape)
    return kind.decode(raw.reshape(-1, kind.block_bytes)).reshape(shape)


@dataclass(frozen=True, slots=True)
class GroupQuantized:
    """A [out, in] matrix on the group grid.

    packed: uint8 [out, in / 2], value 2j in the low nibble, 2j + 1 in the high one
    scale: float16 [out, in / group_size];  zero: uint8 [out, in / group_size], 0..15
    """

    packed: Bytes
    scale: NDArray[np.float16]
    zero: Bytes
    group_size: int

    @property
    def nbytes(self) -> int:
        """Bytes on disk; zero points are counted at the byte they take here."""
        return self.packed.nbytes + self.scale.nbytes + self.zero.nbytes


def quantize_groups(weight: Floats, group_size: int, *, shrink_steps: int = 12) -> GroupQuantized:
    """Round [out, in] to 4 bits per value with scale and zero point per group of a row.

    Each group's range [min(w, 0), max(w, 0)] is tried at `shrink_steps` sizes (1.0 down to 0.7 of it) and the one
    with the smallest squared error is kept; shrink_steps = 1 is plain round-to-nearest.
    """
    out, into = weight.shape
    if group_size % 2 or into % group_size:
        raise ConfigError(f"group_size {group_size} must be even and divide the input size {into}: try 64 or 32")
    groups = weight.reshape(out, into // group_size, group_size)  # [O, G, g]
    low = np.minimum(groups.min(axis=2, keepdims=True), 0)
    high = np.maximum(groups.max(axis=2, keepdims=True), 0)
    best_error = np.full(low.shape, np.inf, dtype=np.float32)
    scale = np.ones(low.shape, dtype=np.float16)
    zero = np.zeros(low.shape, dtype=np.float32)
    for shrink in np.linspace(1.0, 0.7, shrink_steps, dtype=np.float32):
        trial_scale = np.maximum((high - low) * shrink / 15, 1e-7).astype(np.float16)
        wide = trial_scale.astype(np.float32)
        trial_zero = np.clip(np.round(-low * shrink / wide), 0, 15)
        codes = np.clip(np.round(groups / wide) + trial_zero, 0, 15)
        error = np.square((codes - trial_zero) * wide - groups).sum(axis=2, keepdims=True)
        better = error < best_error
        best_error = np.where(better, error, best_error)
        scale = np.where(better, trial_scale, scale)
        zero = np.where(better, trial_zero, zero)
    codes = np.clip(np.round(groups / scale.astype(np.float32)) + zero, 0, 15).astype(np.uint8).reshape(out, into)
    packed: Bytes = np.bitwise_or(codes[:, 0::2], np.left_shift(codes[:, 1::2], 4), dtype=np.uint8)
    return GroupQuantized(packed, scale[:, :, 0], zero[:, :, 0].astype(np.uint8), group_size)


def dequantize_groups(matrix: GroupQuantized) -> Floats:
    """The float32 [out, in] matrix that the codes stand for."""
    out, half = matrix.packed.shape
    codes = np.empty((out, half * 2), dtype=np.float32)
    codes[:, 0::2] = matrix.packed & 15
    codes[:, 1::2] = matrix.packed >> 4
    groups = codes.reshape(out, -1, matrix.group_size)
    values = (groups - matrix.zero[:, :, None].astype(np.float32)) * matrix.scale[:, :, None].astype(np.float32)
    return values.reshape(out, half * 2)


def quantize_rows(weight: Floats) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """[rows, columns] -> int8 codes of the same shape and fp16 scales per 32 values (the grid of ggml's Q8_0)."""
    rows, columns = weight.shape
    if columns % 32:
        raise ConfigError(f"8-bit blocks need columns divisible by 32, got {columns}")
    blocks = weight.reshape(rows, columns // 32, 32)
    scale = (np.abs(blocks).max(axis=2) / 127).astype(np.float16)
    inverse = np.where(scale > 0, 1 / np.maximum(scale.astype(np.float32), 1e-30), 0)
    codes = np.clip(np.round(blocks * inverse[:, :, None]), -127, 127).astype(np.int8)
    return codes.reshape(rows, columns), scale


def dequantize_rows(codes: NDArray[np.int8], scale: NDArray[np.float16]) -> Floats:
    """The float32 matrix of `quantize_rows`."""
    rows, columns = codes.shape
    return (codes.reshape(rows, -1, 32).astype(np.float32) * scale.astype(np.float32)[:, :, None]).reshape(
        rows, columns
    )
