"""The guard in front of every app: keys, body limit, host names, request ids, headers, uniform errors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from riverrun.base.errors import InputError, MissingDependency
from riverrun.base.fakes import FakeModel
from riverrun.serve.http.app import make_app
from riverrun.serve.http.server import BackgroundServer
from riverrun.web.app import make_web_app, parse_json
from riverrun.web.errors import HttpError, json_bytes, to_http_error

LIMIT = 2000
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture(scope="module")
def guarded() -> Iterator[httpx.Client]:
    app = make_app({"m": FakeModel()}, api_keys=["first key", "second"], max_body_bytes=LIMIT, title="Shop <1>")
    with (
        BackgroundServer(app) as server,
        httpx.Client(base_url=server.url, timeout=30, trust_env=False) as client,
    ):
        yield client


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def test_every_key_opens_and_nothing_else_does(guarded: httpx.Client) -> None:
    for key in ("first key", "second"):
        assert guarded.get("/v1/models", headers=bearer(key)).status_code == 200
    wrong = [
        {},
        bearer("third"),
        {"authorization": "Bearer"},
        bearer("secon"),
        bearer("second2"),
        {"authorization": "Basic second"},
    ]
    for headers in [*wrong, {"authorization": "second"}]:
        response = guarded.get("/v1/models", headers=headers)
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.json()["error"]["code"] == "invalid_api_key"
    assert guarded.post("/v1/chat/completions", json=CHAT).status_code == 401
    assert guarded.get("/openapi.json").status_code == 401


def test_health_and_the_page_are_open(guarded: httpx.Client) -> None:
    assert guarded.get("/health").json()["status"] == "ok"
    page = guarded.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "script-src 'sha256-" in page.headers["content-security-policy"]
    assert page.headers["x-frame-options"] == "DENY"
    assert "Shop &lt;1&gt;" in page.text


def test_a_page_can_be_left_out() -> None:
    with BackgroundServer(make_app({"m": FakeModel()}, page=False)) as server:
        assert httpx.get(server.url, trust_env=False).status_code == 404


@pytest.mark.parametrize("declared", [True, False])
def test_the_body_limit_tells_both_numbers(guarded: httpx.Client, declared: bool) -> None:
    def post(size: int) -> httpx.Response:
        start, end = b'{"model": "m", "messages": [{"role": "user", "content": "', b'"}]}'
        body = start + b"x" * (size - len(start) - len(end)) + end
        pieces = iter([body[:700], body[700:]])
        headers = {**bearer("second"), "content-type": "application/json"}
        return guarded.post("/v1/chat/completions", content=body if declared else pieces, headers=headers)

    assert post(LIMIT).status_code == 200
    response = post(LIMIT + 1)
    assert response.status_code == 413
    error = response.json()["error"]
    assert error["message"] == f"the request body has {LIMIT + 1} bytes, the limit is {LIMIT} bytes: send less"
    assert error["code"] == "body_too_large"
    assert "5000000 bytes" in post(5_000_000).json()["error"]["message"]


def test_request_ids_are_taken_over_or_made(guarded: httpx.Client) -> None:
    assert guarded.get("/health", headers={"x-request-id": "abc-1.2_3"}).headers["x-request-id"] == "abc-1.2_3"
    made = [
        guarded.get("/health", headers={"x-request-id": bad}).headers["x-request-id"] for bad in ("a b", "x" * 65, "")
    ]
    assert len(set(made)) == 3
    assert all(len(name) == 32 for name in made)


def test_every_answer_has_the_security_headers(guarded: httpx.Client) -> None:
    for response in (
        guarded.get("/health"),
        guarded.get("/v1/models"),
        guarded.get("/nowhere", headers=bearer("second")),
    ):
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["cache-control"] == "no-store"
        assert "default-src 'none'" in response.headers["content-security-policy"]
        assert "access-control-allow-origin" not in response.headers


def test_a_name_that_points_to_this_machine_does_not_open_a_server_without_keys() -> None:
    with BackgroundServer(make_app({"m": FakeModel()}, allowed_hosts=["shop.example"])) as server:
        for host, status in (
            ("evil.example", 403),
            ("evil.example:80", 403),
            ("localhost.evil.example", 403),
            ("shop.example:8000", 200),
            ("localhost:1234", 200),
            ("127.0.0.1", 200),
            ("[::1]:99", 200),
        ):
            response = httpx.get(f"{server.url}/v1/models", headers={"host": host}, trust_env=False)
            assert response.status_code == status, host
    assert "evil" not in json.dumps(response.json())


def test_with_keys_any_host_is_served(guarded: httpx.Client) -> None:
    headers = {**bearer("second"), "host": "proxy.example"}
    assert guarded.get("/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize("key", ["", "schlüssel", "line\nbreak", " padded "])
def test_unusable_keys_are_refused_at_construction(key: str) -> None:
    with pytest.raises(InputError, match="printable ASCII"):
        make_web_app(title="t", api_keys=[key])


def test_health_can_say_more() -> None:
    async def ask() -> httpx.Response:
        app = make_web_app(title="t", health=lambda: {"models": 2})
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t") as client:
            return await client.get("/health")

    assert asyncio.run(ask()).json()["models"] == 2


def test_without_fastapi_the_pip_line_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "fastapi", None)
    with pytest.raises(MissingDependency, match=r"pip install 'riverrun\[serve\]'"):
        make_app({"m": FakeModel()})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"a": float("inf"), 3: [float("nan"), (1.5, "中")]}, '{"a": null, "3": [null, [1.5, "中"]]}'),
        ("\ud800", '"?"'),
        ({"when": range(2)}, '{"when": "range(0, 2)"}'),
        ({(1, 2): 3}, '{"(1, 2)": 3}'),
    ],
)
def test_json_bytes_of_any_value(value: Any, text: str) -> None:
    assert json_bytes(value).decode() == text


def test_parse_json_and_error_mapping() -> None:
    assert parse_json(b'{"a": "\\ud83d\\ude42"}', "Application/JSON") == {"a": "🙂"}
    with pytest.raises(HttpError, match="half a surrogate pair"):
        parse_json(b'{"a": "\\udc00"}', "application/json")
    assert str(to_http_error(KeyError("x"))) == "internal error"
