"""Cross-entropy of chosen rows against the head, without ever holding the whole logit matrix.

N = rows with a label, E = hidden_size, V = vocabulary. Rows without a label are never multiplied. Works in chunks of
rows whose logits take at most `CHUNK_BYTES`; gradients take the place of the logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from riverrun.models import native
from riverrun.models.products import times, times_back

__all__ = [
    "CHUNK_BYTES",
    "Head",
    "bound_logits",
    "chunk_rows",
    "head_back",
    "head_logits",
    "linear_cross_entropy",
    "token_logprobs",
]

USUAL_BYTES = 192 << 20
CHUNK_BYTES = USUAL_BYTES
STEP = 64
SLAB = 1 << 14  # rows of the head's gradient that are added at once


class Head(Protocol):
    """A head [V, E] that is not one tensor (quantised): given out in slabs of rows, in order."""

    shape: torch.Size

    def slabs(self) -> Iterator[tuple[slice, Tensor]]: ...


def bound_logits(count: int = 0) -> None:
    """Let the logits that exist at once take at most `count` bytes from now on, and none between losses: where memory
    is short. 0: as usual again."""
    global CHUNK_BYTES
    CHUNK_BYTES, _room.stays = count or USUAL_BYTES, not count


def chunk_rows(vocabulary: int, itemsize: int) -> int:
    """Rows whose logits exist at once: a multiple of `STEP`."""
    return max(STEP, CHUNK_BYTES // (vocabulary * itemsize) // STEP * STEP)


class _Room:
    """Memory of the logits that stays: pages that are fresh for every chunk cost a quarter of its time."""

    def __init__(self) -> None:
        self._held, self.stays = torch.empty(0), True

    def done(self) -> None:
        """The last logits of a loss have been used."""
        if not self.stays:
            self._held = torch.empty(0)

    def take(self, rows: Tensor, vocabulary: int) -> Tensor:
        """[rows, V] like `rows`, valid until the next call."""
        count = rows.shape[0] * vocabulary
        if rows.device.type != "cpu":
            return rows.new_empty(rows.shape[0], vocabulary)
        if self._held.dtype != rows.dtype or self._held.numel() < count:
            self._held = rows.new_empty(count)
        return self._held[:count].view(rows.shape[0], vocabulary)


_room = _Room()


def head_logits(rows: Tensor, head: Tensor | Head) -> Tensor:
    """rows [c, E] -> logits [c, V], in memory that the next call uses again."""
    out = _room.take(rows, head.shape[0])
    if isinstance(head, Tensor):
        return times(rows, head, out)
    for where, slab in head.slabs():
        torch.mm(rows, slab.T, out=out[:, where]) if slab.dtype == rows.dtype else out[:, where].copy_(rows @ slab.T)
    return out


def head_back(d_logits: Tensor, head: Tensor | Head) -> Tensor:
    """[c, V] -> gradient of the rows [c, E]."""
    if isinstance(head, Tensor):
        return times_back(d_logits, head)
    out = d_logits.new_zeros(d_logits.shape[0], head.shape[1], dtype=torch.float32)
    for where, slab in head.slabs():
        out += d_logits[:, where] @ slab
    return out.to(d_logits.dtype)


def _cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor | None, count: int) -> Tensor:
    """Losses [count] of the first rows; `logits` become their gradients times `weights`, 0 below `count`."""
    if native.fits(logits):
        losses = torch.empty(count)
        code = native.dtype_code(logits)
        native.call("cross_entropy", code, logits, targets, losses, weights, count, logits.shape[1])
    else:
        wide = logits[:count].to(torch.float64 if logits.dtype == torch.float64 else torch.float32)
        logprobs = torch.log_softmax(wide, dim=1)
        losses = -logprobs.gather(1, targets[:, None]).squeeze(1)
        probabilities = logprobs.exp_()
        probabilities[torch.arange(count, device=logits.device), targets] -= 1
        logits[:count] = probabilities if weights is None else probabilities.mul_(weights[:, None].to(wide.dtype))
    logits[count:] = 0
    return losses


def _up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def _chunk_count(hidden: Tensor, head: Tensor | Head) -> int:
    return -(-hidden.shape[0] // chunk_rows(head.shape[0], hidden.element_size()))


def _chunks(hidden: Tensor, head: Tensor | Head) -> Iterator[tuple[slice, int, Tensor, Tensor]]:
    """(rows, their number, those rows, their logits), both padded to a multiple of `STEP`: few distinct shapes."""
    size = max(STEP, _up(-(-hidden.shape[0] // max(1, _chunk_count(hidden, head))), STEP))  # chunks of equal size
    for start in range(0, hidden.shape[0], size):
        rows = hidden[start : start + size]
        count = rows.shape[0]
        padded = pad(rows, (0, 0, 0, -count % STEP))
        yield slice(start, start + count), count, padded, head_logits(padded, head)
    _room.done()


class _HeadGradient:
    """The head's gradient, summed over chunks in fp32 where there is more than one.

    The sums are slabs of their own, so that each can be rounded and given back before the next is.
    """

    def __init__(self, head: Tensor, chunks: int) -> None:
        self.shape, self.dtype, self.several = head.shape, head.dtype, chunks > 1
        self.slabs: list[Tensor | None] = [None] * -(-head.shape[0] // SLAB)
        self.only: Tensor | None = None

    def add(self, d_logits: Tensor, rows: Tensor) -> None:
        if not self.several:
            self.only = d_logits.T @ rows
            return
        for place, slab in enumerate(self.slabs):
            part = d_logits[:, place * SLAB : (place + 1) * SLAB].T @ rows
            if slab is None:
                self.slabs[place] = part.to(torch.promote_types(self.dtype, torch.float32))
            else:
                slab += part

    def taken(self) -> Tensor:
        if self.only is not None:
            return self.only
        out = torch.empty(self.shape, dtype=self.dtype, device=self.slabs[0].device)  # type: ignore[union-attr]
        for place, slab in enumerate(self.slabs):
            assert slab is not None, "add() comes before taken()"
            out[place * SLAB : (place + 1) * SLAB] = slab
            self.slabs[place] = None
        return out


def _head_gradient(hidden: Tensor, head: Tensor, targets: Tensor, log_sums: Tensor) -> Tensor:
    """The head's gradient once the log-sums [N] of all rows are known: slab after slab of the vocabulary, of all rows
    in one product each. Forms the logits again, and no sum over chunks ever exists."""
    out = torch.empty_like(head)
    width = max(STEP, CHUNK_BYTES // (hidden.shape[0] * hidden.element_size()) // STEP * STEP)
    for start in range(0, head.shape[0], width):
        part = head[start : start + width]
        logits = times(hidden, part, _room.take(hidden, part.shape[0]))
        aims = targets - start
        if native.fits(logits):
            native.call("softmax_slab", native.dtype_code(logits), logits, log_sums, aims, *logits.shape)
        else:
            wide = (logits.to(log_sums.dtype) - log_sums[:, None]).exp_()
            within = ((aims >= 0) & (aims < part.shape[0])).nonzero().squeeze(1)
            wide[within, aims[within]] -= 1
            logits.copy_(wide)
        torch.mm(logits.T, hidden, out=out[start : start + width])
    _room.done()
    return out


class _LinearCrossEntropy(torch.autograd.Function):
    """Sum of -log softmax(hidden head^T)[target]; gradients are formed with the loss, the head's where it learns."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor | Head, targets: Tensor, learns: bool) -> Tensor:
        total = torch.zeros((), dtype=torch.float64, device=hidden.device)
        grads = torch.empty_like(hidden)
        d_head = None
        twice = learns and not _room.stays and _chunk_count(hidden, head) > 1
        if learns and isinstance(head, Tensor) and not twice:
            d_head = _HeadGradient(head, _chunk_count(hidden, head))
        log_sums = []
        for where, count, rows, logits in _chunks(hidden, head):
            aims = logits[:count].gather(1, targets[where, None]).squeeze(1) if twice else None
            losses = _cross_entropy(logits, targets[where], None, count)
            total += losses.sum(dtype=torch.float64)
            if aims is not None:
                log_sums.append(losses + aims)
            grads[where] = head_back(logits, head)[:count]
            if d_head is not None:
                d_head.add(logits, rows)
        ctx.grads, ctx.d_head = grads, d_head.taken() if d_head is not None else None
        if twice and isinstance(head, Tensor):
            ctx.d_head = _head_gradient(hidden, head, targets, torch.cat(log_sums))
        return total if hidden.dtype == torch.float64 else total.to(torch.float32)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        grads, d_head, ctx.grads, ctx.d_head = ctx.grads, ctx.d_head, None, None
        assert grads is not None, "the gradients of a loss can be taken once"
        if d_head is not None:  # in place: it is the largest tensor of a step
            d_head.mul_(upstream[0].to(d_head.dtype))
        return grads.mul_(upstream[0].to(grads.dtype)), d_head, None, None


