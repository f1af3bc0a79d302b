"""A process that encodes chunks: `python -m riverrun.data.shard_worker`, frames in on stdin, frames out on stdout.

A frame is its length in eight bytes and a line of JSON with what follows it. The first holds tokenizer, template and
settings. It ends when its input does, so that it does not outlive who started it.
"""

from __future__ import annotations

import gc
import json
import os
import struct
import subprocess
import sys
from collections.abc import Mapping
from typing import IO, Any

from riverrun.base.config import build_config
from riverrun.base.errors import RiverrunError
from riverrun.base.optional import require
from riverrun.data.chunks import Chunk, EncodedChunk, encode_chunk
from riverrun.data.encoding import EncodeConfig, RowEncoder
from riverrun.data.formats import FORMATS
from riverrun.data.records import Place, Record
from riverrun.models.chat import ChatTemplate
from riverrun.models.tokenizer import Tokenizer

__all__ = ["Worker", "main"]

_LENGTH = struct.Struct("<Q")


def _send(pipe: IO[bytes], head: Mapping[str, Any], data: bytes = b"") -> None:
    line = json.dumps(head).encode() + b"\n"
    pipe.write(_LENGTH.pack(len(line) + len(data)))
    pipe.write(line)
    pipe.write(data)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> tuple[dict[str, Any], memoryview] | None:
    start = pipe.read(_LENGTH.size)
    if len(start) < _LENGTH.size:
        return None
    (size,) = _LENGTH.unpack(start)
    data = pipe.read(size)
    if len(data) < size:
        return None
    end = data.index(b"\n")
    return json.loads(data[:end]), memoryview(data)[end + 1 :]


class Worker:
    """The other end: starts the process and asks it for one chunk at a time."""

    def __init__(self, encoder: RowEncoder) -> None:
        template = encoder.bulk.template if encoder.bulk else None
        # importing must not depend on where this process was started; its cores are shared by processes, not threads
        path = os.pathsep.join(filter(None, sys.path))
        environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": path}
        command = [sys.executable, "-m", "riverrun.data.shard_worker"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        assert self._process.stdin is not None
        head = {
            "tokenizer": encoder.tokenizer.to_json(),
            "bos_id": encoder.tokenizer.bos_id,
            "end_ids": encoder.tokenizer.end_ids,
            "template": template.named if template else None,
            "bos_token": template.bos_token if template else "",
            "eos_token": template.eos_token if template else "",
            "config": encoder.config.model_dump(),
        }
        _send(self._process.stdin, head)

    def encode(self, chunk: Chunk) -> EncodedChunk:
        """Encode one chunk there; RiverrunError when the process has died."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        records = chunk.records
        head = {
            "file": chunk.file,
            "format": chunk.form.name,
            "raw": chunk.raw,
            "columns": dict(chunk.columns),
            "numbers": [record.number for record in records],
            "sizes": [len(record.data) for record in records],
            "cut": [i for i, record in enumerate(records) if not record.whole],
        }
        try:
            _send(self._process.stdin, head, b"".join(record.data for record in records))
            answer = _receive(self._process.stdout)
        except BrokenPipeError:
            answer = None
        if answer is None:
            code = self._process.wait()
            raise RiverrunError(f"a process that encodes rows ended with code {code} (-9: out of memory): see above")
        return EncodedChunk.from_bytes(bytes(answer[1]))

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            try:
                pipe.close()
            except BrokenPipeError:
                continue


def _chunk(head: Mapping[str, Any], data: memoryview) -> Chunk:
    records, at = [], 0
    for place, (number, size) in enumerate(zip(head["numbers"], head["sizes"], strict=True)):
        records.append(Record(number, bytes(data[at : at + size]), Place(), place not in head["cut"]))
        at += size
    return Chunk(head["file"], FORMATS[head["format"]], head["raw"], head["columns"], records)


def main() -> None:
    """Answer frames until the input ends."""
    given, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # what anything prints must not come between the frames
    start = _receive(given)
    if start is None:
        return
    head = start[0]
    backend = require("tokenizers", extra="serve").Tokenizer.from_str(head["tokenizer"])
    tokenizer = Tokenizer(backend, bos_id=head["bos_id"], end_ids=head["end_ids"])
    words = {key: head[key] for key in ("bos_token", "eos_token")}
    template = ChatTemplate(head["template"], **words) if head["template"] else None
    encoder = RowEncoder(tokenizer, template, build_config(EncodeConfig, head["config"]))
    del start, head
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)  # a chunk's rows are many objects and no circles: looking costs a tenth
    while (frame := _receive(given)) is not None:
        _send(answers, {}, encode_chunk(_chunk(*frame), encoder).to_bytes())


if __name__ == "__main__":
    main()
