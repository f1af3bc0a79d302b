"""The Responses API: OpenAI's own client against our server, its events, what is kept and for whom, what is refused."""

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

from riverrun.base.errors import CapacityError
from riverrun.base.fakes import FakeModel
from riverrun.base.types import Guide, Message, SamplingParams, ToolCall
from riverrun.serve.http.app import make_app
from riverrun.serve.http.responses_store import ResponseStore
from riverrun.serve.http.server import BackgroundServer
from riverrun.serve.http.sse import EventParser

openai = require_or_skip("openai", "openai")

PATH = "/v1/responses"
TOOL = {
    "type": "function",
    "name": "look",
    "description": "Look something up",
    "parameters": {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]},
    "strict": None,
}
CALL = '<tool_call>\n{"name": "look", "arguments": {"q": "中"}}\n</tool_call>'


@pytest.fixture(scope="module")
def client(server: BackgroundServer) -> Iterator[openai.OpenAI]:
    address = f"{server.url}/v1"
    with openai.OpenAI(base_url=address, api_key="any", timeout=PATIENCE_SECONDS, max_retries=0) as client:
        yield client


def post(http: httpx.Client, status: int = 200, /, **body: Any) -> dict[str, Any]:
    answer = http.post(PATH, json={"model": "echo", "input": "hi", **body})
    assert answer.status_code == status, answer.text
    found: dict[str, Any] = answer.json()
    return found


def events(http: httpx.Client, **body: Any) -> list[dict[str, Any]]:
    """All events of a stream; each has its own type as its name."""
    answer = http.post(PATH, json={"model": "echo", "input": "hi", "stream": True, **body})
    assert answer.status_code == 200, answer.text
    names = [line[7:] for line in answer.text.split("\n") if line.startswith("event: ")]
    found = [json.loads(data) for data in EventParser().feed(answer.content)]
    assert names == [event["type"] for event in found]
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


def plain(value: Any) -> Any:
    """Without ids and times, which differ from answer to answer."""
    if isinstance(value, dict):
        dropped = ("id", "item_id", "call_id", "created_at", "completed_at")
        return {key: plain(each) for key, each in value.items() if key not in dropped}
    return [plain(each) for each in value] if isinstance(value, list) else value


def test_a_text(client: openai.OpenAI, models: dict[str, FakeModel]) -> None:
    answer = client.responses.create(
        model="echo",
        input="hello there",
        instructions="be kind",
        max_output_tokens=17,
        temperature=0.5,
        top_p=0.9,
        metadata={"shop": "books"},
        user="label",
    )
    assert (answer.output_text, answer.status, answer.error) == ("hello there", "completed", None)
    assert (answer.metadata, answer.instructions, answer.truncation) == ({"shop": "books"}, "be kind", "disabled")
    assert (answer.max_output_tokens, answer.temperature, answer.user) == (17, 0.5, "label")
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens > 0
    asked = models["echo"].requests[-1]
    assert asked.params == SamplingParams(17, 0.5, 0.9)
    assert asked.messages == (Message.of("system", "be kind"), Message.of("user", "hello there"))


def test_calls_and_their_outputs(client: openai.OpenAI, models: dict[str, FakeModel]) -> None:
    models["tools"] = RawModel(["<think>\nhm\n</think>\nLet me see. ", CALL])
    asked: list[Any] = [{"role": "user", "content": "hello"}]
    answer = client.responses.create(model="tools", input=asked, tools=[TOOL])
    assert [item.type for item in answer.output] == ["reasoning", "message", "function_call"]
    thought, text, call = answer.output
    assert (thought.content[0].text, text.content[0].text) == ("hm", "Let me see.")
    assert (call.name, json.loads(call.arguments)) == ("look", {"q": "中"})
    assert answer.usage.input_tokens_details.cached_tokens == 4
    assert answer.usage.output_tokens_details.reasoning_tokens == 2
    [tool] = models["tools"].requests[-1].tools
    assert tool.to_openai()["function"] == {key: TOOL[key] for key in ("name", "description", "parameters")}
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "12.5"}
    said = Message.of(
        "assistant", "Let me see.", tool_calls=(ToolCall("look", {"q": "中"}, call.call_id),), reasoning="hm"
    )
    expected = (Message.of("user", "hello"), said, Message.of("tool", "12.5", tool_call_id=call.call_id))
    whole = [*asked, *(item.model_dump() for item in answer.output), result]
    client.responses.create(model="tools", input=whole)
    assert models["tools"].requests[-1].messages == expected
    client.responses.create(model="tools", previous_response_id=answer.id, input=[result])
    assert models["tools"].requests[-1].messages == expected


