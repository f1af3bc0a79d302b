"""Verifiable rewards: named functions from a problem and an answer to a number, and the errors around them.

A reward is any callable (Problem, answer text) -> float. The named ones need no model: `exact_number`, `regex`,
`json_schema`. Knows no torch.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any

from riverrun.base.errors import ConfigError, InputError, RiverrunError, UnsupportedError
from riverrun.base.registry import Registry
from riverrun.base.types import Message

__all__ = ["REWARDS", "Problem", "Reward", "combined", "judge", "make_reward", "matches_schema"]


@dataclass(frozen=True, slots=True)
class Problem:
    """What is asked, as messages or as a raw prompt, and what the reward needs to know of the right answer."""

    id: str
    messages: tuple[Message, ...] = ()
    prompt: str = ""
    answer: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if bool(self.messages) == bool(self.prompt):
            raise InputError(f"problem '{self.id}' must have either messages or a prompt")


Reward = Callable[[Problem, str], float]
REWARDS: Registry[Callable[..., Reward]] = Registry("reward")

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def _number(text: str) -> Decimal | None:
    try:
        return Decimal(text.replace(",", ""))
    except InvalidOperation:
        return None


@REWARDS.register("exact_number")
def exact_number(*, first: bool = False) -> Reward:
    """1 when the last number of the answer (with `first` the first one) is the problem's; else 0."""

    def reward(problem: Problem, text: str) -> float:
        wanted = _number(problem.answer.strip())
        if wanted is None:
            raise InputError(f"its answer {problem.answer!r} is not a number")
        found = _NUMBER.findall(text)
        return float(bool(found) and _number(found[0 if first else -1]) == wanted)

    return reward


@REWARDS.register("regex")
def regex(*, pattern: str = "") -> Reward:
    """1 when the pattern (or, where none is given, the problem's answer as a pattern) is found in the answer."""
    given = _compile(pattern) if pattern else None

    def reward(problem: Problem, text: str) -> float:
        return float((given or _compile(problem.answer)).search(text) is not None)

    return reward


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise InputError(f"the pattern {pattern!r} is not a regular expression: {error}") from None


@REWARDS.register("json_schema")
def json_schema(*, schema: Mapping[str, Any] | None = None) -> Reward:
    """1 when the whole answer is JSON that the schema (or, where none is given, the problem's `schema`) allows."""

    def reward(problem: Problem, text: str) -> float:
        wanted = schema if schema is not None else problem.data.get("schema")
        if not isinstance(wanted, Mapping):
            raise InputError("it has no `schema` in its data, and the reward was given none")
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return 0.0
        return float(matches_schema(value, wanted))

    return reward


_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}
_SAYS_NOTHING = {"title", "description", "default", "examples", "$schema", "$id"}


def matches_schema(value: Any, schema: Mapping[str, Any]) -> bool:
    """Whether a JSON value is allowed by the part of JSON Schema known here; UnsupportedError names the rest."""
    checks: dict[str, Callable[[Any], bool]] = {
        "type": lambda wanted: any(_is(value, name) for name in ([wanted] if isinstance(wanted, str) else wanted)),
        "enum": lambda wanted: any(_same(value, each) for each in wanted),
        "const": lambda wanted: _same(value, wanted),
        "required": lambda wanted: not isinstance(value, dict) or all(key in value for key in wanted),
        "properties": lambda wanted: (
            not isinstance(value, dict) or all(matches_schema(value[k], s) for k, s in wanted.items() if k in value)
        ),
        "additionalProperties": lambda wanted: _extra(value, wanted, schema.get("properties") or {}),
        "items": lambda wanted: not isinstance(value, list) or all(matches_schema(each, wanted) for each in value),
        "minItems": lambda wanted: not isinstance(value, list) or len(value) >= wanted,
        "maxItems": lambda wanted: not isinstance(value, list) or len(value) <= wanted,
        "minLength": lambda wanted: not isinstance(value, str) or len(value) >= wanted,
        "maxLength": lambda wanted: not isinstance(value, str) or len(value) <= wanted,
        "pattern": lambda wanted: not isinstance(value, str) or re.search(wanted, value) is not None,
        "minimum": lambda wanted: not _is(value, "number") or value >= wanted,
        "maximum": lambda wanted: not _is(value, "number") or value <= wanted,
        "anyOf": lambda wanted: any(matches_schema(value, each) for each in wanted),
    }
    for key in schema:
        if key not in checks and key not in _SAYS_NOTHING:
            raise UnsupportedError(f"JSON schema keyword '{key}' is not supported, supported: {', '.join(checks)}")
    return all(checks[key](wanted) for key, wanted in schema.items() if key in checks)


def _is(value: Any, name: str) -> bool:
    if name not in _TYPES:
        raise UnsupportedError(f"JSON schema type '{name}' is not one of {', '.join(_TYPES)}")
    if isinstance(value, bool):
        return name == "boolean"
    return isinstance(value, _TYPES[name]) or (name == "integer" and isinstance(value, float) and value.is_integer())


def _same(one: Any, other: Any) -> bool:
    """Equal as JSON: true is not 1."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def _extra(value: Any, wanted: Any, known: Mapping[str, Any]) -> bool:
    if not isinstance(value, dict) or wanted is True:
        return True
    more = [each for key, each in value.items() if key not in known]
    return not more if wanted is False else all(matches_schema(each, wanted) for each in more)


def make_reward(name: str, **options: Any) -> Reward:
    """The named reward; ConfigError for an option that it does not have."""
    try:
        return REWARDS.get(name)(**options)
    except TypeError as error:
        raise ConfigError(f"reward '{name}': {error}") from None


def combined(parts: Sequence[tuple[Reward, float]]) -> Reward:
    """The weighted sum of several rewards."""
    return lambda problem, text: sum(weight * reward(problem, text) for reward, weight in parts)


def judge(reward: Reward, problem: Problem, text: str) -> float:
    """The reward of one answer; RiverrunError in one sentence when it raises or gives no finite number."""
    try:
        value = float(reward(problem, text))
    except Exception as error:
        told = str(error) if isinstance(error, RiverrunError) else f"{type(error).__name__}: {error}"
        kind = type(error) if isinstance(error, InputError) else InputError
        raise kind(
            f"the reward of problem '{problem.id}' failed ({told}): mend the reward function or the problem"
        ) from (None if isinstance(error, RiverrunError) else error)
    if not math.isfinite(value):
        raise InputError(
            f"the reward of problem '{problem.id}' is {value} for the answer {text[:60]!r}: "
            "a reward must be a finite number"
        )
    return value
