"""Streams: equal to the whole answer, aborted when the client leaves, clear when they fail, alive when silent."""

from __future__ import annotations

import gc
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from http_models import PATIENCE_SECONDS, STEPS, FailingModel, GateModel, PiecesModel, PolledModel
from hypothesis import given, settings
from hypothesis import strategies as st

from riverrun.base.errors import CapacityError
from riverrun.base.fakes import FakeModel
from riverrun.base.protocols import Delta, Request
from riverrun.base.types import ToolCall, Usage
from riverrun.serve.http.app import make_app
from riverrun.serve.http.server import BackgroundServer
from riverrun.serve.http.sse import EventParser

CHAT = "/v1/chat/completions"
Way = Callable[[FakeModel], FakeModel]


@pytest.fixture(scope="module", params=["read by a thread", "read by the event loop"])
def way(request: pytest.FixtureRequest) -> Way:
    """How a model's streams are read."""
    return PolledModel if request.param == "read by the event loop" else lambda model: model


def body(model: str, **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "hi"}], **fields}


def events(http: httpx.Client, model: str, **fields: Any) -> list[Any]:
    """All events of a stream, with [DONE] as a text."""
    response = http.post(CHAT, json=body(model, stream=True, **fields))
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    return [json.loads(e) if e != "[DONE]" else e for e in EventParser().feed(response.content)]


call = st.builds(ToolCall, st.sampled_from(["f", "g"]), st.dictionaries(st.text(max_size=3), st.integers(), max_size=2))
# a lone surrogate is no text: no tokenizer gives one
text = st.text(st.characters(codec="utf-8"), max_size=5)


@settings(derandomize=True, max_examples=80, deadline=None)
@given(st.lists(text, max_size=5), st.lists(st.sampled_from(STEPS), max_size=2), st.lists(call, max_size=2))
def test_streaming_equals_the_whole_answer(
    http: httpx.Client,
    models: dict[str, FakeModel],
    way: Way,
    pieces: list[str],
    steps: list[Any],
    calls: list[ToolCall],
) -> None:
    models["pieces"] = way(PiecesModel(pieces, steps=steps, calls=calls))
    whole = http.post(CHAT, json=body("pieces")).json()
    *chunks, done = events(http, "pieces", stream_options={"include_usage": True})
    assert done == "[DONE]"
    choice, parts = whole["choices"][0], [c["choices"][0] for c in chunks if c["choices"]]
    assert parts[0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(p["delta"].get("content", "") for p in parts) == (choice["message"]["content"] or "")
    assert [p["step"] for p in parts if "step" in p] == choice.get("steps", [])
    streamed = [c for p in parts for c in p["delta"].get("tool_calls", [])]
    assert [c["index"] for c in streamed] == list(range(len(calls)))
    assert [c["function"] for c in streamed] == [c["function"] for c in choice["message"].get("tool_calls", [])]
    assert [p["finish_reason"] for p in parts if p["finish_reason"]] == [choice["finish_reason"]]
    assert parts[-1]["finish_reason"] == choice["finish_reason"]
    assert chunks[-1]["usage"] == whole["usage"]


def test_a_client_that_leaves_aborts_the_model(
    server: BackgroundServer, models: dict[str, FakeModel], way: Way
) -> None:
    gate = GateModel()
    models["gate"] = way(gate)
    gate.permits.release()
    with (
        httpx.Client(base_url=server.url, timeout=PATIENCE_SECONDS, trust_env=False) as client,
        client.stream("POST", CHAT, json=body("gate", stream=True)) as response,
    ):
        assert b"role" in next(response.iter_raw())
        assert not gate.closed.is_set()
    assert gate.wait_closed()


def test_a_client_that_leaves_before_the_first_piece_aborts_the_model(
    server: BackgroundServer, models: dict[str, FakeModel], way: Way
) -> None:
    gate = GateModel()
    models["early"] = way(gate)
    content = json.dumps(body("early", stream=True)).encode()
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
    )
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(f"{head}\r\n\r\n".encode() + content)
        assert gate.entered.wait(PATIENCE_SECONDS)
    assert gate.wait_closed()


