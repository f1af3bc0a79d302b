"""What is done to a page's markup before it is parsed: content lists are marked, the nesting is measured.

Works on tags as they stand in the text, in one pass, so that broken and hostile pages cost no more than others.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

__all__ = ["mark_lists", "nesting", "unmark_lists"]

_MOST_LINKS = 0.5
"""A list whose text is links above this share is a menu."""
_ITEM = "unorderedlistitem"
_TAG = re.compile(r"<(/?)(ul|ol|li|main|article|nav|header|footer|aside|a|p|script|style)\b[^<>]*>", re.IGNORECASE)
_ANY_TAG_OR_SPACE = re.compile(r"<[^<>]*>|\s+")
_NESTING = re.compile(
    r"<(/?)(?!(?:p|li|dt|dd|tr|td|th|thead|tbody|option|br|hr|img|input|meta|link|source|wbr|col|area|base|embed|track)\b)"
    r"[a-z]",
    re.IGNORECASE,
)


@dataclass
class _List:
    """A list whose end has not come yet; `items` are its own `li` tags."""

    start: re.Match[str]
    beside_text: bool
    letters: int = 0
    linked: int = 0
    items: list[re.Match[str]] = field(default_factory=list)


def mark_lists(html: str) -> str:
    """Turn bullet lists that are content into numbered ones whose items carry a mark.

    resiliparse's main-content heuristics (2.0.1) take every `ul` for a menu and leave it out, the bullet points of a
    policy too, and keep every `ol`. Content is a list inside main or article or after a paragraph, outside of menus and
    footers, with at most half of its text in links.
    """
    edits: list[tuple[int, int, str]] = []
    lists: list[_List] = []
    inside: Counter[str] = Counter()
    before, at = "", 0
    for match in _TAG.finditer(html):
        closing, tag = bool(match.group(1)), match.group(2).lower()
        if (inside["script"] or inside["style"]) and not (closing and tag in ("script", "style")):
            continue  # markup in a program's strings
        if lists:
            letters = len(_ANY_TAG_OR_SPACE.sub("", html[at : match.start()]))
            lists[-1].letters += letters
            lists[-1].linked += letters if inside["a"] else 0
        at = match.end()
        if tag in ("ul", "ol"):
            if not closing:
                within = lists[-1].beside_text if lists else bool(inside["main"] or inside["article"])
                lists.append(_List(match, beside_text=within or before == "p"))
            elif lists and _close(lists, match, inside, edits):
                tag = "p"  # what follows a content list is content as well
        elif tag == "li":
            if lists and not closing:
                lists[-1].items.append(match)
        elif tag != "p":
            inside[tag] = max(0, inside[tag] - 1) if closing else inside[tag] + 1
        before = before if tag in ("a", "li") else tag
    while lists:
        _close(lists, None, inside, edits)
    out, at = [], 0
    for start, end, text in sorted(edits):
        out += [html[at:start], text]
        at = end
    return "".join([*out, html[at:]])


def _close(
    lists: list[_List], end: re.Match[str] | None, inside: Counter[str], edits: list[tuple[int, int, str]]
) -> bool:
    """Take the innermost list off the stack; note the edits that mark it if it is a bullet list with content."""
    done = lists.pop()
    if lists:
        lists[-1].letters += done.letters
        lists[-1].linked += done.linked
    is_menu = done.linked > _MOST_LINKS * done.letters or any(
        inside[tag] for tag in ("nav", "header", "footer", "aside")
    )
    if done.start.group(2).lower() != "ul" or is_menu or not done.letters or not done.beside_text:
        return False
    edits.append((done.start.start(), done.start.end(), "<ol>"))
    edits.extend((item.end(), item.end(), _ITEM + " ") for item in done.items)
    if end is not None:
        edits.append((end.start(), end.end(), "</ol>"))
    return True


def unmark_lists(text: str) -> str:
    """Marked numbers of the extracted text become bullets."""
    return re.sub(rf"(?:\d+\. )?{_ITEM} ?", "• ", text)


def nesting(html: str) -> int:
    """The deepest nesting of elements that do not close themselves, by their tags alone."""
    depth = deepest = 0
    for match in _NESTING.finditer(html):
        depth = max(0, depth - 1) if match.group(1) else depth + 1
        deepest = max(deepest, depth)
    return deepest
