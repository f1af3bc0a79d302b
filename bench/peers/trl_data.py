"""Rows to packed token rows by datasets.map and TRL: `python trl_data.py JOB ANSWER`, in the peer's environment.

`setting`: batched (the map is given many rows at once), processes. The answer has rows, tokens and packs to compare.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any


def measure(job: dict[str, Any]) -> dict[str, Any]:
    setting = job["setting"]
    if setting.get("processes", 1) > 1:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
    else:
        os.environ["TOKENIZERS_PARALLELISM"] = "true"
    from datasets import load_dataset
    from transformers import AutoTokenizer
    from trl import pack_dataset

    tokenizer: Any = AutoTokenizer.from_pretrained(job["tokenizer"])

    def one(row: dict[str, Any]) -> dict[str, Any]:
        ids = tokenizer.apply_chat_template(row["messages"], tokenize=True, return_dict=True)["input_ids"]
        return {"input_ids": ids}

    def many(rows: dict[str, Any]) -> dict[str, Any]:
        texts = tokenizer.apply_chat_template(rows["messages"], tokenize=False)
        return {"input_ids": tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]}

    began = time.perf_counter()
    given = load_dataset("json", data_files=job["rows"], split="train", cache_dir=job["cache"])
    loaded = time.perf_counter()
    processes = setting.get("processes")
    batched = setting.get("batched", False)
    done = given.map(many if batched else one, batched=batched, num_proc=processes, remove_columns=given.column_names)
    mapped = time.perf_counter()
    packed = pack_dataset(done, job["max_tokens"], "bfd", {"num_proc": processes} if processes else None)
    ended = time.perf_counter()
    lengths = [len(ids) for ids in done.with_format("arrow")["input_ids"]] if len(done) <= 50_000 else None
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {
        "seconds": ended - began,
        "load_seconds": loaded - began,
        "map_seconds": mapped - loaded,
        "pack_seconds": ended - mapped,
        "rows": len(done),
        "tokens": sum(lengths) if lengths is not None else None,
        "packs": len(packed),
        "largest_bytes": peak * 1024,
    }


if __name__ == "__main__":
    answer = measure(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    Path(sys.argv[2]).write_text(json.dumps(answer), encoding="utf-8")
