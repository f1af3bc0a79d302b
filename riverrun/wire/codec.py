"""What a tool-call format is: how tools, calls and results are written, and how calls are read out of answers.

A codec works on text alone: it knows neither tokens nor chat templates. Only text that a model generated is parsed;
what users or tools wrote is rendered and never read back. Formats are found by name with `get_codec`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from riverrun.base.registry import Registry
from riverrun.base.types import Message, ToolCall, ToolSpec

__all__ = ["CODECS", "Codec", "Parsed", "Piece", "Problem", "StreamParser", "collect", "get_codec"]


@dataclass(frozen=True, slots=True)
class Problem:
    """Something in a generated text that was repaired (`fatal` False) or could not be read as a call (`fatal` True)."""

    text: str
    fatal: bool = False


Piece = str | ToolCall | Problem


@dataclass(frozen=True, slots=True)
class Parsed:
    """A generated text taken apart. `problems` has one sentence for each repair and each call that was not read.

    A call that cannot be read stays in `text` as it was written, and its problem is in `unread` as well.
    """

    text: str
    calls: tuple[ToolCall, ...] = ()
    problems: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()


class StreamParser(Protocol):
    """Reads text as it arrives. However the text is cut, the pieces joined equal `parse` of the whole."""

    def feed(self, delta: str) -> list[Piece]: ...

    def close(self) -> list[Piece]:
        """The text has ended: what was held back. The parser cannot be used afterwards."""
        ...


class Codec(Protocol):
    """One format. `stops` are strings at which generation should end."""

    @property
    def name(self) -> str: ...

    @property
    def stops(self) -> tuple[str, ...]: ...

    def render_tools(self, tools: Sequence[ToolSpec]) -> str:
        """The tools and how to call them, as a part of the system turn."""
        ...

    def render_call(self, call: ToolCall) -> str:
        """A call exactly as a model is trained to write it; `parse` reads it back unchanged (its id excepted)."""
        ...

    def render_result(self, message: Message) -> str:
        """A tool message as it stands in a user turn."""
        ...

    def lower(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> list[Message]:
        """Messages a template without tools can render: system, user and assistant turns of text only."""
        ...

    def grammar(self, tools: Sequence[ToolSpec], *, parallel: bool) -> str:
        """In Lark's notation (llguidance's, with %json): an answer that is a call of one of these tools, or several
        calls where they may be `parallel`, and nothing else."""
        ...

    def parse(self, text: str, tools: Sequence[ToolSpec] = ()) -> Parsed: ...

    def parser(self, tools: Sequence[ToolSpec] = ()) -> StreamParser: ...


CODECS: Registry[Codec] = Registry("tool-call format")
CODECS.add("hermes", "riverrun.wire.hermes:HERMES")


def get_codec(name: str) -> Codec:
    """The format of that name; InputError with the nearest names when there is none."""
    return CODECS.get(name)


def collect(pieces: Sequence[Piece]) -> Parsed:
    """Join the pieces of a stream."""
    problems = [piece for piece in pieces if isinstance(piece, Problem)]
    return Parsed(
        "".join(piece for piece in pieces if isinstance(piece, str)),
        tuple(piece for piece in pieces if isinstance(piece, ToolCall)),
        tuple(problem.text for problem in problems),
        tuple(problem.text for problem in problems if problem.fatal),
    )
