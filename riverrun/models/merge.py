"""An adapter into the weights: three ways by name, each judged by the largest change of a logit. torch inside.

An adapter trained beside a quantised base was trained against the dequantised weights. `into_dequant` adds it to those
and is what was trained; `into_base` adds it to the weights before quantisation, which is another function; `requantize`
rounds the sum to 4 bits again, which may undo a light adapter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from riverrun.base.errors import InputError
from riverrun.models.convert import open_any, require_new_folder
from riverrun.models.io.hf import write_quantized, write_weights
from riverrun.models.load import Checkpoint, load_checkpoint, load_model, save_companions
from riverrun.models.transformer import CausalLM

__all__ = ["MODES", "PROBES", "MergeMode", "Merged", "logit_change", "merge"]

MergeMode = Literal["into_dequant", "into_base", "requantize"]
MODES: tuple[MergeMode, ...] = get_args(MergeMode)
PROBES = (
    "The history of the lighthouse begins in",
    "To make a good cup of tea, first",
    "def fibonacci(n):",
    "SELECT name FROM customers WHERE",
    "Q: What is the capital of France?\nA:",
    "The invoice of 12 March 2024 lists three items:",
    "今天的天气很好，我们去",
    "请用一句话介绍这家公司：",
)
"""Beginnings that every model is asked, where no others are given."""


@dataclass(frozen=True, slots=True)
class Merged:
    """`change` is the largest difference of a logit between the written model and base plus adapter in fp32."""

    mode: MergeMode
    change: float
    probes: int
    bytes: int


def merge(
    model: Path,
    adapter: Path,
    out: Path,
    mode: MergeMode = "into_dequant",
    *,
    base: Path | None = None,
    dtype: torch.dtype = torch.bfloat16,
    group_size: int = 32,
    probes: Sequence[str] = PROBES,
) -> Merged:
    """Write `model` with `adapter` folded in to the folder `out`, and say what that changed.

    into_base needs `base`, the unquantised weights that `model` was made of; requantize takes `group_size`. Weights are
    written in `dtype`, those of requantize on the 4-bit group grid. InputError says what does not fit.
    """
    if (mode == "into_base") != (base is not None):
        needs = "needs the unquantised base (--base)" if base is None else "uses no --base, into_base does"
        raise InputError(f"merge mode {mode} {needs}")
    if not probes:
        raise InputError("a merge is judged on probes: give at least one text")
    require_new_folder(out)
    opened, own_template = open_any(model, adapter)
    truth = load_model(opened, torch.float32)
    merged: Mapping[str, Tensor] = truth.views()
    if base is not None:
        other, _ = open_any(base, adapter)
        if other.config.shapes() != opened.config.shapes():
            raise InputError(f"{base} has other shapes than {model}: give the base that {model.name} was made of")
        merged = load_model(other, torch.float32).views()
    if mode == "requantize":
        write_quantized(out, opened.config, merged, group_size)
    else:
        write_weights(out, opened.config, merged, dtype)
    save_companions(opened, out)
    written = load_checkpoint(out)
    change = logit_change(truth, load_model(written, torch.float32), opened, probes)
    if not own_template:
        (out / "chat_template.jinja").unlink()
    return Merged(mode, change, len(probes), written.weight_bytes)


@torch.no_grad()
def logit_change(first: CausalLM, second: CausalLM, opened: Checkpoint, texts: Sequence[str]) -> float:
    """The largest difference of a logit over all positions of the texts."""
    worst = 0.0
    for text in texts:
        ids = opened.tokenizer.encode(text)
        if not ids:
            continue
        found = []
        for model in (first, second):
            attend = model.packed(0, [len(ids)])
            found.append(model.logits(model(torch.tensor(ids), attend.positions, attend)).float())
        worst = max(worst, float((found[0] - found[1]).abs().max()))
    return worst
