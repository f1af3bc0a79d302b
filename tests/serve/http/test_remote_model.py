"""The client: the same answers as the model behind the server, and sentences for everything a network can do."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from http_models import PATIENCE_SECONDS, STEPS, FailingModel, GateModel, MeetingModel, PiecesModel
from hypothesis import given, settings
from hypothesis import strategies as st

from riverrun.base.errors import CapacityError, InputError, UnsupportedError
from riverrun.base.fakes import FakeModel
from riverrun.base.protocols import Completion, Delta, LanguageModel, Request
from riverrun.base.types import Guide, Image, Message, SamplingParams, ToolCall, ToolSpec, Usage
from riverrun.serve.client import RemoteModel
from riverrun.serve.http.app import make_app
from riverrun.serve.http.server import BackgroundServer

ASK = Request(messages=(Message.of("user", "hello there"),))
CALLS = (ToolCall("f", {"sql": "SELECT '中'"}, "call_a"), ToolCall("g", {}, "call_b"))
TOOL = ToolSpec("f", "Run SQL", {"type": "object", "properties": {"sql": {"type": "string"}}})


def gathered(deltas: Iterator[Delta]) -> Completion:
    """A stream put together; checks that only the last delta has the finish and the usage."""
    *parts, last = deltas
    assert last.finish_reason is not None
    assert last.usage is not None
    assert not last.text
    assert all(d.finish_reason is None and d.usage is None for d in parts)
    text = "".join(d.text for d in parts)
    calls = tuple(call for d in parts for call in d.tool_calls)
    steps = tuple(d.step for d in parts if d.step is not None)
    return Completion(Message.of("assistant", text, tool_calls=calls), last.finish_reason, last.usage, text, steps)


# ---- against our server


@pytest.fixture
def remote(server: BackgroundServer) -> Iterator[Callable[[str], RemoteModel]]:
    made: list[RemoteModel] = []

    def make(name: str) -> RemoteModel:
        made.append(RemoteModel(server.url, name, timeout_seconds=PATIENCE_SECONDS))
        return made[-1]

    yield make
    for model in made:
        model.close()


def test_it_is_a_language_model_with_the_identity_of_the_served_one(remote: Any, models: dict[str, FakeModel]) -> None:
    model = remote("echo")
    assert isinstance(model, LanguageModel)
    assert model.info == models["echo"].info


def test_answers_and_streams_equal_those_of_the_model(remote: Any, models: dict[str, FakeModel]) -> None:
    served = models["pieces"] = PiecesModel(["Hel", "lo 中\n", "🙂"], steps=STEPS, usage=Usage(9, 4, 2))
    [expected] = served.generate([ASK])
    model = remote("pieces")
    assert model.generate([ASK]) == [expected]
    assert gathered(model.stream(ASK)) == expected


def test_tools_and_tool_calls_both_ways(remote: Any, models: dict[str, FakeModel]) -> None:
    served = models["tools"] = PiecesModel(["Looking. "], calls=CALLS)
    result = Message.of("tool", "12.5", tool_call_id="call_a", name="f")
    asked = Request(
        messages=(*ASK.messages, Message("assistant", tool_calls=CALLS[:1]), result),
        tools=(TOOL,),
        params=SamplingParams(9, 0.7, 0.8, 40, ("END",), 11),
    )
    model = remote("tools")
    for answer in (model.generate([asked])[0], gathered(model.stream(asked))):
        assert answer.message.tool_calls == CALLS
        assert answer.finish_reason == "tool_calls"
    assert served.requests == [asked, asked]


def test_raw_prompts(remote: Any, models: dict[str, FakeModel]) -> None:
    model, asked = remote("echo"), Request(prompt="once upon a time")
    assert model.generate([asked])[0].message.text == "once upon a time"
    assert gathered(model.stream(asked)).message.text == "once upon a time"
    with pytest.raises(UnsupportedError, match="tools need messages"):
        model.generate([Request(prompt="x", tools=(TOOL,))])


def test_a_batch_goes_out_concurrently_and_comes_back_in_order(remote: Any, models: dict[str, FakeModel]) -> None:
    models["meeting"] = MeetingModel(12)
    models["meeting"].script = lambda request: request.messages[0].text
    requests = [Request(messages=(Message.of("user", f"say {i}"),)) for i in range(12)]
    assert [c.message.text for c in remote("meeting").generate(requests)] == [f"say {i}" for i in range(12)]
    assert remote("echo").generate([]) == []


def test_score(remote: Any, models: dict[str, FakeModel]) -> None:
    served = models["scorer"] = FakeModel(prefers=["yes it is"], name="scorer")
    model = remote("scorer")
    for prefix in ("Is it?", ASK.messages):
        assert model.score(prefix, ["yes it is", "no"]) == served.score(prefix, ["yes it is", "no"])
    with pytest.raises(InputError, match="no model 'nobody'"):
        remote("nobody").score("x", ["y"])


def test_closing_the_stream_aborts_the_served_model(remote: Any, models: dict[str, FakeModel]) -> None:
    gate = models["gate"] = GateModel()
    gate.permits.release()
    deltas = remote("gate").stream(ASK)
    assert next(deltas).text == "x"
    deltas.close()
    assert gate.wait_closed()


@pytest.mark.parametrize("after", [0, 2])
@pytest.mark.parametrize(
    "error", [CapacityError("9000 tokens, the context is 8192"), UnsupportedError("no guides here"), InputError("bad")]
)
def test_refusals_keep_class_and_words(remote: Any, models: dict[str, FakeModel], error: Exception, after: int) -> None:
    models["failing"] = FailingModel(error, after)
    model = remote("failing")
    for attempt in (lambda: model.generate([ASK]), lambda: list(model.stream(ASK))):
        with pytest.raises(type(error), match=str(error)) as caught:
            attempt()
        assert type(caught.value) is type(error)


def test_parts_that_are_not_text_arrive(remote: Any) -> None:
    asked = Request(messages=(Message("user", (Image(data=b"abc", mime="image/png"),)),))
    with pytest.raises(UnsupportedError, match="a part of type 'image'"):
        remote("echo").generate([asked])


def test_keys(models: dict[str, FakeModel]) -> None:
    with BackgroundServer(make_app(models, api_keys=["k1"])) as server:
        with RemoteModel(server.url, "echo", api_key="k1") as model:
            assert model.generate([ASK])[0].message.text == "hello there"
        with RemoteModel(server.url, "echo", api_key="k2") as model:
            with pytest.raises(InputError, match="the API key is wrong"):
                model.generate([ASK])
            with pytest.raises(InputError, match="401"):
                model.info


def test_an_unreachable_endpoint_is_one_sentence() -> None:
    with BackgroundServer(make_app({})) as server:
        url = server.url
    model = RemoteModel(url, "m", sleep=pytest.fail)
    for attempt in (lambda: model.generate([ASK, ASK]), lambda: list(model.stream(ASK)), lambda: model.info):
        with pytest.raises(InputError, match=rf"{url}/v1 cannot be reached \(.*refused.*\): check the address"):
            attempt()


@pytest.mark.parametrize(
    "address",
    ["", "localhost:8000", "ftp://x/v1", "http://", "http://[", "http://x:port", "http://x/\x00", "http://x:0"],
)
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(InputError, match="is not an http address"):
        RemoteModel(address, "m")


def test_other_bad_arguments() -> None:
    with pytest.raises(InputError, match="line breaks"):
        RemoteModel("http://x", "m", api_key="a\nb")
    with pytest.raises(InputError, match=r"concurrency \(0\)"):
        RemoteModel("http://x", "m", concurrency=0)
    assert RemoteModel("http://x:1/", "m").base_url == "http://x:1/v1"
    assert RemoteModel("https://x/api/v3/", "m").base_url == "https://x/api/v3"


# ---- against other servers, played by a script

Answer = tuple[int, dict[str, str], bytes] | None


class Scripted:
    """A server that gives prepared answers in order (None: cuts the connection) and keeps what it was asked."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.asked: list[tuple[str, Any]] = []
        self.cut_bytes: list[bytes] | None = None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                size = int(self.headers.get("content-length") or 0)
                outer.asked.append((self.path, json.loads(self.rfile.read(size) or b"null")))
                answer = outer.answers.pop(0)
                self.close_connection = True
                if answer is None:
                    return
                status, headers, body = answer
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("connection", "close")
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self) -> None:
                self.do_POST()

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.waits: list[float] = []
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def model(self, **rest: Any) -> RemoteModel:
        url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        return RemoteModel(url, "m", sleep=self.waits.append, timeout_seconds=PATIENCE_SECONDS, **rest)


