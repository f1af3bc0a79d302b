"""Packed weights, a prefix read once for many rows, pages taken when written: the same results as the plain forms."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from riverrun.models.attention import PackedCausal, grouped_attention, prefixed_attention
from riverrun.models.cache import SlotAttend, SlotCache
from riverrun.models.lora import FusedLinear
from riverrun.models.products import PackedWeight
from riverrun.models.transformer import CausalLM
from tests.tiny_model import tiny_config


def make(dtype: torch.dtype = torch.float64) -> CausalLM:
    torch.manual_seed(7)
    model = CausalLM(tiny_config(), dtype)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.1)
    return model


@settings(derandomize=True, max_examples=25, deadline=None)
@given(
    st.integers(1, 5), st.integers(1, 3), st.integers(1, 4), st.integers(1, 9), st.integers(1, 7), st.integers(0, 99)
)
def test_a_prefix_read_once_equals_a_prefix_in_every_row(
    batch: int, kv_heads: int, length: int, prefix: int, own: int, seed: int
) -> None:
    source = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=source)

    q, k, v = (
        draw(batch, kv_heads, 3, length, 8),
        draw(batch, kv_heads, own, 8),
        draw(batch, kv_heads, own, 8),
    )
    before = (draw(kv_heads, prefix, 8), draw(kv_heads, prefix, 8))
    hidden = torch.rand(batch, length, own, generator=source) < 0.3
    mask = torch.zeros(batch, length, own, dtype=torch.float64).masked_fill(hidden, float("-inf"))
    whole = [
        torch.cat([part.expand(batch, -1, -1, -1), rest], dim=2) for part, rest in zip(before, (k, v), strict=True)
    ]
    seen = torch.cat([torch.zeros(batch, length, prefix, dtype=torch.float64), mask], dim=2)
    expected = grouped_attention(q, *whole, seen)
    assert torch.allclose(prefixed_attention(q, k, v, mask, before), expected, atol=1e-12)


def test_slots_with_a_common_beginning_equal_slots_without() -> None:
    model = make()
    beginning = torch.randint(0, model.config.vocab_size, (40,))
    answers = {}
    for common in (0, 40):
        cache = SlotCache(model.config, 3, 64, model.dtype)
        first = SlotAttend(cache, [0], [40])
        model(beginning, first.positions, first)
        first.commit()
        for slot in (1, 2):
            cache.copy_prefix(0, slot, 40)
        attend = SlotAttend(cache, [0, 1, 2], [2, 1, 3], common)
        answers[common] = model(torch.tensor([3, 4, 5, 6, 7, 8]), attend.positions, attend)
    assert torch.allclose(answers[0], answers[40], atol=1e-12)


def test_a_slot_takes_only_the_pages_it_writes() -> None:
    """64 slots of 4096 tokens reserve 0.5 GB here; a few tokens in each may take a few MB."""

    def resident() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) * 1024

    if not Path("/proc/self/status").exists():
        pytest.skip("not run here: there is no /proc")
    config = tiny_config()
    before = resident()
    cache = SlotCache(config, 64, 4096, torch.float32)
    for layer in [*cache.keys, *cache.values]:
        layer[:, :, :4] = 1.0
    reserved = sum(layer.nbytes for layer in [*cache.keys, *cache.values])
    assert resident() - before < reserved / 4
    assert float(cache.keys[0][5, 0, 3, 0]) == 1.0
    assert float(cache.keys[0][5, 0, 4:].abs().max()) == 0.0


def test_packed_weights_multiply_alike() -> None:
    weight = torch.randn(96, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    packed = PackedWeight.of(weight)
    if packed is None:
        assert not torch.cpu._is_avx512_bf16_supported()
        return
    for rows in (1, 3, 32):
        x = torch.randn(rows, 64, generator=torch.Generator().manual_seed(rows)).bfloat16()
        exact = x.double() @ weight.double().T
        assert float((packed(x).double() - exact).abs().max()) <= 2**-8 * float(exact.abs().max())
    assert PackedWeight.of(weight.float()) is None


def test_a_packed_model_answers_as_before_in_bf16() -> None:
    plain, packed = make(torch.bfloat16), make(torch.bfloat16)
    packed.pack()
    ids = torch.arange(12)
    attend = PackedCausal(0, [12], dtype=torch.bfloat16)
    wanted = plain.logits(plain(ids, attend.positions, attend)).float()
    got = packed.logits(packed(ids, attend.positions, attend)).float()
    assert float((got - wanted).abs().max()) <= 0.03 * float(wanted.abs().max())


def test_a_matrix_with_an_adapter_is_not_packed() -> None:
    matrix = FusedLinear({"q_proj": 8}, 8, torch.float32)
    matrix.add_adapter("q_proj", 2, 4.0, torch.Generator())
    with pytest.raises(AssertionError, match="take_adapters"):
        matrix.pack()
