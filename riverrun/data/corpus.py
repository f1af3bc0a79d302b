"""What rows are read from: files, folders, and repositories through the hub's store; each file with its format."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field

from riverrun.base.artifacts import digest_file
from riverrun.base.config import Config
from riverrun.base.errors import InputError
from riverrun.base.progress import Progress
from riverrun.data.formats import FORMATS, Format, detect, get_format
from riverrun.data.records import DataFile, find_files, read_records, row_files
from riverrun.data.shards import is_shards
from riverrun.hub.card import Card
from riverrun.hub.catalog import card_of, get_card
from riverrun.hub.spec import SCHEMES
from riverrun.hub.store import Store

__all__ = ["RowFile", "RowSource", "find_sources", "resolve"]

LOOK_AT = 32
"""Rows by which a file's format is told."""


class RowSource(Config):
    """Where rows come from."""

    path: Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, Path) else value)] = Field(
        description="a file, a folder, hf:OWNER/NAME, modelscope:OWNER/NAME, or a data set of the catalogue; "
        "also a folder of shards"
    )
    format: str = Field(default="auto", description=f"format of the rows: auto, {', '.join(FORMATS)}")
    weight: float = Field(default=1.0, gt=0, description="times that each row is seen in an epoch")
    files: tuple[str, ...] = Field(default=(), description="only these files of a folder or repository (patterns)")
    columns: dict[str, str] = Field(
        default_factory=dict, description="the rows' own names for a format's fields: {output: answer}"
    )
    lines: bool = Field(default=False, description="each line of a .txt file is a document; else the file is one")

    @property
    def is_local(self) -> bool:
        """Whether `path` is one of files, not the name of a data set or a repository."""
        named = self.path.partition(":")[0] in SCHEMES
        return not named and ("/" in self.path or "." in Path(self.path).name or Path(self.path).exists())


@dataclass(frozen=True)
class RowFile:
    """One file, its format, and its digest once asked for."""

    file: DataFile
    form: Format
    source: RowSource

    @property
    def raw(self) -> bool:
        """Whether records are texts, not JSON."""
        return self.file.container == "text" or self.file.path.name.removesuffix(".gz").endswith((".txt", ".md"))

    def digest(self) -> str:
        return digest_file(self.file.path)


def find_sources(source: RowSource, progress: Progress) -> list[DataFile]:
    """The files of a source, fetched where they are not local."""
    path = Path(source.path).expanduser()
    if is_shards(path):
        raise InputError(f"{path} holds shards: they are trained on as they are, and built from rows alone")
    if path.exists():
        found = find_files(path, lines=source.lines)
        if source.files and path.is_dir():
            found = [f for f in found if any(f.path.relative_to(path).match(pattern) for pattern in source.files)]
        if not found:
            raise InputError(f"{path} has no file of rows that fits {', '.join(source.files)}")
        return found
    if source.is_local:
        raise InputError(
            f"{path} does not exist: give a file of rows, a folder of them, or a source such as hf:OWNER/NAME"
        )
    store, card = Store(), _card(source.path)
    names = [entry.path for entry in store.entries(card)]
    chosen = [
        name for name in row_files(names) if not source.files or any(Path(name).match(each) for each in source.files)
    ]
    if not chosen:
        raise InputError(
            f"'{source.path}' has no file of rows{' that fits ' + ', '.join(source.files) if source.files else ''}; "
            f"it has {', '.join(names[:8])}"
        )
    folder = store.fetch(card, progress, only=[] if card.sha256 else chosen)
    if folder.is_file():
        return find_files(folder, lines=source.lines)
    return [found for name in chosen for found in find_files(folder / name, lines=source.lines)]


def _card(name: str) -> Card:
    scheme, _, rest = name.partition(":")
    if scheme not in SCHEMES or not rest:
        return get_card(name)
    if scheme in ("hf", "modelscope") and not rest.startswith(("datasets/", "models/")):
        name = f"{scheme}:datasets/{rest}"
    return card_of(name)


def _first_rows(file: DataFile) -> Iterator[object]:
    for record in islice(read_records(file), LOOK_AT):
        try:
            yield json.loads(record.data.decode("utf-8"))
        except (ValueError, RecursionError):
            continue


def resolve(sources: Sequence[RowSource], progress: Progress | None = None) -> list[RowFile]:
    """All files of the sources, in their order, each with its format. InputError when a format cannot be told, or when
    pairs are mixed with other rows."""
    progress = progress or Progress("quiet")
    out: list[RowFile] = []
    for source in sources:
        for file in find_sources(source, progress):
            plain = RowFile(file, FORMATS["text"], source)
            if plain.raw:
                if source.format not in ("auto", "text"):
                    raise InputError(
                        f"{file.path} is a plain text, format '{source.format}' is asked for: leave it out"
                    )
                out.append(plain)
                continue
            form = get_format(source.format) if source.format != "auto" else None
            if form is None:
                rows = list(_first_rows(file))
                if source.columns:
                    rows = [
                        row | {ours: row[own] for ours, own in source.columns.items() if own in row}
                        if isinstance(row, dict)
                        else row
                        for row in rows
                    ]
                form = detect(rows, str(file.path))
            out.append(RowFile(file, form, source))
    kinds = {each.form.kind: each for each in out}
    if "preference" in kinds and len(kinds) > 1:
        other = next(each for kind, each in kinds.items() if kind != "preference")
        raise InputError(
            f"{kinds['preference'].file.path} holds pairs of answers, {other.file.path} '{other.form.name}' rows: "
            "a set of rows is all pairs or none; give them to runs of their own"
        )
    return out
