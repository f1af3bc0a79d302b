"""Files of rows to token rows: in memory, or as shards on disk by any number of processes, resumable after kill -9.

Every record that is read is kept, set aside with its reason, or dropped for its length; the counts are checked. What is
on disk is the same to the byte for any number of workers and however often the build was killed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from riverrun.base.artifacts import digest_file, digest_json, write_json
from riverrun.base.errors import InputError
from riverrun.base.progress import Progress
from riverrun.data.chunks import Chunk, EncodedChunk, encode_chunk
from riverrun.data.corpus import RowFile, RowSource, resolve
from riverrun.data.encoding import EncodeConfig, RowEncoder
from riverrun.data.examples import REASONS
from riverrun.data.records import Place, Record, read_records
from riverrun.data.rows import ListRows
from riverrun.data.shard_worker import Worker
from riverrun.data.shards import BAD_ROWS, FORMAT, MANIFEST, Shards, ShardWriter
from riverrun.data.tokens import TokenRow
from riverrun.models.chat import ChatTemplate
from riverrun.models.tokenizer import Tokenizer

__all__ = ["Counts", "build", "read_rows", "tokenizer_digest"]

LOG = "commit.log"
CHUNK_RECORDS, CHUNK_BYTES = 256, 192 << 10
COMMIT_CHUNKS = 64
SMALL = 8 << 20
"""Bytes of files that this process encodes alone unless workers are asked for."""


@dataclass
class Counts:
    """What became of the records of one file: records = kept + sum(bad). `rows` is more than kept where texts are
    split or answers come in pairs."""

    records: int = 0
    kept: int = 0
    rows: int = 0
    tokens: int = 0
    labels: int = 0
    bad: Counter[str] = field(default_factory=Counter)

    def add(self, chunk: EncodedChunk) -> None:
        self.records += chunk.records
        self.kept += chunk.kept
        self.rows += len(chunk.lengths)
        self.tokens += len(chunk.ids)
        self.labels += int(chunk.labels.sum())
        self.bad.update(bad.reason for bad in chunk.bad)
        self.check()

    def check(self) -> None:
        """The conservation law."""
        assert self.records == self.kept + sum(self.bad.values()), f"records were lost: {self}"

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.records + other.records,
            self.kept + other.kept,
            self.rows + other.rows,
            self.tokens + other.tokens,
            self.labels + other.labels,
            self.bad + other.bad,
        )

    @property
    def too_long(self) -> int:
        """Dropped by the policy for long rows; not bad in themselves."""
        return self.bad["too_long"]

    @property
    def quarantined(self) -> int:
        return sum(self.bad.values()) - self.too_long

    def to_json(self) -> dict[str, Any]:
        names = ("records", "kept", "rows", "tokens", "labels")
        return {name: getattr(self, name) for name in names} | {"bad": dict(sorted(self.bad.items()))}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Counts:
        return cls(**{**value, "bad": Counter(value["bad"])})

    def told(self) -> str:
        """What was set aside, by reason."""
        return "; ".join(f"{count} x {reason} ({REASONS[reason]})" for reason, count in self.bad.most_common())


def tokenizer_digest(tokenizer: Tokenizer) -> str:
    """sha256 of everything that decides a text's ids and their ends."""
    return digest_json([tokenizer.to_json(), tokenizer.bos_id, list(tokenizer.end_ids)])


def _chunks(files: Sequence[RowFile], start: tuple[int, Place]) -> Iterator[tuple[Chunk, Place]]:
    """Chunks in order from a place (file, place in it) on, each with the place behind it."""
    for number in range(start[0], len(files)):
        each = files[number]
        held: list[Record] = []
        size = 0

        def chunk(held: list[Record], number: int = number, each: RowFile = each) -> tuple[Chunk, Place]:
            return Chunk(number, each.form, each.raw, each.source.columns, held), held[-1].after

        for record in read_records(each.file, start[1] if number == start[0] else Place()):
            held.append(record)
            size += len(record.data)
            if len(held) >= CHUNK_RECORDS or size >= CHUNK_BYTES:
                yield chunk(held)
                held, size = [], 0
        if held:
            yield chunk(held)


