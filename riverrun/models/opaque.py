"""Texts a template may write but not look into: what it writes for them holds for every text in their place.

A chat template is a program, and most use of a message's content is to write it out, whole or trimmed. Run once with
`Opaque` in place of the contents, such a template gives its text with holes, and anything else it tries (comparing,
searching, splitting, measuring, formatting) raises, which says that its output depends on what the contents are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["Hole", "NotOpaque", "Opaque", "finalize", "guard_filter", "guard_test", "read_holes"]

OPEN, CLOSE = "\ufdd6", "\ufdd7"
_HOLE = re.compile(f"{OPEN}([0-9]+)([tlrn]){CLOSE}")
Hole = tuple[int, str]
"""Number of the content, and how it is written: n as it is, t trimmed, l and r trimmed on one side."""


class NotOpaque(Exception):
    """The template looked into a content."""


class Opaque:
    """A text of which only this is known: it holds more than white space. May be written, joined to others, trimmed.

    What is not a text's own has an underscore: a template in its sandbox cannot reach it.
    """

    __slots__ = ("_parts",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, *parts: str | Hole) -> None:
        self._parts = parts

    def __add__(self, other: Any) -> Opaque:
        return self._joined(self, other)

    def __radd__(self, other: Any) -> Opaque:
        return self._joined(other, self)

    @staticmethod
    def _joined(*values: Any) -> Opaque:
        parts: list[str | Hole] = []
        for value in values:
            parts += value._parts if isinstance(value, Opaque) else [str(value)]
        return Opaque(*parts)

    def _trim(self, how: str, chars: Any) -> Opaque:
        if chars is not None or len(self._parts) != 1 or not isinstance(self._parts[0], tuple):
            raise NotOpaque("trims a text made of several, or other characters than white space")
        number, before = self._parts[0]
        both = before if before == how else how if before == "n" else "t"
        return Opaque((number, both))

    def strip(self, chars: Any = None) -> Opaque:
        return self._trim("t", chars)

    def lstrip(self, chars: Any = None) -> Opaque:
        return self._trim("l", chars)

    def rstrip(self, chars: Any = None) -> Opaque:
        return self._trim("r", chars)

    def __bool__(self) -> bool:
        return True

    def _written(self) -> str:
        """The text with its holes marked."""
        return "".join(p if isinstance(p, str) else f"{OPEN}{p[0]}{p[1]}{CLOSE}" for p in self._parts)

    def _refuse(self, *args: Any) -> Any:
        raise NotOpaque("looks into a content")

    __str__ = __repr__ = __format__ = __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _refuse
    # no __len__: measuring fails by itself, and who only asks whether it could is not refused
    __iter__ = __getitem__ = __contains__ = __mul__ = __rmul__ = __mod__ = __rmod__ = _refuse


def finalize(value: Any) -> Any:
    """What a template writes of a value (the hook of a jinja environment)."""
    return value._written() if isinstance(value, Opaque) else value


def _holds(value: Any) -> bool:
    if isinstance(value, Opaque):
        return True
    if isinstance(value, Mapping):
        return any(_holds(item) for item in value.values())
    return isinstance(value, list | tuple) and any(_holds(item) for item in value)


_CONTAINERS = {"first", "last", "list", "length", "count", "selectattr", "rejectattr", "map", "reverse", "items"}
"""Filters that hand on what a list or a mapping holds, without looking into it."""
_TESTS = {"string", "mapping", "iterable", "sequence", "defined", "undefined", "none", "number", "boolean", "integer"}


def guard_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that trims and hands on opaque texts, and refuses them otherwise."""
    passed = hasattr(function, "jinja_pass_arg")

    def call(*args: Any, **kwargs: Any) -> Any:
        own = args[1:] if passed else args
        value = own[0] if own else None
        if isinstance(value, Opaque):
            if name == "trim" and len(own) == 1 and not kwargs:
                return value.strip()
            if name in ("default", "d", "string"):
                return value
            raise NotOpaque(f"puts a content through '{name}'")
        if (
            _holds(own[1:])
            or _holds(kwargs)
            or (name not in _CONTAINERS and name not in ("default", "d") and _holds(value))
        ):
            raise NotOpaque(f"puts a content through '{name}'")
        return function(*args, **kwargs)

    if passed:
        call.jinja_pass_arg = function.jinja_pass_arg  # type: ignore[attr-defined]
    return call


def guard_test(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A test that answers for an opaque text as for any text, and refuses what depends on it."""
    passed = hasattr(function, "jinja_pass_arg")

    def call(*args: Any, **kwargs: Any) -> Any:
        own = args[1:] if passed else args
        if own and isinstance(own[0], Opaque):
            if name not in _TESTS:
                raise NotOpaque(f"asks whether a content is '{name}'")
            return name in ("string", "iterable", "sequence", "defined")
        if _holds(list(own)) and name not in _TESTS:
            raise NotOpaque(f"asks whether a content is '{name}'")
        return function(*args, **kwargs)

    if passed:
        call.jinja_pass_arg = function.jinja_pass_arg  # type: ignore[attr-defined]
    return call


def read_holes(text: str) -> list[str | Hole]:
    """A written text taken apart again: literals, none empty, and holes."""
    parts: list[str | Hole] = []
    done = 0
    for found in _HOLE.finditer(text):
        if found.start() > done:
            parts.append(text[done : found.start()])
        parts.append((int(found[1]), found[2]))
        done = found.end()
    if done < len(text):
        parts.append(text[done:])
    return parts
