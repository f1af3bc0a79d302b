"""What this machine multiplies: operations a second of matrix products in the shapes of training."""

from __future__ import annotations

import time

import torch

__all__ = ["matmul_rate"]

ROWS, INNER, OUTER = 2048, 576, 1536


def matmul_rate(dtype: torch.dtype, *, seconds: float = 0.2) -> float:
    """FLOP/s of [2048, 576] x [576, 1536] with all threads: the best of the runs that fit into `seconds`."""
    left, right = torch.ones(ROWS, INNER, dtype=dtype), torch.ones(INNER, OUTER, dtype=dtype)
    best, deadline = float("inf"), time.monotonic() + seconds
    while best == float("inf") or time.monotonic() < deadline:
        began = time.perf_counter()
        torch.mm(left, right)
        best = min(best, time.perf_counter() - began)
    return 2.0 * ROWS * INNER * OUTER / best
