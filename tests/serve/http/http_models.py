"""Models that stream given pieces, wait where a test wants them to, meet one another, or fail."""

from __future__ import annotations

import importlib
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import strategies as st

from riverrun.base.fakes import FakeModel
from riverrun.base.protocols import Completion, Delta, Request
from riverrun.base.types import FinishReason, Message, ToolCall, Usage
from riverrun.wire.hermes import HERMES
from riverrun.wire.thoughts import Thought, ThoughtParser

PATIENCE_SECONDS = 30.0
STEPS = (
    {
        "tool": "query_database",
        "arguments": {"sql": "SELECT price FROM books"},
        "content": "price\n12.5",
        "data": {"columns": ["price"], "rows": [[12.5], [None]]},
        "is_error": False,
    },
    {"tool": "search_policies", "arguments": {"query": "返品"}, "content": "none", "data": None, "is_error": True},
)


class PiecesModel(FakeModel):
    """Streams given pieces and steps; `generate` gives the same answer whole."""

    def __init__(
        self,
        pieces: Sequence[str] = ("Hel", "lo"),
        *,
        steps: Sequence[dict[str, object]] = (),
        calls: Sequence[ToolCall] = (),
        usage: Usage | None = None,
    ) -> None:
        super().__init__(name="pieces")
        self.pieces, self.steps, self.calls = tuple(pieces), tuple(steps), tuple(calls)
        self.usage = usage or Usage(7, 5, 3)

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        self.requests += requests
        text = "".join(self.pieces)
        reason = "tool_calls" if self.calls else "stop"
        message = Message.of("assistant", text, tool_calls=self.calls)
        return [Completion(message, reason, self.usage, text, self.steps) for _ in requests]

    def stream(self, request: Request) -> Iterator[Delta]:
        self.requests.append(request)
        for step in self.steps:
            yield Delta(step=step)
        for piece in self.pieces:
            yield Delta(text=piece)
        if self.calls:
            yield Delta(tool_calls=self.calls)
        yield Delta(finish_reason="tool_calls" if self.calls else "stop", usage=self.usage)


class GateModel(FakeModel):
    """An endless stream that gives one piece per permit; `closed` is set when its iterator is closed."""

    def __init__(self) -> None:
        super().__init__(name="gate")
        self.permits, self.entered, self.closed = threading.Semaphore(0), threading.Event(), threading.Event()

    def stream(self, request: Request) -> Iterator[Delta]:
        self.entered.set()
        try:
            while self.permits.acquire(timeout=PATIENCE_SECONDS):
                yield Delta(text="x")
        finally:
            self.closed.set()

    def wait_closed(self) -> bool:
        """Keep the stream going until it is closed (an abort takes effect between two pieces)."""
        for _ in range(1500):
            if self.closed.wait(0.02):
                return True
            self.permits.release()
        return False


class MeetingModel(FakeModel):
    """Answers only when `count` requests are inside at once."""

    def __init__(self, count: int) -> None:
        super().__init__(name="meeting")
        self.barrier = threading.Barrier(count, timeout=PATIENCE_SECONDS)

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        self.barrier.wait()
        return super().generate(requests)

    def stream(self, request: Request) -> Iterator[Delta]:
        self.barrier.wait()
        yield from super().stream(request)


class FailingModel(FakeModel):
    """Raises after some pieces (and at once in generate and score)."""

    def __init__(self, error: Exception, after: int = 0) -> None:
        super().__init__(name="failing")
        self.error, self.after = error, after

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        raise self.error

    def score(self, prefix: object, continuations: object) -> list[object]:  # type: ignore[override]
        raise self.error

    def stream(self, request: Request) -> Iterator[Delta]:
        for _ in range(self.after):
            yield Delta(text="x")
        raise self.error


