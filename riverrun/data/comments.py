"""What a database's author wrote beside a column in CREATE TABLE: what it is called, and what its short codes mean.

    status INTEGER NOT NULL,  -- 0 waiting 1 confirmed 2 cancelled
    chair_count INTEGER,      -- 牙椅数

SQLite keeps the statement as it was typed, comments and all. A comment belongs to the column on whose line it stands;
one on a line of its own belongs to the column after it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["code_meanings", "column_comments", "spoken_name"]

_PARTS = re.compile(
    r"""(?P<line>--[^\n]*)|(?P<block>/\*.*?\*/)|(?P<string>'(?:[^']|'')*')"""
    r"""|(?P<quoted>"(?:[^"]|"")*"|`[^`]*`|\[[^\]]*\])|(?P<word>[^\W\d][\w$]*)|(?P<sign>[(),\n])""",
    re.DOTALL,
)
_CONSTRAINTS = {"constraint", "primary", "unique", "check", "foreign"}
"""What begins a definition that is no column."""
_NO_COMMENT = re.compile(
    r"^[\s=*#~_-]*$|[=*#~-]{3}|^\w+\s+(int|integer|text|real|numeric|varchar|char|blob|date)\b", re.I
)
"""Rules, headings and definitions that were commented out."""
MOST_CODES = 12
"""A column with more values holds no codes."""
EXPLAINED = 0.6
"""Share of a column's values that must have a meaning each."""
_LONGEST = 24
"""Characters of a meaning or a name; longer ones are explanations."""
_EDGE = " \t=:：-–—>)）[]【】、.。|'\""
_DEFAULT = re.compile(r"(?i)\bdefaults?(?: to| is)?\b\s*[=:：]?\s*\S+|默认值?\s*[为是=:：]?\s*\S+")
_BETWEEN = re.compile(r"(?i)^(to|or|and|of|in|at|is|a|the|by|than|x|到|或|或者|至|和|与|以|级|分|个|位)$")
_PLAIN = {"yes", "no", "true", "false", "是", "否", "有", "无", "y", "n"}


def column_comments(sql: str, columns: Sequence[str]) -> dict[str, str]:
    """Column -> its comment, out of a CREATE TABLE statement; {} for one that has none.

    A comment beside a column wins over one above it; a line that goes on under it belongs to it.
    """
    known = {name.lower(): name for name in columns}
    beside: dict[str, str] = {}
    above: dict[str, str] = {}
    depth, current, fresh, waiting, begun = 0, "", False, "", False
    last = ("", -1)  # the column of the comment on the line before, and where on the line that comment begins
    line = 0
    for part in _PARTS.finditer(sql):
        kind, text = part.lastgroup or "", part[0]
        if kind == "sign" and text == "\n":
            begun, line = False, part.end()
        elif kind == "sign":
            depth += {"(": 1, ")": -1}.get(text, 0)
            begun, fresh = True, fresh or (depth == 1 and text in "(,")
        elif kind in ("line", "block"):
            comment, place = text.strip("-/* \t\r\n"), part.start() - line
            if depth < 1 or not comment or _NO_COMMENT.search(comment):
                continue
            if begun:
                if current:
                    beside.setdefault(current, comment)
                last = (current, place)
            elif last[0] and last[1] == place:
                beside[last[0]] += f" {comment}"
            else:
                waiting = f"{waiting} {comment}".strip()
        elif kind in ("quoted", "word"):
            begun = True
            if depth == 1 and fresh:
                bare = text.strip('"`[]').replace('""', '"')
                constraint = kind == "word" and text.lower() in _CONSTRAINTS
                current = "" if constraint else known.get(bare.lower(), "")
                fresh = False
                if current and waiting:
                    above.setdefault(current, waiting)
                waiting, last = "", ("", -1)
    merged = {**above, **beside}
    return {column: merged[column] for column in columns if merged.get(column)}


def code_meanings(comment: str, values: Sequence[Any]) -> dict[Any, str]:
    """Value -> what it means, for `A = available, R = in repair`, `1营业中 2已关闭` or `open (O), closed (C)`.

    {} where it is not plain: most values must be explained, each by a text of its own, and ranges are no codes.
    """
    short = [value for value in values if isinstance(value, int) or (isinstance(value, str) and 0 < len(value) <= 8)]
    if not 2 <= len(values) <= MOST_CODES or len(short) < len(values):
        return {}
    by_text = {str(value): value for value in short}
    any_of = "|".join(re.escape(text) for text in sorted(by_text, key=len, reverse=True))
    text = _DEFAULT.sub("", comment)
    found: list[re.Match[str]] = []
    for match in re.finditer(rf"(?<![A-Za-z0-9.])({any_of})(?![A-Za-z0-9.])", text):
        if match[0] not in {other[0] for other in found}:
            found.append(match)
    if not found:
        return {}
    starts = [match.start() for match in found[1:]] + [len(text)]
    if all(re.search(r"[(（]\s*$", text[: m.start()]) and text[m.end() :].lstrip()[:1] in ")）" for m in found):
        ends = [0, *(match.end() for match in found[:-1])]  # the meaning stands before its code
        parts = [text[end : match.start()].rstrip(" (（") for end, match in zip(ends, found, strict=True)]
        told = [re.split(r"[,，;；/]", part.strip(_EDGE + ",，;；/"))[-1] for part in parts]
    else:
        parts = [text[match.end() : start] for match, start in zip(found, starts, strict=True)]
        told = [re.split(r"[,，;；/(（\n]", part.strip(_EDGE))[0] for part in parts]
    out: dict[Any, str] = {}
    for match, part in zip(found, told, strict=True):
        meaning = part.strip(_EDGE)
        meaning = meaning[1:] if len(meaning) > 2 and meaning[0] in "是为" and meaning[1] != "否" else meaning
        if not re.search(r"[^\W\d]", meaning) or _BETWEEN.match(meaning) or len(meaning) > _LONGEST:
            return {}
        out[by_text[match[0]]] = meaning
    plain = {meaning.lower() for meaning in out.values()} <= _PLAIN
    whole = len(out) >= max(2, EXPLAINED * len(values)) and len(set(out.values())) == len(out)
    return out if whole and not plain else {}


def spoken_name(comment: str, codes: Mapping[Any, str], values: Sequence[Any] = ()) -> str:
    """What the comment calls its column: its first words; "" where it only explains values or is a sentence."""
    start = min((comment.find(str(code)) for code in codes), default=len(comment))
    name = re.split(r"[,，;；.。:：(（\n]", comment[:start])[0].strip(" \t=-")
    held = {str(value) for value in values} & set(re.findall(r"[A-Za-z0-9]+", name))
    if not name or re.search(r"[\d=]", name) or held:
        return ""
    longest = 12 if re.search(r"[\u3400-\u9fff]", name) else _LONGEST
    return name if len(name) <= longest and len(name.split()) <= 3 else ""
