"""Bad requests: every one is refused with a sentence that names the field, and nothing becomes a 500."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import httpx
import pytest
from http_models import FailingModel
from hypothesis import given, settings
from hypothesis import strategies as st

from riverrun.base.errors import CapacityError, InputError, IntegrityError, ToolError
from riverrun.base.fakes import FakeModel
from riverrun.serve.http.schema import ChatBody, CompletionBody, ScoreBody

CHAT = {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}
JSON = {"content-type": "application/json"}
TOOL = {"type": "function", "function": {"name": "f"}}


def refused(response: httpx.Response, status: int = 400) -> dict[str, Any]:
    """The error of an OpenAI-style refusal."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert error["code"]
    return error  # type: ignore[no-any-return]


def post(http: httpx.Client, path: str = "/v1/chat/completions", **fields: Any) -> httpx.Response:
    base = CHAT if path.startswith("/v1/chat") else {"model": "echo"}
    return http.post(path, json={**base, **fields})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("best_of", 2),
        ("functions", [{"name": "f"}]),
        ("function_call", "auto"),
        ("use_beam_search", True),
        ("length_penalty", 0.5),
        ("truncate_prompt_tokens", 100),
        ("skip_special_tokens", False),
        ("include_stop_str_in_output", True),
        ("continue_final_message", True),
        ("prediction", {"type": "content", "content": "x"}),
        ("modalities", ["text", "audio"]),
        ("reasoning_effort", "low"),
        ("store", True),
        ("metadata", {"a": "b"}),
        ("service_tier", "flex"),
        ("best_of", True),
        ("store", 0),
    ],
)
def test_unsupported_fields_are_named(http: httpx.Client, name: str, value: Any) -> None:
    error = refused(post(http, **{name: value}))
    assert (error["param"], error["code"]) == (name, "unsupported")
    assert f"'{name}'" in error["message"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 1),
        ("logprobs", False),
        ("top_logprobs", 0),
        ("response_format", {"type": "text"}),
        ("presence_penalty", 0),
        ("frequency_penalty", 0.0),
        ("logit_bias", {}),
        ("parallel_tool_calls", True),
        ("tool_choice", "auto"),
        ("modalities", ["text"]),
        ("store", False),
        ("service_tier", "auto"),
        ("user", "someone"),
        ("temperature", None),
        ("tools", []),
        ("seed", None),
        ("stop", None),
        ("response_format", None),
    ],
)
def test_openais_defaults_are_accepted(http: httpx.Client, name: str, value: Any) -> None:
    assert post(http, **{name: value}).status_code == 200


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"temprature": 1}, "Did you mean 'temperature'"),
        ({"str": 1}, "unknown field 'str'"),
        ({"temperature": "hot"}, "'temperature' = \"hot\""),
        ({"temperature": 3}, "temperature must be between 0 and 2, got 3"),
        ({"top_p": 0}, "top_p must be above 0"),
        ({"max_tokens": 0}, "max_tokens must be at least 1, got 0"),
        ({"max_tokens": True}, "'max_tokens' = true"),
        ({"max_tokens": 10**30}, "'max_tokens' = 1000"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "5 and 'max_completion_tokens' = 6 differ"),
        ({"seed": 2**63}, "'seed' = 9223372036854775808"),
        ({"stop": ["a", 5]}, "'stop.1' = 5"),
        ({"stop": ""}, "a text of stop must not be empty"),
        ({"n": 0}, "'n' = 0"),
        ({"n": True}, "'n' = true"),
        ({"n": 1000}, "'n' = 1000"),
        ({"ignore_eos": 0}, "'ignore_eos' = 0"),
        ({"top_logprobs": 3}, "'top_logprobs' = 3 needs 'logprobs'"),
        ({"logprobs": True, "top_logprobs": 21}, "'top_logprobs' = 21"),
        ({"logprobs": True}, "'logprobs' = 0 is not supported by model 'echo'"),
        ({"prompt_logprobs": 1}, "'prompt_logprobs' = 1 is not supported by model 'echo'"),
        ({"presence_penalty": 3}, "presence_penalty must be between -2 and 2, got 3"),
        ({"frequency_penalty": -2.5}, "frequency_penalty must be between -2 and 2, got -2.5"),
        ({"repetition_penalty": 0}, "repetition_penalty must be above 0"),
        ({"min_p": 1.5}, "min_p must be between 0 and 1, got 1.5"),
        ({"min_tokens": 9, "max_tokens": 5}, "min_tokens 9 is more than max_tokens 5"),
        ({"logit_bias": {"x": 1}}, "keys are token ids"),
        ({"logit_bias": {"5": 101}}, "logit_bias of token 5 must be between -100 and 100, got 101"),
        ({"bad_words": [""]}, "a text of bad_words must not be empty"),
        ({"timeout": -1}, "'timeout' = -1"),
        ({"tool_choice": "required"}, "'tool_choice' = \"required\" needs 'tools'"),
        ({"tool_choice": "f", "tools": [TOOL]}, "give auto, none, required or {type: function"),
        ({"tool_choice": {"type": "function", "function": {"name": "g"}}, "tools": [TOOL]}, "with one of f"),
        ({"tool_choice": "required", "tools": [TOOL]}, "'forced_tools' = ('f',) is not supported by model 'echo'"),
        ({"parallel_tool_calls": False, "tools": [TOOL]}, "use 'required' or a name"),
        ({"response_format": {"type": "json"}}, "'response_format.type' = \"json\""),
        ({"response_format": {"type": "json_schema"}}, "needs 'json_schema'"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}, "strict": False}}}, "always follow"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}, "name": "a b"}}},
            "json_schema.name",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}, "description": "books"}}},
            "'response_format.json_schema.description' = \"books\" is not supported: say it in the messages",
        ),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "'guided_regex' and 'guided_choice' are given"),
        ({"guided_choice": []}, "'guided_choice' = []"),
        ({"messages": []}, "'messages' = []"),
        ({"messages": "hi"}, "'messages' = \"hi\""),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0: message role 'robot'"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0"),
        ({"messages": [{"role": "user", "content": "x", "colour": 1}]}, "'colour' is not supported"),
        ({"messages": [{"role": "assistant", "tool_calls": 5}]}, "messages.0"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
            "arguments of tool call 'f' are not JSON",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "A"}}]}]},
            "messages.0",
        ),
        ({"tools": [5]}, "tools.0 must be an object"),
        ({"tools": [{"type": "function"}]}, "tools.0"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": 5}}]}, "tools.0"),
        ({"tools": [{"type": "function", "function": {"name": "f", "strict": True}}]}, "'tools.0.strict' = true"),
        ({"stream_options": {"include_usage": True}}, "without 'stream'"),
        ({"stream": True, "stream_options": {"include_usages": True}}, "Did you mean 'include_usage'"),
        ({"model": None}, "field 'model' is required"),
    ],
)
def test_wrong_values_are_told_with_the_value(http: httpx.Client, fields: dict[str, Any], part: str) -> None:
    assert part in refused(post(http, **fields))["message"]


