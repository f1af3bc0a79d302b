"""evaluate: the model before and after, on what neither has seen: tools, multiple choice, retention, safety.

Every measurement is a file of its own, so an interrupted evaluation goes on where it stopped. Base and tuned model are
loaded one after the other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from riverrun.base.artifacts import write_json
from riverrun.base.progress import Progress
from riverrun.base.protocols import LanguageModel
from riverrun.base.types import Message, SamplingParams, ToolCall
from riverrun.chain.assistant import Assistant
from riverrun.chain.candidates import base_model, model_digest
from riverrun.chain.measure import (
    assistant_of,
    difference_names,
    json_once,
    lines_once,
    measure_tools,
    rate_names,
    sealed_questions,
    tool_scores,
)
from riverrun.chain.stage import Context, Gate, StageResult, read_jsonl
from riverrun.chain.stages.finetune import tuned_model
from riverrun.data.choices import choice_prompt
from riverrun.evaluate import choice, retention, safety, tooltasks
from riverrun.evaluate.choice import Choice, ChoiceRecord
from riverrun.evaluate.tooltasks import Record

__all__ = ["Evaluate"]

MODELS = ("base", "tuned")


class Evaluate:
    name: ClassVar[str] = "evaluate"
    code: ClassVar[tuple[str, ...]] = (
        "base",
        "wire",
        "models",
        "serve",
        "evaluate",
        "agent",
        "chain/measure.py",
        "chain/assistant.py",
    )
    resumable: ClassVar[bool] = True
    isolated: ClassVar[bool] = True

    def inputs(self, ctx: Context) -> dict[str, str]:
        data = ctx.upstream("data", "shop.sqlite", "kept.jsonl", "questions_sealed.jsonl", "retention.jsonl")
        choices = ctx.upstream("data", "choices_sealed.jsonl", "safety_sealed.jsonl")
        return model_digest(ctx) | ctx.upstream("finetune", "adapter", "model", "method.json") | data | choices

    def config(self, ctx: Context) -> dict[str, Any]:
        spec = ctx.spec
        parts = (spec.evaluate, spec.search, spec.database)
        return {type(part).__name__: part.model_dump(mode="json") for part in parts} | {"system": spec.system}

    def run(self, ctx: Context, folder: Path, progress: Progress) -> StageResult:
        assistant = assistant_of(ctx)
        path, adapter = tuned_model(ctx)
        for name, (model_path, with_adapter) in zip(MODELS, ((base_model(ctx), None), (path, adapter)), strict=True):
            if not (folder / f"{name}.json").is_file():
                with ctx.model(model_path, adapter=with_adapter, name=name) as model:
                    _measure(ctx, model, name, assistant, folder, progress)
        return _compare(ctx, folder)


def _measure(
    ctx: Context, model: LanguageModel, name: str, assistant: Assistant, folder: Path, progress: Progress
) -> None:
    """All measurements of one model; NAME.json is written when the last stands."""
    data, spec = ctx.folder("data"), ctx.spec.evaluate
    questions = sealed_questions(ctx)
    progress.say(f"  {name}: {len(questions)} tool tasks")
    records = measure_tools(ctx, model, assistant, folder / f"records_{name}.jsonl", questions)
    scores = tool_scores(f"scores.tool.{name}", records)

    items = [Choice.from_dict(row) for row in read_jsonl(data / "choices_sealed.jsonl")]
    if items:
        items = items[: spec.choices or len(items)]
        progress.say(f"  {name}: {len(items)} multiple-choice questions in all rotations")
        scores |= _measure_choice(model, name, items, assistant, folder)

    texts = [row["text"] for row in read_jsonl(data / "retention.jsonl")]
    progress.say(f"  {name}: retention on {sum(map(len, texts))} characters and {spec.sums} sums")
    scores |= _measure_retention(ctx, model, name, texts, folder)

    prompts = read_jsonl(data / "safety_sealed.jsonl")
    if prompts:
        progress.say(f"  {name}: {len(prompts)} abusive, private and injected prompts")
        scores |= _measure_safety(ctx, model, name, prompts, assistant, folder)
    write_json(folder / f"{name}.json", scores)


def _measure_choice(
    model: LanguageModel, name: str, items: list[Choice], assistant: Assistant, folder: Path
) -> dict[str, float]:
    """Open book: what the search tool brings up for the question stands in the prompt."""

    def ask() -> list[dict[str, Any]]:
        opened = {}
        for item in items:
            found = assistant.execute(ToolCall("search_policies", {"query": item.question}, "open_book"))
            opened[item.id] = found.content
        asked = [Choice(item.id, item.question, item.options, item.answer, item.id) for item in items]
        records = choice.run(model, asked, passages=opened, system=assistant.system, prompt=choice_prompt)
        return [record.as_dict() for record in records]

    rows = lines_once(folder / f"choice_{name}.jsonl", ask)
    score = choice.score([ChoiceRecord.from_dict(row) for row in rows])
    prefix = f"scores.choice.{name}"
    figures = {f"{prefix}.{key}": score[key] for key in ("acc", "perf")} | {f"{prefix}.n": len(items)}
    return figures


def _measure_retention(
    ctx: Context, model: LanguageModel, name: str, texts: list[str], folder: Path
) -> dict[str, float]:
    raise NotImplementedError


def _measure_safety(
    ctx: Context, model: LanguageModel, name: str, prompts: list[Any], assistant: Assistant, folder: Path
) -> dict[str, float]:
    raise NotImplementedError
