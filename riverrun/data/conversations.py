"""Training conversations from questions: what the model should call, what the tool then shows, what to say.

The tool message holds exactly what the tool returned, so training sees what serving shows. Reading intents and drawing
questions are re-exported here; multiple choice and safety rows are in `choices`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from riverrun.base.artifacts import atomic_file
from riverrun.base.errors import InputError
from riverrun.base.types import Message, ToolCall, ToolResult, ToolSpec
from riverrun.data.intents import Intent, load_intents
from riverrun.data.questions import Question, build_questions, read_questions, write_questions

__all__ = [
    "Conversation",
    "Intent",
    "Question",
    "build_conversations",
    "build_questions",
    "load_intents",
    "read_conversations",
    "read_questions",
    "write_conversations",
    "write_questions",
]

RunTool = Callable[[ToolCall], ToolResult]
OnSkip = Callable[[Question, str], None]
MAX_QUOTE = 200  # characters of a sentence that is quoted as an answer


@dataclass(frozen=True)
class Conversation:
    """Messages to train on, with the tools that were on offer."""

    id: str
    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...] = ()
    intent: str = ""

    def to_openai(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "intent": self.intent,
            "messages": [message.to_openai() for message in self.messages],
            "tools": [tool.to_openai() for tool in self.tools],
        }

    @classmethod
    def from_openai(cls, value: Mapping[str, Any]) -> Conversation:
        """InputError if it is not `{messages: [...]}` in the OpenAI form (id, intent and tools may be missing)."""
        if not isinstance(value, Mapping) or not isinstance(value.get("messages"), list):
            raise InputError(f"a conversation must be an object with a list 'messages', got {str(value)[:80]}")
        messages = tuple(Message.from_openai(message) for message in value["messages"])
        tools = tuple(ToolSpec.from_openai(tool) for tool in value.get("tools") or ())
        return cls(str(value.get("id", "")), messages, tools, str(value.get("intent", "")))


def build_conversations(
    questions: Sequence[Question],
    *,
    system: str,
    tools: Sequence[ToolSpec],
    run_tool: RunTool,
    prepare: Callable[[str], str] | None = None,
    on_skip: OnSkip | None = None,
    answered: float = 1.0,
    answered_pages: float = 1.0,
) -> list[Conversation]:
    """One conversation a question: system, user, (tool call, tool result,) answer.

    A question that needs both has two calls in one turn, the database first, and both answers after one another.
    A page question is answered with the sentence of its page that shares most words with it. Of the database questions
    a share of `answered` has the answer turn, of the page questions `answered_pages`; the others end with the call,
    which is what is hard to learn.

    `prepare` is what serving does to a question before the model sees it. SQL goes to the tool with an argument `sql`,
    page questions go with their own text to the tool with an argument `query`. A page question whose page the search
    does not bring up ends with its call (`on_skip(question, why)` is told): an answer would teach to speak without
    evidence. InputError if a tool fails or shows other rows than the gold ones.
    """
    out = []
    for question in questions:
        calls = _calls(question, tools)
        start = (Message.of("system", system),) if system else ()
        asked = prepare(question.text) if prepare is not None else question.text
        messages = (*start, Message.of("user", asked))
        if not calls:
            messages += (Message.of("assistant", question.reply),)
        else:
            messages += (Message("assistant", tool_calls=calls),)
            results = [run_tool(call) for call in calls]
            checks = (_check(question, call, result) for call, result in zip(calls, results, strict=True))
            missing = "; ".join(filter(None, checks))
            if missing and on_skip:
                on_skip(question, missing)
            share = answered if question.page is None else answered_pages
            quote = _quote(question, results[-1].content) if question.page is not None else ""
            said = [question.reply, quote] if question.sql is not None else [quote]
            reply = " ".join(filter(None, said))
            if reply and not missing and _share(question.id) < share:
                messages += tuple(
                    Message.of("tool", result.content, tool_call_id=call.id, name=call.name)
                    for call, result in zip(calls, results, strict=True)
                )
                messages += (Message.of("assistant", reply),)
        out.append(Conversation(question.id, messages, tuple(tools), question.intent))
    return out


def _share(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32


def _quote(question: Question, content: str) -> str:
    """The sentence of the gold page's passage that shares most words with the question; the stock answer if none is."""
    line = next((line for line in content.split("\n") if line.startswith(f"[{question.page}] ")), "")
    asked = set(re.findall(r"\w{3,}", question.text.lower()))
    sentences = re.split(r"(?<=[.!?])\s+", line.partition(": ")[2])
    whole = [sentence for sentence in sentences if sentence.endswith((".", "!")) and len(sentence) <= MAX_QUOTE]
    if not whole:
        return question.reply
    return max(whole, key=lambda sentence: len(asked & set(re.findall(r"\w{3,}", sentence.lower()))))


def _calls(question: Question, tools: Sequence[ToolSpec]) -> tuple[ToolCall, ...]:
    wanted = [("sql", question.sql)] if question.sql is not None else []
    wanted += [("query", question.text)] if question.page is not None else []
    return tuple(
        ToolCall(_tool_with(argument, tools, question), {argument: value}, f"call_{number}")
        for number, (argument, value) in enumerate(wanted)
    )


def _check(question: Question, call: ToolCall, result: ToolResult) -> str:
    """Empty, or why a page question cannot be answered from this result; InputError if the tool is not the gold one."""
    value = next(iter(call.arguments.values()))
    if result.is_error:
        raise InputError(f"question '{question.id}': tool '{call.name}' failed on {value!r}: {result.content}")
    data = result.data if isinstance(result.data, Mapping) else {}
    if "sql" in call.arguments and "rows" in data and [list(row) for row in data["rows"]] != question.rows:
        raise InputError(
            f"question '{question.id}': tool '{call.name}' shows {len(data['rows'])} rows that differ from the "
            f"{len(question.rows or [])} gold rows of {value!r}: give both the same database and a row limit above that"
        )
    if "query" in call.arguments and "pages" in data and question.page not in data["pages"]:
        return f"search brings up {', '.join(map(str, data['pages'])) or 'nothing'} instead of '{question.page}'"
    return ""


def _tool_with(argument: str, tools: Sequence[ToolSpec], question: Question) -> str:
    names = [tool.name for tool in tools if argument in (tool.parameters.get("properties") or {})]
    if len(names) != 1:
        raise InputError(
            f"question '{question.id}' needs exactly one tool with an argument '{argument}', "
            f"{len(names)} of {[tool.name for tool in tools]} have it"
        )
    return names[0]


def write_conversations(path: Path, conversations: Iterable[Conversation]) -> int:
    """JSON lines in the OpenAI messages form, whole or absent; the number written."""
    count = 0
    with atomic_file(path) as handle:
        for conversation in conversations:
            handle.write(json.dumps(conversation.to_openai(), ensure_ascii=False) + "\n")
            count += 1
    return count


def read_conversations(path: Path) -> list[Conversation]:
    """The inverse of `write_conversations`. InputError names the line that cannot be read."""
    out = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                out.append(Conversation.from_openai(json.loads(line)))
            except (ValueError, InputError) as error:
                raise InputError(f"{path}, line {number}: {error}") from None
    return out
