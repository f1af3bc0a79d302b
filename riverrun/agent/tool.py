"""What a tool is, and how a Python function becomes one.

    @tool
    def weather(city: Annotated[str, "Name of the city."], unit: Literal["c", "f"] = "c") -> str:
        "The weather today."

The JSON Schema comes from the type hints (pydantic does the work, titles and references are taken out again), the
descriptions from `Annotated` texts or an "Args:" section of the docstring. Arguments are checked and gently coerced
("5" for an integer); what does not fit is answered with one sentence for the model. A tool's `run` never raises for
what the model asked: refusals and failures come back as a ToolResult with `is_error`. Coroutines are not supported.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Protocol, get_args, get_origin, get_type_hints, overload, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.errors import PydanticSchemaGenerationError
from pydantic.fields import FieldInfo

from riverrun.base.errors import InputError, RiverrunError, ToolError, nearest
from riverrun.base.types import ToolResult, ToolSpec

__all__ = ["Arguments", "Effects", "FunctionTool", "Tool", "clip", "effects_of", "failure", "tool"]

Effects = Literal["read", "write"]
_NO_KEYWORDS = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@runtime_checkable
class Tool(Protocol):
    """A tool may also have `effects`: "read" may be run again after a crash; "write", the default, never is."""

    @property
    def spec(self) -> ToolSpec: ...

    def run(self, arguments: Mapping[str, Any]) -> ToolResult:
        """Carry out one call; errors are results."""
        ...


def effects_of(item: Tool) -> Effects:
    """The tool's declared effects; "write" when it declares none."""
    return "read" if getattr(item, "effects", "write") == "read" else "write"


def failure(name: str, text: str) -> ToolResult:
    """A refusal or failure as the model reads it."""
    return ToolResult("", name, text if text.startswith("error") else f"error: {text}", is_error=True)


def clip(text: str, characters: int) -> str:
    """At most so many characters; a cut shows as '…'."""
    return text if len(text) <= characters else text[: max(0, characters - 1)].rstrip() + "…"


