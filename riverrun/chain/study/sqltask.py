"""The task of the tuning study: a question in, one SQL query out, judged by the rows that it fetches.

Rows and questions come from an application's intents and its database, apart by phrasing and by the values named. A
wrapper makes any language model one that calls the query tool, so that the judge is that of the tool tasks.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from riverrun.agent.tools.sql import DatabaseTool
from riverrun.base.errors import InputError
from riverrun.base.optional import require
from riverrun.base.protocols import Completion, Delta, LanguageModel, ModelInfo, Request, Score
from riverrun.base.types import Message, SamplingParams, ToolCall, ToolResult
from riverrun.base.words import words
from riverrun.chain.measure import write_lines
from riverrun.chain.stage import read_jsonl
from riverrun.data.intents import SQL_KINDS, load_intents
from riverrun.data.questions import Question, build_questions
from riverrun.evaluate import tooltasks
from riverrun.evaluate.tooltasks import Record, ToolQuestion

__all__ = ["Example", "Nearest", "SqlTask", "Writer", "chat_rows", "write_task"]

SYSTEM = "You write one SQLite query that answers the question. Say the query alone.\nTables: {schema}"
_TOOL = "query_database"


@dataclass(frozen=True, slots=True)
class Example:
    """A question with its query."""

    id: str
    text: str
    sql: str


def write_task(
    folder: Path, *, intents: Path, make: Path, seed: int, train: int, dev: int, invented: float, deny: Sequence[str]
) -> dict[str, int]:
    """Database, training rows and development questions in a folder; returns their counts.

    `train` and `dev` are questions of each intent that is answered from the database.
    """
    database = folder / "shop.sqlite"
    database.unlink(missing_ok=True)
    command = [sys.executable, str(make), str(database), "--seed", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        said = (done.stderr.strip() or "it said nothing").splitlines()[-1]
        raise InputError(f"{make} made no database (exit code {done.returncode}): {said}")
    asked = load_intents(intents)
    drawn: dict[str, list[Question]] = {}
    for split, count, made_up in (("train", train, invented), ("dev", dev, 0.0)):
        per = dict.fromkeys(SQL_KINDS, count)
        drawn[split] = build_questions(asked, database, split=split, per_intent=per, seed=seed, invented=made_up)  # type: ignore[arg-type]
    examples = [Example(q.id, q.text, q.sql or "") for q in drawn["train"]]
    write_lines(folder / "train.jsonl", map(asdict, examples))
    write_lines(folder / "dev.jsonl", map(asdict, drawn["dev"]))
    tool = DatabaseTool(database, deny_columns=deny)
    schema = "; ".join(tool.schema_text().splitlines())
    (folder / "system.txt").write_text(SYSTEM.format(schema=schema), encoding="utf-8")
    return {"train": len(examples), "dev": len(drawn["dev"])}


class SqlTask:
    """The written task, and the judge of a model's queries."""

    def __init__(self, folder: Path, *, deny: Sequence[str]) -> None:
        self.system = (folder / "system.txt").read_text(encoding="utf-8")
        self.examples = [Example(**row) for row in read_jsonl(folder / "train.jsonl")]
        self.questions = [ToolQuestion.from_dict(row) for row in read_jsonl(folder / "dev.jsonl")]
        self.tool = DatabaseTool(folder / "shop.sqlite", deny_columns=deny, row_limit=200)

    def execute(self, call: ToolCall) -> ToolResult:
        result = self.tool.run(call.arguments)
        return ToolResult(call.id, call.name, result.content, result.is_error, result.data)

    def run(self, model: LanguageModel, shots: Callable[[str], Sequence[Example]] | None, tokens: int) -> list[Record]:
        """Ask every development question, with the examples that `shots` gives for it as earlier turns.

        Answers have at most `tokens` tokens.
        """
        writer = Writer(model, shots or (lambda question: ()))
        params = SamplingParams(max_tokens=tokens)
        return tooltasks.run(writer, self.questions, execute=self.execute, system=self.system, params=params)


def chat_rows(system: str, examples: Sequence[Example]) -> list[dict[str, Any]]:
    """Training rows in the OpenAI form: the very turns that `Writer` sends."""
    return [
        {
            "id": each.id,
            "messages": [
                {"role": "system", "content": system},
                {"role": "user", "content": each.text},
                {"role": "assistant", "content": each.sql},
            ],
        }
        for each in examples
    ]


class Writer:
    """A LanguageModel whose words are taken for the argument of the query tool."""

    def __init__(self, model: LanguageModel, shots: Callable[[str], Sequence[Example]]) -> None:
        self.model, self.shots = model, shots

    @property
    def info(self) -> ModelInfo:
        return self.model.info

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        return [_as_call(answer) for answer in self.model.generate([self._with_shots(each) for each in requests])]

    def stream(self, request: Request) -> Iterator[Delta]:
        return self.model.stream(self._with_shots(request))

    def score(self, prefix: str | Sequence[Message], continuations: Sequence[str]) -> list[Score]:
        return self.model.score(prefix, continuations)

    def _with_shots(self, request: Request) -> Request:
        *before, question = request.messages
        turns = [
            turn
            for each in self.shots(question.text)
            for turn in (Message.of("user", each.text), Message.of("assistant", each.sql))
        ]
        return replace(request, messages=(*before, *turns, question))


def _as_call(answer: Completion) -> Completion:
    text = answer.message.text.strip()
    if not text:
        return answer
    call = ToolCall(_TOOL, {"sql": _query(text)}, "query")
    return replace(answer, message=Message("assistant", (), (call,)))


def _query(text: str) -> str:
    """The query of an answer that may stand in a code fence."""
    if "```" in text:
        text = text.split("```")[1].removeprefix("sqlite").removeprefix("sql")
    return text.strip().rstrip(";").strip()


class Nearest:
    """The examples whose questions share the rarest words with a question (BM25), nearest last."""

    def __init__(self, examples: Sequence[Example], count: int) -> None:
        bm25s = require("bm25s", extra="agent")
        self.examples, self.count = list(examples), min(count, len(examples))
        self._index = bm25s.BM25()
        self._index.index([words(each.text) for each in self.examples], show_progress=False)

    def __call__(self, question: str) -> list[Example]:
        known = [term for term in words(question) if term in self._index.vocab_dict]
        scores = self._index.get_scores(known) if known else [0.0] * len(self.examples)
        best = sorted(range(len(self.examples)), key=lambda place: (-scores[place], place))[: self.count]
        return [self.examples[place] for place in reversed(best)]
