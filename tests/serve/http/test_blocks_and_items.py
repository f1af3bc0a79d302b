"""The Responses and the Messages API on a tiny model: each field has its effect, and both are guarded as chat is."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest

from riverrun.serve.http.app import make_app
from riverrun.serve.http.messages_body import CountBody, MessagesBody
from riverrun.serve.http.responses_body import ResponsesBody
from riverrun.serve.http.server import BackgroundServer
from riverrun.serve.llm import LLM
from riverrun.web.keys import KeyRing, KeySettings
from tests.tiny_model import write_tiny

TEXT = "How much is the book about salt?"
SCHEMA = {"type": "object", "properties": {"q": {"enum": ["a", "b"]}}, "required": ["q"], "additionalProperties": False}
ITEM_TOOL = {"type": "function", "name": "look", "parameters": SCHEMA}
BLOCK_TOOL = {"name": "look", "input_schema": SCHEMA}
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
Ask = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[LLM]:
    with LLM(folder, dtype="float32", slots=4, name="tiny") as opened:
        yield opened


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("log") / "requests.jsonl"


@pytest.fixture(scope="module")
def http(model: LLM, log: Path) -> Iterator[httpx.Client]:
    app = make_app({"tiny": model}, log=log)
    with BackgroundServer(app) as server, httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client:
        yield client


def respond(http: httpx.Client, /, **body: Any) -> dict[str, Any]:
    body = {"model": "tiny", "input": TEXT, "max_output_tokens": 12, **body}
    answer: dict[str, Any] = http.post(RESPONSES, json=body).json()
    return answer


def message(http: httpx.Client, /, path: str = MESSAGES, **body: Any) -> dict[str, Any]:
    own = {"max_tokens": 12} if path == MESSAGES else {}
    body = {"model": "tiny", "messages": [{"role": "user", "content": TEXT}], **own, **body}
    answer: dict[str, Any] = http.post(path, json=body).json()
    return answer


def text(answer: dict[str, Any]) -> str:
    """The text of a response or a message."""
    parts = [part for item in answer["output"] for part in item["content"]] if "output" in answer else answer["content"]
    return "".join(part["text"] for part in parts)


# ---- Responses ------------------------------------------------------------------------------------------------------

CHECKED: dict[str, Callable[[httpx.Client], None]] = {}


def checks(*names: str) -> Callable[[Callable[[httpx.Client], None]], Callable[[httpx.Client], None]]:
    def note(test: Callable[[httpx.Client], None]) -> Callable[[httpx.Client], None]:
        CHECKED.update(dict.fromkeys(names, test))
        return test

    return note


@checks("Responses.model", "Responses.input", "Responses.instructions")
def _input(http: httpx.Client) -> None:
    assert respond(http)["model"] == "tiny"
    assert respond(http, model="other")["error"]["code"] == "model_not_found"
    items = [{"role": "user", "content": [{"type": "input_text", "text": TEXT}]}]
    assert text(respond(http, input=items)) == text(respond(http))
    system = [{"role": "developer", "content": "You sell maps."}, *items]
    assert (
        text(respond(http, input=system)) == text(respond(http, instructions="You sell maps.")) != text(respond(http))
    )


@checks("Responses.previous_response_id", "Responses.store")
def _previous(http: httpx.Client) -> None:
    first = respond(http)
    second = respond(http, input="And in green?", previous_response_id=first["id"])
    assert second["usage"]["input_tokens_details"]["cached_tokens"] > 16
    whole = [{"role": "user", "content": TEXT}, *first["output"], {"role": "user", "content": "And in green?"}]
    assert text(respond(http, input=whole)) == text(second)
    unkept = respond(http, store=False)["id"]
    assert respond(http, previous_response_id=unkept)["error"]["code"] == "previous_response_not_found"


@checks("Responses.metadata", "Responses.user")
def _labels(http: httpx.Client) -> None:
    answer = respond(http, metadata={"a": "b"}, user="someone")
    assert (answer["metadata"], answer["user"], text(answer)) == ({"a": "b"}, "someone", text(respond(http)))


@checks("Responses.tools", "Responses.tool_choice", "Responses.parallel_tool_calls")
def _item_tools(http: httpx.Client) -> None:
    pytest.importorskip("llguidance", reason="not run here: llguidance is not installed")
    counts = [respond(http, tools=[ITEM_TOOL], tool_choice=c)["usage"]["input_tokens"] for c in ("auto", "none")]
    assert counts[0] > counts[1] == respond(http)["usage"]["input_tokens"]
    for choice in ("required", {"type": "function", "name": "look"}):
        rest = {"tool_choice": choice, "parallel_tool_calls": False, "max_output_tokens": 100}
        answer = respond(http, tools=[ITEM_TOOL | {"strict": True}], **rest)
        [call] = answer["output"]
        assert (call["type"], call["name"], answer["status"]) == ("function_call", "look", "completed")
        assert json.loads(call["arguments"])["q"] in ("a", "b")


@checks("Responses.text")
def _format(http: httpx.Client) -> None:
    pytest.importorskip("llguidance", reason="not run here: llguidance is not installed")
    form = {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True}
    answer = respond(http, text={"format": form}, max_output_tokens=40)
    assert json.loads(text(answer))["q"] in ("a", "b")
    assert answer["text"]["format"] == form
    assert text(respond(http, text={"format": {"type": "json_object"}}, max_output_tokens=40)).startswith("{")


@checks("Responses.max_output_tokens")
def _most(http: httpx.Client) -> None:
    answer = respond(http, max_output_tokens=3)
    assert (answer["usage"]["output_tokens"], answer["status"]) == (3, "incomplete")
    assert answer["incomplete_details"] == {"reason": "max_output_tokens"}


@checks("Responses.temperature", "Responses.top_p")
def _cuts(http: httpx.Client) -> None:
    greedy = text(respond(http))
    assert len({greedy, *(text(respond(http, temperature=1.5)) for _ in range(3))}) > 1
    assert text(respond(http, temperature=1.5, top_p=1e-6)) == greedy


@checks("Responses.stream")
def _stream(http: httpx.Client) -> None:
    found = events(http, RESPONSES, input=TEXT, max_output_tokens=12)
    assert found[-1]["response"]["output"][0]["content"] == respond(http)["output"][0]["content"]
    said = "".join(event["delta"] for event in found if event["type"] == "response.output_text.delta")
    assert said == text(respond(http))


# ---- Messages -------------------------------------------------------------------------------------------------------


@checks("Messages.model", "Messages.messages", "Messages.system")
def _messages(http: httpx.Client) -> None:
    assert message(http)["model"] == "tiny"
    assert message(http, model="other")["error"]["type"] == "not_found_error"
    assert text(message(http)) == text(respond(http))
    system = [{"type": "text", "text": "You sell maps."}]
    assert text(message(http, system=system)) == text(message(http, system="You sell maps.")) != text(message(http))


@checks("Messages.max_tokens")
def _most_of_a_message(http: httpx.Client) -> None:
    answer = message(http, max_tokens=3)
    assert (answer["usage"]["output_tokens"], answer["stop_reason"]) == (3, "max_tokens")


@checks("Messages.temperature", "Messages.top_p", "Messages.top_k")
def _cuts_of_a_message(http: httpx.Client) -> None:
    greedy = text(message(http))
    assert len({greedy, *(text(message(http, temperature=1.5)) for _ in range(3))}) > 1
    for given in ({"top_p": 1e-6}, {"top_k": 1}):
        assert text(message(http, temperature=1.5, **given)) == greedy


@checks("Messages.stop_sequences")
def _stops(http: httpx.Client) -> None:
    whole = text(message(http))
    stop = next(each for n, each in enumerate(whole) if n and each.isascii() and each != "\ufffd")
    for stream in (False, True):
        body = {"stop_sequences": ["never", stop], "max_tokens": 12}
        answer = message(http, **body)
        if stream:
            found = events(http, MESSAGES, messages=[{"role": "user", "content": TEXT}], **body)
            assert found[-2]["delta"] == {"stop_reason": "stop_sequence", "stop_sequence": stop}
        assert (answer["stop_reason"], answer["stop_sequence"]) == ("stop_sequence", stop)
        assert text(answer) == whole[: whole.index(stop)]


@checks("Messages.tools", "Messages.tool_choice")
def _block_tools(http: httpx.Client) -> None:
    pytest.importorskip("llguidance", reason="not run here: llguidance is not installed")
    counts = [message(http, tools=[BLOCK_TOOL], tool_choice={"type": c})["usage"] for c in ("auto", "none")]
    offered, hidden = (each["input_tokens"] + each["cache_read_input_tokens"] for each in counts)
    assert offered > hidden
    for choice in ({"type": "any"}, {"type": "tool", "name": "look"}):
        forced = choice | {"disable_parallel_tool_use": True}
        answer = message(http, tools=[BLOCK_TOOL], tool_choice=forced, max_tokens=100)
        [call] = answer["content"]
        assert (call["type"], call["name"], answer["stop_reason"]) == ("tool_use", "look", "tool_use")
        assert call["input"]["q"] in ("a", "b")


@checks("Messages.cache_control")
def _cache(http: httpx.Client) -> None:
    long = [{"role": "user", "content": TEXT * 3}]
    answers = [message(http, messages=long, cache_control={"type": "ephemeral"}) for _ in range(2)]
    usage = answers[1]["usage"]
    assert usage["cache_read_input_tokens"] >= 32
    count = message(http, f"{MESSAGES}/count_tokens", messages=long)["input_tokens"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == count


@checks("Messages.output_config")
def _schema(http: httpx.Client) -> None:
    pytest.importorskip("llguidance", reason="not run here: llguidance is not installed")
    form = {"type": "json_schema", "schema": SCHEMA}
    assert json.loads(text(message(http, output_config={"format": form}, max_tokens=40)))["q"] in ("a", "b")


@checks("Messages.metadata", "Messages.thinking")
def _said_nothing(http: httpx.Client) -> None:
    given = message(http, metadata={"user_id": "x"}, thinking={"type": "adaptive"})
    assert text(given) == text(message(http))


@checks("Messages.stream")
def _stream_of_a_message(http: httpx.Client) -> None:
    found = events(http, MESSAGES, messages=[{"role": "user", "content": TEXT}], max_tokens=12)
    said = "".join(each["delta"]["text"] for each in found if each["type"] == "content_block_delta")
    assert said == text(message(http))


def events(http: httpx.Client, path: str, /, **body: Any) -> list[dict[str, Any]]:
    answer = http.post(path, json={"model": "tiny", "stream": True, **body})
    return [json.loads(line[6:]) for line in answer.text.split("\n") if line.startswith("data: ")]


@pytest.mark.parametrize("field", list(CHECKED))
def test_the_field_has_its_effect(field: str, http: httpx.Client) -> None:
    CHECKED[field](http)


def test_no_field_is_left_out() -> None:
    fields = {f"Responses.{name}" for name in ResponsesBody.model_fields}
    assert fields | {f"Messages.{name}" for name in MessagesBody.model_fields} == set(CHECKED)


def test_tokens_are_counted_as_they_are_used(http: httpx.Client) -> None:
    assert set(CountBody.model_fields) < set(MessagesBody.model_fields)
    for body in ({"system": "You sell maps."}, {"tools": [BLOCK_TOOL]}, {}):
        usage = message(http, **body)["usage"]
        count = message(http, f"{MESSAGES}/count_tokens", **body)
        assert count == {"input_tokens": usage["input_tokens"] + usage["cache_read_input_tokens"]}


# ---- guarded as chat is ---------------------------------------------------------------------------------------------

ENDLESS = {
    RESPONSES: {"model": "tiny", "input": TEXT, "max_output_tokens": 450},
    MESSAGES: {"model": "tiny", "messages": [{"role": "user", "content": TEXT}], "max_tokens": 450},
}


@pytest.mark.parametrize("path", [RESPONSES, MESSAGES])
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_blocks(http: httpx.Client, model: LLM, path: str, stream: bool) -> None:
    if stream:
        with http.stream("POST", path, json=ENDLESS[path] | {"stream": True}) as response:
            assert next(response.iter_bytes())
    else:
        with pytest.raises(httpx.ReadTimeout):
            http.post(path, json=ENDLESS[path], timeout=httpx.Timeout(5, read=0.05))
    for _ in range(3000):
        if model.loop.run(lambda: model.loop.scheduler.is_idle):
            break
        time.sleep(0.01)
    model.loop.run(model.loop.scheduler.check_integrity)
    assert model.loop.run(lambda: model.loop.scheduler.is_idle)


def test_the_request_log_counts_them(http: httpx.Client, log: Path) -> None:
    events(http, RESPONSES, input=TEXT, max_output_tokens=12)
    message(http)
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()][-2:]
    assert [(row["path"], row["stream"], row["completion_tokens"]) for row in rows] == [
        (RESPONSES, True, 12), (MESSAGES, False, 12),
    ]  # fmt: skip
    assert all(row["model"] == "tiny" and row["prompt_tokens"] > 0 and row["seconds"] > 0 for row in rows)
    assert TEXT not in log.read_text(encoding="utf-8")


def test_queues_quotas_and_timeouts(folder: Path) -> None:
    def key(name: str, **quota: int) -> KeySettings:
        return KeySettings(name=name, sha256=sha256(name.encode()).hexdigest(), **quota)

    ring = KeyRing([key("free"), key("little", tokens_per_minute=5)])
    with (
        LLM(folder, dtype="float32", slots=1, waiting=1, name="tiny") as model,
        BackgroundServer(make_app({"tiny": model}, api_keys=ring, timeout_seconds=20)) as server,
    ):

        def ask(path: str, name: str, **more: Any) -> httpx.Response:
            headers = {"authorization": f"Bearer {name}"} if path == RESPONSES else {"x-api-key": name}
            body = {**ENDLESS[path], **more}
            return httpx.post(f"{server.url}{path}", json=body, headers=headers, timeout=60, trust_env=False)

        for path in (RESPONSES, MESSAGES):
            with ThreadPoolExecutor(6) as pool:
                got = list(pool.map(ask, [path] * 6, ["free"] * 6))
            assert {answer.status_code for answer in got} == {200, 429}
            full = next(answer for answer in got if answer.status_code == 429)
            assert (full.json()["error"]["type"], full.headers["retry-after"]) == ("rate_limit_error", "1")
        assert ask(RESPONSES, "little", max_output_tokens=8).status_code == 200
        for path in (MESSAGES, RESPONSES):
            used = ask(path, "little")
            assert (used.status_code, int(used.headers["retry-after"]) > 1) == (429, True)


def test_an_answer_in_time_or_not_at_all(model: LLM) -> None:
    with BackgroundServer(make_app({"tiny": model}, timeout_seconds=0.03)) as server:
        for path in ENDLESS:
            answer = httpx.post(f"{server.url}{path}", json=ENDLESS[path], timeout=60, trust_env=False)
            assert (answer.status_code, answer.json()["error"]["type"]) == (408, "timeout_error")
