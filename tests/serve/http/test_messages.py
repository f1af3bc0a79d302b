"""The Messages API: Anthropic's own client against our server, its events, its errors, what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from http_models import (
    PATIENCE_SECONDS,
    RAW_TEXTS,
    STEPS,
    FailingModel,
    PiecesModel,
    RawModel,
    cut,
    echo,
    require_or_skip,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from riverrun.base.errors import BusyError, CapacityError
from riverrun.base.fakes import FakeModel
from riverrun.base.types import Guide, Message, SamplingParams, ToolCall
from riverrun.serve.http.app import make_app
from riverrun.serve.http.server import BackgroundServer
from riverrun.serve.http.sse import EventParser

anthropic = require_or_skip("anthropic", "anthropic")

PATH = "/v1/messages"
ASK: list[Any] = [{"role": "user", "content": "hello there"}]
TOOL: dict[str, Any] = {
    "name": "look",
    "description": "Look something up",
    "input_schema": {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]},
}
CALL = '<tool_call>\n{"name": "look", "arguments": {"q": "中"}}\n</tool_call>'
EPHEMERAL = {"type": "ephemeral"}


@pytest.fixture(scope="module")
def client(server: BackgroundServer) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="any", timeout=PATIENCE_SECONDS, max_retries=0) as client:
        yield client


def post(http: httpx.Client, status: int = 200, /, **body: Any) -> dict[str, Any]:
    answer = http.post(PATH, json={"model": "echo", "max_tokens": 64, "messages": ASK, **body})
    assert answer.status_code == status, answer.text
    found: dict[str, Any] = answer.json()
    return found


def events(http: httpx.Client, **body: Any) -> list[dict[str, Any]]:
    """All events of a stream; each has its own type as its name."""
    answer = http.post(PATH, json={"model": "echo", "max_tokens": 64, "messages": ASK, "stream": True, **body})
    assert answer.status_code == 200, answer.text
    found = [json.loads(data) for data in EventParser().feed(answer.content)]
    names = [line[7:] for line in answer.text.split("\n") if line.startswith("event: ")]
    assert names == [event["type"] for event in found]
    return found


def test_a_message(client: anthropic.Anthropic, models: dict[str, FakeModel]) -> None:
    answer = client.messages.create(
        model="echo",
        max_tokens=17,
        system=[{"type": "text", "text": "be kind", "cache_control": {"type": "ephemeral"}}],
        messages=[{"role": "user", "content": [{"type": "text", "text": "hello there"}]}],
        stop_sequences=["\n", "END"],
        metadata={"user_id": "label"},
        extra_body={"temperature": 0.5, "top_p": 0.9, "top_k": 40, "cache_control": EPHEMERAL},
    )
    [block] = answer.content
    assert (block.type, block.text, answer.role) == ("text", "hello there", "assistant")
    assert (answer.stop_reason, answer.stop_sequence, answer.model) == ("end_turn", None, "echo")
    assert answer.usage.output_tokens == 2
    asked = models["echo"].requests[-1]
    assert asked.params == SamplingParams(17, 0.5, 0.9, 40, ("\n", "END"))
    assert asked.messages == (Message.of("system", "be kind"), Message.of("user", "hello there"))


def test_calls_and_their_results(client: anthropic.Anthropic, models: dict[str, FakeModel]) -> None:
    models["tools"] = RawModel(["<think>\nhm\n</think>\nLet me see.", CALL])
    answer = client.messages.create(model="tools", max_tokens=64, messages=ASK, tools=[TOOL])
    thought, text, call = answer.content
    assert (thought.thinking, text.text, call.name, call.input) == ("hm", "Let me see.", "look", {"q": "中"})
    assert answer.stop_reason == "tool_use"
    assert (answer.usage.input_tokens, answer.usage.cache_read_input_tokens) == (5, 4)
    assert answer.usage.output_tokens_details.thinking_tokens == 2
    [tool] = models["tools"].requests[-1].tools
    assert (tool.name, tool.description, tool.parameters) == (TOOL["name"], TOOL["description"], TOOL["input_schema"])
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "12.5"}]}
    failed = {"type": "tool_result", "tool_use_id": call.id, "content": "no such book", "is_error": True}
    turn = {"role": "user", "content": [result, failed, {"type": "text", "text": "and?", "cache_control": EPHEMERAL}]}
    said = {"role": "assistant", "content": [block.model_dump() for block in answer.content]}
    client.messages.create(model="tools", max_tokens=64, messages=[*ASK, said, turn], tools=[TOOL])
    calls = (ToolCall("look", {"q": "中"}, call.id),)
    asked = models["tools"].requests[-1].messages
    assert asked[1] == Message.of("assistant", "Let me see.", tool_calls=calls, reasoning="hm")
    assert [(each.role, each.text) for each in asked[2:]] == [
        ("tool", "12.5"), ("tool", "error: no such book"), ("user", "and?"),
    ]  # fmt: skip
    assert {each.tool_call_id for each in asked[2:4]} == {call.id}


@pytest.mark.parametrize(
    ("choice", "tools", "forced", "several"),
    [
        ({"type": "auto"}, 1, (), True),
        ({"type": "none"}, 0, (), True),
        ({"type": "any"}, 1, ("look",), True),
        ({"type": "tool", "name": "look", "disable_parallel_tool_use": True}, 1, ("look",), False),
    ],
)
def test_tool_choice(
    http: httpx.Client, models: dict[str, FakeModel], choice: Any, tools: int, forced: Any, several: bool
) -> None:
    model = models["raw"] = RawModel(["x"])
    post(http, model="raw", tools=[TOOL | {"strict": bool(forced), "cache_control": EPHEMERAL}], tool_choice=choice)
    asked = model.requests[-1]
    assert (len(asked.tools), asked.forced_tools, asked.parallel_tool_calls) == (tools, forced, several)


def test_an_answer_by_a_schema(client: anthropic.Anthropic, models: dict[str, FakeModel]) -> None:
    model = models["price"] = FakeModel(['{"pounds": 12.5}'])
    schema = {"type": "object", "properties": {"pounds": {"type": "number"}}}
    client.messages.create(
        model="price", max_tokens=64, messages=ASK, output_config={"format": {"type": "json_schema", "schema": schema}}
    )
    assert model.requests[-1].params.guide == Guide("json_schema", json.dumps(schema))


def test_a_stream_with_the_official_client(client: anthropic.Anthropic, models: dict[str, FakeModel]) -> None:
    models["tools"] = RawModel(["<think>\nh", "m\n</think>\nLet me", " see.", CALL])
    with client.messages.stream(
        model="tools", max_tokens=64, messages=ASK, tools=[TOOL], thinking={"type": "adaptive"}
    ) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == "Let me see."
    assert [block.type for block in final.content] == ["thinking", "text", "tool_use"]
    assert final.content[2].input == {"q": "中"}
    assert (final.stop_reason, final.usage.output_tokens, final.usage.cache_read_input_tokens) == ("tool_use", 7, 4)
    raw = client.messages.create(model="tools", max_tokens=64, messages=ASK, tools=[TOOL], stream=True)
    types = [event.type for event in raw]
    block = ["content_block_start", "content_block_delta", "content_block_stop"]
    assert [name for n, name in enumerate(types) if not n or types[n - 1] != name] == [
        "message_start", *block, *block, *block, "message_delta", "message_stop",
    ]  # fmt: skip


@settings(derandomize=True, max_examples=60, deadline=None)
@given(RAW_TEXTS, st.lists(st.integers(0, 400), max_size=6), st.sampled_from(["stop", "length"]), st.booleans())
def test_streaming_equals_the_whole_answer(
    http: httpx.Client, models: dict[str, FakeModel], text: str, places: list[int], reason: Any, named: bool
) -> None:
    models["split"] = RawModel(cut(text, places), reason=reason, stopped_by="END" if named else "")
    body = {"model": "split", "tools": [TOOL], "stop_sequences": ["END"], "max_tokens": 7}
    whole = post(http, **body)
    first, *middle, delta, last = events(http, **body)
    assert (first["type"], delta["type"], last) == ("message_start", "message_delta", {"type": "message_stop"})
    message = first["message"] | delta["delta"] | {"usage": delta["usage"]}
    assert first["message"]["content"] == []
    blocks: list[Any] = []
    for event in middle:
        if event["type"] == "content_block_start":
            assert event["index"] == len(blocks)
            blocks.append(dict(event["content_block"]))
        elif event["type"] == "content_block_delta":
            assert event["index"] == len(blocks) - 1
            change = event["delta"]
            if change["type"] == "input_json_delta":
                blocks[-1]["input"] = json.loads(change["partial_json"])
            else:
                kind = change["type"].removesuffix("_delta")
                blocks[-1][kind] += change[kind]
    for block in [*blocks, *whole["content"]]:
        if block["type"] == "tool_use":
            assert block.pop("id").startswith("toolu_")
    assert message | {"id": "", "content": blocks} == whole | {"id": ""}
    called = any(block["type"] == "tool_use" for block in blocks)
    other = "max_tokens" if reason == "length" else "stop_sequence" if named else "end_turn"
    assert whole["stop_reason"] == ("tool_use" if called else other)
    assert whole["stop_sequence"] == ("END" if named else None)


def test_a_full_context_is_told_from_a_full_answer(http: httpx.Client, models: dict[str, FakeModel]) -> None:
    models["cut"] = RawModel(["half an ans"], reason="length")
    assert post(http, model="cut", max_tokens=7)["stop_reason"] == "max_tokens"
    assert post(http, model="cut", max_tokens=8)["stop_reason"] == "model_context_window_exceeded"


def test_an_answer_that_was_ended_is_an_error(http: httpx.Client, models: dict[str, FakeModel]) -> None:
    models["ended"] = RawModel(["half an ans"], reason="abort")
    assert "ended before it was complete" in post(http, 400, model="ended")["error"]["message"]
    assert events(http, model="ended")[-1]["type"] == "error"


def test_steps_of_an_agent(http: httpx.Client, models: dict[str, FakeModel]) -> None:
    models["agent"] = PiecesModel(["12.5 dollars"], steps=STEPS)
    assert post(http, model="agent")["steps"] == list(STEPS)
    assert events(http, model="agent")[-2]["steps"] == list(STEPS)


# ---- errors and keys ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_errors_arrive_as_the_clients_classes(
    client: anthropic.Anthropic, models: dict[str, FakeModel], stream: bool
) -> None:
    ask: dict[str, Any] = {"max_tokens": 8, "messages": ASK, "stream": stream}
    with pytest.raises(anthropic.NotFoundError, match="no model 'gpt-9'") as missing:
        client.messages.create(model="gpt-9", **ask)
    assert missing.value.body["error"]["type"] == "not_found_error"
    assert missing.value.request_id == missing.value.body["request_id"]
    models["full"] = FailingModel(CapacityError("9000 tokens, the context is 8192"))
    with pytest.raises(anthropic.BadRequestError, match="9000 tokens"):
        client.messages.create(model="full", **ask)
    models["busy"] = FailingModel(BusyError("4 requests wait"))
    with pytest.raises(anthropic.RateLimitError) as busy:
        client.messages.create(model="busy", **ask)
    assert busy.value.response.headers["retry-after"] == "1"
    assert busy.value.body["error"]["type"] == "rate_limit_error"


def test_every_error_has_the_same_form(http: httpx.Client, models: dict[str, FakeModel]) -> None:
    def error(answer: httpx.Response) -> tuple[int, str]:
        found = answer.json()
        assert (found["type"], found["request_id"]) == ("error", answer.headers["request-id"])
        assert set(found) == {"type", "error", "request_id"}
        return answer.status_code, found["error"]["type"]

    models["broken"] = FailingModel(RuntimeError("a secret"), after=1)
    assert error(http.get(PATH)) == (405, "invalid_request_error")
    assert error(http.get(f"{PATH}/batches")) == (404, "not_found_error")
    assert error(http.post(PATH, content=b"{")) == (415, "invalid_request_error")
    headers = {"content-type": "application/json"}
    assert error(http.post(PATH, content=b"{", headers=headers)) == (400, "invalid_request_error")
    assert error(http.post(PATH, content=b" " * 9_000_000, headers=headers)) == (413, "request_too_large")
    whole = {"model": "broken", "max_tokens": 8, "messages": ASK}
    assert error(http.post(PATH, json=whole)) == (500, "api_error")
    late = events(http, model="broken")[-1]
    assert (late["type"], late["error"]["type"]) == ("error", "api_error")
    assert "secret" not in late["error"]["message"]


def test_keys_in_either_header() -> None:
    body = {"model": "echo", "max_tokens": 8, "messages": ASK}
    with BackgroundServer(make_app({"echo": FakeModel(echo)}, api_keys=["sesame"])) as server:

        def ask(**headers: str) -> httpx.Response:
            return httpx.post(f"{server.url}{PATH}", json=body, headers=headers, trust_env=False)

        assert ask(**{"x-api-key": "sesame"}).status_code == 200
        assert ask(authorization="Bearer sesame").status_code == 200
        for wrong in ({}, {"x-api-key": "open"}, {"authorization": "Bearer open", "x-api-key": "sesame"}):
            answer = ask(**wrong)
            assert (answer.status_code, answer.json()["error"]["type"]) == (401, "authentication_error")
        chat = httpx.post(f"{server.url}/v1/chat/completions", json={}, headers={"x-api-key": "x"}, trust_env=False)
        assert chat.json()["error"]["code"] == "invalid_api_key", "other routes keep their own form"
        with (
            anthropic.Anthropic(base_url=server.url, api_key="open", max_retries=0) as client,
            pytest.raises(anthropic.AuthenticationError),
        ):
            client.messages.create(model="echo", max_tokens=8, messages=ASK)


# ---- what is refused ------------------------------------------------------------------------------------------------


def said(*blocks: Any, role: str = "user") -> list[Any]:
    return [*ASK, {"role": role, "content": list(blocks)}, *ASK]


USE = {"type": "tool_use", "id": "a", "name": "look", "input": {}}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", None), ("max_tokens", 0), ("messages", []), ("container", "c"), ("mcp_servers", [{}]),
        ("service_tier", "priority"), ("context_management", {}), ("no_such", 1), ("temperature", 3.0),
        ("stop_sequences", ["", "x"]), ("metadata.label", {"label": "x"}),
        ("cache_control.ttl", EPHEMERAL | {"ttl": "1h"}),
        ("cache_control.type", {"type": "forever"}), ("thinking.type", {"type": "enabled", "budget_tokens": 1024}),
        ("thinking.type", {"type": "disabled"}), ("thinking.display", {"type": "adaptive", "display": "omitted"}),
        ("output_config.effort", {"effort": "low"}), ("output_config.format.type", {"format": {"type": "xml"}}),
        ("output_config.format.schema", {"format": {"type": "json_schema"}}), ("tool_choice", {"type": "any"}),
        ("tool_choice.type", {"type": "some"}), ("tool_choice.name", {"type": "auto", "name": "x"}),
        ("tools.0.type", [{"type": "web_search_20250305", "name": "web_search"}]), ("tools.0", [5]),
        ("tools.0.strict", [TOOL | {"strict": True}]), ("tools.0.input_schema", [{"name": "look"}]),
        ("tools.0.input_examples", [TOOL | {"input_examples": [{}]}]), ("system.0.type", [{"type": "image"}]),
        ("messages.0", ["hi"]), ("messages.0.role", [{"role": "tool", "content": "x"}]),
        ("messages.1.role", [*ASK, {"role": "assistant", "content": "It costs"}]),
        ("messages.1.content.0.type", said({"type": "image", "source": {}})),
        ("messages.1.content.0.type", said({"type": "document", "source": {}})),
        ("messages.1.content.0.citations", said({"type": "text", "text": "x", "citations": [{}]})),
        ("messages.1.content.0.text", said({"type": "text", "text": 5})),
        ("messages.1.content.0.tool_use_id", said({"type": "tool_result", "tool_use_id": "b", "content": "x"})),
        ("messages.1.content.0.type", said({"type": "redacted_thinking", "data": "x"}, role="assistant")),
        ("messages.1.content.0.signature",
         said({"type": "thinking", "thinking": "x", "signature": "y"}, role="assistant")),
        ("messages.1.content.0.input", said(USE | {"input": "{}"}, role="assistant")),
        ("messages.1.content.1.type", said(USE, {"type": "text", "text": "x"}, role="assistant")),
        ("messages.2.content.0.content.0.type", [
            *said(USE, role="assistant")[:2],
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": [{"type": "image"}]}]},
        ]),
    ],
)  # fmt: skip
def test_what_is_not_offered_is_refused_by_name(http: httpx.Client, field: str, value: Any) -> None:
    error = post(http, 400, **{field.partition(".")[0]: value})["error"]
    assert error["type"] == "invalid_request_error"
    assert field in error["message"] or (field == "stop_sequences" and "stop" in error["message"]), error


def test_one_call_at_most_needs_a_forced_call(http: httpx.Client) -> None:
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    assert "disable_parallel_tool_use" in post(http, 400, tools=[TOOL], tool_choice=choice)["error"]["message"]
    assert post(http, tool_choice=choice)["content"], "without tools it asks for nothing"


def test_a_model_that_shows_no_tokens_counts_none(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError, match="does not show its tokens"):
        client.messages.count_tokens(model="echo", messages=ASK)
