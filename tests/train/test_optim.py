"""Optimizers against torch's own, against the published 8-bit algorithm, and what rounding does to them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from riverrun.base.errors import IntegrityError
from riverrun.models import native
from riverrun.train.eightbit import BLOCK, CHUNK, LEAST, adamw8bit_, dequantize, dynamic_map, empty_state, quantize
from riverrun.train.optim import Optimizer, joined, newton_schulz, round_at_random, split
from riverrun.train.recipe import OptimizerConfig

VECTORS = json.loads((Path(__file__).parent / "bitsandbytes.json").read_text())
SETTINGS = {"learning_rate": 1.0, "weight_decay": 0.1, "betas": (0.9, 0.95)}
RATE = 3e-2


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def moved(
    start: dict[str, Tensor], config: OptimizerConfig, steps: int = 6, scale: float = 1.0, **more: object
) -> dict[str, Tensor]:
    """Parameters after `steps` of gradients that are the same for every way of computing them."""
    values = {name: tensor.clone() for name, tensor in start.items()}
    optimizer = Optimizer(values, config, **more)  # type: ignore[arg-type]
    for step in range(steps):
        grads = {name: gradient(tensor, step) / scale for name, tensor in values.items()}
        optimizer.step({n: g.to(values[n].dtype) for n, g in grads.items()}, RATE, scale=scale, watch=step == 0)
    return values


def gradient(tensor: Tensor, step: int) -> Tensor:
    """Representable in bfloat16, so that no path rounds it."""
    return drawn(*tensor.shape, seed=step + tensor.numel()).bfloat16().float()


def of_torch(make: Callable[[Tensor, float], torch.optim.Optimizer], start: Tensor, decay: float) -> Tensor:
    value = start.clone().float().requires_grad_()
    optimizer = make(value, decay)
    for step in range(6):
        value.grad = gradient(start, step)
        optimizer.step()
    return value.detach()


def adamw(value: Tensor, decay: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW([value], lr=RATE, betas=(0.9, 0.95), weight_decay=decay)


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_adamw_is_that_of_torch_and_only_matrices_decay(scale: float) -> None:
    start = {"w": drawn(40, 30), "norm": drawn(30)}
    got = moved(start, OptimizerConfig(**SETTINGS), scale=scale)
    assert torch.allclose(got["w"], of_torch(adamw, start["w"], 0.1), rtol=1e-5, atol=1e-6)
    assert torch.allclose(got["norm"], of_torch(adamw, start["norm"], 0.0), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(got["w"], of_torch(adamw, start["w"], 0.0), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kernels", [True, False])
def test_16_bit_weights_are_the_rounded_master(
    dtype: torch.dtype, kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kernels:
        monkeypatch.setattr(native, "fits", lambda *_: False)
    start = {"w": drawn(40, 30).to(dtype)}
    values = {"w": start["w"].clone()}
    optimizer = Optimizer(values, OptimizerConfig(**SETTINGS))
    for step in range(6):
        optimizer.step({"w": gradient(start["w"], step).to(dtype)}, RATE)
    if dtype == torch.bfloat16:  # the weight is the upper half of its master
        master = joined(values["w"], optimizer.tensors()["low/w"])
        assert float((values["w"].float() - master).abs().max()) > 0
    else:
        master = optimizer.tensors()["master/w"]
    assert torch.equal(values["w"], master.to(dtype))
    wanted = of_torch(adamw, start["w"], 0.1)
    assert torch.allclose(master, wanted, rtol=1e-3 if dtype == torch.float16 else 1e-5, atol=1e-5)


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=40))
def test_halves_hold_every_fp32_number_and_the_upper_one_is_it_rounded(values: list[float]) -> None:
    value = torch.tensor(values)
    weight, low = torch.empty(len(values), dtype=torch.bfloat16), torch.empty(len(values), dtype=torch.int16)
    split(value, weight, low)
    assert torch.equal(joined(weight, low).view(torch.int32), value.view(torch.int32)), "to the bit"
    tie = (value.view(torch.int32) & 0xFFFF) == 0x8000  # the only numbers where two roundings are as near
    assert torch.equal(weight[~tie], value.to(torch.bfloat16)[~tie])


@pytest.mark.parametrize("name", ["adamw", "adamw8bit", "muon"])
def test_kernels_and_torch_move_both_halves_alike(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not native.available():
        pytest.skip("not run here: the native kernels were not built (no C++ compiler)")
    start, found = drawn(96, 64).bfloat16(), []
    for kernels in (True, False):
        if not kernels:
            monkeypatch.setattr(native, "fits", lambda *_: False)
        weight = {"layers.0.w": start.clone()}
        optimizer = Optimizer(weight, OptimizerConfig(name=name, **SETTINGS))
        for step in range(6):
            same = optimizer.step({"layers.0.w": gradient(start, step).bfloat16()}, RATE, watch=True)
            assert same == []
        assert optimizer.step({"layers.0.w": torch.zeros_like(start)}, 0.0, watch=True) == ["layers.0.w"]
        found.append(joined(weight["layers.0.w"], optimizer.tensors()["low/layers.0.w"]))
    apart = (found[0] - found[1]).abs() > 1e-5
    assert float(apart.float().mean()) < (1e-2 if name == "adamw8bit" else 1e-9), "8-bit codes at an edge may differ"
    assert float((found[0] - found[1]).abs().max()) < 2e-2


@pytest.mark.parametrize("shape", [(32, 32), (64, 16), (16, 96)])
def test_muon_is_that_of_torch(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)  # torch iterates in bf16 everywhere

    def muon(value: Tensor, decay: float) -> torch.optim.Optimizer:
        return torch.optim.Muon([value], lr=RATE, weight_decay=decay, adjust_lr_fn="match_rms_adamw")

    start = {"layers.0.w": drawn(*shape)}
    got = moved(start, OptimizerConfig(name="muon", **SETTINGS))["layers.0.w"]
    wanted = of_torch(muon, start["layers.0.w"], 0.1)
    assert float((got - wanted).norm() / (wanted - start["layers.0.w"]).norm()) < 1e-4


def test_muon_takes_the_parts_of_a_fused_matrix_one_by_one() -> None:
    rows = [slice(0, 32), slice(32, 40), slice(40, 48)]
    start = drawn(48, 24)
    config = OptimizerConfig(name="muon", learning_rate=1.0)
    whole, parted = start.clone(), start.clone()
    given = drawn(48, 24, seed=3)
    Optimizer({"layers.0.qkv": parted}, config, parts={"layers.0.qkv": rows}).step(
        {"layers.0.qkv": given.clone()}, RATE
    )
    Optimizer({"layers.0.qkv": whole}, config).step({"layers.0.qkv": given.clone()}, RATE)
    for part in rows:
        alone = start[part].clone()
        Optimizer({"layers.0.q": alone}, config).step({"layers.0.q": given[part].clone()}, RATE)
        assert torch.equal(parted[part], alone)
    assert not torch.allclose(parted, whole, atol=1e-3)


def test_newton_schulz_is_nearly_orthogonal() -> None:
    for shape in ((20, 60), (60, 20)):
        values = torch.linalg.svdvals(newton_schulz(drawn(*shape)).float())
        assert float(values.min()) > 0.6
        assert float(values.max()) < 1.3


def test_muon_leaves_embedding_head_and_norms_to_adamw() -> None:
    start = {"embed_tokens": drawn(20, 8), "layers.0.norm.weight": drawn(8), "layers.0.o.weight": drawn(8, 8)}
    got = moved(start, OptimizerConfig(name="muon", **SETTINGS))
    plain = moved(start, OptimizerConfig(**SETTINGS))
    assert torch.equal(got["embed_tokens"], plain["embed_tokens"])
    assert torch.equal(got["layers.0.norm.weight"], plain["layers.0.norm.weight"])
    assert not torch.allclose(got["layers.0.o.weight"], plain["layers.0.o.weight"], atol=1e-3)


@pytest.mark.parametrize("signed", [True, False])
def test_8_bit_codes_are_those_of_bitsandbytes(signed: bool) -> None:
    """Vectors of its CPU wheel: create_dynamic_map and quantize_blockwise with blocks of 256."""
    vectors = VECTORS["signed" if signed else "unsigned"]
    assert torch.equal(dynamic_map(signed), torch.tensor(vectors["map"]))
    values = torch.tensor(vectors["values"])
    codes, scales = quantize(values, signed=signed)
    assert torch.equal(scales, torch.tensor(vectors["scales"]))
    theirs, table = torch.tensor(vectors["codes"]), dynamic_map(signed)
    back = dequantize(theirs.to(torch.uint8), scales, signed=signed)
    assert torch.allclose(back, torch.tensor(vectors["back"]), rtol=1e-6, atol=0)
    other = codes.int() != theirs
    assert int(other.sum()) < 10, "its CPU kernel looks codes up and misses the nearest where two are about as near"
    ratio = values / scales.repeat_interleave(BLOCK)[: values.numel()]
    off = [(table[each.int()] - ratio).abs()[other] for each in (codes, theirs)]
    assert bool((off[0] <= off[1]).all())
    assert int((codes.int() - theirs).abs().max()) <= 1


def test_8_bit_adamw_is_the_published_update() -> None:
    """Moments out of their codes, Adam's update in 32 bits, moments back (https://arxiv.org/abs/2110.02861)."""
    size, (b1, b2), eps = CHUNK + 700, (0.9, 0.95), 1e-8
    value, state = drawn(size), empty_state(torch.empty(size))
    wanted = value.double()
    for step in range(1, 4):
        g = drawn(size, seed=step)
        m = dequantize(state["exp_avg_codes"], state["exp_avg_scales"], signed=True).double() if step > 1 else 0.0
        v = (
            dequantize(state["exp_avg_sq_codes"], state["exp_avg_sq_scales"], signed=False).double()
            if step > 1
            else 0.0
        )
        m, v = b1 * m + (1 - b1) * g.double(), b2 * v + (1 - b2) * g.double() ** 2
        correction = math.sqrt(1 - b2**step)
        wanted -= RATE * correction / (1 - b1**step) * m / (v.sqrt() + correction * eps)
        adamw8bit_(value, g, state, rate=RATE, betas=(b1, b2), eps=eps, step=step)
        assert torch.allclose(value.double(), wanted, rtol=1e-4, atol=1e-5)
        for name, moment, signed in (("exp_avg", m, True), ("exp_avg_sq", v, False)):
            codes, scales = quantize(moment.float(), signed=signed)
            differ = (codes.int() - state[f"{name}_codes"].int()).abs()
            assert int(differ.max()) <= 1, "half-way cases only"
            assert float((differ > 0).double().mean()) < 1e-3
            assert torch.allclose(state[f"{name}_scales"], scales, rtol=1e-5)


