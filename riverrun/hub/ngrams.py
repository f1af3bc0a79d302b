"""One index of n-gram fingerprints: which spans of a text stand in which pack of texts.

Text is normalised (NFKC, lower case, no punctuation) and cut into units: a character for Chinese, Japanese and Korean,
a word for everything else. Every run of n units gives a 64-bit fingerprint (a polynomial of the units' fingerprints,
each 64 bits of blake2b, times a mixing step). The index is a sorted array of (fingerprint, pack) pairs on disk that is
searched without being read; it is built in sorted runs of bounded size that are merged, so memory does not grow with
the corpus.

Two different n-grams share a fingerprint with probability 2^-64: looking up 10^6 in 10^9 gives one wrong hit with
probability 5e-5. Texts shorter than n units give one fingerprint of what they have
when `short` is on, else none.

Files: `grams.npy` (uint64, sorted, one row a distinct (fingerprint, pack)), `packs.npy` (uint32), `index.json`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from riverrun.base.artifacts import write_json
from riverrun.base.errors import InputError, IntegrityError

__all__ = ["Builder", "NgramIndex", "Span", "Unit", "fingerprints", "merge", "units_of"]

_CJK = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003134f"
_UNIT = re.compile(rf"[{_CJK}]|(?:(?![{_CJK}_])\w)+")
_BASE = np.uint64(0x9E3779B97F4A7C15)
_FORMAT = 1
_RUN = 4_000_000
"""Pairs held in memory while building: 48 MB, twice that while they are sorted."""

Grams = NDArray[np.uint64]
Packs = NDArray[np.uint32]


@dataclass(frozen=True)
class Unit:
    """A word or character: its normalised text and where it stands in the original, [start, end) in characters."""

    text: str
    start: int
    end: int


@dataclass(frozen=True)
class Span:
    """A stretch of a looked-up text, [start, end) in its characters, every n-gram of which stands in `pack`."""

    start: int
    end: int
    pack: str
    grams: int


def units_of(text: str) -> list[Unit]:
    """The units of a text in order. Positions are those of the text as given: NFKC may change lengths."""
    out: list[Unit] = []
    for start, end in _pieces(text):
        folded = unicodedata.normalize("NFKC", text[start:end]).casefold()
        folded = unicodedata.normalize("NFKC", folded)
        if len(folded) == end - start:
            out += [Unit(m[0], start + m.start(), start + m.end()) for m in _UNIT.finditer(folded)]
        else:  # a character became several: each unit of the piece stands for the whole piece
            out += [Unit(m[0], start, end) for m in _UNIT.finditer(folded)]
    return out


def _pieces(text: str) -> Iterator[tuple[int, int]]:
    """Stretches without white space."""
    return ((match.start(), match.end()) for match in re.finditer(r"\S+", text))


@lru_cache(maxsize=1 << 18)
def _print(unit: str) -> int:
    return int.from_bytes(hashlib.blake2b(unit.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def fingerprints(units: Sequence[Unit], n: int, *, short: bool = False) -> Grams:
    """One fingerprint for each run of n units, in order; shape [max(0, units - n + 1)]."""
    if short and 0 < len(units) < n:
        n = len(units)
    count = len(units) - n + 1
    if count <= 0:
        return np.empty(0, dtype=np.uint64)
    prints = np.fromiter((_print(unit.text) for unit in units), dtype=np.uint64, count=len(units))
    total = np.full(count, n, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for place in range(n):
            total = total * _BASE + prints[place : place + count]
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            total = (total ^ (total >> np.uint64(shift))) * np.uint64(factor)
    mixed: Grams = total ^ (total >> np.uint64(31))
    return mixed


class Builder:
    """Collects packs and writes an index. `run_pairs` bounds the memory: 12 bytes a pair, twice that while sorting."""

    def __init__(self, folder: Path, *, n: int = 13, short: bool = False, run_pairs: int = _RUN) -> None:
        if not 1 <= n <= 1000:
            raise InputError(f"n is {n}: an n-gram has between 1 and 1000 units")
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"{folder} is not empty: give a new folder for the index")
        self.folder, self.n, self.short, self.run_pairs = folder, n, short, max(1, run_pairs)
        self.packs: list[str] = []
        self.texts = 0
        folder.parent.mkdir(parents=True, exist_ok=True)
        self._scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        self._runs: list[tuple[Path, Path]] = []
        self._held: list[tuple[Grams, int]] = []
        self._count = 0

    def add(self, pack: str, texts: Iterable[str]) -> None:
        """Take the texts of a pack; a name that was there already is added to."""
        if pack not in self.packs:
            self.packs.append(pack)
        number = self.packs.index(pack)
        for text in texts:
            self.texts += 1
            grams = fingerprints(units_of(text), self.n, short=self.short)
            for place in range(0, len(grams), self.run_pairs):
                part = np.unique(grams[place : place + self.run_pairs])
                self._held.append((part, number))
                self._count += len(part)
                if self._count >= self.run_pairs:
                    self._spill()

    def finish(self) -> NgramIndex:
        """Merge what was collected; the folder appears when it is whole."""
        try:
            self._spill()
            part = self._scratch / "index"
            part.mkdir()
            pairs = _merge_runs([_read_run(*run) for run in self._runs], part, self.run_pairs)
            head = {"format": _FORMAT, "n": self.n, "short": self.short, "packs": self.packs, "texts": self.texts}
            write_json(part / "index.json", head | {"pairs": pairs})
            if self.folder.exists():
                self.folder.rmdir()
            part.rename(self.folder)
        finally:
            shutil.rmtree(self._scratch, ignore_errors=True)
        return NgramIndex(self.folder)

    def _spill(self) -> None:
        if not self._held:
            return
        grams = np.concatenate([part for part, _ in self._held])
        packs = np.concatenate([np.full(len(part), number, dtype=np.uint32) for part, number in self._held])
        order = np.lexsort((packs, grams))
        grams, packs = _distinct(grams[order], packs[order])
        names = (self._scratch / f"{len(self._runs)}.grams", self._scratch / f"{len(self._runs)}.packs")
        grams.tofile(names[0])
        packs.tofile(names[1])
        self._runs.append(names)
        self._held, self._count = [], 0


def _distinct(grams: Grams, packs: Packs) -> tuple[Grams, Packs]:
    """Sorted pairs, each once."""
    keep = np.ones(len(grams), dtype=bool)
    keep[1:] = (grams[1:] != grams[:-1]) | (packs[1:] != packs[:-1])
    return grams[keep], packs[keep]


def _read_run(grams: Path, packs: Path) -> tuple[Grams, Packs]:
    """Arrays that are read from disk as they are used."""
    if grams.stat().st_size == 0:
        return np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.uint32)
    return np.memmap(grams, dtype=np.uint64, mode="r"), np.memmap(packs, dtype=np.uint32, mode="r")


def _merge_runs(runs: Sequence[tuple[Grams, Packs]], folder: Path, most: int) -> int:
    """Merge sorted runs into grams.npy and packs.npy, about `most` pairs at a time; the number of pairs written."""
    places = [0] * len(runs)
    share = max(1, most // max(1, len(runs)))
    written = 0
    raw = folder / "grams.raw", folder / "packs.raw"
    with open(raw[0], "wb") as grams_out, open(raw[1], "wb") as packs_out:
        while open_runs := [i for i, (grams, _) in enumerate(runs) if places[i] < len(grams)]:
            # Everything up to the smallest last fingerprint of the windows can go out: no run has more below it.
            bound = min(runs[i][0][min(places[i] + share, len(runs[i][0])) - 1] for i in open_runs)
            taken = []
            for i in open_runs:
                end = int(np.searchsorted(runs[i][0][places[i] :], bound, side="right")) + places[i]
                taken.append((np.asarray(runs[i][0][places[i] : end]), np.asarray(runs[i][1][places[i] : end])))
                places[i] = end
            grams = np.concatenate([part for part, _ in taken])
            packs = np.concatenate([part for _, part in taken])
            order = np.lexsort((packs, grams))
            grams, packs = _distinct(grams[order], packs[order])
            grams.tofile(grams_out)
            packs.tofile(packs_out)
            written += len(grams)
    for path, kind in zip(raw, (np.uint64, np.uint32), strict=True):
        _as_npy(path, path.with_suffix(".npy"), kind, written)
    return written


def _as_npy(raw: Path, target: Path, kind: type, count: int) -> None:
    """Give raw numbers numpy's header."""
    with open(target, "wb") as out, open(raw, "rb") as numbers:
        head = {"descr": np.lib.format.dtype_to_descr(np.dtype(kind)), "fortran_order": False, "shape": (count,)}
        np.lib.format.write_array_header_1_0(out, head)
        shutil.copyfileobj(numbers, out)
        out.flush()
        os.fsync(out.fileno())
    raw.unlink()


