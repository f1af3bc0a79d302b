"""This machine as the planner wants it: free memory, cores, operations and bytes a second, measured in half a second.

The trainer's own product is measured where torch is installed, numpy's otherwise.
"""

from __future__ import annotations

import importlib.util
import os
import time
from functools import cache
from pathlib import Path

import numpy as np

from riverrun.plan.hardware import Hardware

__all__ = ["available_memory", "dtype_name", "measure_machine", "measure_rate"]

_MEMINFO = Path("/proc/meminfo")
_UNKNOWN_MEMORY = 8_000_000_000
REACHED = 0.35
"""Share of a bare matrix product's rate that a whole training step reaches: measured with 135M parameters, bf16, packs
of 768 tokens, 2 cores. Small layers, attention, norms and the optimizer take the rest."""


def available_memory(memory_gb: float | None) -> int:
    """Bytes to plan for: what the spec grants, else what is free now (8 GB where the system does not say)."""
    if memory_gb is not None:
        return round(memory_gb * 1e9)
    if _MEMINFO.exists():
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return _UNKNOWN_MEMORY


@cache
def dtype_name(wanted: str) -> str:
    """fp32 or bf16: the type that a fine-tune with `dtype: wanted` computes in on this machine."""
    if wanted != "auto" or importlib.util.find_spec("torch") is None:
        return "bf16" if wanted == "bfloat16" else "fp32"
    from riverrun.train.finetune import compute_dtype

    return "bf16" if "bfloat16" in str(compute_dtype("auto")) else "fp32"


def measure_rate(dtype: str) -> float:
    """Operations a second of a bare matrix product in one type of operands."""
    return next(iter(_rates(dtype).values()))


@cache
def _rates(dtype: str) -> dict[str, float]:
    if importlib.util.find_spec("torch") is not None:
        from riverrun.train.finetune import compute_dtype
        from riverrun.train.probe import matmul_rate

        full = {"fp32": "float32", "bf16": "bfloat16"}[dtype]
        return {dtype: matmul_rate(compute_dtype(full))}
    left, right = np.ones((2048, 576), np.float32), np.ones((576, 1536), np.float32)
    return {"fp32": 2.0 * 2048 * 576 * 1536 / _best(lambda: left @ right)}


def _best(work: object, seconds: float = 0.2) -> float:
    """Shortest of the runs that fit into `seconds`."""
    assert callable(work)
    best, deadline = float("inf"), time.monotonic() + seconds
    while best == float("inf") or time.monotonic() < deadline:
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
    return best


@cache
def _bandwidth() -> float:
    """Bytes a second of one reading pass over 64 MB, with one thread."""
    block = np.ones(16_000_000, np.float32)
    return block.nbytes / _best(lambda: block.sum())


def measure_machine(dtype: str, memory_gb: float | None) -> Hardware:
    """Hardware with the rate that training reaches in one type of operands."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    rates = {name: REACHED * rate for name, rate in _rates(dtype).items()}
    return Hardware("this machine", available_memory(memory_gb), rates, cores, _bandwidth())
