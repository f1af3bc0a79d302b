"""Numbers about a text: length, symbols, repetition, stop words, stuffing. One measure each, judged later by `rules`.

English text counts words, Chinese text counts characters (`language` says which). The definitions are Gopher's
(arXiv 2112.11446, appendix A) unless another source is named; repetition is measured over the text's own characters.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from riverrun.base.config import load_yaml
from riverrun.base.types import Document

__all__ = ["TextSignals", "han_share", "language", "phrase_pattern", "words_of"]

LEAST_SPAM_HITS = 4
"""Fewer selling phrases than this are no spam on any page, however short."""
_LEXICON = Path(__file__).parent / "lexicons" / "pages.yaml"
_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]")
_LETTER = re.compile(r"[^\W\d_]")
_WORD = re.compile(r"[^\W_]+(?:['’\-][^\W_]+)*")
_BULLET = re.compile(r"^\s*(?:[•*–-]\s|\d{1,3}[.)]\s)")
_END = tuple(".!?\"'。！？；…”」』")
_STOP_EN = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})
_STOP_ZH = tuple("的了是在和有不我他这一与及等")


def han_share(text: str) -> float:
    """Chinese characters over all letters."""
    letters = len(_LETTER.findall(text))
    return len(_HAN.findall(text)) / letters if letters else 0.0


def language(text: str) -> str:
    """`zh` if at least 30 % of the first letters are Chinese characters (ChineseWebText's ratio), else `en`."""
    return "zh" if han_share(text[:20_000]) >= 0.30 else "en"


def words_of(text: str, lang: str) -> list[str]:
    """Lower-case words; for zh the Chinese characters and the Latin words between them."""
    if lang == "zh":
        return re.findall(r"[\u3400-\u4dbf\u4e00-\u9fff]|[0-9a-z]+", text.lower())
    return [word.lower() for word in _WORD.findall(text)]


def phrase_pattern(phrases: Sequence[str]) -> re.Pattern[str]:
    """One pattern for a list of phrases, longest first; spaces match any white space, ASCII phrases whole words."""
    ordered = sorted(phrases, key=lambda item: (-len(item), item))
    bodies = [(phrase, r"\s+".join(re.escape(word) for word in phrase.split())) for phrase in ordered]
    latin = "|".join(body for phrase, body in bodies if phrase.isascii())
    other = [body for phrase, body in bodies if not phrase.isascii()]
    parts = [rf"(?<![A-Za-z0-9])(?:{latin})(?![A-Za-z0-9])"] if latin else []
    return re.compile("|".join(parts + other), re.IGNORECASE)


class TextSignals:
    """Signal: all values that the rules look at. `zh` is 1 for Chinese text, else 0; spam_phrases is per 100 words."""

    name = "signals"

    def __init__(self) -> None:
        lexicon = load_yaml(_LEXICON)
        self._spam, self._common = phrase_pattern(lexicon["spam"]), frozenset(lexicon["common"])

    def measure(self, document: Document) -> Mapping[str, float]:
        text = document.text
        lang = language(text)
        words = words_of(text, lang)
        values = {"zh": float(lang == "zh"), "words": float(len(words)), "characters": float(len(text))}
        values |= _symbols(text, words)
        values |= _lines(text)
        values |= _repetition(words, lang)
        values |= _chinese(text) if lang == "zh" else _english(words)
        values |= _stuffing(words, lang, self._common)
        hits = len(self._spam.findall(text))
        values["spam_phrases"] = 100 * hits / max(len(words), 1) if hits >= LEAST_SPAM_HITS else 0.0
        return values


def _symbols(text: str, words: Sequence[str]) -> dict[str, float]:
    count = max(len(words), 1)
    broken = text.count("\ufffd") + sum(unicodedata.category(letter) == "Co" for letter in text)
    return {
        "hashes": text.count("#") / count,
        "ellipses": (text.count("...") + text.count("…")) / count,
        "broken_characters": broken / max(len(text), 1),
        "alphabetic": sum(any(letter.isalpha() for letter in word) for word in words) / count,
    }


def _lines(text: str) -> dict[str, float]:
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    count, size = max(len(lines), 1), max(sum(map(len, lines)), 1)
    seen = Counter(lines)
    return {
        "bullets": sum(bool(_BULLET.match(line)) for line in lines) / count,
        "end_ellipses": sum(line.endswith(("...", "…")) for line in lines) / count,
        "end_marks": sum(line.endswith(_END) for line in lines) / count,
        "repeated_lines": sum(number - 1 for number in seen.values()) / count,
        "repeated_line_characters": sum(len(line) * (number - 1) for line, number in seen.items()) / size,
    }


def _repetition(words: Sequence[str], lang: str) -> dict[str, float]:
    """Share of the characters in the commonest n-gram (n 2-4) and in n-grams seen before (n 5, 10; zh 13)."""
    size = max(sum(map(len, words)), 1)
    values = {}
    for n in (2, 3, 4):
        grams = Counter(tuple(words[start : start + n]) for start in range(len(words) - n + 1))
        most = max(((sum(map(len, gram)) * number) for gram, number in grams.items() if number > 1), default=0)
        values[f"top_{n}gram"] = most / size
    for n in (13,) if lang == "zh" else (5, 10):
        values[f"repeated_{n}grams"] = _repeated(words, n) / size
    return values


def _repeated(words: Sequence[str], n: int) -> int:
    """Characters in n-grams seen before, each counted once (a scan that jumps over what it found)."""
    seen: set[tuple[str, ...]] = set()
    start = found = 0
    while start + n <= len(words):
        gram = tuple(words[start : start + n])
        if gram in seen:
            found += sum(map(len, gram))
            start += n
        else:
            seen.add(gram)
            start += 1
    return found


def _english(words: Sequence[str]) -> dict[str, float]:
    return {
        "mean_word_length": sum(map(len, words)) / max(len(words), 1),
        "stop_words": float(len(_STOP_EN & set(words))),
    }


def _chinese(text: str) -> dict[str, float]:
    """Stop characters, punctuation per character, longest run of characters without punctuation."""
    dense = "".join(text.split())
    runs = re.split(r"[^\u3400-\u4dbf\u4e00-\u9fff]+", dense)
    marks = sum(letter in "。，、！？；：" for letter in dense)
    return {
        "stop_words": float(sum(letter in text for letter in _STOP_ZH)),
        "punctuation": marks / max(len(dense), 1),
        "longest_run": float(max(map(len, runs), default=0)),
    }


def _stuffing(words: Sequence[str], lang: str, function_words: frozenset[str]) -> dict[str, float]:
    """Share of the commonest content word (said 8 times or more) and of the five commonest (4 times or more)."""
    if lang == "zh":
        units = ["".join(words[start : start + 2]) for start in range(len(words) - 1)]
    else:
        units = [word for word in words if len(word) > 2 and word not in function_words and not word.isdigit()]
    common = Counter(units).most_common(5)
    count = max(len(words), 1)
    return {
        "top_word": max((number for _, number in common if number >= 8), default=0) / count,
        "top_five_words": sum(number for _, number in common if number >= 4) / count,
    }