def test_images_and_audio_reach_the_model_which_refuses_them(http: httpx.Client) -> None:
    parts = {
        "image": {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        "audio": {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
    }
    for kind, part in parts.items():
        for stream in (False, True):
            response = post(http, messages=[{"role": "user", "content": [part]}], stream=stream)
            error = refused(response)
            assert f"a part of type '{kind}'" in error["message"]
            assert error["code"] == "unsupported"


@pytest.mark.parametrize(
    ("body", "status", "part"),
    [
        (b"", 400, "not JSON"),
        (b"{", 400, "line 1, column 2"),
        (b"[1]", 400, "an array"),
        (b"null", 400, "null"),
        (b"\xff{}", 400, "not UTF-8"),
        (b'{"model": "echo", "messages": [{"role": "user", "content": "\\ud800"}]}', 400, "surrogate"),
        (
            b'{"model": "echo", "messages": [{"role": "assistant", "tool_calls": '
            b'[{"function": {"name": "f", "arguments": "{\\"a\\": \\"\\\\ud800\\"}"}}]}]}',
            400,
            "messages.0",
        ),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, 400, "nested deeper than 100"),
        (b'{"messages":' + b"[" * 150 + b"]" * 150 + b"}", 400, "nested deeper than 100"),
        (b'{"seed":' + b"1" * 5000 + b"}", 400, "number that is too long"),
        (b'{"model": "echo", "messages": [{"role": "user"}], "temperature": NaN}', 400, "temperature"),
    ],
)
def test_malformed_bodies(http: httpx.Client, body: bytes, status: int, part: str) -> None:
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/score"):
        error = refused(http.post(path, content=body, headers=JSON), status)
        if path.startswith("/v1/chat"):
            assert part in error["message"]


def test_only_json_is_read(http: httpx.Client) -> None:
    for headers in ({"content-type": "text/plain"}, {"content-type": "application/x-www-form-urlencoded"}, {}):
        error = refused(http.post("/v1/chat/completions", content=json.dumps(CHAT), headers=headers), 415)
        assert "application/json" in error["message"]
    charset = {"content-type": "application/json; charset=utf-8"}
    assert http.post("/v1/chat/completions", content=json.dumps(CHAT), headers=charset).status_code == 200


def test_unknown_paths_methods_and_models(http: httpx.Client) -> None:
    assert "/openapi.json" in refused(http.get("/v2/models"), 404)["message"]
    assert refused(http.get("/v1/chat/completions"), 405)["code"] == "method_not_allowed"
    assert refused(http.get("/v1/models/nobody"), 404)["code"] == "model_not_found"
    assert refused(post(http, model="nobody"), 404)["param"] == "model"


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (CapacityError("5000 tokens are more than the context of 4096"), 400, "context_length_exceeded"),
        (InputError("an agent brings its own tools: leave 'tools' out"), 400, "invalid_request"),
        (IntegrityError("the weights changed"), 500, "not_usable"),
        (ToolError("the database is gone"), 500, "failed"),
    ],
)
def test_errors_of_the_model_keep_their_sentence(
    http: httpx.Client, models: dict[str, FakeModel], error: Exception, status: int, code: str
) -> None:
    models["failing"] = FailingModel(error)
    for path, fields in (
        ("/v1/chat/completions", {}),
        ("/v1/chat/completions", {"stream": True}),
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/score", {"prefix": "x", "continuations": ["y"]}),
    ):
        told = refused(post(http, path, model="failing", **fields), status)
        assert (told["message"], told["code"]) == (str(error), code)


