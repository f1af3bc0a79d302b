"""POST /v1/responses: what a request may hold. Every accepted field has an effect, every other known one is refused.

Source: OpenAI's API reference, "Responses". Defaults of sampling are those of `SamplingParams`, not OpenAI's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from riverrun.base.protocols import Request
from riverrun.base.types import Guide, Message, SamplingParams, ToolSpec
from riverrun.serve.http.reading import fields, forced_tools, invalid, tool_spec, unsupported
from riverrun.serve.http.responses_items import Item, messages_of
from riverrun.serve.http.schema import SCHEMA_NAME, StrictBody

__all__ = ["ResponsesBody", "check_metadata", "responses_request"]

_LEAVE = "leave it out"


class TextFormat(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = Field(None, pattern=SCHEMA_NAME, description="a label for programs: the model does not see it")
    description: str | None = Field(None, description="refused: the model sees the input alone")
    strict: bool | None = Field(None, description="answers always follow the schema: false is refused")
    schema_: dict[str, Any] | None = Field(None, alias="schema")


class TextConfig(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    format: TextFormat | None = Field(default=None, description="text, json_object or json_schema")
    verbosity: Literal["medium"] | None = None


class ResponsesBody(StrictBody):
    """POST /v1/responses"""

    refused: ClassVar[Mapping[str, tuple[tuple[Any, ...], str]]] = {
        "background": ((False,), "false is supported: wait for the answer or stream it"),
        "conversation": ((), "use 'previous_response_id'"),
        "include": (([],), _LEAVE),
        "truncation": (("disabled",), "'disabled' is supported: nothing is cut off silently"),
        "reasoning": (({},), "the model decides whether it thinks: leave it out"),
        "prompt": ((), "send 'instructions' and 'input'"),
        "max_tool_calls": ((), "there are no built-in tools"),
        "top_logprobs": ((0,), "use /v1/chat/completions"),
        "service_tier": (("auto", "default"), "'auto' is supported"),
        "stream_options": (({}, {"include_obfuscation": False}), _LEAVE),
        "prompt_cache_key": ((), "leave it out: beginnings are shared by their content"),
        "prompt_cache_retention": ((), "leave it out: what is used stays longest"),
        "prompt_cache_options": ((), "leave it out: beginnings are shared by their content"),
        "safety_identifier": ((), "use 'user'"),
        "context_management": (([],), "nothing is cut off silently: shorten the conversation"),
        "moderation": ((), _LEAVE),
        "modalities": ((["text"],), "['text'] is supported"),
        "stop": ((), "use /v1/chat/completions"),
        "seed": ((), "use /v1/chat/completions"),
    }

    input: str | list[Any] = Field(description="a text, or items: messages, calls, their outputs, reasoning")
    instructions: str = Field("", description="a system message before the conversation, for this answer alone")
    previous_response_id: str = Field("", description="a stored response that this one goes on")
    store: bool = Field(True, description="keep the response for a while, in memory, for the same API key")
    metadata: dict[str, str] = Field(default={}, description="up to 16 labels, given back with the response")
    tools: list[Any] = Field(default=[], description="function tools")
    tool_choice: str | dict[str, Any] = Field(
        "auto", description="auto, none (hides the tools), required, or {type: function, name}"
    )
    parallel_tool_calls: bool = Field(True, description="false: a forced call is one call")
    text: TextConfig = TextConfig()
    max_output_tokens: int = Field(SamplingParams().max_tokens, ge=1, lt=2**31, description="most tokens to generate")
    temperature: float = Field(SamplingParams().temperature, description="0 (greedy) to 2")
    top_p: float = Field(SamplingParams().top_p, description="above 0, at most 1 (off)")
    stream: bool = Field(False, description="answer in server-sent events")
    user: str = Field("", description="a label for the caller's own use; it changes nothing")


def responses_request(body: ResponsesBody, conversation: Sequence[Item], *, key: str = "") -> Request:
    """The request for a model; `conversation` is all that was said, the new input included.

    HttpError 400 names the field that cannot be read or is not offered.
    """
    check_metadata(body.metadata)
    if not conversation:
        raise invalid("input", body.input, "give a text or at least one item")
    wanted, name = _choice(body.tool_choice)
    forced = wanted in ("any", "tool")
    tools = tuple(_tool(value, f"tools.{number}", forced) for number, value in enumerate(body.tools))
    names = forced_tools(wanted, name, tools, several=body.parallel_tool_calls, param="parallel_tool_calls")
    before = (Message.of("system", body.instructions),) if body.instructions else ()
    params = SamplingParams(
        max_tokens=body.max_output_tokens, temperature=body.temperature, top_p=body.top_p,
        guide=_guide(body.text.format),
    )  # fmt: skip
    return Request(
        messages=(*before, *messages_of(conversation)),
        tools=() if wanted == "none" else tools,
        params=params,
        key=key,
        forced_tools=names,
        parallel_tool_calls=body.parallel_tool_calls,
    )


def check_metadata(metadata: Mapping[str, str]) -> None:
    """OpenAI's bounds: what is kept for a client stays small."""
    if len(metadata) > 16:
        raise invalid("metadata", f"{len(metadata)} labels", "give at most 16")
    for key, value in metadata.items():
        if len(key) > 64 or len(value) > 512:
            raise invalid(f"metadata.{key[:64]}", value, "a key has at most 64 characters, a value at most 512")


def _choice(given: str | Mapping[str, Any]) -> tuple[str, Any]:
    """What `forced_tools` takes."""
    if isinstance(given, str):
        found = {"auto": "auto", "none": "none", "required": "any"}.get(given)
        if found is None:
            raise invalid("tool_choice", given, "give auto, none, required or {type: function, name}")
        return found, None
    if given.get("type") != "function":
        raise unsupported("tool_choice.type", given.get("type"), "known: function")
    return "tool", fields(given, "tool_choice", ("type", "name")).get("name")


def _tool(value: Any, place: str, forced: bool) -> ToolSpec:
    kind = value.get("type") if isinstance(value, Mapping) else None
    if isinstance(value, Mapping) and kind != "function":
        raise unsupported(f"{place}.type", kind, "there are no built-in tools, offer a function")
    known = ("type", "name", "description", "parameters", "strict")
    part = fields(value, place, known, empty=("strict", "defer_loading"))
    return tool_spec(part, "parameters", place, forced=forced)


def _guide(wanted: TextFormat | None) -> Guide | None:
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return Guide("json_schema", json.dumps({"type": "object"}))
    if wanted.schema_ is None:
        raise invalid("text.format.schema", None, "a format of type json_schema needs it")
    if wanted.strict is False:
        raise unsupported("text.format.strict", False, "answers always follow the schema")
    if wanted.description:
        raise unsupported("text.format.description", wanted.description, "say it in the input")
    return Guide("json_schema", json.dumps(wanted.schema_))
