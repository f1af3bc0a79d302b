"""LoRA fine-tuning of a checkpoint on conversations, as the chain asks for it: a thin layer over the run's parts.

`finetune(model, rows, out, config)` reads OpenAI-style JSON lines, packs them, trains, and writes a PEFT adapter and
`loss.jsonl`. Stopped at any point, the same call continues from its last checkpoint and ends with the same bytes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from riverrun.base.artifacts import digest_file, digest_json, digest_tree, write_text
from riverrun.base.errors import RiverrunError
from riverrun.base.progress import Progress
from riverrun.models.io.adapter import save_adapter
from riverrun.models.load import load_checkpoint
from riverrun.train.build import build, compute_dtype
from riverrun.train.config import FinetuneConfig
from riverrun.train.duration import Duration
from riverrun.train.loop import Hooks, LoopConfig, LoopResult, peak_bytes, train
from riverrun.train.objectives.supervised import Supervised
from riverrun.train.recipe import (
    DataConfig,
    MethodConfig,
    ModelSpec,
    OptimizerConfig,
    RunConfig,
    SourceConfig,
    TrainConfig,
)
from riverrun.train.rows import encode, read_rows
from riverrun.train.sampler import PackSampler

__all__ = ["FinetuneConfig", "FinetuneResult", "compute_dtype", "encode", "finetune", "read_rows"]


@dataclass(frozen=True, slots=True)
class FinetuneResult:
    """What a fine-tune did. row_tokens has every row with its own prefix; computed_tokens is what was multiplied."""

    steps: int
    row_tokens: int
    computed_tokens: int
    label_tokens: int
    seconds: float
    peak_bytes: int
    losses: list[float]
    resumed_from: int
    dropped: list[tuple[str, str]]

    @property
    def tokens_per_second(self) -> float:
        """Row tokens per second of this process's own steps."""
        return self.row_tokens / max(1e-9, self.seconds)


def as_recipe(config: FinetuneConfig, model: Path, rows: Path, adapter: Path | None) -> TrainConfig:
    """The recipe that says the same; `length` and `micro_tokens` are the caller's."""
    own = config.model_dump()
    return TrainConfig(
        model=ModelSpec(path=str(model), adapter=str(adapter or "")),
        data=DataConfig(train=(SourceConfig(path=str(rows)),)),
        method=MethodConfig(name="lora", **{key: own[key] for key in ("rank", "alpha", "rslora", "init")}),
        optimizer=OptimizerConfig(
            **{key: own[key] for key in ("learning_rate", "schedule", "warmup", "clip_norm", "weight_decay")}
        ),
        run=RunConfig(dtype=config.dtype, seed=config.seed),
    )


def finetune(
    model: Path,
    rows: Path,
    out: Path,
    config: FinetuneConfig,
    *,
    work: Path,
    progress: Progress | None = None,
    adapter: Path | None = None,
) -> FinetuneResult:
    """Train an adapter into `out/adapter` and the loss curve into `out/loss.jsonl`; resumes from `work`.

    With `adapter` (a folder in PEFT's layout) training goes on from it instead of a fresh one; its rank and alpha must
    be those of the settings, InputError otherwise.
    """
    progress = progress or Progress("quiet")
    opened = load_checkpoint(model)
    encoded = encode(rows, opened, config)
    sampler = PackSampler(
        encoded.rows,
        micro_tokens=config.micro_tokens,
        packs_per_step=-(-config.global_tokens // config.micro_tokens),
        seed=config.seed,
        share=config.share_prefix,
    )
    total = sampler.total_steps(config.epochs)
    dtype = compute_dtype(config.dtype)
    recipe = as_recipe(config, model, rows, adapter)
    trained = build(recipe, opened, "lora", dtype)
    parts = [opened.digest(), digest_file(rows), config.model_dump(exclude={"save_every"}), str(dtype)]
    resolved = LoopConfig(
        length=Duration(total, "steps"),
        optimizer=recipe.optimizer,
        identity={"run": digest_json([*parts, digest_tree(adapter)] if adapter else parts)},
        seed=config.seed,
        save_every=Duration(config.save_every, "steps"),
        rate_name="finetune.learning_rate",
        discard_other=True,
    )
    result = train(
        trained.parameters,
        sampler,
        Supervised(trained.model),
        trained.model.refresh,
        resolved,
        work=work,
        progress=progress,
        hooks=Hooks(files=trained.files),
        name="finetune",
    )
    if result.status != "done":
        raise RiverrunError(f"ended at step {len(result.losses)} of {total} ({result.status}): run again to go on")
    save_adapter(trained.model, out / "adapter", base=opened.path.name)
    write_text(out / "loss.jsonl", "".join(json.dumps(row) + "\n" for row in result.losses))
    shutil.rmtree(work, ignore_errors=True)
    return _report(result, total, encoded.dropped)


def _report(result: LoopResult, steps: int, dropped: Sequence[tuple[str, str]]) -> FinetuneResult:
    return FinetuneResult(
        steps=steps,
        row_tokens=result.row_tokens,
        computed_tokens=result.computed_tokens,
        label_tokens=result.label_tokens,
        seconds=result.seconds,
        peak_bytes=peak_bytes(),
        losses=[row["loss"] for row in result.losses],
        resumed_from=result.resumed_from,
        dropped=list(dropped),
    )
