"""POST /v1/messages: what a request may hold. Every accepted field has an effect, every other known one is refused.

Source: Anthropic's API reference, "Messages". Defaults of sampling are those of `SamplingParams`, not Anthropic's.
`cache_control` of type ephemeral is accepted: beginnings are always kept and found again, for as long as there is room.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from riverrun.base.protocols import Request
from riverrun.base.types import Guide, Message, Part, SamplingParams, Text, ToolCall, ToolSpec
from riverrun.serve.http.reading import fields, forced_tools, invalid, items, string, tool_call, tool_spec, unsupported
from riverrun.serve.http.schema import Count, StrictBody

__all__ = ["CountBody", "MessagesBody", "messages_request"]

_LEAVE = "leave it out"
_REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "container": ((), "there are no built-in tools"),
    "mcp_servers": (([],), "offer a tool instead"),
    "service_tier": (("auto", "standard_only"), "'auto' is supported"),
    "inference_geo": ((), _LEAVE),
    "speed": (("standard",), "'standard' is supported"),
    "context_management": ((), "nothing is cut off silently: shorten the conversation"),
    "diagnostics": ((), _LEAVE),
    "user_profile_id": ((), "use 'metadata'"),
    "workspace_id": ((), _LEAVE),
    "betas": (([],), _LEAVE),
}


class Labels(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    user_id: str | None = Field(default=None, description="a label for the caller's own use; it changes nothing")


class CountBody(StrictBody):
    """POST /v1/messages/count_tokens"""

    refused: ClassVar[Mapping[str, tuple[tuple[Any, ...], str]]] = _REFUSED

    messages: list[Any] = Field(min_length=1, description="turns of text, thinking, tool_use and tool_result blocks")
    system: str | list[Any] = Field("", description="a text, or blocks of text")
    tools: list[Any] = Field(default=[], description="tools with an input_schema")
    tool_choice: dict[str, Any] | None = Field(
        None, description="{type: auto, any, tool or none}, with name and disable_parallel_tool_use"
    )
    thinking: dict[str, Any] | None = Field(None, description="{type: adaptive}: the model decides whether it thinks")
    output_config: dict[str, Any] | None = Field(
        None, description="{format: {type: json_schema, schema}}: an answer that follows a schema"
    )
    cache_control: dict[str, Any] | None = Field(None, description="{type: ephemeral}: beginnings are kept anyway")


class MessagesBody(CountBody):
    """POST /v1/messages"""

    max_tokens: int = Field(ge=1, lt=2**31, description="most tokens to generate")
    temperature: float = Field(SamplingParams().temperature, description="0 (greedy) to 2")
    top_p: float = Field(SamplingParams().top_p, description="above 0, at most 1 (off)")
    top_k: Count = Field(SamplingParams().top_k, description="0 is off")
    stop_sequences: list[str] = Field(default=[], description="texts that end the answer and are left out of it")
    metadata: Labels = Labels()
    stream: bool = Field(False, description="answer in server-sent events")


def messages_request(body: CountBody, *, key: str = "") -> Request:
    """The request for a model; HttpError 400 names the field that cannot be read or is not offered."""
    _check_cache(body.cache_control, "cache_control")
    thinking = body.thinking or {"type": "adaptive"}
    if thinking.get("type") != "adaptive":
        raise unsupported("thinking.type", thinking.get("type"), "the model decides whether it thinks: give adaptive")
    fields(thinking, "thinking", ("type",))
    wanted, name, several = _choice(body.tool_choice)
    forced = wanted in ("any", "tool")
    tools = tuple(_tool(value, f"tools.{number}", forced) for number, value in enumerate(body.tools))
    names = forced_tools(wanted, name, tools, several=several, param="tool_choice.disable_parallel_tool_use")
    return Request(
        messages=(*_system(body.system), *_messages(body.messages)),
        tools=() if wanted == "none" else tools,
        params=_params(body),
        key=key,
        forced_tools=names,
        parallel_tool_calls=several,
    )


def _params(body: CountBody) -> SamplingParams:
    guide = _guide(body.output_config)
    if not isinstance(body, MessagesBody):
        return SamplingParams(guide=guide)
    return SamplingParams(
        max_tokens=body.max_tokens, temperature=body.temperature, top_p=body.top_p, top_k=body.top_k,
        stop=tuple(body.stop_sequences), guide=guide,
    )  # fmt: skip


def _guide(config: Mapping[str, Any] | None) -> Guide | None:
    wanted = fields(config or {}, "output_config", ("format",)).get("format")
    if wanted is None:
        return None
    part = fields(wanted, "output_config.format", ("type", "schema"))
    if part.get("type") != "json_schema":
        raise unsupported("output_config.format.type", part.get("type"), "known: json_schema")
    if not isinstance(part.get("schema"), Mapping):
        raise invalid("output_config.format.schema", part.get("schema"), "give a JSON schema")
    return Guide("json_schema", json.dumps(part["schema"]))


def _choice(given: Mapping[str, Any] | None) -> tuple[str, Any, bool]:
    """What `forced_tools` takes, and whether several calls may come."""
    part = fields(given or {"type": "auto"}, "tool_choice", ("type", "name", "disable_parallel_tool_use"))
    kind, single = part.get("type"), part.get("disable_parallel_tool_use", False)
    if kind not in ("auto", "any", "tool", "none"):
        raise invalid("tool_choice.type", kind, "give auto, any, tool or none")
    if not isinstance(single, bool):
        raise invalid("tool_choice.disable_parallel_tool_use", single, "give true or false")
    if "name" in part and kind != "tool":
        raise invalid("tool_choice.name", part["name"], f"it has no effect with type '{kind}'")
    return kind, part.get("name"), not single


def _tool(value: Any, place: str, forced: bool) -> ToolSpec:
    kind = value.get("type") if isinstance(value, Mapping) else None
    if kind not in (None, "custom"):
        raise unsupported(f"{place}.type", kind, "there are no built-in tools, offer one with an input_schema")
    known = ("type", "name", "description", "input_schema", "strict", "cache_control")
    part = fields(value, place, known, empty=("strict", "defer_loading", "input_examples", "eager_input_streaming"))
    _check_cache(part.get("cache_control"), f"{place}.cache_control")
    if "input_schema" not in part:
        raise invalid(f"{place}.input_schema", None, "give a JSON schema")
    return tool_spec(part, "input_schema", place, forced=forced)


def _check_cache(value: Any, place: str) -> None:
    """A mark to cache up to here: it is done anyway. Another lifetime than the usual one cannot be had."""
    if value is None:
        return
    part = fields(value, place, ("type", "ttl"))
    if part.get("type") != "ephemeral":
        raise invalid(f"{place}.type", part.get("type"), "give ephemeral")
    if part.get("ttl", "5m") != "5m":
        raise unsupported(f"{place}.ttl", part["ttl"], "what is used stays longest; leave it out")


def _system(given: str | list[Any]) -> tuple[Message, ...]:
    texts = _texts(given, "system")
    return (Message("system", texts),) if texts else ()


def _texts(given: Any, place: str) -> tuple[Part, ...]:
    """A text, or blocks of text alone."""
    if isinstance(given, str):
        return (Text(given),) if given else ()
    return tuple(Text(text) for n, block in enumerate(items(given, place)) if (text := _text(block, f"{place}.{n}")))


def _text(block: Any, place: str) -> str:
    kind = block.get("type") if isinstance(block, Mapping) else None
    if kind != "text":
        raise unsupported(f"{place}.type", kind, "known here: text")
    part = fields(block, place, ("type", "text", "cache_control"), empty=("citations",))
    _check_cache(part.get("cache_control"), f"{place}.cache_control")
    return string(part, "text", place)


def _messages(given: list[Any]) -> list[Message]:
    out: list[Message] = []
    calls: set[str] = set()  # ids of the calls so far
    for number, value in enumerate(given):
        place = f"messages.{number}"
        part = fields(value, place, ("role", "content"))
        role, content = part.get("role"), part.get("content", "")
        if role == "assistant":
            out.append(_assistant(content, f"{place}.content"))
            calls |= {call.id for call in out[-1].tool_calls}
        elif role == "user":
            out += _user(content, f"{place}.content", calls)
        elif role == "system":
            out.append(Message("system", _texts(content, f"{place}.content")))
        else:
            raise invalid(f"{place}.role", role, "give user, assistant or system")
    if out and out[-1].role == "assistant":
        raise unsupported(
            f"messages.{len(given) - 1}.role", "assistant", "no answer is begun for the model: end with a user's turn"
        )  # fmt: skip
    return out


def _user(content: Any, place: str, calls: set[str]) -> list[Message]:
    """A user's turn: results of tools are messages of their own, in their order."""
    if isinstance(content, str):
        return [Message("user", _texts(content, place))]
    out: list[Message] = []
    for number, block in enumerate(items(content, place)):
        where = f"{place}.{number}"
        if isinstance(block, Mapping) and block.get("type") == "tool_result":
            out.append(_result(block, where, calls))
            continue
        text = _text(block, where)
        if not out or out[-1].role != "user":
            out.append(Message("user"))
        out[-1] = Message("user", (*out[-1].content, Text(text)) if text else out[-1].content)
    return out or [Message("user")]


