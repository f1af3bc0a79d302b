"""Responses that were asked to be kept: in memory, for each API key apart, bounded in number, size and age."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from riverrun.serve.http.responses_items import Item
from riverrun.web.errors import json_bytes

__all__ = ["ResponseStore", "Stored"]


@dataclass(frozen=True, slots=True)
class Stored:
    """A response, and the items it answers: the whole conversation before it."""

    body: dict[str, Any]
    items: tuple[Item, ...]
    bytes: int
    until: float

    @property
    def conversation(self) -> tuple[Item, ...]:
        """All that was said, the answer included."""
        return (*self.items, *self.body["output"])


class ResponseStore:
    """Of each key the newest responses; any thread may ask. Each is forgotten `ttl_seconds` after it was made.

    A conversation counts with all its bytes in each of its responses, though they share them.
    """

    def __init__(
        self,
        *,
        most: int = 1000,
        most_bytes: int = 64 * 1024 * 1024,
        ttl_seconds: float = 3600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`most`, `most_bytes`: of one key."""
        self.most, self.most_bytes, self.ttl_seconds, self._clock = most, most_bytes, ttl_seconds, clock
        self._shelves: dict[str, _Shelf] = {}
        self._lock = threading.Lock()

    def keep(self, key: str, body: dict[str, Any], new: Sequence[Item], before: Stored | None = None) -> None:
        """Keep a response of this key to the `new` items, which go on the conversation of `before`."""
        size = len(json_bytes(body)) + len(json_bytes(new)) + (before.bytes if before else 0)
        items = (*before.conversation, *new) if before else tuple(new)
        with self._lock:
            self._shelves.setdefault(key, _Shelf()).put(Stored(body, items, size, self._clock() + self.ttl_seconds))
            for name, shelf in list(self._shelves.items()):
                if not self._swept(shelf):
                    del self._shelves[name]

    def get(self, key: str, name: str) -> Stored | None:
        """The response of that id, if this key made it and it is still here."""
        with self._lock:
            return self._swept(self._shelves.get(key, _Shelf())).get(name)

    def delete(self, key: str, name: str) -> bool:
        """Whether there was one."""
        with self._lock:
            shelf = self._shelves.get(key, _Shelf())
            return bool(self._swept(shelf).get(name)) and bool(shelf.take(name))

    def _swept(self, shelf: _Shelf) -> OrderedDict[str, Stored]:
        """What is left when all that is too old or too much has gone, oldest first."""
        now = self._clock()
        while shelf.kept:
            name, oldest = next(iter(shelf.kept.items()))
            if oldest.until > now and len(shelf.kept) <= self.most and shelf.bytes <= self.most_bytes:
                break
            shelf.take(name)
        return shelf.kept


class _Shelf:
    """The responses of one key, oldest first; `bytes` is the sum of theirs."""

    def __init__(self) -> None:
        self.kept: OrderedDict[str, Stored] = OrderedDict()
        self.bytes = 0

    def put(self, stored: Stored) -> None:
        self.kept[stored.body["id"]] = stored
        self.bytes += stored.bytes

    def take(self, name: str) -> Stored:
        stored = self.kept.pop(name)
        self.bytes -= stored.bytes
        return stored
