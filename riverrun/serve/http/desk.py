"""Where requests meet models: which model or adapter a name means, what runs under which id, and how it is ended.

A request that its client left, or that somebody ends by its id, is aborted within one step of the model.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, TypeVar, runtime_checkable

from fastapi import Request
from pydantic import BaseModel

from riverrun.base.errors import UnsupportedError
from riverrun.base.protocols import Abort, Completion, Delta, LanguageModel, Score
from riverrun.base.protocols import Request as Asked
from riverrun.base.types import Message, Usage
from riverrun.serve.http.schema import read_body
from riverrun.serve.http.streaming import Chunks, EventStream, Piece, disconnected, run_in_thread
from riverrun.web.app import parse_json
from riverrun.web.errors import HttpError
from riverrun.web.keys import Key

__all__ = ["Desk", "HasAdapters", "HasTokens", "Place", "key_of", "read_request"]

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")


@runtime_checkable
class HasTokens(Protocol):
    """A model that shows its tokens."""

    def tokenize(self, request: Asked) -> list[int]:
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

    def texts(self) -> HasTokens:
        """The model as one that shows its tokens."""
        if not isinstance(self.model, HasTokens):
            raise UnsupportedError(f"model '{self.name}' does not show its tokens: choose another model")
        return self.model

    def score(self, prefix: str | Sequence[Message], continuations: Sequence[str]) -> list[Score]:
        more: dict[str, Any] = {"adapter": self.adapter} if self.adapter else {}
        return self.model.score(prefix, continuations, **more)


class Desk:
    """The models of one server by name, and the requests that run. `models` may change while the server runs."""

    def __init__(self, models: Mapping[str, LanguageModel], *, keep_alive_seconds: float = 15.0) -> None:
        self.models, self.keep_alive_seconds = models, keep_alive_seconds
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
            return Place(name, model)
        for key, model in list(self.models.items()):
            if isinstance(model, HasAdapters) and name in model.adapters:
                return Place(key, model, name)
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
    def _registered(self, request: Request, name: str) -> Iterator[Abort]:
        abort = Abort()
        names = [str(request.scope.get("riverrun.request_id", id(request))), *([name] if name else [])]
        with self._lock:
            self._running.update(dict.fromkeys(names, abort))
        try:
            yield abort
        finally:
            with self._lock:
                for each in names:
                    if self._running.get(each) is abort:
                        del self._running[each]

    async def call(self, request: Request, work: Callable[[Abort], T], *, name: str = "") -> T:
        """What `work` returns, done in a thread; it is aborted when the client goes away, or by `name`."""
        with self._registered(request, name) as abort:
            task = asyncio.ensure_future(run_in_thread(lambda: work(abort)))
            gone = asyncio.ensure_future(disconnected(request.receive))
            try:
                await asyncio.wait([task, gone], return_when=asyncio.FIRST_COMPLETED)
                if not task.done():
                    abort.set()
                return await task
            finally:
                gone.cancel()

    def events(
        self, request: Request, make: Callable[[Abort], Iterator[Piece]], chunks: Chunks, *, name: str = "",
        at_end: Callable[[], object] = lambda: None,
    ) -> EventStream:  # fmt: skip
        """The same for what comes piece by piece; `at_end` is called when it is over, however it ended."""
        registered = self._registered(request, name)
        abort = registered.__enter__()

        def pieces() -> Iterator[Piece]:
            try:
                for index, delta in make(abort):
                    if delta.usage is not None:
                        charge(request, delta.usage)
                    yield index, delta
            finally:
                registered.__exit__(None, None, None)
                at_end()

        return EventStream(pieces, chunks, keep_alive_seconds=self.keep_alive_seconds)

    async def run(self, request: Request, place: Place, asked: Sequence[Asked]) -> list[Completion]:
        """The answers to all."""
        done = await self.call(request, lambda abort: place.model.generate(_placed(asked, place, abort)))
        charge(request, Usage.total(completion.usage for completion in done))
        return done

    def stream(self, request: Request, place: Place, asked: Sequence[Asked], chunks: Chunks) -> EventStream:
        """The answers in events, each piece with the number of its answer."""

        def pieces(abort: Abort) -> Iterator[Piece]:
            return merged([partial(place.model.stream, each) for each in _placed(asked, place, abort)])

        return self.events(request, pieces, chunks)


def _placed(asked: Sequence[Asked], place: Place, abort: Abort) -> list[Asked]:
    return [replace(each, abort=abort, adapter=place.adapter) for each in asked]


def merged(streams: Sequence[Callable[[], Iterator[Delta]]]) -> Iterator[tuple[int, Delta]]:
    """The pieces of several streams as they come, each with its stream's number; closing it closes all."""
    if len(streams) == 1:
        only = streams[0]()
        try:
            for delta in only:
                yield 0, delta
        finally:
            _close(only)
        return
    pieces: queue.SimpleQueue[tuple[int, Delta | BaseException | None]] = queue.SimpleQueue()
    opened = [make() for make in streams]

    def read(number: int, stream: Iterator[Delta]) -> None:
        try:
            for delta in stream:
                pieces.put((number, delta))
            pieces.put((number, None))
        except BaseException as error:
            pieces.put((number, error))

    for number, stream in enumerate(opened):
        threading.Thread(target=read, args=(number, stream), name="riverrun-answer", daemon=True).start()
    left = len(opened)
    try:
        while left:
            number, item = pieces.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                left -= 1
            else:
                yield number, item
    finally:
        for stream in opened:
            _close(stream)


def _close(stream: Iterator[Delta]) -> None:
    with suppress(ValueError):  # it is being read by its thread, which sees the end of the aborted answer
        close = getattr(stream, "close", None)
        if close is not None:
            close()


def key_of(request: Request) -> str:
    """Whose request it is: the name of its API key."""
    key = request.scope.get("riverrun.key")
    return key.name if isinstance(key, Key) else ""


def charge(request: Request, usage: Usage) -> None:
    """Count these tokens against the request's key."""
    key = request.scope.get("riverrun.key")
    if isinstance(key, Key):
        key.charge(usage.total_tokens - usage.cached_tokens)


async def read_request(request: Request, model: type[M]) -> M:
    """The validated body of a request."""
    data = parse_json(await request.body(), request.headers.get("content-type", ""))
    return read_body(model, data)  # type: ignore[type-var]
