"""Grids and packings: ggml blocks against the gguf package to the bit, AWQ and GPTQ words, NF4."""

from __future__ import annotations

import warnings

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from riverrun.base.errors import ConfigError, UnsupportedError
from riverrun.models.quantized import (
    BLOCK_TYPES,
    NF4_LEVELS,
    AwqWords,
    GptqWords,
    GroupQuantized,
    Nf4,
    awq_words,
    block_type,
    block_type_of,
    dequantize_blocks,
    dequantize_groups,
    dequantize_nf4,
    dynamic_levels,
    from_awq,
    from_gptq,
    gptq_words,
    pack_codes,
    quantize_blocks,
    quantize_groups,
    quantize_nf4,
    unpack_codes,
)
from tests.models.tiny import quick

# fp16 scales that are easily got wrong: zeros, denormals, infinities, NaNs with payloads, the largest
SPECIAL = np.array([0, 0x8000, 1, 0x83FF, 0x7C00, 0xFC00, 0x7E00, 0x7C01, 0xFDFF, 0x3C00, 0x7BFF], dtype="<u2")
SCALES = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "F32": (), "BF16": (0,)}
WRITTEN = [kind for kind in BLOCK_TYPES.values() if kind.encode]


def reference(raw: np.ndarray, kind) -> np.ndarray:
    with np.errstate(all="ignore"):
        return np.asarray(gguf.dequantize(raw, gguf.GGMLQuantizationType(kind.code)), dtype=np.float32)


@pytest.mark.parametrize("kind", BLOCK_TYPES.values(), ids=lambda kind: kind.name)
@quick(8)
@given(seed=st.integers(0, 10_000), count=st.sampled_from([1, 7, 300, 2100]))
def test_blocks_equal_the_gguf_package_to_the_bit(kind, seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, (count, kind.block_bytes), dtype=np.uint8)
    for place in SCALES.get(kind.name, (0,)):
        rows = rng.random(count) < 0.5
        raw[rows, place : place + 2] = rng.choice(SPECIAL, rows.sum()).view(np.uint8).reshape(-1, 2)
    ours = dequantize_blocks(kind, raw.reshape(-1), (count, kind.block_values))
    assert np.array_equal(ours.view(np.uint32), reference(raw, kind).view(np.uint32))


def test_block_sizes_are_those_of_the_gguf_package() -> None:
    for kind in BLOCK_TYPES.values():
        assert (kind.block_values, kind.block_bytes) == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind.name]]
        assert kind.bytes_of((3, 512)) == 3 * 512 // kind.block_values * kind.block_bytes


