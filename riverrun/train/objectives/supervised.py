"""Next-token loss over the learned tokens of a pack, and the forward of a pack that other objectives share.

T = tokens of the pack, E = hidden_size, N = label tokens.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from riverrun.data.packing import Pack
from riverrun.models.transformer import CausalLM
from riverrun.train.loss import linear_cross_entropy
from riverrun.train.objectives import Loss
from riverrun.train.objectives.config import SupervisedConfig

__all__ = ["SHAPE_MULTIPLE", "Supervised", "hidden_states", "label_rows", "padded_tokens"]

SHAPE_MULTIPLE = 128
"""Packs are padded to whole multiples: few distinct shapes, few compiled products."""


def padded_tokens(pack: Pack) -> int:
    """Tokens that are computed beside those of the rows."""
    return -pack.computed_tokens % SHAPE_MULTIPLE


def hidden_states(model: CausalLM, pack: Pack) -> Tensor:
    """Normed hidden states [T + padding, E]; no row sees another's own tokens."""
    attend = model.packed_groups(pack.layout, multiple=SHAPE_MULTIPLE)
    ids = torch.from_numpy(np.pad(pack.ids(), (0, attend.padding)))
    return model(ids, attend.positions, attend)  # type: ignore[no-any-return]


def label_rows(hidden: Tensor, pack: Pack) -> tuple[Tensor, Tensor]:
    """(hidden states that predict a label [N, E], the tokens to predict [N]), row after row."""
    places, targets = pack.targets()
    return hidden.index_select(0, torch.from_numpy(places)), torch.from_numpy(targets)


class Supervised:
    """Summed cross-entropy in nats (`pretrain` and `sft` differ by the labels of their rows)."""

    def __init__(self, model: CausalLM, config: SupervisedConfig | None = None) -> None:
        self.model = model
        self.name: str = (config or SupervisedConfig()).name

    def count(self, batch: Pack) -> int:
        return batch.label_tokens

    def __call__(self, batch: Pack) -> Loss:
        rows, targets = label_rows(hidden_states(self.model, batch), batch)
        return Loss(linear_cross_entropy(rows, self.model.head, targets))
