"""Keys and values in blocks, and attention over them. N = blocks, S = tokens of a block, K = key/value heads, D =
head_dim, T = new tokens.

Which block belongs to whom is decided elsewhere (`serve.blocks`): here a sequence is a table of block numbers. Memory
is reserved and not touched, so a cache costs what was written to it. `PagedAttend` is the attention of one forward; on
a CPU with kernels it reads the blocks where they lie (csrc/paged.inc), else they are gathered into one tensor.

Codes of 8 or 4 bits: for each token and head x = code * step + least with step = (max - min) / 255 (or 15), least =
min, both in half precision (the grid of LMDeploy's online KV quantisation, kernels/attention/quantization.h). A byte
holds two codes of 4 bits: low that of place d, high that of place d + D / 2.
"""

from __future__ import annotations

import ctypes
import math
import mmap
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from riverrun.models import native
from riverrun.models.attention import additive, grouped_attention, visible
from riverrun.models.config import ModelConfig

__all__ = ["Growing", "KVType", "NewTokens", "PagedAttend", "PagedCache", "bytes_per_token"]

KVType = Literal["model", "int8", "int4"]
BITS: dict[KVType, int] = {"int8": 8, "int4": 4}
LEAST_STEP = 6e-8
"""Below it a step is no number in half precision."""


def bytes_per_token(config: ModelConfig, kind: KVType, itemsize: int) -> int:
    """Of all layers, keys and values."""
    head = config.head_dim * BITS[kind] // 8 + 4 if kind in BITS else config.head_dim * itemsize
    return 2 * config.num_hidden_layers * config.num_key_value_heads * head


def encode(x: Tensor, bits: int = 8) -> tuple[Tensor, Tensor]:
    """[..., D] -> (codes uint8 [..., D * bits / 8], (step, least) half [..., 2])."""
    x, steps = x.float(), 2**bits - 1
    least = x.amin(dim=-1).half()
    step = ((x.amax(dim=-1) - least.float()) / steps).clamp(min=LEAST_STEP).half()
    scaled = (x - least.float()[..., None]) / step.float()[..., None]
    codes = scaled.round_().clamp_(0, steps).to(torch.uint8)
    if bits == 4:
        low, high = codes.chunk(2, dim=-1)
        codes = low | high << 4
    return codes, torch.stack([step, least], dim=-1)


def decode(codes: Tensor, scales: Tensor, dtype: torch.dtype, bits: int = 8) -> Tensor:
    step, least = scales.float().unbind(dim=-1)
    if bits == 4:
        codes = torch.cat([codes & 15, codes >> 4], dim=-1)
    return (codes.float() * step[..., None] + least[..., None]).to(dtype)


class PagedCache:
    """`keys[layer]` and `values[layer]` are [N, K, S, D]; as codes [N, K, S, D * bits / 8], with
    `scales[name][layer]` [N, K, S, 2]."""

    def __init__(
        self,
        config: ModelConfig,
        blocks: int,
        size: int,
        dtype: torch.dtype,
        *,
        kind: KVType = "model",
        device: str | torch.device = "cpu",
    ) -> None:
        self.blocks, self.size, self.dtype, self.kind, self.windows = blocks, size, dtype, kind, config.windows
        self.bits = BITS.get(kind, 0)
        width = config.head_dim * self.bits // 8 if self.bits else config.head_dim
        shape = (blocks, config.num_key_value_heads, size, width)
        stored = torch.uint8 if self.bits else dtype
        layers = range(config.num_hidden_layers)

        def made(shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
            if torch.device(device).type == "cpu":
                return [_reserved(shape, dtype) for _ in layers]
            return [torch.zeros(shape, dtype=dtype, device=device) for _ in layers]

        self.keys, self.values = made(shape, stored), made(shape, stored)
        small = (*shape[:-1], 2)
        self.scales = {name: made(small, torch.half) if self.bits else [] for name in ("keys", "values")}

    def write(self, layer: int, blocks_T: Tensor, places_T: Tensor, k: Tensor, v: Tensor) -> None:
        """Store k and v [T, K, D] at these places of these blocks."""
        for name, x in (("keys", k), ("values", v)):
            into = getattr(self, name)[layer]
            if self.bits:
                x, scales = encode(x, self.bits)
                self.scales[name][layer][blocks_T, :, places_T] = scales
            into[blocks_T, :, places_T] = x

    def read(self, layer: int, tables: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, K, n * S, D] of the blocks of tables [B, n]."""
        return self._read("keys", layer, tables), self._read("values", layer, tables)

    def _read(self, name: str, layer: int, tables: Tensor) -> Tensor:
        found: Tensor = getattr(self, name)[layer][tables]
        if self.bits:
            found = decode(found, self.scales[name][layer][tables], self.dtype, self.bits)
        batch, count, heads, size, dim = found.shape
        return found.transpose(1, 2).reshape(batch, heads, count * size, dim)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """All that blocks consist of, first dimension N: for saving some and loading them again."""
        for layer in range(len(self.keys)):
            for name in ("keys", "values"):
                yield f"{layer}.{name}", getattr(self, name)[layer]
                if self.bits:
                    yield f"{layer}.{name}.scales", self.scales[name][layer]


def _reserved(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros that take no memory until they are written: fresh pages of the system, small ones.

    Not `torch.empty`: a masked place has weight 0, and 0 times what some earlier owner left there may be NaN. Not
    numpy's zeros: it asks for pages of 2 MB, and the first token of a block would then cost what hundreds do.
    """
    pages = mmap.mmap(-1, math.prod(shape) * dtype.itemsize)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        with suppress(OSError):  # a kernel without huge pages
            pages.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype).view(shape)


