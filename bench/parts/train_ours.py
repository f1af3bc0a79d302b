"""Our side of the fine-tuning speed: the project's own loop on the first packs of a run's own plan.

`python -m bench.parts.train_ours JOB ANSWER`. With "subset" in the job the rows of those packs are written out as token
ids and labels, for a peer to train on; else the packs are trained. The time is that of the loop alone, after one
untimed forward and backward of a few rows, as on the peer's side.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bench.parts.train_rows import first_loss
from riverrun.base.artifacts import write_json, write_text
from riverrun.base.progress import Progress
from riverrun.data.tokens import TokenRow
from riverrun.models.io.adapter import add_adapters
from riverrun.models.load import load_checkpoint, load_model
from riverrun.models.transformer import CausalLM
from riverrun.train.duration import Duration
from riverrun.train.finetune import FinetuneConfig, compute_dtype, encode
from riverrun.train.loop import LoopConfig, train
from riverrun.train.objectives.supervised import Supervised
from riverrun.train.recipe import OptimizerConfig
from riverrun.train.sampler import PackSampler

__all__ = ["first_steps", "measure", "subset_rows", "write_subset"]


def first_steps(sampler: PackSampler, row_tokens: int) -> int:
    """Optimizer steps that see at least so many row tokens; at most one epoch."""
    seen = steps = 0
    while seen < row_tokens and steps < sampler.steps_in_epoch(0):
        seen += sum(pack.row_tokens for pack in sampler.batch(steps))
        steps += 1
    return steps


def subset_rows(sampler: PackSampler, steps: int) -> list[TokenRow]:
    """The rows of the first steps, in their order."""
    return [row for step in range(steps) for pack in sampler.batch(step) for row in pack.rows]


def _sampler(rows: Sequence[TokenRow], config: FinetuneConfig, *, share: bool) -> PackSampler:
    packs = -(-config.global_tokens // config.micro_tokens)
    return PackSampler(rows, micro_tokens=config.micro_tokens, packs_per_step=packs, seed=config.seed, share=share)


def write_subset(path: Path, rows: Sequence[TokenRow]) -> dict[str, int]:
    """JSON lines {"input_ids", "labels"}; labels are -100 where nothing is learned. Returns the counts."""
    lines = []
    for row in rows:
        labels = [token if flag else -100 for token, flag in zip(row.ids, row.learned, strict=True)]
        lines.append(json.dumps({"input_ids": list(row.ids), "labels": [-100, *labels[1:]]}) + "\n")
    write_text(path, "".join(lines))
    return {
        "rows": len(rows),
        "row_tokens": sum(len(row.ids) for row in rows),
        "label_tokens": sum(row.label_tokens for row in rows),
        "longest": max(len(row.ids) for row in rows),
    }


def _model(model: Path, config: FinetuneConfig) -> CausalLM:
    lm = load_model(load_checkpoint(model), compute_dtype(config.dtype)).train()
    add_adapters(lm, config.rank, config.alpha, seed=config.seed)
    lm.refresh()
    return lm


def measure(job: Mapping[str, Any]) -> dict[str, Any]:
    """Train the first `row_tokens` of the plan, or write their rows."""
    config = FinetuneConfig(**job["settings"])
    encoded = encode(Path(job["rows"]), load_checkpoint(Path(job["model"])), config)
    sampler = _sampler(encoded.rows, config, share=config.share_prefix)
    steps = first_steps(sampler, job["row_tokens"])
    rows = subset_rows(sampler, steps)
    if job.get("subset"):
        return write_subset(Path(job["subset"]), rows) | {"steps": steps}
    if not job["share"]:
        sampler = _sampler(rows, config, share=False)
        steps = sampler.steps_in_epoch(0)
    lm = _model(Path(job["model"]), config)
    begin = first_loss(lm, rows[: job["first_rows"]])
    settings = {key: getattr(config, key) for key in ("learning_rate", "schedule", "clip_norm", "weight_decay")}
    loop = LoopConfig(
        length=Duration(steps, "steps"),
        optimizer=OptimizerConfig(warmup=0.0, **settings),
        identity={"run": "bench"},
    )
    parameters: dict[str, torch.Tensor] = {name: p for name, p in lm.named_parameters() if p.requires_grad}
    with tempfile.TemporaryDirectory() as work:
        result = train(
            parameters,
            sampler,
            Supervised(lm),
            lm.refresh,
            loop,
            work=Path(work),
            progress=Progress("quiet"),
        )
    return {
        "seconds": result.seconds,
        "row_tokens": result.row_tokens,
        "label_tokens": result.label_tokens,
        "computed_tokens": result.computed_tokens,
        "steps": steps,
        "first_loss": begin,
        "losses": [row["loss"] for row in result.losses],
    }


if __name__ == "__main__":
    write_json(Path(sys.argv[2]), measure(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