def test_a_bug_is_a_500_without_its_text(
    http: httpx.Client, models: dict[str, FakeModel], caplog: pytest.LogCaptureFixture
) -> None:
    models["buggy"] = FailingModel(RuntimeError("secret detail"))
    response = http.post("/v1/chat/completions", json={**CHAT, "model": "buggy"}, headers={"x-request-id": "mine-1"})
    error = refused(response, 500)
    assert "secret" not in response.text
    assert "mine-1" in error["message"]
    assert response.headers["x-request-id"] == "mine-1"
    assert "secret detail" in caplog.text


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"prompt": ""}, "none of them empty"),
        ({"prompt": []}, "at least one"),
        ({"prompt": [1, 2]}, "'prompt_ids' = (1, 2) is not supported by model 'echo'"),
        ({"prompt": [[1], []]}, "none of them empty"),
        ({"prompt": [1, "a"]}, "'prompt"),
        ({"prompt": "a", "echo": True, "stream": True}, "'echo' = true is not supported with 'stream'"),
        ({"prompt": "a", "suffix": "z"}, "'suffix'"),
        ({"prompt": "a", "best_of": 3}, "'best_of' = 3"),
        ({"prompt": "a", "logprobs": 0}, "'logprobs' = 0 is not supported by model 'echo'"),
        ({"prompt": "a", "logprobs": 21}, "'logprobs' = 21"),
        ({"prompt": "a", "tools": []}, "unknown field 'tools'"),
    ],
)
def test_completions_refuse_by_name(http: httpx.Client, fields: dict[str, Any], part: str) -> None:
    assert part in refused(post(http, "/v1/completions", **fields))["message"]


