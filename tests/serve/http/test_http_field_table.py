"""docs/serve-fields.md is true of our server: every field of every table is sent to it.

What is refused gets 400 and its name, what is honoured gets 200 and changes the answer. In which way it changes it is
checked in test_http_fields.py, and here for the vectors.
"""

from __future__ import annotations

import json
import runpy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from riverrun.serve.http.app import make_app
from riverrun.serve.http.server import BackgroundServer
from riverrun.serve.llm import LLM
from tests.tiny_model import CHATML, write_tiny

DOCS = Path(__file__).resolve().parents[3] / "docs"
GENERATE = runpy.run_path(str(DOCS / "generate.py"))
PEERS = yaml.safe_load((DOCS / "data" / "serve_fields.yaml").read_text(encoding="utf-8"))["peers"]
ROUTES: dict[str, str] = {route: path for route, (path, _) in GENERATE["ROUTES"].items()}
TABLE: dict[str, dict[str, str]] = {
    route: {row.name: row.ours for row in GENERATE["field_rows"](route)} for route in ROUTES
}

ASKED = [{"role": "user", "content": "How much is the book about salt?"}]
SCHEMA = {"type": "object", "properties": {"x": {"enum": [1, 2]}}, "required": ["x"], "additionalProperties": False}
PARAMETERS = {"type": "object", "properties": {"q": {"enum": ["a", "b"]}}, "required": ["q"]}
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": PARAMETERS}}]
BASE: dict[str, dict[str, Any]] = {
    "chat": {"model": "tiny", "messages": ASKED, "max_tokens": 12},
    "completions": {"model": "tiny", "prompt": "How much is the book? How much is the", "max_tokens": 12},
    "embeddings": {"model": "tiny", "input": "a b"},
}
HOT = {"temperature": 1.5, "seed": 3}
AGAIN = {"logit_bias": {"70": 8.0}, "max_tokens": 24}  # a token that comes again and again: "d"
ALWAYS = {"logit_bias": {"70": 30.0, "71": 29.0}}
ENDING = {"logit_bias": {"2": 100.0}}  # the model's end token
LONG = {"max_tokens": 400, "ignore_eos": True}
FORCED = {**HOT, "tools": TOOLS, "tool_choice": "required", "max_tokens": 120}

Sent = tuple[Any, dict[str, Any]]
"""A value, and the other fields beside which it shows."""
SAMPLING: dict[str, Sent] = {
    "model": ("second", {}),
    "max_tokens": (3, {}),
    "temperature": (1.5, {"seed": 1}),
    "top_p": (1e-6, HOT),
    "top_k": (1, HOT),
    "min_p": (1.0, HOT),
    "presence_penalty": (2.0, AGAIN),
    "frequency_penalty": (2.0, AGAIN),
    "repetition_penalty": (3.0, AGAIN),
    "no_repeat_ngram_size": (2, ALWAYS),
    "logit_bias": ({"70": 100.0}, {}),
    "bad_words": (["d"], ALWAYS),
    "stop": ("d", ALWAYS),
    "stop_token_ids": ([70], ALWAYS),
    "min_tokens": (5, ENDING),
    "ignore_eos": (True, ENDING),
    "seed": (4, HOT),
    "n": (2, {}),
    "response_format": ({"type": "json_object"}, {}),
    "guided_json": (SCHEMA, {}),
    "guided_regex": ("[ab]{3}", {}),
    "guided_choice": (["yes", "no"], {}),
    "guided_grammar": ('start: "x" "y"', {}),
    "prompt_logprobs": (1, {}),
    "stream": (True, {}),
    "stream_options": ({"include_usage": True}, {"stream": True}),
    "timeout": (60.0, {}),
    "user": ("someone", {}),
}
EFFECTS: dict[str, dict[str, Sent]] = {
    "chat": {
        **SAMPLING,
        "messages": ([{"role": "system", "content": "You sell maps."}, *ASKED], {}),
        "max_completion_tokens": (3, {"max_tokens": None}),
        "logprobs": (True, {}),
        "top_logprobs": (3, {"logprobs": True}),
        "tools": (TOOLS, {}),
        "tool_choice": ("none", {"tools": TOOLS}),
        "parallel_tool_calls": (False, FORCED),
        "chat_template_kwargs": ({"tone": "Loudly. "}, {}),
    },
    "completions": {**SAMPLING, "prompt": ("SELECT price", {}), "logprobs": (2, {}), "echo": (True, {})},
    "embeddings": {
        "model": ("second", {}),
        "input": (["a b", "c"], {}),
        "encoding_format": ("base64", {}),
        "pooling": ("last", {}),
        "user": ("someone", {}),
    },
}
ELSEWHERE = {"timeout", "user"}
"""Fields that do not change the answer: their tests are below."""
CELLS = [(route, name) for route in ROUTES for name, ours in TABLE[route].items() if ours == "honoured"]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("log") / "requests.jsonl"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, log: Path) -> Iterator[httpx.Client]:
    folders = [write_tiny(tmp_path_factory.mktemp("model"), seed=seed) for seed in (0, 1)]
    (folders[0] / "chat_template.jinja").write_text(CHATML + "{{ tone or '' }}", encoding="utf-8")
    with (
        LLM(folders[0], dtype="float32", slots=4, name="tiny") as first,
        LLM(folders[1], dtype="float32", slots=4, name="second") as second,
        BackgroundServer(make_app({"tiny": first, "second": second}, log=log)) as server,
        httpx.Client(base_url=server.url, timeout=300, trust_env=False) as opened,
    ):
        yield opened


