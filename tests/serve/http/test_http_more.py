"""Routes beside OpenAI's: tokens, vectors, perplexity, interactive sessions, adapters, aborts, status, quotas."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from riverrun.base.protocols import Request
from riverrun.base.types import Message, SamplingParams
from riverrun.models.io.adapter import add_adapters, save_adapter
from riverrun.models.load import load_checkpoint, load_model
from riverrun.serve.http.app import make_app
from riverrun.serve.http.server import BackgroundServer
from riverrun.serve.llm import LLM
from riverrun.web.keys import KeyRing, KeySettings
from tests.tiny_model import write_tiny

ASKED = [{"role": "user", "content": "How much is the book about salt?"}]
MESSAGES = (Message.of("user", "How much is the book about salt?"),)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, an adapter among the server's adapters, a folder for sessions."""
    root = tmp_path_factory.mktemp("more")
    model = load_model(load_checkpoint(write_tiny(root / "model")), torch.float32)
    add_adapters(model, 4, 8.0, seed=1)
    for _, matrix in model.linears():
        for adapter in matrix.adapters.values():
            adapter.lora_B.data.normal_(std=0.2, generator=torch.Generator().manual_seed(1))
    save_adapter(model, root / "adapters" / "green")
    (root / "sessions").mkdir()
    return root


@pytest.fixture(scope="module")
def model(folders: Path) -> Iterator[LLM]:
    with LLM(folders / "model", dtype="float32", slots=4, name="tiny") as opened:
        yield opened


@pytest.fixture(scope="module")
def http(model: LLM, folders: Path) -> Iterator[httpx.Client]:
    app = make_app({"tiny": model}, sessions=folders / "sessions", adapters=folders / "adapters")
    with BackgroundServer(app) as server, httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client:
        yield client


def post(http: httpx.Client, route: str, status: int = 200, /, **body: Any) -> dict[str, Any]:
    response = http.post(route, json=body)
    assert response.status_code == status, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_tokens(http: httpx.Client, model: LLM) -> None:
    ids = post(http, "/tokenize", model="tiny", prompt="How much 你好")["tokens"]
    assert post(http, "/detokenize", model="tiny", tokens=ids)["prompt"] == "How much 你好"
    found = post(http, "/tokenize", model="tiny", messages=ASKED)
    assert (found["tokens"], found["max_model_len"]) == (model.tokenize(Request(MESSAGES)), 512)
    assert (
        "either messages or a prompt"
        in post(http, "/tokenize", 400, model="tiny", prompt="x", messages=ASKED)["error"]["message"]
    )


def test_vectors_and_perplexity(http: httpx.Client, model: LLM) -> None:
    plain = post(http, "/v1/embeddings", model="tiny", input=["a b", "c"])
    for item, vector in zip(plain["data"], model.embed(["a b", "c"]), strict=True):
        assert item["embedding"] == pytest.approx(vector, abs=1e-6)
    assert plain["usage"]["prompt_tokens"] == 4
    ids = [model.vector_ids(text) for text in ("a b", "c")]
    assert post(http, "/v1/embeddings", model="tiny", input=ids) == plain
    one = post(http, "/v1/embeddings", model="tiny", input=ids[0])
    assert (one["data"], one["usage"]["prompt_tokens"]) == (plain["data"][:1], len(ids[0]))
    assert (
        "token 999999 does not exist"
        in post(http, "/v1/embeddings", 400, model="tiny", input=[999999])["error"]["message"]
    )
    packed = post(http, "/v1/embeddings", model="tiny", input="a b", encoding_format="base64")["data"][0]["embedding"]
    assert np.frombuffer(base64.b64decode(packed), "<f4") == pytest.approx(plain["data"][0]["embedding"], abs=1e-6)
    found = post(http, "/get_ppl", model="tiny", input="How much is it?")
    assert found["ppl"] == pytest.approx(model.perplexity(["How much is it?"]))
    assert found["loss"] == pytest.approx([np.log(found["ppl"][0])])


def test_interactive_sessions_send_the_new_turn_alone(http: httpx.Client, model: LLM) -> None:
    greedy = {"temperature": 0.0, "request_output_len": 6}
    first = post(
        http, "/v1/chat/interactive", prompt="How much is the book about salt?", interactive_mode=True, **greedy
    )
    again = {"session_id": first["session_id"], **greedy}
    second = post(http, "/v1/chat/interactive", prompt="And in green?", interactive_mode=True, **again)
    whole = [*MESSAGES, Message.of("assistant", first["text"]), Message.of("user", "And in green?")]
    assert second["text"] == model.chat(whole, SamplingParams(max_tokens=6)).raw
    assert second["history_tokens"] > 0
    assert second["input_tokens"] + second["history_tokens"] == second["usage"]["prompt_tokens"]
    response = http.post("/v1/chat/interactive", json={"prompt": "And?", "stream": True, **again})
    events = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
    assert events[-1]["finish_reason"] == "length"
    assert len(model.sessions) == 0, "without interactive_mode the turn is the last"
    new = post(http, "/v1/chat/interactive", prompt="And?", **again)
    assert new["history_tokens"] < second["history_tokens"]
    messages = post(http, "/generate", prompt=ASKED, **greedy)
    assert messages["text"] == first["text"]
    assert "'prompt' must hold" in post(http, "/generate", 400)["error"]["message"]


