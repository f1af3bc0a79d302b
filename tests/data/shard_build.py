"""A small build of shards, slowed down so that it can be killed: `python -m tests.data.shard_build FOLDER WORKERS`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from riverrun.data import build as build_module
from riverrun.data.corpus import RowSource
from riverrun.data.encoding import EncodeConfig
from riverrun.models.chat import ChatTemplate
from riverrun.models.tokenizer import Tokenizer

CONFIG = EncodeConfig(max_tokens=64)
# that of tests/tiny_model.py, which needs torch
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] }}"
    "{{ '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def load(folder: Path) -> tuple[Tokenizer, ChatTemplate]:
    tokenizer = Tokenizer.from_file(folder / "tokenizer.json", end_ids=[2])
    return tokenizer, ChatTemplate(CHATML, eos_token="<|im_end|>")


def slow_build(folder: Path, workers: int) -> None:
    build_module.CHUNK_RECORDS, build_module.COMMIT_CHUNKS = 4, 3
    plain = build_module.encode_chunk

    def slow(*given: Any) -> Any:
        time.sleep(0.005)
        return plain(*given)

    build_module.encode_chunk = slow
    sources = [RowSource(path=str(folder / name)) for name in ("a.jsonl", "b.jsonl")]
    build_module.build(sources, folder / "out", *load(folder), CONFIG, workers=workers, bad_rows=0.1)


if __name__ == "__main__":
    slow_build(Path(sys.argv[1]), int(sys.argv[2]))
