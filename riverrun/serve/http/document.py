"""/openapi.json made whole: what each route answers, its streams, its refusals, the bounds of its fields, API keys.

The bodies come from the models that read them; the rest is the table in answers.yaml.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from riverrun.base.config import load_yaml

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = ["complete", "document"]

_JSON = "application/json"
_STREAM = "text/event-stream"
_REQUEST_ID = {
    "name": "X-Request-Id",
    "in": "header",
    "description": "a name for this request, given back with its answer; /abort_request ends it by this name",
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9_.-]{1,64}$"},
}


def document(app: FastAPI) -> None:
    """Complete the app's document when it is first asked for."""
    plain: Callable[[], dict[str, Any]] = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = complete(plain())
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


@cache
def _table() -> dict[str, Any]:
    return load_yaml(Path(__file__).with_name("answers.yaml"))


def complete(made: Mapping[str, Any]) -> dict[str, Any]:
    """The document that FastAPI made, with what it does not know; what a route says itself stays."""
    table = _table()
    refusals = {str(status): _refusal(text, "Error") for status, text in table["refusals"]["texts"].items()}
    schemes = {"key": {"type": "http", "scheme": "bearer", "description": "where the server has API keys"}}
    components = {"schemas": table["schemas"], "responses": refusals, "securitySchemes": schemes}
    paths = {
        path: {method: _operation(path, method, operation) for method, operation in operations.items()}
        for path, operations in made["paths"].items()
    }
    return {**made, "paths": paths, "components": components, "security": [{}, {"key": []}]}


def _operation(path: str, method: str, operation: Mapping[str, Any]) -> dict[str, Any]:
    """One operation; FastAPI's own answer to a wrong parameter (422) is never given here."""
    table = _table()
    known = table["routes"].get(path, {})
    out = dict(operation)
    body = out.get("requestBody", {}).get("content", {}).get(_JSON, {}).get("schema")
    if body is not None:
        out["requestBody"] = {**out["requestBody"], "content": {_JSON: {"schema": _body(body, known)}}}
    own = {status: answer for status, answer in out["responses"].items() if status != "422"}
    if "schema" in known:
        own["200"] = {"description": known.get("says", "The answer"), "content": _contents(known)}
    for status, name in known.get("also", {}).items():
        own[str(status)] = {"description": "The same, when it is not so", "content": {_JSON: {"schema": _ref(name)}}}
    statuses = [*table["refusals"][method], *known.get("refuses", ())]
    general: dict[str, Any] = {str(status): {"$ref": f"#/components/responses/{status}"} for status in statuses}
    if "error" in known:
        general = {str(status): _refusal(table["refusals"]["texts"][status], known["error"]) for status in statuses}
    out["responses"] = dict(sorted({**general, **own}.items()))
    out["parameters"] = [*out.get("parameters", ()), _REQUEST_ID]
    return out


def _refusal(text: str, form: str) -> dict[str, Any]:
    return {"description": text, "content": {_JSON: {"schema": _ref(form)}}}


def _contents(known: Mapping[str, Any]) -> dict[str, Any]:
    """What an answer of 200 may be."""
    name = known["schema"]
    if name == "text":
        return {"text/plain": {"schema": {"type": "string"}}}
    out: dict[str, Any] = {_JSON: {"schema": _ref(name)}}
    if "stream" in known:
        data = {"type": "string", "contentMediaType": _JSON, "contentSchema": _ref(known["stream"])}
        last = {"const": "[DONE]", "description": "the last event"}
        event = {"event": {"type": "string"}, "data": data} if "named" in known else {"data": {"anyOf": [last, data]}}
        out[_STREAM] = {"schema": {"type": "object", "description": "one event", "properties": event}}
    return out


def _body(schema: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """A body's schema with the bounds that are held behind it, the form of messages and tools, what it cannot lack."""
    properties = dict(schema.get("properties", {}))
    for name, bounds in _table()["bounds"].items():
        if name in properties:
            properties[name] = _bounded(properties[name], bounds)
    for name, form in known.get("items", {}).items():
        properties[name] = _filled(properties[name], _ref(form))
    either = {how: [{"required": [name]} for name in names] for how, names in known.get("needs", {}).items()}
    return {**schema, "properties": properties, **either}


def _bounded(schema: Mapping[str, Any], bounds: Mapping[str, Any]) -> dict[str, Any]:
    """Bounds of a number that the schema does not have itself."""
    if "anyOf" in schema:
        return {**schema, "anyOf": [_bounded(each, bounds) for each in schema["anyOf"]]}
    if schema.get("type") not in ("number", "integer"):
        return dict(schema)
    return {**bounds, **schema}


def _filled(schema: Mapping[str, Any], form: Mapping[str, Any]) -> dict[str, Any]:
    """A list of anything as a list of that form."""
    if "anyOf" in schema:
        return {**schema, "anyOf": [_filled(each, form) for each in schema["anyOf"]]}
    return {**schema, "items": form} if schema.get("items") == {} else dict(schema)


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}