def test_a_first_turn_that_is_refused_leaves_no_session(http: httpx.Client, model: LLM) -> None:
    for fields in ({"temperature": 9.0}, {"prompt": "x " * 600}, {"prompt": [{"role": "user", "content": "x " * 600}]}):
        for more in ({}, {"stream": True}, {"interactive_mode": True}, {"session_id": "x", "interactive_mode": True}):
            post(http, "/v1/chat/interactive", 400, **({"prompt": "x"} | fields | more))
    deadline = time.monotonic() + 30
    while len(model.sessions) and time.monotonic() < deadline:  # a stream ends behind its answer
        time.sleep(0.01)
    assert not len(model.sessions)


def test_a_session_is_saved_closed_and_loaded(http: httpx.Client, model: LLM) -> None:
    turn = {"session_id": "mine", "interactive_mode": True, "temperature": 0.0, "request_output_len": 6}
    post(http, "/v1/chat/interactive", prompt="How much is the book about salt and about nothing else?", **turn)
    saved = post(http, "/v1/sessions/save", model="tiny", session_id="mine")
    assert saved["cached_tokens"] >= 48
    post(http, "/v1/sessions/close", model="tiny", session_id="mine")
    assert (
        "there is no session"
        in post(http, "/v1/sessions/close", 400, model="tiny", session_id="mine")["error"]["message"]
    )
    loaded = post(http, "/v1/sessions/load", model="tiny", session_id="mine")
    assert loaded["cached_tokens"] == saved["cached_tokens"]
    assert post(http, "/v1/chat/interactive", prompt="And?", **turn)["history_tokens"] >= saved["cached_tokens"]
    told = post(http, "/v1/sessions/load", 400, model="tiny", session_id="never")["error"]["message"]
    assert told.startswith("there is no saved session 'never.safetensors'")
    for name in ("../evil", "a/b", "", "x" * 65):
        assert (
            "is not made of"
            in post(http, "/v1/sessions/save", 400, model="tiny", session_id="mine", file=name or "é")["error"][
                "message"
            ]
        )
    post(http, "/v1/sessions/close", model="tiny", session_id="mine")


def test_an_answer_is_cancelled_by_its_session_or_its_id(http: httpx.Client, model: LLM) -> None:
    long = {"session_id": "slow", "interactive_mode": True, "request_output_len": 450, "ignore_eos": True}
    got: list[dict[str, Any]] = []
    thread = threading.Thread(target=lambda: got.append(post(http, "/v1/chat/interactive", prompt="Tell", **long)))
    thread.start()
    while not post(http, "/v1/chat/interactive", prompt="x", session_id="slow", cancel=True)["cancelled"]:
        time.sleep(0.01)
    thread.join(30)
    assert got[0]["finish_reason"] == "abort"
    assert model.sessions.get("slow").messages == []
    post(http, "/v1/sessions/close", model="tiny", session_id="slow")
    answers: list[httpx.Response] = []
    body = {"model": "tiny", "messages": ASKED, "max_tokens": 450, "ignore_eos": True}
    named = threading.Thread(
        target=lambda: answers.append(http.post("/v1/chat/completions", json=body, headers={"x-request-id": "mine-7"}))
    )
    named.start()
    while http.post("/abort_request", json={"request_id": "mine-7"}).status_code == 404 and named.is_alive():
        time.sleep(0.01)
    named.join(30)
    assert answers[0].json()["choices"][0]["finish_reason"] == "abort"
    assert post(http, "/abort_request", 404, request_id="mine-7")["error"]["code"] == "not_found"


def test_a_client_that_leaves_frees_its_blocks(http: httpx.Client, model: LLM) -> None:
    body = {"model": "tiny", "messages": ASKED, "max_tokens": 450, "ignore_eos": True}
    for stream in (False, True):
        if stream:
            with http.stream("POST", "/v1/chat/completions", json=body | {"stream": True}) as response:
                assert next(response.iter_bytes())
        else:
            with pytest.raises(httpx.ReadTimeout):
                http.post("/v1/chat/completions", json=body, timeout=httpx.Timeout(5, read=0.05))
        for _ in range(3000):
            if model.loop.run(lambda: model.loop.scheduler.is_idle):
                break
            time.sleep(0.01)
        model.loop.run(model.loop.scheduler.check_integrity)
        assert model.loop.run(lambda: model.loop.scheduler.is_idle)