def send(client: httpx.Client, route: str, fields: Mapping[str, Any]) -> httpx.Response:
    return client.post(ROUTES[route], json={**BASE[route], **fields})


def seen(response: httpx.Response) -> Any:
    """What an answer says, without what differs from one request to the next."""
    assert response.status_code == 200, response.text
    if "event-stream" in response.headers["content-type"]:
        lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: {")]
        return [_bare(json.loads(line)) for line in lines]
    return _bare(response.json())


def _bare(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _bare(each) for key, each in value.items() if key not in ("id", "created", "prompt_tokens_details")
        }
    return [_bare(each) for each in value] if isinstance(value, list) else value


@pytest.mark.parametrize("route", ROUTES)
def test_a_peer_does_one_thing_with_a_field_and_each_has_a_source(route: str) -> None:
    for peer in PEERS:
        groups = peer[route] if isinstance(peer[route], list) else []
        named = [name for group in groups for name in group["fields"]]
        assert len(named) == len(set(named)), (peer["name"], sorted(named))
        for group in (*groups, peer["unknown"]):
            assert group["status"] in ("honoured", "refused", "ignored")
            assert group["source"], (peer["name"], group)


@pytest.mark.parametrize("route", ROUTES)
def test_every_honoured_field_of_the_table_is_tried(route: str) -> None:
    assert {name for name, ours in TABLE[route].items() if ours == "honoured"} == set(EFFECTS[route])


@pytest.mark.parametrize("route", ROUTES)
def test_what_the_table_calls_refused_is_refused_by_name(client: httpx.Client, route: str) -> None:
    refused = [name for name, ours in TABLE[route].items() if ours == "refused"]
    assert len(refused) > 5
    for name in refused:
        response = send(client, route, {name: "something"})
        assert response.status_code == 400, (name, response.text)
        error = response.json()["error"]
        assert error["param"] == name, (name, error)
        assert f"'{name}'" in error["message"], (name, error)


@pytest.mark.parametrize(("route", "name"), CELLS)
def test_what_the_table_calls_honoured_changes_the_answer(client: httpx.Client, route: str, name: str) -> None:
    if name.startswith("guided_") or name in ("response_format", "parallel_tool_calls"):
        pytest.importorskip("llguidance", reason="not run here: llguidance is not installed")
    value, beside = EFFECTS[route][name]
    changed = seen(send(client, route, {**beside, name: value}))
    if name in ELSEWHERE:
        return
    without = seen(send(client, route, beside))
    assert changed != without
    if "seed" in beside or "temperature" not in beside:
        assert seen(send(client, route, beside)) == without, "the same request has the same answer"


@pytest.mark.parametrize("route", ["chat", "completions"])
def test_a_request_that_takes_too_long_is_given_up(client: httpx.Client, route: str) -> None:
    response = send(client, route, {**LONG, "timeout": 0.02})
    assert response.json()["error"]["code"] == "timeout"


@pytest.mark.parametrize("route", ROUTES)
def test_the_user_stands_in_the_request_log(client: httpx.Client, log: Path, route: str) -> None:
    assert send(client, route, {"user": f"{route}-7"}).status_code == 200
    assert send(client, route, {"user": ["a prompt"]}).status_code == 400
    assert send(client, route, {}).status_code == 200
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()][-3:]
    assert [line["user"] for line in lines] == [f"{route}-7", "", ""]
    assert "a prompt" not in log.read_text(encoding="utf-8")


def test_the_vectors_are_of_the_kind_that_was_asked_for(client: httpx.Client) -> None:
    def vectors(**fields: Any) -> list[Any]:
        return [each["embedding"] for each in send(client, "embeddings", fields).json()["data"]]

    mean, last = vectors(input="a")[0], vectors(input="a", pooling="last")[0]
    assert mean == pytest.approx(last, abs=1e-5), "of one token the mean is the last"
    several = vectors(input=["How much", "SELECT price"], pooling="last")
    assert several[1] == pytest.approx(vectors(input="SELECT price", pooling="last")[0], abs=1e-5)
    assert several[1] != pytest.approx(vectors(input="SELECT price")[0], abs=1e-5)


def test_chances_of_the_prompt_are_shown_for_each_prompt_or_refused(client: httpx.Client) -> None:
    one = seen(send(client, "completions", {"prompt_logprobs": 1, "n": 2}))
    assert one["prompt_logprobs"] == seen(send(client, "completions", {"prompt_logprobs": 1}))["prompt_logprobs"]
    prompts = [BASE["completions"]["prompt"], "SELECT price"]
    several = seen(send(client, "completions", {"prompt_logprobs": 1, "prompt": prompts}))
    assert len(several["choices"][0]["prompt_logprobs"]) == len(one["prompt_logprobs"])
    assert len(several["choices"][1]["prompt_logprobs"]) < len(one["prompt_logprobs"])
    for route in ("chat", "completions"):
        response = send(client, route, {"prompt_logprobs": 1, "stream": True})
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "prompt_logprobs"


def test_a_variable_that_the_template_does_not_ask_for_is_refused(client: httpx.Client) -> None:
    answer = send(client, "chat", {"chat_template_kwargs": {"enable_thinking": False}})
    assert answer.status_code == 400
    assert "asks for no 'enable_thinking'; it asks for: tone" in answer.json()["error"]["message"]
    answer = send(client, "chat", {"chat_template_kwargs": {"tools": []}})
    assert answer.status_code == 400
    assert "tools" in answer.json()["error"]["message"]
