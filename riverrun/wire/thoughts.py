"""What a model thinks before it answers, `<think>...</think>`, told apart from the answer while both are written.

A thought stands at the beginning of an answer, or its opening tag ended the prompt. White space at its ends, and
between it and the answer, is no part of either. A thought that never ends is all there is. A tag that comes later is
text like other text: an answer may speak of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from riverrun.wire.codec import Piece, StreamParser

__all__ = ["THINK", "UNTHINK", "Thought", "ThoughtParser", "opens_thought"]

THINK, UNTHINK = "<think>", "</think>"


@dataclass(frozen=True, slots=True)
class Thought:
    """A piece of a thought."""

    text: str


def opens_thought(prompt: str) -> bool:
    """Whether a prompt ends within a thought, just after its opening tag."""
    return prompt.rstrip().endswith(THINK)


class ThoughtParser:
    """Thoughts, and what follows read by `inner`, or left as it is. However the text is cut, the result is the same."""

    def __init__(self, inner: StreamParser | None = None, *, thinking: bool | None = False) -> None:
        """`thinking`: the prompt opened a thought; None: all is text, no thought is looked for."""
        self.inner = inner
        self._state = {True: "think", False: "begin", None: "text"}[thinking]  # then gap, text
        self._held = ""
        self._opened = thinking is True
        self._fed = 0
        self.thought_pieces = 0
        """Pieces that were fed until the thought was over; 0 without one."""
        self._bare = True  # of a thought: nothing of it was seen but white space

    def feed(self, delta: str) -> list[Piece | Thought]:
        self._fed += 1
        before = self._state in ("begin", "think")
        out = self._run(delta, final=False)
        if self._opened and before:
            self.thought_pieces = self._fed
        return out

    def feed_rest(self, delta: str) -> list[Piece | Thought]:
        """What was held back of pieces that were fed: it counts as none."""
        return self._run(delta, final=False)

    def close(self) -> list[Piece | Thought]:
        out = self._run("", final=True)
        return out + (list(self.inner.close()) if self.inner else [])

    def _run(self, delta: str, *, final: bool) -> list[Piece | Thought]:
        self._held += delta
        out: list[Piece | Thought] = []
        if self._state == "begin":
            start = self._held.lstrip()
            if start.startswith(THINK):
                self._state, self._held = "think", start[len(THINK) :]
                self._opened = True
            elif final or not THINK.startswith(start):
                self._state = "text"
        if self._state == "think":
            out += self._think(final)
        if self._state == "gap" and (start := self._held.lstrip()):
            self._state, self._held = "text", start
        if self._state == "text" and self._held:
            out += self.inner.feed(self._held) if self.inner else [self._held]
            self._held = ""
        return out

    def _think(self, final: bool) -> list[Piece | Thought]:
        end = self._held.find(UNTHINK)
        if end < 0:
            keep = 0 if final else _beginning(self._held)
            body = self._held[: len(self._held) - keep]
            stays = len(body.rstrip())  # white space at the end waits for what follows
            body, self._held = body[:stays], "" if final else self._held[stays:]
        else:
            body, self._held, self._state = self._held[:end].rstrip(), self._held[end + len(UNTHINK) :], "gap"
        if self._bare:
            body = body.lstrip()
            self._bare = not body
        return [Thought(body)] if body else []


def _beginning(text: str) -> int:
    """Characters at the end of a text with which the closing tag may begin."""
    return next((size for size in range(len(UNTHINK) - 1, 0, -1) if text.endswith(UNTHINK[:size])), 0)
