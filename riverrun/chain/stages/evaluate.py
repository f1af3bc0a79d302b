"""evaluate: the model before and after, on what neither has seen: tools, multiple choice, retention, safety.

Every measurement is a file of its own, so an interrupted evaluation goes on where it stopped. Base and tuned model are
loaded one after the other.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from riverrun.base.artifacts import write_json
from riverrun.base.progress import Progress
from riverrun.base.protocols import LanguageModel
from riverrun.base.types import SamplingParams, ToolCall
from riverrun.chain.assistant import Assistant
from riverrun.chain.candidates import base_endpoint, base_model, model_digest, open_base
from riverrun.chain.improving import Round
from riverrun.chain.measure import (
    assistant_of,
    difference_names,
    lines_once,
    measure_tools,
    rate_names,
    sealed_questions,
    spread,
    tool_scores,
    watched,
)
from riverrun.chain.pages import PAGES_FILE, compare_pages
from riverrun.chain.stage import Context, Gate, StageResult, read_json, read_jsonl
from riverrun.chain.stages.finetune import tuned_model
from riverrun.data.choices import choice_answer, choice_prompt
from riverrun.evaluate import choice, retention, safety, tooltasks
from riverrun.evaluate.choice import Choice, ChoiceRecord
from riverrun.evaluate.retention import SumRecord, WindowRecord
from riverrun.evaluate.safety import SafetyPrompt, SafetyRecord
from riverrun.evaluate.statistics import Rate, newcombe
from riverrun.evaluate.tooltasks import Record

__all__ = ["Evaluate"]

T = TypeVar("T")
MODELS = ("base", "tuned")

SUCCESS_ADVICE = (
    "Read evaluate/records_tuned.jsonl for what goes wrong; more phrasings in the intents, more questions "
    "(data.train_per_intent, synthesis.train), more epochs (finetune.epochs), more rounds (rounds.most) or a larger "
    "candidate help, in this order."
)
CHOICE_ADVICE = (
    "Check scores.choice.tuned.retrieved first: a page that is not found cannot be read; then give more training "
    "questions or rotations (data.choice_rotations)."
)
RETENTION_ADVICE = "Train less: a lower finetune.learning_rate, fewer finetune.epochs or a smaller finetune.rank."
SAFETY_ADVICE = (
    "evaluate/comparison.json lists the prompts under safety.worse: add refusals of their kind to the training part "
    "of the safety file, and name private columns in database.deny_columns."
)


class Evaluate:
    name: ClassVar[str] = "evaluate"
    code: ClassVar[tuple[str, ...]] = (
        "base",
        "wire",
        "models",
        "serve",
        "evaluate",
        "agent",
        "chain/candidates.py",
        "chain/measure.py",
        "chain/assistant.py",
        "chain/pages.py",
    )
    resumable: ClassVar[bool] = True
    isolated: ClassVar[bool] = True

    def inputs(self, ctx: Context) -> dict[str, str]:
        data = ctx.upstream("data", "shop.sqlite", "kept.jsonl", "questions_sealed.jsonl", "retention.jsonl")
        choices = ctx.upstream("data", "choices_sealed.jsonl", "safety_sealed.jsonl")
        tuned = ctx.upstream("finetune", "adapter", "method.json")
        if ctx.spec.rounds.most > 1:
            tuned |= ctx.upstream("finetune", "rounds.json")
        if ctx.spec.pages.compare:
            data |= ctx.upstream("data", "questions_dev.jsonl")
        return model_digest(ctx) | tuned | data | choices

    def config(self, ctx: Context) -> dict[str, Any]:
        spec = ctx.spec
        parts = (spec.evaluate, spec.search, spec.database, *((spec.pages, spec.agent) if spec.pages.compare else ()))
        return {type(part).__name__: part.model_dump(mode="json") for part in parts} | {"system": spec.system}

    def run(self, ctx: Context, folder: Path, progress: Progress) -> StageResult:
        assistant = assistant_of(ctx)
        scores: dict[str, Any] = {}
        if ctx.spec.pages.compare and ctx.spec.documents is not None and base_endpoint(ctx) is None:
            pages = folder / PAGES_FILE  # before anything sealed is read
            models = {"base": (base_model(ctx), None), "tuned": tuned_model(ctx)}
            made = pages.is_file()
            scores = read_json(pages)["scores"] if made else compare_pages(ctx, assistant, models, folder, progress)
        untrained = read_json(ctx.folder("finetune") / "method.json")["method"] == "none"
        for name in MODELS:
            if (folder / f"{name}.json").is_file():
                continue
            if name == "tuned" and untrained:
                _same_as_base(folder)
                continue
            with open_base(ctx, name=name) if name == "base" else _open_tuned(ctx) as model:
                few = ctx.spec.evaluate.base_questions if name == "base" and not untrained else 0
                _measure(ctx, model, name, assistant, folder, progress, few)
        result = _compare(folder)
        result.scores |= scores | _optimism(ctx, folder)
        return result


def _optimism(ctx: Context, folder: Path) -> dict[str, float]:
    """How much better the chosen round did on the development questions, which it was chosen by, than on the sealed."""
    file = ctx.folder("finetune") / "rounds.json"
    if not file.is_file():
        return {}
    rounds = read_json(file)
    chosen = Round.from_dict(rounds["rounds"][rounds["chosen"] - 1]).success
    sealed = Rate.of([row["success"] for row in read_jsonl(folder / "records_tuned.jsonl")])
    return difference_names("rounds.optimism", newcombe(chosen, sealed)._asdict())


@contextmanager
def _open_tuned(ctx: Context) -> Iterator[LanguageModel]:
    path, adapter = tuned_model(ctx)
    with ctx.model(path, adapter=adapter, name="tuned") as model:
        yield model


def _same_as_base(folder: Path) -> None:
    """Nothing was trained: the base model's answers are the tuned one's, there is nothing to ask again."""
    for file in sorted(folder.glob("*_base.jsonl")):
        shutil.copyfile(file, file.with_name(file.name.replace("_base", "_tuned")))
    scores = read_json(folder / "base.json")
    renamed = {name.replace(".base", ".tuned").replace("_base", "_tuned"): value for name, value in scores.items()}
    write_json(folder / "tuned.json", renamed)


def _measure(
    ctx: Context, model: LanguageModel, name: str, assistant: Assistant, folder: Path, progress: Progress, few: int
) -> None:
    """All measurements of one model; NAME.json is written when the last stands. few: tool tasks, 0 for all of them.

    An endpoint gives no log-probabilities and its weights are not touched: no multiple choice, no retention.
    """
    data, spec = ctx.folder("data"), ctx.spec.evaluate
    questions = sealed_questions(ctx)
    questions = spread(questions, few) if few else questions
    records = measure_tools(ctx, model, assistant, folder / f"records_{name}.jsonl", questions, progress)
    scores = tool_scores(f"scores.tool.{name}", records)

    own = base_endpoint(ctx) is None
    items = [Choice.from_dict(row) for row in read_jsonl(data / "choices_sealed.jsonl")] if own else []
    if items:
        items = items[: spec.choices or len(items)]
        rotations = sum(len(item.options) for item in items)
        with watched(model, progress, f"{name}: multiple choice", rotations):
            scores |= _measure_choice(model, name, items, assistant, folder)

    texts = [(row["id"], row["text"]) for row in read_jsonl(data / "retention.jsonl")]
    if own:
        windows = sum(len(retention.windows(text)) for _, text in texts)
        with watched(model, progress, f"{name}: retention", windows + spec.sums):
            scores |= _measure_retention(ctx, model, name, texts, folder)

    prompts = [SafetyPrompt.from_dict(row) for row in read_jsonl(data / "safety_sealed.jsonl")]
    if prompts:
        with watched(model, progress, f"{name}: safety"):
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
        records = choice.run(
            model, asked, passages=opened, system=assistant.system, prompt=choice_prompt, answer=choice_answer
        )
        return [record.as_dict() for record in records]

    rows = lines_once(folder / f"choice_{name}.jsonl", ask)
    score = choice.score([ChoiceRecord.from_dict(row) for row in rows])
    prefix = f"scores.choice.{name}"
    interval = rate_names(prefix, score["perf_interval"], "perf")
    return {f"{prefix}.acc": score["acc"], **interval, f"{prefix}.retrieved": _retrieved(items, assistant)}


def _retrieved(items: list[Choice], assistant: Assistant) -> float:
    """Share of the questions for which the search brings up their page: above it no model can rise honestly."""
    hits = 0
    for item in items:
        found = assistant.execute(ToolCall("search_policies", {"query": item.question}, "open_book"))
        hits += item.page in (found.data or {}).get("pages", ())
    return hits / len(items)


def _measure_retention(
    ctx: Context, model: LanguageModel, name: str, texts: list[tuple[str, str]], folder: Path
) -> dict[str, float]:
    """Plain text and plain sums: no system text, no tools; it is the model that must not have forgotten."""
    read = lines_once(
        folder / f"perplexity_{name}.jsonl", lambda: [r.as_dict() for r in retention.run_perplexity(model, texts)]
    )
    windows = [WindowRecord.from_dict(row) for row in read]
    scores = {f"retention.perplexity_{name}": retention.score_perplexity(windows)["perplexity"]}
    if count := ctx.spec.evaluate.sums:
        sums = retention.two_digit_sums(count, ctx.spec.seed)
        asked = lines_once(
            folder / f"sums_{name}.jsonl", lambda: [r.as_dict() for r in retention.run_sums(model, sums)]
        )
        rate = retention.score_sums([SumRecord.from_dict(row) for row in asked])
        scores[f"retention.sums_{name}"] = rate["value"]
    return scores


def _measure_safety(
    ctx: Context, model: LanguageModel, name: str, prompts: list[SafetyPrompt], assistant: Assistant, folder: Path
) -> dict[str, float]:
    """As it is served: the system text, the tools, and the query tool that refuses private columns."""

    def ask() -> list[dict[str, Any]]:
        params = SamplingParams(max_tokens=ctx.spec.evaluate.max_tokens)
        shared: dict[str, Any] = {"system": assistant.system, "tools": assistant.specs, "params": params}
        shared["prepare"] = assistant.prepare
        return [r.as_dict() for r in safety.run(model, prompts, execute=assistant.execute, **shared)]

    rows = lines_once(folder / f"safety_{name}.jsonl", ask)
    score = safety.score([SafetyRecord.from_dict(row) for row in rows])
    return {f"safety.{name}": score["clean"]["value"], "safety.n": len(rows)}


def _records(folder: Path, task: str, read: Callable[[Any], T]) -> tuple[list[T], list[T]]:
    """The records of the base and of the tuned model."""
    first, second = ([read(row) for row in read_jsonl(folder / f"{task}_{name}.jsonl")] for name in MODELS)
    return first, second


def _compare(folder: Path) -> StageResult:
    """Paired comparisons of base and tuned, and the gates."""
    scores: dict[str, Any] = {}
    for name in MODELS:
        scores |= read_json(folder / f"{name}.json")
    asked, tuned_records = _records(folder, "records", Record.from_dict)
    both = {record.id for record in asked}  # the base model may have been asked fewer
    tools = tooltasks.compare(asked, [record for record in tuned_records if record.id in both]).as_dict()
    comparison: dict[str, Any] = {"tool": tools}
    scores |= difference_names("scores.tool.gain", tools)
    gates = [Gate("success", scores["scores.tool.tuned.success"], True, SUCCESS_ADVICE)]
    if (folder / "choice_tuned.jsonl").is_file():
        comparison["choice"] = choice.compare(*_records(folder, "choice", ChoiceRecord.from_dict)).as_dict()
        scores |= difference_names("scores.choice.gain", comparison["choice"]["perf"])
        gates.append(Gate("choice_perf", scores["scores.choice.tuned.perf"], True, CHOICE_ADVICE))
    if (folder / "perplexity_tuned.jsonl").is_file():
        windows = _records(folder, "perplexity", WindowRecord.from_dict)
        comparison["perplexity"] = retention.compare_perplexity(*windows)
        scores["retention.perplexity_ratio"] = comparison["perplexity"]["ratio"]
        gates.append(Gate("retention_perplexity", comparison["perplexity"]["ratio"], False, RETENTION_ADVICE))
    if (folder / "sums_tuned.jsonl").is_file():
        comparison["sums"] = retention.compare_sums(*_records(folder, "sums", SumRecord.from_dict))
        scores |= difference_names("retention.sums_change", comparison["sums"])
        gates.append(Gate("sums_change", comparison["sums"]["high"], True, RETENTION_ADVICE))
    if (folder / "safety_tuned.jsonl").is_file():
        base, tuned = _records(folder, "safety", SafetyRecord.from_dict)
        worse = safety.compare(base, tuned)
        comparison["safety"] = {"worse": [asdict(item) for item in worse]}
        scores |= {"safety.worse": len(worse), "safety.better": len(safety.compare(tuned, base))}
        gates.append(Gate("safety_worse", len(worse), False, SAFETY_ADVICE))
    write_json(folder / "comparison.json", comparison)
    return StageResult(scores=scores, gates=gates)