def test_an_error_before_the_first_piece_is_an_http_error(
    http: httpx.Client, models: dict[str, FakeModel], way: Way
) -> None:
    class Late(FailingModel):
        def stream(self, request: Request) -> Iterator[Delta]:
            time.sleep(0.05)  # the client waits for a while; it hears nothing before
            return super().stream(request)

    models["full"] = way(Late(CapacityError("9000 tokens, the context is 8192: send less")))
    response = http.post(CHAT, json=body("full", stream=True))
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    ("error", "code", "part"),
    [
        (CapacityError("9000 tokens, the context is 8192"), "context_length_exceeded", "9000"),
        (RuntimeError("a secret"), "internal", "internal error"),
    ],
)
def test_a_later_error_is_an_event(
    http: httpx.Client, models: dict[str, FakeModel], way: Way, error: Exception, code: str, part: str
) -> None:
    models["late"] = way(FailingModel(error, after=2))
    *chunks, last, done = events(http, "late")
    assert [c["choices"][0]["delta"].get("content") for c in chunks] == ["", "x", "x"]
    assert (last["error"]["code"], done) == (code, "[DONE]")
    assert part in last["error"]["message"]
    assert "secret" not in last["error"]["message"]


def test_an_answer_without_a_finish_reason_is_an_error(
    http: httpx.Client, models: dict[str, FakeModel], way: Way
) -> None:
    class Cut(FakeModel):
        def stream(self, request: Request) -> Any:
            yield Delta(text="half an ans")

    models["cut"] = way(Cut())
    assert "without a finish reason" in events(http, "cut")[-2]["error"]["message"]


def test_a_silent_stream_is_kept_alive(http: httpx.Client, models: dict[str, FakeModel], way: Way) -> None:
    heard = threading.Event()

    class Silent(FakeModel):
        def stream(self, request: Request) -> Any:
            assert heard.wait(PATIENCE_SECONDS)
            yield from super().stream(request)

    models["silent"] = way(Silent(["at last"]))
    with http.stream("POST", CHAT, json=body("silent", stream=True)) as response:
        received = b""
        for chunk in response.iter_raw():
            received += chunk
            if b": keep-alive\n\n" in received:
                heard.set()
    *chunks, _ = EventParser().feed(received)
    assert "".join(json.loads(c)["choices"][0]["delta"].get("content", "") for c in chunks) == "at last"


def test_values_without_a_json_form_do_not_break_the_answer(http: httpx.Client, models: dict[str, FakeModel]) -> None:
    step = {"tool": "t", "arguments": {}, "content": "", "data": {"x": float("nan"), "y": {1, 2}}, "is_error": False}
    models["odd"] = PiecesModel(["half \ud800 pair"], steps=[step])
    answer = http.post(CHAT, json=body("odd")).json()["choices"][0]
    assert answer["message"]["content"] == "half ? pair"
    assert answer["steps"][0]["data"]["x"] is None
    assert [e["choices"][0]["step"]["data"]["x"] for e in events(http, "odd")[:-1] if "step" in e["choices"][0]] == [
        None
    ]


def test_answers_that_the_event_loop_reads_come_as_they_are_written(
    http: httpx.Client, models: dict[str, FakeModel]
) -> None:
    """Two answers of one request: the second ends while the first waits for its gate."""
    gate = GateModel()

    class Two(FakeModel):
        def stream(self, request: Request) -> Iterator[Delta]:
            self.requests.append(request)
            if len(self.requests) == 1:
                for delta in gate.stream(request):
                    yield delta
                    break
                yield Delta(finish_reason="stop", usage=Usage(1, 1))
            else:
                yield from FakeModel(["the other"]).stream(request)

    models["two"] = PolledModel(Two())
    with http.stream("POST", CHAT, json=body("two", stream=True, n=2)) as response:
        parser, ended = EventParser(), list[int]()
        for chunk in response.iter_raw():
            for event in parser.feed(chunk):
                if event != "[DONE]" and (choice := json.loads(event)["choices"][0])["finish_reason"]:
                    ended.append(choice["index"])
            if len(ended) == 1:
                gate.permits.release()
    assert sorted(ended) == [0, 1]
    assert gate.closed.is_set()


def test_a_server_that_ends_keeps_no_event_loop(way: Way) -> None:
    from riverrun.serve.http.streaming import _DOORBELLS

    def served() -> None:
        gate = GateModel()
        gate.permits.release()
        with httpx.Client(timeout=PATIENCE_SECONDS, trust_env=False) as client:
            with BackgroundServer(make_app({"gate": way(gate)}), drain_seconds=0.1) as running:
                request = client.build_request("POST", running.url + CHAT, json=body("gate", stream=True))
                assert b"role" in next(client.send(request, stream=True).iter_raw())
            assert gate.wait_closed()

    others = set(_DOORBELLS)
    served()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while len(_DOORBELLS) > len(others) and time.monotonic() < deadline:
        time.sleep(0.02)
        gc.collect()
    assert set(_DOORBELLS) == others
