"""Where requests meet models: which model or adapter a name means, what runs under which id, and how it is ended."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

from riverrun.base.errors import InputError, UnsupportedError
from riverrun.base.protocols import Abort, LanguageModel, Request, Score
from riverrun.base.types import Message
from riverrun.serve.sessions import SessionTable
from riverrun.web.errors import HttpError

__all__ = ["Desk", "HasAdapters", "HasTokens", "Place"]


@runtime_checkable
class HasTokens(Protocol):
    """A model that shows its tokens."""

    def tokenize(self, request: Request) -> list[int]:
        """The ids of a request's prompt."""
        ...

    def detokenize(self, ids: Sequence[int]) -> str: ...

    def piece(self, token: int) -> bytes: ...


@runtime_checkable
class HasAdapters(Protocol):
    """A model with adapters that requests choose by name."""

    @property
    def adapters(self) -> tuple[str, ...]: ...


@dataclass(frozen=True, slots=True)
class Place:
    """A model under a name of this server; `adapter` where the name means one of its adapters."""

    name: str
    model: LanguageModel
    adapter: str = ""
    timeout_seconds: float = 0.0
    """What the server gives a request at most; 0 is no limit."""

    def texts(self) -> HasTokens:
        """The model as one that shows its tokens."""
        if not isinstance(self.model, HasTokens):
            raise UnsupportedError(f"model '{self.name}' does not show its tokens: choose another model")
        return self.model

    def sessions(self) -> SessionTable:
        """The model's sessions."""
        table = getattr(self.model, "sessions", None)
        if not isinstance(table, SessionTable):
            raise UnsupportedError(f"model '{self.name}' remembers no sessions: send whole conversations")
        return table

    def placed(self, asked: Sequence[Request], abort: Abort) -> list[Request]:
        """The requests for this place, ended by `abort`."""
        return [
            replace(each, abort=abort, adapter=self.adapter, timeout_seconds=self.seconds(each.timeout_seconds))
            for each in asked
        ]

    def seconds(self, asked: float) -> float:
        """Seconds for a request that asks for so many (0: any)."""
        if not asked >= 0:  # also what is no number
            raise InputError(f"the time limit must be 0 (none) or more seconds, got {asked}")
        return min(asked or self.timeout_seconds, self.timeout_seconds or asked)

    def count(self, *given: str | Sequence[Message]) -> int:
        """Tokens of texts and conversations, where the model shows its tokens; else 0."""
        counted = getattr(self.model, "count", None)
        if counted is None or not isinstance(self.model, HasTokens):
            return 0
        model = self.model
        return sum(
            counted(each) if isinstance(each, str) else len(model.tokenize(Request(tuple(each)))) for each in given
        )

    def score(self, prefix: str | Sequence[Message], continuations: Sequence[str]) -> list[Score]:
        more: dict[str, Any] = {"adapter": self.adapter} if self.adapter else {}
        return self.model.score(prefix, continuations, **more)


class Desk:
    """The models of one server by name, and the requests that run. `models` may change while the server runs."""

    def __init__(self, models: Mapping[str, LanguageModel], *, timeout_seconds: float = 0.0) -> None:
        self.models, self.timeout_seconds = models, timeout_seconds
        self._running: dict[str, Abort] = {}
        self._lock = threading.Lock()

    # ---- names

    def names(self) -> list[str]:
        """Models, then their adapters."""
        adapters = [name for model in self.models.values() if isinstance(model, HasAdapters) for name in model.adapters]
        return [*self.models, *(name for name in adapters if name not in self.models)]

    def find(self, name: str) -> Place:
        model = self.models.get(name)
        if model is not None:
            return Place(name, model, "", self.timeout_seconds)
        for key, model in list(self.models.items()):
            if isinstance(model, HasAdapters) and name in model.adapters:
                return Place(key, model, name, self.timeout_seconds)
        known = ", ".join(self.names()) or "none"
        raise HttpError(
            404, f"there is no model '{name}': this server has {known}", code="model_not_found", param="model"
        )

    # ---- running requests

    @property
    def running(self) -> int:
        return len(self._running)

    def abort(self, request_id: str) -> bool:
        """End the request of that id; whether one runs."""
        found = self._running.get(request_id)
        if found is not None:
            found.set()
        return found is not None

    @contextmanager
    def registered(self, *names: str) -> Iterator[Abort]:
        """Something that runs under these names ("" is none) until the block is left."""
        abort = Abort()
        with self._lock:
            self._running.update(dict.fromkeys(filter(None, names), abort))
        try:
            yield abort
        finally:
            with self._lock:
                for each in names:
                    if self._running.get(each) is abort:
                        del self._running[each]
