"""A source of rows to token rows for training: small files into memory, large ones as shards in a cache, by content.

Where the line is (IN_MEMORY, 8 MB of text): a token in memory takes about 50 bytes, so that much text takes about
100 MB, and one process reads it in seconds. Beyond it memory stays bounded by mapped shards, which are built once and
shared by every run with the same text, tokenizer, template and settings. Folders of shards are opened as they are.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from riverrun.base.artifacts import digest_json
from riverrun.base.errors import InputError
from riverrun.base.progress import Progress
from riverrun.data.build import SMALL, build_files, chunks, counts_of, head_of, text_bytes, tokenizer_digest
from riverrun.data.chunks import BadRecord, Chunk, EncodedChunk, encode_chunk
from riverrun.data.corpus import RowFile, RowSource, resolve
from riverrun.data.counts import Counts, check_bad
from riverrun.data.encoding import EncodeConfig, RowEncoder
from riverrun.data.examples import Kind
from riverrun.data.formats import FORMATS
from riverrun.data.records import Place
from riverrun.data.rows import ListRows, Rows
from riverrun.data.shards import BAD_ROWS, Shards, is_shards
from riverrun.data.tokens import TokenRow
from riverrun.models.chat import ChatTemplate
from riverrun.models.tokenizer import Tokenizer

__all__ = ["LoadedSource", "SourceReport", "bad_line", "load_source", "read_rows", "told_first"]

IN_MEMORY = SMALL
"""Bytes of text up to which rows are held in memory."""


@dataclass(frozen=True)
class SourceReport:
    """What a source is and what became of its records. `digest` is of its content; `bad` are the lines that
    `bad_rows.jsonl` has, or the file where they stand."""

    counts: Counts
    digest: str
    bad: Sequence[Mapping[str, Any]] | Path = ()

    def bad_lines(self) -> Iterator[Mapping[str, Any]]:
        """{file, line, reason, detail, row} of every record that was set aside."""
        if not isinstance(self.bad, Path):
            yield from self.bad
            return
        with open(self.bad, encoding="utf-8") as handle:
            for line in handle:
                yield json.loads(line)


@dataclass(frozen=True)
class LoadedSource:
    """Token rows of one source, and what they are of."""

    rows: Rows
    report: SourceReport
    kinds: frozenset[Kind] = field(default_factory=frozenset)


def bad_line(file: str, bad: BadRecord) -> dict[str, Any]:
    """A line of bad_rows.jsonl."""
    return {"file": file, "line": bad.number, "reason": bad.reason, "detail": bad.detail, "row": bad.excerpt}


def load_source(
    source: RowSource,
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    config: EncodeConfig,
    *,
    cache: Path,
    kinds: frozenset[Kind],
    wanted: str,
    most: int = 0,
    progress: Progress | None = None,
) -> LoadedSource:
    """The rows of a source; with `most` no more than the first so many records of each file, in memory.

    InputError for rows of another kind than `kinds` (`wanted` says in words what is learned from), for shards of
    another tokenizer, template or settings; ConfigError for a template that trains no end token.
    """
    progress = progress or Progress("quiet")
    if is_shards(Path(source.path)):
        return _open(source, tokenizer, template, config, kinds, wanted)
    files = resolve([source], progress)
    for each in files:
        _check_kind(each.form.name, each.file.path, kinds, wanted)
    found: frozenset[Kind] = frozenset(each.form.kind for each in files)
    encoder = RowEncoder(tokenizer, None if found == {"text"} else template, config)
    if most or text_bytes(files) <= IN_MEMORY:
        rows, counts, bad = _read(files, encoder, most)
        return LoadedSource(rows, SourceReport(counts, _digest([each.digest() for each in files]), bad), found)
    head = head_of(files, encoder)
    with _alone(cache / digest_json(head)[:20], progress) as folder:
        shards = build_files(files, head, folder, encoder, progress=progress)
    digest = _digest([each["sha256"] for each in head["files"]])
    return LoadedSource(shards, SourceReport(counts_of(shards), digest, folder / BAD_ROWS), found)


def _digest(files: Sequence[str]) -> str:
    return digest_json(["files", *files])


def _check_kind(form: str, path: Path | str, kinds: frozenset[Kind], wanted: str) -> None:
    if FORMATS[form].kind in kinds:
        return
    known = [each for each in FORMATS.values() if each.kind in kinds]
    forms = "; ".join(f"{each.name}: {each.fields}" for each in known)
    raise InputError(f"{path} holds rows of format '{form}', {wanted} ({forms})")


def _open(
    source: RowSource,
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    config: EncodeConfig,
    kinds: frozenset[Kind],
    wanted: str,
) -> LoadedSource:
    folder = Path(source.path)
    sha256 = template.sha256 if template else ""
    shards = Shards(folder, tokenizer_sha256=tokenizer_digest(tokenizer), template_sha256=sha256)
    forms = [str(each["format"]) for each in shards.manifest["files"]]
    for form in forms:
        _check_kind(form, folder, kinds, wanted)
    found: frozenset[Kind] = frozenset(FORMATS[form].kind for form in forms)
    if found != {"text"}:
        RowEncoder(tokenizer, template, config)  # a template that trains no end token is refused here too
    about = {"text": ("end_texts", "overlong_text"), "chat": ("train_on", "overlong", "codec")}
    names = {name for kind in found for name in about.get(kind, ("overlong", "codec"))}
    built, asked = shards.manifest["settings"], config.model_dump()
    for name in sorted(names):
        if built[name] != asked[name]:
            raise InputError(
                f"{folder} was built with {name} {built[name]}, {asked[name]} is asked for: build the shards again, or "
                f"say {name}: {built[name]}"
            )
    longest = int(shards.lengths.max()) if len(shards) else 0
    if longest > config.max_tokens:
        raise InputError(
            f"{folder} has a row of {longest} tokens, the limit is {config.max_tokens}: build the shards again with "
            f"--max-tokens {config.max_tokens}, or raise the limit"
        )
    digest = digest_json(["shards", shards.manifest["identity"], shards.manifest["tokens_sha256"]])
    return LoadedSource(shards, SourceReport(counts_of(shards), digest, folder / BAD_ROWS), found)


@contextmanager
def _alone(folder: Path, progress: Progress) -> Iterator[Path]:
    """The folder, while no other process builds into it."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        handle = open(folder.with_suffix(".lock"), "wb")  # noqa: SIM115
    except OSError as error:
        raise InputError(
            f"{folder.parent} cannot be written ({error.strerror or error}): set RIVERRUN_HOME to a folder that can"
        ) from None
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.say("another process turns the same rows into tokens: waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield folder


def read_rows(
    sources: Sequence[RowSource],
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    config: EncodeConfig,
    *,
    bad_rows: float = 0.01,
) -> tuple[ListRows, Counts]:
    """All rows of the sources in memory; `bad_rows`: see `check_bad`."""
    rows, total, bad = _read(resolve(sources), RowEncoder(tokenizer, template, config))
    check_bad(total, bad_rows, told_first(bad))
    return rows, total


def told_first(bad: Sequence[Mapping[str, Any]]) -> str:
    """The first of the records that were set aside, for a message."""
    return "the first: " + "; ".join(f"{b['file']}, line {b['line']}: {b['detail']}" for b in bad[:3])


def _read(files: Sequence[RowFile], encoder: RowEncoder, most: int = 0) -> tuple[ListRows, Counts, list[Any]]:
    """Rows, counts, lines of bad_rows.jsonl; with `most` of the first records of each file."""
    rows: list[TokenRow] = []
    tags: list[int] = []
    shared: list[int] = []
    total, told = Counts(), []
    for number, each in enumerate(files):
        left = most or -1
        for chunk, _ in chunks([each], (0, Place())):
            taken = chunk if left < 0 else Chunk(number, chunk.form, chunk.raw, chunk.columns, chunk.records[:left])
            left -= len(taken.records) if left > 0 else 0
            found = encode_chunk(taken, encoder)
            total.add(found)
            rows += _token_rows(found, each.file.label)
            tags += found.tags.tolist()
            shared += found.shared.tolist()
            told += [bad_line(each.file.label, bad) for bad in found.bad]
            if left == 0:
                break
    paired = any(each.form.kind == "preference" for each in files)
    return ListRows(rows, paired=paired, tags=tags, shared=shared), total, told


def _token_rows(chunk: EncodedChunk, file: str) -> Iterator[TokenRow]:
    start = 0
    for length, number in zip(chunk.lengths.tolist(), chunk.numbers.tolist(), strict=True):
        ids = tuple(chunk.ids[start : start + length].tolist())
        yield TokenRow(f"{file}:{number}", ids, tuple(chunk.learned[start : start + length].tolist()))
        start += length