@dataclass(frozen=True, slots=True)
class NewTokens:
    """`count` tokens of a sequence from position `start` on; `table` holds blocks for `start + count` tokens."""

    start: int
    count: int
    table: Sequence[int]


class _Span(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("rows_at", "rows", "table_at", "first", "keys")]


class _Shape(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("heads", "kv_heads", "dim", "row", "block", "window", "bits")),
        ("scale", ctypes.c_float),
    ]


class _Paged(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("q", "keys", "values", "key_scales", "value_scales", "out", "span")),
        *((name, ctypes.c_int64) for name in ("spans", "tokens")),
        *((n, ctypes.c_void_p) for n in ("row_tokens", "positions", "tables", "parts_at", "parts", "state")),
    ]


WORTH_SHARING = 32
"""Tokens that a common beginning must have to be read once for all."""
SPAN_KEYS, SPAN_ROWS = 2048, 128
"""The largest pieces of work of one core, in keys and in query tokens."""
WIDEST = 512
"""head_dim that the kernel has room for."""
SCORE_BYTES = 64 << 20
"""Scores that the torch form holds at once."""


class PagedAttend:
    """New tokens of several sequences, each after what its blocks hold already.

    `positions` [T] are theirs; what is computed at a layer is written to the cache before it is looked at.
    """

    segments = None  # keys are read from the cache

    def __init__(self, cache: PagedCache, new: Sequence[NewTokens]) -> None:
        self.cache, self.new = cache, list(new)
        starts = np.array([each.start for each in new])
        counts = np.array([each.count for each in new])
        ends = counts.cumsum()
        row = np.repeat(np.arange(len(new)), counts)
        positions = np.arange(ends[-1]) - np.repeat(ends - counts, counts) + starts[row]
        tables = [np.asarray(each.table, np.int64) for each in new]
        for each, table in zip(new, tables, strict=True):
            assert each.start + each.count <= len(table) * cache.size, "a table must hold its new tokens"
        device = cache.keys[0].device
        offset = np.concatenate([[0], np.cumsum([len(table) for table in tables])])[row]
        own = np.concatenate(tables)[offset + positions // cache.size]
        self._tables, self._first = tables, ends - counts
        self.positions = torch.from_numpy(positions).to(device)
        self._blocks, self._places = torch.from_numpy(own).to(device), self.positions % cache.size
        self.last_rows = torch.from_numpy(ends - 1).to(device)
        self._plan: _Plan | None = None

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.cache.write(layer, self._blocks, self._places, k, v)
        window = self.cache.windows[layer] if self.cache.windows else None
        if q.device.type == "cpu" and q.shape[2] % 16 == 0 and q.shape[2] <= WIDEST and native.fits(q):
            return self._native(layer, q.contiguous(), k.shape[1], window)
        return self._gathered(layer, q, window)

    # --- the kernel

    def _native(self, layer: int, q: Tensor, kv_heads: int, window: int | None) -> Tensor:
        plan = self._plan = self._plan or _Plan(self.new, self._tables, self._first, self.cache.size)
        cache, (tokens, heads, dim) = self.cache, q.shape
        state = plan.state(heads * (dim + 2))
        out = torch.empty_like(q)
        scales = [cache.scales[name][layer] if cache.bits else None for name in ("keys", "values")]
        pointers = [
            x.data_ptr() if x is not None else None for x in (q, cache.keys[layer], cache.values[layer], *scales)
        ]
        arrays = (plan.row_tokens, self.positions, plan.tables, plan.parts_at, plan.parts, state)
        paged = _Paged(
            *pointers, out.data_ptr(), ctypes.addressof(plan.spans), len(plan.spans), tokens,
            *(x.data_ptr() for x in arrays),
        )  # fmt: skip
        shape = _Shape(heads, kv_heads, dim, heads * dim, cache.size, window or 0, cache.bits, dim**-0.5)
        native.call("attention_paged", ctypes.c_int(native.dtype_code(q)), paged, shape)
        return out

    # --- torch alone

    def _gathered(self, layer: int, q: Tensor, window: int | None) -> Tensor:
        """Answers together, padded to the longest; prompts one by one."""
        out = torch.empty_like(q)
        single = [n for n, each in enumerate(self.new) if each.count == 1]
        groups = ([single] if single else []) + [[n] for n, each in enumerate(self.new) if each.count > 1]
        for group in groups:
            first = torch.as_tensor(self._first[group], device=q.device)
            rows = first[:, None] + torch.arange(self.new[group[0]].count, device=q.device)  # [B, L]
            out[rows] = self._group(layer, q[rows], self.positions[rows], group, window)
        return out

    def _group(self, layer: int, q: Tensor, positions: Tensor, group: list[int], window: int | None) -> Tensor:
        """q [B, L, H, D] -> the same shape."""
        size = self.cache.size
        longest = max(len(self._tables[n]) for n in group)
        padded = np.zeros((len(group), longest), np.int64)
        for row, n in enumerate(group):
            padded[row, : len(self._tables[n])] = self._tables[n]
        keys, values = self.cache.read(layer, torch.from_numpy(padded).to(q.device))
        batch, length, heads, dim = q.shape
        kv_heads = keys.shape[1]
        grouped = q.transpose(1, 2).reshape(batch, kv_heads, heads // kv_heads, length, dim)
        places = torch.arange(longest * size, device=q.device)
        step = max(1, SCORE_BYTES // (batch * heads * len(places) * 4))
        out = [
            grouped_attention(
                grouped[:, :, :, at : at + step],
                keys,
                values,
                additive(visible(positions[:, at : at + step], places, window), q.dtype),
            )
            for at in range(0, length, step)
        ]
        return torch.cat(out, dim=3).reshape(batch, heads, length, dim).transpose(1, 2)


class Growing:
    """The cache of one sequence of at most `context` tokens that is computed piece by piece."""

    def __init__(self, config: ModelConfig, context: int, dtype: torch.dtype, *, size: int = 16) -> None:
        self.table = list(range(-(-context // size)))
        self.cache, self.length = PagedCache(config, len(self.table), size, dtype), 0

    def attend(self, count: int) -> PagedAttend:
        """The attention of its next `count` tokens."""
        start, self.length = self.length, self.length + count
        return PagedAttend(self.cache, [NewTokens(start, count, self.table)])


class _Plan:
    """The spans of one forward: common beginnings once for all who share them, the rest for each one alone."""

    def __init__(
        self, new: Sequence[NewTokens], tables: Sequence[NDArray[np.int64]], first: NDArray[np.int64], size: int
    ):
        self._rows: list[NDArray[np.int64]] = []
        self._found: list[tuple[int, int, int, int, int]] = []
        self._rows_at = 0
        at = np.concatenate([[0], np.cumsum([len(table) for table in tables])])
        for members, common in _clusters(new, tables, size):
            if common:
                rows = np.array([first[n] for n in members])
                self._add(rows, int(at[members[0]]), 0, common * size, size)
            for n in members:
                begin, end = common * size, new[n].start + new[n].count
                for row in range(0, new[n].count, SPAN_ROWS):
                    count = min(SPAN_ROWS, new[n].count - row)
                    reach = min(end, new[n].start + row + count)
                    rows = np.arange(first[n] + row, first[n] + row + count)
                    self._add(rows, int(at[n]) + common, begin, reach - begin, size)
        self.spans = (_Span * len(self._found))(*(_Span(*each) for each in self._found))
        rows = np.concatenate(self._rows)
        order = np.argsort(rows, kind="stable")  # spans of one query stand in the order of their keys already
        tokens = int(first[-1]) + new[-1].count
        self.row_tokens = torch.from_numpy(rows)
        self.parts = torch.from_numpy(order)
        self.parts_at = torch.from_numpy(np.searchsorted(rows[order], np.arange(tokens + 1)))
        self.tables = torch.from_numpy(np.concatenate(tables))
        self._state: Tensor | None = None

    def _add(self, rows: NDArray[np.int64], table_at: int, first: int, keys: int, size: int) -> None:
        """The keys in runs of at most SPAN_KEYS."""
        for at in range(0, keys, SPAN_KEYS):
            keys_here = min(SPAN_KEYS, keys - at)
            self._found.append((self._rows_at, len(rows), table_at + at // size, first + at, keys_here))
            self._rows.append(rows)
            self._rows_at += len(rows)

    def state(self, width: int) -> Tensor:
        """Room for what all rows of all spans find, the same for every layer."""
        if self._state is None:
            self._state = torch.empty(self._rows_at * width)
        return self._state


def _clusters(
    new: Sequence[NewTokens], tables: Sequence[NDArray[np.int64]], size: int
) -> Iterator[tuple[list[int], int]]:
    """(sequences, blocks at their beginning that they share): answers that begin with the same block together."""
    groups: dict[int, list[int]] = {}
    for n, each in enumerate(new):
        if each.count == 1:
            groups.setdefault(int(tables[n][0]), []).append(n)
        else:
            yield [n], 0
    for members in groups.values():
        common = min(new[n].start // size for n in members)
        for n in members[1:]:
            differ = np.flatnonzero(tables[n][:common] != tables[members[0]][:common])
            common = int(differ[0]) if len(differ) else common
        if len(members) > 1 and common * size >= WORTH_SHARING:
            yield members, common
        else:
            yield from (([n], 0) for n in members)
