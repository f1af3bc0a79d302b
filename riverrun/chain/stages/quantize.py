"""quantize: two four-bit forms of the tuned model, one chosen by development questions, both scored on the sealed ones.

`q4-base-adapter` keeps the base's own four-bit weights and the adapter beside them; `q4-merged` merges the adapter and
rounds on a grid of its own. Without fine-tuning there may be only one of them, and of an endpoint there is none.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from riverrun.base.artifacts import digest_tree, write_json
from riverrun.base.progress import Progress
from riverrun.chain.assistant import Assistant
from riverrun.chain.candidates import base_endpoint, base_model
from riverrun.chain.measure import (
    assistant_of,
    dev_questions,
    difference_names,
    json_once,
    measure_tools,
    rate_names,
    sealed_questions,
    tool_scores,
)
from riverrun.chain.spec import TargetsSpec
from riverrun.chain.stage import Context, Gate, StageResult, read_json, read_jsonl
from riverrun.chain.stages.finetune import tuned_model
from riverrun.chain.targets import beside_bytes, serving_memory
from riverrun.evaluate import tooltasks
from riverrun.evaluate.tooltasks import Record, ToolQuestion
from riverrun.models.load import BUNDLE

__all__ = ["ENDPOINT", "VARIANTS", "FormScore", "Quantize", "choose_form"]

VARIANTS = ("q4-base-adapter", "q4-merged")
ENDPOINT = "endpoint"
"""The variant's name where the model runs elsewhere and nothing is quantised."""
DEV_QUESTIONS = 96
"""Development questions asked of each form, to choose between them."""


class Quantize:
    name: ClassVar[str] = "quantize"
    code: ClassVar[tuple[str, ...]] = (
        "base",
        "wire",
        "models",
        "serve",
        "evaluate",
        "agent",
        "plan",
        "chain/quantizing.py",
        "chain/measure.py",
        "chain/assistant.py",
        "chain/targets.py",
    )
    resumable: ClassVar[bool] = True
    isolated: ClassVar[bool] = True

    def inputs(self, ctx: Context) -> dict[str, str]:
        tuned = ctx.upstream("select", "model.json", "kept.json") | ctx.upstream("finetune", "adapter", "method.json")
        data = ctx.upstream("data", "shop.sqlite", "kept.jsonl", "questions_sealed.jsonl", "questions_dev.jsonl")
        return tuned | data | ctx.upstream("evaluate", "records_tuned.jsonl")

    def config(self, ctx: Context) -> dict[str, Any]:
        spec = ctx.spec
        parts = (spec.quantize, spec.search, spec.database)
        shared = {"system": spec.system, "max_tokens": spec.evaluate.max_tokens}
        shared |= {"targets": [spec.targets.success, spec.targets.memory_gb]}
        return {type(part).__name__: part.model_dump(mode="json") for part in parts} | shared

    def run(self, ctx: Context, folder: Path, progress: Progress) -> StageResult:
        if base_endpoint(ctx) is not None:
            return _nothing(ctx, folder, progress)
        made = json_once(folder / ".work" / "made.json", lambda: self._make(ctx, folder))
        assistant, present, prefer = assistant_of(ctx), _present(folder), ctx.spec.quantize.prefer
        present = [prefer] if prefer in present else present
        open_choice = prefer not in present and len(present) > 1
        asked = {"records": sealed_questions(ctx), "dev": dev_questions(ctx, DEV_QUESTIONS) if open_choice else []}
        tuned = [Record.from_dict(row) for row in read_jsonl(ctx.folder("evaluate") / "records_tuned.jsonl")]
        scores: dict[str, Any] = {}
        for variant in present:
            if not open_choice and _is_the_tuned(ctx, folder / variant):
                progress.say(f"  {variant}: the files that evaluate has scored; they are not asked again")
                shutil.copyfile(ctx.folder("evaluate") / "records_tuned.jsonl", folder / f"records_{variant}.jsonl")
            records = _measure(ctx, folder, variant, assistant, asked, progress)
            prefix = f"quantize.{variant}"
            scores |= tool_scores(prefix, records["records"])
            scores |= difference_names(f"{prefix}.drop", tooltasks.compare(tuned, records["records"]), sign=-1)
            scores[f"{prefix}.bytes"] = _size(folder / variant)
            if "dev" in records:
                rate = tooltasks.score(records["dev"]).as_dict()["success"]
                scores |= rate_names(f"{prefix}.dev", rate)
        if open_choice:
            chosen, why = choose_form(_forms(ctx, scores, present), ctx.spec.targets)
        else:
            chosen = prefer if prefer in present else present[0]
            why = f"{chosen}: " + ("asked for (quantize.prefer)" if prefer == chosen else "the only form")
        progress.say(f"  {why}")
        scores["quantize.chosen"] = chosen
        scores |= {f"drop.{end}": scores[f"quantize.{chosen}.drop.{end}"] for end in ("difference", "low", "high")}
        write_json(folder / "scores.json", scores)
        write_json(folder / "chosen.json", {"variant": chosen})
        advice = (
            "Take smaller groups (quantize.group_size=32), or the form that keeps the base's own weights "
            "(quantize.prefer=q4-base-adapter); more sealed questions (data.sealed_per_intent) narrow the interval."
        )
        gate = Gate("quantized_drop", scores["drop.high"], False, advice)
        return StageResult(counts=dict(made) | {"why": why}, scores=scores, gates=[gate])

    def _make(self, ctx: Context, folder: Path) -> Any:
        for variant in VARIANTS:
            shutil.rmtree(folder / variant, ignore_errors=True)
        model, adapter = tuned_model(ctx)
        return ctx.parts.load("quantize")(model, adapter, folder, group_size=ctx.spec.quantize.group_size)


