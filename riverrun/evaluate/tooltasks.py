"""Tool tasks: does the model's call fetch what the question asks for? Judged by executing it, never by its wording.

A question of kind `page` wants `search_policies` to bring its page; kind `chat` wants words and no call; every other
kind holds a gold query, and the rows of the model's query must equal the gold rows; kind `both` wants the rows and the
page. The model gets all questions in one batch. A plain model is judged by its first call. An agent
(`Completion.steps`) may try again after an error, so it is judged by its last call of the tool that the question needs.

Not covered: whether the final answer words the rows well, and questions that need several calls of one tool.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from riverrun.base.errors import InputError, ToolError
from riverrun.base.protocols import Completion, LanguageModel, Request
from riverrun.base.types import Message, SamplingParams, ToolCall, ToolResult, ToolSpec
from riverrun.evaluate.statistics import PairedComparison, Rate, compare_outcomes

__all__ = ["Execute", "Record", "Score", "ToolQuestion", "compare", "is_ordered", "run", "same_rows", "score"]

Execute = Callable[[ToolCall], ToolResult]
Rows = list[list[Any]]

_QUOTED = re.compile(r"'((?:[^']|'')*)'|\"((?:[^\"]|\"\")*)\"")
_NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?![\w.])")
_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True)
class ToolQuestion:
    """One question with its gold: a query (`sql`), a page id (`page`) or neither (`kind` chat)."""

    id: str
    text: str
    intent: str
    kind: str
    split: str = ""
    sql: str | None = None
    page: str | None = None
    fact: str = ""
    """What an answer from the page must say, for `pageanswers`."""

    def __post_init__(self) -> None:
        if self.kind in ("page", "both") and not self.page:
            raise InputError(f"question '{self.id}' is of kind '{self.kind}' and names no page: give its key 'page'")
        if self.kind not in ("page", "chat") and not self.sql:
            raise InputError(
                f"question '{self.id}' is of kind '{self.kind}' and holds no gold query: give its key 'sql'"
            )

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> ToolQuestion:
        """Read one line of a questions file; keys that are no field are left out."""
        if missing := [key for key in ("id", "text", "intent", "kind") if not value.get(key)]:
            raise InputError(f"a question lacks the key '{missing[0]}': {json.dumps(dict(value), default=str)[:160]}")
        known = {key: str(value[key]) for key in ("id", "text", "intent", "kind")}
        more = {key: str(value.get(key) or "") for key in ("split", "fact")}
        return cls(**known, **more, sql=value.get("sql"), page=value.get("page"))


@dataclass(frozen=True, slots=True)
class Record:
    """One question's outcome: `sql` is the query judged, `rows` what it gave, `expected` the gold rows or page."""

    id: str
    question: str
    intent: str
    kind: str
    calls: list[dict[str, Any]]
    sql: str | None
    rows: Any
    expected: Any
    success: bool
    error: str
    answer: str
    raw: str
    tokens: dict[str, int] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Record:
        return cls(**value)


@dataclass(frozen=True)
class Score:
    overall: Rate
    by_kind: Mapping[str, Rate]
    by_intent: Mapping[str, Rate]

    def as_dict(self) -> dict[str, Any]:
        """`success` and its interval, then the same per kind and per intent."""
        return {
            "success": self.overall.as_dict(),
            "by_kind": {name: rate.as_dict() for name, rate in self.by_kind.items()},
            "by_intent": {name: rate.as_dict() for name, rate in self.by_intent.items()},
        }


def run(
    model: LanguageModel,
    questions: Sequence[ToolQuestion],
    *,
    execute: Execute,
    system: str = "",
    tools: Sequence[ToolSpec] = (),
    params: SamplingParams | None = None,
    prepare: Callable[[str], str] | None = None,
    sql_tool: str = "query_database",
    page_tool: str = "search_policies",
) -> list[Record]:
    """Ask every question in one batch and judge the calls.

    `execute` carries out a call: its result's data hold {"rows": [[...]]} or {"pages": [id, ...]}. It also fetches the
    gold rows. Its row limit must lie above the gold rows' number, or two cut results are compared. An agent brings its
    own tools, system text and preparation of questions: leave all empty. InputError when a gold query fails.
    """
    prompts = (Message.of("system", system),) if system else ()
    requests = [
        Request(
            messages=(*prompts, Message.of("user", prepare(question.text) if prepare else question.text)),
            tools=tuple(tools),
            params=params or SamplingParams(max_tokens=192),
        )
        for question in questions
    ]
    judge = _Judge(execute, sql_tool, page_tool)
    completions = model.generate(requests)
    assert len(completions) == len(questions), "a model answers every request"
    return [judge.record(question, answer) for question, answer in zip(questions, completions, strict=True)]


