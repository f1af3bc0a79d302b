"""The proof that a value read from broken JSON is what stands there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

__all__ = ["proven"]

LONGEST_GAP = 200  # characters between two values; more white space than that is no call
_FIRST_GAP = re.compile(r"[\s\[{]*+(?P<opening>[\"']{0,2})")
_GAP = re.compile(r"(?P<closing>[\"']{0,2})[\s\]}]*+[,:]{0,2}+[\s,]*+[\[{\s]*+(?P<opening>[\"']{0,2})")
_LAST_GAP = re.compile(r"(?P<closing>[\"']{0,2})[\s\]},]*+")
_WORD = re.compile(r"[\w.-]+")
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_LITERAL = re.compile(r"true|false|null|none", re.IGNORECASE)
_LITERALS = {"true": True, "false": False, "null": None, "none": None}


def proven(value: Any, source: str) -> bool:
    """Whether every key and value stands whole in the source, in order, with only punctuation between them."""
    position, opening, gaps = 0, "", []
    items = list(_flat(value))
    for number, item in enumerate(items):
        found = _next(source, position, item, _GAP if number else _FIRST_GAP)
        if found is None or (number and not _quoted(items[number - 1], opening, found[1]["closing"])):
            return False
        position, gap = found
        opening = gap["opening"]
        gaps.append(gap[0])
    last = _LAST_GAP.fullmatch(source, position)
    if last is None or (last[0] and not _quoted(items[-1], opening, last["closing"])):
        return False
    gaps.append(last[0])
    punctuation = "".join(gaps)
    missing = sum(map(punctuation.count, "{[")) > sum(map(punctuation.count, "}]"))
    return not (missing and isinstance(items[-1], str) and items[-1].rstrip("\"' ").endswith(("}", "]")))


def _quoted(item: Any, opening: str, closing: str) -> bool:
    """Whether the marks around an item make its ends certain: one quote on both sides, a single word, or words without
    quotes and without punctuation of JSON."""
    if not isinstance(item, str) or _WORD.fullmatch(item):
        return True
    if not opening and not closing:
        return not re.search(r"[{}\[\]:,\"]", item)
    return opening == closing and len(opening) == 1


def _next(source: str, position: int, item: Any, gap: re.Pattern[str]) -> tuple[int, re.Match[str]] | None:
    """Where the item ends that follows at `position`, and the gap before it: the shortest after which the item stands
    in quotes, else the shortest."""
    longest = gap.match(source, position, position + LONGEST_GAP)
    first = None
    for start in range(position, longest.end() + 1 if longest else position):
        end = _ends(source, start, item)
        if end >= 0 and (between := gap.fullmatch(source, position, start)):
            if between["opening"] and source[end : end + 1] == between["opening"][-1]:
                return end, between
            first = first or (end, between)
    return first


def _ends(source: str, start: int, item: Any) -> int:
    """Where the item ends if the source has it at `start`, else -1."""
    if item == "":
        empty = source[start - 1 : start + 1] in ('""', "''")
        return start if empty else -1
    if isinstance(item, str):
        return start + len(item) if source.startswith(item, start) else -1
    match = (_LITERAL if item is None or isinstance(item, bool) else _NUMBER).match(source, start)
    if not match:
        return -1
    read = _LITERALS.get(match[0].lower()) if match.re is _LITERAL else float(match[0])
    return match.end() if read == item else -1


def _flat(value: Any) -> Iterator[Any]:
    """Keys and plain values in the order they are written."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield str(key)
            yield from _flat(item)
    elif isinstance(value, list):
        for item in value:
            yield from _flat(item)
    else:
        yield value
