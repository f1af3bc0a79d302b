"""Attention over packed tokens. T = tokens, H = query heads, K = key/value heads, G = H / K, D = head_dim.

A layer hands over q [T, H, D], k and v [T, K, D] and gets [T, H, D] back. Who may look at whom is not the layer's
business: it is decided by the object passed as `attend` (training packs here, the KV cache of decoding in `cache`).

The kernel is explicit products with one additive mask; on CPU in bf16 that is 2.5 times as fast forward and backward
as torch's flash kernel at the lengths of a pack (figures in docs/log.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from riverrun.models.kernels import Segments

__all__ = [
    "Attend",
    "PackedCausal",
    "PackedGroups",
    "Past",
    "additive",
    "grouped_attention",
    "visible",
]

# layer -> cached keys and values [K, P, D] that come before every document
Past = Callable[[int], tuple[Tensor, Tensor]]


class Attend(Protocol):
    """Attention of one layer's tokens; implementations hold the pack's layout or the cache.

    `segments` is the same layout for the native kernel, where there is no cache.
    """

    @property
    def segments(self) -> Segments | None: ...

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor: ...


def grouped_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """q [B, K, G, L, D], k and v [B, K, S, D], additive mask [L, S] or [B, L, S] -> [B, K, G, L, D].

    The G query heads that share a key head are rows of the same product.
    """
    _, _, values, weights = _weights(q, k, v, mask)
    return torch.bmm(weights, values).reshape(q.shape)


def _weights(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows [B * K, G * L, D], keys and values [B * K, S, D], softmax of the scores [B * K, G * L, S]."""
    batch, kv_heads, group, length, dim = q.shape
    rows = q.reshape(batch * kv_heads, group * length, dim)
    keys, values = k.reshape(batch * kv_heads, -1, dim), v.reshape(batch * kv_heads, -1, dim)
    if mask.dim() == 3:
        bias = mask[:, None, None].expand(batch, kv_heads, group, length, -1).reshape(*rows.shape[:2], -1)
    else:
        bias = mask.repeat(group, 1).expand(rows.shape[0], -1, -1)
    scores = torch.baddbmm(bias, rows, keys.transpose(1, 2), alpha=dim**-0.5)
    return rows, keys, values, torch.softmax(scores, dim=-1)


def visible(queries: Tensor, keys: Tensor, window: int | None) -> Tensor:
    """Which keys' positions a query may look at: its own and earlier ones, of a sliding layer the last `window`."""
    behind = queries[..., :, None] - keys[..., None, :]
    seen = behind >= 0
    return seen if window is None else seen & (behind < window)


def additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where something is seen, -inf elsewhere."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, float("-inf"))


