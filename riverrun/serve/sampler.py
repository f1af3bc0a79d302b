"""Logits to the next token: greedy, or temperature with top-k and top-p from the request's own seeded stream."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from riverrun.base.types import SamplingParams

__all__ = ["choose", "generator"]


TINY = 1e-30
"""Lower temperatures are this one, which is greedy already and still a number in fp32."""
HEAD = 512
"""Tokens that top_p looks at first; nearly always they hold its share, and the rest need not be sorted."""


def generator(params: SamplingParams) -> np.random.Generator:
    """The random stream of one request; without a seed it is fresh."""
    return np.random.default_rng(params.seed)


def choose(logits: NDArray[np.float32], params: SamplingParams, source: np.random.Generator) -> int:
    """One token id from [vocabulary] logits; temperature 0 is the greedy choice. Of equal logits the lower id is first.

    Sorting a vocabulary of 49,152 takes ten times as long as all the rest, so no more is sorted than has to be.
    """
    if params.temperature == 0.0:
        return int(logits.argmax())
    with np.errstate(over="ignore"):  # a tiny temperature makes -inf of what is never drawn
        weights = np.exp((logits - logits.max()) / np.float32(max(params.temperature, TINY)))
    all_of_them = weights.sum(dtype=np.float64)
    if params.top_k or params.top_p < 1.0:
        ids = _first(logits, weights, params, all_of_them)
        weights = weights[ids]
    reached = weights.cumsum(dtype=np.float64)
    if params.top_p < 1.0:
        whole = reached[-1] if params.top_k else all_of_them
        reached = reached[: int(np.searchsorted(reached, params.top_p * whole)) + 1]
    place = min(int(np.searchsorted(reached, source.random() * reached[-1], side="right")), len(reached) - 1)
    return int(ids[place]) if params.top_k or params.top_p < 1.0 else place


def _first(
    logits: NDArray[np.float32], weights: NDArray[np.float32], params: SamplingParams, whole: float
) -> NDArray[np.int64]:
    """Ids in falling order of their logits: the first top_k, and at least so many as make up top_p."""
    wanted = params.top_k or HEAD
    if wanted < len(logits):
        least = np.partition(logits, -wanted)[-wanted]
        ids = np.flatnonzero(logits >= least)
        if params.top_k or weights[ids].sum(dtype=np.float64) >= params.top_p * whole:
            ids = ids[np.argsort(-logits[ids], kind="stable")]
            return ids[: params.top_k or None]
    return np.argsort(-logits, kind="stable")[: params.top_k or None]