@pytest.mark.skipif(not native.available(), reason="not run here: the native kernels were not built")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("master", [True, False])
def test_8_bit_adamw_by_the_kernel_is_that_of_torch(
    dtype: torch.dtype, master: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = {"w": drawn(LEAST // 16 + 3, 16).to(dtype)}
    config = OptimizerConfig(name="adamw8bit", master=master, **SETTINGS)
    ours = moved(start, config, scale=0.5)["w"].float()
    monkeypatch.setattr(native, "fits", lambda *_: False)
    torchs = moved(start, config, scale=0.5)["w"].float()
    travelled = (torchs - start["w"].float()).norm()
    assert float((ours - torchs).norm() / travelled) < (5e-3 if dtype == torch.float32 else 3e-2)


def test_8_bit_state_is_small_and_small_tensors_keep_32_bits() -> None:
    values = {"w": drawn(LEAST // 16, 16), "small": drawn(LEAST // 16 - 1, 16)}
    tensors = Optimizer(values, OptimizerConfig(name="adamw8bit")).tensors()
    held = {name: sum(t.nbytes for key, t in tensors.items() if key.endswith(f"/{name}")) for name in values}
    assert held["w"] == LEAST * 2 + LEAST // BLOCK * 8
    assert held["small"] == values["small"].numel() * 8
    got = moved(values, OptimizerConfig(name="adamw8bit", **SETTINGS))
    near = moved(values, OptimizerConfig(**SETTINGS))
    assert torch.equal(got["small"], near["small"])
    distance = float((got["w"] - near["w"]).norm() / (near["w"] - values["w"]).norm())
    assert 0 < distance < 0.1


def test_rounding_at_random_keeps_the_mean_and_repeats() -> None:
    value = torch.full((200_000,), 1.0 + 2.0**-9)  # a quarter of the way to the next bfloat16
    rounded = round_at_random(value, 7)
    assert set(rounded.unique().tolist()) == {1.0, 1.0 + 2.0**-7}
    assert float(rounded.double().mean()) == pytest.approx(1.0 + 2.0**-9, abs=5e-5)
    assert torch.equal(rounded, round_at_random(value, 7))
    assert not torch.equal(rounded, round_at_random(value, 8))
    exact = drawn(1000).bfloat16()
    assert torch.equal(round_at_random(exact.float(), 1), exact)


def test_without_masters_many_small_steps_are_not_lost() -> None:
    """Steps of a hundredth of what bfloat16 tells apart: rounding to the nearest would stand still."""
    value = torch.ones(256, 64, dtype=torch.bfloat16)
    optimizer = Optimizer({"w": value}, OptimizerConfig(master=False))
    assert "master/w" not in optimizer.tensors()
    for _ in range(100):
        optimizer.step({"w": torch.ones_like(value)}, 4e-5)
    assert float(value.double().mean()) == pytest.approx(1 - 100 * 4e-5, abs=2e-4)


def test_lora_plus_moves_b_faster() -> None:
    start = {"x.lora_A": drawn(4, 8), "x.lora_B": drawn(4, 8)}
    plain, faster = (moved(start, OptimizerConfig(), 1, lora_plus=ratio) for ratio in (1.0, 16.0))
    assert torch.equal(plain["x.lora_A"], faster["x.lora_A"])
    ratio = (faster["x.lora_B"] - start["x.lora_B"]) / (plain["x.lora_B"] - start["x.lora_B"])
    assert torch.allclose(ratio, torch.full_like(ratio, 16.0), rtol=1e-3)


def test_state_of_another_optimizer_is_refused_and_nothing_changes() -> None:
    values = {"w": drawn(80, 64)}
    optimizer = Optimizer(values, OptimizerConfig())
    other = Optimizer(values, OptimizerConfig(name="adamw8bit")).tensors()
    with pytest.raises(IntegrityError, match=r"here: tensor 'exp_avg/w' is nothing, this training needs \(\[80, 64\]"):
        optimizer.load(other, 3, "here")
    assert optimizer.updates == 0
