"""finetune: train by the method that the plan chose; an interrupted training goes on from its last checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from riverrun.base.artifacts import digest_json, write_json
from riverrun.base.progress import Progress
from riverrun.chain.candidates import base_model, model_digest
from riverrun.chain.measure import write_lines
from riverrun.chain.planning import trainer_settings
from riverrun.chain.stage import Context, StageResult, read_json

__all__ = ["Finetune", "tuned_model"]


def tuned_model(ctx: Context) -> tuple[Path, Path | None]:
    """(model, adapter or None) after fine-tuning; the base model itself when the method was none."""
    folder = ctx.folder("finetune")
    method = read_json(folder / "method.json")["method"]
    return base_model(ctx), folder / "adapter" if method == "lora" else None


class Finetune:
    name: ClassVar[str] = "finetune"
    code: ClassVar[tuple[str, ...]] = ("base", "wire", "models", "train")
    resumable: ClassVar[bool] = True
    isolated: ClassVar[bool] = True

    def inputs(self, ctx: Context) -> dict[str, str]:
        plan = read_json(ctx.folder("plan") / "plan.json")
        taken = {"plan/chosen": digest_json([plan["chosen"], plan["micro_tokens"]])}
        return model_digest(ctx) | ctx.upstream("data", "train.jsonl") | taken

    def config(self, ctx: Context) -> dict[str, Any]:
        return ctx.spec.finetune.model_dump(mode="json", exclude={"method"})

    def run(self, ctx: Context, folder: Path, progress: Progress) -> StageResult:
        plan = read_json(ctx.folder("plan") / "plan.json")
        method = plan["chosen"]
        write_json(folder / "method.json", {"method": method})
        if method == "none":
            write_lines(folder / "loss.jsonl", [])
            return StageResult(counts={"method": method})
        result = ctx.parts.load("finetune")(
            base_model(ctx),
            ctx.folder("data") / "train.jsonl",
            folder,
            trainer_settings(ctx.spec, plan["micro_tokens"]),
            work=folder / ".work" / "train",
            progress=progress,
        )
        measured = {
            "steps": result.steps,
            "tokens": result.row_tokens,
            "computed_tokens": result.computed_tokens,
            "label_tokens": result.label_tokens,
            "seconds": result.seconds,
            "peak_bytes": result.peak_bytes,
            "tokens_per_second": result.tokens_per_second,
        }
        if result.losses:
            measured |= {"first_loss": result.losses[0], "last_loss": result.losses[-1]}
        counts = {"method": method, "resumed_from": result.resumed_from, "dropped_rows": len(result.dropped)}
        return StageResult(counts=counts, scores={f"finetune.{key}": value for key, value in measured.items()})