def score(records: Sequence[Record]) -> Score:
    """Success overall, by kind and by intent, each with its Wilson interval."""
    return Score(
        Rate.of([record.success for record in records]),
        _grouped((record.kind, record.success) for record in records),
        _grouped((record.intent, record.success) for record in records),
    )


def _grouped(pairs: Iterable[tuple[str, bool]]) -> dict[str, Rate]:
    groups: dict[str, list[bool]] = {}
    for name, success in pairs:
        groups.setdefault(name, []).append(success)
    return {name: Rate.of(groups[name]) for name in sorted(groups)}


def compare(before: Sequence[Record], after: Sequence[Record]) -> PairedComparison:
    """Paired difference of success, matched by question id; InputError when the two runs asked different questions."""
    first, second = ({record.id: record.success for record in records} for records in (before, after))
    if apart := sorted(set(first) ^ set(second)):
        raise InputError(
            f"the two runs differ in {len(apart)} questions, the first is '{apart[0]}': compare equal sets"
        )
    return compare_outcomes(list(first.values()), [second[name] for name in first])


class _Judge:
    """Executes calls and gold queries; each gold query once."""

    def __init__(self, execute: Execute, sql_tool: str, page_tool: str) -> None:
        self.execute, self.sql_tool, self.page_tool = execute, sql_tool, page_tool
        self._gold: dict[str, Rows] = {}

    def record(self, question: ToolQuestion, completion: Completion) -> Record:
        if question.kind == "both":
            return self._both(question, completion)
        needed = {"page": self.page_tool, "chat": None}.get(question.kind, self.sql_tool)
        calls, decisive, result = self._decisive(completion, needed)
        sql = str(decisive.arguments.get("sql") or "") if decisive and decisive.name == self.sql_tool else None
        error = result.content if result is not None and result.is_error else ""
        if needed and decisive is None:
            error = f"no call of {needed}"
        elif needed and decisive and decisive.name != needed:
            error = f"called {decisive.name}, needed {needed}"
        rows: Any = None
        expected: Any = question.page
        if needed is None:
            success = not calls and bool(completion.message.text.strip())
        elif needed == self.page_tool:
            rows = _data(result, "pages")
            success = not error and question.page in (rows or ())
        else:
            rows, expected = _data(result, "rows"), self.gold(question)
            success = not error and _answers(question.sql or "", sql or "", expected, rows)
        return self._record(question, completion, calls, sql, rows, expected, success, error)

    def _both(self, question: ToolQuestion, completion: Completion) -> Record:
        """Rows and page, from one turn of a plain model or any turns of an agent."""
        halves = [
            self.record(replace(question, kind=kind), _only(completion, tool))
            for kind, tool in (("lookup", self.sql_tool), ("page", self.page_tool))
        ]
        calls, _, _ = self._decisive(completion, None)
        first, second = halves
        error = "; ".join(half.error for half in halves if half.error)
        success = first.success and second.success
        expected = [first.expected, second.expected]
        return self._record(question, completion, calls, first.sql, [first.rows, second.rows], expected, success, error)

    def _record(
        self,
        question: ToolQuestion,
        completion: Completion,
        calls: Sequence[ToolCall],
        sql: str | None,
        rows: Any,
        expected: Any,
        success: bool,
        error: str,
    ) -> Record:
        usage = completion.usage
        return Record(
            question.id,
            question.text,
            question.intent,
            question.kind,
            [{"name": call.name, "arguments": dict(call.arguments)} for call in calls],
            sql,
            rows,
            expected,
            success,
            error,
            completion.message.text,
            completion.raw,
            {"prompt": usage.prompt_tokens, "completion": usage.completion_tokens},
        )

    def _decisive(
        self, completion: Completion, needed: str | None
    ) -> tuple[list[ToolCall], ToolCall | None, ToolResult | None]:
        """All calls, the one that is judged, and its result (an agent's own; a plain model's is executed here)."""
        if not completion.steps:
            calls = list(completion.message.tool_calls)
            first = calls[0] if calls else None
            return calls, first, self._carry_out(first) if first and first.name == needed else None
        calls = [ToolCall(str(step["tool"]), dict(step.get("arguments") or {})) for step in completion.steps]
        fitting = [index for index, call in enumerate(calls) if call.name == needed] or [len(calls) - 1]
        last = completion.steps[fitting[-1]]
        call = calls[fitting[-1]]
        if last.get("data") is None and not last.get("is_error") and call.name == needed:
            return calls, call, self._carry_out(call)  # an endpoint that leaves the data out
        content = str(last.get("content") or "")
        return calls, call, ToolResult("", call.name, content, bool(last.get("is_error")), last.get("data"))

    def _carry_out(self, call: ToolCall) -> ToolResult:
        try:
            return self.execute(call)
        except ToolError as error:
            return ToolResult(call.id, call.name, str(error), True)

    def gold(self, question: ToolQuestion) -> Rows:
        sql = question.sql or ""
        if sql not in self._gold:
            result = self._carry_out(ToolCall(self.sql_tool, {"sql": sql}, "gold"))
            rows = _data(result, "rows")
            if result.is_error or rows is None:
                raise InputError(
                    f"the gold query of question '{question.id}' fails ({result.content[:160]}): mend the query {sql}"
                )
            self._gold[sql] = rows
        return self._gold[sql]


