"""A model's synchronous answer as an asynchronous HTTP response, without blocking the event loop.

Each call runs in a thread of its own; a stream does so until its iterator says that it never waits (by giving None),
and is read by the event loop from then on. A client that goes away aborts the request and closes the model's iterator,
at its next piece where a thread reads it. The answer's status is sent with the first piece, so that a refusal before it
is an ordinary HTTP error; a later failure becomes an error event.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol, runtime_checkable
from weakref import WeakKeyDictionary, WeakMethod, ref

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from riverrun.base.protocols import Delta
from riverrun.serve.aside import call_soon, close
from riverrun.serve.http.sse import DONE, KEEP_ALIVE, event_bytes, named_event_bytes
from riverrun.web.errors import HttpError, error_body, to_http_error

__all__ = ["Chunks", "EventStream", "NamedEvents", "Piece", "Ring", "disconnected"]

Piece = tuple[int, Delta]
"""The number of an answer, and the next piece of it."""
Ring = Callable[[], object]
"""Called from any thread: what gave None before has something new."""

_LOG = logging.getLogger("riverrun.serve")


class Chunks(Protocol):
    """Turns deltas into the JSON chunks of one kind of stream."""

    def start(self) -> list[dict[str, Any]]: ...

    def delta(self, delta: Delta, index: int = 0) -> list[dict[str, Any]]:
        """Of the answer of that number."""
        ...


@runtime_checkable
class NamedEvents(Chunks, Protocol):
    """Chunks that go out as events named by their `type`, and say themselves how the stream ends."""

    def end(self, failure: HttpError | None) -> list[dict[str, Any]]: ...


GATHER_SECONDS = 0.002
"""Pieces of one step of the model come within it: the event loop wakes for all of them once."""


Wake = WeakMethod[Callable[..., None]]


class _Doorbell:
    """Wakes, in the event loop, those that have something new; once for all that rang within `GATHER_SECONDS`.

    On few cores each wake-up costs the model more than the piece does. It holds nobody: one that is gone is not woken.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop, self._wakes, self._rung = ref(loop), deque[Wake](), False

    def ring(self, wake: Wake) -> bool:
        """From any thread; False when the loop is closed."""
        loop = self._loop()
        if loop is None or loop.is_closed():
            return False
        self._wakes.append(wake)  # before the look at _rung: who rings while all are woken is woken, too
        if self._rung:
            return True
        self._rung = True
        return call_soon(loop, loop.call_later, GATHER_SECONDS, self._wake_all)

    def _wake_all(self) -> None:
        self._rung = False
        while self._wakes:
            if (wake := self._wakes.popleft()()) is not None:
                wake()


_DOORBELLS: WeakKeyDictionary[asyncio.AbstractEventLoop, _Doorbell] = WeakKeyDictionary()


class _Pump:
    """An iterator's items, then its error or None, arrive in `items`.

    One future wakes who waits, whatever it is for: a piece is to cost little more than its bytes.
    """

    def __init__(self, make: Callable[[Ring], Iterator[Piece | None]]) -> None:
        self.items: deque[Piece | BaseException | None] = deque()
        self._make, self._loop, self._stopped = make, asyncio.get_running_loop(), threading.Event()
        self._waiting: asyncio.Future[None] | None = None
        self._polled: Iterator[Piece | None] | None = None
        self._doorbell = _DOORBELLS.setdefault(self._loop, _Doorbell(self._loop))
        threading.Thread(target=self._run, name="riverrun-stream", daemon=True).start()

    def stop(self) -> None:
        """Close the iterator, as soon as it has given the piece that a thread waits for."""
        self._stopped.set()
        if self._polled is not None:
            self._read()

    def _run(self) -> None:
        try:
            iterator, given = self._make(partial(self._doorbell.ring, WeakMethod(self._read))), False
            try:
                for item in iterator:
                    if item is None:
                        given = call_soon(self._loop, self._take_over, iterator)
                        return
                    if self._stopped.is_set() or not self._put(item):
                        break
            finally:
                if not given:
                    close(iterator)
        except BaseException as error:
            self._put(error)
        else:
            self._put(None)

    def _put(self, item: Piece | BaseException | None) -> bool:
        self.items.append(item)
        return self._waiting is None or self._doorbell.ring(WeakMethod(self.wake))

    def _take_over(self, iterator: Iterator[Piece | None]) -> None:
        """From the thread: the iterator never waits."""
        self._polled = iterator
        self._read()

    def _read(self) -> None:
        """In the event loop: what such an iterator has now."""
        if self._polled is None:
            return
        try:
            if self._stopped.is_set():
                close(self._polled)
                self._polled = None
                return
            for item in self._polled:
                if item is None:
                    break
                self.items.append(item)
            else:
                self.items.append(None)
                self._polled = None
        except Exception as error:
            self.items.append(error)
            self._polled = None
        if self.items:  # who is woken for nothing takes it for silence
            self.wake()

    def wake(self, *_: object) -> None:
        """In the event loop: end the wait."""
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def wait(self, seconds: float) -> None:
        """Until there is an item, somebody calls `wake`, or the time is over."""
        self._waiting = self._loop.create_future()
        timer = self._loop.call_later(seconds, self.wake)
        try:
            if not self.items:  # one that came before the future was there woke nobody
                await self._waiting
        finally:
            timer.cancel()
            self._waiting = None


