"""Our side of the training benches: the project's own loop on rows of token ids, in a process of its own.

`python -m bench.parts.train_rows JOB ANSWER`; "task" in the job is train (LoRA, full or pre-training), start or losses.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.parts import gemm
from riverrun.base.artifacts import write_json
from riverrun.base.memory import keep_freed_memory
from riverrun.base.progress import Progress, Task
from riverrun.data.packing import Pack
from riverrun.data.tokens import TokenRow
from riverrun.models.io.adapter import add_adapters
from riverrun.models.load import load_checkpoint, load_model
from riverrun.models.transformer import CausalLM
from riverrun.train.duration import Duration
from riverrun.train.finetune import FinetuneConfig, compute_dtype, finetune
from riverrun.train.loop import Batches, LoopConfig, LoopResult, train
from riverrun.train.objectives.supervised import Supervised
from riverrun.train.recipe import OptimizerConfig
from riverrun.train.sampler import PackSampler

__all__ = ["first_loss", "losses", "measure", "read_rows", "start"]

BETAS = (0.9, 0.99)


def read_rows(path: Path) -> list[TokenRow]:
    """Rows {"input_ids", "labels"} as the trainer takes them."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        row = json.loads(line)
        learned = tuple(label != -100 for label in row["labels"])
        rows.append(TokenRow(str(number), tuple(row["input_ids"]), learned))
    return rows


def _model(job: dict[str, Any], dtype: torch.dtype) -> CausalLM:
    lm = load_model(load_checkpoint(Path(job["model"])), dtype).train()
    if job["method"] == "lora":
        add_adapters(lm, job["rank"], job["alpha"], seed=job["seed"])
    else:
        lm.train_all()
    lm.refresh()
    return lm


def first_loss(lm: CausalLM, rows: Sequence[TokenRow]) -> float:
    """Mean loss over the labels of `rows` before training, row by row; compiles what the first products compile."""
    total, objective = 0.0, Supervised(lm)
    for row in rows:
        loss = objective(Pack.of((row,))).total
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    for parameter in lm.parameters():
        parameter.grad = None
    return total / sum(row.label_tokens for row in rows)


def _run(lm: CausalLM, batches: Batches, steps: int, job: dict[str, Any]) -> LoopResult:
    """The loop as `riverrun` runs it, without checkpoints in between."""
    settings = {key: job[key] for key in ("learning_rate", "clip_norm")}
    config = LoopConfig(
        length=Duration(steps, "steps"),
        optimizer=OptimizerConfig(warmup=0.0, schedule=job.get("schedule", "linear"), betas=BETAS, **settings),
        identity={"run": "bench"},
    )
    learning: dict[str, torch.Tensor] = {name: p for name, p in lm.named_parameters() if p.requires_grad}
    with tempfile.TemporaryDirectory() as work:
        return train(
            learning,
            batches,
            Supervised(lm),
            lm.refresh,
            config,
            work=Path(work),
            progress=Progress("quiet"),
        )


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """One epoch over the rows; with "products" also what its matrix products take at the rates of this machine."""
    dtype = compute_dtype("auto")
    rows = read_rows(Path(job["subset"]))
    sampler = PackSampler(
        rows,
        micro_tokens=job["micro_tokens"],
        packs_per_step=max(1, job["global_tokens"] // job["micro_tokens"]),
        seed=job["seed"],
        share=job["share"],
    )
    lm = _model(job, dtype)
    before = _rates(lm, sampler, job, dtype)
    begin = first_loss(lm, rows[: job["first_rows"]])
    result = _run(lm, sampler, sampler.steps_in_epoch(0), job)
    return {
        "seconds": result.seconds,
        "row_tokens": result.row_tokens,
        "label_tokens": result.label_tokens,
        "computed_tokens": result.computed_tokens,
        "steps": len(result.losses),
        "first_loss": begin,
        "losses": [row["loss"] for row in result.losses],
        "dtype": str(dtype).removeprefix("torch."),
        **_products(lm, sampler, job, before, _rates(lm, sampler, job, dtype)),
    }


def _wanted(lm: CausalLM, job: dict[str, Any]) -> list[gemm.Product]:
    return gemm.products(lm.config, weights_learn=job["method"] != "lora")


def _rates(lm: CausalLM, sampler: PackSampler, job: dict[str, Any], dtype: torch.dtype) -> dict[tuple[str, str], float]:
    """What is multiplied at the rows of the middle pack; nothing where the job does not ask."""
    if not job.get("products"):
        return {}
    packs = sorted(sampler.epoch_packs(0), key=lambda pack: pack.computed_tokens)
    middle = packs[len(packs) // 2]
    return gemm.rates(_wanted(lm, job), middle.computed_tokens, middle.label_tokens, dtype)


def _products(
    lm: CausalLM,
    sampler: PackSampler,
    job: dict[str, Any],
    before: dict[tuple[str, str], float],
    after: dict[tuple[str, str], float],
) -> dict[str, Any]:
    """Seconds of all products of the epoch at the better of both measurements of each shape, and LoRA's FLOP limit."""
    if not before:
        return {}
    wanted, packs = _wanted(lm, job), sampler.epoch_packs(0)
    best = {key: max(value, after[key]) for key, value in before.items()}
    rows, labels = sum(pack.computed_tokens for pack in packs), sum(pack.label_tokens for pack in packs)
    found: dict[str, Any] = {
        "product_seconds": gemm.seconds_at(best, wanted, rows, labels),
        "product_flops": gemm.flops(wanted, rows, labels),
        "product_rate": gemm.rate(best, wanted, rows, labels),
        "rates_gflops": {" ".join(key): [before[key] / 1e9, after[key] / 1e9] for key in before},
    }
    if job["method"] == "lora":
        factors = 6.0 * gemm.lora_parameters(lm.config, job["rank"]) * rows
        found["limit_seconds"] = (found["product_flops"] + factors) / found["product_rate"]
    return found


class _Ended(Exception):
    """The first step is done."""


class _FirstStep(Progress):
    """Ends the run after the first optimizer step, and knows when that was."""

    ended = 0.0

    def _show(self, task: Task) -> None:
        if task.done:
            self.ended = time.monotonic()
            raise _Ended


def start(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds from just before this process was started to the end of the first optimizer step."""
    first = _FirstStep("quiet")
    with tempfile.TemporaryDirectory() as folder:
        config = FinetuneConfig(rank=job["rank"], alpha=job["alpha"], epochs=1)
        with contextlib.suppress(_Ended):
            finetune(Path(job["model"]), Path(job["rows"]), Path(folder), config, work=Path(folder), progress=first)
    return {"seconds": first.ended - job["began"]}


class _Singles:
    """One unpacked document after another, `rows_per_step` to a step."""

    def __init__(self, rows: Sequence[TokenRow], rows_per_step: int) -> None:
        self.rows, self.size = rows, rows_per_step

    def batch(self, step: int) -> list[Pack]:
        return [Pack.of((row,)) for row in self.rows[step * self.size : (step + 1) * self.size]]


def losses(job: dict[str, Any]) -> dict[str, Any]:
    """Losses of full training in fp32, row by row."""
    rows = read_rows(Path(job["subset"]))
    batches = _Singles(rows, job["rows_per_step"])
    result = _run(_model(job, torch.float32), batches, len(rows) // job["rows_per_step"], job)
    return {"losses": [row["loss"] for row in result.losses]}


TASKS = {"train": measure, "start": start, "losses": losses}

if __name__ == "__main__":
    keep_freed_memory()  # as `riverrun train run` does
    asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    write_json(Path(sys.argv[2]), TASKS[asked["task"]](asked))
