"""Several drafts of a turn and one that is kept: calls that only read are carried out, and what they bring is voted on.

Self-consistency (arXiv 2203.11171) over results instead of words: two queries that are written differently and bring
the same rows are one vote. A call that fails gives way to one that does not; a vote for an empty result counts half,
and one that leaves out a value found in the question (`tools.mentions` puts them behind it, in quotes) counts less. The
first draft is the greedy one; it wins ties.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from riverrun.agent.answers import Answer
from riverrun.agent.tool import Tool, effects_of
from riverrun.agent.tools.mentions import without_note
from riverrun.base.errors import InputError
from riverrun.base.protocols import Completion, Request
from riverrun.base.types import ToolCall, ToolResult

__all__ = ["Drafts"]

EMPTY = 0.5
"""What a vote for an empty result counts."""
FORGOTTEN = 0.3
"""What a vote counts that uses none of the values which the question names."""
_QUOTED = re.compile(r"'((?:[^']|'')+)'")


@dataclass(frozen=True)
class Drafts:
    """count: drafts of a turn, the greedy one among them. temperature: of the others."""

    count: int = 1
    temperature: float = 0.7

    def __post_init__(self) -> None:
        if self.count < 1 or not 0 < self.temperature <= 2:
            raise InputError(f"drafts need count >= 1 and 0 < temperature <= 2, got {self.count}, {self.temperature}")

    def requests(self, request: Request) -> list[Request]:
        """The request as it is and, where tools are on offer and it is greedy, its sampled copies."""
        if self.count == 1 or not request.tools or request.params.temperature:
            return [request]
        first = request.params.seed or 0
        sampled = [
            replace(request.params, temperature=self.temperature, seed=first + number)
            for number in range(1, self.count)
        ]
        return [request, *(replace(request, params=params) for params in sampled)]

    def choose(
        self, drafts: Sequence[Completion], asked: str, opened: Callable[[], Answer], tools: Mapping[str, Tool]
    ) -> Completion:
        """The draft that is kept; its usage is that of all of them. asked: the user's text with its note."""
        if len(drafts) == 1:
            return drafts[0]
        note = asked.removeprefix(without_note(asked))
        named = {value.replace("''", "'").strip("%").lower() for value in _QUOTED.findall(note)}
        votes: dict[str, float] = {}
        firsts: dict[str, Completion] = {}
        for draft in drafts:
            key, weight = _outcome(draft, opened(), tools, named)
            firsts.setdefault(key, draft)
            votes[key] = votes.get(key, 0.0) + weight
        best = max(votes, key=votes.__getitem__)  # of equal ones the first
        usage = sum((draft.usage for draft in drafts[1:]), drafts[0].usage)
        return replace(firsts[best], usage=usage)


def _outcome(draft: Completion, answer: Answer, tools: Mapping[str, Tool], named: Collection[str]) -> tuple[str, float]:
    """What a draft comes to, as a key for equal ones, and what its vote counts."""
    answer.calls.extend(draft.message.tool_calls)
    answer.feed(draft.message.text)
    answer.close()
    if answer.unread:
        return "unread", 0.0
    if not answer.calls:
        return "words", 1.0
    found = []
    for call in answer.calls:
        tool = tools.get(call.name)
        if tool is None:
            return "error", 0.0
        if effects_of(tool) != "read":
            return f"call {json.dumps([call.name, dict(call.arguments)], sort_keys=True, default=str)}", 1.0
        result = _run(tool, call)
        if result is None or result.is_error:
            return "error", 0.0
        found.append(_brought(call, result))
    weight = EMPTY if all(empty for _, empty in found) else 1.0
    said = " ".join(str(value) for call in answer.calls for value in call.arguments.values()).replace("''", "'").lower()
    if named:
        weight *= FORGOTTEN + (1 - FORGOTTEN) * sum(value in said for value in named) / len(named)
    return json.dumps([key for key, _ in found], ensure_ascii=False, default=str), weight


def _run(tool: Tool, call: ToolCall) -> ToolResult | None:
    try:
        return tool.run(call.arguments)
    except Exception:  # a tool's defect shows when the kept call is carried out
        return None


def _brought(call: ToolCall, result: ToolResult) -> tuple[object, bool]:
    """What a call brought, without how it was asked for; and whether that is nothing."""
    data = result.data if isinstance(result.data, Mapping) else {}
    if "rows" in data:
        rows = sorted(json.dumps(row, default=str) for row in data["rows"])
        return [call.name, rows], all(value is None for row in data["rows"] for value in row)
    return [call.name, data.get("pages", result.content)], False
