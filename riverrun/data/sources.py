"""A folder of .html, .htm, .txt and .md files as documents: sorted, decoded, confined to the folder.

A link that leads out of the folder is refused. A file that cannot be read is still a document, with the problem in its
metadata, so that it is dropped with a reason instead of vanishing. Hidden files and folders are left out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from riverrun.base.errors import InputError
from riverrun.base.optional import require
from riverrun.base.types import Document

__all__ = ["FORMATS", "MAX_BYTES", "decode", "read_folder"]

FORMATS = {".html": "html", ".htm": "html", ".txt": "text", ".md": "markdown"}
MAX_BYTES = 20_000_000
"""A file above this is not read: a page of text is never that long."""
_BOMS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))


def read_folder(folder: Path) -> list[Document]:
    """All documents of a folder and its subfolders, by path. The id is the path inside the folder, with slashes.

    InputError if the folder is missing, holds no such file, or holds a link that leads out of it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"{root} is not a folder: give the path of a folder with .html, .txt or .md files")
    documents = [_read(path, root) for path in sorted(_files(root), key=lambda path: path.relative_to(root).as_posix())]
    if not documents:
        raise InputError(f"{root} holds no .html, .txt or .md file: put at least one page there")
    return documents


def _files(root: Path) -> Iterator[Path]:
    home = root.resolve()
    for parent, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in [*folders, *files]:
            path = Path(parent) / name
            if path.is_symlink() and not path.resolve().is_relative_to(home):
                raise InputError(f"{path} is a link to {path.resolve()}, outside of {root}: copy the file or remove it")
        for name in files:
            path = Path(parent) / name
            if not name.startswith(".") and path.suffix.lower() in FORMATS and path.is_file():
                yield path


def _read(path: Path, root: Path) -> Document:
    # a file name that is not UTF-8 comes with lone surrogates, which no JSON file can hold
    name = path.relative_to(root).as_posix().encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    metadata = {"path": name, "format": FORMATS[path.suffix.lower()]}
    size = path.stat().st_size
    if size > MAX_BYTES:
        return Document(name, "", name, metadata | {"problem": f"{size} bytes, the limit is {MAX_BYTES}"})
    try:
        raw = path.read_bytes()
    except OSError as error:
        return Document(name, "", name, metadata | {"problem": f"cannot be read: {error.strerror}"})
    text, encoding = decode(raw)
    return Document(name, text, name, metadata | {"encoding": encoding, "bytes": size})


def decode(raw: bytes) -> tuple[str, str]:
    """Text and the name of its encoding: a byte order mark, else valid UTF-8, else the HTML meta tag or a guess.

    Valid UTF-8 goes before the meta tag: a page that was converted often keeps its old tag, and text in another
    multi-byte encoding is hardly ever valid UTF-8. Bytes that do not fit the encoding are replaced by U+FFFD.
    """
    for mark, encoding in _BOMS:
        if raw.startswith(mark):
            return raw[len(mark) :].decode(encoding, errors="replace"), encoding
    try:
        return raw.decode("utf-8"), "utf-8"
    except UnicodeDecodeError:
        detector = require("resiliparse.parse.encoding", extra="data")
        encoding = str(detector.detect_encoding(raw, from_html_meta=True))
    if encoding == "utf-8":
        return raw.decode("utf-8", errors="replace"), encoding
    return str(detector.bytes_to_str(raw, encoding, errors="replace", fallback_encodings=())), encoding
