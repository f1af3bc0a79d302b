"""Functions as tools: schema from hints, arguments checked with one sentence."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from riverrun.agent.tool import FunctionTool, Tool, clip, effects_of, tool
from riverrun.base.errors import InputError, ToolError


class Size(Enum):
    SMALL = "small"
    LARGE = "large"


class Place(BaseModel):
    lat: float
    lon: float = 0.0


@tool(effects="read")
def order(
    title: Annotated[str, "Title of the book."],
    count: int = 1,
    unit: Literal["box", "piece"] = "piece",
    size: Size = Size.SMALL,
    tags: list[str] | None = None,
    place: Place | None = None,
    extra: dict[str, int] | None = None,
    schema: Annotated[float, Field(ge=0)] = 0.0,
) -> Any:
    """Order a book
    by title.

    Args:
        count: How many.
        unit (str): Kind of unit.
    """
    return {"title": title, "count": count, "unit": unit, "size": size.value, "tags": tags, "schema": schema}


def test_schema() -> None:
    assert order.spec.name == "order"
    assert order.spec.description == "Order a book by title."
    assert order.spec.parameters == {
        "type": "object",
        "properties": {
            "title": {"type": "string", "description": "Title of the book."},
            "count": {"type": "integer", "default": 1, "description": "How many."},
            "unit": {"type": "string", "enum": ["box", "piece"], "default": "piece", "description": "Kind of unit."},
            "size": {"type": "string", "enum": ["small", "large"], "default": "small"},
            "tags": {"type": "array", "items": {"type": "string"}},
            "place": {
                "type": "object",
                "properties": {"lat": {"type": "number"}, "lon": {"type": "number", "default": 0.0}},
                "required": ["lat"],
            },
            "extra": {"type": "object", "additionalProperties": {"type": "integer"}},
            "schema": {"type": "number", "minimum": 0, "default": 0.0},
        },
        "required": ["title"],
    }


def test_plain_parameters_stay_plain() -> None:
    @tool
    def look(query: str, limit: int) -> str:
        """Look."""
        return query * limit

    assert look.spec.parameters == {
        "type": "object",
        "properties": {"query": {"type": "string"}, "limit": {"type": "integer"}},
        "required": ["query", "limit"],
    }
    assert isinstance(look, Tool)
    assert effects_of(look) == "write"
    assert effects_of(order) == "read"
    assert look(query="a", limit=2) == "aa"


def test_coercion_and_defaults() -> None:
    result = order.run({"title": 1984, "count": "3", "tags": '["a", "b"]', "size": "large"})
    assert not result.is_error
    assert result.data == {
        "title": "1984", "count": 3, "unit": "piece", "size": "large", "tags": ["a", "b"], "schema": 0.0
    }  # fmt: skip
    assert '"count": 3' in result.content


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "order needs the argument 'title'"),
        ({"title": "x", "cuont": 1}, "no argument 'cuont'. Did you mean 'count' or 'unit'?"),
        ({"title": "x", "count": "many"}, "argument 'count' of order is \"many\": input should be a valid integer"),
        ({"title": "x", "count": 1.5}, "argument 'count' of order is 1.5"),
        ({"title": "x", "unit": "ton"}, "'box' or 'piece'"),
        ({"title": ["x"]}, "argument 'title' of order is [\"x\"]"),
        ({"title": "x", "place": {"lon": 1}}, "needs the argument 'place.lat'"),
        ({"title": "x", "schema": -1}, "greater than or equal to 0"),
    ],
)
def test_wrong_arguments_get_one_sentence(arguments: dict[str, Any], words: str) -> None:
    result = order.run(arguments)
    assert result.is_error
    assert result.content.startswith("error: ")
    assert words in result.content
    assert "\n" not in result.content


def test_failures_are_results() -> None:
    @tool
    def bad(kind: str) -> str:
        if kind == "refuse":
            raise ToolError("no book is called so")
        raise ValueError("boom")

    assert bad.run({"kind": "refuse"}).content == "error: no book is called so"
    assert bad.run({"kind": "x"}).content == "error: bad failed with ValueError: boom"


def test_contents() -> None:
    assert tool(name="n", characters=5)(lambda: "abcdefgh").run({}).content == "abcd…"
    assert tool(name="n")(lambda: None).run({}).content == "done"
    assert tool(name="n")(lambda: {1, 2}).run({}).content == "{1, 2}"
    assert clip("abc", 3) == "abc"


def test_what_cannot_be_a_tool() -> None:
    async def later() -> None: ...

    def many(*names: str) -> None: ...

    def odd(x: object) -> None: ...

    def odder(x: Tool) -> None: ...

    with pytest.raises(InputError, match="coroutine"):
        tool(later)

    class Local(BaseModel):
        x: int

    def hidden(x: Local) -> None: ...

    with pytest.raises(InputError, match="Local"):
        tool(hidden)
    with pytest.raises(InputError, match="names"):
        tool(many)
    with pytest.raises(InputError, match="type hint"):
        tool(odder)
    assert isinstance(tool(odd), FunctionTool)
