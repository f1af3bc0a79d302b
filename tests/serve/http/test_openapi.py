"""/openapi.json: every route with its body, its answers, its streams and its refusals; every reference is there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from riverrun.base.errors import InputError
from riverrun.base.types import SamplingParams
from riverrun.serve.http.server import BackgroundServer


@pytest.fixture(scope="module")
def document(http: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = http.get("/openapi.json").json()
    return found


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def parts(value: Any) -> Iterator[dict[str, Any]]:
    """Every object inside."""
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from parts(inner)


def follow(document: dict[str, Any], reference: str) -> Any:
    found: Any = document
    for part in reference.removeprefix("#/").split("/"):
        found = found[part]
    return found


def test_every_reference_is_there(document: dict[str, Any]) -> None:
    references = {part["$ref"] for part in parts(document) if isinstance(part.get("$ref"), str)}
    assert references
    assert all(follow(document, reference) for reference in references)
    used = {reference.rpartition("/")[2] for reference in references}
    assert used >= document["components"]["schemas"].keys(), "a form that nothing uses"


def test_every_route_tells_its_body_its_answer_and_its_refusals(document: dict[str, Any]) -> None:
    for path, method, operation in operations(document):
        place = f"{method} {path}"
        answers = {status: each if "$ref" not in each else follow(document, each["$ref"])
                   for status, each in operation["responses"].items()}  # fmt: skip
        assert all(content.get("schema") for content in answers["200"]["content"].values()), f"{place}: no answer"
        wanted = {"401", "403", "413", "429", "500"}
        wanted |= {"400", "404", "408", "415"} if method == "post" else set()
        assert wanted <= answers.keys(), place
        assert "422" not in answers, f"{place}: wrong parameters are answered with 400"
        for status in wanted:
            assert answers[status]["description"]
            assert answers[status]["content"]["application/json"]["schema"], place
        assert ("requestBody" in operation) == (method == "post"), place
        if method == "post":
            body = operation["requestBody"]["content"]["application/json"]["schema"]
            assert body["additionalProperties"] is False, place
            needed = [name for how in ("oneOf", "anyOf") for each in body.get(how, ()) for name in each["required"]]
            assert {*needed, *body.get("required", ())} <= body["properties"].keys(), place
            streams = "stream" in body["properties"]
            assert ("text/event-stream" in answers["200"]["content"]) == streams, place


def test_every_route_of_the_app_is_in_the_document(server: BackgroundServer, document: dict[str, Any]) -> None:
    hidden = {"/", "/monitor", "/openapi.json"}
    served = {(route.path.replace(":path", ""), method.lower()) for route in server._app.routes
              for method in route.methods - {"HEAD"} if route.path not in hidden}  # fmt: skip
    assert served == {(path, method) for path, method, _ in operations(document)}


def test_schemas_are_json_schemas(document: dict[str, Any]) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="not run here: jsonschema is not installed")
    schemas = [part["schema"] for part in parts(document["paths"]) if isinstance(part.get("schema"), dict)]
    assert len(schemas) > 40
    for schema in [*schemas, *document["components"]["schemas"].values()]:
        jsonschema.Draft202012Validator.check_schema(schema)


def test_bounds_are_those_that_are_held(document: dict[str, Any]) -> None:
    schema = document["paths"]["/v1/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    for name in ("temperature", "min_p", "top_p", "presence_penalty", "frequency_penalty", "repetition_penalty"):
        bounds = schema["properties"][name]
        least, most = bounds.get("minimum", bounds.get("exclusiveMinimum")), bounds["maximum"]
        SamplingParams(**{name: most})
        if "minimum" in bounds:
            SamplingParams(**{name: least})
        for wrong in (most + 0.001, least if "exclusiveMinimum" in bounds else least - 0.001):
            with pytest.raises(InputError, match=name):
                SamplingParams(**{name: wrong})


def test_answers_are_as_documented(http: httpx.Client, document: dict[str, Any]) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="not run here: jsonschema is not installed")
    chat = {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}
    for method, path, body, status in (
        ("GET", "/health", None, 200),
        ("GET", "/ready", None, 200),
        ("GET", "/status", None, 200),
        ("GET", "/v1/models", None, 200),
        ("POST", "/v1/chat/completions", chat, 200),
        ("POST", "/v1/completions", {"model": "echo", "prompt": "hi"}, 200),
        ("POST", "/v1/responses", {"model": "echo", "input": "hi"}, 200),
        ("POST", "/v1/responses", {}, 400),
        ("POST", "/v1/messages", {**chat, "max_tokens": 4}, 200),
        ("POST", "/v1/messages", {**chat, "max_tokens": 0}, 400),
        ("POST", "/v1/chat/completions", {}, 400),
        ("POST", "/abort_request", {"request_id": "x"}, 404),
    ):
        answer = http.request(method, path, json=body)
        assert answer.status_code == status
        told = document["paths"][path][method.lower()]["responses"][str(status)]
        told = follow(document, told["$ref"]) if "$ref" in told else told
        schema = told["content"]["application/json"]["schema"] | {"components": document["components"]}
        jsonschema.Draft202012Validator(schema).validate(answer.json())
