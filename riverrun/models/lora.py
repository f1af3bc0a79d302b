"""Linear layers whose weight may carry a low-rank update (LoRA, https://arxiv.org/abs/2106.09685).

W' = W + (alpha / rank) * B A. The forward multiplies by W', formed once per optimizer step in the compute dtype from
fp32 A and B, as mixed precision does with full weights (a share of rank / tokens of the layer's own work). The backward
uses W' for the input and projects onto A and B without ever forming the full weight gradient. In exact arithmetic this
is the usual x W^T + s (x A^T) B^T, and this form is computed beside a weight that is stored in few bits (QLoRA,
`models/stored`).

Projections that read the same input are one matrix here (q, k, v; gate, up); each keeps its own A and B.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from riverrun.models.products import Operand, PackedWeight, blocked_linear, operand_product
from riverrun.models.stored import Factors, Stored, stored_linear

__all__ = ["Adapter", "FusedLinear", "Init", "Routes"]

Init = Literal["kaiming", "gaussian"]


class Adapter(nn.Module):
    """fp32 A [rank, in] (drawn) and B [out, rank] (zero): step 0 equals the base exactly.

    `init`: kaiming is uniform within 1 / sqrt(in), gaussian is normal with deviation 1 / rank, both as PEFT draws them.
    `rslora` scales by alpha / sqrt(rank) (https://arxiv.org/abs/2312.03732) instead of alpha / rank.
    """

    def __init__(
        self,
        out_features: int,
        in_features: int,
        rank: int,
        alpha: float,
        generator: torch.Generator,
        *,
        init: Init = "kaiming",
        rslora: bool = False,
    ) -> None:
        super().__init__()
        start = torch.empty(rank, in_features)
        if init == "gaussian":
            start.normal_(std=1 / rank, generator=generator)
        else:
            bound = 1 / math.sqrt(in_features)
            start.uniform_(-bound, bound, generator=generator)
        self.lora_A = nn.Parameter(start)
        self.lora_B = nn.Parameter(torch.zeros(out_features, rank))
        self.rank, self.alpha, self.rslora = rank, alpha, rslora

    @property
    def scaling(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def delta(self) -> Tensor:
        """The fp32 update of the weight, [out, in]."""
        return (self.lora_B @ self.lora_A) * self.scaling


class _LowRankLinear(torch.autograd.Function):
    """x [T, in] -> x merged^T; gradients for x and for each part's A and B."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, merged: Operand, parts: list[Factors], *factors: Tensor) -> Tensor:
        ctx.parts, ctx.merged = parts, merged
        ctx.save_for_backward(x, *factors)
        return merged.forward(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, *factors = ctx.saved_tensors
        dy = grads[0]
        dx = ctx.merged.backward(dy) if ctx.needs_input_grad[0] else None
        stacked_a = torch.cat([a.to(x.dtype) for a in factors[0::2]])  # [sum of ranks, in]
        xa = linear(x, stacked_a)  # [T, sum of ranks]
        projected, db, at = [], [], 0
        for (start, stop, scale), b in zip(ctx.parts, factors[1::2], strict=True):
            rank = b.shape[1]
            part = dy[:, start:stop]
            db.append((part.T @ xa[:, at : at + rank]).to(b.dtype) * scale)
            projected.append((part @ b.to(x.dtype)) * scale)
            at += rank
        da = (torch.cat(projected, dim=1).T @ x).to(factors[0].dtype).split([b.shape[1] for b in factors[1::2]])
        return dx, None, None, *(grad for pair in zip(da, db, strict=True) for grad in pair)


class Routes:
    """Which rows of a forward go through which of the adapters that are served beside one another (S-LoRA,
    arXiv:2311.03285): rows without one see the base alone."""

    def __init__(self) -> None:
        self.rows: dict[str, Tensor] = {}


class FusedLinear(nn.Module):
    """One [out, in] weight made of named parts ({"q_proj": 576, "k_proj": 192, ...}), and one bias where asked for."""

    def __init__(
        self, parts: dict[str, int], in_features: int, dtype: torch.dtype, *, bias: bool = False, empty: bool = False
    ) -> None:
        """`empty` reserves no weight: each part's is given with `keep`."""
        super().__init__()
        self.parts, self.in_features = dict(parts), in_features
        out = sum(parts.values())
        self.weight = nn.Parameter(torch.empty(0 if empty else out, in_features, dtype=dtype), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(out, dtype=dtype), requires_grad=False) if bias else None
        self.adapters = nn.ModuleDict()
        self.bypassed = False
        """While it is set, a forward without gradients leaves the adapters out."""
        self._merged: Operand | None = None
        self._packed: PackedWeight | None = None
        self._kept: dict[str, Tensor] = {}
        self._stored: dict[str, Stored] = {}
        self._served: dict[str, list[tuple[slice, Tensor, Tensor]]] = {}
        self.routes: Routes | None = None
        self.add_up: Callable[[Tensor], Tensor] | None = None
        """Where the weight is one part of its columns: makes the whole product of this one and the others'."""

    def serve(self, name: str, adapters: Mapping[str, Adapter]) -> None:
        """Add these adapters (by part) for the rows that `routes` sends to `name`; none takes them away."""
        self._served.pop(name, None)
        slices, device = dict(self.slices()), self.weight.device
        if adapters:
            self._served[name] = [
                (
                    slices[part],
                    each.lora_A.data.to(device, self.weight.dtype),
                    (each.lora_B.data * each.scaling).to(device, self.weight.dtype),
                )
                for part, each in adapters.items()
            ]

    def store(self, part: str, weight: Stored) -> None:
        """Multiply by this matrix of few bits, tile by tile; all parts or none are stored so."""
        assert weight.shape == (self.parts[part], self.in_features), f"{part}: {weight.shape}"
        self._stored[part] = weight

    def stored(self) -> dict[str, Stored]:
        """Part -> its matrix of few bits; empty where the weight is plain."""
        return dict(self._stored)

    def keep(self, part: str, weight: Tensor) -> None:
        """Multiply by this very tensor [out of the part, in], which may be mapped from a file."""
        self._kept[part] = weight

    def slices(self) -> Iterator[tuple[str, slice]]:
        """(part name, rows) in order."""
        start = 0
        for name, size in self.parts.items():
            yield name, slice(start, start + size)
            start += size

    def add_adapter(
        self,
        part: str,
        rank: int,
        alpha: float,
        generator: torch.Generator,
        *,
        init: Init = "kaiming",
        rslora: bool = False,
    ) -> None:
        sizes = self.parts[part], self.in_features
        self.adapters[part] = Adapter(*sizes, rank, alpha, generator, init=init, rslora=rslora)

    def take_adapters(self) -> list[tuple[str, Adapter]]:
        """Remove and return them, each with its part's name."""
        taken = [(name, cast(Adapter, adapter)) for name, adapter in self.adapters.items()]
        self.adapters, self._merged = nn.ModuleDict(), None
        return taken

    @torch.no_grad()
    def refresh(self) -> None:
        """Form W' again, by one product in the compute dtype; call after every change of A or B."""
        if not self.adapters or self._stored:
            return
        self._merged = None  # its memory is free for what takes its place
        merged = torch.empty_like(self.weight)
        for name, rows in self.slices():
            if name not in self.adapters:
                merged[rows] = self.weight[rows]
            else:
                adapter: Any = self.adapters[name]
                b, a = adapter.lora_B.to(merged.dtype), adapter.lora_A.to(merged.dtype)
                torch.addmm(self.weight[rows], b, a, alpha=adapter.scaling, out=merged[rows])
        self._merged = Operand(merged)

    def pack(self) -> None:
        """Keep the weight only as inference wants it, where that pays."""
        assert not self.adapters, "take_adapters() before pack()"
        if self._kept or self._stored:
            return  # blocks would be a copy of the whole file
        self._packed = PackedWeight.of(self.weight.data)
        if self._packed:
            self.weight.data = self.weight.data.new_empty(0)

    def forward(self, x: Tensor) -> Tensor:
        out = self._product(x)
        if self.routes is not None:
            for name, rows in self.routes.rows.items():
                chosen = x[rows]
                for part, a, b in self._served.get(name, ()):
                    out[rows, part] += linear(linear(chosen, a), b)
        return out if self.add_up is None else self.add_up(out)

    def _product(self, x: Tensor) -> Tensor:
        if self._packed:
            return self._packed(x, self.bias)
        if self._kept:
            each = [linear(x, self._kept[part]) for part in self.parts]
            whole = torch.cat(each, dim=-1) if len(each) > 1 else each[0]
            return whole if self.bias is None else whole + self.bias
        if self._stored:
            places, factors = self._adapted()
            tiled = stored_linear(x, [self._stored[part] for part in self.parts], places, factors)
            return tiled if self.bias is None else tiled + self.bias
        if not self.adapters:
            return blocked_linear(x, self.weight, self.bias)
        assert self._merged is not None, "refresh() forms the merged weight before the first forward"
        if not torch.is_grad_enabled():
            return self._base(x) if self.bypassed else self._merged.forward(x, self.bias)
        places, factors = self._adapted()
        out: Tensor = _LowRankLinear.apply(x, self._merged, places, *factors)  # type: ignore[no-untyped-call]
        return out if self.bias is None else out + self.bias

    def _base(self, x: Tensor) -> Tensor:
        """Without the adapters, by the product that training with them uses: while B is zero the two are equal bits."""
        return operand_product(x, self.weight.data, self.bias)

    def _adapted(self) -> tuple[list[Factors], list[Tensor]]:
        """(first row, end, scale) of each adapter that counts, and A, B of each in the same order."""
        places: list[Factors] = []
        factors: list[Tensor] = []
        for name, rows in self.slices():
            if name in self.adapters and not (self.bypassed and not torch.is_grad_enabled()):
                adapter: Any = self.adapters[name]
                places.append((rows.start, rows.stop, adapter.scaling))
                factors += [adapter.lora_A, adapter.lora_B]
        return places, factors
