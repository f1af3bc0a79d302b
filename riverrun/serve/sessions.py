"""Conversations that the server remembers: the client sends the new turn alone, and the past is not computed again.

A session holds the blocks of what was said, so that no other request drives them out; the ordinary look-up by content
finds them. It can be written to disk and read back, into another process too. Of a model without a loop in this process
(several replicas) a session holds the conversation alone: the replica that answered has its blocks, as of any other
shared beginning.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Iterator
from collections.abc import Sequence as Seq
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from riverrun.base.artifacts import atomic_file
from riverrun.base.errors import BusyError, InputError, IntegrityError
from riverrun.base.optional import require
from riverrun.base.protocols import Completion, Delta, ModelInfo, Request
from riverrun.base.types import Message, SamplingParams, ToolCall
from riverrun.serve.aside import iterate_in_thread, linked, run_abortable
from riverrun.serve.blocks import Digest, chain
from riverrun.serve.loop import Loop
from riverrun.serve.request import Sequence

__all__ = ["Session", "SessionTable"]

Keep = Callable[[Sequence], None]
PINNED_SHARE = 0.5
"""Of all blocks that sessions may hold; the session that was unused for longest then lets its blocks go."""


class Talker(Protocol):
    """What a table of sessions asks of its model (`serve.llm.LLM`)."""

    @property
    def info(self) -> ModelInfo: ...

    @property
    def loop(self) -> Loop | None: ...

    def generate(self, requests: Seq[Request], *, keep: Keep | None = None) -> list[Completion]: ...

    def stream(self, request: Request, *, keep: Keep | None = None) -> Iterator[Delta]: ...


@dataclass
class _Pins:
    """Blocks that are held, the tokens in them, and where their names begin."""

    tokens: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    root: Digest = b""


class Session:
    """One conversation. `ask` and `stream` take the new turn; one turn at a time."""

    def __init__(self, table: SessionTable, name: str, messages: Seq[Message] = (), *, adapter: str = "") -> None:
        self.name, self.adapter, self.messages = name, adapter, list(messages)
        self.used = time.monotonic()
        self._table, self._turn, self.pins, self.is_closed = table, threading.Lock(), _Pins(), False

    def ask(self, turn: str | Seq[Message], params: SamplingParams | None = None, **rest: Any) -> Completion:
        """The answer to a new turn; both are remembered. `rest` goes to `Request` (tools, key, abort, ...)."""
        with self._begun(turn) as messages:
            request = Request(messages, params=params or SamplingParams(), adapter=self.adapter, **rest)
            [done] = self._table.llm.generate([request], keep=self._keep)
            if done.finish_reason != "abort":
                self._said(messages, done.message)
            return done

    def stream(self, turn: str | Seq[Message], params: SamplingParams | None = None, **rest: Any) -> Iterator[Delta]:
        """The same as it is written. A turn that is aborted leaves the conversation as it was before it."""
        with self._begun(turn) as messages:
            request = Request(messages, params=params or SamplingParams(), adapter=self.adapter, **rest)
            deltas = self._table.llm.stream(request, keep=self._keep)
            text, thought, calls = list[str](), list[str](), list[ToolCall]()
            try:
                for delta in deltas:
                    text.append(delta.text)
                    thought.append(delta.reasoning)
                    calls += delta.tool_calls
                    if delta.finish_reason not in (None, "abort"):
                        whole = {"tool_calls": tuple(calls), "reasoning": "".join(thought)}
                        self._said(messages, Message.of("assistant", "".join(text), **whole))
                    yield delta
            finally:
                deltas.close()  # type: ignore[attr-defined]

    async def aask(self, turn: str | Seq[Message], params: SamplingParams | None = None, **rest: Any) -> Completion:
        """As `ask`, for callers in an event loop; cancelling it aborts the turn."""
        abort = linked(rest.pop("abort", None))
        return await run_abortable(partial(self.ask, turn, params, abort=abort, **rest), abort.set)

    async def astream(
        self, turn: str | Seq[Message], params: SamplingParams | None = None, **rest: Any
    ) -> AsyncGenerator[Delta]:
        """As `stream`; leaving it aborts the turn."""
        abort = linked(rest.pop("abort", None))
        deltas = iterate_in_thread(partial(self.stream, turn, params, abort=abort, **rest), abort.set)
        async with aclosing(deltas):
            async for delta in deltas:
                yield delta

    @contextmanager
    def _begun(self, turn: str | Seq[Message]) -> Iterator[tuple[Message, ...]]:
        if not self._turn.acquire(blocking=False):
            raise BusyError(f"session '{self.name}' is answering another turn: wait for it")
        try:
            if self.is_closed:
                raise InputError(f"session '{self.name}' is closed: open another one")
            self.used = time.monotonic()
            new = (Message.of("user", turn),) if isinstance(turn, str) else tuple(turn)
            yield (*self.messages, *new)
        finally:
            self.used = time.monotonic()
            self._turn.release()

    @property
    def is_answering(self) -> bool:
        return self._turn.locked()

    def _said(self, messages: tuple[Message, ...], answer: Message) -> None:
        self.messages = [*messages, answer]

    def _keep(self, sequence: Sequence) -> None:
        """In the loop's thread: hold this answer's blocks in place of those before."""
        pool = self._table.loop.pool
        tokens, blocks = sequence.full
        pool.hold(blocks)
        pool.release(self.pins.blocks)
        self.pins = _Pins(tokens, blocks, sequence.root)
        if self.is_closed:
            self.let_go()
        self._table.make_room(self)

    def let_go(self) -> None:
        """In the loop's thread: hold nothing. The blocks stay in the cache as long as nobody needs their room."""
        self._table.loop.pool.release(self.pins.blocks)
        self.pins = _Pins()


