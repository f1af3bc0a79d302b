"""The group grid of AWQ and GPTQ, and the words both pack it into. numpy only.

A code is an unsigned integer of `bits` bits; each group of `group_size` inputs of a row has an fp16 scale and a zero
point of as many bits: value = (code - zero) * scale. The zero point stays a code: zero * scale does not fit an fp16, so
an offset in its place would not be exact. O, I = outputs and inputs of a matrix; G = groups of a row.

Word layouts: AutoAWQ `gemm` (https://github.com/casper-hansen/AutoAWQ) and AutoGPTQ / GPTQModel checkpoints
(https://github.com/ModelCloud/GPTQModel), both int32 in little-endian order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from riverrun.base.errors import ConfigError, InputError

__all__ = [
    "AwqWords",
    "GptqWords",
    "GroupQuantized",
    "awq_words",
    "dequantize_groups",
    "dequantize_rows",
    "from_awq",
    "from_gptq",
    "gptq_words",
    "pack_codes",
    "quantize_groups",
    "quantize_rows",
    "unpack_codes",
]

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Words = NDArray[np.int32]

_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Nibble i of an AWQ word holds column 8c + _AWQ_ORDER[i]."""
_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True, slots=True)
class GroupQuantized:
    """An [O, I] matrix on the group grid.

    packed: uint8 [O, I * bits / 8], the codes of a row from the lowest bits of its first byte on
    scale: float16 [O, G] (float32 where a file's scales are not fp16);  zero: uint8 [O, G]
    group_of: int32 [I], the group of each input; None where groups follow each other (input // group_size)
    """

    packed: Bytes
    scale: NDArray[np.floating[Any]]
    zero: Bytes
    group_size: int
    bits: int = 4
    group_of: NDArray[np.int32] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(O, I)."""
        return self.packed.shape[0], self.packed.shape[1] * 8 // self.bits

    @property
    def nbytes(self) -> int:
        """Bytes in memory; zero points are counted at the byte they take here."""
        order = 0 if self.group_of is None else self.group_of.nbytes
        return self.packed.nbytes + self.scale.nbytes + self.zero.nbytes + order


def pack_codes(codes: Bytes, bits: int) -> Bytes:
    """[rows, n] codes below 2**bits (1, 2, 4 or 8) -> [rows, n * bits / 8] bytes, the first code in the lowest bits."""
    per = 8 // bits
    out = codes[:, 0::per].copy()
    for place in range(1, per):
        out |= codes[:, place::per] << (bits * place)
    return out


def unpack_codes(packed: Bytes, bits: int) -> Bytes:
    """The inverse of `pack_codes`."""
    per = 8 // bits
    out = np.empty((packed.shape[0], packed.shape[1] * per), dtype=np.uint8)
    for place in range(per):
        np.bitwise_and(packed >> (bits * place), (1 << bits) - 1, out=out[:, place::per])
    return out


def quantize_groups(weight: Floats, group_size: int, *, shrink_steps: int = 12) -> GroupQuantized:
    """Round [O, I] to 4 bits per value with scale and zero point per group of a row.

    Each group's range [min(w, 0), max(w, 0)] is tried at `shrink_steps` sizes (1.0 down to 0.7 of it) and the one
    with the smallest squared error is kept; shrink_steps = 1 is plain round-to-nearest.
    """
    out, into = weight.shape
    if group_size < 2 or group_size % 2 or into % group_size:
        fits = [size for size in (128, 64, 32, 16, 8) if not into % size]
        hint = f"try {' or '.join(map(str, fits[:2]))}" if fits else "these rows hold no groups"
        raise ConfigError(f"group_size {group_size} must be even and divide the input size {into}: {hint}")
    if not np.isfinite(weight).all():
        raise InputError("weights that are not finite (NaN or infinity) cannot be rounded to a grid: fetch them again")
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
    return GroupQuantized(pack_codes(codes, 4), scale[:, :, 0], zero[:, :, 0].astype(np.uint8), group_size)


def dequantize_groups(matrix: GroupQuantized) -> Floats:
    """The float32 [O, I] matrix that the codes stand for; exact: a product has at most 8 + 11 bits."""
    outputs, inputs = matrix.shape
    out = np.empty((outputs, inputs), dtype=np.float32)
    even = matrix.group_of is None and inputs % matrix.group_size == 0
    columns = matrix.group_of if matrix.group_of is not None else np.arange(inputs) // matrix.group_size
    step = max(1, _CHUNK_BYTES // (4 * inputs))
    for start in range(0, outputs, step):
        rows = slice(start, start + step)
        codes = unpack_codes(matrix.packed[rows], matrix.bits)
        scale, zero = matrix.scale[rows].astype(np.float32), matrix.zero[rows].astype(np.float32)
        if even:
            parts = out[rows].reshape(len(codes), -1, matrix.group_size)
            np.subtract(codes.reshape(parts.shape), zero[:, :, None], out=parts)
            parts *= scale[:, :, None]
        else:
            np.subtract(codes, zero[:, columns], out=out[rows])
            out[rows] *= scale[:, columns]
    return out


@dataclass(frozen=True, slots=True)
class AwqWords:
    """qweight int32 [I, O / 8]; qzeros int32 [G, O / 8]; scales [G, O]."""

    qweight: Words
    qzeros: Words
    scales: NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class GptqWords:
    """qweight int32 [I * bits / 32, O]; qzeros int32 [G, O * bits / 32]; scales [G, O]; g_idx int32 [I]."""

    qweight: Words
    qzeros: Words
    scales: NDArray[np.floating[Any]]
    g_idx: NDArray[np.int32]


def _to_awq(codes: Bytes) -> Words:
    """4-bit codes [rows, columns] -> AWQ words [rows, columns / 8]."""
    eights = codes.reshape(len(codes), -1, 8)[:, :, _AWQ_ORDER].reshape(codes.shape)
    return pack_codes(eights, 4).view("<i4")


def _awq_codes(words: Words) -> Bytes:
    """AWQ words [rows, n] -> 4-bit codes [rows, 8n]."""
    packed = np.ascontiguousarray(words, dtype="<i4").view(np.uint8).reshape(len(words), -1, 4)
    out = np.empty((*packed.shape[:2], 8), dtype=np.uint8)
    for byte in range(4):  # bytes hold columns (0, 2), (4, 6), (1, 3), (5, 7)
        np.bitwise_and(packed[:, :, byte], 15, out=out[:, :, _AWQ_ORDER[2 * byte]])
        np.right_shift(packed[:, :, byte], 4, out=out[:, :, _AWQ_ORDER[2 * byte + 1]])
    return out.reshape(len(words), -1)


def awq_words(matrix: GroupQuantized) -> AwqWords:
    """The matrix as an AWQ `gemm` checkpoint stores it. ConfigError names what that layout cannot hold."""
    outputs, inputs = matrix.shape
    if matrix.bits != 4 or matrix.group_of is not None:
        what = f"{matrix.bits} bits" if matrix.bits != 4 else "groups of scattered inputs"
        raise ConfigError(f"AWQ holds 4 bits and groups that follow each other, not {what}: write GPTQ")
    if outputs % 8 or inputs % matrix.group_size:
        raise ConfigError(
            f"AWQ needs outputs of a multiple of 8 and inputs of a multiple of the group size {matrix.group_size}, "
            f"the matrix is {[outputs, inputs]}"
        )
    qweight = np.empty((inputs, outputs // 8), dtype="<u4")
    rows = matrix.packed.reshape(outputs // 8, 8, inputs // 2)
    low, high = np.uint32(0x0F0F0F0F), np.uint32(0xF0F0F0F0)
    for piece in _pieces(outputs // 8, inputs):
        first, second = (np.empty((*rows[piece, 0].shape, 4), dtype=np.uint8) for _ in range(2))
        for byte in range(4):  # codes of two inputs in each byte, of four outputs in each word
            first[:, :, byte] = rows[piece, _AWQ_ORDER[2 * byte]]
            second[:, :, byte] = rows[piece, _AWQ_ORDER[2 * byte + 1]]
        a, b = first.view("<u4")[:, :, 0], second.view("<u4")[:, :, 0]
        qweight[0::2, piece] = ((a & low) | ((b & low) << 4)).T
        qweight[1::2, piece] = (((a & high) >> 4) | (b & high)).T
    zeros = _to_awq(np.ascontiguousarray(matrix.zero.T))
    return AwqWords(qweight.view("<i4"), zeros, np.ascontiguousarray(matrix.scale.T))


def _pieces(words: int, inputs: int) -> list[slice]:
    """Columns of words that are turned together."""
    step = max(1, _CHUNK_BYTES // (16 * inputs))
    return [slice(start, start + step) for start in range(0, words, step)]


def from_awq(words: AwqWords, group_size: int) -> GroupQuantized:
    """The inverse of `awq_words`; shapes must fit each other (io/groups checks those of a file)."""
    inputs, eighths = words.qweight.shape
    rows = np.empty((eighths, 8, inputs // 2), dtype=np.uint8)
    qweight = np.ascontiguousarray(words.qweight, dtype="<i4").view("<u4")
    low, high = np.uint32(0x0F0F0F0F), np.uint32(0xF0F0F0F0)
    for piece in _pieces(eighths, inputs):
        even, odd = (np.ascontiguousarray(qweight[start::2, piece].T) for start in (0, 1))
        first = ((even & low) | ((odd & low) << 4)).view(np.uint8).reshape(*even.shape, 4)
        second = (((even & high) >> 4) | (odd & high)).view(np.uint8).reshape(*even.shape, 4)
        for byte in range(4):  # as in awq_words
            rows[piece, _AWQ_ORDER[2 * byte]] = first[:, :, byte]
            rows[piece, _AWQ_ORDER[2 * byte + 1]] = second[:, :, byte]
    packed = rows.reshape(8 * eighths, -1)
    zero = np.ascontiguousarray(_awq_codes(words.qzeros).T)
    return GroupQuantized(packed, np.ascontiguousarray(words.scales.T), zero, group_size)


def gptq_words(matrix: GroupQuantized, *, minus_one: bool = True) -> GptqWords:
    """The matrix as a GPTQ checkpoint stores it; `minus_one`: format v1 (zero - 1), else gptq_v2.

    A zero point 0 is -1 there, which is stored as the largest code and read back as 0.
    """
    outputs, inputs = matrix.shape
    per = 32 // matrix.bits
    if outputs % per or inputs % per:
        raise ConfigError(
            f"GPTQ of {matrix.bits} bits needs sizes of a multiple of {per}, the matrix is {[outputs, inputs]}"
        )
    qweight = np.ascontiguousarray(matrix.packed.view("<i4").T)
    stored = (matrix.zero - minus_one) & np.uint8((1 << matrix.bits) - 1)
    qzeros = pack_codes(np.ascontiguousarray(stored.T), matrix.bits).view("<i4")
    g_idx = matrix.group_of
    if g_idx is None:
        g_idx = (np.arange(inputs) // matrix.group_size).astype(np.int32)
    return GptqWords(qweight, qzeros, np.ascontiguousarray(matrix.scale.T), g_idx)


def from_gptq(words: GptqWords, group_size: int, bits: int, *, minus_one: bool = True) -> GroupQuantized:
    """The inverse of `gptq_words`; shapes must fit each other and g_idx name groups that exist."""
    packed = np.ascontiguousarray(np.asarray(words.qweight, dtype="<i4").T).view(np.uint8)
    zeros = unpack_codes(np.ascontiguousarray(words.qzeros, dtype="<i4").view(np.uint8), bits)
    zeros = (zeros + np.uint8(minus_one)) & np.uint8((1 << bits) - 1)
    in_order = np.array_equal(words.g_idx, np.arange(len(words.g_idx)) // group_size)
    group_of = None if in_order else np.asarray(words.g_idx, dtype=np.int32)
    scale = np.ascontiguousarray(words.scales.T)
    return GroupQuantized(packed, scale, np.ascontiguousarray(zeros.T), group_size, bits, group_of)


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
