"""Search in cards by words of any language, with filters."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from riverrun.base.errors import InputError, nearest
from riverrun.hub.card import KINDS, Card

__all__ = ["LANGUAGES", "language_code", "search"]

LANGUAGES = {
    "zh": ("chinese", "中文", "汉语", "简体"), "en": ("english", "英文", "英语"), "de": ("german", "德语"),
    "fr": ("french", "法语"), "es": ("spanish", "西班牙语"), "it": ("italian", "意大利语"),
    "pt": ("portuguese", "葡萄牙语"), "ru": ("russian", "俄语"), "ja": ("japanese", "日语"), "ko": ("korean", "韩语"),
    "ar": ("arabic", "阿拉伯语"), "hi": ("hindi", "印地语"), "th": ("thai", "泰语"), "vi": ("vietnamese", "越南语"),
    "code": ("programming", "代码", "编程"), "multi": ("multilingual", "多语言"),
}  # fmt: skip
_KIND_WORDS = {"model": "模型", "dataset": "data set corpus 数据集 语料", "benchmark": "test evaluation 评测 基准 测试"}


def language_code(text: str) -> str:
    """zh for zh, Chinese or 中文; InputError with the nearest for what is not known."""
    folded = _fold(text)
    for code, names in LANGUAGES.items():
        if folded == code or folded in names:
            return code
    if len(folded) in (2, 3) and folded.isascii() and folded.isalpha():
        return folded
    known = [*LANGUAGES, *(name for names in LANGUAGES.values() for name in names)]
    raise InputError(f"language '{text}' is not known.{nearest(folded, known)}")


def search(
    cards: Iterable[Card], words: Iterable[str] = (), *, kind: str = "", language: str = "", licence: str = ""
) -> list[Card]:
    """Cards that have every word, the best fit first, then by name; InputError for a filter that cannot fit.

    A card of many languages fits every language, after those that name it.

    A word is looked for in name, title, descriptions, languages, kind and licence. A run of Chinese that stands nowhere
    as it is fits where at least half of its pairs of characters stand.
    """
    cards = list(cards)
    if kind and kind not in KINDS:
        raise InputError(f"--kind {kind} is none of {', '.join(KINDS)}")
    code = language_code(language) if language else ""
    wanted = _fold(licence)
    known = {_fold(card.licence) for card in cards}
    if wanted and not any(one.startswith(wanted) for one in known):
        raise InputError(f"no card has the licence '{licence}'.{nearest(wanted, known)}")
    asked = [word for text in words for word in _fold(text).split()]
    found = []
    for card in cards:
        if (kind and card.kind != kind) or (code and code not in card.languages and "multi" not in card.languages):
            continue
        if wanted and not _fold(card.licence).startswith(wanted):
            continue
        scores = [_score(word, card) for word in asked]
        if all(scores):
            found.append((-sum(scores) - 5 * (code in card.languages), card.name, card))
    return [card for _, _, card in sorted(found, key=lambda item: item[:2])]


def _fold(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold().strip()


def _score(word: str, card: Card) -> float:
    """0 where the word is not found."""
    spoken = " ".join(" ".join((code, *LANGUAGES.get(code, ()))) for code in card.languages)
    fields = (
        (8.0, f"{card.name} {card.name.replace('-', ' ')}"),
        (6.0, card.title),
        (3.0, f"{card.description} {card.description_zh}"),
        (2.0, f"{card.kind} {_KIND_WORDS[card.kind]} {spoken} {card.licence}"),
    )
    score = 0.0
    for weight, text in fields:
        folded = _fold(text)
        if word in folded:
            score += weight * (2 if word in folded.split() else 1)
    if not score and len(word) > 2 and all("\u3400" <= character <= "\u9fff" for character in word):
        whole = _fold(" ".join(text for _, text in fields))
        pairs = [word[place : place + 2] for place in range(len(word) - 1)]
        share = sum(pair in whole for pair in pairs) / len(pairs)
        return share if share >= 0.5 else 0.0
    return score
