"""Items of the Responses API: read from a request, kept in their full form, and as the messages that a model reads.

Source: OpenAI's API reference, "Responses", input items. A thought, an assistant's text and its calls that follow one
another in this order are one message.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from riverrun.base.types import Message, Part, Role, Text
from riverrun.serve.http.reading import fields, invalid, items, string, tool_call, unsupported

__all__ = ["Item", "call_item", "messages_of", "new_id", "read_input"]

Item = Mapping[str, Any]
_ROLES = ("user", "system", "developer", "assistant")
_PREFIX = {"message": "msg", "reasoning": "rs", "function_call": "fc", "function_call_output": "fco"}
_ORDER = {"reasoning": 0, "message": 1, "function_call": 2}
"""Within one message of an assistant."""


def new_id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"


def read_input(given: str | Sequence[Any], before: Sequence[Item] = ()) -> list[Item]:
    """The items of a request in full form. `before`: the conversation that they go on.

    HttpError 400 names what cannot be read, what is not offered, and a result without its call.
    """
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    out: list[Item] = []
    calls = {item["call_id"] for item in before if item["type"] == "function_call"}
    for number, value in enumerate(given):
        place = f"input.{number}"
        item = _read_item(value, place)
        if item["type"] == "function_call":
            calls.add(item["call_id"])
        elif item["type"] == "function_call_output" and item["call_id"] not in calls:
            raise invalid(f"{place}.call_id", item["call_id"], "no function_call before it has this id")
        out.append(item)
    return out


def _read_item(value: Any, place: str) -> Item:
    kind = value.get("type", "message") if isinstance(value, Mapping) else None
    if kind == "message":
        item = _read_message(value, place)
    elif kind == "function_call":
        part = fields(value, place, ("type", "id", "status", "call_id", "name", "arguments"))
        name, call_id = string(part, "name", place, least=1), string(part, "call_id", place, least=1)
        arguments = string(part, "arguments", place)
        tool_call(name, arguments, call_id, f"{place}.arguments")
        item = {"call_id": call_id, "name": name, "arguments": arguments or "{}"}
    elif kind == "function_call_output":
        part = fields(value, place, ("type", "id", "status", "call_id", "output"))
        output = part.get("output", "")
        if not isinstance(output, str):
            output = _contents(output, ("input_text",), f"{place}.output")
        item = {"call_id": string(part, "call_id", place, least=1), "output": output}
    elif kind == "reasoning":
        part = fields(value, place, ("type", "id", "status", "content"), ("summary",))
        item = {"summary": [], "content": _contents(part.get("content", []), ("reasoning_text",), f"{place}.content")}
    elif not isinstance(value, Mapping):
        raise invalid(place, value, "give an item")
    else:
        raise unsupported(f"{place}.type", kind, f"known: {', '.join(_PREFIX)}")
    given_id = string(value, "id", place) if value.get("id") is not None else ""
    return {"type": kind, "id": given_id or new_id(_PREFIX[kind]), "status": "completed", **item}


def _read_message(value: Any, place: str) -> dict[str, Any]:
    part = fields(value, place, ("type", "id", "status", "role", "content"))
    role, content = part.get("role"), part.get("content", "")
    if role not in _ROLES:
        raise invalid(f"{place}.role", role, f"give one of {', '.join(_ROLES)}")
    kind = "output_text" if role == "assistant" else "input_text"
    parts = [{"type": kind, "text": content}] if isinstance(content, str) else content
    return {"role": role, "content": _contents(parts, (kind,), f"{place}.content")}


def _contents(value: Any, kinds: Sequence[str], place: str) -> list[dict[str, Any]]:
    """Parts of text; any other kind is refused by its name."""
    out = []
    for number, each in enumerate(items(value, place)):
        where = f"{place}.{number}"
        kind = each.get("type") if isinstance(each, Mapping) else None
        if kind not in kinds:
            raise unsupported(f"{where}.type", kind, f"known: {', '.join(kinds)}")
        part = fields(each, where, ("type", "text"), ("annotations", "logprobs"))
        more: dict[str, Any] = {"annotations": [], "logprobs": []} if kind == "output_text" else {}
        out.append({"type": kind, "text": string(part, "text", where), **more})
    return out


def call_item(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A call that the model made. Its id is new: a codec counts the calls of one answer alone."""
    text = json.dumps(dict(arguments), ensure_ascii=False)
    return {
        "type": "function_call", "id": new_id("fc"), "status": "completed",
        "call_id": f"call_{uuid.uuid4().hex[:24]}", "name": name, "arguments": text,
    }  # fmt: skip


def messages_of(given: Sequence[Item]) -> tuple[Message, ...]:
    """What a model reads."""
    out: list[Message] = []
    rank = -1  # of the last item of the assistant's message that is being put together; -1: none is
    for item in given:
        kind = item["type"]
        if kind == "function_call_output" or item.get("role", "assistant") != "assistant":
            out.append(_foreign(item))
            rank = -1
            continue
        order = _ORDER[kind]
        if rank < 0 or order < rank or (order == rank and kind != "function_call"):
            out.append(Message("assistant"))
        out[-1], rank = _joined(out[-1], item), order
    return tuple(out)


def _foreign(item: Item) -> Message:
    """A message that is not an assistant's."""
    if item["type"] == "function_call_output":
        output = item["output"]
        content = _texts(output) if not isinstance(output, str) else ((Text(output),) if output else ())
        return Message("tool", content, tool_call_id=item["call_id"])
    role: Role = "user" if item["role"] == "user" else "system"
    return Message(role, _texts(item["content"]))


def _joined(message: Message, item: Item) -> Message:
    if item["type"] == "reasoning":
        return replace(message, reasoning="".join(part["text"] for part in item["content"]))
    if item["type"] == "message":
        return replace(message, content=_texts(item["content"]))
    call = tool_call(item["name"], item["arguments"], item["call_id"], "arguments")
    return replace(message, tool_calls=(*message.tool_calls, call))


def _texts(parts: Sequence[Mapping[str, Any]]) -> tuple[Part, ...]:
    return tuple(Text(part["text"]) for part in parts if part["text"])
