"""Messages and tools in the OpenAI form, however odd: a record, or one sentence of the error tree."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from riverrun.base.errors import InputError, RiverrunError
from riverrun.base.types import Audio, Message, Text, ToolCall, ToolSpec

STEADY = settings(max_examples=80, deadline=None, derandomize=True, database=None)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.binary(max_size=4)
ODD: st.SearchStrategy[Any] = st.recursive(
    LEAVES | st.sampled_from([float("nan"), {1, 2}, (1, 2), object]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4) | st.integers(), inner, max_size=2),
    max_leaves=4,
)


def wrecked(right: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """What belongs there, or anything else."""
    return st.one_of(right, right, ODD)


def objects(fields: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[Any, Any]]:
    """Any of the fields, each right or odd, and sometimes one that nobody knows."""
    known = st.fixed_dictionaries({}, optional={key: wrecked(value) for key, value in fields.items()})
    return st.one_of(
        known, known, st.tuples(known, st.dictionaries(st.text(max_size=3) | st.integers(), ODD, max_size=1)).map(
            lambda pair: pair[0] | pair[1]
        )
    )  # fmt: skip


NAMES = st.text(max_size=5)
JSON = st.dictionaries(NAMES, st.integers() | NAMES, max_size=2)
ARGUMENTS = st.one_of(JSON, JSON.map(json.dumps), st.just("{"), st.just("[1]"), st.just("null"), st.just("9" * 5000))
CALLS = objects(
    {"id": NAMES, "type": st.just("function"), "function": objects({"name": NAMES, "arguments": ARGUMENTS})}
)
PARTS = st.one_of(
    objects({"type": st.just("text"), "text": NAMES}),
    objects({"type": st.just("image_url"), "image_url": objects({"url": NAMES})}),
    objects({"type": st.just("input_audio"), "input_audio": objects({"data": NAMES, "format": NAMES})}),
    objects({"type": st.just("file"), "file": objects({"filename": NAMES})}),
)
MESSAGES = objects(
    {
        "role": st.sampled_from(["system", "developer", "user", "assistant", "tool", "robot"]),
        "content": st.one_of(NAMES, st.lists(wrecked(PARTS), max_size=2)),
        "tool_calls": st.lists(wrecked(CALLS), max_size=2),
        "tool_call_id": NAMES,
        "name": NAMES,
    }
)
TOOLS = objects(
    {
        "type": st.just("function"),
        "function": objects({"name": NAMES, "description": NAMES, "parameters": JSON}),
    }
)


def sentence(error: RiverrunError) -> None:
    """It says something, in one line of a length that a person reads."""
    text = str(error)
    assert 15 < len(text) < 600
    assert "\n" not in text
    assert "Traceback" not in text


@STEADY
@given(wrecked(MESSAGES))
@example({"role": ["user"], "content": "x"})
@example({"role": {}, "content": "x"})
@example({"role": "user", 1: 2, "z": 3})
@example({"role": "user", "content": b"ab"})
@example({"role": "user", "tool_calls": 5})
@example({"role": "user", "tool_calls": {"a": 1}})
@example({"role": "user", "tool_calls": [{"function": {"name": "f", "arguments": 7}}]})
@example({"role": "user", "tool_calls": [{"function": {"name": "f", "arguments": "7"}}]})
@example({"role": "user", "tool_calls": [{"function": {"name": "f", "arguments": "[" * 100_000}}]})
@example({"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "a"}}]})
@example({"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "ä"}}]})
@example({"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": 3}}]})
def test_any_message_is_read_or_refused_in_one_sentence(value: Any) -> None:
    try:
        message = Message.from_openai(value)
    except RiverrunError as error:
        sentence(error)
        return
    assert isinstance(message, Message)
    assert message.role in ("system", "user", "assistant", "tool")
    assert all(isinstance(call, ToolCall) and call.name and isinstance(call.name, str) for call in message.tool_calls)
    assert isinstance(message.tool_call_id, str)
    assert isinstance(message.name, str)
    assert isinstance(message.text, str)
    again = Message.from_openai(message.to_openai())
    assert (again.role, again.tool_call_id, again.name) == (message.role, message.tool_call_id, message.name)
    assert len(again.tool_calls) == len(message.tool_calls)


@STEADY
@given(wrecked(TOOLS))
@example(None)
@example([])
@example({"function": {"name": "f", "parameters": [1]}})
@example({"function": {"name": "f", "parameters": "x"}})
@example({"function": {"name": 3}})
@example({"function": object})
@example({"function": {"name": ""}, "type": {1}})
def test_any_tool_is_read_or_refused_in_one_sentence(value: Any) -> None:
    try:
        tool = ToolSpec.from_openai(value)
    except RiverrunError as error:
        sentence(error)
        return
    assert isinstance(tool.name, str)
    assert tool.name
    assert isinstance(tool.description, str)
    assert ToolSpec.from_openai(tool.to_openai()) == tool


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (["user", "hello"], "a message must be an object, got list"),
        ({"content": "x"}, "message role None is not one of system, user, assistant, tool"),
        ({"role": ["user"]}, "message role"),
        ({"role": "user", "content": 3}, "content must be a string or a list of parts, got int"),
        ({"role": "user", "content": {"type": "text", "text": "x"}}, "content must be a string or a list of parts"),
        ({"role": "user", "content": b"x"}, "content must be a string or a list of parts, got bytes"),
        ({"role": "user", "content": ["x"]}, "content part"),
        ({"role": "user", "content": [{"type": "text", "text": 3}]}, "content part .* is not one of text"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": 3}}]}, "url of an image must be"),
        ({"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "a"}}]}, "base64"),
        ({"role": "assistant", "tool_calls": 3}, "tool_calls must be a list, got int"),
        ({"role": "assistant", "tool_calls": {"function": {}}}, "tool_calls must be a list, got dict"),
        ({"role": "assistant", "tool_calls": "f"}, "tool_calls must be a list, got str"),
        ({"role": "assistant", "tool_calls": ["f"]}, "a tool call must be"),
        ({"role": "assistant", "tool_calls": [{"function": {"arguments": "{}"}}]}, "a tool call must be"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": 3}}]}, "a tool call must be"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": 3}}]}, "'f' must be an object"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}, "'f' are not JSON"),
        ({"role": "tool", "content": "x", "tool_call_id": [1]}, "tool_call_id must be a string, got list"),
        ({"role": "user", "content": "x", "name": 3}, "name must be a string, got int"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_message_is_named(value: Any, text: str) -> None:
    with pytest.raises(InputError, match=text):
        Message.from_openai(value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("f", "a tool must be"),
        ({"type": "function"}, "a tool must be"),
        ({"function": {"description": "x"}}, "a tool must be"),
        ({"function": {"name": 3}}, "a tool must be"),
        ({"type": "retrieval", "function": {"name": "f"}}, "a tool must be"),
        ({"function": {"name": "f", "parameters": [1]}}, "parameters of tool 'f' must be an object, got list"),
        ({"function": {"name": "f", "description": ["x"]}}, "description of tool 'f' must be a string, got list"),
    ],
)
def test_what_is_wrong_with_a_tool_is_named(value: Any, text: str) -> None:
    with pytest.raises(InputError, match=text):
        ToolSpec.from_openai(value)


@pytest.mark.parametrize("place", ["message", "role", "content", "call", "arguments", "field", "tool"])
def test_what_is_nested_deeper_than_python_prints_is_refused_too(place: str) -> None:
    deep: Any = []
    for _ in range(50_000):
        deep = [deep]
    values = {
        "message": deep,
        "role": {"role": deep},
        "content": {"role": "user", "content": [deep]},
        "call": {"role": "assistant", "tool_calls": [deep]},
        "arguments": {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": deep}}]},
        "field": {"role": "user", ("x",): deep},
        "tool": {"function": deep},
    }
    with pytest.raises(InputError) as caught:
        (ToolSpec if place == "tool" else Message).from_openai(values[place])
    sentence(caught.value)


def test_what_is_right_is_read_whole() -> None:
    sound = base64.b64encode(b"\x00\xff").decode()
    message = Message.from_openai(
        {
            "role": "developer",
            "name": "n",
            "content": [
                {"type": "text", "text": "a"},
                {"type": "input_audio", "input_audio": {"data": sound, "format": "mp3"}},
            ],
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"q": 2}'}}],
        }
    )
    assert message == Message(
        "system", (Text("a"), Audio(b"\x00\xff", "mp3")), (ToolCall("f", {"q": 2}, "1"),), "", "n"
    )
    empty = Message.from_openai({"role": "assistant", "content": None, "tool_calls": None, "name": None})
    assert empty == Message("assistant")
    bare = Message.from_openai({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": ""}}]})
    assert bare.tool_calls == (ToolCall("f", {}),)