@pytest.fixture
def other() -> Iterator[Scripted]:
    scripted = Scripted()
    yield scripted
    scripted.server.shutdown()
    scripted.server.server_close()
    assert scripted.answers == []


def answer(value: Any, status: int = 200, **headers: str) -> Answer:
    return status, {"content-type": "application/json", **headers}, json.dumps(value).encode()


def stream_of(*chunks: Any, end: str = "data: [DONE]\n\n") -> Answer:
    body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + end
    return 200, {"content-type": "text/event-stream"}, body.encode()


def said(text: str | None, **rest: Any) -> Any:
    return {"choices": [{"message": {"role": "assistant", "content": text, **rest}, "finish_reason": "stop"}]}


def piece(reason: str | None = None, **delta: Any) -> Any:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}


def test_overload_and_broken_connections_are_tried_again(other: Scripted) -> None:
    busy = answer({"error": {"message": "busy"}}, 429, **{"retry-after": "7"})
    other.answers = [busy, None, answer({}, 503), answer(said("made it"))]
    assert other.model().generate([ASK])[0].message.text == "made it"
    assert other.waits[0] == 7.0
    assert 0.7 < other.waits[1] < 1.3
    assert 1.4 < other.waits[2] < 2.6


def test_streams_are_tried_again_before_they_begin(other: Scripted) -> None:
    other.answers = [answer({}, 502), stream_of(piece(content="hi"), piece("length"))]
    assert gathered(other.model().stream(ASK)).finish_reason == "length"
    assert len(other.waits) == 1


