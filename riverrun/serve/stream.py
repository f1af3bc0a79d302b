"""Token ids to visible text: whole characters only, and never a piece of a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from riverrun.models.tokenizer import StreamDecoder, Tokenizer

__all__ = ["TextStream"]


class TextStream:
    """`push` gives text that is final. Once a stop string stands in the text, `stopped` is true and nothing follows.

    `stopped_by` is that string, the first of them where several begin at one place.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]) -> None:
        self._decoder = StreamDecoder(tokenizer)
        self._stops = tuple(stops)
        self._held = ""
        self.stopped_by = ""

    @property
    def stopped(self) -> bool:
        return bool(self.stopped_by)

    def push(self, token_id: int) -> str:
        return self._take(self._decoder.push(token_id))

    def close(self) -> str:
        """What was held back; a stop string that never became whole is text."""
        out = self._take(self._decoder.close())
        if not self.stopped:
            out, self._held = out + self._held, ""
        return out

    def _take(self, piece: str) -> str:
        if self.stopped:
            return ""
        text = self._held + piece
        found = [(at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            end, self.stopped_by = min(found, key=lambda each: each[0])
            self._held = ""
            return text[:end]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-size:]):
            return size
    return 0
