"""finetune: train by the method that the plan chose, once or in rounds.

An interrupted training goes on from its last checkpoint.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from riverrun.base.artifacts import digest_json, digest_tree, write_json
from riverrun.base.progress import Progress
from riverrun.chain.candidates import base_model, model_digest
from riverrun.chain.measure import write_lines
from riverrun.chain.planning import trainer_settings
from riverrun.chain.rounds import ROUNDS_CODE, development_bar, run_rounds
from riverrun.chain.spec import SHIPPED
from riverrun.chain.stage import Context, StageResult, read_json, source_digest
from riverrun.chain.stages.data import files_of
from riverrun.hub.catalog import shipped_adapter
from riverrun.train.config import FinetuneConfig

__all__ = ["Finetune", "tuned_model"]


def tuned_model(ctx: Context) -> tuple[Path, Path | None]:
    """(model, adapter or None) after fine-tuning; the base model itself when the method was none."""
    folder = ctx.folder("finetune")
    method = read_json(folder / "method.json")["method"]
    return base_model(ctx), folder / "adapter" if method == "lora" else None


def start_adapter(ctx: Context) -> Path | None:
    """The adapter that training goes on from; None when it starts with a fresh one."""
    start = ctx.spec.finetune.start
    if start == SHIPPED:
        return shipped_adapter(read_json(ctx.folder("select") / "model.json")["name"])
    return ctx.file(start) if start else None


class Finetune:
    name: ClassVar[str] = "finetune"
    code: ClassVar[tuple[str, ...]] = ("base", "wire", "models", "train")
    resumable: ClassVar[bool] = True
    isolated: ClassVar[bool] = True

    def inputs(self, ctx: Context) -> dict[str, str]:
        plan = read_json(ctx.folder("plan") / "plan.json")
        taken = {"plan/chosen": digest_json([plan["chosen"], plan["micro_tokens"]])}
        if ctx.spec.rounds.most > 1:
            taken |= ctx.upstream("data", "questions_dev.jsonl", "shop.sqlite", "kept.jsonl") | files_of(ctx)
            taken["code of rounds"] = source_digest(ROUNDS_CODE)
        if (start := start_adapter(ctx)) is not None:
            taken["start adapter"] = digest_tree(start)
        return model_digest(ctx) | ctx.upstream("data", "train.jsonl") | taken

    def config(self, ctx: Context) -> dict[str, Any]:
        spec = ctx.spec
        settings = spec.finetune.model_dump(mode="json", exclude={"method"})
        if spec.rounds.most == 1:
            return settings
        keys = {"rounds", "system", "database", "search", "data", "synthesis", "language"}
        asked = {"max_tokens": spec.evaluate.max_tokens, "bar": development_bar(spec)}
        return {"finetune": settings, **spec.model_dump(mode="json", include=keys), **asked}

    def run(self, ctx: Context, folder: Path, progress: Progress) -> StageResult:
        plan = read_json(ctx.folder("plan") / "plan.json")
        method = plan["chosen"]
        write_json(folder / "method.json", {"method": method})
        if method == "none":
            write_lines(folder / "loss.jsonl", [])
            return StageResult(counts={"method": method})
        if ctx.spec.rounds.most > 1:
            return run_rounds(ctx, folder, plan["micro_tokens"], partial(_train, ctx, progress), progress)
        settings = trainer_settings(ctx.spec, plan["micro_tokens"])
        rows = ctx.folder("data") / "train.jsonl"
        found = _train(ctx, progress, rows, folder, settings, work=folder / ".work" / "train", adapter=None)
        counts = {"method": method} | {key: found.pop(key) for key in ("resumed_from", "dropped_rows")}
        return StageResult(counts=counts, scores={f"finetune.{key}": value for key, value in found.items()})


def _train(
    ctx: Context,
    progress: Progress,
    rows: Path,
    out: Path,
    settings: FinetuneConfig,
    *,
    work: Path,
    adapter: Path | None,
) -> dict[str, Any]:
    """One training into `out`, from an adapter, the spec's start or a fresh one; returns what was measured."""
    own = ctx.spec.finetune
    if adapter is None and (settings.rank, settings.alpha) == (own.rank, own.alpha):
        adapter = start_adapter(ctx)
    result = ctx.parts.load("finetune")(
        base_model(ctx), rows, out, settings, work=work, progress=progress, adapter=adapter
    )
    measured = {
        "steps": result.steps,
        "tokens": result.row_tokens,
        "computed_tokens": result.computed_tokens,
        "label_tokens": result.label_tokens,
        "seconds": result.seconds,
        "peak_bytes": result.peak_bytes,
        "tokens_per_second": result.tokens_per_second,
        "resumed_from": result.resumed_from,
        "dropped_rows": len(result.dropped),
    }
    if result.losses:
        measured |= {"first_loss": result.losses[0], "last_loss": result.losses[-1]}
    return measured
