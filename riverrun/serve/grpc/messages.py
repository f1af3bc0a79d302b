"""The messages of riverrun.proto as classes, made from its descriptor (riverrun.desc, written by `make proto`)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from riverrun.base.errors import InputError
from riverrun.base.optional import require
from riverrun.base.protocols import Delta, Request
from riverrun.base.types import Guide, Message, SamplingParams, TokenLogprob, ToolCall, ToolSpec, Usage

__all__ = [
    "SERVICE", "chunk_of", "descriptor", "generate_request", "message", "messages_of", "params_of", "read", "tools_of",
    "variables_of",
]  # fmt: skip

SERVICE = "riverrun.v1.Riverrun"
_FIELDS = (
    "max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty",
    "frequency_penalty", "no_repeat_ngram", "min_tokens", "ignore_end", "seed", "logprobs", "prompt_logprobs",
)  # fmt: skip


@cache
def descriptor() -> Any:
    """The file's descriptor, known to protobuf's own pool (reflection finds it there)."""
    require("google.protobuf", extra="grpc")
    from google.protobuf import descriptor_pb2, descriptor_pool

    stored = descriptor_pb2.FileDescriptorSet.FromString(files(__package__).joinpath("riverrun.desc").read_bytes())
    pool = descriptor_pool.Default()
    try:
        return pool.FindFileByName("riverrun.proto")
    except KeyError:
        pool.AddSerializedFile(stored.file[0].SerializeToString())
        return pool.FindFileByName("riverrun.proto")


@cache
def message(name: str) -> Any:
    """The class of a message."""
    from google.protobuf import message_factory

    return message_factory.GetMessageClass(descriptor().message_types_by_name[name])


# ---- in ---------------------------------------------------------------------------------------------------------


def read(method: Any, payload: bytes) -> Any:
    """The request of a method; InputError for bytes that are none."""
    name = method.input_type.name
    try:
        return message(name).FromString(payload)
    except require("google.protobuf.message", extra="grpc").DecodeError as error:
        raise InputError(f"the message of {len(payload)} bytes is no {name}: {error}") from None


def params_of(sampling: Any) -> SamplingParams:
    given: dict[str, Any] = {name: getattr(sampling, name) for name in _FIELDS if sampling.HasField(name)}
    guide = sampling.WhichOneof("guide")
    if guide is not None:
        value = getattr(sampling, guide)
        given["guide"] = Guide(guide, json.dumps(list(value.texts), ensure_ascii=False) if guide == "choice" else value)
    return SamplingParams(
        **given,
        logit_bias=dict(sampling.logit_bias),
        bad_words=tuple(sampling.bad_words),
        stop=tuple(sampling.stop),
        stop_ids=tuple(sampling.stop_ids),
    )


def messages_of(given: Iterable[Any]) -> tuple[Message, ...]:
    """InputError names the message that cannot be read."""
    out = []
    for place, each in enumerate(given):
        calls = [
            {"id": call.id, "function": {"name": call.name, "arguments": call.arguments or "{}"}}
            for call in each.tool_calls
        ]
        value = {"role": each.role, "content": each.content, "tool_call_id": each.tool_call_id, "name": each.name}
        value["reasoning_content"] = each.reasoning
        try:
            out.append(Message.from_openai(value | ({"tool_calls": calls} if calls else {})))
        except InputError as error:
            raise type(error)(f"messages.{place}: {error}") from None
    return tuple(out)


def tools_of(given: Iterable[Any]) -> tuple[ToolSpec, ...]:
    out = []
    for place, each in enumerate(given):
        try:
            parameters = json.loads(each.parameters or "{}")
        except ValueError as error:
            raise InputError(f"tools.{place}.parameters is not JSON: {error}") from None
        if not isinstance(parameters, dict) or not each.name:
            raise InputError(f"tools.{place} needs a name, and parameters that are a JSON object")
        out.append(ToolSpec(each.name, each.description, parameters))
    return tuple(out)


def variables_of(given: Any) -> dict[str, Any]:
    """What a chat asks its template to know."""
    try:
        variables = json.loads(given.template_variables or "{}")
    except (ValueError, RecursionError) as error:
        raise InputError(f"template_variables is not JSON: {error}") from None
    if not isinstance(variables, dict):
        raise InputError(f"template_variables must be a JSON object, it is {given.template_variables[:80]}")
    return variables


def generate_request(given: Any) -> Request:
    """A GenerateRequest as the models know it."""
    kind = given.WhichOneof("input")
    if kind is None:
        raise InputError("give a prompt or ids")
    text = {"prompt": given.prompt} if kind == "prompt" else {"prompt_ids": tuple(given.ids.ids)}
    return Request(params=params_of(given.sampling), timeout_seconds=given.timeout_seconds, **text)  # type: ignore[arg-type]


# ---- out --------------------------------------------------------------------------------------------------------


def chunk_of(delta: Delta) -> Any:
    chunk = message("Chunk")(
        text=delta.text,
        reasoning=delta.reasoning,
        finish_reason=delta.finish_reason or "",
        stopped_by=delta.stopped_by,
    )
    chunk.tool_calls.extend(_call(call) for call in delta.tool_calls)
    chunk.logprobs.extend(_logprob(token) for token in delta.logprobs)
    if delta.usage is not None:
        chunk.usage.CopyFrom(_usage(delta.usage))
    return chunk


def _call(call: ToolCall) -> Any:
    arguments = json.dumps(dict(call.arguments), ensure_ascii=False)
    return message("ToolCall")(id=call.id, name=call.name, arguments=arguments)


def _logprob(token: TokenLogprob) -> Any:
    near: Sequence[Any] = [_logprob(each) for each in token.top]
    return message("TokenLogprob")(id=token.id, piece=token.piece, logprob=token.logprob, top=near)


def _usage(usage: Usage) -> Any:
    return message("Usage")(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cached_tokens=usage.cached_tokens,
        reasoning_tokens=usage.reasoning_tokens,
    )
