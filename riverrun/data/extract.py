"""Main text, title and canonical name of a page: menus, footers and cookie notices are left out, broken markup is read.

On resiliparse's parser and main-content heuristics, with a check that what was left out was not the page itself.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from riverrun.base.optional import require
from riverrun.base.types import Document
from riverrun.data.markup import mark_lists, nesting, unmark_lists
from riverrun.data.operators import Drop, Edited

__all__ = ["Extract"]

_LEFT_OUT = (
    *("nav", "footer", "aside", "[role=navigation]", "[role=contentinfo]", "[role=complementary]"),
    *(f"[{key}*={word} i]" for key in ("class", "id") for word in ("cookie", "consent", "newsletter", "breadcrumb")),
    *("[hidden]", "[aria-hidden=true]", ".visually-hidden", ".sr-only", ".skip-link"),
)
_LEAST_SHARE = 0.05
"""If less than this share of a page's text is left, too much was left out."""
_MOST_DEPTH = 1000
"""The parser's heuristics and selectors take time with the square of the depth: a deeper page is read without them."""
_NOTICE_LINE = re.compile(
    r"^(skip to (main )?content|we use cookies\b.*|this (web)?site uses cookies\b.*|accept( all)?( cookies)?|"
    r"(copyright )?(©|\(c\)|copyright) ?\d{4}.{0,80}|all rights reserved\.?|back to top|跳到主要内容|返回顶部|"
    r"本网站使用.{0,4}cookies?.*|版权所有.{0,60}|.{0,20}ICP备\d+号.{0,20})$",
    re.IGNORECASE,
)
_LINK = re.compile(r"\[([^\]]+)\]\([^)]*\)")
_FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)


class Extract:
    """Edit: raw page -> text, with `title` (and `canonical` where the page names one) in the metadata."""

    name = "extract"

    def __init__(self) -> None:
        self._parse: Any = require("resiliparse.parse.html", extra="data").HTMLTree.parse
        self._text: Any = require("resiliparse.extract.html2text", extra="data").extract_plain_text

    def edit(self, document: Document) -> Edited | Drop:
        """The document with its text; Drop `unreadable` or `empty`."""
        if problem := document.metadata.get("problem"):
            return Drop("unreadable", str(problem))
        kind = document.metadata.get("format", "html")
        raw = document.text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "")
        found = self._html(raw) if kind == "html" else _plain(raw, markdown=kind == "markdown")
        text = _tidy(found.pop("text"))
        if not text:
            return Drop("empty", f"no text in {len(document.text)} characters of {kind}")
        title = " ".join(found.pop("title", "").split()) or document.id
        return Edited(replace(document, text=text, metadata={**document.metadata, "title": title, **found}))

    def _html(self, html: str) -> dict[str, str]:
        tree = self._parse(mark_lists(html))
        heading = tree.document.query_selector("h1") if tree.document else None
        found = {
            "title": _title(tree.title or "", heading.text if heading else ""),
            "text": self._main(tree, nesting(html)),
        }
        link = tree.head.query_selector("link[rel=canonical]") if tree.head else None
        if link is not None and link.getattr("href"):
            found["canonical"] = str(link.getattr("href"))
        return found

    def _main(self, tree: Any, deepest: int) -> str:
        """The narrowest reading, or a wider one where an unclosed tag would swallow the page."""
        everything = str(self._text(tree, alt_texts=False, skip_elements=["script", "style"]))
        is_deep = deepest > _MOST_DEPTH
        for skip in (list(_LEFT_OUT) if is_deep else _swallowing_removed(tree), []):
            for main in (False,) if is_deep else (True, False):
                text = str(self._text(tree, main_content=main, alt_texts=False, skip_elements=skip))
                if len(text) >= _LEAST_SHARE * len(everything):
                    return unmark_lists(text)
        return unmark_lists(everything)


def _swallowing_removed(tree: Any) -> list[str]:
    """The parts to leave out, but for those that hold the main part or the heading: a tag there was not closed."""
    body = tree.body
    if body is None:
        return []
    return [part for part in _LEFT_OUT if body.query_selector(f"{part} main, {part} article, {part} h1") is None]


def _title(title: str, heading: str) -> str:
    """The page's title; its heading where that is the title without the site's name (`Returns | Shop`)."""
    title, heading = " ".join(title.split()), " ".join(heading.split())
    return heading if heading and heading.casefold() in title.casefold() else title or heading


def _plain(text: str, *, markdown: bool) -> dict[str, str]:
    text = _FRONT_MATTER.sub("", text) if markdown else text
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    title = next((line for line in lines if line.startswith("# ")), lines[0] if lines else "")
    title = title.lstrip("# ")[:200]
    return {"title": _unmarked(title) if markdown else title, "text": _unmark(text) if markdown else text}


def _unmark(text: str) -> str:
    """Markdown as the text a reader sees: headings alone in their lines, cells between bars, links and emphasis by
    their words; lines that are mostly links are menus and left out. Fenced code stays as it is."""
    out: list[str] = []
    fenced = False
    for line in text.split("\n"):
        if re.match(r"\s*(```|~~~)", line):
            fenced = not fenced
        elif fenced:
            out.append(line)
        elif re.fullmatch(r"[\s|:=_*-]*(?:-{3,}|_{3,}|={3,}|\*{3,})[\s|:=_*-]*", line):
            if "|" not in line:
                out.append("")
        elif heading := re.match(r"#{1,6}\s+(.*?)\s*#*$", line):
            out += ["", _unmarked(heading[1]), ""]
        elif not _is_menu(line):
            line = re.sub(r"^(?:\s*>)+ ?", "", line)
            line = re.sub(r"^\s*[*+-]\s+", "• ", line)
            if line.lstrip().startswith("|"):
                line = " | ".join(cell.strip() for cell in line.strip().strip("|").split("|"))
            out.append(_unmarked(line))
    return "\n".join(out)


def _unmarked(line: str) -> str:
    line = re.sub(r"!\[([^\]]*)\]\([^)]*\)", r"\1", line)
    line = _LINK.sub(r"\1", line)
    line = re.sub(r"(\*\*|__)(?=\S)(.+?)(?<=\S)\1", r"\2", line)
    return re.sub(r"(?<![\w*])\*(?=[^\s*])([^*]+?)(?<=\S)\*(?![\w*])", r"\1", line)


def _is_menu(line: str) -> bool:
    linked = _LINK.findall(line)
    letters = len(re.sub(r"\W", "", _LINK.sub(r"\1", line)))
    return len(linked) > 1 and len(re.sub(r"\W", "", "".join(linked))) > letters / 2


def _tidy(text: str) -> str:
    """Spaces evened out inside lines, notice lines removed, at most one empty line in a row."""
    lines = [re.sub(r"[^\S\n]+", " ", line).strip() for line in text.split("\n")]
    kept = [line for line in lines if not _NOTICE_LINE.match(line)]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip()