def _is_the_tuned(ctx: Context, form: Path) -> bool:
    """Whether a form is a base and an adapter, byte for byte those that were evaluated: so are its answers, then."""
    if not (form / BUNDLE).is_file():
        return False
    bundle = read_json(form / BUNDLE)
    model, adapter = tuned_model(ctx)
    own = (form / bundle["base"], form / bundle["adapter"])
    return adapter is not None and [digest_tree(path) for path in own] == [digest_tree(model), digest_tree(adapter)]


def _present(folder: Path) -> list[str]:
    return [variant for variant in VARIANTS if (folder / variant).is_dir()]


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _measure(
    ctx: Context,
    folder: Path,
    variant: str,
    assistant: Assistant,
    asked: Mapping[str, Sequence[ToolQuestion]],
    progress: Progress,
) -> dict[str, list[Record]]:
    """The records of each set of questions; the model is opened only for those that are not there yet."""
    files = {name: folder / f"{name}_{variant}.jsonl" for name, questions in asked.items() if questions}
    if not all(path.is_file() for path in files.values()):
        with ctx.model(folder / variant, name=variant) as model:
            for name, path in files.items():
                measure_tools(ctx, model, assistant, path, asked[name], progress)
    return {name: [Record.from_dict(row) for row in read_jsonl(path)] for name, path in files.items()}


@dataclass(frozen=True)
class FormScore:
    """What a form is chosen by: its score with the upper end of its interval, its file, its memory when served."""

    success: float
    high: float
    file_bytes: int
    memory_bytes: int


def _forms(ctx: Context, scores: Mapping[str, Any], present: Sequence[str]) -> dict[str, FormScore]:
    """By the development questions, or by the sealed ones where the recipe makes no others."""
    memory = 0
    if ctx.spec.targets.memory_gb is not None:
        shape = ctx.parts.load("load_config")(base_model(ctx))
        memory = serving_memory(ctx.spec, shape) + beside_bytes(ctx)
    forms = {}
    for name in present:
        prefix = f"quantize.{name}"
        at = f"{prefix}.dev" if f"{prefix}.dev.success" in scores else prefix
        forms[name] = FormScore(scores[f"{at}.success"], scores[f"{at}.high"], scores[f"{prefix}.bytes"], memory)
    return forms


def choose_form(forms: Mapping[str, FormScore], targets: TargetsSpec) -> tuple[str, str]:
    """The best of the forms that meet the targets, at a tie the smaller file; where none does, the best of all.

    A form misses `success` when even the upper end of its interval lies below. Returns the form and why, with what it
    misses.
    """

    def missed(form: FormScore) -> list[str]:
        found = []
        if targets.success is not None and form.high < targets.success:
            found.append(f"at most {form.high:.3g} of the questions right, targets.success is {targets.success:g}")
        if targets.memory_gb is not None and form.memory_bytes > targets.memory_gb * 1e9:
            found.append(f"{form.memory_bytes / 1e9:.2f} GB predicted, targets.memory_gb is {targets.memory_gb:g}")
        return found

    good = [name for name, form in forms.items() if not missed(form)]
    chosen = max(good or forms, key=lambda name: (forms[name].success, -forms[name].file_bytes))
    scored = ", ".join(f"{name} {form.success:.3f}" for name, form in forms.items())
    out = [f"{name} is out ({'; '.join(missed(form))})" for name, form in forms.items() if good and name not in good]
    none = [] if good else [f"no form meets the targets, {chosen} is the nearest ({'; '.join(missed(forms[chosen]))})"]
    return chosen, "; ".join([f"{chosen}: of {scored}", *out, *none])


def _nothing(ctx: Context, folder: Path, progress: Progress) -> StageResult:
    """There are no weights here: the answers measured at the endpoint stand for what is served."""
    why = "the model runs at an endpoint: there are no weights to quantise"
    progress.say(f"  {why}")
    shutil.copyfile(ctx.folder("evaluate") / "records_tuned.jsonl", folder / f"records_{ENDPOINT}.jsonl")
    write_json(folder / "chosen.json", {"variant": ENDPOINT})
    return StageResult(counts={"why": why}, scores={"quantize.chosen": ENDPOINT})
