"""Messages as data sets write them: OpenAI's form, ShareGPT's from/value, XTuner's turns. One reader for each.

Tool calls become `Message.tool_calls` whatever they were written as. A thought of its own field or part is put before
the answer as `<think>` text, which is how models that think write it. Anything that is not text is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

from riverrun.base.errors import InputError
from riverrun.base.types import Message, Role, Text, ToolCall, ToolSpec
from riverrun.data.examples import BadRow

__all__ = ["openai_messages", "plain", "read_tools", "refuse_media", "sharegpt_messages", "shown", "xtuner_messages"]

Row = Mapping[str, Any]
Talk = tuple[tuple[Message, ...], tuple[bool, ...]]
"""Messages, and for each whether it counts; () where the row does not say."""

_OPENAI_ROLES: dict[str, Role] = {
    **{"system": "system", "developer": "system", "user": "user", "assistant": "assistant"},
    **{"tool": "tool", "function": "tool"},
}
_SHAREGPT_ROLES: dict[str, Role | Literal["call"]] = {
    **{"system": "system", "human": "user", "user": "user"},
    **{"gpt": "assistant", "assistant": "assistant"},
    **{"function_call": "call", "tool_call": "call"},
    **{"observation": "tool", "tool": "tool", "tool_response": "tool", "function_response": "tool"},
}
_WEIGHTS = ("weight", "loss", "loss_weight", "train")
_MEDIA = {
    **dict.fromkeys(("image", "images", "image_path", "image_url", "input_image"), "image"),
    **dict.fromkeys(("audio", "audios", "audio_url", "input_audio"), "audio"),
    **dict.fromkeys(("video", "videos", "video_url", "input_video"), "video"),
}


def shown(value: Any) -> str:
    """A value within a reason: short, one line."""
    text = value if isinstance(value, str) else repr(value)
    return (text[:80] + "...") if len(text) > 80 else text


def refuse_media(row: Row) -> None:
    """BadRow for a row that names images, sounds or videos beside its text."""
    for key in row.keys() & _MEDIA.keys():
        if row[key]:
            raise BadRow(_MEDIA[key], f"the row holds '{key}' ({shown(row[key])}); this is text data")


def plain(role: Role, text: str) -> Message:
    """A message of one text."""
    return Message(role, (Text(text),) if text else ())


def _string(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise BadRow("not_this_format", f"{what} must be a text, it is {type(value).__name__}")
    return value


# ---- OpenAI ---------------------------------------------------------------------------------------------------------


def openai_messages(rows: Any) -> Talk:
    """[{role, content, tool_calls, weight | loss | loss_weight}, ...]; content is a text or a list of parts."""
    if not isinstance(rows, list):
        raise BadRow("not_this_format", f"the messages must be a list, they are {type(rows).__name__}")
    messages, learn, said = [], [], False
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise BadRow("not_this_format", f"message {number} must be an object, it is {type(row).__name__}")
        message = _openai_message(row, number)
        messages.append(message)
        weight = _weight(row, number, message.role)
        said = said or weight is not None
        learn.append(message.role == "assistant" if weight is None else weight)
    return tuple(messages), tuple(learn) if said else ()


def _openai_message(row: Row, number: int) -> Message:
    role = _OPENAI_ROLES.get(row.get("role"))  # type: ignore[arg-type]
    if role is None:
        raise BadRow("unknown_role", f"message {number} has the role {shown(row.get('role'))!r}")
    content, given = row.get("content"), row.get("tool_calls")
    thought = row.get("reasoning_content") or ""
    if isinstance(content, str) and len(row) == 2:
        return plain(role, content)
    calls: list[ToolCall] = []
    text = content if isinstance(content, str) else ""
    if isinstance(content, list):
        text, thought, calls = _parts(content, number, thought)
    elif content is not None and not isinstance(content, str):
        raise BadRow("not_this_format", f"content of message {number} is {type(content).__name__}")
    if given:
        if not isinstance(given, list):
            raise BadRow("tool_call", f"tool_calls of message {number} must be a list, it is {type(given).__name__}")
        calls += [_call(call, number) for call in given]
    if calls and role != "assistant":
        raise BadRow("tool_call", f"message {number} ({role}) holds a tool call")
    if thought:
        text = f"<think>\n{_string(thought, 'a thought').strip()}\n</think>\n\n{text}"
    ids = {key: row[key] for key in ("tool_call_id", "name") if isinstance(row.get(key), str)}
    return Message(role, (Text(text),) if text else (), tuple(calls), **ids)


def _parts(parts: Sequence[Any], number: int, thought: str) -> tuple[str, str, list[ToolCall]]:
    """Text, thought and calls of a content list; both {type, text} and {type, value} are written."""
    texts: list[str] = []
    calls: list[ToolCall] = []
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(kind, str):
            raise BadRow("not_this_format", f"message {number} holds a part without a type: {shown(part)}")
        if kind in _MEDIA:
            raise BadRow(_MEDIA[kind], f"message {number} holds a part of type '{kind}'; this is text data")
        value = part.get("value", part.get("text", part.get(kind)))
        if kind in ("reasoning", "thinking"):
            thought += _string(value, f"a part of message {number}")
        elif kind == "tool_call":
            calls += _calls_of(value, number)
        elif kind == "text":
            texts.append(_string(value, f"a part of message {number}"))
        else:
            raise BadRow("not_this_format", f"message {number} holds a part of type '{kind}', which is not known")
    return "".join(texts), thought, calls


def _weight(row: Row, number: int, role: str) -> bool | None:
    """Whether a message counts, by its own word; None where it does not say."""
    for key in _WEIGHTS:
        if key in row:
            value = row[key]
            if value is None:
                continue
            if value not in (0, 1):
                raise BadRow("weight", f"message {number} has {key} {shown(value)}; 0 and 1 are known")
            if value and role != "assistant":
                raise BadRow("weight", f"message {number} ({role}) has {key} 1; only what an assistant says can count")
            return bool(value)
    return None


def _call(value: Any, number: int) -> ToolCall:
    """{function: {name, arguments}} or {name, arguments | parameters}; arguments an object or its JSON."""
    if not isinstance(value, dict):
        raise BadRow("tool_call", f"a call of message {number} must be an object, it is {shown(value)}")
    inner = value.get("function")
    body: Row = inner if isinstance(inner, dict) else value
    name = body.get("name")
    arguments = body.get("arguments", body.get("parameters"))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError):
            what = f"arguments of a call of message {number} are not JSON"
            raise BadRow("tool_call", f"{what}: {shown(arguments)}") from None
    if not isinstance(name, str) or not name or not isinstance(arguments or {}, dict):
        raise BadRow("tool_call", f"a call of message {number} needs a name and arguments, it is {shown(value)}")
    ident = value.get("id")
    return ToolCall(name, arguments or {}, ident if isinstance(ident, str) else "")


def _calls_of(value: Any, number: int) -> list[ToolCall]:
    """One call or a list of them, as an object or as JSON."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise BadRow("tool_call", f"the call of message {number} is not JSON: {shown(value)}") from None
    return [_call(each, number) for each in (value if isinstance(value, list) else [value])]