def _result(block: Mapping[str, Any], place: str, calls: set[str]) -> Message:
    part = fields(block, place, ("type", "tool_use_id", "content", "is_error", "cache_control"))
    _check_cache(part.get("cache_control"), f"{place}.cache_control")
    call_id, failed = string(part, "tool_use_id", place, least=1), part.get("is_error", False)
    if call_id not in calls:
        raise invalid(f"{place}.tool_use_id", call_id, "no tool_use before it has this id")
    if not isinstance(failed, bool):
        raise invalid(f"{place}.is_error", failed, "give true or false")
    content = _texts(part.get("content", ""), f"{place}.content")
    text = "".join(each.text for each in content if isinstance(each, Text))
    if failed and not text.startswith("error"):  # as `agent.tool` tells a model of an error
        content = (Text("error: "), *content)
    return Message("tool", content, tool_call_id=call_id)


def _assistant(content: Any, place: str) -> Message:
    """A turn of the model: thoughts, then text, then calls."""
    if isinstance(content, str):
        return Message("assistant", _texts(content, place))
    texts: list[Part] = []
    calls: list[ToolCall] = []
    thoughts: list[str] = []
    for number, block in enumerate(items(content, place)):
        where = f"{place}.{number}"
        kind = block.get("type") if isinstance(block, Mapping) else None
        if kind == "tool_use":
            part = fields(block, where, ("type", "id", "name", "input", "cache_control"))
            _check_cache(part.get("cache_control"), f"{where}.cache_control")
            name, call_id = string(part, "name", where, least=1), string(part, "id", where, least=1)
            if not isinstance(part.get("input"), Mapping):
                raise invalid(f"{where}.input", part.get("input"), "give an object")
            calls.append(tool_call(name, part["input"], call_id, f"{where}.input"))
        elif kind == "thinking":
            part = fields(block, where, ("type", "thinking"), empty=("signature",))
            thoughts.append(string(part, "thinking", where))
        elif kind == "text":
            if calls:
                raise unsupported(f"{where}.type", kind, "text stands before the calls of a turn")
            texts.append(Text(_text(block, where)))
        else:
            raise unsupported(f"{where}.type", kind, "known here: text, tool_use, thinking")
    return Message("assistant", tuple(texts), tuple(calls), reasoning="".join(thoughts))
