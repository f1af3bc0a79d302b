"""An answer taken apart into its parts as it comes: a thought, a text, tool calls, in this order.

APIs whose answers are lists of blocks write these parts, streamed or whole. Calls are kept until the answer is over:
that is the order in which a message holds them, so a stream and a whole answer have the same parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from riverrun.base.protocols import Completion, Delta
from riverrun.base.types import FinishReason, ToolCall, Usage

__all__ = ["AnswerParts", "Part", "deltas_of"]


@dataclass(frozen=True, slots=True)
class Part:
    """A step of a part: it opens, goes on by `text`, or closes with its whole `text`. A call comes at once.

    `place` counts the parts of the answer; `last` marks the part that closes last.
    """

    kind: Literal["thought", "text", "call"]
    step: Literal["open", "more", "close", "call"]
    place: int
    text: str = ""
    call: ToolCall | None = None
    last: bool = False


class AnswerParts:
    """`feed` deltas, then `close`. What the last delta tells stands in `reason`, `usage` and `stopped_by`."""

    def __init__(self) -> None:
        self.reason: FinishReason | None = None
        self.usage, self.stopped_by = Usage(), ""
        self.steps: list[Mapping[str, Any]] = []
        self._calls: list[ToolCall] = []
        self._open: Literal["thought", "text"] | None = None
        self._written: list[str] = []
        self._place = 0

    def feed(self, delta: Delta) -> list[Part]:
        out = self._write("thought", delta.reasoning) + self._write("text", delta.text)
        self._calls += delta.tool_calls
        if delta.step is not None:
            self.steps.append(delta.step)
        if delta.finish_reason is not None:
            self.reason, self.stopped_by = delta.finish_reason, delta.stopped_by
            self.usage = delta.usage or Usage()
        return out

    def close(self) -> list[Part]:
        out = self._shut(last=not self._calls)
        for call in self._calls:
            out.append(Part("call", "call", self._place, call=call, last=call is self._calls[-1]))
            self._place += 1
        return out

    def _write(self, kind: Literal["thought", "text"], text: str) -> list[Part]:
        if not text:
            return []
        out = []
        if self._open != kind:
            out = [*self._shut(), Part(kind, "open", self._place)]
            self._open = kind
        self._written.append(text)
        return [*out, Part(kind, "more", self._place, text)]

    def _shut(self, *, last: bool = False) -> list[Part]:
        if self._open is None:
            return []
        part = Part(self._open, "close", self._place, "".join(self._written), last=last)
        self._open, self._written = None, []
        self._place += 1
        return [part]


def deltas_of(done: Completion) -> list[Delta]:
    """A whole answer in the pieces that it would have been streamed in."""
    message = done.message
    return [
        *(Delta(step=step) for step in done.steps),
        Delta(reasoning=message.reasoning),
        Delta(text=message.text, tool_calls=message.tool_calls),
        Delta(finish_reason=done.finish_reason, usage=done.usage, stopped_by=done.stopped_by),
    ]
