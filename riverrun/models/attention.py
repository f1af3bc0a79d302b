"""Attention over packed tokens. T = tokens, H = query heads, K = key/value heads, G = H / K, D = head_dim.

A layer hands over q [T, H, D], k and v [T, K, D] and gets [T, H, D] back. Who may look at whom is not the layer's
business: it is decided by the object passed as `attend` (training packs here, the KV cache of decoding in `cache`).

Two kernels: fp32 and fp64 use torch's SDPA; bf16 and fp16 use explicit products with one mask per pack, which on CPU is
2.5 times as fast forward and backward as SDPA's flash kernel at the lengths of a pack (docs/log.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

__all__ = ["Attend", "PackedCausal", "grouped_attention"]


class Attend(Protocol):
    """Attention of one layer's tokens; implementations hold the pack's layout or the cache."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor: ...


def grouped_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """q [B, K, G, L, D], k and v [B, K, S, D], additive mask [L, S] or [B, L, S] -> [B, K, G, L, D].

    The G query heads that share a key head are rows of the same product.
    """
    batch, kv_heads, group, length, dim = q.shape
    per_batch = mask.dim() == 3
    if q.dtype in (torch.float32, torch.float64):
        flat = q.reshape(batch, kv_heads * group, length, dim)
        where = mask[:, None] if per_batch else mask
        out = scaled_dot_product_attention(
            flat, k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1), attn_mask=where.to(q.dtype)
        )
        return out.reshape(q.shape)
    rows = q.reshape(batch * kv_heads, group * length, dim) * dim**-0.5
    keys = k.reshape(batch * kv_heads, -1, dim)
    values = v.reshape(batch * kv_heads, -1, dim)
    if per_batch:
        bias = mask[:, None, None].expand(batch, kv_heads, group, length, -1).reshape(rows.shape[0], rows.shape[1], -1)
    else:
        bias = mask.repeat(group, 1).expand(rows.shape[0], -1, -1)
    scores = torch.baddbmm(bias.to(q.dtype), rows, keys.transpose(1, 2))
    return torch.bmm(torch.softmax(scores, dim=-1), values).reshape(q.shape)


class PackedCausal:
    """Documents packed one after another, each isolated and causal; optionally all continue one shared prefix.

    Layout of the T tokens: [prefix (P tokens)] [document 1] ... [document B]. A document sees the prefix and its own
    past. With P = 0 this is plain packing; the result equals computing prefix + document for each one alone.

    The number of tokens is rounded up to a multiple of `multiple` with tokens that nobody sees, and the padded grid of
    the documents likewise: products of few distinct shapes keep oneDNN's compiled kernels and malloc's blocks in use.
    """

    def __init__(self, prefix: int, lengths: Sequence[int], *, dtype: torch.dtype, multiple: int = 1) -> None:
        assert min(lengths, default=0) > 0, "a pack holds at least one token per document"
        self.prefix, self.lengths = prefix, list(lengths)
        longest = -(-max(lengths) // min(multiple, 32)) * min(multiple, 32)
        tokens = prefix + sum(lengths)
        self.padding = -tokens % multiple
        starts = torch.tensor([prefix + sum(lengths[:i]) for i in range(len(lengths))])
        inside = torch.arange(longest)[None, :] < torch.tensor(self.lengths)[:, None]  # [B, L]
        self._grid = torch.where(inside, starts[:, None] + torch.arange(longest)[None, :], 0).reshape(-1)
        self._flat = inside.reshape(-1).nonzero().squeeze(1)  # places of real tokens in the padded grid
        past = torch.ones(longest, longest, dtype=torch.bool).tril()
        seen = torch.cat([torch.ones(longest, prefix, dtype=torch.bool), past], dim=1)
        self._mask = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, float("-inf"))
        own = torch.ones(prefix, prefix, dtype=torch.bool).tril()
        self._prefix_mask = torch.zeros(own.shape, dtype=dtype).masked_fill(~own, float("-inf"))
        unseen = torch.zeros(self.padding, dtype=torch.long)
        self.positions = torch.cat([torch.arange(prefix), *(torch.arange(n) + prefix for n in lengths), unseen])

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        _, heads, dim = q.shape
        kv_heads = k.shape[1]
        batch, prefix = len(self.lengths), self.prefix
        group = heads // kv_heads

        def padded(x: Tensor) -> Tensor:  # [T, N, D] -> [B, N, L, D]
            return x.index_select(0, self._grid).view(batch, -1, x.shape[1], dim).transpose(1, 2)

        queries = padded(q).reshape(batch, kv_heads, group, -1, dim)
        keys, values = padded(k), padded(v)
        if prefix:
            shared_k = k[:prefix].transpose(0, 1).expand(batch, kv_heads, prefix, dim)
            shared_v = v[:prefix].transpose(0, 1).expand(batch, kv_heads, prefix, dim)
            keys, values = torch.cat([shared_k, keys], dim=2), torch.cat([shared_v, values], dim=2)
        out = grouped_attention(queries, keys, values, self._mask)  # [B, K, G, L, D]
        out = out.reshape(batch, heads, -1, dim).transpose(1, 2).reshape(-1, heads, dim).index_select(0, self._flat)
        if prefix:
            first = q[:prefix].transpose(0, 1).reshape(1, kv_heads, group, prefix, dim)
            own_k, own_v = k[:prefix].transpose(0, 1)[None], v[:prefix].transpose(0, 1)[None]
            head = grouped_attention(first, own_k, own_v, self._prefix_mask)
            out = torch.cat([head.reshape(heads, prefix, dim).transpose(0, 1), out])
        return torch.cat([out, out.new_zeros(self.padding, heads, dim)]) if self.padding else out
