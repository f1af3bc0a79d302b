"""Ids of texts word by word, each word once: for tokenizers that never join what a single space parts.

Byte-level vocabularies cut a text before a space that stands behind a character, and each part has its ids whatever is
beside it. So the ids of a text are those of its words, and a table of words seen is several times faster than
tokenising again. Whether a tokenizer is of this kind is tried out, neighbour by neighbour; others are not sped up here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import chain, product
from typing import Any

from riverrun.models.tokenizer import Tokenizer

__all__ = ["Words"]

KEPT = 1 << 16
"""Words in the table; a full one is begun again."""
_RUN = re.compile(r"\s ")
LONGEST = 32
"""Characters of a word that is kept."""
_BESIDE = (
    *("a", "Z", "7", "é", "字", "ю", ".", ",", "(", ")", "'", "'s", '"', "-", "_", "\n", "\r\n", "\t", "😀", "’", "　"),
    *("<", "|", "\u0301"),
)
"""What may stand beside a space, a kind each."""


def _parts_at_spaces(tokenizer: Tokenizer) -> bool:
    """Whether a space alone always begins a part of its own, with nothing before it in that part."""
    state: dict[str, Any] = json.loads(tokenizer.to_json())
    normalizer, model = state.get("normalizer"), state["model"]
    if model["type"] != "BPE" or model.get("dropout") or (normalizer and normalizer["type"] != "NFC"):
        return False
    before = json.dumps(state.get("pre_tokenizer"))
    if '"ByteLevel"' not in before or '"add_prefix_space": true' in before:
        return False
    for token in state["added_tokens"]:  # special ones are never looked for in a text
        flags = token["lstrip"] or token["rstrip"] or token["single_word"]
        if not token["special"] and (flags or " " in token["content"]):
            return False
    for end, start in product("x.", "y8"):
        for one, other in product(filter(str.strip, _BESIDE), _BESIDE):
            text = f"{end}{one} {other}{start}"
            if text.index(" ") not in {place for _, (place, _) in tokenizer.parts(text)}:
                return False
    return True


class Words:
    """Ids of many texts. `usable` says whether the tokenizer allows it; belongs to one thread."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.usable = _parts_at_spaces(tokenizer)
        self._inner: dict[str, list[int]] = {}  # ids of " " + word
        self._first: dict[str, list[int]] = {}

    def takes(self, text: str) -> bool:
        """Whether a text is cut at all its spaces, and has enough of them for that to be worth it."""
        return self.usable and len(text) <= 16 * (text.count(" ") + 2) and _RUN.search(text) is None

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts that `takes` allows; those that begin with a space may go on where another ended."""
        cut = [text.split(" ") for text in texts]
        inner = self._table(self._inner, {word for words in cut for word in words[1:]}, " ")
        first = self._table(self._first, {words[0] for words in cut}, "")
        return [list(chain(first[words[0]], chain.from_iterable(map(inner.__getitem__, words[1:])))) for words in cut]

    def _table(self, kept: dict[str, list[int]], words: set[str], before: str) -> dict[str, list[int]]:
        """A table that has all of the words."""
        missing = sorted(words - kept.keys())
        if not missing:
            return kept
        encodings = self._tokenizer.encode_many([before + word for word in missing])
        found = {word: encoding.ids for word, encoding in zip(missing, encodings, strict=True)}
        if len(kept) + len(found) > KEPT:
            found |= {word: kept[word] for word in words & kept.keys()}
            kept.clear()
        kept |= {word: ids for word, ids in found.items() if len(word) <= LONGEST}
        return (
            kept
            if all(len(word) <= LONGEST for word in missing)
            else {**found, **{w: kept[w] for w in words & kept.keys()}}
        )
