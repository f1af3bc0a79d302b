"""Main text, title and canonical name of a page: menus, footers and cookie notices are left out, broken markup is read.

On resiliparse's parser and main-content heuristics, with a check that what was left out was not the page itself.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from riverrun.base.optional import require
from riverrun.base.types import Document
from riverrun.data.operators import Drop, Edited

__all__ = ["Extract"]

_LANDMARKS = ("nav", "footer", "aside", "[role=navigation]", "[role=contentinfo]", "[role=complementary]")
_NOTICES = tuple(
    f"[{attribute}*={word} i]"
    for attribute in ("class", "id")
    for word in ("cookie", "consent", "newsletter", "breadcrumb")
)
_HIDDEN = ("[hidden]", "[aria-hidden=true]", ".visually-hidden", ".sr-only", ".skip-link")
_LEAST_SHARE = 0.25
"""If leaving out named parts leaves less than this share of the text, an unclosed tag has swallowed the page."""
_MOST_LINKS = 0.5
"""A list whose text is links above this share is a menu."""
_ITEM = "unorderedlistitem"
_NOTICE_LINE = re.compile(
    r"^(skip to (main )?content|we use cookies\b.*|this (web)?site uses cookies\b.*|accept( all)?( cookies)?|"
    r"(©|\(c\)|copyright\b).{0,80}|all rights reserved\.?|back to top|跳到主要内容|返回顶部|本网站使用.{0,4}cookies?.*|"
    r"版权所有.{0,60}|.{0,20}ICP备\d+号.{0,20})$",
    re.IGNORECASE,
)
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
        tree = self._parse(html)
        heading = tree.document.query_selector("h1") if tree.document else None
        title = tree.title or (heading.text if heading else "")
        found = {"title": title, "text": self._main(tree)}
        link = tree.head.query_selector("link[rel=canonical]") if tree.head else None
        if link is not None and link.getattr("href"):
            found["canonical"] = str(link.getattr("href"))
        return found

    def _main(self, tree: Any) -> str:
        """The narrowest reading that still holds most of the text."""
        _keep_lists(tree)
        everything = self._text(tree, list_bullets=True, alt_texts=False, skip_elements=["script", "style"])
        floor = _LEAST_SHARE * len(everything)
        for skip in ([*_LANDMARKS, *_NOTICES, *_HIDDEN], [*_LANDMARKS, *_HIDDEN], []):
            for main in (True, False):
                text = str(self._text(tree, main_content=main, list_bullets=True, alt_texts=False, skip_elements=skip))
                if len(text) >= floor:
                    return _bullets(text)
        return _bullets(str(everything))


def _keep_lists(tree: Any) -> None:
    """Turn content lists into numbered ones whose items carry a mark.

    The main-content heuristics take every `ul` for a menu and leave it out, the bullet points of a policy too, and keep
    every `ol`. Content is a list inside main or article or beside paragraphs, unless most of its text is links.
    """
    for menu in tree.body.query_selector_all("ul") if tree.body else ():
        size = _letters(menu)
        links = sum(_letters(link) for link in menu.query_selector_all("a"))
        if not size or links > _MOST_LINKS * size or menu.closest("nav, header, footer, aside"):
            continue
        parent = menu.parent_node
        if not menu.closest("main, article, [role=main]") and not any(node.tag == "p" for node in parent.child_nodes):
            continue
        ordered = tree.create_element("ol")
        for node in list(menu.child_nodes):
            ordered.append_child(node)
        for item in ordered.children:
            item.prepend(tree.create_text_node(_ITEM + " "))
        parent.replace_child(ordered, menu)


def _letters(node: Any) -> int:
    return len("".join(node.text.split()))


def _bullets(text: str) -> str:
    """Undo `_keep_lists`: marked numbers become bullets."""
    return re.sub(rf"(?:\d+\. )?{_ITEM} ?", "• ", text)


def _plain(text: str, *, markdown: bool) -> dict[str, str]:
    text = _FRONT_MATTER.sub("", text) if markdown else text
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    title = next((line for line in lines if line.startswith("# ")), lines[0] if lines else "")
    return {"title": title.lstrip("# ")[:200], "text": text}


def _tidy(text: str) -> str:
    """Spaces evened out inside lines, notice lines removed, at most one empty line in a row."""
    lines = [re.sub(r"[^\S\n]+", " ", line).strip() for line in text.split("\n")]
    kept = [line for line in lines if not _NOTICE_LINE.match(line)]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip()
