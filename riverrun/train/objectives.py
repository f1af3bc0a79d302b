"""What is minimised: (model, pack) -> summed loss over label tokens. The loop divides by the global count."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from riverrun.data.packing import Pack
from riverrun.models.transformer import CausalLM
from riverrun.train.loss import linear_cross_entropy

__all__ = ["supervised"]

SHAPE_MULTIPLE = 128


def supervised(model: CausalLM, pack: Pack) -> Tensor:
    """Sum of the next-token loss over the pack's learned tokens (supervised fine-tuning)."""
    attend = model.packed_groups(pack.layout, multiple=SHAPE_MULTIPLE)
    ids = torch.from_numpy(np.pad(pack.ids(), (0, attend.padding)))
    hidden = model(ids, attend.positions, attend)
    places, targets = pack.targets()
    return linear_cross_entropy(
        hidden.index_select(0, torch.from_numpy(places)), model.lm_head, torch.from_numpy(targets)
    )
