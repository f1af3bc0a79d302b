"""The machine beside the figures: cores, instruction sets, and what it multiplies and reads in this very run.

`python -m bench.parts.machine JOB ANSWER` measures (in a process of its own, since it loads torch).
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.common import ROOT, child
from riverrun.base.artifacts import write_json

__all__ = ["FLAGS", "machine"]

FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "bf16", "sve")
_SIZE = 2048
_READ_BYTES = 512 * 2**20


def machine() -> dict[str, Any]:
    """The machine section of a report. Its rates are measured now."""
    return child(sys.executable, ["-m", "bench.parts.machine"], {}, "machine") | {"commit": _commit()}


def _commit() -> str:
    """Short id of the commit that is measured, with + when files were changed since; empty outside of git."""
    asked = subprocess.run(
        ["git", "describe", "--always", "--dirty=+"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return asked.stdout.strip()


def _proc(file: str, key: str) -> str:
    path = Path("/proc") / file
    if path.exists():
        for line in path.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == key:
                return value.strip()
    return ""


def _best(work: Callable[[], object], seconds: float = 0.7) -> float:
    """Shortest of the runs that fit into `seconds`, the first not counted."""
    work()
    best, deadline = float("inf"), time.monotonic() + seconds
    while best == float("inf") or time.monotonic() < deadline:
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
    return best


def _gemm(dtype: Any) -> float:
    """GFLOP/s of a product of two square matrices with all threads."""
    import torch

    left, right = torch.randn(_SIZE, _SIZE).to(dtype), torch.randn(_SIZE, _SIZE).to(dtype)
    return 2.0 * _SIZE**3 / _best(lambda: torch.mm(left, right)) / 1e9


def measure() -> dict[str, Any]:
    """Names and rates; 10^9 units a second."""
    import torch

    block = torch.ones(_READ_BYTES // 4)
    affinity = getattr(os, "sched_getaffinity", None)
    flags = set(_proc("cpuinfo", "flags").split()) | set(_proc("cpuinfo", "Features").split())
    memory = _proc("meminfo", "MemTotal").split()
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _proc("cpuinfo", "model name") or platform.processor(),
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "flags": [flag for flag in FLAGS if flag in flags],
        "memory_bytes": int(memory[0]) * 1024 if memory else 0,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "gemm_fp32_gflops": _gemm(torch.float32),
        "gemm_bf16_gflops": _gemm(torch.bfloat16),
        "read_gb_per_second": block.nbytes / _best(block.sum) / 1e9,
    }


if __name__ == "__main__":
    write_json(Path(sys.argv[2]), measure())
