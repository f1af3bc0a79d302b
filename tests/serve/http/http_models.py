"""Models that stream given pieces, wait where a test wants them to, meet one another, or fail."""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from riverrun.base.fakes import FakeModel
from riverrun.base.protocols import Completion, Delta, Request
from riverrun.base.types import Message, ToolCall, Usage

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
