"""Words for search: lower case, light English stemming, no stop words, Chinese and Japanese text as character pairs."""

from __future__ import annotations

import re
import unicodedata

__all__ = ["STOP_WORDS", "sentences", "stem", "words"]

_TOKEN = re.compile(r"[\u3400-\u9fff\uf900-\ufaff\u3040-\u30ff]+|[^\W_]+(?:['’][^\W_]+)*")
_CJK = re.compile(r"[\u3040-\u9fff\uf900-\ufaff]")
_SENTENCE_END = re.compile(r"([.!?][\"'”’)]*)\s+|(?<=[。！？])")
_STOP_WORDS = """
a about am an and are as at be been but by can could did do does for from get had has have how i if in is it its
me my of on or our please shall she should so some tell than that the their them there these they this those to
us was we were what when where which who whom whose why will with would you your
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())


def words(text: str) -> list[str]:
    """The terms of a text, in order. A text of stop words only keeps them."""
    found = _TOKEN.findall(unicodedata.normalize("NFKC", text).lower())
    terms = [term for token in found for term in _terms(token)]
    kept = [term for term in terms if term not in STOP_WORDS]
    return [term if _CJK.match(term) else stem(term) for term in kept or terms]


def _terms(token: str) -> list[str]:
    if not _CJK.match(token):
        return [re.sub(r"['’]s?$|['’](?=.)", "", token)]
    return [token[index : index + 2] for index in range(max(1, len(token) - 1))]


def stem(word: str) -> str:
    """Plural, -ing, -ed and a final e taken off, y as i; words with digits stay. "returning", "returned", "returns"
    give "return". Lighter than Porter: it never joins words of different meaning that only share a beginning."""
    if len(word) < 4 or not word.isalpha():
        return word
    if word.endswith("ies") and len(word) > 4:
        word = word[:-3] + "y"
    elif word.endswith(("sses", "shes", "ches", "xes", "zes")):
        word = word[:-2]
    elif word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    for ending in ("ing", "ed"):
        rest = word[: -len(ending)]
        if word.endswith(ending) and len(rest) >= 3 and re.search("[aeiouy]", rest):
            word = rest[:-1] if rest[-1] == rest[-2] and rest[-1] not in "lsz" else rest
            break
    if word.endswith("e") and len(word) > 3:
        word = word[:-1]
    if word.endswith("y") and len(word) > 3 and word[-2] not in "aeiou":
        word = word[:-1] + "i"
    return word


def sentences(text: str) -> list[str]:
    """Sentences and lines, without the blanks between them."""
    lines = _SENTENCE_END.sub(lambda found: (found[1] or "") + "\n", text).split("\n")
    return [line.strip() for line in lines if line.strip()]
