"""select: which candidates are kept: licence, languages, memory, context, speed, and a score on development questions.

model.json names the model that is tuned, kept.json all that are kept in the order in which they are asked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from riverrun.base.artifacts import write_json
from riverrun.base.errors import InputError
from riverrun.base.progress import Progress
from riverrun.base.protocols import LanguageModel
from riverrun.base.types import SamplingParams
from riverrun.chain.asked import gather
from riverrun.chain.assistant import Assistant, make_assistant
from riverrun.chain.candidates import Candidate, all_candidates, open_endpoint
from riverrun.chain.machine import available_memory
from riverrun.chain.measure import spread, watched
from riverrun.chain.planning import CHARACTERS_PER_TOKEN, PREFIX_TOKENS, TURN_TOKENS
from riverrun.chain.selecting import Judged, check_context, decide, judge, measure_speed
from riverrun.chain.stage import Context, StageResult
from riverrun.chain.stages.data import files_of, make_database, make_pages
from riverrun.data.conversations import Question
from riverrun.data.journal import read_documents
from riverrun.evaluate import tooltasks
from riverrun.evaluate.tooltasks import ToolQuestion

__all__ = ["Select"]

_CJK = re.compile(r"[\u4e00-\u9fff]")


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
        "chain/selecting.py",
        "chain/asked.py",
        "chain/assistant.py",
    )
    resumable: ClassVar[bool] = False
    isolated: ClassVar[bool] = True

    def inputs(self, ctx: Context) -> dict[str, str]:
        found = {f"candidate {candidate.name}": candidate.sha256 for candidate in all_candidates(ctx)}
        if ctx.spec.select.dev_questions:
            found |= files_of(ctx)
        return found

    def config(self, ctx: Context) -> dict[str, Any]:
        spec = ctx.spec
        keys = {
            "candidates",
            "licences",
            "language",
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
        spec = ctx.spec
        judged = [judge(ctx, candidate, progress) for candidate in all_candidates(ctx)]
        _require_one(judged)
        asking = _prepare(ctx, folder / ".work" / "dev", progress) if spec.select.dev_questions else None
        prompt = asking.prompt_tokens if asking else PREFIX_TOKENS + TURN_TOKENS
        for each in judged:
            if each.accepted:
                check_context(each, prompt + spec.evaluate.max_tokens)
                measure_speed(ctx, each, prompt)
        _require_one(judged)
        for each in judged:
            if asking and each.accepted:
                _score(ctx, each, asking, progress)
        _require_one(judged)
        free = available_memory(spec.memory_gb)
        kept = decide(judged, spec.select.keep, free)
        for each in judged:
            if each.why:
                progress.say(f"  {each.candidate.name}: {each.why}")
        rows = [{"name": each.candidate.name, "sha256": each.candidate.sha256} for each in kept]
        write_json(folder / "candidates.json", [each.row for each in judged])
        write_json(folder / "kept.json", rows)
        write_json(folder / "model.json", rows[0])
        scores = {
            "model.name": rows[0]["name"],
            "model.sha256": rows[0]["sha256"],
            "select.kept": [row["name"] for row in rows],
            "select.candidates": [each.shown() for each in judged],
        }
        questions = len(asking.questions) if asking else 0
        counts = {"questions": questions, "prompt_tokens": prompt, "available_bytes": free}
        return StageResult(counts=counts, scores=scores)


def _require_one(judged: Sequence[Judged]) -> None:
    if not any(each.accepted for each in judged):
        refused = "; ".join(f"{each.candidate.name}: {each.why}" for each in judged)
        raise InputError(f"no candidate can be used: {refused}")


@dataclass(frozen=True)
class _Asking:
    """What each candidate is asked, and the tokens of its longest prompt, estimated."""

    assistant: Assistant
    questions: list[ToolQuestion]
    prompt_tokens: int


def _prepare(ctx: Context, work: Path, progress: Progress) -> _Asking:
    """The development questions over a database and pages of their own: the data stage comes later."""
    spec = ctx.spec
    work.mkdir(parents=True, exist_ok=True)
    database = work / "shop.sqlite"
    make_database(ctx, database, progress, keep=True)
    make_pages(ctx, work)
    documents = read_documents(work / "kept.jsonl")
    assistant = make_assistant(spec, database, documents)
    questions = gather(ctx, database, documents, assistant, reword=False).questions["dev"]
    chosen = [_as_task(question) for question in spread(questions, spec.select.dev_questions)]
    tools = json.dumps([tool.to_openai() for tool in assistant.specs], ensure_ascii=False)
    longest = max((question.text for question in chosen), key=len, default="")
    return _Asking(assistant, chosen, _tokens(assistant.system + tools + longest) + TURN_TOKENS)


def _as_task(question: Question) -> ToolQuestion:
    return ToolQuestion(
        question.id, question.text, question.intent, question.kind, question.split, question.sql, question.page
    )


def _tokens(text: str) -> int:
    """An estimate: a Chinese character is a token, other text has some 3.6 characters to one."""
    chinese = len(_CJK.findall(text))
    return round(chinese + (len(text) - chinese) / CHARACTERS_PER_TOKEN)


@contextmanager
def _opened(ctx: Context, candidate: Candidate) -> Iterator[LanguageModel]:
    if candidate.endpoint is not None:
        with open_endpoint(candidate.endpoint) as remote:
            yield remote
        return
    with ctx.model(candidate.fetch(), name=candidate.name) as model:
        yield model


def _score(ctx: Context, each: Judged, asking: _Asking, progress: Progress) -> None:
    """Give an accepted candidate its score on the development questions; an endpoint that fails is refused."""
    what, count = f"{each.candidate.name}: development questions", len(asking.questions)
    try:
        with _opened(ctx, each.candidate) as model, watched(model, progress, what, count):
            records = tooltasks.run(
                model,
                asking.questions,
                execute=asking.assistant.execute,
                system=asking.assistant.system,
                tools=asking.assistant.specs,
                prepare=asking.assistant.prepare,
                params=SamplingParams(max_tokens=ctx.spec.evaluate.max_tokens),
            )
    except InputError as error:
        if each.local:
            raise
        each.refuse("did not answer", f"did not answer the development questions: {error} (--from select tries again)")
        return
    each.row["dev_score"] = tooltasks.score(records).as_dict()["success"]