class Arguments:
    """The arguments of a function: their JSON Schema, and a check that returns values to call it with."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.tool = getattr(function, "__name__", "tool")
        described = _described(function)
        fields: dict[str, Any] = {}
        self._keys: dict[str, str] = {}
        try:
            hints = get_type_hints(function, include_extras=True)
        except NameError as error:
            raise InputError(f"tool '{self.tool}': a type hint is not defined at module level ({error})") from None
        for name, parameter in inspect.signature(function).parameters.items():
            if parameter.kind in _NO_KEYWORDS:
                raise InputError(f"tool '{self.tool}': parameter '{parameter}' cannot be passed by name")
            default = ... if parameter.default is inspect.Parameter.empty else parameter.default
            field = f"a{len(fields)}"  # pydantic reserves some names ("schema", "_x"): the real one is the alias
            fields[field] = _field(hints.get(name, Any), default, name, described.get(name, ""))
            self._keys[field] = name
        settings = ConfigDict(extra="forbid", coerce_numbers_to_str=True, arbitrary_types_allowed=False)
        try:
            self._model: type[BaseModel] = create_model(self.tool, __config__=settings, **fields)
            self.schema = _clean(self._model.model_json_schema())
        except (PydanticSchemaGenerationError, RecursionError, TypeError) as error:
            raise InputError(f"tool '{self.tool}': a type hint has no JSON Schema ({str(error)[:120]})") from None

    def check(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Values by parameter name, defaults left out; ToolError names the argument and its value."""
        known = list(self._keys.values())
        for key in arguments:
            if key not in known:
                raise ToolError(f"{self.tool} has no argument '{key}'.{nearest(str(key), known)}")
        for attempt in (dict(arguments), self._decoded(arguments)):
            try:
                checked = self._model.model_validate(attempt)
            except ValidationError as error:
                problem = error.errors()[0]
                continue
            return {self._keys[field]: getattr(checked, field) for field in checked.model_fields_set}
        raise ToolError(self._explain(problem))

    def _decoded(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Lists and objects that came as JSON in a string, decoded."""
        out = dict(arguments)
        for key, value in arguments.items():
            if isinstance(value, str) and value.strip()[:1] in ("{", "["):
                try:
                    out[key] = json.loads(value)
                except (ValueError, RecursionError):
                    continue
        return out

    def _explain(self, problem: Any) -> str:
        place = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "missing":
            return f"{self.tool} needs the argument '{place}'"
        given = clip(json.dumps(problem.get("input"), ensure_ascii=False, default=str), 80)
        message = problem["msg"][:1].lower() + problem["msg"][1:]
        return f"argument '{place}' of {self.tool} is {given}: {message}"


def _field(hint: Any, default: Any, name: str, description: str) -> tuple[Any, Any]:
    if get_origin(hint) is Annotated:
        texts = [item for item in get_args(hint)[1:] if isinstance(item, str)]
        infos = [item.description for item in get_args(hint)[1:] if isinstance(item, FieldInfo) and item.description]
        description = (texts or infos or [description])[0]
    return hint, Field(default, alias=name, description=description or None)


def _described(function: Callable[..., Any]) -> dict[str, str]:
    """Texts of the docstring's "Args:" section by parameter name."""
    section = re.search(r"^(?:Args|Arguments|Parameters|参数)\s*[:：]\s*\n((?:[ \t]+.*\n?|\n)+)", _doc(function), re.M)
    found = re.findall(r"^\s+(\w+)\s*(?:\([^)]*\))?\s*[:：]\s*(.+)$", section[1], re.M) if section else []
    return {name: text.strip() for name, text in found}


def _doc(function: Callable[..., Any]) -> str:
    return inspect.cleandoc(function.__doc__ or "")


def _clean(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema as a model should see it: no titles, no references, no refusal of other keys."""
    definitions = schema.get("$defs", {})

    def walk(node: Any, *, names: bool = False) -> Any:
        if isinstance(node, list):
            return [walk(item) for item in node]
        if not isinstance(node, Mapping):
            return node
        if not names and "$ref" in node:
            target = definitions[node["$ref"].rpartition("/")[2]]
            return walk({**target, **{key: item for key, item in node.items() if key != "$ref"}})
        out = {}
        for key, item in node.items():
            if not names and (key in ("title", "$defs") or (key == "additionalProperties" and item is False)):
                continue
            out[key] = (
                item if key in ("default", "enum", "const") and not names else walk(item, names=key == "properties")
            )
        if not names and len(out.get("anyOf", ())) == 2 and {"type": "null"} in out["anyOf"]:
            return _optional(out)
        return out

    cleaned: dict[str, Any] = walk(schema)
    cleaned.setdefault("properties", {})
    return cleaned


def _optional(node: dict[str, Any]) -> dict[str, Any]:
    """X or null, with null the default: the model may leave it out, so X is all it needs to know."""
    if "default" not in node or node["default"] is not None:
        return node
    inner = next(item for item in node["anyOf"] if item != {"type": "null"})
    return {**inner, **{key: item for key, item in node.items() if key not in ("anyOf", "default")}}


class FunctionTool:
    """A function as a tool; calling the object calls the function."""

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        name: str = "",
        description: str = "",
        effects: Effects = "write",
        characters: int = 4000,
    ) -> None:
        if inspect.iscoroutinefunction(function):
            raise InputError(f"tool '{function.__name__}' is a coroutine: give a plain function")
        self.function, self.effects, self.characters = function, effects, characters
        self.arguments = Arguments(function)
        self.arguments.tool = name or function.__name__
        text = description or _doc(function).split("\n\n")[0].replace("\n", " ")
        self.spec = ToolSpec(self.arguments.tool, text, self.arguments.schema)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def run(self, arguments: Mapping[str, Any]) -> ToolResult:
        name = self.spec.name
        try:
            value = self.function(**self.arguments.check(arguments))
        except RiverrunError as error:
            return failure(name, str(error))
        except Exception as error:  # a tool's defect is told to the model, the run goes on
            return failure(name, f"{name} failed with {type(error).__name__}: {clip(str(error), 200)}")
        return self._result(value)

    def _result(self, value: Any) -> ToolResult:
        name = self.spec.name
        if isinstance(value, ToolResult):
            return ToolResult(value.call_id, name, clip(value.content, self.characters), value.is_error, value.data)
        if value is None or isinstance(value, str):
            return ToolResult("", name, clip(value or "done", self.characters))
        try:
            plain = json.loads(json.dumps(value, ensure_ascii=False))
        except (TypeError, ValueError):
            return ToolResult("", name, clip(str(value), self.characters))
        return ToolResult("", name, clip(json.dumps(plain, ensure_ascii=False), self.characters), data=plain)


@overload
def tool(function: Callable[..., Any], /) -> FunctionTool: ...
@overload
def tool(
    *, name: str = "", description: str = "", effects: Effects = "write", characters: int = 4000
) -> Callable[[Callable[..., Any]], FunctionTool]: ...
def tool(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str = "",
    description: str = "",
    effects: Effects = "write",
    characters: int = 4000,
) -> FunctionTool | Callable[[Callable[..., Any]], FunctionTool]:
    """Make a tool of a function. effects="read": it may run again after a crash. `characters` bounds the content."""

    def make(wrapped: Callable[..., Any]) -> FunctionTool:
        return FunctionTool(wrapped, name=name, description=description, effects=effects, characters=characters)

    return make(function) if function else make