class NgramIndex:
    """An index on disk, mapped: opening costs nothing, a lookup reads the pages it needs. IntegrityError when it is
    not whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            head = json.loads((folder / "index.json").read_text(encoding="utf-8"))
            self.n, self.short, self.pairs = int(head["n"]), bool(head["short"]), int(head["pairs"])
            self.packs, self.texts = tuple(str(name) for name in head["packs"]), int(head["texts"])
            self.grams: Grams = np.load(folder / "grams.npy", mmap_mode="r", allow_pickle=False)
            self.numbers: Packs = np.load(folder / "packs.npy", mmap_mode="r", allow_pickle=False)
            whole = head["format"] == _FORMAT and len(self.grams) == len(self.numbers) == self.pairs
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise IntegrityError(f"{folder} is no n-gram index ({error}): build it again") from None
        if not whole:
            raise IntegrityError(f"{folder} is not whole or of another version: build it again")

    def __len__(self) -> int:
        return self.pairs

    def lookup(self, text: str, *, min_grams: int = 1) -> list[Span]:
        """Matched spans, in order of pack and place: longest stretches of n-grams that follow one another and all
        stand in the pack, of at least `min_grams`. Stretches of one pack that touch in the text are one span."""
        units = units_of(text)
        grams = fingerprints(units, self.n, short=self.short)
        length = min(self.n, len(units)) if self.short else self.n
        found: list[Span] = []
        for number, places in self._hits(grams).items():
            for first, last in _stretches(places):
                if last - first + 1 >= min_grams:
                    start, end = units[first].start, units[last + length - 1].end
                    found.append(Span(start, end, self.packs[number], last - first + 1))
        return sorted(found, key=lambda span: (span.pack, span.start))

    def coverage(self, text: str) -> dict[str, float]:
        """Share of the text's n-grams that stand in each pack; packs with none are left out."""
        grams = fingerprints(units_of(text), self.n, short=self.short)
        return {self.packs[number]: len(places) / len(grams) for number, places in self._hits(grams).items()}

    def _hits(self, grams: Grams) -> dict[int, list[int]]:
        """Pack number -> places of its n-grams in the text, ascending."""
        left = np.searchsorted(self.grams, grams, side="left")
        right = np.searchsorted(self.grams, grams, side="right")
        hits: dict[int, list[int]] = {}
        for place in np.flatnonzero(right > left):
            for number in self.numbers[left[place] : right[place]]:
                hits.setdefault(int(number), []).append(int(place))
        return hits


