"""Requests of an HTTP server on their way to a model and back."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Protocol, TypeVar, runtime_checkable

from fastapi import Request
from pydantic import BaseModel

from riverrun.base.protocols import Abort, Completion, Delta, LanguageModel
from riverrun.base.protocols import Request as Asked
from riverrun.base.types import Usage
from riverrun.serve.aside import close, run_in_thread
from riverrun.serve.desk import Desk, Place
from riverrun.serve.http.schema import read_body
from riverrun.serve.http.streaming import Chunks, EventStream, Piece, Ring, disconnected
from riverrun.web.app import parse_json
from riverrun.web.keys import Key

__all__ = ["HttpDesk", "charge", "key_of", "read_request"]

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")


class HttpDesk(Desk):
    """The desk of an HTTP server: a request whose client goes away is aborted within one step of the model."""

    def __init__(
        self, models: Mapping[str, LanguageModel], *, keep_alive_seconds: float = 15.0, timeout_seconds: float = 0.0
    ) -> None:
        super().__init__(models, timeout_seconds=timeout_seconds)
        self.keep_alive_seconds = keep_alive_seconds

    async def call(self, request: Request, work: Callable[[Abort], T], *, name: str = "") -> T:
        """What `work` returns, done in a thread; it is aborted when the client goes away, or by `name`."""
        with self.registered(_id_of(request), name) as abort:
            task = asyncio.ensure_future(run_in_thread(lambda: work(abort)))
            gone = asyncio.ensure_future(disconnected(request.receive))
            try:
                await asyncio.wait([task, gone], return_when=asyncio.FIRST_COMPLETED)
                if not task.done():
                    abort.set()
                return await task
            except asyncio.CancelledError:  # the server ends
                abort.set()
                raise
            finally:
                gone.cancel()

    def events(
        self, request: Request, make: Callable[[Abort, Ring], Iterator[Piece | None]], chunks: Chunks, *,
        name: str = "", at_end: Callable[[], object] = lambda: None,
    ) -> EventStream:  # fmt: skip
        """The same for what comes piece by piece; `at_end` is called when it is over, however it ended."""
        registered = self.registered(_id_of(request), name)
        abort = registered.__enter__()

        def pieces(ring: Ring) -> Iterator[Piece | None]:
            made: Iterator[Piece | None] = iter(())
            try:
                made = make(abort, ring)
                for piece in made:
                    if piece is not None and piece[1].usage is not None:
                        charge(request, piece[1].usage)
                    yield piece
            finally:
                close(made)
                registered.__exit__(None, None, None)
                charge(request, Usage.total(abort.left))
                at_end()

        return EventStream(pieces, chunks, keep_alive_seconds=self.keep_alive_seconds, abort=abort.set)

    async def run(self, request: Request, place: Place, asked: Sequence[Asked]) -> list[Completion]:
        """The answers to all."""
        done = await self.call(request, lambda abort: place.model.generate(place.placed(asked, abort)))
        charge(request, Usage.total(completion.usage for completion in done))
        return done

    def stream(self, request: Request, place: Place, asked: Sequence[Asked], chunks: Chunks) -> EventStream:
        """The answers in events, each piece with the number of its answer."""

        model = place.model

        def pieces(abort: Abort, ring: Ring) -> Iterator[Piece | None]:
            placed = place.placed(asked, abort)
            if isinstance(model, Polled):
                return polled([partial(model.poll, each, ring) for each in placed])
            return merged([partial(model.stream, each) for each in placed])

        return self.events(request, pieces, chunks)


@runtime_checkable
class Polled(Protocol):
    """A model whose streams can be read by an event loop: see `serve.llm.LLM.poll`."""

    def poll(self, request: Asked, ring: Ring) -> Iterator[Delta | None]: ...


def polled(streams: Sequence[Callable[[], Iterator[Delta | None]]]) -> Iterator[Piece | None]:
    """What `merged` gives, of streams that never wait: None where none of them has anything."""
    opened = [make() for make in streams]
    left = dict(enumerate(opened))
    try:
        while left:
            for number, stream in list(left.items()):
                for delta in stream:
                    if delta is None:
                        break
                    yield number, delta
                else:
                    del left[number]
            if left:
                yield None
    finally:
        for stream in opened:
            close(stream)


def merged(streams: Sequence[Callable[[], Iterator[Delta]]]) -> Iterator[tuple[int, Delta]]:
    """The pieces of several streams as they come, each with its stream's number; closing it closes all."""
    if len(streams) == 1:
        only = streams[0]()
        try:
            for delta in only:
                yield 0, delta
        finally:
            close(only)
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
            close(stream)


def _id_of(request: Request) -> str:
    return str(request.scope.get("riverrun.request_id", id(request)))


def key_of(request: Request) -> str:
    """Whose request it is: the name of its API key."""
    key = request.scope.get("riverrun.key")
    return key.name if isinstance(key, Key) else ""


def charge(request: Request, usage: Usage) -> None:
    """Count these tokens for the request, and against its key."""
    key = request.scope.get("riverrun.key")
    request.scope["riverrun.usage"] = Usage.total([request.scope.get("riverrun.usage", Usage()), usage])
    if isinstance(key, Key):
        key.charge(usage.total_tokens - usage.cached_tokens)


async def read_request(request: Request, model: type[M]) -> M:
    """The validated body of a request."""
    data = request.scope["riverrun.asked"] = parse_json(await request.body(), request.headers.get("content-type", ""))
    return read_body(model, data)  # type: ignore[type-var]
