"""quantize: two four-bit forms of the tuned model, both scored on the sealed questions, one chosen.

`q4-base-adapter` keeps the base's own four-bit weights and the adapter beside them; `q4-merged` merges the adapter and
rounds on a grid of its own. Without fine-tuning there may be only one of them.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, ClassVar

from riverrun.base.artifacts import write_json
from riverrun.base.progress import Progress
from riverrun.chain.measure import (
    assistant_of,
    difference_names,
    json_once,
    measure_tools,
    sealed_questions,
    tool_scores,
)
from riverrun.chain.stage import Context, Gate, StageResult, read_jsonl
from riverrun.chain.stages.finetune import tuned_model
from riverrun.evaluate import tooltasks
from riverrun.evaluate.tooltasks import Record

__all__ = ["VARIANTS", "Quantize"]

VARIANTS = ("q4-base-adapter", "q4-merged")


class Quantize:
    name: ClassVar[str] = "quantize"
    code: ClassVar[tuple[str, ...]] = (
        "base",
        "wire",
        "models",
        "serve",
        "evaluate",
        "agent",
        "chain/quantizing.py",
        "chain/measure.py",
        "chain/assistant.py",
    )
    resumable: ClassVar[bool] = True
    isolated: ClassVar[bool] = True

    def inputs(self, ctx: Context) -> dict[str, str]:
        tuned = ctx.upstream("select", "model.json") | ctx.upstream("finetune", "adapter", "method.json")
        data = ctx.upstream("data", "shop.sqlite", "kept.jsonl", "questions_sealed.jsonl")
        return tuned | data | ctx.upstream("evaluate", "records_tuned.jsonl")

    def config(self, ctx: Context) -> dict[str, Any]:
        spec = ctx.spec
        parts = (spec.quantize, spec.search, spec.database)
        shared = {"system": spec.system, "max_tokens": spec.evaluate.max_tokens}
        return {type(part).__name__: part.model_dump(mode="json") for part in parts} | shared

    def run(self, ctx: Context, folder: Path, progress: Progress) -> StageResult:
        made = json_once(folder / ".work" / "made.json", lambda: self._make(ctx, folder))
        assistant, questions = assistant_of(ctx), sealed_questions(ctx)
        tuned = [Record.from_dict(row) for row in read_jsonl(ctx.folder("evaluate") / "records_tuned.jsonl")]
        scores: dict[str, Any] = {}
        for variant in _present(folder):
            path = folder / f"records_{variant}.jsonl"
            if path.is_file():
                records = [Record.from_dict(row) for row in read_jsonl(path)]
            else:
                with ctx.model(folder / variant, name=variant) as model:
                    records = measure_tools(ctx, model, assistant, path, questions, progress)
            prefix = f"quantize.{variant}"
            scores |= tool_scores(prefix, records)
            scores |= difference_names(f"{prefix}.drop", tooltasks.compare(tuned, records), sign=-1)
            scores[f"{prefix}.bytes"] = _size(folder / variant)
        chosen = _choose(ctx.spec.quantize.prefer, scores, _present(folder))
        scores["quantize.chosen"] = chosen
        scores |= {f"drop.{end}": scores[f"quantize.{chosen}.drop.{end}"] for end in ("difference", "low", "high")}
        write_json(folder / "scores.json", scores)
        write_json(folder / "chosen.json", {"variant": chosen})
        advice = (
            "Take smaller groups (quantize.group_size=32), or the form that keeps the base's own weights "
            "(quantize.prefer=q4-base-adapter); more sealed questions (data.sealed_per_intent) narrow the interval."
        )
        gate = Gate("quantized_drop", scores["drop.high"], False, advice)
        return StageResult(counts=dict(made), scores=scores, gates=[gate])

    def _make(self, ctx: Context, folder: Path) -> Any:
        for variant in VARIANTS:
            shutil.rmtree(folder / variant, ignore_errors=True)
        model, adapter = tuned_model(ctx)
        return ctx.parts.load("quantize")(model, adapter, folder, group_size=ctx.spec.quantize.group_size)


def _present(folder: Path) -> list[str]:
    return [variant for variant in VARIANTS if (folder / variant).is_dir()]


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _choose(prefer: str, scores: dict[str, Any], present: list[str]) -> str:
    """The preferred variant; else the best score, at a tie the smaller one."""
    if prefer in present:
        return prefer
    return max(present, key=lambda name: (scores[f"quantize.{name}.success"], -scores[f"quantize.{name}.bytes"]))
