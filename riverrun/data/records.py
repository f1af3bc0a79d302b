"""Files of rows, record by record, never whole: JSON lines, lists of JSON, plain text, Parquet; gzip of any of them.

A record is bytes with its number; what they hold is looked at later, so that one bad record is one bad row. A place in
a file is (records read, byte offset in its text), so reading goes on from where it stopped.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from riverrun.base.errors import InputError, IntegrityError
from riverrun.base.optional import require

__all__ = [
    "MAX_RECORD",
    "SUFFIXES",
    "DataFile",
    "Place",
    "Record",
    "find_files",
    "open_file",
    "read_records",
    "row_files",
]

MAX_RECORD = 32 << 20
"""Bytes of the largest record; a larger one is set aside, so that memory stays bounded."""
BLOCK = 1 << 20
TEXT_PIECE = 1 << 20
"""A plain text is handed on in pieces of about so many bytes, cut between paragraphs or lines."""

Container = Literal["lines", "list", "text", "parquet"]
SUFFIXES: dict[str, Container] = {
    **{".jsonl": "lines", ".ndjson": "lines", ".json": "list"},
    **{".txt": "text", ".md": "text", ".parquet": "parquet"},
}

# A whole string, a bracket or comma, or a quote whose string goes on behind the buffer.
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[\[\]{},]|"', re.DOTALL)
_SPACE = b" \t\r\n"
_ABOUT = re.compile(r"(?i)(licen[cs]e|copying|notice|readme|provenance)\b|(dataset_infos?|config)\.json$")


@dataclass(frozen=True, slots=True)
class Place:
    """Where to go on: records read so far, and the offset in bytes of the (unpacked) file."""

    record: int = 0
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Record:
    """One row as it stands in its file. `number` counts from 1: the line, or the item of a list. `whole` is False for
    the beginning of a record above MAX_RECORD."""

    number: int
    data: bytes
    after: Place
    whole: bool = True


@dataclass(frozen=True, slots=True)
class DataFile:
    """One file of a source. `label` is how rows name it."""

    path: Path
    container: Container
    packed: bool

    @property
    def label(self) -> str:
        return self.path.name


def open_file(path: Path, *, lines: bool = False) -> DataFile:
    """What kind a file is, by its name; a .json file that holds an object a line is read as lines, and a .txt file is
    one document unless `lines` says that each line is one. InputError for a name that says nothing."""
    packed = path.suffix == ".gz"
    suffix = (path.with_suffix("") if packed else path).suffix.lower()
    if suffix not in SUFFIXES or (suffix == ".parquet" and packed):
        raise InputError(f"{path} is no file of rows: {', '.join(SUFFIXES)} (and .gz of all but Parquet) are read")
    container = SUFFIXES[suffix]
    if container == "list":
        with _opened(path, packed) as handle:
            head = handle.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
        if head[:1] == b"{":
            container = "lines"
    if container == "text" and lines:
        container = "lines"
    return DataFile(path, container, packed)


def find_files(path: Path, *, lines: bool = False) -> list[DataFile]:
    """The file itself, or all files of rows below a folder, by name; InputError when there is none."""
    if path.is_file():
        return [open_file(path, lines=lines)]
    if not path.is_dir():
        raise InputError(f"{path} does not exist: give a file of rows, a folder of them, or a source such as hf:...")
    names = [file.relative_to(path).as_posix() for file in sorted(path.rglob("*")) if file.is_file()]
    found = row_files(names)
    if not found:
        raise InputError(f"{path} holds no file of rows ({', '.join(SUFFIXES)})")
    return [open_file(path / name, lines=lines) for name in found]


def row_files(names: Sequence[str]) -> list[str]:
    """Those of a folder's files that hold rows. Plain texts count where there is nothing else, without licences and
    the like; hidden files, and what hubs write about a data set, never."""
    found: dict[bool, list[str]] = {True: [], False: []}
    for name in names:
        suffix = Path(name.removesuffix(".gz")).suffix.lower()
        hidden = any(part.startswith(".") for part in Path(name).parts)
        if suffix in SUFFIXES and suffix != ".md" and not hidden and not _ABOUT.match(Path(name).name):
            found[SUFFIXES[suffix] == "text"].append(name)
    return found[False] or found[True]


def _opened(path: Path, packed: bool) -> IO[bytes]:
    try:
        return gzip.open(path, "rb") if packed else open(path, "rb")  # type: ignore[return-value]
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None


def read_records(file: DataFile, start: Place = Place()) -> Iterator[Record]:
    """Records from a place on. IntegrityError for a damaged container, with the last record that was whole."""
    if file.container == "parquet":
        yield from _parquet(file, start)
        return
    with _opened(file.path, file.packed) as handle:
        last = start
        try:
            handle.seek(start.offset)
            if not start.offset and handle.read(3) != b"\xef\xbb\xbf":
                handle.seek(0)
            reader = {"lines": _lines, "list": _items, "text": _pieces}[file.container]
            for record in reader(handle, Place(start.record, handle.tell())):
                last = record.after
                yield record
        except _Broken as error:
            raise IntegrityError(f"{file.path}, after item {last.record}: {error}") from None
        except (EOFError, gzip.BadGzipFile, OSError) as error:
            raise IntegrityError(
                f"{file.path} is damaged after record {last.record} ({error}): fetch or write it again"
            ) from None


class _Broken(Exception):
    """A list of JSON that is none."""


def _lines(handle: IO[bytes], start: Place) -> Iterator[Record]:
    number, offset = start.record, start.offset
    while line := handle.readline(MAX_RECORD + 1):
        number, offset, whole = number + 1, offset + len(line), True
        if len(line) > MAX_RECORD:
            line, whole = line[:4096], False
            while (more := handle.readline(MAX_RECORD)) and not more.endswith(b"\n"):
                offset += len(more)
            offset += len(more)
        if line := line.strip(_SPACE):
            yield Record(number, line, Place(number, offset), whole)


def _pieces(handle: IO[bytes], start: Place) -> Iterator[Record]:
    """A plain text in pieces that end between paragraphs, else between lines, else where the piece is full."""
    number, offset, left = start.record, start.offset, b""
    while True:
        block = handle.read(TEXT_PIECE)
        text = left + block
        cut = len(text)
        if block:
            cut = max(text.rfind(b"\n\n") + 2, 0) if b"\n\n" in text else text.rfind(b"\n") + 1
            if cut < len(text) // 2 and len(text) < 2 * TEXT_PIECE:
                left = text
                continue
            if not cut:
                cut = len(text)
                while cut > len(text) - 4 and text[cut - 1] & 0xC0 == 0x80:  # not within a character
                    cut -= 1
                cut -= text[cut - 1] >= 0xC0
        piece, left = text[:cut], text[cut:]
        if piece:
            number, offset = number + 1, offset + cut
            yield Record(number, piece, Place(number, offset))
        if not block:
            return


def _items(handle: IO[bytes], start: Place) -> Iterator[Record]:
    """The items of a JSON list, found by brackets alone; what an item holds is not looked at."""
    number, base = start.record, start.offset
    buffer, ended = b"", False

    def more() -> bool:
        nonlocal buffer, ended
        block = handle.read(BLOCK)
        ended = not block
        buffer += block
        return not ended

    first = not start.record
    place = 0
    while True:
        while place < len(buffer) and buffer[place] in _SPACE:
            place += 1
        if place == len(buffer):
            base, buffer, place = base + place, b"", 0
            if more():
                continue
            raise _Broken("the list does not end: the file is cut off")
        if first:
            if buffer[place : place + 1] != b"[":
                raise _Broken("the file is neither a list nor lines of JSON")
            place, first = place + 1, False
            continue
        if buffer[place : place + 1] == b"]":
            return
        if buffer[place : place + 1] == b",":
            place += 1
            continue
        depth, at, end = 0, place, -1
        while end < 0:
            for found in _TOKEN.finditer(buffer, at):
                kind = buffer[found.start()]
                if kind == 0x22:
                    if found.end() - found.start() == 1 and not ended:
                        at = found.start()
                        break
                elif kind in b"[{":
                    depth += 1
                elif kind == 0x2C:
                    if depth == 0:
                        end = found.start()
                        break
                elif depth == 0:
                    end = found.start()
                    break
                else:
                    depth -= 1
                at = found.end()
            if end < 0:
                if len(buffer) - place > MAX_RECORD:
                    raise _Broken(f"the next item is larger than {MAX_RECORD >> 20} MB, or its brackets do not close")
                if not more():
                    raise _Broken("the list does not end: the file is cut off, or brackets do not close")
        item = buffer[place:end].strip(_SPACE)
        number += 1
        yield Record(number, item, Place(number, base + end))
        place = end
        if place > BLOCK:
            base, buffer, place = base + place, buffer[place:], 0


def _parquet(file: DataFile, start: Place) -> Iterator[Record]:
    """Rows of a Parquet file as JSON; a row group at a time."""
    parquet = require("pyarrow.parquet", extra="parquet")
    try:
        table = parquet.ParquetFile(str(file.path))
        number = 0
        for group in range(table.num_row_groups):
            count = table.metadata.row_group(group).num_rows
            if number + count <= start.record:
                number += count
                continue
            for batch in table.iter_batches(batch_size=256, row_groups=[group]):
                for row in batch.to_pylist():
                    number += 1
                    if number > start.record:
                        data = json.dumps(row, ensure_ascii=False, default=_json_value).encode("utf-8", "surrogatepass")
                        yield Record(number, data, Place(number, 0))
    except OSError as error:  # ArrowInvalid is a ValueError, a missing file an OSError
        raise InputError(f"{file.path} cannot be read: {error}") from None
    except ValueError as error:
        raise IntegrityError(f"{file.path} is not a whole Parquet file: {error}") from None


def _json_value(value: Any) -> Any:
    return f"<{len(value)} bytes>" if isinstance(value, bytes) else str(value)
