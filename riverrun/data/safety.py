"""Two safety operators: personal data is masked, abusive pages are dropped.

Abuse is scored by a small word list of this project and its density; it finds plain insults and threats in English and
Chinese, not irony, not hatred in polite words. A trained classifier is no part of this.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from riverrun.base.config import load_yaml
from riverrun.base.types import Document
from riverrun.data.operators import Drop, Edited
from riverrun.data.personal import mask_personal
from riverrun.data.signals import language, phrase_pattern, words_of

__all__ = ["Abuse", "MaskPersonalData"]

_LEXICON = Path(__file__).parent / "lexicons" / "abuse.yaml"
_TO_SOMEONE = re.compile(
    r"\b(?:you|your|you're|ur|u|they|they're|them|these|those|such)\b(?:\W+\w+){0,3}\W*$|你们?(?:这个?|这些|就?是|真是?|全是|都是)?.{0,3}$",
    re.IGNORECASE,
)


class MaskPersonalData:
    """Edit: personal data becomes `[email]`, `[phone]` ...; counts by kind; `keep` is left alone (see personal)."""

    name = "personal_data"

    def __init__(self, *, keep: Sequence[str] = ()) -> None:
        self.keep = tuple(keep)

    def edit(self, document: Document) -> Edited:
        text, counts = mask_personal(document.text, keep=self.keep)
        title, more = mask_personal(str(document.metadata.get("title", "")), keep=self.keep)
        metadata: Mapping[str, object] = document.metadata
        if more:
            metadata = {**metadata, "title": title}
            counts = {kind: counts.get(kind, 0) + more.get(kind, 0) for kind in sorted({*counts, *more})}
        if counts:
            metadata = {**metadata, "masked": counts}
        return Edited(replace(document, text=text, metadata=metadata), counts)


class Abuse:
    """Rule: an insult counts 1, said to someone or as a threatening phrase 3; drops at `points` and `density`.

    `density` is points per 100 words (characters in Chinese), so that a long text survives a rude quotation.
    """

    name = "abuse"

    def __init__(self, *, points: int = 5, density: float = 2.0) -> None:
        self.points, self.density = points, density
        lexicon = load_yaml(_LEXICON)
        self._insults = phrase_pattern([*lexicon["en"]["insults"], *lexicon["zh"]["insults"]])
        self._phrases = phrase_pattern([*lexicon["en"]["phrases"], *lexicon["zh"]["phrases"]])

    def score(self, text: str) -> tuple[int, int]:
        """(points, words that counted)."""
        insults = list(self._insults.finditer(text))
        phrases = len(self._phrases.findall(text))
        aimed = sum(bool(_TO_SOMEONE.search(text[max(0, match.start() - 40) : match.start()])) for match in insults)
        return len(insults) + 2 * aimed + 3 * phrases, len(insults) + phrases

    def check(self, document: Document) -> Drop | None:
        points, hits = self.score(document.text)
        count = max(len(words_of(document.text, language(document.text))), 1)
        if points < self.points or 100 * points / count < self.density:
            return None
        return Drop("abusive", f"{hits} abusive words or phrases, {points} points in {count} words")
