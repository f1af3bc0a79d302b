"""The safetensors format (https://github.com/huggingface/safetensors), read and written one tensor at a time. No torch.

The file: length of the header (8 bytes, little-endian), the header as JSON ({name: {dtype, shape, data_offsets}} and
"__metadata__"), the data. Reading copies one tensor at a time instead of mapping the file, so that no more of it is in
memory than is asked for; `map_data` maps it where that is wanted.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from riverrun.base.artifacts import atomic_file
from riverrun.base.errors import InputError, IntegrityError, UnsupportedError

__all__ = ["ITEM_BYTES", "Entry", "SafetensorsFile", "write_safetensors"]

ITEM_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E5M2": 1,
    "F8_E4M3": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "F64": 8,
    "I64": 8,
    "U64": 8,
}
_MOST_HEADER = 100_000_000  # the limit of the reference implementation
_PIECE = 1 << 24


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a file: row-major shape, and where its bytes are from the start of the data."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int = 0

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


class SafetensorsFile:
    """An opened file: `entries` in the order of their data, and the texts of `metadata`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise InputError(
                f"{path} does not exist: a model folder needs model.safetensors or all shards of its index"
            )
        size = path.stat().st_size
        with open(path, "rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            if size < 8 or length > min(size - 8, _MOST_HEADER):
                raise self._broken(f"the header would have {length} bytes, the file has {size}")
            try:
                header = json.loads(handle.read(length).decode("utf-8"))
            except ValueError as error:
                raise self._broken(f"its header is not JSON: {error}") from None
        if not isinstance(header, dict):
            raise self._broken("its header is no object")
        self.metadata: dict[str, str] = header.pop("__metadata__", None) or {}
        self._data = 8 + length
        found = sorted((self._entry(name, value) for name, value in header.items()), key=lambda each: each.start)
        at = 0
        for entry in found:
            if entry.start != at:
                raise self._broken(f"tensor '{entry.name}' starts at byte {entry.start} of the data, not at {at}")
            at += entry.nbytes
        if self._data + at != size:
            raise self._broken(f"its tensors end at byte {self._data + at}, the file has {size}")
        self.entries: dict[str, Entry] = {entry.name: entry for entry in found}

    def _broken(self, why: str) -> IntegrityError:
        return IntegrityError(f"{self.path} is not a whole safetensors file ({why}): fetch or write it again")

    def _entry(self, name: str, value: Any) -> Entry:
        try:
            dtype, shape = value["dtype"], tuple(value["shape"])
            start, end = value["data_offsets"]
            whole = all(type(size) is int and size >= 0 for size in (*shape, start, end))
        except (TypeError, KeyError, ValueError):
            raise self._broken(f"tensor '{name}' has no dtype, shape and data_offsets") from None
        if dtype not in ITEM_BYTES:
            raise UnsupportedError(f"{self.path}: tensor '{name}' is of type {dtype}, read: {', '.join(ITEM_BYTES)}")
        entry = Entry(name, dtype, shape, start)
        if not whole or end - start != entry.nbytes:
            raise self._broken(
                f"tensor '{name}' of shape {list(shape)} and type {dtype} does not fill {start} to {end}"
            )
        return entry

    def read(self, entry: Entry) -> bytearray:
        """The bytes of one tensor."""
        out = bytearray(entry.nbytes)
        with open(self.path, "rb", buffering=0) as handle:
            handle.seek(self._data + entry.start)
            view, at = memoryview(out), 0
            while at < len(out):
                count = handle.readinto(view[at : at + (1 << 30)])
                if not count:
                    raise self._broken(f"tensor '{entry.name}' ends early")
                at += count
        return out

    def map_data(self) -> memoryview:
        """All data, mapped copy-on-write: pages are read when they are touched and never written back."""
        with open(self.path, "rb") as handle:
            return memoryview(mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_COPY))[self._data :]


def write_safetensors(
    path: Path, entries: Iterable[Entry], data: Iterable[bytes | memoryview], metadata: Mapping[str, str]
) -> None:
    """Write a file in the order given; `data` brings the bytes of each entry in that order, one at a time."""
    listed = list(entries)
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for entry in listed:
        header[entry.name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [at, at + entry.nbytes],
        }
        at += entry.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with atomic_file(path, "wb") as handle:
        handle.write(len(text).to_bytes(8, "little") + text)
        for entry, values in zip(listed, data, strict=True):
            assert len(values) == entry.nbytes, f"{entry.name}: {len(values)} bytes for {entry.nbytes}"
            for piece in _pieces(values):
                handle.write(piece)


def _pieces(values: bytes | memoryview) -> Iterator[memoryview]:
    view = memoryview(values)
    for start in range(0, len(view), _PIECE):
        yield view[start : start + _PIECE]