def test_trying_ends(other: Scripted) -> None:
    other.answers = [answer({"error": {"message": "out of order"}}, 500)] * 3
    with pytest.raises(InputError, match="refused with 500, 3 times: out of order"):
        other.model(attempts=3).generate([ASK])
    other.answers = [None, None]
    with pytest.raises(InputError, match="broke off 2 times"):
        other.model(attempts=2).generate([ASK])
    assert len(other.waits) == 3


@pytest.mark.parametrize(("when", "wait"), [("Wed, 21 Oct 2015 07:28:00 GMT", 0.0), ("0", 0.0), ("-5", 0.0)])
def test_retry_after_forms(other: Scripted, when: str, wait: float) -> None:
    other.answers = [answer({}, 429, **{"retry-after": when}), answer(said("x"))]
    other.model().generate([ASK])
    assert other.waits == [wait]


def test_a_retry_after_of_hours_is_not_waited_for(other: Scripted) -> None:
    other.answers = [answer({"error": "quota used up"}, 429, **{"retry-after": "7200"})]
    with pytest.raises(InputError, match="refused with 429: quota used up"):
        other.model().generate([ASK])
    assert other.waits == []


@pytest.mark.parametrize(
    ("reply", "part"),
    [
        (answer({"error": {"message": "no such model"}}, 404), "refused with 404: no such model"),
        (answer({"detail": "Not allowed"}, 403), "403: Not allowed"),
        ((400, {}, b"<h1>bad</h1>"), "400: <h1>bad</h1>"),
        (answer({}, 501), "501"),
        ((200, {}, b"<html>a login page</html>"), "something else than a JSON object"),
        (answer({"choices": []}), "not OpenAI's"),
        (answer({"choices": [{"message": None}]}), "not OpenAI's"),
        (answer({**said("x"), "usage": {"prompt_tokens": "many"}}), "not OpenAI's"),
    ],
)
def test_other_answers_are_told_once(other: Scripted, reply: Answer, part: str) -> None:
    other.answers = [reply]
    with pytest.raises(InputError, match=part):
        other.model().generate([ASK])
    assert other.waits == []