def _encoded(
    chunks: Iterator[tuple[Chunk, Place]], encoder: RowEncoder, workers: int
) -> Iterator[tuple[EncodedChunk, Place]]:
    """The chunks encoded, in their order. One worker is this process."""
    if workers <= 1:
        for chunk, place in chunks:
            yield encode_chunk(chunk, encoder), place
        return
    idle: SimpleQueue[Worker] = SimpleQueue()
    with ExitStack() as stack:
        for _ in range(workers):
            worker = Worker(encoder)
            stack.callback(worker.close)
            idle.put(worker)
        pool = stack.enter_context(ThreadPoolExecutor(workers))

        def run(chunk: Chunk) -> EncodedChunk:
            worker = idle.get()
            try:
                return worker.encode(chunk)
            finally:
                idle.put(worker)

        waiting: deque[tuple[Future[EncodedChunk], Place]] = deque()
        for chunk, place in chunks:
            waiting.append((pool.submit(run, chunk), place))
            if len(waiting) >= 2 * workers + 1:
                future, done = waiting.popleft()
                yield future.result(), done
        while waiting:
            future, done = waiting.popleft()
            yield future.result(), done


def _workers(asked: int, files: Sequence[RowFile]) -> int:
    """Processes to use: those asked for, or one for each core where there is enough to do."""
    if asked:
        return asked
    size = sum(each.file.path.stat().st_size * (4 if each.file.packed else 1) for each in files)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 1 if size < SMALL else cores


def check_bad(total: Counts, limit: float, where: Path | str) -> None:
    """InputError when more rows were set aside than `limit` allows (a share below 1, a count from 1 on), or none is
    left. Rows dropped for their length do not count towards the limit."""
    most = limit if limit >= 1 or not limit else limit * total.records
    if total.quarantined > most:
        allowed = f"{limit:g}" if limit >= 1 or not limit else f"{100 * limit:g} % of {total.records}"
        raise InputError(
            f"{total.quarantined} rows cannot be used, {allowed} are allowed (bad_rows): {total.told()}. "
            f"They stand in {where}: mend them, or raise bad_rows"
        )
    if not total.rows:
        raise InputError(f"no row is left to learn from: {total.told() or 'the files are empty'} ({where})")


def build(
    sources: Sequence[RowSource],
    out: Path,
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    config: EncodeConfig,
    *,
    workers: int = 0,
    bad_rows: float = 0.01,
    progress: Progress | None = None,
) -> Shards:
    """Shards of all rows in `out`; what is finished and of the same sources and settings is opened as it is.

    Memory does not grow with the corpus. `bad_rows`: see `check_bad`; `workers` 0 takes the cores.
    """
    progress = progress or Progress("quiet")
    encoder = RowEncoder(tokenizer, template, config)
    files = resolve(sources, progress)
    described = [_describe(each) for each in files]
    head = {
        "format": FORMAT,
        "tokenizer_sha256": tokenizer_digest(tokenizer),
        "template_sha256": template.sha256 if template else "",
        "vocab_size": tokenizer.vocab_size,
        "settings": config.model_dump(),
        "files": described,
    }
    identity = digest_json(head)
    if (done := _finished(out, identity)) is not None:
        check_bad(_total(done), bad_rows, out / BAD_ROWS)
        return done
    state = _state(out, identity)
    if state is None and out.exists():
        _clear(out)
    tagged = any(each.form.kind in ("preference", "kto") for each in files)
    writer = ShardWriter(out, tokenizer.vocab_size, tagged=tagged, state=state["writer"] if state else None)
    counts = [Counts.from_json(each) for each in state["counts"]] if state else [Counts() for _ in files]
    start = (state["file"], Place(*state["place"])) if state else (0, Place())
    with open(out / LOG, "a", encoding="utf-8") as log:
        if state is None:
            _log(log, {"identity": identity})
        _write(files, start, encoder, _workers(workers, files), writer, counts, log, progress)
    total = _sum(counts)
    check_bad(total, bad_rows, out / BAD_ROWS)
    for each, found in zip(described, counts, strict=True):
        found.check()
        each["counts"] = found.to_json()
    facts = {
        "identity": identity,
        "rows": writer.rows,
        "tokens": writer.tokens,
        "label_tokens": writer.labels,
        "tokens_file": writer.tokens_file,
        "tagged": tagged,
        "paired": any(each.form.kind == "preference" for each in files),
        "tokens_sha256": digest_file(out / writer.tokens_file),
    }
    write_json(out / MANIFEST, head | facts)
    (out / LOG).unlink()
    return Shards(out)


def _write(
    files: Sequence[RowFile],
    start: tuple[int, Place],
    encoder: RowEncoder,
    workers: int,
    writer: ShardWriter,
    counts: list[Counts],
    log: Any,
    progress: Progress,
) -> None:
    """The loop: chunks in, arrays out, a line in the log now and then."""
    try:
        with progress.task("rows", unit="rows") as task:
            for number, (chunk, place) in enumerate(_encoded(_chunks(files, start), encoder, workers), 1):
                writer.append(chunk, files[chunk.file].file.label)
                counts[chunk.file].add(chunk)
                task.advance(chunk.records)
                if number % COMMIT_CHUNKS == 0:
                    state = {"file": chunk.file, "place": [place.record, place.offset], "writer": writer.commit()}
                    _log(log, state | {"counts": [each.to_json() for each in counts]})
        writer.finish()
    finally:
        writer.close()


