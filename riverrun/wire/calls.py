"""From a text that should be one call's JSON to tool calls: the shapes models write around name and arguments."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from riverrun.base.errors import ToolError, nearest
from riverrun.base.types import ToolCall, ToolSpec
from riverrun.wire.repair import check_keys, repair

__all__ = ["read_calls"]

_PYTHON_CALL = re.compile(r"[A-Za-z_][\w.]*\s*\(.*\)", re.DOTALL)
_NAME = re.compile(r"[\w.:/-]{1,128}")
_ARGUMENT_KEYS = ("arguments", "parameters", "args")


def read_calls(text: str, tools: Sequence[ToolSpec] = (), *, complete: bool = True) -> tuple[list[ToolCall], list[str]]:
    """The calls in the text and what had to be repaired. `complete` False: the text may have been cut off at its end,
    so a value without its closing mark is refused. ToolError says in one sentence why there is no call."""
    problems: list[str] = []
    body = text.strip()
    if _PYTHON_CALL.fullmatch(body):
        call = _python_call(body)
        problems.append("the call was written as code")
        calls = [call]
    else:
        read = repair(body)
        if read.truncated and not complete:
            raise ToolError("it was cut off inside a value")
        problems.extend(read.edits)
        values = read.value if isinstance(read.value, list) else [read.value]
        if not values:
            raise ToolError("the list of calls is empty")
        if isinstance(read.value, list):
            problems.append("the call stood in a list")
        calls = [_call(value, tools, problems) for value in values]
        if read.edits:
            for call in calls:
                if spec := _spec(call.name, tools):
                    check_keys(call.arguments, spec.parameters)
    names = {tool.name for tool in tools}
    for call in calls:
        if names and call.name not in names:
            problems.append(f"there is no tool '{call.name}'.{nearest(call.name, names)}")
    return calls, problems


def _call(value: Any, tools: Sequence[ToolSpec], problems: list[str]) -> ToolCall:
    if isinstance(value, Mapping) and isinstance(value.get("function"), Mapping):
        problems.append("the call stood in a 'function' object")
        value = value["function"]
    if not isinstance(value, Mapping):
        raise ToolError(f"a call must be an object with name and arguments, got {json.dumps(value)[:60]}")
    name = value.get("name", value.get("function", value.get("tool")))
    if not isinstance(name, str) or not name.strip():
        raise ToolError("the object has no 'name' of a tool")
    name = name.strip()
    if not _NAME.fullmatch(name) and not _spec(name, tools):
        raise ToolError(f"{json.dumps(name, ensure_ascii=False)[:60]} is not the name of a tool")
    return ToolCall(name, _arguments(value, _spec(name, tools), problems))


def _spec(name: str, tools: Sequence[ToolSpec]) -> ToolSpec | None:
    return next((tool for tool in tools if tool.name == name), None)


def _arguments(value: Mapping[str, Any], spec: ToolSpec | None, problems: list[str]) -> dict[str, Any]:
    given = [key for key in _ARGUMENT_KEYS if key in value]
    if len(given) > 1 and any(value[key] != value[given[0]] for key in given[1:]):
        raise ToolError(f"'{given[0]}' and '{given[1]}' are both given and differ")
    if given:
        if given[0] != "arguments":
            problems.append(f"'{given[0]}' was read as 'arguments'")
        arguments = value[given[0]]
        if isinstance(arguments, str):
            read = repair(arguments, spec.parameters if spec else None)
            problems.extend(["the arguments were encoded as a string", *read.edits])
            arguments = read.value
        if arguments is None:
            arguments = {}
        if not isinstance(arguments, dict):
            raise ToolError(f"'arguments' must be an object, got {json.dumps(arguments)[:60]}")
        return arguments
    rest = {key: item for key, item in value.items() if key not in ("name", "function", "tool", "type", "id")}
    if not rest:
        problems.append("the call had no 'arguments'")
        return {}
    if spec and set(rest) <= set(spec.parameters.get("properties") or ()):
        problems.append("the arguments stood beside 'name'")
        return rest
    raise ToolError(f"the object has no 'arguments', and {sorted(rest)[0]!r} is not one of the tool's")


def _python_call(body: str) -> ToolCall:
    """`f(x=1, y="a")` with literal keyword arguments only."""
    try:
        tree = ast.parse(body, mode="eval").body
        assert isinstance(tree, ast.Call)
        if tree.args or any(keyword.arg is None for keyword in tree.keywords):
            raise ToolError("a call written as code must name its arguments")
        arguments = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in tree.keywords}
        json.dumps(arguments, allow_nan=False)
        return ToolCall(ast.unparse(tree.func), arguments)
    except (SyntaxError, ValueError, TypeError, AssertionError, RecursionError, MemoryError):
        raise ToolError("it is neither JSON nor a call with literal arguments") from None
