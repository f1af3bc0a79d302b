"""What training would see, before anything runs: counts, lengths, packs, and what the template does at the edges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from riverrun.base.errors import CapacityError
from riverrun.data.order import Mixture
from riverrun.data.rows import Rows
from riverrun.data.sampler import RowSampler
from riverrun.data.tokens import TokenRow
from riverrun.models.chat import ChatTemplate
from riverrun.models.tokenizer import Tokenizer

__all__ = ["Bar", "Packing", "Shown", "histogram", "notes", "packing", "shown_tokens"]

PADDED_BATCH = 8


@dataclass(frozen=True)
class Shown:
    """One token of a row. `piece` is its text as the vocabulary reads it, with what is left of a broken character."""

    id: int
    piece: str
    special: bool
    learned: bool


@dataclass(frozen=True)
class Bar:
    """Rows of `low` to `high` tokens, both included."""

    low: int
    high: int
    rows: int


@dataclass(frozen=True)
class Packing:
    """An epoch in packs. `fill` is the share of pack places that hold a token; `padded` is the share of places that
    would hold none in random batches of PADDED_BATCH rows padded to their longest."""

    rows: int
    tokens: int
    labels: int
    packs: int
    steps: int
    fill: float
    padded: float
    first: tuple[tuple[int, ...], ...]
    """Lengths of the rows of the first packs."""


def shown_tokens(row: TokenRow, tokenizer: Tokenizer) -> list[Shown]:
    """The tokens of a row with what counts in the loss; the first never does."""
    return [
        Shown(
            int(token),
            tokenizer.decode([int(token)], skip_special=False) or tokenizer.token(int(token)),
            tokenizer.is_special(int(token)),
            bool(learned) and place > 0,
        )
        for place, (token, learned) in enumerate(zip(row.ids, row.learned, strict=True))
    ]


def histogram(lengths: NDArray[np.int64], bars: int = 12) -> list[Bar]:
    """Rows by length, in stretches whose bounds grow by the same factor."""
    if not len(lengths):
        return []
    low, high = int(lengths.min()), int(lengths.max())
    steps = np.geomspace(low, high + 1, min(bars, high - low + 1) + 1)
    bounds = sorted({round(step) for step in steps} | {low, high + 1})
    counts, _ = np.histogram(lengths, bins=bounds)
    if len(bounds) == 1:
        return [Bar(low, high, len(lengths))]
    return [Bar(a, b - 1, int(count)) for a, b, count in zip(bounds, bounds[1:], counts, strict=False)]


def packing(rows: Rows | Mixture, *, micro_tokens: int, global_tokens: int, seed: int = 0) -> Packing | str:
    """The first epoch's packs; the reason in a sentence when a row does not fit into one."""
    packs_per_step = -(-global_tokens // micro_tokens)
    try:
        sampler = RowSampler(rows, micro_tokens=micro_tokens, packs_per_step=packs_per_step, seed=seed)
    except CapacityError as error:
        return str(error)
    stats = sampler.stats(1)
    planned, ends = sampler.plan(0)
    lengths = sampler.rows.lengths[planned]
    first = [lengths[(int(ends[k - 1]) if k else 0) : int(ends[k])] for k in range(min(4, len(ends)))]
    return Packing(
        stats.rows,
        stats.row_tokens,
        stats.label_tokens,
        stats.packs,
        sampler.steps_in_epoch(0),
        stats.computed_tokens / (stats.packs * micro_tokens),
        _padded(sampler.rows.lengths, seed),
        tuple(tuple(int(length) for length in pack) for pack in first),
    )


def _padded(lengths: NDArray[np.int64], seed: int) -> float:
    drawn = np.random.default_rng(seed).permutation(lengths)
    whole = drawn[: len(drawn) // PADDED_BATCH * PADDED_BATCH].reshape(-1, PADDED_BATCH)
    if not len(whole):
        return 0.0
    return float(1 - whole.sum() / (whole.max(axis=1).sum() * PADDED_BATCH))


def notes(tokenizer: Tokenizer, template: ChatTemplate | None, rows: Sequence[TokenRow]) -> list[str]:
    """What is worth knowing of the begin and end tokens of these rows."""
    from riverrun.data.encoding import check_template

    out = []
    ends = ", ".join(repr(tokenizer.token(end)) for end in tokenizer.end_ids) or "none"
    if template is not None:
        facts = check_template(tokenizer, template)
        out.append(
            f"an assistant's turn ends with {facts.end_token!r}, which is learned; end tokens of the model: {ends}"
        )
        out.append(f"begin tokens at the start of a conversation: {facts.begin_tokens}")
        if tokenizer.add_bos and not facts.begin_tokens:
            token = tokenizer.token(tokenizer.bos_id)
            out.append(
                f"the vocabulary begins a plain text with {token!r}, the template does not begin a conversation so"
            )
    unfinished = 0
    for row in rows:
        learned = np.flatnonzero(np.asarray(row.learned, dtype=np.bool_))
        unfinished += int(len(learned) > 0 and int(row.ids[int(learned[-1])]) not in tokenizer.end_ids)
    if unfinished:
        out.append(f"{unfinished} of the {len(rows)} rows looked at end what is learned without an end token")
    return out
