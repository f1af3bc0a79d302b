"""The Hermes form: `<tools>` in the system turn, `<tool_call>` in the answer, `<tool_response>` in a user turn.

    <tool_call>
    {"name": "f", "arguments": {"x": 1}}
    </tool_call>

Read with tolerance: several calls in a turn, a missing closing tag when the JSON is complete, what `repair` mends,
"parameters" for "arguments", arguments encoded as a string, OpenAI's wrapper, a list of calls, `f(x=1)`. Refused, and
left in the text with a problem: broken JSON with more than one reading, a call cut off inside a value, a call inside a
call. Nothing between `<think>` and `</think>` is read; a thought whose opening tag stands in the prompt is not known
here. What follows a `<tool_response>` in an answer is a tool's answer made up by the model, and dropped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from riverrun.base.types import Message, Text, ToolCall, ToolSpec
from riverrun.wire.codec import Parsed, collect
from riverrun.wire.hermes_stream import HermesParser

__all__ = ["HERMES", "Hermes"]

GRAMMAR_SPACES = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""Of JSON that a grammar writes: as json.dumps puts them."""
_HOW = 'To call one: <tool_call>\n{"name", "arguments"}\n</tool_call>'
_TAG = re.compile(r"<(?=/?(?:tool_call|tool_response|think)\b)")
_JSON_ESCAPE = re.compile(r"\\\\|\\b|\\f|[\ud800-\udfff]")
_PLAIN_TYPES = ("string", "integer", "number", "boolean")


class Hermes:
    """The codec; it holds no state."""

    name = "hermes"
    stops = ("<tool_response>",)

    def render_tools(self, tools: Sequence[ToolSpec]) -> str:
        """One JSON line a tool. A tool whose arguments are all required and of a plain type is written short,
        {"sql":"string"}; any other keeps its whole schema."""
        lines = [
            _tight({"name": tool.name, "description": tool.description, "parameters": _short(tool.parameters)})
            for tool in tools
        ]
        return "\n".join(["<tools>", *lines, "</tools>", _HOW])

    def render_call(self, call: ToolCall) -> str:
        text = json.dumps({"name": call.name, "arguments": dict(call.arguments)}, ensure_ascii=False)
        text = _JSON_ESCAPE.sub(_escape, text)
        return "<tool_call>\n" + _TAG.sub(r"\\u003c", text) + "\n</tool_call>"

    def render_result(self, message: Message) -> str:
        return f"<tool_response>\n{_defuse(message.require_text(self.name))}\n</tool_response>"

    def lower(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> list[Message]:
        """Tools go to the end of the system turn, calls and results become text, results that follow one another
        share a user turn. Without tools and calls the messages come back unchanged. Otherwise a tool tag that a user
        or a tool wrote loses its first bracket, so that it cannot pass for a call or a result."""
        if not tools and not any(m.role == "tool" or m.tool_calls for m in messages):
            return list(messages)
        out: list[Message] = []
        results: list[str] = []
        for message in messages:
            if message.role == "tool":
                results.append(self.render_result(message))
                continue
            _flush(results, out)
            out.append(self._lower_one(message))
        _flush(results, out)
        if not tools:
            return out
        written = self.render_tools(tools)
        if out and out[0].role == "system":
            text = "\n\n".join(part for part in (out[0].text, written) if part)
            return [replace(out[0], content=(Text(text),)), *out[1:]]
        return [Message.of("system", written), *out]

    def _lower_one(self, message: Message) -> Message:
        text = message.require_text(self.name)
        if message.role == "assistant" and message.tool_calls:
            calls = [self.render_call(call) for call in message.tool_calls]
            written = (Text("\n".join([text, *calls] if text else calls)),)
            return replace(message, content=written, tool_calls=())
        if message.role == "user":
            return Message.of("user", _defuse(text))
        return message

    def grammar(self, tools: Sequence[ToolSpec], *, parallel: bool) -> str:
        """Every call as `render_call` writes it."""
        calls = " | ".join(f"call_{number}" for number in range(len(tools)))
        more = ' ("\\n" call)*' if parallel else ""
        lines = [f"start: call{more}", f'call: "<tool_call>" "\\n" ({calls}) "\\n" "</tool_call>"']
        for number, tool in enumerate(tools):
            head = json.dumps(
                '{"name": ' + json.dumps(tool.name, ensure_ascii=False) + ', "arguments": ', ensure_ascii=False
            )
            # an argument that the tool does not know would make the call a wrong one
            schema = {"type": "object", "additionalProperties": False, **tool.parameters, "x-guidance": GRAMMAR_SPACES}
            lines.append(f'call_{number}: {head} arguments_{number} "}}"')
            lines.append(f"arguments_{number}: %json {json.dumps(schema, ensure_ascii=False)}")
        return "\n".join(lines)

    def parse(self, text: str, tools: Sequence[ToolSpec] = ()) -> Parsed:
        parser = self.parser(tools)
        return collect([*parser.feed(text), *parser.close()])

    def parser(self, tools: Sequence[ToolSpec] = ()) -> HermesParser:
        return HermesParser(tools)


def _flush(results: list[str], out: list[Message]) -> None:
    if results:
        out.append(Message.of("user", "\n".join(results)))
        results.clear()


def _escape(match: re.Match[str]) -> str:
    found = match[0]
    if found == "\\\\":
        return found
    return {"\\b": "\\u0008", "\\f": "\\u000c"}.get(found) or f"\\u{ord(found):04x}"


def _defuse(text: str) -> str:
    return _TAG.sub("", text)


def _tight(value: Any) -> str:
    return _TAG.sub(r"\\u003c", json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def _short(parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    """{"sql": "string"} for a schema that says no more than that; otherwise the schema itself."""
    properties = parameters.get("properties") or {}
    if set(parameters) - {"type", "properties", "required", "additionalProperties", "title"}:
        return parameters
    if set(parameters.get("required") or ()) != set(properties) or {"type", "properties"} & set(properties):
        return parameters
    if parameters.get("additionalProperties", False) is not False:
        return parameters
    for schema in properties.values():
        if set(schema) - {"title"} != {"type"} or schema["type"] not in _PLAIN_TYPES:
            return parameters
    return {key: schema["type"] for key, schema in properties.items()}


HERMES = Hermes()
