"""Which sampler a recipe's rows get, and whether the beginnings that rows share are computed once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from riverrun.data.sampler import RowSampler
from riverrun.train.objectives.config import PolicyConfig
from riverrun.train.objectives.rollout import ProblemOrder
from riverrun.train.recipe import TrainConfig
from riverrun.train.rows import LoadedRows
from riverrun.train.sampler import GroupSampler, MixedPackSampler

__all__ = ["Sampler", "make_sampler"]

Sampler = RowSampler | MixedPackSampler | GroupSampler | ProblemOrder
SAVED = 0.1
"""Share of the tokens that a shared beginning must save: below it, packs by best fit are fuller and need no memory."""


def make_sampler(config: TrainConfig, rows: LoadedRows, micro_tokens: int) -> tuple[Sampler, bool | str, str]:
    """(sampler, `data.share_prefix` without auto, a sentence where auto chose).

    Pairs and judged answers share their prompt, two rows at a time. Conversations of one application often begin with
    the same system text and tools: such rows are planned by their beginnings, in memory (`plan_epoch`). All others, and
    what lies in shards, are packed by best fit from their lengths alone.
    """
    own = config.objective
    if isinstance(own, PolicyConfig):
        order = ProblemOrder(rows.problems, own.rollouts, seed=config.run.seed, iterations=own.iterations)
        return order, config.data.share_prefix, ""
    asked = config.data.share_prefix
    steps = -(-config.batch.global_tokens // micro_tokens)
    sizes: dict[str, Any] = {"micro_tokens": micro_tokens, "packs_per_step": steps, "seed": config.run.seed}
    if own.data == "judged":
        weights = [source.weight for source in config.data.train]
        groups = rows.groups if asked else [[replace(group, prefix=0) for group in some] for some in rows.groups]
        return GroupSampler(groups, weights, **sizes), bool(asked), ""
    assert rows.train is not None
    if own.data == "pairs" or asked is False or (asked == "auto" and not rows.in_memory):
        note = "" if own.data == "pairs" or asked is False else "data.share_prefix false: the rows lie in shards"
        share = bool(asked) and own.data == "pairs"
        return RowSampler(rows.train, **sizes, share=share), share, note
    shared = MixedPackSampler(rows.train, **sizes)
    if asked is True:
        return shared, True, ""
    stats = shared.stats(1)
    saved = 1 - stats.computed_tokens / stats.row_tokens
    told = f"computing shared beginnings once saves {100 * saved:.0f} % of the tokens"
    if saved >= SAVED:
        return shared, True, f"data.share_prefix true: {told}"
    return RowSampler(rows.train, **sizes), False, f"data.share_prefix false: {told}"
