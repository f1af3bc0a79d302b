"""Marks in the texts that go through a chat template: what a user wrote stays text, and places can be found again.

The marks are Unicode noncharacters, which no exchanged text holds; one that a text does hold is marked as text like a
special token. All marks are taken out before anything is tokenised.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["MarkedText", "Shield", "anchor", "start_mark"]

_LITERAL = "\ufdd0"  # the next character was written by a user
_CUT = "\ufdd1"  # no special token reaches across this place
_ANCHOR = "\ufdd2"  # followed by four digits of base 16, each a noncharacter from U+FDE0 on
_START = "\ufdd3"
_OPEN, _CLOSE = "\ufdd4", "\ufdd5"  # jinja.GENERATION
_DIGIT = 0xFDE0
_MARK = re.compile(f"{_LITERAL}(.)|{_ANCHOR}([\ufde0-\ufdef]{{4}})|[{_CUT}-{_CLOSE}]", re.DOTALL)


def anchor(number: int) -> str:
    """The mark of message `number` (below 65,536)."""
    return _ANCHOR + "".join(chr(_DIGIT + (number >> shift & 15)) for shift in (12, 8, 4, 0))


def start_mark() -> str:
    """The mark of where an assistant's content begins."""
    return _START


class Shield:
    """Marks the tokens of a set wherever a text holds them, so that only the template's own are special."""

    def __init__(self, tokens: Iterable[str]) -> None:
        texts = sorted(filter(None, tokens), key=len, reverse=True)
        alternatives = "|".join([*map(re.escape, texts), "[\ufdd0-\ufdef]"])
        self._found = re.compile(f"(?=({alternatives}))(.)", re.DOTALL)
        self._heads = {text[:size] for text in texts for size in range(1, len(text))}
        self._tails = {text[size:] for text in texts for size in range(1, len(text))}
        self._longest = max(map(len, texts), default=1)

    def __call__(self, value: Any) -> Any:
        """The value with every text in it marked; mappings and lists are gone through."""
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, Mapping):
            return {self(key): self(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self(item) for item in value]
        return value

    def _text(self, text: str) -> str:
        # the first character is marked as literal, and a cut after it holds where a template takes the mark off
        out = self._found.sub(lambda m: _LITERAL + m[2] + (_CUT if len(m[1]) > 1 else ""), text)
        sizes = range(1, min(self._longest, len(text) + 1))
        if any(text[:size] in self._tails for size in sizes):
            out = _CUT + out
        if any(text[-size:] in self._heads for size in sizes):
            out += _CUT
        return out


@dataclass(frozen=True)
class MarkedText:
    """A rendered text without its marks, and where they stood (places are characters of `text`)."""

    text: str
    literals: frozenset[int]
    cuts: tuple[int, ...]
    anchors: Mapping[int, tuple[int, ...]]
    starts: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    """What stood in generation blocks."""

    @classmethod
    def read(cls, marked: str) -> MarkedText:
        """Take the marks out of a rendered text."""
        parts: list[str] = []
        literals, cuts, starts = set(), [], []
        anchors: dict[int, list[int]] = {}
        opened: list[int] = []
        spans: list[tuple[int, int]] = []
        place = done = 0
        for found in _MARK.finditer(marked):
            parts.append(marked[done : found.start()])
            place += found.start() - done
            done = found.end()
            kind = found[0][0]
            if kind == _LITERAL:
                literals.add(place)
                parts.append(found[1])
                place += 1
            elif kind == _CUT:
                cuts.append(place)
            elif kind == _ANCHOR and found[2]:
                number = sum(ord(char) - _DIGIT << shift for char, shift in zip(found[2], (12, 8, 4, 0), strict=True))
                anchors.setdefault(number, []).append(place)
            elif kind == _START:
                starts.append(place)
            elif kind == _OPEN:
                opened.append(place)
            elif kind == _CLOSE and opened:
                spans.append((opened.pop(), place))
        parts.append(marked[done:])
        places = {number: tuple(found) for number, found in anchors.items()}
        return cls("".join(parts), frozenset(literals), tuple(cuts), places, tuple(starts), tuple(sorted(spans)))

    def is_literal(self, start: int, end: int) -> bool:
        """Whether a special token at [start, end) was written by a user, in whole or in part."""
        if start in self.literals:
            return True
        return bisect.bisect_right(self.cuts, start) < bisect.bisect_left(self.cuts, end)

    def only(self, number: int) -> int | None:
        """Where the anchor of a message stands, None unless it stands there once."""
        places = self.anchors.get(number, ())
        return places[0] if len(places) == 1 else None
