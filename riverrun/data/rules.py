"""Rules over measured values, each with its threshold, reason and source; and pages that hold no content yet.

All failing rules of a document stand in the detail, the first one gives the reason. Thresholds are for a business's
own pages: where they are wider than their source, the table says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from riverrun.base.config import load_yaml
from riverrun.base.types import Document
from riverrun.data.operators import Drop, signals_of
from riverrun.data.signals import language, phrase_pattern, words_of

__all__ = ["PAGE_RULES", "Placeholder", "Threshold", "Thresholds"]

_LEXICON = Path(__file__).parent / "lexicons" / "pages.yaml"
_GOPHER = "Gopher, arXiv 2112.11446, A.1"
_OURS = "this project, set on business pages"


@dataclass(frozen=True, slots=True)
class Threshold:
    """A document fails if the value is below `least` or above `most`; `lang` limits the rule to `en` or `zh`."""

    signal: str
    reason: str
    source: str
    least: float | None = None
    most: float | None = None
    lang: str = ""

    def fails(self, value: float) -> bool:
        return (self.least is not None and value < self.least) or (self.most is not None and value > self.most)

    def sentence(self, value: float) -> str:
        bound = f"< {self.least:g}" if self.least is not None and value < self.least else f"> {self.most:g}"
        return f"{self.signal} {value:.4g} {bound}"


PAGE_RULES: tuple[Threshold, ...] = (
    Threshold("broken_characters", "broken_text", _OURS, most=0.01),
    Threshold("repeated_lines", "repetition", _GOPHER, most=0.30),
    Threshold("repeated_line_characters", "repetition", _GOPHER, most=0.20),
    Threshold("spam_phrases", "spam", _OURS, most=4),
    Threshold("top_word", "spam", _OURS, most=0.12, lang="en"),
    Threshold("top_five_words", "spam", _OURS, most=0.35, lang="en"),
    Threshold("words", "too_short", "Gopher has 50 for crawled pages; a policy may be said in 30", least=30, lang="en"),
    Threshold("words", "too_short", "ChineseWebText has 200; a policy may be said in 50", least=50, lang="zh"),
    Threshold("words", "too_long", _GOPHER, most=100_000),
    Threshold("alphabetic", "no_prose", "Gopher has 0.8; price and date lists are content here", least=0.6),
    Threshold("mean_word_length", "odd_words", _GOPHER, least=3, most=10, lang="en"),
    Threshold("stop_words", "no_prose", _GOPHER, least=2, lang="en"),
    Threshold(
        "stop_words", "no_prose", "3 distinct function characters, in place of Gopher's words", least=3, lang="zh"
    ),
    Threshold("hashes", "symbols", _GOPHER, most=0.1),
    Threshold("ellipses", "symbols", _GOPHER, most=0.1),
    Threshold("end_ellipses", "symbols", _GOPHER, most=0.3),
    Threshold("longest_run", "no_prose", "keyword lists have no punctuation; " + _OURS, most=200, lang="zh"),
    Threshold("top_2gram", "repetition", _GOPHER, most=0.20),
    Threshold("top_3gram", "repetition", _GOPHER, most=0.18),
    Threshold("top_4gram", "repetition", _GOPHER, most=0.16),
    Threshold("repeated_5grams", "repetition", _GOPHER, most=0.15, lang="en"),
    Threshold("repeated_10grams", "repetition", _GOPHER, most=0.10, lang="en"),
    Threshold("repeated_13grams", "repetition", "WanJuan-style zh rule", most=0.5, lang="zh"),
)


class Thresholds:
    """Rule: every threshold that applies to the document's language and whose signal was measured."""

    name = "rules"

    def __init__(self, table: Sequence[Threshold] = PAGE_RULES) -> None:
        self.table = tuple(table)

    def check(self, document: Document) -> Drop | None:
        values = signals_of(document)
        assert values, f"document '{document.id}' has no signals: put a Signal before the rules"
        lang = "zh" if values.get("zh") else "en"
        failing = [
            rule
            for rule in self.table
            if rule.signal in values and rule.lang in ("", lang) and rule.fails(values[rule.signal])
        ]
        if not failing:
            return None
        return Drop(failing[0].reason, "; ".join(rule.sentence(values[rule.signal]) for rule in failing))


class Placeholder:
    """Rule: a page that says it has no content yet; the weaker phrases count on pages of less than `words` words."""

    name = "placeholder"

    def __init__(self, *, words: int = 120) -> None:
        lexicon = load_yaml(_LEXICON)["placeholder"]
        self.words = words
        self._anywhere, self._short = phrase_pattern(lexicon["anywhere"]), phrase_pattern(lexicon["short"])

    def check(self, document: Document) -> Drop | None:
        text = f"{document.metadata.get('title', '')}\n{document.text}"
        count = len(words_of(text, language(text)))
        found = self._anywhere.search(text) or (self._short.search(text) if count < self.words else None)
        if found is None:
            return None
        return Drop("under_construction", f"says '{' '.join(found.group().split())}' in {count} words")
