"""The native kernels against torch, for every instruction set that this machine has, forward and backward."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from riverrun.models import kernels, native
from riverrun.models.attention import PackedGroups
from riverrun.models.products import Operand, blocked_linear
from riverrun.models.rope import rotate
from riverrun.train.loss import bound_logits, linear_cross_entropy, token_logprobs

BOUND = {torch.float32: 5e-6, torch.bfloat16: 1.2e-2}
"""Largest difference, relative to the largest value, from the same in float32 (bf16 keeps 8 bits)."""


HERE = native.LEVELS[: native.LEVELS.index(native.level()) + 1] if native.available() else ("plain",)
"""Every instruction set of this processor; what others have cannot be run here."""


@pytest.fixture(params=HERE)
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    if not native.available():
        pytest.skip("not run here: the native kernels were not built (no C++ compiler)")
    with native.forced(request.param) as taken:
        assert taken == request.param
        yield taken


def off(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got.float() - wanted.float()).abs().max() / wanted.float().abs().max().clamp_min(1e-6))


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def gradients(function, *tensors: torch.Tensor, upstream: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    own = [tensor.clone().requires_grad_() for tensor in tensors]
    out = function(*own)
    out.backward(upstream.to(out.dtype))
    return out.detach(), [tensor.grad for tensor in own]


@pytest.mark.parametrize("dtype", list(BOUND))
@pytest.mark.parametrize("size", [0, 1, 17, 16384, 100_003])
def test_sum_of_squares(level: str, dtype: torch.dtype, size: int) -> None:
    x = normal(size, dtype=dtype) * 3
    wanted = float((x.double() ** 2).sum())
    assert kernels.sum_squares(x) == pytest.approx(wanted, rel=1e-5)
    assert kernels.sum_squares(x.double()) == pytest.approx(wanted, rel=1e-12)
    if size:
        for value in (float("nan"), float("inf")):
            x[size // 2] = value
            assert not math.isfinite(kernels.sum_squares(x))
        x[size // 2] = 1e30
        assert kernels.sum_squares(x) == pytest.approx(1e60, rel=1e-2)


@pytest.mark.parametrize("dtype", list(BOUND))
@pytest.mark.parametrize("plus_one", [False, True])
@pytest.mark.parametrize("size", [1, 16, 75, 576])
def test_norm(level: str, dtype: torch.dtype, plus_one: bool, size: int) -> None:
    x, more, weight, up = (normal(9, size, dtype=dtype, seed=n) for n in range(4))
    weight = weight[0].contiguous()

    def reference(x: torch.Tensor, more: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        total = x + more
        unit = total * torch.rsqrt(total.pow(2).mean(-1, keepdim=True) + 1e-5)
        return unit * (weight + 1 if plus_one else weight) + 0.5 * total

    def ours(x: torch.Tensor, more: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        total, normed = kernels.add_norm(x, more, weight, 1e-5, plus_one)
        return normed + 0.5 * total

    wanted, wanted_grads = gradients(reference, x.float(), more.float(), weight.float(), upstream=up.float())
    got, grads = gradients(ours, x, more, weight, upstream=up)
    assert off(got, wanted) < BOUND[dtype]
    for mine, theirs in zip(grads, wanted_grads, strict=True):
        assert off(mine, theirs) < 2 * BOUND[dtype]
    alone = kernels.norm(x, weight, 1e-5, plus_one)
    assert off(alone, reference(x.float(), 0 * x.float(), weight.float()) - 0.5 * x.float()) < BOUND[dtype]


@pytest.mark.parametrize("dtype", list(BOUND))
@pytest.mark.parametrize("size", [1, 33, 1536])
def test_swiglu(level: str, dtype: torch.dtype, size: int) -> None:
    gate_up, up = 4 * normal(7, 2 * size, dtype=dtype), normal(7, size, dtype=dtype, seed=1)

    def reference(x: torch.Tensor) -> torch.Tensor:
        gate, other = x.chunk(2, dim=-1)
        return torch.nn.functional.silu(gate) * other

    wanted, wanted_grads = gradients(reference, gate_up.float(), upstream=up.float())
    got, grads = gradients(kernels.swiglu, gate_up, upstream=up)
    assert off(got, wanted) < BOUND[dtype]
    assert off(grads[0], wanted_grads[0]) < BOUND[dtype]


def test_swiglu_at_the_ends_of_the_range(level: str) -> None:
    gate_up = torch.tensor([[-1e4, -120.0, -88.0, 88.0, 120.0, 1e4, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]])
    wanted = torch.nn.functional.silu(gate_up[:, :6])
    assert torch.allclose(kernels.swiglu(gate_up), wanted, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocabulary", [3, 40, 5000])
def test_loss_and_logprobs(level: str, dtype: torch.dtype, vocabulary: int) -> None:
    hidden, head = normal(70, 32, dtype=dtype), normal(vocabulary, 32, dtype=dtype, seed=1)
    targets = torch.randint(0, vocabulary, (70,), generator=torch.Generator().manual_seed(2))
    weights = normal(70, seed=3)

    def reference(hidden: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
        return -torch.nn.functional.cross_entropy(hidden @ head.T, targets, reduction="none")

    bound = 1e-5 if dtype == torch.float32 else 3e-2
    wanted, wanted_grads = gradients(reference, hidden.float(), head.float(), upstream=weights)
    got, grads = gradients(lambda h, w: token_logprobs(h, w, targets), hidden, head, upstream=weights)
    assert off(got, wanted) < bound
    assert max(off(a, b) for a, b in zip(grads, wanted_grads, strict=True)) < bound
    _, wanted_grads = gradients(
        lambda h, w: -reference(h, w).sum(), hidden.float(), head.float(), upstream=torch.ones(())
    )
    total, grads = gradients(lambda h, w: linear_cross_entropy(h, w, targets), hidden, head, upstream=torch.ones(()))
    assert abs(float(total) + float(wanted.sum())) < bound * abs(float(wanted.sum()))
    assert max(off(a, b) for a, b in zip(grads, wanted_grads, strict=True)) < bound


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, head = normal(300, 16, dtype=torch.float64), normal(50, 16, dtype=torch.float64, seed=1)
    targets = torch.randint(0, 50, (300,), generator=torch.Generator().manual_seed(2))
    up = torch.ones((), dtype=torch.float64)
    whole, grads = gradients(lambda h, w: linear_cross_entropy(h, w, targets), hidden, head, upstream=up)
    monkeypatch.setattr("riverrun.train.loss.CHUNK_BYTES", 1)
    parts, other = gradients(lambda h, w: linear_cross_entropy(h, w, targets), hidden, head, upstream=up)
    assert float(whole) == pytest.approx(float(parts), rel=1e-12)
    assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-12) for a, b in zip(grads, other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kernel", [True, False])
def test_the_heads_gradient_in_a_second_pass(
    level: str, dtype: torch.dtype, kernel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where memory is short: slabs of the vocabulary, of all rows each, against all logits at once."""
    hidden, head = normal(300, 16, dtype=dtype), normal(500, 16, dtype=dtype, seed=1)
    targets = torch.randint(0, 500, (300,), generator=torch.Generator().manual_seed(2))
    up = torch.full((), 0.5, dtype=torch.float64 if dtype == torch.float64 else torch.float32)

    def wanted(h: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(h @ w.T, targets, reduction="sum")

    whole, grads = gradients(wanted, hidden.double(), head.double(), upstream=up.double())
    if not kernel:
        monkeypatch.setattr(native, "fits", lambda *tensors: False)
    bound_logits(100 * 300 * dtype.itemsize)  # neither rows nor words are a whole number of chunks
    try:
        got, other = gradients(lambda h, w: linear_cross_entropy(h, w, targets), hidden, head, upstream=up)
    finally:
        bound_logits()
    bound = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}[dtype]
    assert float(got) == pytest.approx(float(whole), rel=bound)
    assert max(off(a, b) for a, b in zip(other, grads, strict=True)) < max(bound, 1e-6)


