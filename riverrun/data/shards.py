"""Token rows on disk, mapped into memory: opened in no time at any size, a row is read when it is asked for.

    tokens.u16 | tokens.u32   ids of all rows, one after another (u16 where the vocabulary has at most 65,536 tokens)
    offsets.u64               where each row begins, and the end of the last: rows + 1 numbers
    learned.bits              a bit for each token, the lowest of a byte first: whether it counts in the loss
    labels.u32                label tokens of each row
    origins.u64               file (upper 24 bits) and record (lower 40 bits) of each row
    tags.u8  shared.u32       only for pairs and judged answers, see `rows.Rows`
    bad_rows.jsonl            what was set aside: file, line, reason, detail, excerpt
    manifest.json             written last: counts, sources with sha256, settings, sha256 of tokenizer and template

All numbers are little-endian.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from riverrun.base.errors import InputError, IntegrityError
from riverrun.data.chunks import EncodedChunk
from riverrun.data.tokens import TokenRow

__all__ = ["BAD_ROWS", "MANIFEST", "ShardWriter", "Shards", "is_shards"]

MANIFEST, BAD_ROWS = "manifest.json", "bad_rows.jsonl"
FORMAT = "riverrun shards 1"
_RECORD_BITS = 40
_FILES: dict[str, Any] = {
    "offsets.u64": np.dtype("<u8"),
    "learned.bits": np.dtype("u1"),
    "labels.u32": np.dtype("<u4"),
    "origins.u64": np.dtype("<u8"),
    "tags.u8": np.dtype("u1"),
    "shared.u32": np.dtype("<u4"),
}
_TAGGED = ("tags.u8", "shared.u32")


def is_shards(path: Path) -> bool:
    """Whether a folder holds finished shards."""
    return (path / MANIFEST).is_file()


def tokens_name(vocab_size: int) -> str:
    return "tokens.u16" if vocab_size <= 1 << 16 else "tokens.u32"


class Shards:
    """Finished shards, as `rows.Rows`. IntegrityError when a file is missing or has another size than the manifest
    says; InputError when `tokenizer_sha256` or `template_sha256` are given and are not those it was built with."""

    def __init__(self, folder: Path, *, tokenizer_sha256: str = "", template_sha256: str = "") -> None:
        self.folder = folder
        path = folder / MANIFEST
        try:
            self.manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            assert self.manifest["format"] == FORMAT
            self._rows, self._tokens = int(self.manifest["rows"]), int(self.manifest["tokens"])
            self._name = str(self.manifest["tokens_file"])
        except FileNotFoundError:
            raise InputError(f"{path} does not exist: the folder holds no shards, or their build did not end") from None
        except (ValueError, KeyError, TypeError, AssertionError) as error:
            raise IntegrityError(f"{path} is no manifest of shards ({error!r}): build them again") from None
        for what, given in (("tokenizer", tokenizer_sha256), ("template", template_sha256)):
            built = self.manifest[f"{what}_sha256"]
            if given and built and given != built:
                raise InputError(
                    f"{folder} was built with another {what} ({built[:12]}) than the model's ({given[:12]}): "
                    "build the shards again with this model"
                )
        self._check()
        self._offsets = self._map("offsets.u64")

    def _check(self) -> None:
        width = 2 if self._name.endswith("u16") else 4
        sizes = {
            self._name: self._tokens * width,
            "offsets.u64": (self._rows + 1) * 8,
            "learned.bits": -(-self._tokens // 8),
            "labels.u32": self._rows * 4,
            "origins.u64": self._rows * 8,
        }
        if self.manifest["tagged"]:
            sizes |= {"tags.u8": self._rows, "shared.u32": self._rows * 4}
        for name, size in sizes.items():
            path = self.folder / name
            found = path.stat().st_size if path.is_file() else -1
            if found != size:
                is_ = f"has {found} bytes" if found >= 0 else "is missing"
                raise IntegrityError(f"{path} {is_}, its manifest says {size}: build the shards again")

    def _map(self, name: str) -> NDArray[Any]:
        kind = _FILES.get(name) or np.dtype("<u2" if name.endswith("u16") else "<u4")
        if not (self.folder / name).stat().st_size:
            return np.zeros(0, dtype=kind)
        return np.memmap(self.folder / name, dtype=kind, mode="r")

    @cached_property
    def _ids(self) -> NDArray[Any]:
        return self._map(self._name)

    @cached_property
    def _learned(self) -> NDArray[Any]:
        return self._map("learned.bits")

    @cached_property
    def _origins(self) -> NDArray[Any]:
        return self._map("origins.u64")

    @cached_property
    def _tags(self) -> tuple[NDArray[Any], NDArray[Any]]:
        return self._map("tags.u8"), self._map("shared.u32")

    def __len__(self) -> int:
        return self._rows

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        return np.array(np.diff(self._offsets), dtype=np.int64)

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        return np.array(self._map("labels.u32"), dtype=np.int64)

    @property
    def paired(self) -> bool:
        return bool(self.manifest["paired"])

    def row(self, index: int) -> TokenRow:
        """Row `index`; its ids and flags are arrays."""
        if not 0 <= index < self._rows:
            raise IndexError(f"row {index} of {self._rows}")
        start, end = int(self._offsets[index]), int(self._offsets[index + 1])
        bits = np.unpackbits(np.asarray(self._learned[start // 8 : -(-end // 8)]), bitorder="little")
        learned = bits[start % 8 : start % 8 + end - start].astype(np.bool_)
        ids = np.asarray(self._ids[start:end]).astype(np.int64)
        return TokenRow(self.name(index), cast(Any, ids), cast(Any, learned))

    def name(self, index: int) -> str:
        """File and record of a row, such as `alpaca_en.json:17`."""
        origin = int(self._origins[index])
        file = self.manifest["files"][origin >> _RECORD_BITS]["file"]
        return f"{file}:{origin & ((1 << _RECORD_BITS) - 1)}"

    def shared(self, index: int) -> int:
        return int(self._tags[1][index]) if self.manifest["tagged"] else 0

    def tag(self, index: int) -> int:
        return int(self._tags[0][index]) if self.manifest["tagged"] else 0


class ShardWriter:
    """Appends chunks in order. `commit` makes what was appended durable and says how to come back to it."""

    def __init__(self, folder: Path, vocab_size: int, *, tagged: bool, state: Mapping[str, Any] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.tagged = folder, tagged
        self.tokens_file = tokens_name(vocab_size)
        self._kind = np.dtype("<u2" if self.tokens_file.endswith("u16") else "<u4")
        names = [self.tokens_file, *(name for name in _FILES if tagged or name not in _TAGGED), BAD_ROWS]
        sizes: Mapping[str, int] = state["sizes"] if state else {}
        self._files: dict[str, IO[bytes]] = {}
        for name in names:
            path = folder / name
            self._files[name] = open(path, "r+b" if state and path.is_file() else "w+b")  # noqa: SIM115
            self._files[name].truncate(sizes.get(name, 0))
            self._files[name].seek(0, os.SEEK_END)
        self.rows: int = state["rows"] if state else 0
        self.tokens: int = state["tokens"] if state else 0
        self.labels: int = state["labels"] if state else 0
        self._bits = np.array(state["bits"] if state else [], dtype=np.bool_)  # of a byte that is not yet full
        if not state:
            self._write("offsets.u64", np.zeros(1, dtype="<u8"))

    def _write(self, name: str, array: NDArray[Any]) -> None:
        kind = _FILES.get(name) or self._kind
        self._files[name].write(array.astype(kind, copy=False).tobytes())

    def append(self, chunk: EncodedChunk, file: str) -> None:
        """Add a chunk's rows, and what it set aside."""
        self._write(self.tokens_file, chunk.ids)
        ends = self.tokens + np.cumsum(chunk.lengths, dtype=np.uint64)
        self._write("offsets.u64", ends)
        bits = np.concatenate([self._bits, chunk.learned])
        full = len(bits) // 8 * 8
        self._write("learned.bits", np.packbits(bits[:full], bitorder="little"))
        self._bits = bits[full:]
        self._write("labels.u32", chunk.labels)
        self._write("origins.u64", (np.uint64(chunk.file) << np.uint64(_RECORD_BITS)) | chunk.numbers)
        if self.tagged:
            self._write("tags.u8", chunk.tags)
            self._write("shared.u32", chunk.shared)
        for bad in chunk.bad:
            record = {"file": file, "line": bad.number, "reason": bad.reason, "detail": bad.detail, "row": bad.excerpt}
            line = json.dumps(record, ensure_ascii=False) + "\n"
            self._files[BAD_ROWS].write(line.encode("utf-8", "replace"))
        self.rows += len(chunk.lengths)
        self.tokens += len(chunk.ids)
        self.labels += int(chunk.labels.sum())

    def commit(self) -> dict[str, Any]:
        """Sync all files; the state from which a writer goes on."""
        for handle in self._files.values():
            handle.flush()
            os.fsync(handle.fileno())
        sizes = {name: handle.tell() for name, handle in self._files.items()}
        bits = [bool(bit) for bit in self._bits]
        return {"sizes": sizes, "rows": self.rows, "tokens": self.tokens, "labels": self.labels, "bits": bits}

    def finish(self) -> None:
        """Write the last bits and close; the manifest is the caller's."""
        if len(self._bits):
            self._write("learned.bits", np.packbits(self._bits, bitorder="little"))
            self._bits = self._bits[:0]
        self.commit()
        self.close()

    def close(self) -> None:
        for handle in self._files.values():
            handle.close()
