"""What is measured while a model trains: loss and bits per byte of rows that are not learned, greedy continuations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch

from riverrun.data.packing import Pack, plan_epoch
from riverrun.data.rows import ListRows, Rows
from riverrun.data.sampler import RowSampler
from riverrun.data.tokens import TokenRow
from riverrun.models.paged import Growing
from riverrun.models.tokenizer import Tokenizer
from riverrun.models.transformer import CausalLM
from riverrun.train.loss import linear_cross_entropy
from riverrun.train.objectives.supervised import hidden_states, label_rows

__all__ = ["Validation", "continue_greedily", "label_bytes"]


def label_bytes(rows: Iterable[TokenRow], tokenizer: Tokenizer) -> int:
    """UTF-8 bytes of what the rows' labels say; special tokens count as nothing.

    Rows of one name that follow one another are the pieces of one long text: a character may lie across two of them.
    """
    total = 0
    for _, pieces in groupby(rows, key=lambda row: row.id):
        said = [
            int(token) for row in pieces for token, learned in zip(row.ids[1:], row.learned[1:], strict=True) if learned
        ]
        total += len(tokenizer.decode(said).encode("utf-8", "surrogatepass"))
    return total


@dataclass(frozen=True)
class _Set:
    """Rows of one validation source as packs, and the bytes of their labels."""

    packs: Callable[[], Iterable[Pack]]
    labels: int
    bytes: int


class Validation:
    """Held-out rows by name. Every document is computed for itself; all label tokens weigh the same. What lies in
    shards is read pack by pack."""

    def __init__(self, model: CausalLM, tokenizer: Tokenizer, rows: Mapping[str, Rows], *, micro_tokens: int) -> None:
        self.model = model
        self.sets: dict[str, _Set] = {}
        for name, some in rows.items():
            every = (some.row(index) for index in range(len(some)))
            self.sets[name] = _Set(_packs(some, micro_tokens), int(some.labels.sum()), label_bytes(every, tokenizer))

    @torch.no_grad()
    def measure(self) -> list[dict[str, Any]]:
        """For each set: name, loss (nats a label token), bits_per_byte (None where labels have no bytes), counts."""
        out = []
        for name, each in self.sets.items():
            nats = 0.0
            for pack in each.packs():
                rows, targets = label_rows(hidden_states(self.model, pack), pack)
                nats += float(linear_cross_entropy(rows, self.model.head, targets))
            bits = nats / math.log(2) / each.bytes if each.bytes else None
            row = {"name": name, "loss": nats / max(1, each.labels), "bits_per_byte": bits}
            out.append(row | {"label_tokens": each.labels, "bytes": each.bytes})
        return out


def _packs(rows: Rows, micro_tokens: int) -> Callable[[], Iterable[Pack]]:
    if isinstance(rows, ListRows):
        packs = plan_epoch(rows.rows, micro_tokens=micro_tokens, seed=0, epoch=0)
        return lambda: packs
    return RowSampler(rows, micro_tokens=micro_tokens, packs_per_step=1, seed=0).every_pack


@torch.no_grad()
def continue_greedily(model: CausalLM, tokenizer: Tokenizer, text: str, *, tokens: int) -> str:
    """The most likely continuation of a text, without it; ends at an end token or at the context."""
    start = tokenizer.bos_id if tokenizer.bos_id is not None else tokenizer.eos_id
    given = ([] if start is None else [start]) + tokenizer.encode(text)
    cache = Growing(model.config, len(given) + tokens, model.dtype)
    out: list[int] = []
    new = given
    for _ in range(tokens):
        attend = cache.attend(len(new))
        hidden = model(torch.tensor(new), attend.positions, attend)
        token = int(model.logits(hidden[-1:]).argmax())
        if token in tokenizer.end_ids:
            break
        out.append(token)
        new = [token]
    return tokenizer.decode(out)
