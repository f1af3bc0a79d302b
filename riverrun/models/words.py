"""Ids of texts word by word, each word once: for tokenizers that never join what a single space parts.

Byte-level vocabularies cut a text before a space that stands behind a character, and each part has its ids whatever is
beside it. So the ids of a text are those of its words, and a table of words seen is several times faster than
tokenising again. Whether a tokenizer is of this kind is tried out, neighbour by neighbour; others are not sped up here.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, pairwise, product
from typing import Any, cast

import numpy as np

from riverrun.models.tokenizer import Tokenizer

__all__ = ["Words"]

KEPT = 1 << 16
"""Words of late in a table; as many again from before."""
_RUN = re.compile(r"\s ")
LONGEST = 32
"""Characters of a word that is kept."""
_STRETCH = 256
"""Words that are tokenised together."""
_SPACE = "Ġ"
"""How byte-level vocabularies write a space."""
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


class _Table:
    """Ids of words as bytes: those of late, and those from before the last time that these were too many."""

    def __init__(self, encode: Callable[[list[str]], Iterator[bytes]]) -> None:
        self._encode = encode
        self._late: dict[str, bytes] = {}
        self._before: dict[str, bytes] = {}

    def ids(self, words: list[str]) -> list[bytes]:
        found = list(map(self._late.get, words))
        places = [place for place, ids in enumerate(found) if ids is None]
        missing = {words[place] for place in places}
        if len(self._late) + len(missing) > KEPT:
            self._late, self._before = {}, self._late
        again = missing & self._before.keys()
        self._late |= {word: self._before[word] for word in again}
        missing -= again
        self._late |= zip(missing, self._encode([*missing]), strict=True)
        for place in places:
            found[place] = self._late[words[place]]
        for word in missing:
            if len(word) > LONGEST:
                del self._late[word]
        return cast(list[bytes], found)


class Words:
    """Ids of many texts. `usable` says whether the tokenizer allows it; belongs to one thread."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.usable = _parts_at_spaces(tokenizer)
        self._inner, self._first = _Table(self._together), _Table(self._one_by_one)  # behind a space, or not
        vocabulary: dict[str, int] = json.loads(tokenizer.to_json())["model"]["vocab"] if self.usable else {}
        starts = {index for token, index in vocabulary.items() if token.startswith(_SPACE)}
        self._starts = np.zeros(tokenizer.vocab_size, dtype=np.bool_)
        self._starts[[*starts.difference(tokenizer.special.values(), tokenizer.added.values())]] = True

    def takes(self, text: str) -> bool:
        """Whether a text is cut at all its spaces, and has enough of them for that to be worth it."""
        return self.usable and len(text) <= 16 * (text.count(" ") + 2) and _RUN.search(text) is None

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts that `takes` allows; those that begin with a space may go on where another ended."""
        if not texts:
            return []
        words = " ".join(texts).split(" ")
        edges = [0, *accumulate(text.count(" ") + 1 for text in texts)]
        ids = self._inner.ids(words)
        for at, first in zip(edges, self._first.ids([words[at] for at in edges[:-1]]), strict=False):
            ids[at] = first
        joined = (b"".join(ids[start:end]) for start, end in pairwise(edges))
        return [np.frombuffer(each, dtype=np.uint32).tolist() for each in joined]

    def _one_by_one(self, words: list[str]) -> Iterator[bytes]:
        return (array("I", encoding.ids).tobytes() for encoding in self._tokenizer.encode_many(words))

    def _together(self, words: list[str]) -> Iterator[bytes]:
        """Ids of words behind a space. One call for all of a stretch takes a third of the time of a call for each:
        the first token of each word, and no other, begins with the space."""
        out: dict[str, bytes] = {}
        alone = [word for word in words if not word or word[-1].isspace()]  # two white spaces may be one part
        others = [word for word in words if word and not word[-1].isspace()]
        stretches = [others[at : at + _STRETCH] for at in range(0, len(others), _STRETCH)]
        encodings = self._tokenizer.encode_many([" " + " ".join(stretch) for stretch in stretches])
        for stretch, encoding in zip(stretches, encodings, strict=True):
            ids = np.array(encoding.ids, dtype=np.uint32)
            cuts = np.flatnonzero(self._starts[ids])
            if len(cuts) == len(stretch):
                data, edges = ids.tobytes(), [*(4 * cuts).tolist(), ids.nbytes]
                out |= zip(stretch, (data[start:end] for start, end in pairwise(edges)), strict=True)
            else:
                alone += stretch
        out |= zip(alone, self._one_by_one([" " + word for word in alone]), strict=True)
        return map(out.__getitem__, words)