def test_adapters_are_models_that_come_and_go(http: httpx.Client) -> None:
    plain = post(http, "/v1/chat/completions", model="tiny", messages=ASKED, max_tokens=8)
    assert post(http, "/v1/lora/load", model="tiny", name="green")["adapters"] == ["green"]
    cards = {card["id"]: card for card in http.get("/v1/models").json()["data"]}
    assert cards["green"]["parent"] == "tiny"
    green = post(http, "/v1/chat/completions", model="green", messages=ASKED, max_tokens=8)
    assert green["model"] == "green"
    assert green["choices"][0]["message"] != plain["choices"][0]["message"]
    assert post(http, "/v1/score", model="green", prefix="x", continuations=[" y"])["data"]
    assert post(http, "/v1/lora/unload", model="tiny", name="green")["adapters"] == []
    assert post(http, "/v1/chat/completions", 404, model="green", messages=ASKED)["error"]["code"] == "model_not_found"
    for route, name, path, part in (
        ("load", "x", "../model", "is not made of"),
        ("load", "never", "", "there is no adapter 'never' in the server's folder of adapters"),
        ("unload", "", "", "name the adapter"),
    ):
        assert part in post(http, f"/v1/lora/{route}", 400, model="tiny", name=name, path=path)["error"]["message"]


def test_counts_and_readiness(http: httpx.Client) -> None:
    pytest.importorskip("prometheus_client", reason="not run here: prometheus-client is not installed")
    post(http, "/v1/chat/completions", model="tiny", messages=ASKED, max_tokens=8)
    text = http.get("/metrics").text
    for name in (
        "num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "prefix_cache_queries_total",
        "spec_decode_num_accepted_tokens_total", "prefix_cache_hits_total", "num_preemptions_total",
        "prompt_tokens_total", "generation_tokens_total",
        "request_success_total", "iteration_tokens_bucket", "time_to_first_token_seconds_bucket",
        "time_per_output_token_seconds_sum", "e2e_request_latency_seconds_bucket", "request_queue_time_seconds_bucket",
    ):  # fmt: skip
        assert f"riverrun:{name}{{" in text, name
    assert 'riverrun:prompt_tokens_total{engine="0",model_name="tiny"}' in text
    assert http.get("/ready").json() == {"ready": True, "models": ["tiny"], "draining": False, "running": 0}
    assert http.get("/status").json()["models"]["tiny"]["generation_tokens"] > 0


