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
    r"""|(?P<name>"(?:[^"]|"")*"|`[^`]*`|\[[^\]]*\]|[^\W\d][\w$]*)|(?P<sign>[(),\n])""",
    re.DOTALL,
)
MOST_CODES = 12
"""A column with more values holds no codes."""
_LONGEST = 24
"""Characters of a meaning or a name; longer ones are explanations."""
_EDGE = " \t=:：-–—>()（）[]【】,，;；/、.。|是为'\""


def column_comments(sql: str, columns: Sequence[str]) -> dict[str, str]:
    """Column -> its comment, out of a CREATE TABLE statement; {} for one that has none."""
    known = {name.lower(): name for name in columns}
    out: dict[str, str] = {}
    depth, current, fresh, waiting, begun = 0, "", False, "", False
    for part in _PARTS.finditer(sql):
        kind, text = part.lastgroup, part[0]
        if kind == "sign":
            depth += {"(": 1, ")": -1}.get(text, 0)
            if text == "\n":
                begun = False  # nothing of a definition stands on this line yet
            fresh = fresh or (depth == 1 and text in "(,")
        elif kind in ("line", "block"):
            comment = text.strip("-/* \t\r\n")
            if begun and current:
                out.setdefault(current, comment)
            elif not begun:
                waiting = comment
        elif kind == "name":
            if depth == 1 and fresh:
                current = known.get(text.strip('"`[]').lower(), "")
                fresh = False
                if current and waiting:
                    out.setdefault(current, waiting)
                waiting = ""
            begun = True
    return {column: comment for column, comment in out.items() if comment}


def code_meanings(comment: str, values: Sequence[Any]) -> dict[Any, str]:
    """Value -> what it means, for `A = available, R = in repair`, `1营业中 2已关闭` or `open (O), closed (C)`.

    {} unless at least two of the values stand in the comment with a meaning each.
    """
    short = [value for value in values if isinstance(value, int) or (isinstance(value, str) and 0 < len(value) <= 8)]
    if len(values) > MOST_CODES or len(short) < 2:
        return {}
    by_text = {str(value): value for value in short}
    any_of = "|".join(re.escape(text) for text in sorted(by_text, key=len, reverse=True))
    found = list(re.finditer(rf"(?<![A-Za-z0-9.])({any_of})(?![A-Za-z0-9.])", comment))
    if len({match[0] for match in found}) < 2:
        return {}
    starts = [match.start() for match in found[1:]] + [len(comment)]
    after = [comment[match.end() : start].strip(_EDGE) for match, start in zip(found, starts, strict=True)]
    if not after[-1]:  # the meaning stands before its code
        ends = [0, *(match.end() for match in found[:-1])]
        after = [comment[end : match.start()].strip(_EDGE) for end, match in zip(ends, found, strict=True)]
    out: dict[Any, str] = {}
    for match, meaning in zip(found, after, strict=True):
        if meaning and len(meaning) <= _LONGEST and meaning.lower() != match[0].lower():
            out.setdefault(by_text[match[0]], meaning)
    return out if len(out) >= 2 and len(set(out.values())) == len(out) else {}


def spoken_name(comment: str, codes: Mapping[Any, str]) -> str:
    """What the comment calls its column: its first words; "" where it only explains codes or is a sentence."""
    start = min((comment.find(str(code)) for code in codes), default=len(comment))
    name = re.split(r"[,，;；.。:：(（\n]", comment[:start])[0].strip(" \t=-")
    words = len(name.split())
    longest = 12 if re.search(r"[\u3400-\u9fff]", name) else _LONGEST
    return name if name and len(name) <= longest and words <= 3 else ""
