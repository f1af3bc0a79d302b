"""Products by one weight, both ways, in the order of memory that oneDNN multiplies by.

T = tokens. A plain bf16 weight is put into blocks at every product. One that stays for a whole optimizer step is put in
order once: at T = 2,048 and the shapes of a 135M model 860 GFLOP/s become 1,030 forward, 900 become 1,030 backward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

__all__ = ["Operand", "PackedWeight", "blocked_linear", "operand_product", "times", "times_back"]

WORTH_BLOCKS = 1024
"""Tokens from which on a product is worth putting a weight in order for it alone."""


class PackedWeight:
    """A weight [out, in] in the blocks that oneDNN multiplies by: plain bf16 ones are put in order at every product.

    32 rows: 14.9 ms instead of 23.4 for all products of a 135M model; one row: 5.1 instead of 10.1 (2 cores).
    """

    def __init__(self, weight: Tensor) -> None:
        self._blocks = torch.ops.mkldnn._reorder_linear_weight(weight, None)

    @staticmethod
    def pays(weight: Tensor) -> bool:
        """False where this processor or this torch has no such product."""
        known = hasattr(torch.ops.mkldnn, "_reorder_linear_weight") and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        fits = weight.dtype == torch.bfloat16 and weight.device.type == "cpu" and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        return known and fits and bool(torch.cpu._is_avx512_bf16_supported())

    @classmethod
    def of(cls, weight: Tensor) -> PackedWeight | None:
        """None where it does not pay; then the plain product is used."""
        return cls(weight) if cls.pays(weight) else None

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._blocks, bias, "none", [], "")
        return out


def _onednn_float(weight: Tensor) -> bool:
    """Whether oneDNN's float32 products are the faster ones: twice MKL's where vectors of 512 bits are not Intel's."""
    if weight.dtype != torch.float32 or weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return hasattr(torch.ops.mkldnn, "_reorder_linear_weight") and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _wide() -> bool:
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


def _in_blocks(weight: Tensor) -> bool:
    return PackedWeight.pays(weight) or _onednn_float(weight)


def operand_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T (+ bias) once, by the very product of an `Operand`: equal to the bit."""
    out = PackedWeight(weight)(x) if _in_blocks(weight) else linear(x, weight)
    return out if bias is None else out + bias


class Operand:
    """A weight W [out, in] that stays for a while: x W^T and dy W. Keeps blocks in place of W where they pay."""

    def __init__(self, weight: Tensor) -> None:
        self._plain: Tensor | None = weight
        self._forward = self._backward = None
        if _in_blocks(weight):
            self._forward, self._backward = PackedWeight(weight), PackedWeight(weight.t())
            self._plain = None

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        if self._forward is not None:
            return self._forward(x, bias)
        assert self._plain is not None
        return linear(x, self._plain, bias)

    def backward(self, dy: Tensor) -> Tensor:
        if self._backward is not None:
            return self._backward(dy)
        assert self._plain is not None
        return dy @ self._plain


class _BlockedLinear(torch.autograd.Function):
    """x W^T (+ bias) with blocks made for this product alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return PackedWeight(weight)(x, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dy, (d_x, d_weight, d_bias) = grads[0], ctx.needs_input_grad
        if not (_onednn_float(weight) and _wide()):
            return dy @ weight if d_x else None, dy.t() @ x if d_weight else None, dy.sum(0) if d_bias else None
        back = PackedWeight(weight.t())(dy) if d_x else None
        return back, PackedWeight(x.t())(dy.t()) if d_weight else None, dy.sum(0) if d_bias else None


def blocked_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`linear` of many tokens [T, in] by a weight that learns: blocks pay even when they are used once."""
    many = x.dim() == 2 and x.shape[0] >= WORTH_BLOCKS and torch.is_grad_enabled()
    if many and (PackedWeight.pays(weight) or (_onednn_float(weight) and _wide())):
        return _BlockedLinear.apply(x, weight, bias)  # type: ignore[no-any-return,no-untyped-call]
    return linear(x, weight, bias)


def times(x: Tensor, weight: Tensor, out: Tensor) -> Tensor:
    """x [n, in] by W [out, in] once; in `out` where that is the faster way."""
    return PackedWeight(weight)(x) if _onednn_float(weight) and _wide() else torch.mm(x, weight.t(), out=out)


def times_back(dy: Tensor, weight: Tensor) -> Tensor:
    """dy [n, out] by W [out, in] once."""
    return PackedWeight(weight.t())(dy) if _onednn_float(weight) and _wide() else dy @ weight
