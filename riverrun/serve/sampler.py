"""Logits to the next token: greedy, or temperature with top-k and top-p from the request's own seeded stream."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from riverrun.base.types import SamplingParams

__all__ = ["choose", "generator"]


def generator(params: SamplingParams) -> np.random.Generator:
    """The random stream of one request; without a seed it is fresh."""
    return np.random.default_rng(params.seed)


def choose(logits: NDArray[np.float32], params: SamplingParams, source: np.random.Generator) -> int:
    """One token id from [vocabulary] logits; temperature 0 is the greedy choice."""
    if params.temperature == 0.0:
        return int(logits.argmax())
    order = np.argsort(-logits, kind="stable")
    if params.top_k:
        order = order[: params.top_k]
    wide = logits[order].astype(np.float64)
    probabilities = np.exp((wide - wide[0]) / params.temperature)  # the difference first: no inf - inf when it is tiny
    probabilities /= probabilities.sum()
    if params.top_p < 1.0:
        kept = int(np.searchsorted(probabilities.cumsum(), params.top_p)) + 1
        order, probabilities = order[:kept], probabilities[:kept] / probabilities[:kept].sum()
    return int(order[source.choice(len(order), p=probabilities)])