@pytest.mark.parametrize(
    ("choice", "tools", "forced"),
    [
        ("auto", 1, ()),
        ("none", 0, ()),
        ("required", 1, ("look",)),
        ({"type": "function", "name": "look"}, 1, ("look",)),
    ],
)
def test_tool_choice(http: httpx.Client, models: dict[str, FakeModel], choice: Any, tools: int, forced: Any) -> None:
    model = models["raw"] = RawModel(["x"])
    strict = TOOL | {"strict": bool(forced)}
    post(http, model="raw", tools=[strict], tool_choice=choice, parallel_tool_calls=choice == "auto")
    asked = model.requests[-1]
    assert (len(asked.tools), asked.forced_tools, asked.parallel_tool_calls) == (tools, forced, choice == "auto")


def test_formats(client: openai.OpenAI, models: dict[str, FakeModel]) -> None:
    from pydantic import BaseModel

    class Price(BaseModel):
        pounds: float

    model = models["price"] = FakeModel(['{"pounds": 12.5}'])
    assert client.responses.parse(model="price", input="x", text_format=Price).output_parsed == Price(pounds=12.5)
    guide = model.requests[-1].params.guide
    assert guide is not None
    assert json.loads(guide.value)["required"] == ["pounds"]
    client.responses.create(model="price", input="x", text={"format": {"type": "json_object"}})
    assert model.requests[-1].params.guide == Guide("json_schema", '{"type": "object"}')
    client.responses.create(model="price", input="x", text={"format": {"type": "text"}})
    assert model.requests[-1].params.guide is None


def test_a_stream_with_the_official_client(client: openai.OpenAI, models: dict[str, FakeModel]) -> None:
    models["tools"] = RawModel(["<think>\nh", "m\n</think>\nLet me", " see. ", CALL])
    with client.responses.stream(model="tools", input="x", tools=[TOOL]) as stream:
        types = [event.type for event in stream]
        final = stream.get_final_response()
    assert final.output_text == "Let me see."
    assert [item.type for item in final.output] == ["reasoning", "message", "function_call"]
    head, item = ["response.created", "response.in_progress"], "response.output_item"
    part = "response.content_part"
    assert [name for n, name in enumerate(types) if not n or types[n - 1] != name] == [
        *head, f"{item}.added", f"{part}.added", "response.reasoning_text.delta", "response.reasoning_text.done",
        f"{part}.done", f"{item}.done", f"{item}.added", f"{part}.added", "response.output_text.delta",
        "response.output_text.done", f"{part}.done", f"{item}.done", f"{item}.added",
        "response.function_call_arguments.delta", "response.function_call_arguments.done", f"{item}.done",
        "response.completed",
    ]  # fmt: skip
    assert client.responses.retrieve(final.id).output_text == "Let me see."


@settings(derandomize=True, max_examples=60, deadline=None)
@given(RAW_TEXTS, st.lists(st.integers(0, 400), max_size=6), st.sampled_from(["stop", "length", "abort"]))
def test_streaming_equals_the_whole_answer(
    http: httpx.Client, models: dict[str, FakeModel], text: str, places: list[int], reason: Any
) -> None:
    models["split"] = RawModel(cut(text, places), reason=reason)
    whole = post(http, model="split", tools=[TOOL])
    found = events(http, model="split", tools=[TOOL])
    assert plain(found[-1]["response"]) == plain(whole)
    output = found[-1]["response"]["output"]
    built: dict[int, dict[str, Any]] = {}
    for event in found:
        kind = event["type"].removeprefix("response.")
        if kind == "output_item.added":
            assert event["output_index"] == len(built)
            built[len(built)] = {"id": event["item"]["id"], "text": ""}
        elif kind.endswith(".delta"):
            built[event["output_index"]]["text"] += event["delta"]
        elif kind == "output_item.done":
            assert event["item"] == output[event["output_index"]]
    for place, item in enumerate(output):
        said = item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"]
        assert built[place] == {"id": item["id"], "text": said}
    statuses = {"stop": "completed", "tool_calls": "completed", "length": "incomplete", "abort": "cancelled"}
    called = any(item["type"] == "function_call" for item in output)
    assert whole["status"] == statuses["tool_calls" if called else reason]


