"""A page's text as passages: a few sentences, or a list or table kept whole, each with the heading above it.

Headings are read from the text alone (markdown marks, a short line that is no sentence, a question before its answer),
so a short line that merely looks like one may be taken for a heading; its words count all the same.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator
from dataclasses import dataclass

from riverrun.base.words import sentences

__all__ = ["Passage", "split_page"]

CHARACTERS = 360
"""A passage of prose is closed when the next sentence would make it longer."""
ROWS_CHARACTERS = 700
"""The same for a list or table."""
HEADING = 70
"""Longest heading."""
_BULLET = re.compile(r"(?:[•·▪◦*+-]|\(?\d{1,2}[.)])\s+|\|")
_RULE = re.compile(r"[\s|:=*_-]+")
_END = re.compile(r"[.!?。！？;；,，…][\"'”’)]*$")


@dataclass(frozen=True, slots=True)
class Passage:
    """Part of a page (its number): `parts` are sentences, or rows where `rows` is set."""

    page: int
    heading: str
    parts: tuple[str, ...]
    rows: bool = False

    @property
    def text(self) -> str:
        return "\n".join(self.parts)


def split_page(page: int, text: str, title: str, *, skip: Container[str] = ()) -> list[Passage]:
    """The passages of a page, in order. The title's own line, a path that leads to it ("Home › Returns") and the lines
    of `skip` are left out, unless nothing else is there."""
    groups: list[tuple[str, bool, list[str]]] = []
    headed = list(_headed(text, title, skip)) or [("", line) for line in text.split("\n") if line.strip()]
    for heading, line in headed:
        is_row = _is_row(line)
        if groups and groups[-1][:2] == (heading, is_row):
            groups[-1][2].append(line)
        elif is_row and groups and groups[-1][0] == heading and groups[-1][2][-1].endswith((":", "：")):
            groups.append((heading, True, [groups[-1][2].pop(), line]))  # what leads a list in stands with it
        else:
            groups.append((heading, is_row, [line]))
    out: list[Passage] = []
    for heading, is_row, lines in groups:
        parts = [_bare(line) for line in lines] if is_row else [part for line in lines for part in sentences(line)]
        most = ROWS_CHARACTERS if is_row else CHARACTERS
        out += [Passage(page, heading, run, is_row) for run in _runs([part for part in parts if part], most)]
    return out


def _runs(parts: list[str], most: int) -> Iterator[tuple[str, ...]]:
    run: list[str] = []
    for part in parts:
        if run and sum(map(len, run)) + len(run) + len(part) > most:
            yield tuple(run)
            run = []
        run.append(part)
    if run:
        yield tuple(run)


def _headed(text: str, title: str, skip: Container[str]) -> Iterator[tuple[str, str]]:
    """(heading, line) of every line that is no heading. A heading right below another is joined to it; one inside a
    block, such as a table's first row, is joined as well and ends with the block."""
    blocks = [[line.strip() for line in block.split("\n") if line.strip()] for block in re.split(r"\n\s*\n", text)]
    blocks = [
        [x for x in block if x not in skip and not _leads_to(x, title) and not _RULE.fullmatch(x)] for block in blocks
    ]
    blocks = [block for block in blocks if block]
    spaced = len(blocks) > 1
    outer = inner = ""
    fresh = titled = False
    for number, block in enumerate(blocks):
        inner = ""
        for place, line in enumerate(block):
            bare = line.lstrip("# ").strip()
            if not titled and bare.casefold() == title.casefold():
                titled, outer, fresh = True, "", False
                continue
            alone = spaced and len(block) == 1
            after = block[place + 1 :] or (blocks[number + 1] if alone and number + 1 < len(blocks) else [])
            if after and (line.startswith("#") or _heads(line, after[0], alone=alone, first=place == 0)):
                if alone or line.startswith("#"):
                    outer = f"{outer} – {bare}" if fresh and not outer.endswith(("?", "？")) else bare
                    fresh = True
                else:
                    inner = bare
                continue
            fresh = False
            yield (f"{outer} – {inner}" if outer and inner else outer or inner), bare


def _leads_to(line: str, title: str) -> bool:
    """Whether a line is a path of links down to the page."""
    return bool(title and re.search(r"[›»>→]\s*\S", line)) and line.casefold().endswith(title.casefold())


def _heads(line: str, following: str, *, alone: bool, first: bool) -> bool:
    """Whether a line without a mark is a heading of what follows."""
    if len(line) > HEADING or _BULLET.match(line):
        return False
    if line.endswith(("?", "？")):
        return True
    if _END.search(line) or line.endswith((":", "：")) or re.search(r"\d[:.]\d|[:：] ?\S", line):
        return False
    if alone:
        return len(line.split()) <= 10
    return first and not re.search(r"\d", line) and len(following) > len(line)


def _is_row(line: str) -> bool:
    """A bullet, a table's row, or a short line that is no sentence."""
    return bool(_BULLET.match(line)) or (len(line) <= 120 and not _END.search(line))


def _bare(line: str) -> str:
    """A row without its bullet; cells of a markdown table are joined with spaces and bars."""
    if line.startswith("|"):
        return " | ".join(cell.strip() for cell in line.strip("|").split("|"))
    return re.sub(r"^[•·▪◦*+-]\s+", "", line)
