"""The official client against our server, over a real socket."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from http_models import PATIENCE_SECONDS, STEPS, MeetingModel, PiecesModel, require_or_skip

from riverrun.base.fakes import FakeModel
from riverrun.base.protocols import Completion, Request
from riverrun.base.types import Message, SamplingParams, ToolCall, Usage
from riverrun.serve.client import RemoteModel
from riverrun.serve.http.server import BackgroundServer

openai = require_or_skip("openai", "openai")

TOOL = {
    "type": "function",
    "function": {
        "name": "query_database",
        "description": "Run SQL",
        "parameters": {"type": "object", "properties": {"sql": {"type": "string"}}, "required": ["sql"]},
    },
}
CALLS = (ToolCall("query_database", {"sql": "SELECT '中'"}, "call_a"), ToolCall("search_policies", {"query": "x"}))
ASK = [{"role": "user", "content": "hello there"}]


@pytest.fixture(scope="module")
def client(server: BackgroundServer) -> Iterator[openai.OpenAI]:
    address = f"{server.url}/v1"
    with openai.OpenAI(base_url=address, api_key="any", timeout=PATIENCE_SECONDS, max_retries=0) as client:
        yield client


def test_chat(client: openai.OpenAI, models: dict[str, FakeModel]) -> None:
    answer = client.chat.completions.create(
        model="echo",
        messages=[{"role": "developer", "content": "be kind"}, *ASK],
        max_completion_tokens=17,
        temperature=0.5,
        top_p=0.9,
        stop=["\n", "END"],
        seed=-3,
        user="label",
        extra_body={"top_k": 40},
    )
    choice = answer.choices[0]
    assert (choice.message.content, choice.message.role, choice.finish_reason) == ("hello there", "assistant", "stop")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 0
    assert answer.id.startswith("chatcmpl-")
    asked = models["echo"].requests[-1]
    assert asked.params == SamplingParams(17, 0.5, 0.9, 40, ("\n", "END"), -3)
    assert asked.messages == (Message.of("system", "be kind"), Message.of("user", "hello there"))


def test_defaults_are_those_of_sampling_params(client: openai.OpenAI, models: dict[str, FakeModel]) -> None:
    client.chat.completions.create(model="echo", messages=ASK)
    assert models["echo"].requests[-1].params == SamplingParams()


def test_streaming(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(model="echo", messages=ASK, stream=True, stream_options={"include_usage": True})
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "hello there"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 2
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1


def test_usage_is_sent_only_when_asked_for(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(model="echo", messages=ASK, stream=True))
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


def test_tool_calls_and_their_results(client: openai.OpenAI, models: dict[str, FakeModel]) -> None:
    models["tools"] = FakeModel([CALLS, "it costs 12.5"])
    answer = client.chat.completions.create(model="tools", messages=ASK, tools=[TOOL], tool_choice="auto")
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    first, second = choice.message.tool_calls
    assert (first.id, first.type, first.function.name) == ("call_a", "function", "query_database")
    assert json.loads(first.function.arguments) == {"sql": "SELECT '中'"}
    assert second.id
    [tool] = models["tools"].requests[-1].tools
    assert tool.to_openai() == TOOL
    results = [{"role": "tool", "tool_call_id": call.id, "content": "12.5"} for call in (first, second)]
    following = [*ASK, choice.message.model_dump(exclude_none=True), *results]
    assert (
        client.chat.completions.create(model="tools", messages=following).choices[0].message.content == "it costs 12.5"
    )
    asked = models["tools"].requests[-1].messages
    assert [m.role for m in asked] == ["user", "assistant", "tool", "tool"]
    assert asked[1].tool_calls[0].arguments == {"sql": "SELECT '中'"}
    assert asked[2].tool_call_id == "call_a"


def test_streamed_tool_calls_are_gathered(client: openai.OpenAI, models: dict[str, FakeModel]) -> None:
    models["calls"] = PiecesModel(["Let me look. "], calls=CALLS)
    gathered: dict[int, list[str]] = {}
    text, reason = "", None
    for chunk in client.chat.completions.create(model="calls", messages=ASK, tools=[TOOL], stream=True):
        [choice] = chunk.choices
        text += choice.delta.content or ""
        reason = choice.finish_reason or reason
        for call in choice.delta.tool_calls or ():
            entry = gathered.setdefault(call.index, ["", "", ""])
            for place, part in enumerate((call.id, call.function.name, call.function.arguments)):
                entry[place] += part or ""
    assert (text, reason) == ("Let me look. ", "tool_calls")
    assert [(name, json.loads(arguments)) for _, name, arguments in gathered.values()] == [
        (call.name, call.arguments) for call in CALLS
    ]
    assert gathered[0][0] == "call_a"
    assert gathered[1][0].startswith("call_")


def test_tool_choice_none_hides_the_tools(client: openai.OpenAI, models: dict[str, FakeModel]) -> None:
    client.chat.completions.create(model="echo", messages=ASK, tools=[TOOL], tool_choice="none")
    assert models["echo"].requests[-1].tools == ()


def test_steps_of_an_agent(client: openai.OpenAI, models: dict[str, FakeModel]) -> None:
    models["agent"] = PiecesModel(["12.5 dollars"], steps=STEPS)
    whole = client.chat.completions.create(model="agent", messages=ASK).choices[0]
    assert whole.model_extra["steps"] == list(STEPS)
    chunks = list(client.chat.completions.create(model="agent", messages=ASK, stream=True))
    extras = [c.choices[0].model_extra.get("step") for c in chunks]
    assert [step for step in extras if step] == list(STEPS)
    plain = client.chat.completions.create(model="echo", messages=ASK).choices[0]
    assert "steps" not in plain.model_extra


def test_completions(client: openai.OpenAI, models: dict[str, FakeModel]) -> None:
    answer = client.completions.create(model="echo", prompt=["one", "two words"], max_tokens=3)
    assert [(c.index, c.text, c.finish_reason) for c in answer.choices] == [
        (0, "one", "stop"),
        (1, "two words", "stop"),
    ]
    assert answer.usage.completion_tokens == 3
    assert models["echo"].requests[-1].prompt == "two words"
    chunks = list(
        client.completions.create(model="echo", prompt="a b c", stream=True, stream_options={"include_usage": True})
    )
    assert "".join(c.choices[0].text for c in chunks if c.choices) == "a b c"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage.completion_tokens == 3


def test_models_carry_their_identity(client: openai.OpenAI, models: dict[str, FakeModel]) -> None:
    models["org/name"] = FakeModel(name="org/name", context_length=77)
    cards = {card.id: card for card in client.models.list()}
    assert set(cards) == set(models)
    one = client.models.retrieve("org/name")
    assert one.model_extra["context_length"] == cards["org/name"].model_extra["context_length"] == 77
    assert one.model_extra["digest"] == models["org/name"].info.digest
    assert one.model_extra["modalities"] == ["text"]


def test_cached_and_thought_tokens_are_told(client: openai.OpenAI, models: dict[str, FakeModel]) -> None:
    models["cached"] = PiecesModel(usage=Usage(10, 2, 8, 1))
    usage = client.chat.completions.create(model="cached", messages=ASK, n=2).usage
    assert (usage.prompt_tokens, usage.prompt_tokens_details.cached_tokens) == (10, 8)
    assert (usage.completion_tokens, usage.completion_tokens_details.reasoning_tokens) == (4, 2)
    with RemoteModel(str(client.base_url), "cached") as remote:
        [done] = remote.generate([Request((Message.of("user", "x"),))])
        assert done.usage == list(remote.stream(Request((Message.of("user", "x"),))))[-1].usage == Usage(10, 2, 8, 1)


@pytest.mark.parametrize("stream", [False, True])
def test_errors_arrive_as_the_clients_classes(client: openai.OpenAI, stream: bool) -> None:
    with pytest.raises(openai.NotFoundError, match=r"no model 'gpt-9'.*echo"):
        client.chat.completions.create(model="gpt-9", messages=ASK, stream=stream)
    with pytest.raises(openai.BadRequestError, match="'store' = true") as caught:
        client.chat.completions.create(model="echo", messages=ASK, store=True, stream=stream)
    assert (caught.value.param, caught.value.code) == ("store", "unsupported")


def test_32_streams_and_32_answers_at_once(
    client: openai.OpenAI, models: dict[str, FakeModel], http: httpx.Client
) -> None:
    models["meeting"] = MeetingModel(32)

    def stream(index: int) -> str:
        chunks = client.chat.completions.create(
            model="meeting", messages=[{"role": "user", "content": f"say {index}"}], stream=True
        )
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    def whole(index: int) -> str | None:
        asked = [{"role": "user", "content": f"say {index}"}]
        return client.chat.completions.create(model="meeting", messages=asked).choices[0].message.content

    models["meeting"].script = lambda request: request.messages[0].text
    for ask in (stream, whole):
        with ThreadPoolExecutor(32) as pool:
            waiting = [pool.submit(ask, index) for index in range(31)]
            assert http.get("/health").json()["status"] == "ok"  # 31 models are busy, the server still answers
            last = pool.submit(ask, 31)
            assert [task.result() for task in [*waiting, last]] == [f"say {index}" for index in range(32)]


def test_a_batch_is_handed_over_whole(client: openai.OpenAI, models: dict[str, FakeModel]) -> None:
    sizes: list[int] = []

    class Counting(FakeModel):
        def generate(self, requests: list[Request]) -> list[Completion]:  # type: ignore[override]
            sizes.append(len(requests))
            return super().generate(requests)

    models["counting"] = Counting()
    client.completions.create(model="counting", prompt=["a", "b", "c"])
    assert sizes == [3]