def test_no_label_gives_no_loss() -> None:
    hidden = normal(0, 16).requires_grad_()
    loss = linear_cross_entropy(hidden, normal(50, 16), torch.empty(0, dtype=torch.int64))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert token_logprobs(normal(0, 16), normal(50, 16), torch.empty(0, dtype=torch.int64)).shape == (0,)


Layout = list[tuple[int, list[int]]]


def attention(
    layout: Layout, heads: int, kv_heads: int, dim: int, dtype: torch.dtype, window: int | None, multiple: int = 16
) -> tuple[float, float]:
    """Largest relative differences of outputs and gradients from the masked products in float32."""
    pack = PackedGroups(layout, dtype=torch.float32, multiple=multiple, windows=(window,) if window else ())
    tokens, used = len(pack.positions), sum(prefix + sum(lengths) for prefix, lengths in layout)
    qkv = normal(tokens, (heads + 2 * kv_heads) * dim, dtype=dtype)
    up = normal(tokens, heads * dim, dtype=dtype, seed=1)
    up[used:] = 0
    angles = pack.positions[:, None] * 10000.0 ** (-torch.arange(0, dim, 2) / dim)
    cos, sin = angles.cos(), angles.sin()
    turn = (torch.cat([cos, cos], 1)[:, None].to(dtype), torch.cat([-sin, sin], 1)[:, None].to(dtype))

    def reference(x: torch.Tensor) -> torch.Tensor:
        split = x.view(tokens, -1, dim)
        turned = rotate(split[:, : heads + kv_heads], (turn[0].float(), turn[1].float()))
        return pack(0, turned[:, :heads], turned[:, heads:], split[:, heads + kv_heads :]).reshape(tokens, -1)

    def ours(x: torch.Tensor) -> torch.Tensor:
        return kernels.attend_packed(x.clone(), turn, pack.segments, heads, kv_heads, window=window, scale=dim**-0.5)

    wanted, wanted_grads = gradients(reference, qkv.float(), upstream=up.float())
    got, grads = gradients(ours, qkv, upstream=up)
    assert not got[used:].any()
    assert not grads[0][used:].any()
    return off(got, wanted), off(grads[0], wanted_grads[0])