def test_an_answer_that_is_cut_off_says_so(http: httpx.Client, models: dict[str, FakeModel]) -> None:
    models["cut"] = RawModel(["half an ans"], reason="length")
    answer = post(http, model="cut")
    assert (answer["status"], answer["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert answer["output"][0]["status"] == "incomplete"
    assert events(http, model="cut")[-1]["type"] == "response.incomplete"


def test_failures(http: httpx.Client, models: dict[str, FakeModel]) -> None:
    models["late"] = FailingModel(RuntimeError("a secret"), after=2)
    last = events(http, model="late")[-1]
    assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
    assert last["response"]["error"]["code"] == "server_error"
    assert "secret" not in last["response"]["error"]["message"]
    assert http.get(f"{PATH}/{last['response']['id']}").status_code == 404
    models["full"] = FailingModel(CapacityError("9000 tokens, the context is 8192"))
    assert post(http, 400, model="full", stream=True)["error"]["code"] == "context_length_exceeded"


def test_steps_of_an_agent(http: httpx.Client, models: dict[str, FakeModel]) -> None:
    models["agent"] = PiecesModel(["12.5 dollars"], steps=STEPS)
    assert post(http, model="agent")["steps"] == list(STEPS)
    assert events(http, model="agent")[-1]["response"]["steps"] == list(STEPS)


# ---- what is kept ---------------------------------------------------------------------------------------------------


def test_a_kept_response_is_found_gone_on_and_deleted(client: openai.OpenAI, models: dict[str, FakeModel]) -> None:
    first = client.responses.create(model="echo", input="one", instructions="only here")
    second = client.responses.create(model="echo", input="two", previous_response_id=first.id)
    assert models["echo"].requests[-1].messages == (
        Message.of("user", "one"), Message.of("assistant", "one"), Message.of("user", "two"),
    )  # fmt: skip
    assert (second.previous_response_id, client.responses.retrieve(second.id)) == (first.id, second)
    texts = [item.content[0].text for item in client.responses.input_items.list(second.id, order="asc")]
    assert texts == ["one", "one", "two"]
    pages = client.responses.input_items.list(second.id, limit=2)
    assert [item.content[0].text for item in pages.data] == ["two", "one"]
    assert pages.has_more
    assert [item.content[0].text for item in pages.get_next_page().data] == ["one"]
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError, match="there is no response"):
        client.responses.retrieve(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.delete(first.id)
    with pytest.raises(openai.BadRequestError, match="send the whole conversation") as caught:
        client.responses.create(model="echo", input="x", previous_response_id=first.id)
    assert caught.value.param == "previous_response_id"
    client.responses.create(model="echo", input="three", previous_response_id=second.id)
    assert len(models["echo"].requests[-1].messages) == 5, "a conversation outlives its earlier responses"
    unkept = client.responses.create(model="echo", input="x", store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(unkept.id)


def test_a_key_never_sees_the_response_of_another() -> None:
    with BackgroundServer(make_app({"echo": FakeModel(echo)}, api_keys=["one", "two"])) as server:
        one, two = (
            openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=PATIENCE_SECONDS)
            for key in ("one", "two")
        )
        kept = one.responses.create(model="echo", input="a secret")
        for ask in (two.responses.retrieve, two.responses.delete, two.responses.input_items.list):
            with pytest.raises(openai.NotFoundError):
                ask(kept.id)
        with pytest.raises(openai.BadRequestError, match="there is no response"):
            two.responses.create(model="echo", input="x", previous_response_id=kept.id)
        assert one.responses.retrieve(kept.id).output_text == "a secret"
        assert httpx.get(f"{server.url}{PATH}/{kept.id}", trust_env=False).status_code == 401


def test_the_store_is_bounded_in_number_size_and_age() -> None:
    now = [0.0]
    store = ResponseStore(most=3, most_bytes=2000, ttl_seconds=10, clock=lambda: now[0])

    def keep(name: str, key: str = "a", words: int = 1, before: str = "") -> None:
        found = store.get(key, before) if before else None
        store.keep(key, {"id": name, "output": [{"text": "x" * words}]}, [{"type": "message"}], found)

    def here(key: str = "a") -> list[str]:
        return [name for name in "pqrstuvw" if store.get(key, name)]

    for name in "pqrs":
        keep(name)
        now[0] += 1
    keep("v", key="b")
    assert (here(), here("b")) == (["q", "r", "s"], ["v"]), "one key takes no room of another"
    now[0] = 11.5
    assert here() == ["r", "s"]
    assert store.delete("a", "q") is False
    keep("t", words=1500)
    keep("u", words=1200)
    assert here() == ["u"]
    keep("w", before="u", words=500)
    assert here() == ["w"], "a conversation counts with all its bytes"
    now[0] = 100
    keep("p", key="c")
    assert (here(), here("b"), here("c")) == ([], [], ["p"])


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("background", True), ("conversation", "conv_1"), ("include", ["message.output_text.logprobs"]),
        ("truncation", "auto"), ("reasoning", {"effort": "low"}), ("prompt", {"id": "p"}), ("max_tool_calls", 1),
        ("top_logprobs", 2), ("service_tier", "flex"), ("stream_options", {"include_obfuscation": True}),
        ("prompt_cache_key", "k"), ("safety_identifier", "s"), ("seed", 1), ("no_such", 1), ("input", []),
        ("input", 5), ("max_output_tokens", 0), ("temperature", 3.0), ("tool_choice", "any"),
        ("tool_choice", "required"), ("tool_choice.type", {"type": "web_search"}), ("metadata.k", {"k": 1}),
        ("metadata", {str(n): "" for n in range(17)}), ("metadata.k", {"k": "x" * 513}),
        ("tools.0.type", [{"type": "web_search"}]), ("tools.0", ["look"]), ("tools.0.name", [{"type": "function"}]),
        ("tools.0.strict", [TOOL | {"strict": True}]), ("tools.0.output_schema", [TOOL | {"output_schema": {"a": 1}}]),
        ("text.verbosity", {"verbosity": "low"}),
        ("text.format.schema", {"format": {"type": "json_schema", "name": "n"}}),
        ("text.format.strict", {"format": {"type": "json_schema", "name": "n", "schema": {}, "strict": False}}),
        ("text.format.name", {"format": {"type": "json_schema", "name": "a b", "schema": {}}}),
        ("text.format.description", {"format": {"type": "json_schema", "description": "b", "schema": {}}}),
        ("input.0", ["hi"]), ("input.0.type", [{"type": "item_reference", "id": "x"}]),
        ("input.0.role", [{"role": "tool", "content": "x"}]),
        ("input.0.content.0.type", [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]),
        ("input.0.content.0.text", [{"role": "user", "content": [{"type": "input_text", "text": 5}]}]),
        ("input.0.encrypted_content", [{"type": "reasoning", "summary": [], "encrypted_content": "x"}]),
        ("input.0.summary", [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "x"}]}]),
        ("input.0.arguments", [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "[1]"}]),
        ("input.0.call_id", [{"type": "function_call_output", "call_id": "c", "output": "x"}]),
    ],
)  # fmt: skip
def test_what_is_not_offered_is_refused_by_name(http: httpx.Client, field: str, value: Any) -> None:
    error = post(http, 400, **{field.partition(".")[0]: value})["error"]
    assert error["param"] in (field, None), error
    assert field.rpartition(".")[2] in error["message"], error


def test_parallel_calls_are_the_models_own_choice(http: httpx.Client) -> None:
    error = post(http, 400, tools=[TOOL], parallel_tool_calls=False)["error"]
    assert error["param"] == "parallel_tool_calls"


@pytest.mark.parametrize(
    "query", ["include=x", "stream=true", "starting_after=1", "limit=0", "limit=1e", "limit=010000", "order=up"]
)
def test_parameters_of_a_path_are_refused_by_name(http: httpx.Client, query: str) -> None:
    kept = post(http)["id"]
    path = f"{PATH}/{kept}" + ("/input_items" if query[0] in "lo" else "")
    answer = http.get(f"{path}?{query}")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, query.partition("=")[0])
