"""The Hermes form read as a stream: a small state machine over text, thought and call, fed with any cuts.

A call ends at the `</tool_call>` that stands outside its JSON strings. When the first closing tag stands inside a
string that never ends properly, the model forgot a quote or quotes a tag: nothing is decided before more text shows
which, and when tags follow, the whole rest is refused rather than guessed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from riverrun.base.errors import ToolError
from riverrun.base.types import ToolCall, ToolSpec
from riverrun.wire.calls import read_calls
from riverrun.wire.codec import Piece, Problem

__all__ = ["CLOSE", "OPEN", "HermesParser"]

OPEN, CLOSE = "<tool_call>", "</tool_call>"
THINK, UNTHINK = "<think>", "</think>"
RESPONSE = "<tool_response>"


class HermesParser:
    """One answer. Whitespace around calls is dropped; text on both sides of a call is joined by a line break."""

    def __init__(self, tools: Sequence[ToolSpec] = ()) -> None:
        self.tools = tuple(tools)
        self.buffer = ""
        self.mode = "text"  # text, think, call, drop
        self.space = ""  # whitespace held back until it is known what follows
        self.has_text = self.after_call = False
        self.count = 0
        self.out: list[Piece] = []
        self._reset_scan()

    def _reset_scan(self) -> None:
        self.position = self.depth = 0
        self.in_string = self.escaped = False
        self.complete_at = -1  # end of the first balanced JSON value
        self.candidate = -1  # first closing tag inside a string

    def feed(self, delta: str) -> list[Piece]:
        self.buffer += delta
        return self._run(final=False)

    def close(self) -> list[Piece]:
        return self._run(final=True)

    def _run(self, *, final: bool) -> list[Piece]:
        while {"text": self._text, "think": self._think, "call": self._call, "drop": self._drop}[self.mode](final):
            pass
        if final and not self.after_call and self.space:
            self.out.append(self.space)
            self.space = ""
        out, self.out = self.out, []
        return out

    # Each state consumes what it can and returns whether another state should go on.

    def _text(self, final: bool) -> bool:
        places = [(self.buffer.find(mark), mark) for mark in (OPEN, THINK, RESPONSE) if mark in self.buffer]
        if not places:
            keep = 0 if final else _held(self.buffer, (OPEN, THINK, RESPONSE))
            self._emit(self.buffer[: len(self.buffer) - keep])
            self.buffer = self.buffer[len(self.buffer) - keep :]
            return False
        place, mark = min(places)
        self._emit(self.buffer[:place])
        self.buffer = self.buffer[place + len(mark) :]
        if mark == THINK:
            self._emit(THINK)
            self.mode = "think"
        elif mark == OPEN:
            self._reset_scan()
            self.mode = "call"
        else:
            self.out.append(Problem("the answer went on with a made-up <tool_response>, which was dropped"))
            self.after_call, self.space = True, ""
            self.mode = "drop"
        return True

    def _think(self, final: bool) -> bool:
        place = self.buffer.find(UNTHINK)
        if place < 0:
            keep = 0 if final else _held(self.buffer, (UNTHINK,))
            self._emit(self.buffer[: len(self.buffer) - keep])
            self.buffer = self.buffer[len(self.buffer) - keep :]
            return False
        self._emit(self.buffer[: place + len(UNTHINK)])
        self.buffer = self.buffer[place + len(UNTHINK) :]
        self.mode = "text"
        return True

    def _drop(self, final: bool) -> bool:
        self.buffer = ""
        return False

    def _call(self, final: bool) -> bool:
        """Scan the JSON up to its closing tag."""
        buffer = self.buffer
        while self.position < len(buffer):
            char = buffer[self.position]
            if char == "<" and (found := self._tag(final)):
                if found == "wait":
                    return False
                if found == "done":
                    return True
            elif self.in_string:
                if char == '"' and not self.escaped:
                    self.in_string = False
                self.escaped = char == "\\" and not self.escaped
            elif char == '"':
                self.in_string, self.escaped = True, False
            elif char in "{[":
                self.depth += 1
            elif char in "}]" and self.depth:
                self.depth -= 1
                if self.depth == 0 and self.complete_at < 0:
                    self.complete_at = self.position + 1
            self.position += 1
        return self._end(final)

    def _tag(self, final: bool) -> str:
        """What the `<` at the position is: "" (a character like others), "wait", or "done" when the call ended."""
        rest = self.buffer[self.position : self.position + len(CLOSE)]
        if not final and rest not in (CLOSE, OPEN) and (CLOSE.startswith(rest) or OPEN.startswith(rest)):
            return "wait"
        if rest == CLOSE:
            if self.in_string:
                self.candidate = self.position if self.candidate < 0 else self.candidate
                self.escaped = False
                return ""
            if self.candidate < 0 or _is_json(self.buffer[: self.position]):
                self._finish(self.position, self.position + len(CLOSE), closed=True)
                return "done"
            return ""
        if rest.startswith(OPEN) and not self.in_string and self.depth == 0 and self.candidate < 0:
            if self.complete_at >= 0:
                self._finish(self.complete_at, self.complete_at, closed=False)
                return "done"
            if not self.buffer[: self.position].strip():  # the opening tag was written twice
                self.buffer = self.buffer[self.position + len(OPEN) :]
                self._reset_scan()
                return "done"
        return ""

    def _end(self, final: bool) -> bool:
        """The buffer is used up inside a call."""
        if not final:
            return False
        if self.candidate >= 0:
            rest = self.buffer[self.candidate + len(CLOSE) :]
            if OPEN in rest or CLOSE in rest:
                self._refuse(self.buffer, "a tag stands inside an unfinished string, so it is unclear what is called")
                self.buffer = ""
                return False
            self._finish(self.candidate, self.candidate + len(CLOSE), closed=True)
            return True
        if self.complete_at >= 0:
            self._finish(self.complete_at, self.complete_at, closed=False)
            return True
        self._finish(len(self.buffer), len(self.buffer), closed=False)
        return True

    def _finish(self, end: int, resume: int, *, closed: bool) -> None:
        """The call's JSON is buffer[:end]; text goes on at `resume`."""
        body, raw = self.buffer[:end], self.buffer[:resume]
        self.buffer = self.buffer[resume:]
        self.mode = "text"
        if not closed:
            stripped = self.buffer.lstrip(" \t\r\n}]`")
            self.buffer = stripped if not stripped or stripped.startswith(OPEN) else self.buffer
        if OPEN in body and not _is_json(body):
            self._refuse(raw, "one call stands inside another")
            return
        try:
            calls, problems = read_calls(body, self.tools, complete=closed)
        except ToolError as error:
            self._refuse(raw, str(error))
            return
        if not closed:
            self.out.append(Problem(f"the closing tag {CLOSE} was missing"))
        self.out.extend(Problem(problem) for problem in problems)
        for call in calls:
            self.out.append(ToolCall(call.name, call.arguments, f"call_{self.count}"))
            self.count += 1
        self.after_call, self.space = True, ""

    def _refuse(self, raw: str, reason: str) -> None:
        """Keep the text as it was written, and say why it is no call."""
        self._emit(OPEN + raw)
        self.out.append(Problem(f"the tool call cannot be read: {reason}", fatal=True))

    def _emit(self, text: str) -> None:
        """Text goes out; whitespace at its end waits for what follows."""
        body = text.rstrip()
        if not body:
            self.space += text
            return
        if self.after_call:
            lead = "\n" if self.has_text else ""
            body = body.lstrip()
        else:
            lead = self.space
        self.out.append(lead + body)
        self.space = text[len(text.rstrip()) :]
        self.has_text, self.after_call = True, False


def _held(buffer: str, marks: Sequence[str]) -> int:
    """Length of the longest end of the buffer that may be the beginning of a mark."""
    longest = max(map(len, marks)) - 1
    for size in range(min(longest, len(buffer)), 0, -1):
        if any(mark.startswith(buffer[-size:]) for mark in marks):
            return size
    return 0


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
