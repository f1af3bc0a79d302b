"""Named parts whose factories are imported when asked for: `Registry("engine").add("torch", "riverrun.x:make")`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

from riverrun.base.errors import InputError, nearest

__all__ = ["Registry"]

T = TypeVar("T")


class Registry(Generic[T]):
    """Name -> object, or name -> "module:attribute" loaded at first use."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T | str] = {}

    def add(self, name: str, entry: T | str) -> None:
        """Register an object or a lazy "module:attribute"; a name can be taken once."""
        assert name not in self._entries, f"{self.kind} {name!r} is registered twice"
        self._entries[name] = entry

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator form of `add`."""

        def keep(entry: T) -> T:
            self.add(name, entry)
            return entry

        return keep

    def get(self, name: str) -> T:
        """The entry; InputError with the nearest names when there is none."""
        if name not in self._entries:
            raise InputError(f"unknown {self.kind} '{name}'.{nearest(name, self._entries)}")
        entry = self._entries[name]
        if isinstance(entry, str):
            module, _, attribute = entry.partition(":")
            loaded: Any = getattr(importlib.import_module(module), attribute)
            self._entries[name] = entry = cast(T, loaded)
        return entry

    def names(self) -> list[str]:
        return sorted(self._entries)
