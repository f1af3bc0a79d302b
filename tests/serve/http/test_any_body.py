"""Whatever stands in a request of the Responses or the Messages API: it is read, or refused in one sentence."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from riverrun.base.errors import InputError
from riverrun.base.protocols import Request
from riverrun.serve.http.messages_body import MessagesBody, messages_request
from riverrun.serve.http.responses_body import ResponsesBody, responses_request
from riverrun.serve.http.responses_events import response_head
from riverrun.serve.http.responses_items import read_input
from riverrun.serve.http.schema import read_body
from riverrun.web.errors import json_bytes

SCHEMA = {"type": "object", "properties": {"q": {"type": "string"}}}
RESPONSE: dict[str, Any] = {
    "model": "m",
    "input": [
        {"role": "user", "content": "hi"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"type": "reasoning", "id": "rs", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "x", "annotations": []}]},
        {"type": "function_call", "call_id": "c", "name": "look", "arguments": '{"q": "x"}'},
        {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "12.5"}]},
    ],
    "tools": [{"type": "function", "name": "look", "description": "d", "parameters": SCHEMA, "strict": None}],
    "tool_choice": {"type": "function", "name": "look"},
    "text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}},
    "metadata": {"a": "b"},
    "temperature": 0.5,
    "stream_options": {"include_obfuscation": False},
}
MESSAGE: dict[str, Any] = {
    "model": "m",
    "max_tokens": 8,
    "system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}],
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "hi", "citations": None}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": ""},
                {"type": "text", "text": "x"},
                {"type": "tool_use", "id": "c", "name": "look", "input": {"q": "x"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "c",
                    "content": [{"type": "text", "text": "1"}],
                    "is_error": True,
                }
            ],
        },
    ],
    "tools": [{"name": "look", "description": "d", "input_schema": SCHEMA, "strict": False}],
    "tool_choice": {"type": "tool", "name": "look", "disable_parallel_tool_use": True},
    "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
    "thinking": {"type": "adaptive"},
    "metadata": {"user_id": "u"},
    "stop_sequences": ["END"],
}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 3) | st.just(10**30) | st.floats(-1, 3) | st.text(max_size=3)
    | st.sampled_from(["type", "text", "function", "message", "user", "tool_use", "tool_result", '{"a": "\\ud800"}']),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["type", "role", "text", "name"]) | st.text(max_size=2), inner, max_size=2)
    ),
    max_leaves=4,
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Ways to everything within a value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [place for key, each in inner for place in places(each, (*path, key))]


def read_response(data: dict[str, Any]) -> Request:
    body = read_body(ResponsesBody, data)
    json_bytes(response_head(body))
    return responses_request(body, read_input(body.input))


def read_message(data: dict[str, Any]) -> Request:
    return messages_request(read_body(MessagesBody, data))


BODIES = [(RESPONSE, read_response), (MESSAGE, read_message)]


@pytest.mark.parametrize(("whole", "read"), BODIES)
def test_the_whole_body_is_read(whole: dict[str, Any], read: Any) -> None:
    asked = read(whole)
    assert asked.forced_tools == ("look",)
    assert [each.role for each in asked.messages][-2:] == ["assistant", "tool"]


@pytest.mark.parametrize(("whole", "read"), BODIES)
@settings(max_examples=400, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_change_is_read_or_refused(whole: dict[str, Any], read: Any, data: st.DataObject) -> None:
    body = copy.deepcopy(whole)
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from(places(body)))
        holder = body
        for key in path[:-1]:
            holder = holder[key]
        if data.draw(st.booleans()):
            holder[path[-1]] = data.draw(VALUES)
        else:
            del holder[path[-1]]
        if not places(body):
            return
    found: Request | str
    try:
        found = read(body)
    except InputError as error:
        found = str(error)
    if isinstance(found, str):
        assert found
        assert "\n" not in found
    else:
        assert all(isinstance(message.text, str) for message in found.messages)