@pytest.mark.parametrize(
    ("reply", "part"),
    [
        (stream_of(piece(content="half"), end=""), "without a finish reason"),
        (stream_of(piece(content="half")), "without a finish reason"),
        (stream_of(piece(content="x"), {"error": {"message": "out of memory"}}), "in the stream: out of memory"),
        (stream_of(end="data: nonsense\n\n"), "not a JSON object: nonsense"),
        (stream_of({"choices": [{"delta": 5}]}), "not OpenAI's"),
        ((200, {"content-length": "9999"}, b"data: {}\n\n"), "broke off"),
    ],
)
def test_streams_that_fail(other: Scripted, reply: Answer, part: str) -> None:
    other.answers = [reply]
    with pytest.raises(InputError, match=part):
        list(other.model().stream(ASK))


def test_what_is_sent(other: Scripted) -> None:
    other.answers = [answer(said("x")), stream_of(piece("stop")), answer(said("x"))]
    model = other.model()
    model.generate([ASK])
    list(model.stream(ASK))
    guide = Guide("json_schema", '{"type": "object"}')
    model.generate([Request(messages=ASK.messages, params=SamplingParams(guide=guide))])
    plain = {
        "model": "m",
        "max_tokens": 256,
        "temperature": 0.0,
        "top_p": 1.0,
        "messages": [{"role": "user", "content": "hello there"}],
    }
    assert other.asked[0] == ("/v1/chat/completions", plain)
    assert other.asked[1][1] == {**plain, "stream": True, "stream_options": {"include_usage": True}}
    assert other.asked[2][1]["response_format"]["json_schema"]["schema"] == {"type": "object"}
    tools = (TOOL, replace(TOOL, name="other"))
    everything = SamplingParams(
        top_k=3, min_p=0.1, repetition_penalty=1.1, presence_penalty=0.5, frequency_penalty=0.25, no_repeat_ngram=3,
        logit_bias={5: -1.0}, bad_words=("b",), stop_ids=(7,), min_tokens=2, ignore_end=True, logprobs=2,
        guide=Guide("regex", "a+"),
    )  # fmt: skip
    other.answers = [answer(said("x"))] * 4
    model.generate([replace(ASK, params=everything, timeout_seconds=3.0)])
    wanted = {
        "top_k": 3, "min_p": 0.1, "repetition_penalty": 1.1, "presence_penalty": 0.5, "frequency_penalty": 0.25,
        "no_repeat_ngram_size": 3, "logit_bias": {"5": -1.0}, "bad_words": ["b"], "stop_token_ids": [7],
        "min_tokens": 2, "ignore_eos": True, "logprobs": True, "top_logprobs": 2, "guided_regex": "a+", "timeout": 3.0,
    }  # fmt: skip
    assert {key: other.asked[3][1][key] for key in wanted} == wanted
    model.generate([replace(ASK, tools=tools, forced_tools=("f", "other"), parallel_tool_calls=False)])
    assert (other.asked[4][1]["tool_choice"], other.asked[4][1]["parallel_tool_calls"]) == ("required", False)
    model.generate([replace(ASK, template_variables={"enable_thinking": False})])
    assert other.asked[5][1]["chat_template_kwargs"] == {"enable_thinking": False}
    model.generate([replace(ASK, tools=tools, forced_tools=("other",))])
    assert other.asked[6][1]["tool_choice"] == {"type": "function", "function": {"name": "other"}}
    for request in (replace(ASK, adapter="x"), replace(ASK, params=SamplingParams(prompt_logprobs=1))):
        with pytest.raises(UnsupportedError, match="is not supported by http"):
            model.generate([request])