def _stretches(places: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First and last of each run of consecutive numbers."""
    first = last = places[0]
    for place in places[1:]:
        if place != last + 1:
            yield first, last
            first = place
        last = place
    yield first, last


def merge(indexes: Sequence[NgramIndex], folder: Path, *, run_pairs: int = _RUN) -> NgramIndex:
    """One index of several; packs of one name become one. InputError when they were built differently."""
    if not indexes:
        raise InputError("nothing to merge: name at least one index")
    kinds = {(index.n, index.short) for index in indexes}
    if len(kinds) > 1:
        raise InputError(f"indexes of different n cannot be merged ({sorted(kinds)}): build them with one n")
    builder = Builder(folder, n=indexes[0].n, short=indexes[0].short, run_pairs=run_pairs)
    try:
        for place, index in enumerate(indexes):
            builder.packs += [name for name in index.packs if name not in builder.packs]
            builder.texts += index.texts
            numbers = np.array([builder.packs.index(name) for name in index.packs], dtype=np.uint32)
            # Renumbering may change the order of packs within one fingerprint: sorted again piece by piece.
            for start in range(0, len(index), run_pairs):
                grams = np.asarray(index.grams[start : start + run_pairs])
                packs = numbers[index.numbers[start : start + run_pairs]]
                order = np.lexsort((packs, grams))
                names = (builder._scratch / f"{place}-{start}.grams", builder._scratch / f"{place}-{start}.packs")
                grams[order].tofile(names[0])
                packs[order].tofile(names[1])
                builder._runs.append(names)
    except BaseException:
        shutil.rmtree(builder._scratch, ignore_errors=True)
        raise
    return builder.finish()