# ---- ShareGPT -------------------------------------------------------------------------------------------------------


def sharegpt_messages(rows: Any, system: Any = "") -> Talk:
    """[{from, value}, ...] with human, gpt, system, function_call and observation, or role/content in their place."""
    if not isinstance(rows, list):
        raise BadRow("not_this_format", f"the conversation must be a list, it is {type(rows).__name__}")
    messages = [plain("system", system)] if isinstance(system, str) and system else []
    learn, said, name = [False] * len(messages), False, ""
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise BadRow("not_this_format", f"message {number} must be an object, it is {type(row).__name__}")
        if "from" not in row and "role" in row:
            row = row | {"from": row["role"], "value": row.get("content")}
        role = _SHAREGPT_ROLES.get(row.get("from"))  # type: ignore[arg-type]
        if role is None:
            raise BadRow("unknown_role", f"message {number} has the role {shown(row.get('from'))!r}")
        value = row.get("value")
        if role == "call":
            calls = tuple(_calls_of(value, number))
            name = calls[0].name if len(calls) == 1 else ""
            message = Message("assistant", (), calls)
        else:
            text = value if isinstance(value, str) else _string(value, f"value of message {number}")
            message = Message(role, (Text(text),) if text else (), name=name if role == "tool" else "")
        messages.append(message)
        weight = _weight(row, number, message.role)
        said = said or weight is not None
        learn.append(message.role == "assistant" if weight is None else weight)
    return tuple(messages), tuple(learn) if said else ()


# ---- XTuner ---------------------------------------------------------------------------------------------------------


def xtuner_messages(rows: Any) -> Talk:
    """[{system, input, output, output_with_loss}, ...]: a turn each; the first may bring the system text."""
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise BadRow("not_this_format", f"the conversation must be a list of turns, it is {shown(rows)}")
    messages: list[Message] = []
    learn: list[bool] = []
    said = False
    for number, row in enumerate(rows, 1):
        if text := row.get("system"):
            if messages:
                raise BadRow("not_this_format", f"turn {number} brings a system text; only the first may")
            messages.append(plain("system", _string(text, "system")))
            learn.append(False)
        if text := row.get("input"):
            messages.append(plain("user", _string(text, f"input of turn {number}")))
            learn.append(False)
        if text := row.get("output"):
            counts = row.get("output_with_loss", True)
            if not isinstance(counts, bool):
                raise BadRow(
                    "weight", f"output_with_loss of turn {number} is {shown(counts)}; true and false are known"
                )
            said = said or "output_with_loss" in row
            messages.append(plain("assistant", _string(text, f"output of turn {number}")))
            learn.append(counts)
    return tuple(messages), tuple(learn) if said else ()


# ---- tools ----------------------------------------------------------------------------------------------------------


def read_tools(value: Any) -> tuple[ToolSpec, ...]:
    """Tools as a list or its JSON, each in OpenAI's form or as bare {name, description, parameters}."""
    if not value:
        return ()
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise BadRow("tool_call", f"the tools are not JSON: {shown(value)}") from None
    if not isinstance(value, list):
        raise BadRow("tool_call", f"the tools must be a list, they are {type(value).__name__}")
    out = []
    for tool in value:
        wrapped = tool if isinstance(tool, dict) and "function" in tool else {"type": "function", "function": tool}
        try:
            out.append(ToolSpec.from_openai(cast(Row, wrapped)))
        except InputError as error:
            raise BadRow("tool_call", str(error)) from None
    return tuple(out)
