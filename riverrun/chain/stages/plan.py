"""plan: memory and time of full fine-tuning, LoRA and none, and which one is taken; whether the targets are in reach.

plan.json holds what does not change from run to run; measured rates, seconds and the free memory go into the counts.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

from riverrun.base.artifacts import write_json
from riverrun.base.progress import Progress
from riverrun.chain.candidates import base_endpoint, base_model, model_digest
from riverrun.chain.machine import dtype_name, measure_machine
from riverrun.chain.planning import make_plan, stage_costs
from riverrun.chain.stage import Context, StageResult, read_json
from riverrun.chain.targets import beside_bytes, predict_forms, predict_targets
from riverrun.models.config import ModelConfig
from riverrun.plan.hardware import Hardware
from riverrun.plan.serving import Form

__all__ = ["Plan"]


class Plan:
    name: ClassVar[str] = "plan"
    code: ClassVar[tuple[str, ...]] = (
        "base",
        "plan",
        "chain/planning.py",
        "chain/targets.py",
        "data/packing.py",
        "data/tokens.py",
    )
    resumable: ClassVar[bool] = False
    isolated: ClassVar[bool] = True

    def inputs(self, ctx: Context) -> dict[str, str]:
        return (
            model_digest(ctx)
            | ctx.upstream("data", "train.jsonl")
            | ctx.upstream("select", "candidates.json", "kept.json")
        )

    def config(self, ctx: Context) -> dict[str, Any]:
        spec = ctx.spec
        finetune = spec.finetune.model_dump(mode="json")
        rounds = {"rounds": spec.rounds.most} if spec.rounds.most > 1 else {}
        targets = spec.targets.model_dump(mode="json", exclude={"success"})
        more = {"targets": targets, "slots": spec.deploy.slots} if spec.targets.under_load else {}
        return {"finetune": finetune, "memory_gb": spec.memory_gb, "success": spec.gates.success} | rounds | more

    def run(self, ctx: Context, folder: Path, progress: Progress) -> StageResult:
        if base_endpoint(ctx) is not None:
            return _untuned(folder, progress)
        spec, path = ctx.spec, base_model(ctx)
        shape = ctx.parts.load("load_config")(path)
        rows = ctx.parts.load("count_rows")(path, ctx.folder("data") / "train.jsonl", spec)
        hardware = measure_machine(dtype_name(spec.finetune.dtype), spec.memory_gb)
        plan = make_plan(spec, shape, hardware, rows, _score(ctx))
        chosen = plan.method()
        methods = [
            {"name": m.name, "memory_bytes": m.memory_bytes, "fits": m.fits, "micro_tokens": m.micro_tokens}
            for m in plan.methods
        ]
        out = {"chosen": plan.chosen, "micro_tokens": chosen.micro_tokens, "methods": methods, "rows": asdict(rows)}
        forms, missed = _targets(ctx, shape, hardware, tuned=plan.chosen == "lora")
        if forms:
            out["forms"] = [
                {"name": form.name, "file_bytes": form.file_bytes, "memory_bytes": form.memory_bytes} for form in forms
            ]
        write_json(folder / "plan.json", out)
        progress.say(f"  {plan.chosen}: {plan.why}")
        for sentence in missed:
            progress.say(f"  {sentence}")
        costs = stage_costs(ctx, shape, hardware, rows, plan)
        scores: dict[str, Any] = {"plan.chosen": plan.chosen}
        for method in plan.methods:
            scores[f"plan.predicted.{method.name}.memory_bytes"] = method.memory_bytes
            scores[f"plan.predicted.{method.name}.seconds"] = round(method.seconds, 1)
        for form in forms:
            scores[f"plan.forms.{form.name}"] = {key: value for key, value in asdict(form).items() if key != "name"}
        counts = {
            "why": plan.why,
            "targets": missed,
            "available_bytes": plan.available_bytes,
            "reasons": {method.name: method.reason for method in plan.methods},
            "items": list(chosen.items),
            "rates": dict(hardware.rates),
            "stages": {cost.stage: [cost.memory_bytes, round(cost.seconds, 1)] for cost in costs},
        }
        return StageResult(counts=counts, scores=scores)


def _score(ctx: Context) -> float | None:
    """What the untuned model scores at least: the lower end of its interval, since the development share is small."""
    name = read_json(ctx.folder("select") / "model.json")["name"]
    for row in read_json(ctx.folder("select") / "candidates.json"):
        if row["name"] == name and row["dev_score"] is not None:
            return float(row["dev_score"]["low"])
    return None


def _targets(ctx: Context, shape: ModelConfig, hardware: Hardware, *, tuned: bool) -> tuple[list[Form], list[str]]:
    """The forms with their predicted figures and a sentence for each target in doubt; nothing without targets."""
    if not ctx.spec.targets.under_load:
        return [], []
    forms = predict_forms(ctx.spec, shape, hardware, tuned=tuned, beside=beside_bytes(ctx))
    return forms, predict_targets(ctx.spec, forms)


def _untuned(folder: Path, progress: Progress) -> StageResult:
    """An endpoint is neither tuned nor loaded here: there is nothing to price."""
    why = "the model runs at an endpoint: it is used as it is, and its memory and speed are not this machine's"
    write_json(folder / "plan.json", {"chosen": "none", "micro_tokens": 0, "methods": [], "rows": {}})
    progress.say(f"  none: {why}")
    return StageResult(counts={"why": why}, scores={"plan.chosen": "none"})
