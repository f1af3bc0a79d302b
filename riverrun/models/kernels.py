"""Operations of a decoder layer with their own backward: native where csrc was built and takes the type, else torch.

T = tokens, E = features, F = intermediate_size, H and K = query and key/value heads, D = head_dim. Each keeps for the
backward only what cannot be formed again from its input: one number a row for the norm, one a head for attention.
"""

from __future__ import annotations

from math import gcd
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu

from riverrun.models import native
from riverrun.models.rope import Turn

__all__ = ["Segments", "add_norm", "attend_packed", "embedded", "norm", "sum_squares", "swiglu", "takes_attention"]


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


class _Embedded(torch.autograd.Function):
    """Rows of a table; equal ids add their gradients in fp32. A tied table gets a sparse one: it is added in place to
    that of the head, which is there already, and no second dense one of [V, E] exists."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, ids: Tensor, tied: bool) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.table, ctx.tied = (table.shape, table.dtype), tied
        return table[ids]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (ids,), (shape, dtype), dy = ctx.saved_tensors, ctx.table, grads[0]
        rows, places = torch.unique(ids, return_inverse=True)
        wide = dy.to(_wide(dy))
        sums = torch.zeros(len(rows), shape[1], dtype=wide.dtype, device=wide.device)
        sums = sums.index_put_((places,), wide, accumulate=True).to(dtype)  # in order on every device
        if ctx.tied:
            some = torch.sparse_coo_tensor(rows[None], sums, shape, is_coalesced=True, check_invariants=False)
            return some, None, None
        out = dy.new_zeros(shape, dtype=dtype)
        out[rows] = sums
        return out, None, None


def embedded(table: Tensor, ids: Tensor, *, tied: bool) -> Tensor:
    """Rows [T, E] of a table [V, E]; `tied`: it is the head as well."""
    if not (torch.is_grad_enabled() and table.requires_grad):
        return table[ids]
    return _Embedded.apply(table, ids, tied)  # type: ignore[no-any-return,no-untyped-call]


def sum_squares(x: Tensor) -> float:
    """Of all numbers of a tensor, in float64; not finite where one of them is not."""
    x = x.detach()
    if native.fits(x):
        out = torch.empty(1, dtype=torch.float64)
        native.call("sum_squares", native.dtype_code(x), x.contiguous(), x.numel(), out)
        return float(out)
    return float(torch.linalg.vector_norm(x, dtype=torch.float64)) ** 2


def _norm_forward(x: Tensor, more: Tensor | None, weight: Tensor, eps: float, plus_one: bool) -> list[Tensor]:
    """(x + more or x itself, normed, scale [..., 1])."""
    if native.fits(x, weight):
        x = x.contiguous()
        added = None if more is None else torch.empty_like(x)
        out, scale = torch.empty_like(x), x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)
        other = None if more is None else more.contiguous()
        size = x.shape[-1]
        sizes = (x.numel() // size, size, eps, int(plus_one))
        native.call("norm_forward", native.dtype_code(x), x, other, weight, added, out, scale, *sizes)
        return [x if added is None else added, out, scale]
    if more is not None:
        x = x + more
    squares = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=_wide(x)).square_()
    scale = torch.rsqrt(squares / x.shape[-1] + eps)
    if plus_one:
        return [x, (x * scale * (1.0 + weight.to(scale.dtype))).to(x.dtype), scale]
    return [x, (x * scale).to(x.dtype) * weight, scale]


def _norm_backward(
    grad: Tensor, grad_sum: Tensor | None, x: Tensor, weight: Tensor, scale: Tensor, plus_one: bool, learns: bool
) -> tuple[Tensor, Tensor | None]:
    """(gradient of x, that of the weight); `grad_sum` reaches x directly and is added."""
    if native.fits(grad, x, weight):
        grad, size = grad.contiguous(), x.shape[-1]
        more = None if grad_sum is None else grad_sum.contiguous()
        out = torch.empty_like(x)
        parts = torch.zeros(torch.get_num_threads(), size) if learns else None
        sizes = (x.numel() // size, size, int(plus_one))
        native.call("norm_backward", native.dtype_code(x), grad, more, x, weight, scale, out, parts, *sizes)
        return out, None if parts is None else parts.sum(0).to(weight.dtype)
    inner = grad * ((1.0 + weight.to(scale.dtype)) if plus_one else weight)
    along = (inner * x).sum(dim=-1, keepdim=True, dtype=scale.dtype) * scale.pow(3) / x.shape[-1]
    d_weight = (grad * x * scale).sum_to_size(weight.shape).to(weight.dtype) if learns else None
    d_x = torch.addcmul(inner * scale, x, along, value=-1)
    return (d_x if grad_sum is None else d_x + grad_sum).to(x.dtype), d_weight


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, plus_one: bool) -> Tensor:
        x, out, scale = _norm_forward(x, None, weight, eps, plus_one)
        ctx.save_for_backward(x, weight, scale)
        ctx.plus_one = plus_one
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        x, weight, scale = ctx.saved_tensors
        learns = ctx.needs_input_grad[1]
        d_x, d_weight = _norm_backward(grads[0], None, x, weight, scale, ctx.plus_one, learns)
        return d_x, d_weight, None, None


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, more: Tensor, weight: Tensor, eps: float, plus_one: bool) -> tuple[Tensor, Tensor]:
        added, out, scale = _norm_forward(x, more, weight, eps, plus_one)
        ctx.save_for_backward(added, weight, scale)
        ctx.plus_one = plus_one
        return added, out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None, None]:
        x, weight, scale = ctx.saved_tensors
        learns = ctx.needs_input_grad[2]
        d_x, d_weight = _norm_backward(grads[1], grads[0], x, weight, scale, ctx.plus_one, learns)
        return d_x, d_x, d_weight, None, None


def norm(x: Tensor, weight: Tensor, eps: float, plus_one: bool) -> Tensor:
    """x / rms(x) * weight over the last axis, formed in fp32.

    Llama's norm is rounded before the weight, Gemma's (1 + weight, `plus_one`) once at the end.
    """
    return _Norm.apply(x, weight, eps, plus_one)  # type: ignore[no-any-return,no-untyped-call]


def add_norm(x: Tensor, more: Tensor, weight: Tensor, eps: float, plus_one: bool) -> tuple[Tensor, Tensor]:
    """(x + more, its norm): the residual and what the next block reads, in one pass."""
    return _AddNorm.apply(x, more, weight, eps, plus_one)  # type: ignore[no-any-return,no-untyped-call]


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        size = gate_up.shape[-1] // 2
        if native.fits(gate_up) and gate_up.is_contiguous():
            out = gate_up.new_empty((*gate_up.shape[:-1], size))
            native.call("swiglu_forward", native.dtype_code(gate_up), gate_up, out, out.numel() // size, size)
            return out
        gate, up = gate_up.chunk(2, dim=-1)
        return silu(gate) * up

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        out = torch.empty_like(gate_up)
        size = gate_up.shape[-1] // 2
        if native.fits(grads[0], gate_up) and gate_up.is_contiguous():
            grad = grads[0].contiguous()
            native.call("swiglu_backward", native.dtype_code(grad), grad, gate_up, out, grad.numel() // size, size)
            return out
        gate, up = gate_up.chunk(2, dim=-1)
        d_gate, d_up = out.chunk(2, dim=-1)
        torch.mul(grads[0], silu(gate), out=d_up)
        d_gate.copy_(torch.ops.aten.silu_backward(grads[0] * up, gate))
        return out


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up of [T, 2F] -> [T, F]; keeps only its input."""
    return _SwiGLU.apply(gate_up)  # type: ignore[no-any-return,no-untyped-call]


