"""Search over a site's pages as a tool: BM25 over passages, the best pages with the sentences that answer best.

Passages are those of `passages`: the page's title and name and the heading above count with each of them. There are no
embeddings: a question that shares no word with its page is not found.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from riverrun.agent.tool import Arguments, Effects, clip, failure
from riverrun.agent.tools.passages import Passage, split_page
from riverrun.base.errors import InputError, ToolError
from riverrun.base.optional import require
from riverrun.base.types import Document, ToolResult, ToolSpec
from riverrun.base.words import words

__all__ = ["SearchTool"]

HEAD_WEIGHT = 2  # how often the words of the title and of the page's name count in each passage
HEADING_WEIGHT = 2  # the same for the heading above a passage
AROUND = 0.5  # weight of a term that only the heading or the sentence before has
NEAR = 0.2  # what a neighbour of a chosen sentence gains, in weights of the rarest term
AMOUNT = 0.4  # what a sentence with a number gains where one is asked for
OF_PASSAGE = 0.3  # share of its passage's score in a sentence's
FLOOR = 0.65  # an extract takes nothing that answers this much less well than its best sentence, but for neighbours
QUERY_CHARACTERS = 1_000
EXTRACT_CHARACTERS = 400
REPEATED = 4  # a line on fewer pages than this is never left out as the site's own
_Spot = tuple[int, int]
"""A passage's and a part's number."""
_ENDS = (".", "!", "?", ":", ";", "。", "！", "？", "：", "；")
_SEPARATOR = re.compile(r"[-_/.]+")
_AMOUNTS = re.compile(r"\d|[一二三四五六七八九十两]+[点月日天年元个小分周折]")
_AMOUNT = re.compile(
    r"\bhow (?:much|many|long|often|old|far|big|large|soon|early|late)\b|\bwhen\b|\bwhat time\b|"
    r"\b(?:price|cost|fee|phone|number|hour|deadline)s?\b|\b(?:ring|call)\b|"
    r"多少|几[点天个次小月年岁]|多久|什么时候|何时|时间|电话|价格|费用|多大|多长",
    re.IGNORECASE,
)
"""A question that asks for a number."""


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
        repeated = _repeated(documents)
        self._passages = [
            passage
            for page, document in enumerate(documents)
            for passage in split_page(page, document.text, self.titles[page], skip=repeated)
        ]
        names = [_SEPARATOR.sub(" ", name.rpartition(".")[0] or name) for name in self.ids]
        heads = [words(f"{title} {name}") * HEAD_WEIGHT for title, name in zip(self.titles, names, strict=True)]
        terms = [
            heads[passage.page] + words(passage.heading) * HEADING_WEIGHT + words(passage.text)
            for passage in self._passages
        ]
        self._index = bm25s.BM25()
        self._index.index(terms, show_progress=False)
        self._whole = bm25s.BM25()
        self._whole.index(
            [heads[page] + words(document.text) for page, document in enumerate(documents)], show_progress=False
        )
        self._spread = Counter(term for passage in terms for term in set(passage))
        self._arguments = Arguments(_signature)
        self._arguments.tool = name
        self.spec = ToolSpec(name, description, self._arguments.schema)

    def run(self, arguments: Mapping[str, Any]) -> ToolResult:
        name = self.spec.name
        try:
            query = self._arguments.check(arguments)["query"]
        except ToolError as error:
            return failure(name, str(error))
        query = query[:QUERY_CHARACTERS]
        if not words(query):
            return failure(name, "the query has no words: write some keywords")
        found = self._find(words(query))
        data = {"pages": [self.ids[page] for page, _ in found], "scores": [score for _, score in found]}
        if not found:
            return ToolResult("", name, "(no page found: try other words)", data=data)
        return ToolResult("", name, self._content([page for page, _ in found], query), data=data)

    def extract(self, question: str, *, characters: int = EXTRACT_CHARACTERS) -> str:
        """What the best page says to a question, word for word: its sentences and rows that answer best, under their
        headings; empty when no page has a word of the question."""
        question = question[:QUERY_CHARACTERS]
        found = self._find(words(question))
        return self._quote(found[0][0], question, characters, floor=FLOOR) if found else ""

    def _scores(self, terms: Sequence[str]) -> list[float]:
        known = [term for term in dict.fromkeys(terms) if term in self._index.vocab_dict]
        return [float(score) for score in self._index.get_scores(known)] if known else [0.0] * len(self._passages)

    def _find(self, terms: Sequence[str]) -> list[tuple[int, float]]:
        """The best pages by their best passage. Equal scores: the earlier page."""
        best: dict[int, float] = {}
        for passage, score in zip(self._passages, self._scores(terms), strict=True):
            if score > best.get(passage.page, 0.0):
                best[passage.page] = score
        known = [term for term in dict.fromkeys(terms) if term in self._whole.vocab_dict]
        whole = self._whole.get_scores(known) if known else ()
        best = {page: score + float(whole[page]) for page, score in best.items()}
        ranked = sorted(best, key=lambda page: (-best[page], page))[: self.top_k]
        return [(page, round(best[page], 4)) for page in ranked]

    def _content(self, pages: Sequence[int], query: str) -> str:
        share = (self.characters - len(pages) + 1) // len(pages)
        lines, spare = [], 0
        for page in pages:
            head = f"[{self.ids[page]}] {self.titles[page]}: "
            text = self._quote(page, query, share + spare - len(head))
            lines.append(clip(head + text, share + spare))
            spare = share + spare - len(lines[-1])
        return "\n".join(lines)

    def _quote(self, page: int, query: str, room: int, *, floor: float = 0.0) -> str:
        """The parts of a page that answer best, word for word and in the page's order, under their headings."""
        terms = words(query)
        weights = {term: self._weight(term) for term in terms}
        gain = NEAR * max(weights.values(), default=0.0)
        scores, asks_amount = self._scores(terms), bool(_AMOUNT.search(query))
        rates = {
            (index, place): rate + OF_PASSAGE * scores[index]
            for index, passage in enumerate(self._passages)
            if passage.page == page
            for place, rate in enumerate(_rates(passage, weights, asks_amount))
        }
        least = floor * max(rates.values())
        chosen: set[_Spot] = set()
        text = ""
        while left := [spot for spot in rates if spot not in chosen]:
            beside = {(index, place + step) for index, place in chosen for step in (-1, 1)}
            best = max(left, key=lambda spot: (rates[spot] + gain * (spot in beside), -spot[0], -spot[1]))
            longer = self._said(chosen | {best})
            goes_on = best in beside and not self._passages[best[0]].rows
            if (chosen and len(longer) > room) or (rates[best] < least and not goes_on):
                break
            chosen.add(best)
            text = longer
        return clip(text, room)

    def _said(self, chosen: Iterable[_Spot]) -> str:
        """Parts in order, each heading once before its own; rows end with a semicolon."""
        out, heading = [], ""
        for index, place in sorted(chosen):
            passage = self._passages[index]
            if passage.heading != heading:
                heading = passage.heading
                out.append(f"{heading}{'' if heading.endswith(_ENDS) else ':'}" if heading else "")
            part = passage.parts[place]
            out.append(part if part.endswith(_ENDS) else f"{part};")
        return " ".join(part for part in out if part).rstrip(";")

    def _weight(self, term: str) -> float:
        """How telling a term is: rarer among the passages, more so."""
        return math.log(1 + len(self._passages) / (1 + self._spread[term]))


