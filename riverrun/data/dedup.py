"""Duplicates: equal after normalisation, and near ones by MinHash LSH with the Jaccard similarity checked.

Of several copies the canonical page stays: not a print, old, copy or utm version, not one that names another page as
its canonical link, then the shallowest and shortest path. The outcome does not depend on the order of the documents.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from hashlib import blake2b, sha256
from posixpath import basename
from typing import Any

import numpy as np
import numpy.typing as npt

from riverrun.base.types import Document
from riverrun.data.operators import Drop
from riverrun.data.signals import language, words_of

__all__ = ["ExactDuplicates", "NearDuplicates", "canonical_order", "jaccard", "normalise", "shingles"]

_COPY_WORDS = frozenset(
    {"print", "printable", "printer", "printview", "old", "copy", "copies", "backup", "bak"}
    | {"archive", "archived", "draft", "dup", "amp", "utm"}
)


def canonical_order(document: Document) -> tuple[bool, int, int, str]:
    """Sort key: the document that should stay comes first."""
    parts = {part.lower() for part in re.split(r"[^A-Za-z]+", document.id) if part}
    canonical = basename(str(document.metadata.get("canonical", "")).split("?")[0].split("#")[0])
    elsewhere = bool(canonical) and canonical != basename(document.id)
    return bool(parts & _COPY_WORDS) or elsewhere, document.id.count("/"), len(document.id), document.id


def normalise(text: str) -> str:
    """Compatibility forms unified, lower case, only letters and digits, single spaces."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.findall(r"[^\W_]+", plain))


class ExactDuplicates:
    """Grouped: documents whose normalised text is equal; one of each group stays."""

    name = "exact_duplicates"

    def group(self, documents: Sequence[Document]) -> Mapping[str, Drop]:
        first: dict[str, str] = {}
        drops = {}
        for document in sorted(documents, key=canonical_order):
            kept = first.setdefault(sha256(normalise(document.text).encode()).hexdigest(), document.id)
            if kept != document.id:
                drops[document.id] = Drop("duplicate", f"same text as '{kept}'")
        return drops


def shingles(text: str, size: int = 5) -> frozenset[int]:
    """64-bit hashes of all runs of `size` words (characters in Chinese); a shorter text is one shingle."""
    words = words_of(normalise(text), language(text))
    runs = (" ".join(words[start : start + size]) for start in range(max(1, len(words) - size + 1)))
    return frozenset(int.from_bytes(blake2b(run.encode(), digest_size=8).digest(), "big") for run in runs)


def jaccard(a: frozenset[int], b: frozenset[int]) -> float:
    """|a ∩ b| / |a ∪ b|."""
    return len(a & b) / len(a | b) if a or b else 1.0


class NearDuplicates:
    """Grouped: a document goes if its Jaccard similarity with one that stays is at least `threshold`.

    `bands` x `rows` MinHash values find the candidates: 21 x 6 finds 99.8 % of the pairs at 0.8 and 93 % at 0.7;
    every candidate is then compared exactly, so no pair below the threshold is ever taken for a duplicate.
    """

    name = "near_duplicates"

    def __init__(self, *, threshold: float = 0.7, bands: int = 21, rows: int = 6, size: int = 5, seed: int = 1) -> None:
        assert 0 < threshold <= 1, f"threshold {threshold} is not in (0, 1]"
        self.threshold, self.bands, self.rows, self.size = threshold, bands, rows, size
        rng = np.random.default_rng(seed)
        self._factors = rng.integers(0, 2**63, bands * rows, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
        self._offsets = rng.integers(0, 2**63, bands * rows, dtype=np.uint64)

    def group(self, documents: Sequence[Document]) -> Mapping[str, Drop]:
        buckets: dict[tuple[int, bytes], list[int]] = {}
        kept: list[tuple[str, frozenset[int]]] = []
        drops: dict[str, Drop] = {}
        for document in sorted(documents, key=canonical_order):
            own = shingles(document.text, self.size)
            keys = list(enumerate(self._signature(own)))
            candidates = sorted({number for key in keys for number in buckets.get(key, ())})
            likeness = [(jaccard(own, kept[number][1]), -number) for number in candidates]
            best, number = max(likeness, default=(0.0, 0))
            if best >= self.threshold:
                drops[document.id] = Drop("near_duplicate", f"similarity {best:.2f} with '{kept[-number][0]}'")
                continue
            for key in keys:
                buckets.setdefault(key, []).append(len(kept))
            kept.append((document.id, own))
        return drops

    def _signature(self, hashes: frozenset[int]) -> list[bytes]:
        """One key a band: the minima of (a x + b) mod 2^64, high 32 bits (multiply-shift)."""
        values: npt.NDArray[Any] = np.fromiter(hashes, dtype=np.uint64, count=len(hashes))
        least = np.full(len(self._factors), 2**32 - 1, dtype=np.uint32)
        for start in range(0, len(values), 4096):  # P = bands x rows; at most [4096, P] at once
            mixed = values[start : start + 4096, None] * self._factors + self._offsets
            least = np.minimum(least, (mixed >> np.uint64(32)).astype(np.uint32).min(axis=0))
        return [least[band * self.rows : (band + 1) * self.rows].tobytes() for band in range(self.bands)]
