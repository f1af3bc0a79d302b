"""finetune: train by the method that the plan chose; an interrupted training goes on from its last checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

from riverrun.base.artifacts import digest_file, digest_json, write_json
from riverrun.base.progress import Progress
from riverrun.chain.candidates import base_model, model_digest
from riverrun.chain.measure import write_lines
from riverrun.chain.stage import Context, StageResult, read_json

__all__ = ["Finetune", "tuned_model"]


def tuned_model(ctx: Context) -> tuple[Path, Path | None]:
    """(model, adapter or None) after fine-tuning; the base model itself when the method was none."""
    folder = ctx.folder("finetune")
    method = read_json(folder / "method.json")["method"]
    if method == "full":
        return folder / "model", None
    return base_model(ctx), folder / "adapter" if method == "lora" else None


class Finetune:
    name: ClassVar[str] = "finetune"
    code: ClassVar[tuple[str, ...]] = ("base", "wire", "models", "train")
    resumable: ClassVar[bool] = True
    isolated: ClassVar[bool] = True

    def inputs(self, ctx: Context) -> dict[str, str]:
        plan = read_json(ctx.folder("plan") / "plan.json")
        return model_digest(ctx) | ctx.upstream("data", "train.jsonl") | {"plan chosen": digest_json(plan["chosen"])}

    def config(self, ctx: Context) -> dict[str, Any]:
        return ctx.spec.finetune.model_dump(mode="json", exclude={"method"})

    def run(self, ctx: Context, folder: Path, progress: Progress) -> StageResult:
        method = read_json(ctx.folder("plan") / "plan.json")["chosen"]["method"]
        write_json(folder / "method.json", {"method": method})
        if method == "none":
            write_lines(folder / "loss.jsonl", [])
            return StageResult(counts={"method": method})
        out = folder / ("model" if method == "full" else "adapter")
        rows = ctx.folder("data") / "train.jsonl"
        result = self._train(ctx, method, rows, out, folder / ".work" / "train", progress)
        write_lines(folder / "loss.jsonl", [dict(point) for point in result.losses])
        measured = {
            "steps": result.steps,
            "tokens": result.tokens,
            "label_tokens": result.label_tokens,
            "seconds": result.seconds,
            "peak_bytes": result.peak_bytes,
            "tokens_per_second": result.tokens / max(result.seconds, 1e-9),
        }
        ends = {}
        if result.losses:
            ends = {"first_loss": result.losses[0]["loss"], "last_loss": result.losses[-1]["loss"]}
        scores = {f"finetune.{key}": value for key, value in (measured | ends).items()}
        return StageResult(counts={"method": method, **measured}, scores=scores)