def _rates(passage: Passage, weights: Mapping[str, float], asks_amount: bool) -> Iterator[float]:
    """How well each part answers: the weight of the terms it holds, and a share for those around it."""
    heading = set(words(passage.heading))
    held = [set(words(part)) for part in passage.parts]
    extra = AMOUNT * max(weights.values(), default=0.0) if asks_amount else 0.0
    for place, own in enumerate(held):
        around = heading | (held[place - 1] if place and not passage.rows else set())
        rate = sum(weight * (term in own or AROUND * (term in around)) for term, weight in weights.items())
        yield rate + (extra if _AMOUNTS.search(passage.parts[place]) else 0.0)


def _signature(query: str) -> None:
    """The arguments of the tool."""


def _title(document: Document) -> str:
    given = str(document.metadata.get("title") or "").strip()
    first = next((line.strip() for line in document.text.splitlines() if line.strip()), document.id)
    return clip(" ".join((given or first).split()), 80)


def _repeated(documents: Sequence[Document]) -> set[str]:
    """Lines that belong to the site, not to a page: on half of the pages, or on a quarter of them without a digit."""
    spread = Counter(line for document in documents for line in {line.strip() for line in document.text.split("\n")})
    most = max(REPEATED, len(documents) / 4)
    return {
        line
        for line, count in spread.items()
        if count >= most and (count >= len(documents) / 2 or not re.search(r"\d", line))
    }
