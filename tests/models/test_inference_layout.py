"""Packed weights give the results of plain ones; pages of the cache are taken when they are written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from riverrun.models.attention import PackedCausal
from riverrun.models.lora import FusedLinear
from riverrun.models.paged import PagedCache
from riverrun.models.products import PackedWeight
from riverrun.models.transformer import CausalLM
from tests.tiny_model import tiny_config


def make(dtype: torch.dtype = torch.float64) -> CausalLM:
    torch.manual_seed(7)
    model = CausalLM(tiny_config(), dtype)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.1)
    return model


def test_a_block_takes_only_the_pages_it_writes() -> None:
    """262,144 tokens reserve 0.5 GB here; a few blocks may take a few MB."""

    def resident() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) * 1024

    if not Path("/proc/self/status").exists():
        pytest.skip("not run here: there is no /proc")
    before = resident()
    cache = PagedCache(tiny_config(), 16384, 16, torch.float32)
    for layer in [*cache.keys, *cache.values]:
        layer[::16] = 1.0
    reserved = sum(layer.nbytes for layer in [*cache.keys, *cache.values])
    assert resident() - before < reserved / 4
    assert float(cache.keys[0][16, 0, 3, 0]) == 1.0
    assert float(cache.keys[0][17].abs().max()) == 0.0


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
