"""A reward model: one number for a conversation, learned from pairs (https://arxiv.org/abs/2203.02155, eq. 1).

The score is a vector [E] times the final hidden state of a row's last token. The vector is saved beside the adapter or
the model as `reward_head.safetensors`: one fp32 tensor `score.weight` [1, E], the name that Hugging Face gives to the
head of a sequence classifier of one label.

E = hidden_size, P = pairs, R = rows of a pack.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from riverrun.base.artifacts import atomic_file
from riverrun.base.errors import InputError, IntegrityError
from riverrun.base.optional import require
from riverrun.base.types import Message, ToolSpec
from riverrun.data.packing import Pack
from riverrun.data.tokens import TokenRow
from riverrun.models.chat import ChatTemplate
from riverrun.models.tokenizer import Tokenizer
from riverrun.models.transformer import CausalLM
from riverrun.train.objectives import Loss, formulas
from riverrun.train.objectives.config import RewardConfig
from riverrun.train.objectives.supervised import hidden_states
from riverrun.wire.codec import Codec

__all__ = ["HEAD_FILE", "Reward", "RewardScorer", "last_places", "load_head", "score_rows"]

HEAD_FILE, HEAD_TENSOR = "reward_head.safetensors", "score.weight"


def last_places(pack: Pack) -> Tensor:
    """[R]: where each row's last token stands in the pack."""
    ends, start = [], 0
    for prefix, lengths in pack.layout:
        ends.append(start + prefix + np.cumsum(lengths) - 1)
        start += prefix + sum(lengths)
    return torch.from_numpy(np.concatenate(ends))


def _scores(model: CausalLM, head: Tensor, pack: Pack) -> Tensor:
    """[R] in fp32."""
    hidden = hidden_states(model, pack).index_select(0, last_places(pack))
    return hidden.to(head.dtype) @ head


class Reward:
    """Bradley-Terry on groups of (chosen, rejected); the counted unit is the pair."""

    def __init__(self, model: CausalLM, config: RewardConfig | None = None) -> None:
        self.model, self.config = model, config or RewardConfig()
        self.name = self.config.name
        size = model.config.hidden_size
        start = torch.randn(size, generator=torch.Generator().manual_seed(self.config.seed)) / (size + 1) ** 0.5
        self.head = nn.Parameter(start)

    def parameters(self) -> dict[str, Tensor]:
        """What learns beside the model."""
        return {HEAD_TENSOR: self.head}

    def count(self, batch: Pack) -> int:
        return len(batch.groups)

    def __call__(self, batch: Pack) -> Loss:
        assert all(len(group.rows) == 2 for group in batch.groups), "reward needs groups of two rows"
        chosen, rejected = _scores(self.model, self.head, batch).view(-1, 2).unbind(1)
        losses = formulas.bradley_terry(chosen, rejected, self.config.centering)
        with torch.no_grad():
            metrics = {
                "accuracy": float((chosen > rejected).sum()),
                "margin": float((chosen - rejected).sum()),
                "score": float((chosen + rejected).sum() / 2),
            }
        return Loss(losses.sum(), metrics)

    def save(self, folder: Path) -> None:
        """Write the head beside the adapter or model in `folder`."""
        serialize = require("safetensors.torch", extra="train").save
        with atomic_file(folder / HEAD_FILE, "wb") as handle:
            handle.write(serialize({HEAD_TENSOR: self.head.detach()[None].float()}, metadata={"format": "pt"}))


def load_head(folder: Path, hidden_size: int) -> Tensor:
    """The head [E] that stands in `folder`; InputError if there is none, IntegrityError if it is another model's."""
    path = folder / HEAD_FILE
    if not path.is_file():
        raise InputError(f"{path} does not exist: give the folder that a run with the objective 'reward' wrote")
    try:
        stored = require("safetensors.torch", extra="train").load_file(str(path))
    except Exception as error:  # SafetensorError and OSError
        raise IntegrityError(f"{path} cannot be read: {error}") from None
    found = list(stored[HEAD_TENSOR].shape) if HEAD_TENSOR in stored else "nothing"
    if found != [1, hidden_size]:
        raise IntegrityError(
            f"{path}: tensor '{HEAD_TENSOR}' is {found}, this model needs {[1, hidden_size]}: give the head's own model"
        )
    head: Tensor = stored[HEAD_TENSOR][0]
    return head


@torch.no_grad()
def score_rows(model: CausalLM, head: Tensor, rows: Sequence[TokenRow], *, micro_tokens: int = 2048) -> list[float]:
    """The score of each row; rows are computed together up to `micro_tokens`."""
    out: list[float] = []
    batch: list[TokenRow] = []
    for row in [*rows, None]:
        full = row is None or sum(len(each.ids) for each in batch) + len(row.ids) > micro_tokens
        if batch and full:
            out += _scores(model, head, Pack.of(batch)).tolist()
            batch = []
        if row is not None:
            batch.append(row)
    return out


class RewardScorer:
    """Scores of conversations, rendered as they were in training."""

    def __init__(
        self, model: CausalLM, head: Tensor, tokenizer: Tokenizer, template: ChatTemplate, codec: Codec
    ) -> None:
        self.model, self.head = model, head
        self._tokenizer, self._template, self._codec = tokenizer, template, codec

    def score(self, conversations: Sequence[Sequence[Message]], *, tools: Sequence[ToolSpec] = ()) -> list[float]:
        """One number a conversation: higher is better; differences are log odds of being preferred."""
        rows = []
        for messages in conversations:
            ids, learned = self._template.encode_with_labels(self._tokenizer, self._codec.lower(messages, tools))
            rows.append(TokenRow("", tuple(ids), tuple(learned)))
        return score_rows(self.model, self.head, rows)
