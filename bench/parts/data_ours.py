"""Rows to shards and one epoch of packs, in a process of its own: `python -m bench.parts.data_ours JOB ANSWER`.

The memory of this process and of those it starts is read from /proc five times a second: resident bytes of the largest,
and the proportional share of all together.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

from riverrun.base.artifacts import write_json
from riverrun.data.build import build
from riverrun.data.corpus import RowSource
from riverrun.data.encoding import EncodeConfig
from riverrun.data.sampler import RowSampler
from riverrun.models.load import load_checkpoint

__all__: list[str] = []


class Watch(threading.Thread):
    """Peak memory of a process and its children, in bytes; 0 where there is no /proc."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.largest = self.together = 0
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.2):
            own = os.getpid()
            tasks = Path(f"/proc/{own}/task")
            pids = [str(own)]
            for task in tasks.iterdir() if tasks.exists() else ():
                try:
                    pids += (task / "children").read_text().split()
                except OSError:
                    continue
            found = [_memory(pid) for pid in pids]
            self.largest = max(self.largest, *(resident for resident, _ in found))
            self.together = max(self.together, sum(share for _, share in found))


def _memory(pid: str) -> tuple[int, int]:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0, 0
    values = {line.split()[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith("kB")}
    return values.get("Rss:", 0), values.get("Pss:", 0)


def measure(job: dict[str, Any]) -> dict[str, Any]:
    opened = load_checkpoint(Path(job["model"]))
    out = Path(job["out"])
    shutil.rmtree(out, ignore_errors=True)
    watch = Watch()
    watch.start()
    began = time.perf_counter()
    config = EncodeConfig(max_tokens=job["max_tokens"])
    shards = build(
        [RowSource(path=job["rows"])], out, opened.tokenizer, opened.template, config, workers=job["workers"]
    )
    built = time.perf_counter()
    sampler = RowSampler(shards, micro_tokens=job["max_tokens"], packs_per_step=1, seed=0)
    stats = sampler.stats(1)
    packed = time.perf_counter()
    watch.over.set()
    watch.join()
    return {
        "seconds": packed - began,
        "build_seconds": built - began,
        "pack_seconds": packed - built,
        "rows": len(shards),
        "tokens": int(shards.manifest["tokens"]),
        "label_tokens": int(shards.manifest["label_tokens"]),
        "packs": stats.packs,
        "fill": stats.row_tokens / (stats.packs * job["max_tokens"]),
        "largest_bytes": watch.largest,
        "together_bytes": watch.together,
    }


if __name__ == "__main__":
    write_json(Path(sys.argv[2]), measure(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
