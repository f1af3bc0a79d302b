"""A chunk of records to arrays: the unit of work, the same in this process and in a worker's.

Nothing of a chunk depends on another, so any number of workers gives the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from riverrun.data.encoding import Encoded, RowEncoder
from riverrun.data.examples import BadRow, Example
from riverrun.data.formats import Format, read_example
from riverrun.data.records import Record

__all__ = ["BadRecord", "Chunk", "EncodedChunk", "encode_chunk", "excerpt"]

EXCERPT = 200
MAX_TALK = 4 << 20
"""Bytes of the largest conversation."""


@dataclass(frozen=True)
class Chunk:
    """Records of one file, to be encoded together."""

    file: int
    form: Format
    raw: bool
    columns: Mapping[str, str]
    records: Sequence[Record]


@dataclass(frozen=True)
class BadRecord:
    """One record that was set aside."""

    number: int
    reason: str
    detail: str
    excerpt: str


@dataclass(frozen=True)
class EncodedChunk:
    """Rows of a chunk, one after another. `ids` [tokens], `learned` [tokens] of bool; per row: `lengths`, `labels`
    (label tokens), `tags`, `shared` and `numbers` (the record it is of). records = kept + len(bad)."""

    file: int
    records: int
    kept: int
    ids: NDArray[np.uint32]
    learned: NDArray[np.bool_]
    lengths: NDArray[np.uint32]
    labels: NDArray[np.uint32]
    tags: NDArray[np.uint8]
    shared: NDArray[np.uint32]
    numbers: NDArray[np.uint64]
    bad: tuple[BadRecord, ...]

    def to_bytes(self) -> bytes:
        """For a pipe: a line of JSON, then the arrays."""
        head = {
            "file": self.file,
            "records": self.records,
            "kept": self.kept,
            "tokens": len(self.ids),
            "rows": len(self.lengths),
            "bad": [[bad.number, bad.reason, bad.detail, bad.excerpt] for bad in self.bad],
        }
        bits = np.packbits(self.learned, bitorder="little")
        arrays = (self.ids, bits, self.lengths, self.labels, self.tags, self.shared, self.numbers)
        return b"".join([json.dumps(head).encode(), b"\n", *(array.tobytes() for array in arrays)])

    @classmethod
    def from_bytes(cls, data: bytes) -> EncodedChunk:
        end = data.index(b"\n")
        head: dict[str, Any] = json.loads(data[:end])
        tokens, rows, at = head["tokens"], head["rows"], end + 1

        def take(kind: type[np.generic], count: int) -> Any:
            nonlocal at
            out = np.frombuffer(data, kind, count, at)
            at += out.nbytes
            return out

        ids = take(np.uint32, tokens)
        learned = np.unpackbits(take(np.uint8, -(-tokens // 8)), count=tokens, bitorder="little").astype(np.bool_)
        kinds: tuple[type[np.generic], ...] = (np.uint32, np.uint32, np.uint8, np.uint32, np.uint64)
        lengths, labels, tags, shared, numbers = (take(kind, rows) for kind in kinds)
        bad = tuple(BadRecord(*each) for each in head["bad"])
        return cls(
            head["file"], head["records"], head["kept"], ids, learned, lengths, labels, tags, shared, numbers, bad
        )


def encode_chunk(chunk: Chunk, encoder: RowEncoder) -> EncodedChunk:
    """Parse, convert, render, tokenise; what cannot be is told with its reason."""
    examples: list[Example] = []
    places: list[int] = []
    bad: dict[int, BadRow] = {}
    for place, record in enumerate(chunk.records):
        try:
            examples.append(_example(chunk, record))
            places.append(place)
        except BadRow as error:
            bad[place] = error
    rows: list[tuple[int, Encoded]] = []
    for place, encoded in zip(places, encoder.encode(examples), strict=True):
        if isinstance(encoded, BadRow):
            bad[place] = encoded
        else:
            rows.append((chunk.records[place].number, encoded))
    told = tuple(
        BadRecord(chunk.records[place].number, error.reason, error.detail, excerpt(chunk.records[place].data))
        for place, error in sorted(bad.items())
    )
    return _arrays(chunk, rows, told)


def _example(chunk: Chunk, record: Record) -> Example:
    if not record.whole or (chunk.form.kind != "text" and len(record.data) > MAX_TALK):
        raise BadRow("too_big", f"the record has {len(record.data)} bytes or more")
    try:
        text = record.data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRow("not_utf8", f"byte {error.start} of the record: {error.reason}") from None
    if chunk.raw:
        return Example(text=text)
    try:
        value = json.loads(text)
    except RecursionError:
        raise BadRow("not_json", "its brackets are nested too deeply") from None
    except ValueError as error:
        raise BadRow("not_json", str(error)) from None
    return read_example(chunk.form, value, chunk.columns)


def excerpt(data: bytes) -> str:
    """The beginning of a record, for people."""
    return data[: 4 * EXCERPT].decode("utf-8", "replace")[:EXCERPT]


def _arrays(chunk: Chunk, rows: Sequence[tuple[int, Encoded]], bad: tuple[BadRecord, ...]) -> EncodedChunk:
    flat: list[int] = []
    ranges: list[tuple[int, int]] = []
    lengths, labels, tags, shared, numbers = [], [], [], [], []
    for number, encoded in rows:
        for row in encoded.rows:
            base = len(flat)
            flat += row.ids
            ranges += [(base + first, base + last) for first, last in row.learned]
            lengths.append(len(row.ids))
            labels.append(row.labels)
            tags.append(row.tag)
            shared.append(encoded.shared)
            numbers.append(number)
    learned = np.zeros(len(flat), dtype=np.bool_)
    for first, last in ranges:
        learned[first:last] = True
    return EncodedChunk(
        chunk.file,
        len(chunk.records),
        len(rows),
        np.array(flat, dtype=np.uint32),
        learned,
        np.array(lengths, dtype=np.uint32),
        np.array(labels, dtype=np.uint32),
        np.array(tags, dtype=np.uint8),
        np.array(shared, dtype=np.uint32),
        np.array(numbers, dtype=np.uint64),
        bad,
    )
