"""Reading the loose parts of a request's JSON: every error names the place, every field without an effect is refused.

What the Responses API and the Messages API share. A field that is null says nothing.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from riverrun.base.types import ToolCall, ToolSpec
from riverrun.web.errors import HttpError

__all__ = ["fields", "forced_tools", "invalid", "items", "string", "tool_call", "tool_spec", "unsupported"]


def invalid(place: str, value: Any, wanted: str) -> HttpError:
    """A value of the wrong form."""
    return HttpError(400, f"'{place}' = {_shown(value)}: {wanted}", code="invalid_request", param=place)


def unsupported(place: str, value: Any, advice: str) -> HttpError:
    """A value that is known and not offered."""
    return HttpError(400, f"'{place}' = {_shown(value)} is not supported: {advice}", code="unsupported", param=place)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 120 else text[:117] + "..."


def fields(value: Any, place: str, known: Collection[str], empty: Collection[str] = ()) -> dict[str, Any]:
    """The fields of an object that say something; HttpError 400 for one that is not known.

    Those of `empty` are known, and say nothing where they are false or hold nothing.
    """
    if not isinstance(value, Mapping):
        raise invalid(place, value, "give an object")
    out = {}
    for name, each in value.items():
        if each is None or (name in empty and not each):
            continue
        if name not in known:
            raise unsupported(f"{place}.{name}", each, f"known: {', '.join(known)}")
        out[name] = each
    return out


def string(part: Mapping[str, Any], name: str, place: str, *, least: int = 0) -> str:
    """A field that must be a text of at least so many characters; without `least` it may be left out."""
    value = part.get(name, None if least else "")
    if not isinstance(value, str) or len(value) < least:
        raise invalid(f"{place}.{name}", value, "give a text" if not least else "give a text that is not empty")
    return value


def items(value: Any, place: str) -> list[Any]:
    if not isinstance(value, list):
        raise invalid(place, value, "give a list")
    return value


def tool_call(name: str, arguments: Any, call_id: str, place: str) -> ToolCall:
    """A call that an assistant made; `arguments` is an object, or its JSON."""
    try:
        found = json.loads(arguments or "{}") if isinstance(arguments, str) else arguments
        json.dumps(found, ensure_ascii=False).encode("utf-8")  # half a surrogate pair can hide in JSON inside JSON
    except (ValueError, TypeError, RecursionError) as error:
        raise invalid(place, arguments, f"give a JSON object ({error})") from None
    if not isinstance(found, dict):
        raise invalid(place, arguments, "give a JSON object")
    return ToolCall(name, found, call_id)


def tool_spec(part: Mapping[str, Any], schema: str, place: str, *, forced: bool) -> ToolSpec:
    """A tool whose JSON schema stands in the field `schema`. Only calls that are forced are held to it."""
    if part.get("strict") and not forced:
        raise unsupported(
            f"{place}.strict", True, "only calls that 'tool_choice' forces are held to the schema; leave it out"
        )
    parameters = part.get(schema, {})
    if not isinstance(parameters, Mapping):
        raise invalid(f"{place}.{schema}", parameters, "give a JSON schema")
    return ToolSpec(string(part, "name", place, least=1), string(part, "description", place), dict(parameters))


def forced_tools(wanted: str, name: Any, tools: Sequence[ToolSpec], *, several: bool, param: str) -> tuple[str, ...]:
    """Names of the tools of which one must be called.

    `wanted` is auto, none, any (of them) or tool (the one named); `param` is the field that forbids `several` calls.
    """
    known = [tool.name for tool in tools]
    if wanted in ("auto", "none"):
        if not several and wanted == "auto" and known:
            raise HttpError(
                400, f"one call at most ('{param}') is not supported with 'tool_choice' auto: there the model decides",
                code="unsupported", param=param,
            )  # fmt: skip
        return ()
    if not known:
        raise invalid("tool_choice", name or wanted, "it needs 'tools'")
    if wanted == "any":
        return tuple(known)
    if name not in known:
        raise invalid("tool_choice.name", name, f"give one of {', '.join(known)}")
    return (str(name),)
