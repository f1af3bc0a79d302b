"""Matrices kept in four or eight bits and multiplied tile by tile, so that none ever exists whole in 16 bits.

A tile is a run of rows (forward) or of columns (gradient of the input), a few MB in the compute type, made by a native
kernel where it was built and by numpy otherwise; both give the same bits. Every product runs over the whole inner
dimension of its tile, so nothing is rounded that a product with the whole matrix would not round.
"""

from __future__ import annotations

import ctypes
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear

from riverrun.base.errors import IntegrityError
from riverrun.models import native
from riverrun.models.quantized.nf4 import (
    BLOCK,
    NF4_LEVELS,
    NF4_MIDDLES,
    Nf4,
    dequantize_nf4,
    double_absmax,
    dynamic_levels,
    quantize_nf4,
)

__all__ = ["Factors", "Int8Matrix", "Nf4Matrix", "Stored", "stored_linear", "tile_width"]

TILE_BYTES = 8 << 20
_LEAST, _MOST = 256, 1024


def tile_width(other: int, itemsize: int) -> int:
    """Rows (columns) of a tile whose other side is `other`: some 8 MB, but wide enough for a fast product."""
    return max(_LEAST, min(_MOST, TILE_BYTES // (other * itemsize))) // BLOCK * BLOCK


class Stored(ABC):
    """A matrix [out, in] in few bits."""

    shape: torch.Size
    dtype: torch.dtype = torch.bfloat16
    """Of what `slabs` gives out."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes that are held."""

    @abstractmethod
    def tile(self, rows: slice, cols: slice, out: Tensor) -> Tensor:
        """Write the values of these rows and columns to `out` (contiguous, of their shape) and return it."""

    def rows(self, start: int, stop: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        """Rows [start, stop) in full width."""
        out = torch.empty(stop - start, self.shape[1], dtype=dtype)
        return self.tile(slice(start, stop), slice(0, self.shape[1]), out)

    def slabs(self) -> Iterator[tuple[slice, Tensor]]:
        """All rows in runs, in order: (rows, their values). One run is in full width at a time."""
        width = tile_width(self.shape[1], self.dtype.itemsize)
        for start in range(0, self.shape[0], width):
            stop = min(self.shape[0], start + width)
            yield slice(start, stop), self.rows(start, stop, self.dtype)

    def take(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """The rows of these ids, [n, in]: an embedding."""
        return torch.cat([self.rows(row, row + 1, dtype) for row in ids.tolist()])

    def whole(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """All values: for tests and merges."""
        return self.rows(0, self.shape[0], dtype)


class Nf4Matrix(Stored):
    """NF4 in blocks of 64 with double quantisation, as bitsandbytes stores it (4.127 bits a value)."""

    def __init__(self, value: Nf4) -> None:
        assert len(value.shape) == 2, "a matrix has two dimensions"
        self.value, self.shape = value, torch.Size(value.shape)

    @classmethod
    def of(cls, weight: Tensor, name: str = "a weight") -> Nf4Matrix:
        """Quantise a matrix in bfloat16 or float32; IntegrityError where a value is not finite."""
        whole = weight.contiguous() if weight.dtype == torch.bfloat16 else weight.float().contiguous()
        if native.fits(whole) and whole.numel() % BLOCK == 0:
            found = _quantize(whole)
        else:
            found = quantize_nf4(whole.float().numpy(), double=False)
        if not np.isfinite(found.absmax).all():
            raise IntegrityError(f"{name} holds values that are not finite: fetch or train the model again")
        return cls(double_absmax(found))

    @property
    def nbytes(self) -> int:
        return self.value.nbytes

    def tile(self, rows: slice, cols: slice, out: Tensor) -> Tensor:
        value = self.value
        if native.fits(out) and value.block == BLOCK:
            double = value.absmax_scale is not None
            native.call(
                "nf4_dequantize",
                native.dtype_code(out),
                _pointer(value.packed),
                _pointer(value.absmax) if double else None,
                None if double else _pointer(value.absmax),
                None if value.absmax_scale is None else _pointer(value.absmax_scale),
                value.absmax_mean,
                *_constants(),
                self.shape[1],
                *(rows.start, rows.stop, cols.start, cols.stop),
                out,
            )
            return out
        width = self.shape[1]
        first, last = rows.start * width // BLOCK, -(-rows.stop * width // BLOCK)
        values = dequantize_nf4(self.value, first, last).reshape(-1)
        start = rows.start * width - first * BLOCK
        cut = values[start : start + (rows.stop - rows.start) * width].reshape(-1, width)[:, cols]
        return out.copy_(torch.from_numpy(np.ascontiguousarray(cut)))


def _pointer(array: np.ndarray[Any, Any]) -> ctypes.c_void_p:
    assert array.flags.c_contiguous, "kernels take contiguous arrays"
    return ctypes.c_void_p(array.ctypes.data)


@cache
def _tables() -> tuple[np.ndarray[Any, Any], ...]:
    """The levels of NF4 and of its absmax, and the bounds between the former."""
    return NF4_LEVELS.copy(), dynamic_levels(), np.append(NF4_MIDDLES, np.float32(2))


def _constants() -> tuple[ctypes.c_void_p, ctypes.c_void_p]:
    return _pointer(_tables()[0]), _pointer(_tables()[1])


def _quantize(whole: Tensor) -> Nf4:
    """The kernel's form of `quantize_nf4` without double quantisation."""
    blocks = whole.numel() // BLOCK
    packed, absmax = np.empty(whole.numel() // 2, np.uint8), np.empty(blocks, np.float32)
    bounds = _pointer(_tables()[2])
    native.call("nf4_quantize", native.dtype_code(whole), whole, blocks, bounds, _pointer(packed), _pointer(absmax))
    return Nf4(packed, absmax, tuple(whole.shape))


class Int8Matrix(Stored):
    """Eight bits a value and one scale a row: value = code * scale, scale = largest magnitude of the row / 127."""

    def __init__(self, codes: Tensor, scale: Tensor) -> None:
        """codes int8 [out, in], scale float32 [out]."""
        self.codes, self.scale = codes, scale
        self.shape = codes.shape

    @classmethod
    def of(cls, weight: Tensor, name: str = "a weight", *, step: int = 1024) -> Int8Matrix:
        """Round a matrix, `step` rows at a time; IntegrityError where a value is not finite."""
        codes = torch.empty(weight.shape, dtype=torch.int8)
        scale = torch.empty(weight.shape[0])
        for start in range(0, weight.shape[0], step):
            rows = weight[start : start + step].float()
            largest = rows.abs().amax(dim=1)
            if not bool(torch.isfinite(largest).all()):
                raise IntegrityError(f"{name} holds values that are not finite: fetch or train the model again")
            unit = largest / 127
            scale[start : start + step] = unit
            codes[start : start + step] = (rows / unit.clamp(min=1e-38)[:, None]).round_()
        return cls(codes, scale)

    @property
    def nbytes(self) -> int:
        return self.codes.numel() + 4 * self.scale.numel()

    def tile(self, rows: slice, cols: slice, out: Tensor) -> Tensor:
        if native.fits(out):
            native.call(
                "int8_dequantize",
                native.dtype_code(out),
                self.codes,
                self.scale,
                self.shape[1],
                *(rows.start, rows.stop, cols.start, cols.stop),
                out,
            )
            return out
        return out.copy_(self.codes[rows, cols].float() * self.scale[rows, None])

    def take(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        return (self.codes[ids].float() * self.scale[ids, None]).to(dtype)


Factors = tuple[int, int, float]
"""First row and end of what an adapter adds to in the output, and its scale; A and B are handed over beside it."""


def stored_linear(
    x: Tensor, stored: Sequence[Stored], adapters: Sequence[Factors] = (), factors: Sequence[Tensor] = ()
) -> Tensor:
    """x [T, in] -> x W^T + s (x A^T) B^T, [T, out]; W are the rows of all `stored`, factors A, B of each adapter.

    Gradients reach x and the factors (in their own dtype); of W nothing whole is ever formed.
    """
    return _StoredLinear.apply(x, tuple(stored), tuple(adapters), *factors)  # type: ignore[no-any-return,no-untyped-call]


def _row_tiles(stored: Sequence[Stored], itemsize: int) -> Iterator[tuple[Stored, slice, slice]]:
    """(matrix, its rows, their rows in the output) of every tile of the forward."""
    start = 0
    for each in stored:
        out, width = each.shape[0], tile_width(each.shape[1], itemsize)
        for at in range(0, out, width):
            stop = min(out, at + width)
            yield each, slice(at, stop), slice(start + at, start + stop)
        start += out


class _StoredLinear(torch.autograd.Function):
    """Saves x, x A^T and the factors; the adapters' part is added to each tile before it is written."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, stored: tuple[Stored, ...], adapters: tuple[Factors, ...], *factors: Tensor
    ) -> Tensor:
        ctx.stored, ctx.adapters = stored, adapters
        xa = linear(x, torch.cat([a.to(x.dtype) for a in factors[0::2]])) if factors else None  # [T, sum of ranks]
        spans, at = [], 0
        for (first, last, scale), b in zip(adapters, factors[1::2], strict=True):
            spans.append((first, last, scale, b.to(x.dtype), slice(at, at + b.shape[1])))
            at += b.shape[1]
        out = x.new_empty(x.shape[0], sum(each.shape[0] for each in stored))
        room = x.new_empty(tile_width(x.shape[1], x.element_size()), x.shape[1])  # of one tile, used again and again
        for each, own, there in _row_tiles(stored, x.element_size()):
            weight = each.tile(own, slice(0, each.shape[1]), room[: own.stop - own.start])
            piece = x @ weight.T
            for first, last, scale, b, ranks in spans:
                if first <= there.start and there.stop <= last:
                    assert xa is not None
                    own_b = b[there.start - first : there.stop - first]
                    piece.addmm_(xa[:, ranks], own_b.T, alpha=scale)
            out[:, there] = piece
        ctx.save_for_backward(x, xa, *factors)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, xa, *factors = ctx.saved_tensors
        dy = grads[0]
        projected, d_factors, at = [], [], 0
        for (first, last, scale), a, b in zip(ctx.adapters, factors[0::2], factors[1::2], strict=True):
            rank, part = b.shape[1], dy[:, first:last]
            projected.append((part @ b.to(x.dtype)) * scale)
            d_factors += [a, (part.T @ xa[:, at : at + rank]).to(b.dtype) * scale]
            at += rank
        along = torch.cat(projected, dim=1) if projected else None  # [T, sum of ranks]
        if along is not None:
            da = (along.T @ x).to(factors[0].dtype).split([b.shape[1] for b in factors[1::2]])
            d_factors[0::2] = list(da)
        dx = _input_gradient(dy, ctx.stored, along, factors[0::2]) if ctx.needs_input_grad[0] else None
        return (dx, None, None, *d_factors)


def _input_gradient(dy: Tensor, stored: Sequence[Stored], along: Tensor | None, a: Sequence[Tensor]) -> Tensor:
    """dy W + (s dy B) A, [T, in], a run of columns at a time."""
    outs, width = [each.shape[0] for each in stored], stored[0].shape[1]
    step = tile_width(sum(outs), dy.element_size())
    dx = dy.new_empty(dy.shape[0], width)
    stacked = torch.cat([each.to(dy.dtype) for each in a]) if along is not None else None
    room = dy.new_empty(sum(outs) * min(width, step))  # of one tile, used again and again
    for at in range(0, width, step):
        cols = slice(at, min(width, at + step))
        weight, start = room[: sum(outs) * (cols.stop - at)].view(sum(outs), -1), 0
        for each, out in zip(stored, outs, strict=True):
            each.tile(slice(0, out), cols, weight[start : start + out])
            start += out
        piece = dy @ weight
        if along is not None and stacked is not None:
            piece.addmm_(along, stacked[:, cols])
        dx[:, cols] = piece
    return dx
