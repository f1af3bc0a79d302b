"""Matrices in few bits: the kernel against numpy bit for bit, products and gradients against the whole weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from riverrun.base.errors import IntegrityError
from riverrun.models import native
from riverrun.models.lora import FusedLinear
from riverrun.models.quantized import dequantize_nf4, quantize_nf4
from riverrun.models.stored import Int8Matrix, Nf4Matrix, Stored, stored_linear
from tests.models.tiny import quick

EVERYWHERE = pytest.mark.parametrize("level", native.LEVELS)
built = pytest.mark.skipif(not native.available(), reason="not run here: the native kernels are not built")


@pytest.fixture
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "available", lambda: False)


def matrix(out: int, width: int, seed: int = 0) -> Tensor:
    """Rows of very different size, one of them zero."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((out, width)) * np.exp(rng.standard_normal((out, 1)) * 3)
    values[out // 2] = 0
    return torch.from_numpy(values.astype(np.float32))


def bits(tensor: Tensor) -> Tensor:
    return tensor.view(torch.int32 if tensor.dtype == torch.float32 else torch.int16)


@built
@EVERYWHERE
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@quick(12)
@given(seed=st.integers(0, 10_000))
def test_the_kernel_unpacks_what_numpy_unpacks(level: str, dtype: torch.dtype, seed: int) -> None:
    rng = np.random.default_rng(seed)
    out, width = int(rng.integers(1, 9)) * 32, int(rng.integers(1, 40)) * 8
    weight = matrix(out, width, seed)
    rows, cols = (slice(*sorted(rng.choice(size + 1, 2, replace=False).tolist())) for size in (out, width))
    if seed % 2:  # whole blocks
        width = width * 8
        weight, cols = matrix(out, width, seed), slice(width // 8 // 64 * 64, width)
    for double in (False, True):
        stored = Nf4Matrix(quantize_nf4(weight.numpy(), double=double))
        want = torch.from_numpy(dequantize_nf4(stored.value)).to(dtype)[rows, cols]
        with native.forced(level):
            got = stored.tile(rows, cols, torch.empty(want.shape, dtype=dtype))
        assert torch.equal(bits(got), bits(want.contiguous()))


@built
@EVERYWHERE
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernel_quantises_as_numpy_does(level: str, dtype: torch.dtype) -> None:
    weight = matrix(96, 320, 4).to(dtype)
    weight[1, :64] = 2e-38  # the least whose inverse is finite
    want = quantize_nf4(weight.float().numpy())
    with native.forced(level):
        got = Nf4Matrix.of(weight).value
    assert np.array_equal(got.packed, want.packed)
    assert np.array_equal(got.absmax, want.absmax)
    assert got.absmax_scale is not None
    assert want.absmax_scale is not None
    assert np.array_equal(got.absmax_scale, want.absmax_scale)
    assert (got.absmax_mean, got.shape) == (want.absmax_mean, want.shape)


@built
@EVERYWHERE
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_eight_bit_rows_unpack_alike_everywhere(level: str, dtype: torch.dtype) -> None:
    stored = Int8Matrix.of(matrix(50, 77))
    want = (stored.codes.float() * stored.scale[:, None]).to(dtype)[3:41, 5:70].contiguous()
    with native.forced(level):
        got = stored.tile(slice(3, 41), slice(5, 70), torch.empty(38, 65, dtype=dtype))
    assert torch.equal(bits(got), bits(want))


@pytest.mark.usefixtures("without_kernels")
def test_without_kernels_the_same_values() -> None:
    weight = matrix(40, 72)
    stored = Nf4Matrix.of(weight)
    want = torch.from_numpy(dequantize_nf4(quantize_nf4(weight.numpy())))
    for rows, cols in ((slice(0, 40), slice(0, 72)), (slice(7, 33), slice(5, 71)), (slice(39, 40), slice(0, 1))):
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            shape = (rows.stop - rows.start, cols.stop - cols.start)
            assert torch.equal(stored.tile(rows, cols, torch.empty(shape, dtype=dtype)), want[rows, cols].to(dtype))


def test_eight_bits_are_within_half_a_step() -> None:
    weight = matrix(300, 64)
    stored = Int8Matrix.of(weight.to(torch.bfloat16), step=128)
    error = (stored.whole() - weight.to(torch.bfloat16).float()).abs()
    assert bool((error <= stored.scale[:, None] * 0.5001).all())
    assert stored.nbytes == 300 * 64 + 300 * 4
    ids = torch.tensor([3, 299, 3, 150])
    assert torch.equal(stored.take(ids, torch.bfloat16), stored.whole(torch.bfloat16)[ids])


@pytest.mark.parametrize("kind", [Nf4Matrix, Int8Matrix])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_value_that_is_not_finite_is_refused_by_name(
    kind: type[Nf4Matrix] | type[Int8Matrix], bad: float, dtype: torch.dtype
) -> None:
    weight = matrix(8, 64)
    weight[3, 60] = bad
    with pytest.raises(IntegrityError, match=r"model\.x holds values that are not finite"):
        kind.of(weight.to(dtype), "model.x")


def fused(kind: type[Nf4Matrix] | type[Int8Matrix], dtype: torch.dtype, *, bias: bool = False) -> FusedLinear:
    """Three parts, the middle one without an adapter; A and B random."""
    parts, width = {"q_proj": 320, "k_proj": 64, "v_proj": 64}, 128
    layer = FusedLinear(parts, width, dtype, bias=bias, empty=True)
    generator = torch.Generator().manual_seed(0)
    for number, (part, size) in enumerate(parts.items()):
        layer.store(part, kind.of(torch.randn(size, width, generator=generator) / width**0.5 + number * 0.01))
        if part != "k_proj":
            layer.add_adapter(part, 4, 8.0, generator)
            layer.adapters[part].lora_B.data.normal_(std=0.1, generator=generator)  # type: ignore[operator, union-attr]
    if layer.bias is not None:
        layer.bias.data.normal_(generator=generator)
    layer.refresh()
    return layer


def explicit(layer: FusedLinear, x: Tensor) -> Tensor:
    """The layer written out with whole matrices in the type of x."""
    outs = []
    for part, stored in layer.stored().items():
        y = x @ stored.whole().to(x.dtype).T
        if part in layer.adapters:
            adapter = layer.adapters[part]
            y = y + (x @ adapter.lora_A.to(x.dtype).T) @ adapter.lora_B.to(x.dtype).T * adapter.scaling  # type: ignore[operator, union-attr]
        outs.append(y)
    out = torch.cat(outs, dim=1)
    return out if layer.bias is None else out + layer.bias.to(x.dtype)


@pytest.mark.parametrize("kind", [Nf4Matrix, Int8Matrix])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-6), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_forward_and_gradients_are_those_of_the_whole_weights(
    kind: type[Nf4Matrix] | type[Int8Matrix],
    bias: bool,
    dtype: torch.dtype,
    bound: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("riverrun.models.stored.tile_width", lambda *_: 64)  # several tiles, none across two parts
    layer = fused(kind, dtype, bias=bias)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(37, 128, generator=generator)
    weights = torch.randn(37, 448, generator=generator)

    def run(forward: object, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
        assert callable(forward)
        leaf = x.to(dtype).requires_grad_(True)
        y = forward(leaf)
        wanted = [leaf, *(p for p in layer.parameters() if p.requires_grad)]
        return y.detach(), list(torch.autograd.grad((y * weights.to(dtype)).sum(), wanted))

    got, got_grads = run(layer, dtype)
    want, want_grads = run(lambda leaf: explicit(layer, leaf), torch.float64)
    assert len(got_grads) == 5
    for ours, theirs in [(got, want), *zip(got_grads, want_grads, strict=True)]:
        assert float((ours.double() - theirs).norm() / theirs.norm()) <= bound
    assert all(grad.dtype == torch.float32 for grad in got_grads[1:])


def test_step_zero_is_the_quantised_base_exactly() -> None:
    layer = fused(Nf4Matrix, torch.bfloat16)
    for adapter in layer.adapters.values():
        adapter.lora_B.data.zero_()  # type: ignore[operator, union-attr]
    x = torch.randn(20, 128, generator=torch.Generator().manual_seed(3)).to(torch.bfloat16)
    with torch.no_grad():
        adapted = layer(x)
        layer.take_adapters()
        assert torch.equal(adapted, layer(x))
        assert torch.equal(
            adapted, torch.cat([x @ each.whole(torch.bfloat16).T for each in layer.stored().values()], 1)
        )


def test_no_tile_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward of a wide layer ask for tiles of a bounded size only."""
    seen: list[int] = []

    class Watched(Stored):
        shape = torch.Size((8192, 4096))
        nbytes = 0

        def tile(self, rows: slice, cols: slice, out: Tensor) -> Tensor:
            seen.append(out.numel() * out.element_size())
            return out.zero_()

    x = torch.zeros(2, 4096, dtype=torch.bfloat16, requires_grad=True)
    stored_linear(x, [Watched()]).sum().backward()  # type: ignore[no-untyped-call]
    assert len(seen) >= 16
    assert max(seen) <= 8 << 20
