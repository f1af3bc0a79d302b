"""Keys and values of running sequences, one slot each. S = slots, C = context, K = key/value heads, D = head_dim.

Memory is reserved and not touched: a slot costs what its tokens use (2 * layers * K * D * itemsize per token).
`SlotAttend` is the attention of one forward: new tokens of several slots, each after what its slot holds.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor

from riverrun.models.attention import additive, grouped_attention, prefixed_attention, visible
from riverrun.models.config import ModelConfig

__all__ = ["SlotAttend", "SlotCache", "reserved"]


class SlotCache:
    """`lengths[slot]` tokens of every layer stand in `keys[layer][slot]` and `values[layer][slot]`, [S, K, C, D]."""

    def __init__(self, config: ModelConfig, slots: int, context: int, dtype: torch.dtype) -> None:
        shape = (slots, config.num_key_value_heads, context, config.head_dim)
        self.keys = [reserved(shape, dtype) for _ in range(config.num_hidden_layers)]
        self.values = [reserved(shape, dtype) for _ in range(config.num_hidden_layers)]
        self.lengths = [0] * slots
        self.context, self.dtype, self.windows = context, dtype, config.windows

    def copy_prefix(self, source: int, target: int, tokens: int) -> None:
        """Give `target` the first `tokens` tokens of `source` and nothing else."""
        assert tokens <= self.lengths[source], f"slot {source} holds {self.lengths[source]} tokens, {tokens} asked for"
        if source != target:
            for stored in (self.keys, self.values):
                for layer in stored:
                    layer[target, :, :tokens] = layer[source, :, :tokens]
        self.lengths[target] = tokens

    def past(self, slot: int, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values [K, tokens, D] that a slot holds."""
        count = self.lengths[slot]
        return self.keys[layer][slot, :, :count], self.values[layer][slot, :, :count]


def reserved(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros that take no memory until they are written: fresh pages of the system, small ones.

    Not `torch.empty`: a masked place has weight 0, and 0 times what some earlier owner left there may be NaN. Not
    numpy's zeros: it asks for pages of 2 MB, and the first token of a slot would then cost what 16,000 do.
    """
    pages = mmap.mmap(-1, math.prod(shape) * dtype.itemsize)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        with suppress(OSError):  # a kernel without huge pages
            pages.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype).view(shape)


# A common beginning of fewer tokens is not worth products of its own.
WORTH_SHARING = 32


class SlotAttend:
    """New tokens for slots: sequence b adds `counts[b]` tokens after the `lengths[slots[b]]` it holds.

    `positions` are the T = sum(counts) absolute positions. The first `common` tokens are the same in all these slots:
    they are read from one of them. Call `commit` after the forward.
    """

    segments = None  # keys are read from the cache

    def __init__(self, cache: SlotCache, slots: Sequence[int], counts: Sequence[int], common: int = 0) -> None:
        self.cache, self.slots, self.counts = cache, list(slots), list(counts)
        assert common <= min(cache.lengths[slot] for slot in slots), f"{common} tokens are not held by every slot"
        self._common = common if len(slots) > 1 and common >= WORTH_SHARING else 0
        held = torch.tensor([cache.lengths[slot] for slot in slots])
        added = torch.tensor(self.counts)
        longest, self._span = max(counts), int((held + added).max())
        assert self._span <= cache.context, f"{self._span} tokens do not fit a context of {cache.context}"
        steps = torch.arange(longest)
        inside = steps[None, :] < added[:, None]  # [B, L]
        row = torch.arange(len(self.slots))[:, None].expand_as(inside)[inside]
        step = steps[None, :].expand_as(inside)[inside]
        self.positions = held[row] + step  # [T]
        self._slot_of = torch.tensor(self.slots)[row]
        starts = added.cumsum(0) - added
        self._grid = torch.where(inside, starts[:, None] + steps[None, :], 0).reshape(-1)
        self._flat = inside.reshape(-1).nonzero().squeeze(1)
        queries, places = held[:, None] + steps[None, :], torch.arange(self._span)
        self._masks = {}  # window -> (first place, [B, L, span - first place]); a sliding layer shares no beginning
        for window in set(cache.windows) or {None}:
            first = self._common if window is None else 0
            self._masks[window] = first, additive(visible(queries, places[first:], window), cache.dtype)
        dense = self.slots == list(range(self.slots[0], self.slots[0] + len(self.slots)))
        self._rows = slice(self.slots[0], self.slots[0] + len(self.slots)) if dense else torch.tensor(self.slots)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        _, heads, dim = q.shape
        kv_heads, batch = k.shape[1], len(self.slots)
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        keys[self._slot_of, :, self.positions] = k
        values[self._slot_of, :, self.positions] = v
        queries = q.index_select(0, self._grid).view(batch, -1, heads, dim).transpose(1, 2)
        grouped = queries.reshape(batch, kv_heads, heads // kv_heads, -1, dim)
        common, mask = self._masks[self.cache.windows[layer] if self.cache.windows else None]
        own = slice(common, self._span)
        own_k, own_v = keys[self._rows, :, own], values[self._rows, :, own]
        if common:
            first, before = self.slots[0], slice(0, common)
            prefix = (keys[first, :, before].contiguous(), values[first, :, before].contiguous())
            out = prefixed_attention(grouped, own_k, own_v, mask, prefix)
        else:  # a copy without gaps is cheaper than what a batched product does with gaps
            out = grouped_attention(grouped, own_k.contiguous(), own_v.contiguous(), mask)
        return out.reshape(batch, heads, -1, dim).transpose(1, 2).reshape(-1, heads, dim).index_select(0, self._flat)

    def commit(self) -> None:
        """The new tokens now belong to their slots."""
        for slot, count in zip(self.slots, self.counts, strict=True):
            self.cache.lengths[slot] += count

    def last_rows(self) -> Tensor:
        """Place in the T tokens of each sequence's last one."""
        return torch.tensor(self.counts).cumsum(0) - 1