class PolledModel(FakeModel):
    """Another model's streams, as an event loop reads them: they never wait, and ring when there is something."""

    def __init__(self, inner: FakeModel) -> None:
        super().__init__(name=inner.info.name)
        self.inner = inner

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        return self.inner.generate(requests)

    def stream(self, request: Request) -> Iterator[Delta]:
        raise AssertionError("a stream that can be polled was read by a thread")

    def poll(self, request: Request, ring: Callable[[], object]) -> Iterator[Delta | None]:
        news: queue.SimpleQueue[Delta | Exception | None] = queue.SimpleQueue()
        stopped = threading.Event()

        def work() -> None:
            stream = self.inner.stream(request)
            try:
                for delta in stream:
                    news.put(delta)
                    ring()
                    if stopped.is_set():
                        stream.close()  # type: ignore[attr-defined]
                        return
                news.put(None)
            except Exception as error:
                news.put(error)
            ring()

        threading.Thread(target=work, daemon=True).start()
        try:
            while True:
                try:
                    item = news.get(block=False)
                except queue.Empty:
                    yield None
                    continue
                if isinstance(item, Exception):
                    raise item
                if item is None:
                    return
                yield item
        finally:
            stopped.set()


class RawModel(FakeModel):
    """Writes given pieces of raw text, marks of thoughts and calls included, read as an engine's answer is."""

    def __init__(self, pieces: Sequence[str], *, reason: FinishReason = "stop", stopped_by: str = "") -> None:
        super().__init__(name="raw")
        self.pieces, self.reason, self.stopped_by = tuple(pieces), reason, stopped_by

    def _deltas(self, request: Request, pieces: Sequence[str]) -> Iterator[Delta]:
        parser = ThoughtParser(HERMES.parser(request.tools))
        called = False
        for part in [*(found for piece in pieces for found in parser.feed(piece)), *parser.close()]:
            if isinstance(part, Thought):
                yield Delta(reasoning=part.text)
            elif isinstance(part, ToolCall):
                called = True
                yield Delta(tool_calls=(part,))
            elif isinstance(part, str) and part:
                yield Delta(text=part)
        reason: FinishReason = "tool_calls" if called else self.reason
        yield Delta(finish_reason=reason, usage=Usage(9, 7, 4, 2), stopped_by=self.stopped_by)

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        self.requests += requests
        out = []
        for request in requests:
            found = list(self._deltas(request, ["".join(self.pieces)]))
            calls = tuple(call for delta in found for call in delta.tool_calls)
            text, thought = "".join(d.text for d in found), "".join(d.reasoning for d in found)
            last = found[-1]
            assert last.finish_reason is not None
            assert last.usage is not None
            message = Message.of("assistant", text, tool_calls=calls, reasoning=thought)
            out.append(Completion(message, last.finish_reason, last.usage, stopped_by=last.stopped_by))
        return out

    def stream(self, request: Request) -> Iterator[Delta]:
        self.requests.append(request)
        yield from self._deltas(request, self.pieces)


RAW_TEXTS = st.lists(
    st.sampled_from(
        ["<think>", "</think>", "Let me see. ", "\n", " 你好", "<tool_call>\n",
         '{"name": "look", "arguments": {"q": "中"}}',
         "\n</tool_call>", "12.5", "<", "<tool_response>"]
    ),
    max_size=9,
).map("".join)  # fmt: skip
"""What a model may write: thoughts, text and calls in any order, whole and broken."""


def cut(text: str, places: Sequence[int]) -> list[str]:
    """The text in pieces that end at these places."""
    ends = sorted({place % (len(text) + 1) for place in places} | {len(text)})
    return [text[a:b] for a, b in zip([0, *ends], ends, strict=False)]


def echo(request: Request) -> str:
    """A script that shows what the model was asked."""
    return request.prompt or request.messages[-1].text


def require_or_skip(what: str, module: str | None) -> Any:
    """The module; without it the test is skipped, or fails when RIVERRUN_REQUIRE=all forbids skipping."""
    try:
        if module is not None:
            return importlib.import_module(module)
    except ImportError:
        pass
    if os.environ.get("RIVERRUN_REQUIRE") == "all":
        pytest.fail(f"{what} is required (RIVERRUN_REQUIRE=all) and not here")
    pytest.skip(f"not run here: {what}", allow_module_level=True)