class EventStream(Response):
    """An SSE answer over a model's iterator; see the module's text for errors and disconnects.

    `keep_alive_seconds`: after so long without a piece a comment is sent, which keeps proxies from hanging up. `abort`
    is called when the stream was left before its end.
    """

    def __init__(
        self,
        make: Callable[[Ring], Iterator[Piece | None]],
        chunks: Chunks,
        *,
        keep_alive_seconds: float,
        abort: Callable[[], object] = lambda: None,
    ) -> None:
        super().__init__(media_type="text/event-stream")
        del self.headers["content-length"]
        self.headers["cache-control"] = "no-store"
        self.headers["x-accel-buffering"] = "no"
        self._make, self._chunks, self._keep_alive, self._abort = make, chunks, keep_alive_seconds, abort
        self._bytes = named_event_bytes if isinstance(chunks, NamedEvents) else event_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        pump = _Pump(self._make)
        gone = asyncio.ensure_future(disconnected(receive))
        gone.add_done_callback(pump.wake)
        whole = False
        try:
            whole = await self._send_all(pump, gone, send)
        finally:
            if not whole:
                self._abort()
            pump.stop()
            gone.cancel()

    async def _send_all(self, pump: _Pump, gone: asyncio.Future[None], send: Send) -> bool:
        """Whether it came to its end."""
        item = await self._next(pump, gone)
        if isinstance(item, Exception):
            raise item
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        data, finished = b"".join(map(self._bytes, self._chunks.start())), False
        while not gone.done():
            more = True
            if item is _QUIET:
                data += KEEP_ALIVE
            elif isinstance(item, tuple):
                index, delta = item
                data += b"".join(map(self._bytes, self._chunks.delta(delta, index)))
                finished = finished or delta.finish_reason is not None
            else:
                data, more = data + self._ending(item, finished), False
            if more and pump.items:  # pieces that already wait go out together
                item = pump.items.popleft()
                continue
            await send({"type": "http.response.body", "body": data, "more_body": more})
            if not more:
                return True
            data, item = b"", await self._next(pump, gone)
        return False

    def _ending(self, item: Piece | BaseException | object | None, finished: bool) -> bytes:
        failure = None
        if isinstance(item, Exception):
            failure = to_http_error(item)
            if failure.status >= 500:
                _LOG.error("a stream failed after it had begun", exc_info=item)
        elif not finished:
            failure = HttpError(
                500, "the model ended its answer without a finish reason", kind="server_error", code="failed"
            )
        if isinstance(self._chunks, NamedEvents):
            return b"".join(map(named_event_bytes, self._chunks.end(failure)))
        return (event_bytes(error_body(failure)) if failure else b"") + DONE

    async def _next(self, pump: _Pump, gone: asyncio.Future[None]) -> Piece | BaseException | object | None:
        if not pump.items and not gone.done():
            await pump.wait(self._keep_alive)
        return pump.items.popleft() if pump.items else _QUIET


_QUIET = object()


async def disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