@pytest.mark.parametrize("kind", WRITTEN, ids=lambda kind: kind.name)
@quick(15)
@given(seed=st.integers(0, 10_000), form=st.sampled_from(["normal", "halves", "ties", "zeros", "tiny"]))
def test_encoding_equals_the_gguf_package_to_the_byte(kind, seed: int, form: str) -> None:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((20, 1024)).astype(np.float32)
    if form == "halves":  # every code lies between two: 127 is the largest, so the scale is 1
        values = np.round(values * 8) / 2
        values[:, ::32] = 127
    elif form == "ties":  # the two signs of the largest magnitude stand in one block
        values = rng.choice(np.array([-2, -1, 0, 1, 2], dtype=np.float32), values.shape)
    elif form in ("zeros", "tiny"):
        values *= 0 if form == "zeros" else np.float32(1e-9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = gguf.quants.quantize(values, gguf.GGMLQuantizationType(kind.code)).view(np.uint8).reshape(-1)
    assert np.array_equal(quantize_blocks(kind, values), theirs)


def test_bf16_rounds_to_the_even_and_keeps_what_is_no_number() -> None:
    bits = np.array([0x3F808000, 0x3F818000, 0x7F800000, 0x7F800001, 0xFFFFFFFF, 0x7F7FFFFF], dtype=np.uint32)
    out = quantize_blocks(block_type_of("BF16"), bits.view(np.float32)).view(np.uint16)
    assert [hex(value) for value in out] == ["0x3f80", "0x3f82", "0x7f80", "0x7fc0", "0xffff", "0x7f80"]


def test_types_that_are_not_read_or_written_are_named() -> None:
    for code, name in ((10, "Q2_K"), (11, "Q3_K"), (20, "IQ4_NL"), (39, "MXFP4"), (77, "number 77")):
        with pytest.raises(UnsupportedError, match=f"tensor type {name} is not read here, readable: F32, F16"):
            block_type(code)
    with pytest.raises(UnsupportedError, match="'Q4_K' is not written here, written: F32, F16, Q4_0, Q8_0, BF16"):
        block_type_of("Q4_K")
    with pytest.raises(ConfigError, match="Q8_0 needs rows of a multiple of 32, got 33"):
        quantize_blocks(block_type_of("Q8_0"), np.zeros((2, 33), dtype=np.float32))


def test_the_published_vectors_of_the_words() -> None:
    codes = np.tile(np.arange(8, dtype=np.uint8), (8, 1))
    one = np.ones((8, 1), dtype=np.float16)
    by_column = GroupQuantized(pack_codes(np.ascontiguousarray(codes.T), 4), one, np.full((8, 1), 8, np.uint8), 8)
    assert {hex(word) for word in awq_words(by_column).qweight[:, 0]} == {"0x75316420"}
    by_row = GroupQuantized(pack_codes(codes, 4), one, np.full((8, 1), 8, np.uint8), 8)
    v1, v2 = gptq_words(by_row), gptq_words(by_row, minus_one=False)
    assert {hex(word) for word in v1.qweight[0]} == {"0x76543210"}
    assert (v1.qzeros.view(np.uint32)[0, 0], v2.qzeros.view(np.uint32)[0, 0]) == (0x77777777, 0x88888888)
    weight = np.array([[-1, -0.5, 0, 0.25, 0.5, 1]], dtype=np.float32)
    rounded = quantize_groups(weight, 6, shrink_steps=1)
    assert unpack_codes(rounded.packed, 4).tolist() == [[0, 4, 8, 10, 12, 15]]
    assert rounded.zero.tolist() == [[8]]


def grid(seed: int, bits: int, *, scattered: bool = False) -> GroupQuantized:
    rng = np.random.default_rng(seed)
    codes, most = rng.integers(0, 1 << bits, (64, 128), dtype=np.uint8), 1 << bits
    scale, zero = rng.random((64, 4)).astype(np.float16), rng.integers(0, most, (64, 4), dtype=np.uint8)
    order = rng.permutation(np.arange(128, dtype=np.int32) // 32) if scattered else None
    return GroupQuantized(pack_codes(codes, bits), scale, zero, 32, bits, order)


def same(first: GroupQuantized, second: GroupQuantized) -> bool:
    parts = ("packed", "scale", "zero")
    return all(np.array_equal(getattr(first, part), getattr(second, part)) for part in parts) and (
        (first.group_of is None) == (second.group_of is None)
    )


@quick(20)
@given(seed=st.integers(0, 10_000), bits=st.sampled_from([2, 4, 8]), scattered=st.booleans(), v1=st.booleans())
def test_words_lose_nothing(seed: int, bits: int, scattered: bool, v1: bool) -> None:
    matrix = grid(seed, bits, scattered=scattered)
    words = gptq_words(matrix, minus_one=v1)
    back = from_gptq(words, 32, bits, minus_one=v1)
    assert same(matrix, back)
    codes = unpack_codes(matrix.packed, bits).astype(np.float64)
    column = matrix.group_of if scattered else np.arange(128) // 32
    wanted = (codes - matrix.zero[:, column]) * matrix.scale.astype(np.float64)[:, column]
    assert np.array_equal(dequantize_groups(back), wanted.astype(np.float32))
    # the formula of the GPTQ layout, by itself
    row, shift = np.arange(128) * bits // 32, np.arange(128) * bits % 32
    told = (words.qweight.view(np.uint32)[row] >> shift[:, None].astype(np.uint32)) & ((1 << bits) - 1)
    assert np.array_equal(told.T, codes)
    if bits == 4 and not scattered:
        assert same(matrix, from_awq(awq_words(matrix), 32))
        assert isinstance(awq_words(matrix), AwqWords)
    assert isinstance(words, GptqWords)


def test_what_awq_and_gptq_cannot_hold_is_said() -> None:
    with pytest.raises(ConfigError, match="not 8 bits: write GPTQ"):
        awq_words(grid(0, 8))
    with pytest.raises(ConfigError, match="not groups of scattered inputs"):
        awq_words(grid(0, 4, scattered=True))
    odd = quantize_groups(np.ones((6, 64), dtype=np.float32), 32)
    with pytest.raises(ConfigError, match=r"multiple of 8 .* the matrix is \[6, 64\]"):
        awq_words(odd)
    with pytest.raises(ConfigError, match=r"multiple of 8, the matrix is \[6, 64\]"):
        gptq_words(odd)


def test_nf4_levels_and_order_of_nibbles() -> None:
    tensor = quantize_nf4(np.tile(NF4_LEVELS, 4) * np.float32(3), double=False)
    assert tensor.packed[:8].tolist() == [0x01, 0x23, 0x45, 0x67, 0x89, 0xAB, 0xCD, 0xEF]
    assert np.array_equal(dequantize_nf4(tensor), np.tile(NF4_LEVELS, 4) * np.float32(3))
    levels = dynamic_levels()
    assert (len(levels), levels[0], levels[127], levels[255]) == (256, np.float32(-0.99296875), 0.0, 1.0)
    assert np.all(np.diff(levels) > 0)
    middle = (NF4_LEVELS[7] + NF4_LEVELS[8]) / np.float32(2)  # a value on the border takes the lower level
    row = np.array([1.0, middle, np.nextafter(middle, np.float32(1)), 0] * 16, dtype=np.float32)
    assert quantize_nf4(row, double=False).packed[:2].tolist() == [0xF7, 0x87]


@quick(15)
@given(seed=st.integers(0, 10_000), double=st.booleans())
def test_nf4_takes_the_nearest_level_and_its_stored_form_is_exact(seed: int, double: bool) -> None:
    rng = np.random.default_rng(seed)
    weight = (rng.standard_normal((24, 1000)) * rng.random((24, 1))).astype(np.float32)[:, :960]
    weight[3] = 0
    tensor = quantize_nf4(weight, double=double)
    bits = tensor.nbytes * 8 / weight.size
    assert bits == pytest.approx(4.127 if double else 4.5, abs=0.05)
    absmax = np.abs(weight.reshape(-1, 64)).max(axis=1)
    stored = absmax
    if double:
        assert tensor.absmax_scale is not None
        codes, scales = tensor.absmax, np.repeat(tensor.absmax_scale, 256)[: len(absmax)]
        stored = dynamic_levels()[codes] * scales + np.float32(tensor.absmax_mean)
        assert np.abs(stored - absmax).max() <= 0.01 * scales.max()
    nibbles = np.stack([tensor.packed >> 4, tensor.packed & 15], axis=1).reshape(-1, 64)
    values = dequantize_nf4(tensor)
    assert np.array_equal(values, (NF4_LEVELS[nibbles] * stored[:, None]).reshape(weight.shape))
    scaled = weight.reshape(-1, 64) / np.maximum(absmax, 1e-30)[:, None]
    best = np.abs(scaled[:, :, None] - NF4_LEVELS).min(axis=2)
    assert np.allclose(np.abs(scaled - NF4_LEVELS[nibbles]), best, atol=1e-6)
    again = Nf4(tensor.packed, tensor.absmax, tensor.shape, 64, tensor.absmax_scale, tensor.absmax_mean)
    assert np.array_equal(dequantize_nf4(again), values)


def test_nf4_needs_whole_blocks() -> None:
    with pytest.raises(ConfigError, match="NF4 block 64 must be even and divide the tensor's size 100"):
        quantize_nf4(np.zeros(100, dtype=np.float32))
