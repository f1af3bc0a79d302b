"""Files of rows to shards of token rows on disk, by any number of processes, resumable after kill -9.

Every record that is read is kept, set aside with its reason, or dropped for its length; the counts are checked. What is
on disk is the same to the byte for any number of workers and however often the build was killed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from riverrun.base.artifacts import digest_file, digest_json, write_json
from riverrun.base.errors import InputError
from riverrun.base.progress import Progress
from riverrun.data.chunks import Chunk, EncodedChunk, encode_chunk
from riverrun.data.corpus import RowFile, RowSource, resolve
from riverrun.data.counts import Counts, check_bad
from riverrun.data.encoding import EncodeConfig, RowEncoder
from riverrun.data.records import Place, Record, read_records
from riverrun.data.shard_worker import Worker
from riverrun.data.shards import BAD_ROWS, FORMAT, MANIFEST, Shards, ShardWriter
from riverrun.models.chat import ChatTemplate
from riverrun.models.tokenizer import Tokenizer

__all__ = ["SMALL", "build", "build_files", "chunks", "counts_of", "head_of", "text_bytes", "tokenizer_digest"]

LOG = "commit.log"
CHUNK_RECORDS, CHUNK_BYTES = 1024, 768 << 10
COMMIT_CHUNKS = 64
SMALL = 8 << 20
"""Bytes of files that this process encodes alone unless workers are asked for."""


def tokenizer_digest(tokenizer: Tokenizer) -> str:
    """sha256 of everything that decides a text's ids and their ends."""
    return digest_json([tokenizer.to_json(), tokenizer.bos_id, list(tokenizer.end_ids)])


def chunks(files: Sequence[RowFile], start: tuple[int, Place]) -> Iterator[tuple[Chunk, Place]]:
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
    given: Iterator[tuple[Chunk, Place]], encoder: RowEncoder, workers: int
) -> Iterator[tuple[EncodedChunk, Place]]:
    """The chunks encoded, in their order. One worker is this process."""
    if workers <= 1:
        for chunk, place in given:
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
        for chunk, place in given:
            waiting.append((pool.submit(run, chunk), place))
            if len(waiting) >= 2 * workers + 1:
                future, done = waiting.popleft()
                yield future.result(), done
        while waiting:
            future, done = waiting.popleft()
            yield future.result(), done


def text_bytes(files: Sequence[RowFile]) -> int:
    """About how much text the files hold: packed ones (gzip, Parquet) four times their size."""
    packed = [each.file.packed or each.file.container == "parquet" for each in files]
    return sum(each.file.path.stat().st_size * (4 if p else 1) for each, p in zip(files, packed, strict=True))


def _workers(asked: int, files: Sequence[RowFile]) -> int:
    """Processes to use: those asked for, or one for each core where there is enough to do."""
    if asked:
        return asked
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 1 if text_bytes(files) < SMALL else cores


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
    shards = build_files(files, head_of(files, encoder), out, encoder, workers=workers, progress=progress)
    refuse = f"the limit is {config.max_tokens} tokens: raise it, or say another overlong"
    check_bad(counts_of(shards), bad_rows, out / BAD_ROWS, refuse=refuse if config.overlong == "refuse" else "")
    return shards


def head_of(files: Sequence[RowFile], encoder: RowEncoder) -> dict[str, Any]:
    """What shards are of: the beginning of their manifest. Its `digest_json` is their identity."""
    return {
        "format": FORMAT,
        "tokenizer_sha256": tokenizer_digest(encoder.tokenizer),
        "template_sha256": encoder.bulk.template.sha256 if encoder.bulk else "",
        "vocab_size": encoder.tokenizer.vocab_size,
        "settings": encoder.config.model_dump(),
        "files": [_describe(each) for each in files],
    }


def build_files(
    files: Sequence[RowFile],
    head: dict[str, Any],
    out: Path,
    encoder: RowEncoder,
    *,
    workers: int = 0,
    progress: Progress,
) -> Shards:
    """`build` of files whose formats are known, without a look at how many rows were set aside."""
    identity = digest_json(head)
    if (done := _finished(out, identity)) is not None:
        return done
    state = _state(out, identity)
    if state is None and out.exists():
        _clear(out)
    tagged = any(each.form.kind in ("preference", "kto") for each in files)
    writer = ShardWriter(out, head["vocab_size"], tagged=tagged, state=state["writer"] if state else None)
    counts = [Counts.from_json(each) for each in state["counts"]] if state else [Counts() for _ in files]
    start = (state["file"], Place(*state["place"])) if state else (0, Place())
    with open(out / LOG, "a", encoding="utf-8") as log:
        if state is None:
            _log(log, {"identity": identity})
        _write(files, start, encoder, _workers(workers, files), writer, counts, log, progress)
    for found in counts:
        found.check()
    described = [each | {"counts": found.to_json()} for each, found in zip(head["files"], counts, strict=True)]
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
    write_json(out / MANIFEST, head | {"files": described} | facts)
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
            for number, (chunk, place) in enumerate(_encoded(chunks(files, start), encoder, workers), 1):
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


def counts_of(shards: Shards) -> Counts:
    """What became of the records that shards were built from."""
    return sum((Counts.from_json(each["counts"]) for each in shards.manifest["files"]), Counts())