def _log(log: Any, line: dict[str, Any]) -> None:
    log.write(json.dumps(line) + "\n")
    log.flush()
    os.fsync(log.fileno())


def _describe(each: RowFile) -> dict[str, Any]:
    return {
        "file": each.file.label,
        "source": each.source.path,
        "format": each.form.name,
        "bytes": each.file.path.stat().st_size,
        "sha256": each.digest(),
        "columns": each.source.columns,
        "container": each.file.container,
    }


def _finished(out: Path, identity: str) -> Shards | None:
    """What a build of the same sources and settings left, when it ended."""
    if not (out / MANIFEST).is_file():
        return None
    found = Shards(out)
    return found if found.manifest["identity"] == identity else None


def _state(out: Path, identity: str) -> dict[str, Any] | None:
    """The last whole line of an interrupted build's log, when it is of the same sources and settings."""
    if not (out / LOG).is_file():
        return None
    lines = []
    for line in (out / LOG).read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break  # cut off by the kill
    if len(lines) < 2 or lines[0].get("identity") != identity:
        return None
    state: dict[str, Any] = lines[-1]
    return state


def _clear(out: Path) -> None:
    """Make room for new shards; InputError for a folder that holds anything else."""
    known = {MANIFEST, LOG, BAD_ROWS, "tokens.u16", "tokens.u32", "offsets.u64", "learned.bits", "labels.u32"}
    known |= {"origins.u64", "tags.u8", "shared.u32"}
    if strange := sorted(path.name for path in out.iterdir() if path.name not in known):
        raise InputError(f"{out} holds {strange[0]}, which is no part of shards: give a new folder")
    shutil.rmtree(out)


def _sum(counts: Sequence[Counts]) -> Counts:
    return sum(counts, Counts())


def _total(shards: Shards) -> Counts:
    return _sum([Counts.from_json(each["counts"]) for each in shards.manifest["files"]])


def read_rows(
    sources: Sequence[RowSource],
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    config: EncodeConfig,
    *,
    bad_file: Path | None = None,
    bad_rows: float = 0.01,
    most: int = 0,
) -> tuple[ListRows, Counts]:
    """Rows in memory (the first `most` records of each file, 0 for all), for small sets and for looking at them."""
    encoder = RowEncoder(tokenizer, template, config)
    files = resolve(sources)
    rows: list[TokenRow] = []
    tags: list[int] = []
    shared: list[int] = []
    total, told = Counts(), []
    for number, each in enumerate(files):
        left = most or -1
        for chunk, _ in _chunks([each], (0, Place())):
            taken = chunk if left < 0 else Chunk(number, chunk.form, chunk.raw, chunk.columns, chunk.records[:left])
            left -= len(taken.records) if left > 0 else 0
            found = encode_chunk(taken, encoder)
            total.add(found)
            rows += _token_rows(found, each.file.label)
            tags += found.tags.tolist()
            shared += found.shared.tolist()
            told += [(each.file.label, bad) for bad in found.bad]
            if left == 0:
                break
    where: Path | str = bad_file or "the first: " + "; ".join(f"{f}, line {b.number}: {b.detail}" for f, b in told[:3])
    if bad_file is not None:
        bad_file.parent.mkdir(parents=True, exist_ok=True)
        with open(bad_file, "w", encoding="utf-8", errors="replace") as handle:
            for file, bad in told:
                record = {
                    "file": file,
                    "line": bad.number,
                    "reason": bad.reason,
                    "detail": bad.detail,
                    "row": bad.excerpt,
                }
                handle.write(json.dumps(record, ensure_ascii=False) + "\n")
    check_bad(total, bad_rows, where)
    paired = any(each.form.kind == "preference" for each in files)
    return ListRows(rows, paired=paired, tags=tags, shared=shared), total


def _token_rows(chunk: EncodedChunk, file: str) -> Iterator[TokenRow]:
    start = 0
    for length, number in zip(chunk.lengths.tolist(), chunk.numbers.tolist(), strict=True):
        ids = tuple(chunk.ids[start : start + length].tolist())
        yield TokenRow(f"{file}:{number}", ids, tuple(chunk.learned[start : start + length].tolist()))
        start += length