class _TokenLogprobs(torch.autograd.Function):
    """log softmax(hidden head^T)[target] row by row; the logits are formed again for the backward."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor | Head, targets: Tensor) -> Tensor:
        ctx.head = None if isinstance(head, Tensor) else head
        ctx.save_for_backward(hidden, head if isinstance(head, Tensor) else None, targets)
        parts = [-_cross_entropy(logits, targets[where], None, n) for where, n, _, logits in _chunks(hidden, head)]
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        return torch.cat(parts).to(wide) if parts else hidden.new_empty(0, dtype=wide)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor | None, None]:
        hidden, tensor, targets = ctx.saved_tensors
        head: Tensor | Head = ctx.head if tensor is None else tensor
        grads, d_head = torch.empty_like(hidden), None
        if tensor is not None and ctx.needs_input_grad[1]:
            d_head = _HeadGradient(tensor, _chunk_count(hidden, tensor))
        for where, count, rows, logits in _chunks(hidden, head):
            _cross_entropy(logits, targets[where], -upstream[0][where].contiguous(), count)
            grads[where] = head_back(logits, head)[:count]
            if d_head is not None:
                d_head.add(logits, rows)
        return grads, None if d_head is None else d_head.taken(), None


def linear_cross_entropy(hidden: Tensor, head: Tensor | Head, targets: Tensor) -> Tensor:
    """hidden [N, E], head [V, E], targets [N] -> summed loss in nats (fp32 scalar, fp64 of fp64); 0 rows give 0."""
    assert hidden.shape[0] == targets.shape[0], f"{hidden.shape[0]} rows, {targets.shape[0]} targets"
    learns = isinstance(head, Tensor) and head.requires_grad
    if hidden.shape[0] == 0:
        return hidden.sum().to(torch.float64 if hidden.dtype == torch.float64 else torch.float32)
    return _LinearCrossEntropy.apply(hidden, head, targets, learns)  # type: ignore[no-any-return,no-untyped-call]


def token_logprobs(hidden: Tensor, head: Tensor | Head, targets: Tensor) -> Tensor:
    """hidden [N, E], head [V, E], targets [N] -> log-probability of each target, [N] in fp32 (fp64 of fp64)."""
    assert hidden.shape[0] == targets.shape[0], f"{hidden.shape[0]} rows, {targets.shape[0]} targets"
    return _TokenLogprobs.apply(hidden, head, targets)  # type: ignore[no-any-return,no-untyped-call]
