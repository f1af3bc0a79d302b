"""Measurements that several stages share, each written as one file when it is complete.

A stage that can resume finds the files of the measurements it finished and does not ask the model again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from riverrun.base.artifacts import atomic_file, write_json
from riverrun.base.progress import Progress
from riverrun.base.protocols import LanguageModel
from riverrun.base.types import SamplingParams
from riverrun.chain.assistant import Assistant, make_assistant
from riverrun.chain.stage import Context, read_json, read_jsonl
from riverrun.data.journal import read_documents
from riverrun.evaluate import tooltasks
from riverrun.evaluate.statistics import PairedComparison
from riverrun.evaluate.tooltasks import Record, ToolQuestion

__all__ = [
    "assistant_of",
    "dev_questions",
    "difference_names",
    "json_once",
    "lines_once",
    "measure_tools",
    "rate_names",
    "sealed_questions",
    "spread",
    "tool_scores",
    "watched",
    "write_lines",
]

Row = dict[str, Any]
T = TypeVar("T")


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """JSON lines, whole or absent."""
    with atomic_file(path) as handle:
        for row in rows:
            handle.write(json.dumps(row, ensure_ascii=False, default=float) + "\n")


def lines_once(path: Path, make: Callable[[], Iterable[Mapping[str, Any]]]) -> list[Row]:
    """The rows of the file, made and written first when it is not there."""
    if not path.is_file():
        write_lines(path, make())
    return read_jsonl(path)


def json_once(path: Path, make: Callable[[], Any]) -> Any:
    """The value of the file, made and written first when it is not there."""
    if not path.is_file():
        write_json(path, make())
    return read_json(path)


def assistant_of(ctx: Context) -> Assistant:
    """The assistant over the data stage's database and pages."""
    data = ctx.folder("data")
    return make_assistant(ctx.spec, data / "shop.sqlite", read_documents(data / "kept.jsonl"))


@contextmanager
def watched(model: LanguageModel, progress: Progress, name: str, total: int | None = None) -> Iterator[None]:
    """A progress task that counts the model's answers, for models that tell of each (`on_answer`)."""
    with progress.task(name, total=total, unit="answers") as task:
        watching = hasattr(model, "on_answer")
        if watching:
            model.on_answer = task.advance  # type: ignore[attr-defined]
        try:
            yield
        finally:
            if watching:
                model.on_answer = None  # type: ignore[attr-defined]


def sealed_questions(ctx: Context) -> list[ToolQuestion]:
    return [ToolQuestion.from_dict(row) for row in read_jsonl(ctx.folder("data") / "questions_sealed.jsonl")]


def dev_questions(ctx: Context, count: int) -> list[ToolQuestion]:
    """At most `count` of the development questions, of all kinds; none where the recipe makes none."""
    rows = read_jsonl(ctx.folder("data") / "questions_dev.jsonl")
    return [ToolQuestion.from_dict(row) for row in spread(rows, count)]


def spread(items: Sequence[T], count: int) -> list[T]:
    """`count` items at even distances, so that all kinds are among them."""
    step = max(1.0, len(items) / count)
    return [items[int(index * step)] for index in range(min(count, len(items)))]


def measure_tools(
    ctx: Context,
    model: LanguageModel,
    assistant: Assistant,
    path: Path,
    questions: Sequence[ToolQuestion],
    progress: Progress,
) -> list[Record]:
    """Tool tasks of a plain model; the records stand in `path`."""

    def ask() -> list[Row]:
        records = tooltasks.run(
            model,
            questions,
            execute=assistant.execute,
            system=assistant.system,
            tools=assistant.specs,
            prepare=assistant.prepare,
            params=SamplingParams(max_tokens=ctx.spec.evaluate.max_tokens),
        )
        return [record.as_dict() for record in records]

    with watched(model, progress, f"{model.info.name}: tool tasks", len(questions)):
        return [Record.from_dict(row) for row in lines_once(path, ask)]


def rate_names(prefix: str, rate: Mapping[str, Any], key: str = "success") -> dict[str, float]:
    """{prefix.key, prefix.low, prefix.high, prefix.n} of a Rate."""
    return {
        f"{prefix}.{key}": rate["value"],
        f"{prefix}.low": rate["low"],
        f"{prefix}.high": rate["high"],
        f"{prefix}.n": rate["n"],
    }


def tool_scores(prefix: str, records: Sequence[Record]) -> dict[str, float]:
    """Success with its interval, and by kind."""
    score = tooltasks.score(records).as_dict()
    kinds = {f"{prefix}.by_kind.{kind}": rate["value"] for kind, rate in score["by_kind"].items()}
    return rate_names(prefix, score["success"]) | kinds


def difference_names(
    prefix: str, comparison: PairedComparison | Mapping[str, Any], *, sign: int = 1
) -> dict[str, float]:
    """{prefix.difference, .low, .high}; sign -1 turns a gain into a drop and exchanges the ends."""
    values = comparison if isinstance(comparison, Mapping) else comparison.as_dict()
    low, high = (values["low"], values["high"]) if sign > 0 else (values["high"], values["low"])
    # + 0.0 turns -0.0 into 0.0
    return {
        f"{prefix}.difference": sign * values["difference"] + 0.0,
        f"{prefix}.low": sign * low + 0.0,
        f"{prefix}.high": sign * high + 0.0,
    }