class Segments:
    """Which keys each run of queries sees: int64 rows of (start, length, start of its beginning, tokens of it).

    A run sees all of its beginning and, causally, itself. `used` tokens are in runs; those behind them are padding.
    """

    def __init__(self, rows: list[tuple[int, int, int, int]]) -> None:
        self.rows = torch.tensor(rows, dtype=torch.int64).reshape(-1, 4)
        self.used = max((start + length for start, length, _, _ in rows), default=0)

    def __len__(self) -> int:
        return len(self.rows)


class _Attend(torch.autograd.Function):
    """Rotation and attention of [T, (H + 2K) D] -> [T, H D]. The input is rotated in place: nobody else may read it."""

    @staticmethod
    def forward(
        ctx: Any,
        qkv: Tensor,
        turn: Turn,
        segments: Segments,
        heads: int,
        kv_heads: int,
        window: int,
        scale: float,
    ) -> Tensor:
        tokens, row = qkv.shape
        dim = row // (heads + 2 * kv_heads)
        code = native.dtype_code(qkv)
        cos, sin = (table.contiguous() for table in turn)
        native.call("rotate", code, qkv, cos, sin, tokens, heads + kv_heads, dim, row, 0)
        out, lse = qkv.new_empty(tokens, heads * dim), qkv.new_empty(heads, tokens, dtype=torch.float32)
        out[segments.used :] = 0
        shape = native.Shape(tokens, heads, kv_heads, dim, row, window, scale)
        q, k, v = _parts(qkv, heads, kv_heads, dim)
        native.call("attention_forward", code, q, k, v, out, lse, segments.rows, len(segments), shape)
        ctx.save_for_backward(qkv, out, lse, cos, sin)
        ctx.segments, ctx.shape = segments, shape
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        qkv, out, lse, cos, sin = ctx.saved_tensors
        shape, segments, code = ctx.shape, ctx.segments, native.dtype_code(qkv)
        heads, kv_heads, dim = shape.heads, shape.kv_heads, shape.dim
        d_qkv = torch.empty_like(qkv)
        d_qkv[segments.used :] = 0
        threads = torch.get_num_threads()
        lanes = threads // gcd(threads, kv_heads)
        scratch = torch.empty(kv_heads * lanes * 2 * shape.tokens * dim)
        parts = (*_parts(qkv, heads, kv_heads, dim), out, lse, *_parts(d_qkv, heads, kv_heads, dim))
        rows = (segments.rows, len(segments), shape, scratch, lanes)
        native.call("attention_backward", code, grads[0].contiguous(), *parts, *rows)
        native.call("rotate", code, d_qkv, cos, sin, shape.tokens, heads + kv_heads, dim, shape.row, 1)
        return d_qkv, None, None, None, None, None, None


def _parts(qkv: Tensor, heads: int, kv_heads: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v of one buffer, each at its first token."""
    row = qkv[0]
    return row, row[heads * dim :], row[(heads + kv_heads) * dim :]


def attend_packed(
    qkv: Tensor, turn: Turn, segments: Segments, heads: int, kv_heads: int, *, window: int | None, scale: float
) -> Tensor:
    """Rotated causal attention of packed documents [T, (H + 2K) D] -> [T, H D]; ask `takes_attention` first.

    `qkv` is rotated in place: it belongs to this call. `window`: keys that a query sees at most, itself included.
    """
    return _Attend.apply(qkv, turn, segments, heads, kv_heads, window or 0, scale)  # type: ignore[no-any-return,no-untyped-call]


def takes_attention(qkv: Tensor, dim: int) -> bool:
    """Whether `attend_packed` is there for such a tensor and head."""
    return dim % 16 == 0 and native.fits(qkv) and qkv.is_contiguous()
