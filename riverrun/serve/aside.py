"""Calls that wait, for callers in an event loop: each in a thread of its own.

A pool of fixed size would let slow calls keep out all others, and a model would see no more requests at once than the
pool has threads.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, TypeVar

from riverrun.base.protocols import Abort, Completion, Delta, Request, Score
from riverrun.base.types import Message

__all__ = ["AsyncCalls", "call_soon", "close", "iterate_in_thread", "linked", "run_abortable", "run_in_thread"]

T = TypeVar("T")


async def run_in_thread(call: Callable[[], T]) -> T:
    """The call's result."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def work() -> None:
        result, error = None, None
        try:
            result = call()
        except BaseException as caught:
            # a StopIteration cannot be set on a future
            error = RuntimeError(repr(caught)) if isinstance(caught, StopIteration) else caught
        call_soon(loop, settle, result, error)

    threading.Thread(target=work, name="riverrun-request", daemon=True).start()
    return await future


def call_soon(loop: asyncio.AbstractEventLoop, call: Callable[..., object], *arguments: object) -> bool:
    """From any thread; False when the loop is closed: nobody waits any more."""
    try:
        loop.call_soon_threadsafe(call, *arguments)
    except RuntimeError:
        return False
    return True


def close(iterator: Iterator[Any]) -> None:
    """End it, where it has a `close`."""
    end = getattr(iterator, "close", None)
    if end is not None:
        with suppress(ValueError):  # a thread is in it, which sees the end of the aborted answer
            end()


async def iterate_in_thread(make: Callable[[], Iterator[T]], stop: Callable[[], object]) -> AsyncGenerator[T]:
    """The items of an iterator that waits. Leaving early calls `stop`, and waits until the iterator has ended."""
    loop = asyncio.get_running_loop()
    items: asyncio.Queue[tuple[T | None, BaseException | None, bool]] = asyncio.Queue()

    def work() -> None:
        error = None
        try:
            for item in make():
                if not call_soon(loop, items.put_nowait, (item, None, False)):
                    return
        except BaseException as caught:
            error = caught
        call_soon(loop, items.put_nowait, (None, error, True))

    threading.Thread(target=work, name="riverrun-stream", daemon=True).start()
    over = False
    try:
        while True:
            item, error, over = await items.get()
            if error is not None:
                raise error
            if over:
                return
            yield item  # type: ignore[misc]
    finally:
        if not over:
            stop()
            while not (await items.get())[2]:
                pass


async def run_abortable(call: Callable[[], T], stop: Callable[[], object]) -> T:
    """The call's result. If the caller is cancelled, `stop` is called and the end of the call awaited."""
    task = asyncio.ensure_future(run_in_thread(call))
    task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # its error may find nobody any more
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        stop()
        await asyncio.wait([task])
        raise


def linked(other: Abort | None) -> Abort:
    """An abort that is set when the other one is."""
    own = Abort()
    if other is not None:
        other.when_set(own.set)
    return own


class Waiting(Protocol):
    """The methods of a model that wait."""

    def generate(self, requests: Sequence[Request]) -> list[Completion]: ...

    def stream(self, request: Request) -> Iterator[Delta]: ...

    def score(
        self, prefix: str | Sequence[Message], continuations: Sequence[str], *, adapter: str = ""
    ) -> list[Score]: ...

    def perplexity(self, texts: Sequence[str], *, adapter: str = "") -> list[float]: ...

    @property
    def embed(self) -> Callable[..., list[list[float]]]: ...


class AsyncCalls:
    """The same methods for callers in an event loop. Cancelling `agenerate`, or leaving `astream`, aborts answers."""

    async def agenerate(self: Waiting, requests: Sequence[Request]) -> list[Completion]:
        """As `generate`."""
        carried = [replace(request, abort=linked(request.abort)) for request in requests]

        def stop() -> None:
            for each in carried:
                assert each.abort is not None
                each.abort.set()

        return await run_abortable(partial(self.generate, carried), stop)

    async def astream(self: Waiting, request: Request) -> AsyncGenerator[Delta]:
        """As `stream`."""
        abort = linked(request.abort)
        deltas = iterate_in_thread(partial(self.stream, replace(request, abort=abort)), abort.set)
        async with aclosing(deltas):
            async for delta in deltas:
                yield delta

    async def ascore(
        self: Waiting, prefix: str | Sequence[Message], continuations: Sequence[str], *, adapter: str = ""
    ) -> list[Score]:
        """As `score`."""
        return await run_in_thread(partial(self.score, prefix, continuations, adapter=adapter))

    async def aperplexity(self: Waiting, texts: Sequence[str], *, adapter: str = "") -> list[float]:
        """As `perplexity`."""
        return await run_in_thread(partial(self.perplexity, texts, adapter=adapter))

    async def aembed(self: Waiting, texts: Sequence[str | Sequence[int]], **named: Any) -> list[list[float]]:
        """As `embed`."""
        return await run_in_thread(partial(self.embed, texts, **named))