def _only(completion: Completion, tool: str) -> Completion:
    """The completion with the calls and steps of one tool alone."""
    calls = tuple(call for call in completion.message.tool_calls if call.name == tool)
    steps = tuple(step for step in completion.steps if step["tool"] == tool)
    return replace(completion, message=replace(completion.message, tool_calls=calls), steps=steps)


def _data(result: ToolResult | None, key: str) -> Any:
    if result is None or result.is_error or not isinstance(result.data, Mapping):
        return None
    value = result.data.get(key)
    return None if value is None else [list(row) if isinstance(row, tuple | list) else row for row in value]


def _answers(gold_sql: str, sql: str, expected: Rows, rows: Rows | None) -> bool:
    """Whether a query's rows answer what the gold query asks.

    Nothing found is easily got by a wrong query, so then the query must also name every value the gold query names.
    """
    if rows is None or not same_rows(expected, rows, ordered=is_ordered(gold_sql)):
        return False
    return bool(expected) or _names_all(gold_sql, sql)


def _names_all(gold_sql: str, sql: str) -> bool:
    """Whether each literal of the gold query stands in the query, texts whole or in part (LIKE '%blue%')."""
    given = _values(sql)
    return all(value in given or any(len(part) >= 3 and part in value for part in given) for value in _values(gold_sql))


def _values(sql: str) -> set[str]:
    """The literals of a query, lower case; wildcards of LIKE and the number after LIMIT are left out."""
    texts = {_literal(match).strip("% ").lower() for match in _QUOTED.finditer(sql)}
    bare = re.sub(r"\blimit\s+\d+", " ", _QUOTED.sub(" ", sql), flags=re.IGNORECASE)
    return texts | set(_NUMBER.findall(bare))


def _literal(match: re.Match[str]) -> str:
    single, double = match.groups()
    return single.replace("''", "'") if single is not None else double.replace('""', '"')


def is_ordered(sql: str) -> bool:
    """Whether the order of the rows is part of the answer: an outermost ORDER BY, unless LIMIT 1 leaves one row."""
    bare = _QUOTED.sub("''", sql)
    while (inner := re.sub(r"\([^()]*\)", " ", bare)) != bare:
        bare = inner
    if not re.search(r"\border\s+by\b", bare, re.IGNORECASE):
        return False
    return not re.search(r"\blimit\s+1\s*(;|$|--)", bare.strip(), re.IGNORECASE)


def same_rows(expected: Sequence[Sequence[Any]], rows: Sequence[Sequence[Any]], *, ordered: bool = False) -> bool:
    """Equal as lists (ordered) or as multisets of tuples; numbers within 1e-6 (relative above 1), texts stripped."""
    if len(expected) != len(rows):
        return False
    if ordered:
        return all(_same_row(one, other) for one, other in zip(expected, rows, strict=True))
    # Rows that are exactly equal cancel first; only the rest is matched one by one.
    wanted, found = Counter(map(_plain, expected)), Counter(map(_plain, rows))
    rest = list((found - wanted).elements())
    for row in (wanted - found).elements():
        match = next((index for index, other in enumerate(rest) if _same_row(row, other)), None)
        if match is None:
            return False
        rest.pop(match)
    return True


def _plain(row: Sequence[Any]) -> tuple[Any, ...]:
    """A row whose texts are stripped; what cannot be counted (lists, objects) as JSON."""
    return tuple(
        value.strip() if isinstance(value, str) else json.dumps(value) if isinstance(value, list | dict) else value
        for value in row
    )


def _same_row(one: Sequence[Any], other: Sequence[Any]) -> bool:
    return len(one) == len(other) and all(map(_same_value, _plain(one), _plain(other)))


def _same_value(one: Any, other: Any) -> bool:
    if isinstance(one, int | float) and isinstance(other, int | float):
        return bool(abs(one - other) <= _TOLERANCE * max(1.0, abs(one)))
    return bool(one == other)
