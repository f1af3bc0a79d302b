"""agent: the sealed questions once through HTTP and the agent, as a user's would go."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

from riverrun.agent.cascade import Cascade
from riverrun.base.artifacts import write_json
from riverrun.base.progress import Progress
from riverrun.base.protocols import Completion, Delta, LanguageModel, ModelInfo, Request, Score
from riverrun.base.types import Message, SamplingParams
from riverrun.chain.application import Application, open_application
from riverrun.chain.measure import difference_names, rate_names, sealed_questions, tool_scores, write_lines
from riverrun.chain.serving import serving
from riverrun.chain.stage import Context, Gate, StageResult, read_json, read_jsonl
from riverrun.evaluate import pageanswers, tooltasks
from riverrun.evaluate.tooltasks import Record, ToolQuestion

__all__ = ["Agent"]

CONCURRENCY = 16
TARGET_ADVICE = (
    "Read agent/answers.jsonl for what goes wrong; more training questions, a larger candidate, or one more model for "
    "the hard questions (select.keep) help, in this order."
)


class Agent:
    name: ClassVar[str] = "agent"
    code: ClassVar[tuple[str, ...]] = (
        "base",
        "wire",
        "models",
        "serve",
        "evaluate",
        "agent",
        "chain/application.py",
        "chain/assistant.py",
        "chain/pages.py",
        "chain/serving.py",
    )
    resumable: ClassVar[bool] = False
    isolated: ClassVar[bool] = True

    def inputs(self, ctx: Context) -> dict[str, str]:
        chosen = read_json(ctx.folder("quantize") / "chosen.json")["variant"]
        model = ctx.upstream("quantize", chosen, f"records_{chosen}.jsonl")
        data = ctx.upstream("data", "shop.sqlite", "kept.jsonl", "questions_sealed.jsonl")
        return model | data | ctx.upstream("deploy", "server.json") | ctx.upstream("select", "kept.json")

    def config(self, ctx: Context) -> dict[str, Any]:
        agent, target = ctx.spec.agent.model_dump(mode="json"), ctx.spec.targets.success is not None
        return {"agent": agent, "max_tokens": ctx.spec.evaluate.max_tokens, "target": target}

    def run(self, ctx: Context, folder: Path, progress: Progress) -> StageResult:
        from riverrun.serve.client import RemoteModel

        variant = read_json(ctx.folder("quantize") / "chosen.json")["variant"]
        questions = sealed_questions(ctx)
        with (
            open_application(ctx.out, parts=ctx.parts) as application,
            serving(application) as url,
            RemoteModel(f"{url}/v1", f"{ctx.spec.name}-agent") as remote,
            progress.task("agent over HTTP", total=len(questions), unit="questions") as task,
        ):
            asked = _Asked(remote, task.advance)
            records = tooltasks.run(
                asked,
                questions,
                execute=application.assistant.execute,
                params=SamplingParams(max_tokens=ctx.spec.evaluate.max_tokens),
            )
        rows = [_row(record, answer) for record, answer in zip(records, asked.completions, strict=True)]
        write_lines(folder / "answers.jsonl", rows)
        own = [Record.from_dict(row) for row in read_jsonl(ctx.folder("quantize") / f"records_{variant}.jsonl")]
        scores = tool_scores("agent", records)
        scores |= difference_names("agent.through", tooltasks.compare(own, records), sign=-1)
        scores["agent.steps_mean"] = sum(len(row["steps"]) for row in rows) / max(1, len(rows))
        scores |= _page_answers(questions, rows)
        scores |= _handed_over(application)
        write_json(folder / "scores.json", scores)
        advice = (
            "Compare agent/answers.jsonl with quantize/records_*.jsonl: look for exhausted budgets (agent.steps, "
            "agent.seconds) and for calls that the server read differently."
        )
        gates = [Gate("through_agent", scores["agent.through.difference"], False, advice)]
        if ctx.spec.targets.success is not None:
            gates.append(Gate("targets.success", scores["agent.success"], True, TARGET_ADVICE))
        return StageResult(counts={"questions": len(rows)}, scores=scores, gates=gates)


def _handed_over(application: Application) -> dict[str, float]:
    """The share of the questions that went on to a larger model, where there is one."""
    agent = application.agent
    return {"agent.handed_over": agent.asked[1] / max(1, agent.asked[0])} if isinstance(agent, Cascade) else {}


class _Asked:
    """A remote model that keeps its completions, whose steps go into the answers file, and counts them as they come."""

    def __init__(self, model: LanguageModel, advance: Callable[[], None]) -> None:
        self.model, self.advance = model, advance
        self.completions: list[Completion] = []

    @property
    def info(self) -> ModelInfo:
        return self.model.info

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        with ThreadPoolExecutor(CONCURRENCY) as pool:
            for (answer,) in pool.map(self.model.generate, [[request] for request in requests]):
                self.completions.append(answer)
                self.advance()
        return self.completions[-len(requests) :]

    def stream(self, request: Request) -> Iterator[Delta]:
        return self.model.stream(request)

    def score(self, prefix: str | Sequence[Message], continuations: Sequence[str]) -> list[Score]:
        return self.model.score(prefix, continuations)


def _page_answers(questions: Sequence[ToolQuestion], rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The share of the page questions with a known fact whose answer says it."""
    answers = {row["id"]: row["answer"] for row in rows}
    asked = pageanswers.answerable(questions)
    records = pageanswers.judge(asked, [answers[question.id] for question in asked])
    return rate_names("agent.page_answers", pageanswers.score(records).as_dict()) if asked else {}


def _row(record: Record, answer: Completion) -> dict[str, Any]:
    return {
        "id": record.id,
        "question": record.question,
        "kind": record.kind,
        "success": record.success,
        "answer": answer.message.text,
        "steps": [dict(step) for step in answer.steps],
        "error": record.error,
        "expected": record.expected,
    }
