"""From what a model said to what an agent does: visible text, calls, calls that could not be read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from riverrun.base.types import FinishReason, ToolCall, ToolSpec, Usage
from riverrun.wire.codec import Codec, Piece, Problem

__all__ = ["Answer"]


@dataclass
class Answer:
    """One model turn, filled as it arrives. `text` is everything, `visible` is without calls that could not be read.
    Without a codec the text is not searched for calls."""

    codec: Codec | None
    tools: Sequence[ToolSpec]
    text: str = ""
    visible: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    finish_reason: FinishReason = "stop"
    usage: Usage = field(default_factory=Usage)

    def __post_init__(self) -> None:
        self._parser = self.codec.parser(self.tools) if self.codec else None

    def feed(self, delta: str) -> str:
        """Take generated text; the part a user may see already."""
        return self._take(self._parser.feed(delta) if self._parser else [delta])

    def close(self) -> str:
        return self._take(self._parser.close() if self._parser else [])

    def _take(self, pieces: Sequence[Piece]) -> str:
        shown = []
        for index, piece in enumerate(pieces):
            if isinstance(piece, ToolCall):
                self.calls.append(piece)
            elif isinstance(piece, Problem):
                if piece.fatal:
                    self.unread.append(piece.text)
            else:
                self.text += piece
                following = pieces[index + 1] if index + 1 < len(pieces) else None
                if not (isinstance(following, Problem) and following.fatal):  # else it is the text of that call
                    shown.append(piece)
        self.visible += "".join(shown)
        return "".join(shown)
