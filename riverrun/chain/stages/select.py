"""select: which candidate is taken: licence, memory, and a first score on a small development share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from riverrun.base.artifacts import write_json
from riverrun.base.errors import InputError
from riverrun.base.progress import Progress
from riverrun.base.types import SamplingParams
from riverrun.chain.asked import gather
from riverrun.chain.assistant import make_assistant
from riverrun.chain.candidates import Candidate, find_candidate
from riverrun.chain.machine import available_memory, dtype_name
from riverrun.chain.measure import watched
from riverrun.chain.stage import Context, StageResult
from riverrun.chain.stages.data import files_of, make_database, make_pages
from riverrun.data.conversations import Question
from riverrun.data.journal import read_documents
from riverrun.evaluate import tooltasks
from riverrun.evaluate.tooltasks import ToolQuestion
from riverrun.plan.memory import inference_memory

__all__ = ["Select"]


class Select:
    name: ClassVar[str] = "select"
    code: ClassVar[tuple[str, ...]] = (
        "base",
        "wire",
        "models",
        "serve",
        "plan",
        "data",
        "chain/candidates.py",
        "chain/asked.py",
        "chain/assistant.py",
    )
    resumable: ClassVar[bool] = False
    isolated: ClassVar[bool] = True

    def inputs(self, ctx: Context) -> dict[str, str]:
        found = {f"candidate {name}": find_candidate(ctx, name).sha256 for name in ctx.spec.candidates}
        if ctx.spec.select.dev_questions:
            found |= files_of(ctx)
        return found

    def config(self, ctx: Context) -> dict[str, Any]:
        spec = ctx.spec
        keys = {
            "candidates",
            "licences",
            "memory_gb",
            "select",
            "system",
            "search",
            "database",
            "documents",
            "synthesis",
        }
        shared = {"max_tokens": spec.evaluate.max_tokens, "dev_per_intent": spec.data.dev_per_intent}
        return spec.model_dump(mode="json", include=keys) | shared

    def run(self, ctx: Context, folder: Path, progress: Progress) -> StageResult:
        rows, accepted, refused = [], [], []
        for name in ctx.spec.candidates:
            candidate = find_candidate(ctx, name)
            row, reason = _judge(ctx, candidate, progress)
            rows.append(row)
            if reason:
                refused.append(f"{name}: {reason}")
                progress.say(f"  {refused[-1]}")
            else:
                accepted.append((candidate, row))
        if not accepted:
            raise InputError(f"no candidate can be used: {'; '.join(refused)}")
        questions = 0
        if ctx.spec.select.dev_questions:
            questions = _score(ctx, accepted, folder / ".work" / "dev", progress)
        best = max(accepted, key=lambda pair: (pair[1]["dev_score"] or {"value": 0})["value"])[0]
        write_json(folder / "candidates.json", rows)
        write_json(folder / "model.json", {"name": best.name, "sha256": best.sha256})
        return StageResult(
            counts={"questions": questions},
            scores={"model.name": best.name, "model.sha256": best.sha256},
        )


def _judge(ctx: Context, candidate: Candidate, progress: Progress) -> tuple[dict[str, Any], str]:
    """The candidate's row and the reason why it is refused ("" when it is not)."""
    spec = ctx.spec
    row: dict[str, Any] = {
        "name": candidate.name,
        "accepted": False,
        "reason": "",
        "licence": candidate.licence,
        "memory_bytes": 0,
        "dev_score": None,
    }
    if candidate.licence and candidate.licence not in spec.licences:
        row["reason"] = f"its licence {candidate.licence} is not among the allowed {', '.join(spec.licences)}"
        return row, row["reason"]
    try:
        shape = ctx.parts.load("load_config")(candidate.fetch(progress))
    except InputError as error:
        # The sentence may hold a path of this machine: the output keeps its kind only.
        return row | {"reason": "cannot be read"}, str(error)
    dtype = dtype_name(spec.finetune.dtype)
    needed = inference_memory(shape, weights=dtype, cache_dtype=dtype).total
    free = available_memory(spec.memory_gb)
    if needed > free:
        sentence = f"the model alone needs {needed / 1e9:.2f} GB and {free / 1e9:.2f} GB are available"
        return row | {"reason": "too large for this memory"}, sentence
    return row | {"accepted": True, "memory_bytes": needed}, ""


def _score(ctx: Context, accepted: Sequence[tuple[Candidate, dict[str, Any]]], work: Path, progress: Progress) -> int:
    """Give each accepted candidate its score on the development questions; returns their number."""
    spec = ctx.spec
    work.mkdir(parents=True, exist_ok=True)
    database = work / "shop.sqlite"
    make_database(ctx, database, progress, keep=True)
    make_pages(ctx, work)
    documents = read_documents(work / "kept.jsonl")
    assistant = make_assistant(spec, database, documents)
    questions = gather(ctx, database, documents, assistant, reword=False).questions["dev"]
    chosen = [_as_task(question) for question in _spread(questions, spec.select.dev_questions)]
    for candidate, row in accepted:
        what = f"{candidate.name}: development questions"
        with ctx.model(candidate.fetch(), name=candidate.name) as model, watched(model, progress, what, len(chosen)):
            records = tooltasks.run(
                model,
                chosen,
                execute=assistant.execute,
                system=assistant.system,
                tools=assistant.specs,
                params=SamplingParams(max_tokens=spec.evaluate.max_tokens),
            )
        row["dev_score"] = tooltasks.score(records).as_dict()["success"]
    return len(chosen)


def _spread(questions: Sequence[Question], count: int) -> list[Question]:
    """`count` questions at even distances, so that all kinds are asked."""
    step = max(1.0, len(questions) / count)
    return [questions[int(index * step)] for index in range(min(count, len(questions)))]


def _as_task(question: Question) -> ToolQuestion:
    return ToolQuestion(
        question.id, question.text, question.intent, question.kind, question.split, question.sql, question.page
    )