class SessionTable:
    """The sessions of one model by name. `seconds` unused, and a session is closed."""

    def __init__(self, llm: Talker, *, seconds: float = 3600.0, most: int = 1000) -> None:
        self.llm, self.seconds, self.most = llm, seconds, most
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def loop(self) -> Loop:
        """The model's own, where it is in this process."""
        assert self.llm.loop is not None, "blocks are held where the loop is"
        return self.llm.loop

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._sessions.values()))

    def open(self, name: str = "", messages: Seq[Message] = (), *, adapter: str = "") -> Session:
        """A new session; InputError for a name that is in use, BusyError when there are too many."""
        self.close_unused()
        with self._lock:
            name = name or uuid.uuid4().hex
            if name in self._sessions:
                raise InputError(f"there is a session '{name}' already: close it or choose another name")
            if len(self._sessions) >= self.most:
                raise BusyError(f"{self.most} sessions are open, no more may be: close one")
            self._sessions[name] = session = Session(self, name, messages, adapter=adapter)
            return session

    def get(self, name: str) -> Session:
        self.close_unused()
        session = self._sessions.get(name)
        if session is None:
            raise InputError(
                f"there is no session '{name}': it was never opened, was closed, or was unused for {self.seconds:.0f} s"
            )
        return session

    def close(self, name: str) -> None:
        self._close(self.get(name))

    def close_unused(self) -> None:
        """Close every session that was unused for too long."""
        late = time.monotonic() - self.seconds
        for session in self:
            if session.used < late and not session.is_answering:
                self._close(session)

    def _close(self, session: Session) -> None:
        with self._lock:
            self._sessions.pop(session.name, None)
            session.is_closed = True
        if self.llm.loop is not None:
            self.loop.run(session.let_go)

    def make_room(self, newest: Session) -> None:
        """In the loop's thread: sessions hold no more than their share of all blocks."""
        pool = self.loop.pool
        others = sorted((each for each in self if each is not newest and each.pins.blocks), key=lambda each: each.used)
        held = {block for each in (*others, newest) for block in each.pins.blocks}
        while len(held) > PINNED_SHARE * pool.total and others:
            others.pop(0).let_go()
            held = {block for each in (*others, newest) for block in each.pins.blocks}

    # ---- to disk and back

    def save(self, name: str, path: Path) -> int:
        """Write a session with its keys and values; the number of tokens that need not be computed again."""
        session = self.get(name)
        if self.llm.loop is None:
            pins, stored, kind, size = _Pins(), dict[str, Any](), "", ""
        else:
            engine = self.loop.engine
            kind, size = engine.kind, str(engine.block_size)

            def read() -> tuple[_Pins, dict[str, Any]]:
                pins = session.pins
                return pins, engine.read(pins.blocks) if pins.blocks else {}

            pins, stored = self.loop.run(read)
        head = {
            "model": self.llm.info.digest,
            "kind": kind,
            "block_size": size,
            "adapter": session.adapter,
            "root": pins.root.hex(),
            "tokens": json.dumps(pins.tokens),
            "messages": json.dumps([message.to_openai() for message in session.messages]),
        }
        serialize = require("safetensors.numpy", extra="serve").save
        with atomic_file(path, "wb") as handle:
            handle.write(serialize(stored, metadata=head))
        return len(pins.tokens)

    def load(self, path: Path, name: str = "") -> Session:
        """Open a session that was saved. Keys and values of another model or kind are left out, and computed again."""
        library = require("safetensors", extra="serve")
        if not path.is_file():
            raise InputError(f"there is no saved session '{path.name}': save it first, or choose another file")
        try:
            with library.safe_open(str(path), framework="np") as opened:
                head = opened.metadata()
                stored = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 (no mapping)
            messages = [Message.from_openai(each) for each in json.loads(head["messages"])]
            tokens = [int(token) for token in json.loads(head["tokens"])]
            begin = bytes.fromhex(head["root"])
        except (OSError, KeyError, ValueError, TypeError, library.SafetensorError) as error:
            raise IntegrityError(f"{path} is no saved session: {error}") from None
        session = self.open(name, messages, adapter=head["adapter"])
        if stored and self.llm.loop is not None:
            engine = self.loop.engine
            same = (self.llm.info.digest, engine.kind, str(engine.block_size))
            if (head["model"], head["kind"], head["block_size"]) == same:
                self.loop.run(lambda: self._restore(session, _Pins(tokens, [], begin), stored))
        return session

    def _restore(self, session: Session, pins: _Pins, stored: dict[str, Any]) -> None:
        """In the loop's thread: blocks with these keys and values, found by their content from now on."""
        pool, engine = self.loop.pool, self.loop.engine
        blocks = pool.take(len(pins.tokens) // pool.size)
        if blocks is None:
            return  # no room: the next turn computes them
        engine.write(blocks, stored)
        names = chain(pins.tokens, pool.size, pins.root)
        pins.blocks = [pool.publish(block, name) for block, name in zip(blocks, names, strict=True)]
        session.pins = pins
        self.make_room(session)
