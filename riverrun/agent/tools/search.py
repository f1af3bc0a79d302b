"""Search over a site's pages as a tool: BM25 over passages, the best pages with the sentences that answer best.

A passage is a run of paragraphs of one page; the page's title and name count with every one of its passages. There are
no embeddings: a question that shares no word with its page is not found.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from riverrun.agent.tool import Arguments, Effects, clip, failure
from riverrun.agent.tools.words import sentences, words
from riverrun.base.errors import InputError, ToolError
from riverrun.base.optional import require
from riverrun.base.types import Document, ToolResult, ToolSpec

__all__ = ["SearchTool"]

PASSAGE_CHARACTERS = 500  # a passage is closed when it is longer
HEAD_WEIGHT = 2  # how often the words of the title and of the page's name count in each passage
_SEPARATOR = re.compile(r"[-_/.]+")
QUERY_CHARACTERS = 1_000


@dataclass(frozen=True, slots=True)
class _Passage:
    page: int
    text: str


class SearchTool:
    """`run({"query": ...})`: content has a line "[page id] title: sentences" for each page found, best first.

    documents: pages; the title is metadata["title"] or the first line. top_k: most pages. characters: longest content.
    data = {"pages": [ids], "scores": [BM25]}. Thread-safe.
    """

    effects: Effects = "read"

    def __init__(
        self,
        documents: Sequence[Document],
        *,
        top_k: int = 2,
        characters: int = 500,
        name: str = "search_policies",
        description: str = "Search the pages.",
    ) -> None:
        bm25s = require("bm25s", extra="agent")
        if top_k < 1 or characters < 80:
            raise InputError(f"a search tool needs top_k >= 1 and characters >= 80, got {top_k} and {characters}")
        if not any(words(document.text) for document in documents):
            raise InputError(f"a search tool needs pages with words in them, got {len(documents)} without any")
        self.top_k, self.characters = top_k, characters
        self.ids = [document.id for document in documents]
        self.titles = [_title(document) for document in documents]
        self._passages = [
            _Passage(page, text) for page, document in enumerate(documents) for text in _split(document.text)
        ]
        names = [_SEPARATOR.sub(" ", name.rpartition(".")[0] or name) for name in self.ids]
        heads = [words(f"{title} {name}") * HEAD_WEIGHT for title, name in zip(self.titles, names, strict=True)]
        self._index = bm25s.BM25()
        self._index.index(
            [heads[passage.page] + words(passage.text) for passage in self._passages], show_progress=False
        )
        self._arguments = Arguments(_signature)
        self._arguments.tool = name
        self.spec = ToolSpec(name, description, self._arguments.schema)

    def run(self, arguments: Mapping[str, Any]) -> ToolResult:
        name = self.spec.name
        try:
            query = self._arguments.check(arguments)["query"]
        except ToolError as error:
            return failure(name, str(error))
        terms = words(query[:QUERY_CHARACTERS])
        if not terms:
            return failure(name, "the query has no words: write some keywords")
        found = self._find(terms)
        data = {"pages": [self.ids[passage.page] for passage, _ in found], "scores": [score for _, score in found]}
        if not found:
            return ToolResult("", name, "(no page found: try other words)", data=data)
        return ToolResult("", name, self._content(found, terms), data=data)

    def _find(self, terms: Sequence[str]) -> list[tuple[_Passage, float]]:
        """The best passage of each of the best pages. Equal scores: the earlier page."""
        known = [term for term in dict.fromkeys(terms) if term in self._index.vocab_dict]
        if not known:
            return []
        scores = self._index.get_scores(known)
        out: dict[int, tuple[_Passage, float]] = {}
        for index in sorted(range(len(self._passages)), key=lambda i: (-scores[i], i)):
            if scores[index] <= 0 or len(out) == self.top_k:
                break
            passage = self._passages[index]
            out.setdefault(passage.page, (passage, round(float(scores[index]), 4)))
        return list(out.values())

    def _content(self, found: Sequence[tuple[_Passage, float]], terms: Sequence[str]) -> str:
        share = (self.characters - len(found) + 1) // len(found)
        lines, spare = [], 0
        for passage, _ in found:
            head = f"[{self.ids[passage.page]}] {self.titles[passage.page]}: "
            room = share + spare - len(head)
            text = _best_sentences(passage.text, self.titles[passage.page], set(terms), room)
            lines.append(clip(head + text, share + spare))
            spare = share + spare - len(lines[-1])
        return "\n".join(lines)


def _signature(query: str) -> None:
    """The arguments of the tool."""


def _title(document: Document) -> str:
    given = str(document.metadata.get("title") or "").strip()
    first = next((line.strip() for line in document.text.splitlines() if line.strip()), document.id)
    return clip(" ".join((given or first).split()), 80)


def _split(text: str) -> list[str]:
    """Runs of paragraphs (lines, where there are no blank lines), each about PASSAGE_CHARACTERS long."""
    paragraphs = [part.strip() for part in re.split(r"\n\s*\n" if re.search(r"\n\s*\n", text) else r"\n", text)]
    out: list[str] = []
    for paragraph in paragraphs:
        if not paragraph:
            continue
        if out and len(out[-1]) + len(paragraph) < PASSAGE_CHARACTERS:
            out[-1] += "\n" + paragraph
        else:
            out.append(paragraph)
    return out


def _best_sentences(text: str, title: str, terms: set[str], room: int) -> str:
    """The run of sentences around the one with most of the query's words, as long as there is room."""
    parts = [part for part in sentences(text) if part != title]
    if not parts:
        return clip(" ".join(text.split()), room)
    hits = [len(terms & set(words(part))) for part in parts]
    first = last = max(range(len(parts)), key=lambda i: (hits[i], -i))
    size = len(parts[first])
    while True:
        after = last + 1 < len(parts) and size + 1 + len(parts[last + 1]) <= room
        before = first > 0 and size + 1 + len(parts[first - 1]) <= room
        if after and (not before or hits[last + 1] >= hits[first - 1]):
            last += 1
            size += 1 + len(parts[last])
        elif before:
            first -= 1
            size += 1 + len(parts[first])
        else:
            return clip(" ".join(parts[first : last + 1]), room)