CASES: list[tuple[Layout, int, int, int, int | None]] = [
    ([(0, [5, 17, 40, 1])], 4, 2, 16, None),
    ([(20, [7, 33]), (0, [100]), (1, [1])], 9, 3, 64, None),
    ([(0, [600]), (30, [1, 2])], 6, 2, 32, None),
    ([(0, [300, 50])], 4, 4, 48, 64),
    ([(40, [90])], 4, 1, 128, 37),
    ([(0, [1])], 2, 1, 16, None),
]


@pytest.mark.parametrize("dtype", list(BOUND))
@pytest.mark.parametrize("case", CASES)
def test_attention(level: str, dtype: torch.dtype, case: tuple[Layout, int, int, int, int | None]) -> None:
    layout, heads, kv_heads, dim, window = case
    out, grad = attention(layout, heads, kv_heads, dim, dtype, window)
    assert out < BOUND[dtype]
    assert grad < BOUND[dtype]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(st.integers(0, 40), st.lists(st.integers(1, 70), min_size=1, max_size=4)), min_size=1, max_size=3
    ),
    st.sampled_from([(2, 1, 16), (3, 3, 32), (4, 2, 48)]),
    st.sampled_from([None, 1, 20]),
)
def test_attention_of_any_layout(layout: Layout, shape: tuple[int, int, int], window: int | None) -> None:
    if native.available():
        assert max(attention(layout, *shape, torch.float32, window)) < BOUND[torch.float32]


def test_a_neighbour_changes_nothing_and_order_of_threads_neither(level: str) -> None:
    dtype, dim = torch.bfloat16, 32
    segments = kernels.Segments([(0, 200, 0, 0), (200, 90, 0, 0)])
    turn = (torch.ones(290, 1, dim, dtype=dtype), torch.zeros(290, 1, dim, dtype=dtype))
    qkv, up = normal(290, 8 * dim, dtype=dtype), normal(290, 4 * dim, dtype=dtype, seed=1)
    other = qkv.clone()
    other[200:] = normal(90, 8 * dim, dtype=dtype, seed=5)

    def run(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        own = x.clone().requires_grad_()
        out = kernels.attend_packed(own.clone(), turn, segments, 4, 2, window=None, scale=1.0)
        out.backward(up)
        assert own.grad is not None
        return out.detach()[:200], own.grad[:200]

    first, second, again = run(qkv), run(other), run(qkv)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert torch.equal(first[1], again[1])


@pytest.mark.parametrize("dtype", list(BOUND))
def test_operands(dtype: torch.dtype) -> None:
    x, weight, up = normal(1100, 64, dtype=dtype), normal(48, 64, dtype=dtype, seed=1), normal(1100, 48, dtype=dtype)
    operand = Operand(weight)
    assert off(operand.forward(x), x.float() @ weight.float().T) < BOUND[dtype]
    assert off(operand.backward(up), up.float() @ weight.float()) < BOUND[dtype]
    bias = normal(48, dtype=dtype, seed=2)
    wanted, wanted_grads = gradients(
        torch.nn.functional.linear, x.float(), weight.float(), bias.float(), upstream=up.float()
    )
    got, grads = gradients(blocked_linear, x, weight, bias, upstream=up)
    assert off(got, wanted) < BOUND[dtype]
    assert max(off(a, b) for a, b in zip(grads, wanted_grads, strict=True)) < BOUND[dtype]


def test_adamw(level: str) -> None:
    master, grad = normal(1003), normal(1003, seed=1)
    reference = master.clone().requires_grad_()
    optimizer = torch.optim.AdamW([reference], lr=1e-2, betas=(0.9, 0.99), weight_decay=0.1, eps=1e-8)
    weight, m, v = master.bfloat16(), torch.zeros(1003), torch.zeros(1003)
    for step in range(1, 6):
        reference.grad = grad * step
        optimizer.step()
        scaled = (4 * grad * step).contiguous()
        sizes = (1003, 1e-2, 0.9, 0.99, 1e-8, 0.1, 1 - 0.9**step, 1 - 0.99**step, 0.25)
        code = native.dtype_code(weight)
        native.call("adamw", code, native.dtype_code(scaled), master, weight, scaled, m, v, *sizes)
    assert torch.allclose(master, reference.detach(), rtol=1e-6, atol=1e-7)
    assert torch.equal(weight, master.bfloat16())


def test_off_is_off_and_an_unknown_set_is_refused() -> None:
    program = "from riverrun.models import native; print(native.level())"

    def ran(value: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "RIVERRUN_NATIVE": value}
        return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)

    assert ran("off").stdout.strip() == "none"
    assert "RIVERRUN_NATIVE=mmx is not one of off, plain" in ran("mmx").stderr
    if native.available():
        assert ran("plain").stdout.strip() == "plain"