def test_a_full_queue_and_a_used_up_quota_are_told(folders: Path) -> None:
    from hashlib import sha256

    def key(name: str, **quota: int) -> KeySettings:
        return KeySettings(name=name, sha256=sha256(name.encode()).hexdigest(), **quota)

    ring = KeyRing([key("free"), key("single", concurrency=1), key("little", tokens_per_minute=5)])
    body = {"model": "tiny", "messages": ASKED, "max_tokens": 300, "ignore_eos": True}
    with (
        LLM(folders / "model", dtype="float32", slots=1, waiting=1, name="tiny") as model,
        BackgroundServer(make_app({"tiny": model}, api_keys=ring)) as server,
    ):

        def ask(name: str, **more: Any) -> httpx.Response:
            with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client:
                return client.post(
                    "/v1/chat/completions", json={**body, **more}, headers={"authorization": f"Bearer {name}"}
                )

        assert ask("nobody").status_code == 401
        got: list[httpx.Response] = []
        threads = [threading.Thread(target=lambda: got.append(ask("free"))) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        codes = sorted(answer.status_code for answer in got)
        assert set(codes) == {200, 429}
        full = next(answer for answer in got if answer.status_code == 429)
        assert full.json()["error"]["code"] == "queue_full"
        assert full.headers["retry-after"] == "1"
        assert ask("little", max_tokens=8).status_code == 200
        used = ask("little", max_tokens=8)
        assert (used.status_code, used.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert int(used.headers["retry-after"]) > 1


def test_other_origins_are_let_in_by_name_alone(model: LLM) -> None:
    preflight = {
        "origin": "https://shop.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization",
    }
    for origins, allowed in (((), False), (("https://shop.example",), True), (("https://other.example",), False)):
        with BackgroundServer(make_app({"tiny": model}, api_keys=["k"], allowed_origins=origins)) as server:
            answer = httpx.options(f"{server.url}/v1/chat/completions", headers=preflight, trust_env=False)
            assert (answer.headers.get("access-control-allow-origin") == "https://shop.example") is allowed


def little(name: str = "little", *, tokens: int = 100_000) -> KeyRing:
    from hashlib import sha256

    return KeyRing([KeySettings(name=name, sha256=sha256(name.encode()).hexdigest(), tokens_per_minute=tokens)])


def settle(condition: Any) -> bool:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.01)
    return False


def test_every_token_is_paid_for(folders: Path) -> None:
    """Also of a stream that was left, and of what is no answer."""
    long = {"model": "tiny", "max_tokens": 300, "ignore_eos": True}
    interactive = {"model": "tiny", "prompt": "How much is Salt?", "request_output_len": 300, "ignore_eos": True}
    with LLM(folders / "model", dtype="float32", slots=4, name="tiny") as model:

        def paid(route: str, asked: dict[str, Any], *, leave: bool = False) -> float:
            ring = little()
            key = ring.find(b"little")
            assert key is not None
            before = key._left
            headers = {"authorization": "Bearer little"}
            with (
                BackgroundServer(make_app({"tiny": model}, api_keys=ring)) as server,
                httpx.Client(base_url=server.url, timeout=60, trust_env=False, headers=headers) as client,
            ):
                if leave:
                    with client.stream("POST", route, json=asked | {"stream": True}) as response:
                        chunks = response.iter_raw()
                        for _ in range(5):
                            next(chunks)
                else:
                    assert client.post(route, json=asked).status_code == 200
                assert settle(lambda: key.running == 0)
                assert settle(lambda: key._left < before)
            return before - key._left

        for route, asked in (
            ("/v1/chat/completions", long | {"messages": ASKED}),
            ("/v1/completions", long | {"prompt": "How much", "n": 2}),
            ("/v1/responses", {"model": "tiny", "input": "How much is Salt?", "max_output_tokens": 300}),
            ("/v1/messages", {"model": "tiny", "messages": ASKED, "max_tokens": 300}),
            ("/v1/chat/interactive", interactive),
        ):
            assert paid(route, asked, leave=True) > 5, route
        assert paid("/v1/chat/interactive", interactive | {"request_output_len": 20}) > 20
        ids = len(model.vector_ids("How much is it?"))
        assert paid("/v1/embeddings", {"model": "tiny", "input": ["How much is it?"] * 3}) == pytest.approx(
            3 * ids, abs=1
        )
        text = "How much is it? " * 400
        assert paid("/get_ppl", {"model": "tiny", "input": text}) == pytest.approx(model.count(text), abs=1)
        asked = {"model": "tiny", "prefix": "How much is", "continuations": [" it", " the book"]}
        assert paid("/v1/score", asked) > model.count("How much is")


@pytest.mark.parametrize("route", ["/v1/chat/interactive", "/v1/chat/completions"])
def test_a_client_that_leaves_the_queue_leaves_it_at_once(tmp_path: Path, route: str) -> None:
    busy = {"model": "tiny", "messages": ASKED, "max_tokens": 3500, "ignore_eos": True, "stream": True}
    mine: dict[str, Any] = {"model": "tiny", "stream": True}
    mine |= {"prompt": "Hello"} if route.endswith("interactive") else {"messages": ASKED}
    with (
        LLM(write_tiny(tmp_path, max_position_embeddings=4096), dtype="float32", slots=1, name="tiny") as model,
        BackgroundServer(make_app({"tiny": model})) as server,
        httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client,
        client.stream("POST", "/v1/chat/completions", json=busy) as first,
    ):
        chunks = first.iter_raw()
        next(chunks)
        with httpx.Client(base_url=server.url, timeout=0.3, trust_env=False) as other, pytest.raises(httpx.ReadTimeout):
            other.post(route, json=mine)
        assert settle(lambda: client.get("/ready").json()["running"] == 1)
        assert settle(lambda: model.loop._pending == 1)
        assert len(model.loop.scheduler.running) == 1, "the other answer still runs"


def test_a_server_that_ends_ends_its_answers(tmp_path: Path) -> None:
    long = {"model": "tiny", "messages": ASKED, "max_tokens": 3500, "ignore_eos": True}
    with LLM(write_tiny(tmp_path, max_position_embeddings=4096), dtype="float32", slots=1, name="tiny") as model:
        with BackgroundServer(make_app({"tiny": model}), drain_seconds=0.1) as server:
            url = f"{server.url}/v1/chat/completions"

            def ask() -> None:
                with pytest.raises(httpx.HTTPError):
                    httpx.post(url, json=long, timeout=60, trust_env=False).raise_for_status()

            thread = threading.Thread(target=ask)
            thread.start()
            assert settle(lambda: model.loop.scheduler.running)
        thread.join()
        assert model.loop._pending <= 1
        began = time.monotonic()
        assert settle(lambda: model.loop._pending == 0)
        assert time.monotonic() - began < 5
