"""The gRPC interface with its own client: answers as in process, sessions, aborts, keys, errors, health."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from riverrun.base.errors import BusyError, InputError, LateError, UnsupportedError
from riverrun.base.fakes import FakeModel
from riverrun.base.types import Guide, Message, SamplingParams, ToolSpec, Usage
from riverrun.serve.llm import LLM
from riverrun.web.keys import KeyRing, KeySettings
from tests.serve.http.http_models import RawModel
from tests.tiny_model import write_tiny

pytest.importorskip("grpc", reason="not run here: grpcio is not installed")

from riverrun.serve.grpc.client import GrpcClient
from riverrun.serve.grpc.messages import SERVICE, descriptor, message, variables_of
from riverrun.serve.grpc.server import GrpcServer

LONG = SamplingParams(max_tokens=400, ignore_end=True)
SHORT = SamplingParams(max_tokens=8, logprobs=2)
ASKED = [Message.of("system", "You sell books."), Message.of("user", "How much is Salt?")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    with LLM(write_tiny(tmp_path_factory.mktemp("grpc")), dtype="float32", slots=4) as opened:
        yield opened


@pytest.fixture(scope="module")
def server(model: LLM) -> Iterator[GrpcServer]:
    with GrpcServer({"tiny": model, "fake": FakeModel(name="fake")}) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: GrpcServer) -> Iterator[GrpcClient]:
    with GrpcClient(f"127.0.0.1:{server.port}") as opened:
        yield opened


def test_answers_are_those_of_the_model(client: GrpcClient, model: LLM) -> None:
    from riverrun.base.protocols import Request

    params = SamplingParams(
        max_tokens=12, temperature=0.9, top_p=0.9, top_k=40, min_p=0.01, seed=5, repetition_penalty=1.1,
        presence_penalty=0.2, frequency_penalty=0.1, no_repeat_ngram=3, logit_bias={5: -100.0}, bad_words=("x",),
        stop=("##",), stop_ids=(7,), min_tokens=2, logprobs=1,
    )  # fmt: skip
    for own in (SHORT, params):
        [wanted] = model.generate([Request(tuple(ASKED), params=own)])
        deltas = list(client.chat(ASKED, own))
        assert "".join(delta.text for delta in deltas) == wanted.message.text
        assert (deltas[-1].finish_reason, deltas[-1].usage.completion_tokens) == (
            wanted.finish_reason,
            wanted.usage.completion_tokens,
        )  # type: ignore[union-attr]
        got = [token for delta in deltas for token in delta.logprobs]
        assert [(token.id, token.piece) for token in got] == [(token.id, token.piece) for token in wanted.logprobs]
        assert [token.logprob for token in got] == pytest.approx([token.logprob for token in wanted.logprobs], abs=1e-4)
        assert [len(token.top) for token in got] == [own.logprobs] * len(got)
    ids = client.tokenize("How much")
    assert client.detokenize(ids) == "How much"
    assert client.tokenize(messages=ASKED) == model.tokenize(Request(tuple(ASKED)))
    texts = ["".join(delta.text for delta in client.generate(given, SHORT)) for given in ("How much", ids)]
    assert texts == [model.generate([Request(prompt="How much", params=SHORT)])[0].raw] * 2
    assert client.embed(["a", "b"], pooling="last")[1] == pytest.approx(model.embed(["b"], pooling="last")[0], abs=1e-5)
    for prefix in ("How much", ASKED):
        [one], [other] = client.score(prefix, [" is it"]), model.score(prefix, [" is it"])
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
    assert client.info("tiny").digest == model.info.digest


def test_guides_and_tools(client: GrpcClient) -> None:
    pytest.importorskip("llguidance", reason="not run here: llguidance is not installed")
    choice = SamplingParams(guide=Guide("choice", '["yes", "no"]'))
    assert "".join(delta.text for delta in client.generate("Well?", choice)) in ("yes", "no")
    schema = {"type": "object", "properties": {"q": {"enum": ["a", "b"]}}, "required": ["q"]}
    tool = ToolSpec("look", "Look.", schema)
    deltas = list(
        client.chat(
            ASKED, SamplingParams(max_tokens=99), tools=[tool], forced_tools=["look"], parallel_tool_calls=False
        )
    )
    [call] = [call for delta in deltas for call in delta.tool_calls]
    assert (call.name, call.arguments["q"] in ("a", "b"), deltas[-1].finish_reason) == ("look", True, "tool_calls")


def test_sessions_and_aborts(client: GrpcClient, model: LLM) -> None:
    name = client.open_session(messages=ASKED[:1])
    first = "".join(delta.text for delta in client.chat(ASKED[1:], SHORT, session=name))
    assert first == model.chat(ASKED, SHORT).raw
    list(client.chat([Message.of("user", "And?")], SHORT, session=name))
    assert len(model.sessions.get(name).messages) == 5
    client.close_session(name)
    with pytest.raises(InputError, match="there is no session"):
        client.close_session(name)
    endless = SamplingParams(max_tokens=450, ignore_end=True)
    stream = client.generate("long", endless)
    next(stream)
    stream.close()
    named = client.generate("long", endless, request_id="mine")
    next(named)
    assert client.abort("mine")
    assert list(named)[-1].finish_reason == "abort"
    assert not client.abort("mine")
    for _ in range(100):
        if model.loop.run(lambda: model.loop.scheduler.is_idle):
            break
        time.sleep(0.05)
    model.loop.run(model.loop.scheduler.check_integrity)


def test_errors_are_told_as_over_http(client: GrpcClient) -> None:
    for call, kind, part in (
        (lambda: list(client.chat([])), InputError, "needs messages or a prompt"),
        (lambda: list(client.chat([Message("robot")])), InputError, "messages.0: message role 'robot'"),  # type: ignore[arg-type]
        (lambda: list(client.chat(ASKED, model="nope")), InputError, "there is no model 'nope': this server has"),
        (lambda: list(client.generate([99999])), InputError, "token 99999 does not exist"),
        (lambda: list(client.generate("x", LONG, timeout_seconds=0.05)), LateError, "limit"),
        (lambda: client.tokenize("x", model="fake"), UnsupportedError, "does not show its tokens"),
        (lambda: client.open_session(model="fake"), UnsupportedError, "remembers no sessions"),
    ):  # fmt: skip
        with pytest.raises(kind, match=part):
            call()


def test_what_is_no_message_is_an_invalid_argument(server: GrpcServer, client: GrpcClient) -> None:
    """Also a sentence that the trailers have no room for, and a time that is none."""
    import grpc

    names = [name for name, _ in descriptor().services_by_name["Riverrun"].methods_by_name.items()]
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        for name in names:
            streamed = name in ("Generate", "Chat")
            call = (channel.unary_stream if streamed else channel.unary_unary)(f"/{SERVICE}/{name}")
            with pytest.raises(grpc.RpcError) as caught:
                list(call(b"\x0a\x04")) if streamed else call(b"\x0a\x04")
            assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
            assert "the message of 2 bytes is no " in caught.value.details()
    with pytest.raises(InputError, match="there is no model '你你"):
        client.tokenize("x", model="你" * 9000)
    for wrong in (float("nan"), -1.0):
        with pytest.raises(InputError, match="the time limit must be 0"):
            list(client.generate("x", SHORT, timeout_seconds=wrong))


def test_keys_and_their_quotas(model: LLM) -> None:
    from hashlib import sha256

    def key(name: str, **quota: int) -> KeySettings:
        return KeySettings(name=name, sha256=sha256(name.encode()).hexdigest(), **quota)

    ring = KeyRing([key("one", concurrency=1), key("little", tokens_per_minute=10)])
    with GrpcServer({"tiny": model}, keys=ring) as server:
        address = f"127.0.0.1:{server.port}"
        for wrong in ("", "other"):
            with (
                GrpcClient(address, api_key=wrong) as stranger,
                pytest.raises(InputError, match="an API key is needed"),
            ):
                stranger.info()
        with GrpcClient(address, api_key="one") as one:
            stream = one.generate("long", SamplingParams(max_tokens=400, ignore_end=True))
            next(stream)
            with pytest.raises(BusyError, match="1 requests of key 'one' run"):
                one.info()
            stream.close()
        with GrpcClient(address, api_key="little") as little:
            assert list(little.generate("How much is it?", SamplingParams(max_tokens=12, ignore_end=True)))
            with pytest.raises(BusyError, match="used its 10 tokens a minute"):
                little.info()
    many = "How much is the book? " * 8
    calls: list[Callable[[GrpcClient], object]] = [
        lambda one: one.embed([many]),
        lambda one: one.score(many, [" it"]),
        lambda one: next(one.generate(many, SamplingParams(max_tokens=400, ignore_end=True))),  # and leaves
    ]
    for call in calls:
        ring = KeyRing([key("little", tokens_per_minute=10)])
        found = ring.find(b"little")
        assert found is not None
        with GrpcServer({"tiny": model}, keys=ring) as server:
            with GrpcClient(f"127.0.0.1:{server.port}", api_key="little") as little:
                call(little)
            deadline = time.monotonic() + 30
            while found._left > 0 and time.monotonic() < deadline:
                time.sleep(0.01)
            assert found._left < 0


def test_health_and_reflection(server: GrpcServer) -> None:
    import grpc
    from google.protobuf.descriptor_pool import DescriptorPool
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", SERVICE):
            assert (
                health.Check(health_pb2.HealthCheckRequest(service=name)).status
                == health_pb2.HealthCheckResponse.SERVING
            )
        database = ProtoReflectionDescriptorDatabase(channel)
        assert SERVICE in database.get_services()
        methods = DescriptorPool(database).FindServiceByName(SERVICE).methods_by_name
    assert set(methods) == set(descriptor().services_by_name["Riverrun"].methods_by_name)


def test_the_descriptor_is_that_of_the_proto() -> None:
    """riverrun.desc is compiled from riverrun.proto (`make proto`)."""
    protoc = pytest.importorskip("grpc_tools.protoc", reason="not run here: grpcio-tools is not installed")
    import tempfile

    import riverrun.serve.grpc as room

    folder = Path(room.__file__).parent
    with tempfile.TemporaryDirectory() as work:
        out = Path(work) / "riverrun.desc"
        assert protoc.main(["protoc", f"-I{folder}", f"--descriptor_set_out={out}", "riverrun.proto"]) == 0
        assert out.read_bytes() == (folder / "riverrun.desc").read_bytes()


def test_the_template_gets_variables_and_the_answer_tells_its_stop_string(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path)
    template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    (folder / "chat_template.jinja").write_text(template + "{{ tone or '' }}", encoding="utf-8")
    thinking = RawModel(["hm</think>", "Yes"], reason="stop", stopped_by="END")
    with (
        LLM(folder, dtype="float32", slots=2) as model,
        GrpcServer({"tiny": model, "raw": thinking}) as server,
        GrpcClient(f"127.0.0.1:{server.port}") as client,
    ):
        given: tuple[dict[str, str], ...] = ({}, {"tone": "Loudly. "})
        plain, loud = (list(client.chat(ASKED, SHORT, template_variables=each))[-1].usage for each in given)
        assert plain
        assert loud
        assert loud.prompt_tokens == plain.prompt_tokens + len(client.tokenize("Loudly. "))
        with pytest.raises(InputError, match="'manner'"):
            list(client.chat(ASKED, SHORT, template_variables={"manner": 1}))
        last = list(client.chat(ASKED, SHORT, model="raw"))[-1]
        assert (last.stopped_by, last.usage) == ("END", Usage(9, 7, 4, 2))
    for wrong in ("[1]", "{"):
        with pytest.raises(InputError, match="template_variables"):
            variables_of(message("ChatRequest")(template_variables=wrong))