def test_score(http: httpx.Client, models: dict[str, FakeModel]) -> None:
    models["scorer"] = FakeModel(prefers=["yes it is"], name="scorer")
    body = {"model": "scorer", "continuations": ["yes it is", "no"]}
    answer = http.post("/v1/score", json={**body, "prefix": "Is it?"}).json()
    assert [item["is_greedy"] for item in answer["data"]] == [True, False]
    assert answer["data"][0]["logprobs"] == pytest.approx([-0.1, -0.1, -0.1])
    assert answer["data"][1]["total"] == pytest.approx(-2.0)
    assert http.post("/v1/score", json={**body, "messages": CHAT["messages"]}).json()["data"] == answer["data"]
    for fields in ({}, {"prefix": "x", "messages": CHAT["messages"]}):
        assert "either 'prefix'" in refused(http.post("/v1/score", json={**body, **fields}))["message"]
    assert (
        refused(http.post("/v1/score", json={**body, "prefix": "x", "continuations": []}))["param"] == "continuations"
    )


def test_every_documented_field_is_in_the_openapi(http: httpx.Client) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    schema = paths["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"model", "messages", "tools", "stop", "seed", "stream_options"} <= set(schema["properties"])
    assert schema["additionalProperties"] is False
    assert "include_usage" in json.dumps(schema["properties"]["stream_options"])
    assert '"title": "StreamOptions"' in json.dumps(schema), "written out: FastAPI does not know the bodies' models"


# ---- fuzz: any JSON in any known field, and any bytes: an answer or a refusal, never a 500

_KEYS = ["role", "content", "type", "text", "image_url", "url", "input_audio", "data", "file", "tool_calls"]
_KEYS += ["function", "name", "arguments", "parameters", "id", "tool_call_id", "include_usage"]
_KNOWN = ChatBody.model_fields.keys() | CompletionBody.model_fields.keys() | ScoreBody.model_fields.keys()
_FIELDS = sorted(_KNOWN | {"n", "logprobs", "response_format", "logit_bias", "metadata", "echo"})
scalars = st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False) | st.text(max_size=6)
values = st.recursive(
    scalars | st.sampled_from(["user", "assistant", "tool", "text", "function", "auto", "{}", "hi"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(_KEYS) | st.text(max_size=4),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)
call = st.fixed_dictionaries({}, optional={"id": values, "type": values, "function": values})
message = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool"])},
    optional={"content": values, "tool_calls": st.lists(call, max_size=2), "tool_call_id": values, "name": values},
)
tool = st.fixed_dictionaries({}, optional={"type": st.just("function") | values, "function": values})
fields = st.dictionaries(
    st.sampled_from(_FIELDS) | st.text(max_size=5),
    values,
    max_size=4,
)


def check(response: httpx.Response) -> None:
    if response.status_code == 200:
        return
    assert 400 <= response.status_code < 500, response.text
    refused(response, response.status_code)


def dumps(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body).encode()


@settings(derandomize=True, max_examples=250, deadline=None)
@given(fields, st.lists(message, min_size=1, max_size=2) | values, st.lists(tool, max_size=2) | st.none())
def test_fuzz_chat(http: httpx.Client, extra: dict[str, Any], messages: Any, tools: Any) -> None:
    body = {"model": "echo", "messages": messages, "tools": tools, **extra}
    check(http.post("/v1/chat/completions", content=dumps(body), headers=JSON))


@settings(derandomize=True, max_examples=120, deadline=None)
@given(
    st.sampled_from(["completions", "score"]), fields, st.text(max_size=5) | st.lists(st.text(max_size=5), max_size=3)
)
def test_fuzz_completions_and_score(http: httpx.Client, path: str, extra: dict[str, Any], texts: Any) -> None:
    given = {"prompt": texts} if path == "completions" else {"prefix": "x", "continuations": texts}
    check(http.post(f"/v1/{path}", content=dumps({"model": "echo", **given, **extra}), headers=JSON))


@settings(derandomize=True, max_examples=80, deadline=None)
@given(st.binary(max_size=40), st.sampled_from(["chat/completions", "completions", "score"]))
def test_fuzz_bytes(http: httpx.Client, body: bytes, path: str) -> None:
    check(http.post(f"/v1/{path}", content=body, headers=JSON))