def test_calls_in_pieces_are_put_together(other: Scripted) -> None:
    parts = [
        {"index": 0, "id": "a", "function": {"name": "f", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"sql": "SEL'}},
        {"index": 1, "id": "b", "function": {"name": "g", "arguments": "{}"}},
        {"index": 0, "function": {"arguments": 'ECT 1"}'}},
    ]
    usage = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}
    other.answers = [stream_of(*(piece(tool_calls=[p]) for p in parts), piece("tool_calls"), usage)]
    found = gathered(other.model().stream(ASK))
    assert found.message.tool_calls == (ToolCall("f", {"sql": "SELECT 1"}, "a"), ToolCall("g", {}, "b"))
    assert found.usage == Usage(3, 4)


def test_a_call_that_cannot_be_read_stays_visible_as_text(other: Scripted) -> None:
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"sql": '}}
    whole = said("Hm. ", tool_calls=[call])
    whole["choices"][0]["finish_reason"] = "tool_calls"
    other.answers = [
        answer(whole),
        stream_of(piece(content="Hm. ", tool_calls=[{"index": 0, **call}]), piece("tool_calls")),
    ]
    model = other.model()
    for found in (model.generate([ASK])[0], gathered(model.stream(ASK))):
        assert found.message.text == 'Hm. f({"sql": )'
        assert (found.message.tool_calls, found.finish_reason) == ((), "stop")


def test_other_endpoints_have_no_score_and_no_identity(other: Scripted) -> None:
    other.answers = [(404, {}, b"Not Found"), answer({"data": [{"id": "m", "max_model_len": 512}]}), answer({}, 404)]
    model = other.model()
    with pytest.raises(UnsupportedError, match="has no /score"):
        model.score("x", ["y"])
    assert model.info.context_length == 512
    assert model.info == model.info
    nameless = other.model()
    assert (nameless.info.name, nameless.info.context_length, nameless.info.template_sha256) == ("m", 0, "")
    assert nameless.info.digest == model.info.digest
    assert len(other.asked) == 3


def test_scores_that_do_not_fit_are_refused(other: Scripted) -> None:
    one = {"logprobs": [None, -1.5], "is_greedy": False}
    other.answers = [answer({"data": [one]}), answer({"data": [one]}), answer({"data": [{}]})]
    model = other.model()
    assert model.score("x", ["y"])[0].logprobs == (float("-inf"), -1.5)
    with pytest.raises(InputError, match="1 scores for 2 continuations"):
        model.score("x", ["y", "z"])
    with pytest.raises(InputError, match="not OpenAI's"):
        model.score("x", ["y"])


def test_a_silent_endpoint_is_given_up(other: Scripted) -> None:
    class Silent(httpx.BaseTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            raise httpx.ReadTimeout("", request=request)

    model = other.model()
    model._transport._http = httpx.Client(transport=Silent())
    with pytest.raises(InputError, match="sent nothing for 30 s"):
        model.generate([ASK])


CUT = RemoteModel("http://127.0.0.1:1", "m")
WHOLE = stream_of(
    {"choices": [{"delta": {"role": "assistant", "content": ""}}]},
    piece(content="H\u00e9"),
    piece(content="llo 中🙂"),
    piece("stop"),
    {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}},
)


@settings(derandomize=True, max_examples=120, deadline=None)
@given(st.lists(st.integers(0, 700), max_size=10), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_any_cut_of_the_bytes_gives_the_same_stream(places: list[int], newline: str, comments: bool) -> None:
    assert WHOLE is not None
    text = WHOLE[2].decode().replace("\\u4e2d\\ud83d\\ude42", "中🙂")  # so that cuts fall inside characters, too
    assert "中🙂" in text
    data = text.replace("\n\n", "\n\n: ping\n\n" if comments else "\n\n").replace("\n", newline).encode()
    ends = sorted({min(p, len(data)) for p in places} | {len(data)})

    class Cut(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            yield from (data[a:b] for a, b in zip([0, *ends], ends, strict=False))

    CUT._transport._http = httpx.Client(transport=httpx.MockTransport(lambda _: httpx.Response(200, stream=Cut())))
    found = gathered(CUT.stream(ASK))
    assert (found.message.text, found.usage) == ("Héllo 中🙂", Usage(1, 2))