class _Recomputed(torch.autograd.Function):
    """`grouped_attention` that keeps q, k and v: the weights are formed again for the backward.

    The weights of a layer are its largest tensor and differ in size from pack to pack; kept, they cost a third of a
    fine-tune's memory and scatter malloc's heap.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v, mask)
        return grouped_attention(q, k, v, mask)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, mask = ctx.saved_tensors
        rows, keys, values, weights = _weights(q, k, v, mask)
        upstream = grads[0].reshape(rows.shape)
        d_values = torch.bmm(weights.transpose(1, 2), upstream)
        d_scores = torch.ops.aten._softmax_backward_data(
            torch.bmm(upstream, values.transpose(1, 2)), weights, -1, weights.dtype
        ).mul_(q.shape[-1] ** -0.5)
        d_rows, d_keys = torch.bmm(d_scores, keys), torch.bmm(d_scores.transpose(1, 2), rows)
        return d_rows.view(q.shape), d_keys.view(k.shape), d_values.view(v.shape), None


def _recomputed(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return _Recomputed.apply(q, k, v, mask)  # type: ignore[no-any-return,no-untyped-call]


class _Grid:
    """Documents that stand next to each other in a pack, padded to one length: `index` are the places of their tokens
    (0 for padding), `flat` the places of the real tokens in the grid, `masks` one for each kind of window."""

    def __init__(
        self, lengths: Sequence[int], start: int, longest: int, prefix: int, kinds: set[int | None], dtype: torch.dtype
    ) -> None:
        self.rows = len(lengths)
        starts = torch.tensor([start + sum(lengths[:i]) for i in range(len(lengths))])
        steps = torch.arange(longest)
        inside = steps[None, :] < torch.tensor(lengths)[:, None]  # [B, L]
        self.index = torch.where(inside, starts[:, None] + steps[None, :], 0).reshape(-1)
        self.flat = inside.reshape(-1).nonzero().squeeze(1)
        places = torch.arange(prefix + longest)
        self.masks = {kind: additive(visible(places[prefix:], places, kind), dtype) for kind in kinds}


# What one more grid costs, in places of the score matrix of one head (half a millisecond forward and backward).
GRID_COST = 20_000


def _cut_grids(lengths: Sequence[int], prefix: int, multiple: int) -> list[tuple[int, int, int]]:
    """(first, end, padded length) of the runs of documents that are cheapest to pad together."""

    def padded(first: int, end: int) -> int:
        return -(-max(lengths[first:end]) // multiple) * multiple

    best: list[tuple[int, list[tuple[int, int, int]]]] = [(0, [])]
    for end in range(1, len(lengths) + 1):
        choices = []
        for first in range(end):
            longest = padded(first, end)
            cost = best[first][0] + (end - first) * longest * (prefix + longest) + GRID_COST
            choices.append((cost, [*best[first][1], (first, end, longest)]))
        best.append(min(choices))
    return best[-1][1]


class PackedCausal:
    """Documents packed one after another, each isolated and causal; optionally all continue one shared prefix.

    Layout of the T tokens: [prefix (P tokens)] [document 1] ... [document B] [padding]. A document sees the prefix and
    its own past. With P = 0 this is plain packing; the result equals computing prefix + document for each one alone.
    With `past`, the prefix is not among the tokens: its keys and values are read from a cache.

    The number of tokens is rounded up to a multiple of `multiple` with tokens that nobody sees, and the lengths of the
    documents' padded grids to 32: products of few distinct shapes keep oneDNN's compiled kernels and malloc's blocks
    in use. Neighbours of one length waste least. `windows` are those of `ModelConfig`: a sliding layer's.
    """

    def __init__(
        self,
        prefix: int,
        lengths: Sequence[int],
        *,
        dtype: torch.dtype,
        multiple: int = 1,
        past: Past | None = None,
        windows: Sequence[int | None] = (),
    ) -> None:
        assert min(lengths, default=0) > 0, "a pack holds at least one token per document"
        self.lengths, self.past = list(lengths), past
        self.prefix = own = 0 if past else prefix  # tokens of the prefix that stand in the pack
        self.padding = -(own + sum(lengths)) % multiple
        self._before, self._dtype, self._multiple = prefix, dtype, min(multiple, 32)
        self._windows = tuple(windows)
        self.segments = None if past else Segments(segments_of(prefix, lengths))
        unseen = torch.zeros(self.padding, dtype=torch.long)
        self.positions = torch.cat([torch.arange(own), *(torch.arange(n) + prefix for n in lengths), unseen])

    @cached_property
    def _grids(self) -> list[_Grid]:
        return [
            _Grid(
                self.lengths[first:end],
                self.prefix + sum(self.lengths[:first]),
                longest,
                self._before,
                set(self._windows) or {None},
                self._dtype,
            )
            for first, end, longest in _cut_grids(self.lengths, self._before, self._multiple)
        ]

    @cached_property
    def _prefix_masks(self) -> dict[int | None, Tensor]:
        places = torch.arange(self.prefix)
        return {kind: additive(visible(places, places, kind), self._dtype) for kind in set(self._windows) or {None}}

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        _, heads, dim = q.shape
        kv_heads, prefix = k.shape[1], self.prefix
        window = self._windows[layer] if self._windows else None
        own = (k[:prefix].transpose(0, 1), v[:prefix].transpose(0, 1))
        shared = self.past(layer) if self.past else own
        parts = [self._documents(grid, q, k, v, shared, window) for grid in self._grids]
        if prefix:
            first = q[:prefix].transpose(0, 1).reshape(1, kv_heads, heads // kv_heads, prefix, dim)
            head = _recomputed(first, own[0][None], own[1][None], self._prefix_masks[window])
            parts.insert(0, head.reshape(heads, prefix, dim).transpose(0, 1))
        if self.padding:
            parts.append(q.new_zeros(self.padding, heads, dim))
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _documents(
        self, grid: _Grid, q: Tensor, k: Tensor, v: Tensor, shared: tuple[Tensor, Tensor], window: int | None
    ) -> Tensor:
        """Attention of one grid's documents -> [their tokens, H, D]."""
        (heads, dim), kv_heads, batch = q.shape[1:], k.shape[1], grid.rows

        def padded(x: Tensor) -> Tensor:  # [T, N, D] -> [B, N, L, D]
            return x.index_select(0, grid.index).view(batch, -1, x.shape[1], dim).transpose(1, 2)

        queries = padded(q).reshape(batch, kv_heads, heads // kv_heads, -1, dim)
        keys, values = padded(k), padded(v)
        if shared[0].shape[1]:
            keys = torch.cat([shared[0].expand(batch, -1, -1, -1), keys], dim=2)
            values = torch.cat([shared[1].expand(batch, -1, -1, -1), values], dim=2)
        out = _recomputed(queries, keys, values, grid.masks[window])  # [B, K, G, L, D]
        return out.reshape(batch, heads, -1, dim).transpose(1, 2).reshape(-1, heads, dim).index_select(0, grid.flat)


class PackedGroups:
    """Groups of documents one after another, each as in `PackedCausal` with its own shared prefix; none sees another.

    Layout of the T tokens: group after group, then padding up to a multiple of `multiple`.
    """

    def __init__(
        self,
        groups: Sequence[tuple[int, Sequence[int]]],
        *,
        dtype: torch.dtype,
        multiple: int = 1,
        windows: Sequence[int | None] = (),
    ) -> None:
        assert groups, "a pack holds at least one group"
        self._groups = [(prefix, list(lengths)) for prefix, lengths in groups]
        self._dtype, self._multiple, self._windows = dtype, min(multiple, 32), windows
        sizes = [prefix + sum(lengths) for prefix, lengths in groups]
        self.padding = -sum(sizes) % multiple
        self._sizes = [*sizes, self.padding]
        self.segments = Segments(
            [
                row
                for n, (prefix, lengths) in enumerate(groups)
                for row in segments_of(prefix, lengths, start=sum(sizes[:n]))
            ]
        )
        places = [
            place
            for prefix, lengths in groups
            for place in (torch.arange(prefix), *(torch.arange(n) + prefix for n in lengths))
        ]
        self.positions = torch.cat([*places, torch.zeros(self.padding, dtype=torch.long)])

    @cached_property
    def _parts(self) -> list[PackedCausal]:
        parts = [
            PackedCausal(prefix, lengths, dtype=self._dtype, multiple=self._multiple, windows=self._windows)
            for prefix, lengths in self._groups
        ]
        for part in parts:
            part.padding = 0  # that of the whole pack stands at its end
        return parts

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        split = zip(*(torch.split(x, self._sizes) for x in (q, k, v)), strict=True)
        out = [part(layer, *each) for part, each in zip(self._parts, split, strict=False)]
        if self.padding:
            out.append(q.new_zeros(self.padding, *q.shape[1:]))
        return torch.cat(out) if len(out) > 1 else out[0]


def segments_of(prefix: int, lengths: Sequence[int], start: int = 0) -> list[tuple[int, int, int, int]]:
    """The rows of `Segments` of one group that begins at token `start`."""
    rows = [(start, prefix, 0, 0)] if prefix else []
    at = start + prefix
    for length in lengths:
        rows.append((at, length, start, prefix))
        at += length
    return rows
