"""Rows that a run's summary.json answers: task success, choice, retention, four bits, the agent, predicted memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.common import Row
from riverrun.chain.summary import flatten

__all__ = ["CHOICE", "MEMORY", "RETENTION", "THROUGH", "TOOLS", "W4", "memory_rows", "score_rows"]

TOOLS = "sealed tool tasks, n ≥ 240: base → tuned"
CHOICE = "open-book circular multiple choice, 60 questions × 4 rotations"
RETENTION = "retention"
W4 = "after W4"
THROUGH = "through HTTP and agent"
MEMORY = "peak resident memory of the fine-tune against the dry run's prediction"


class Figures:
    """Figures of a summary by dotted name; one that is not there is None."""

    def __init__(self, summary: Mapping[str, Any]) -> None:
        self._flat = dict(flatten(summary))

    def get(self, name: str, scale: float = 1.0) -> float | None:
        value = self._flat.get(name)
        return None if value is None else float(value) * scale

    def text(self, name: str) -> str:
        return str(self._flat.get(name, "?"))

    def interval(self, prefix: str) -> str:
        """ "81.2 to 89.9" in points; empty when absent."""
        low, high = self.get(f"{prefix}.low", 100), self.get(f"{prefix}.high", 100)
        return "" if low is None or high is None else f"95 % interval {low:.1f} to {high:.1f}"


def score_rows(summary: Mapping[str, Any], *, judged: bool) -> list[Row]:
    """One row of the issue each, with its details after it. Not judged when the run was made on a tiny budget."""
    figures = Figures(summary)
    holds = True if judged else None
    tuned, n = figures.get("scores.tool.tuned.success", 100), figures.get("scores.tool.tuned.n")
    base = {"base": value} if (value := figures.get("scores.tool.base.success", 100)) is not None else {}
    choice_base = {"base": value} if (value := figures.get("scores.choice.base.perf", 100)) is not None else {}
    drop = {
        variant: value
        for variant in ("q4-base-adapter", "q4-merged")
        if (value := figures.get(f"quantize.{variant}.drop.difference", 100)) is not None
    }
    through = figures.get("agent.through.difference", 100)
    agent = figures.get("agent.success", 100)
    rows = [
        Row(TOOLS, tuned, "%", 85, "at least", base, figures.interval("scores.tool.tuned"), holds=holds),
        Row(f"{TOOLS}: questions", n, "", 240, "at least", holds=holds),
        Row(f"{TOOLS}: gain", figures.get("scores.tool.gain.difference", 100), "points"),
        Row(CHOICE, figures.get("scores.choice.tuned.perf", 100), "% perf", 50, "at least", choice_base, holds=holds),
        Row(
            f"{CHOICE}: lower bound of the paired gain",
            figures.get("scores.choice.gain.low", 100),
            "points",
            0,
            "above",
            holds=holds,
        ),
        Row(f"{CHOICE}: questions", figures.get("scores.choice.tuned.n"), "", 60, "at least", holds=holds),
        Row(RETENTION, figures.get("retention.perplexity_ratio"), "× base perplexity", 1.15, holds=holds),
        Row(
            f"{RETENTION}: two-digit sums, upper bound of the paired change",
            figures.get("retention.sums_change.high", 100),
            "points",
            0,
            "at least",
            note=f"base {figures.text('retention.sums_base')}, tuned {figures.text('retention.sums_tuned')}",
            holds=holds,
        ),
        Row(
            W4,
            figures.get("drop.high", 100),
            "points, upper bound of the drop",
            6,
            "below",
            drop,
            f"chosen: {figures.text('quantize.chosen')}",
            holds=holds,
        ),
        Row(
            THROUGH,
            through,
            "points below the model's own",
            2,
            "within",
            note="" if agent is None else f"{agent:.1f} % by the agent, {figures.interval('agent')}",
            holds=holds,
        ),
    ]
    return rows


def memory_rows(summary: Mapping[str, Any], *, judged: bool) -> list[Row]:
    """Measured against predicted, in per cent of the prediction."""
    figures = Figures(summary)
    predicted = figures.get(f"plan.predicted.{figures.text('plan.chosen')}.memory_bytes", 1e-9)
    measured = figures.get("stages.finetune.peak_bytes", 1e-9)
    if predicted is None or measured is None:
        return [Row(MEMORY, None, note="the run has no finished fine-tune")]
    note = f"predicted {predicted:.2f} GB, measured {measured:.2f} GB"
    holds = True if judged else None
    return [Row(MEMORY, 100 * (measured / predicted - 1), "% off", 15, "within", note=note, holds=holds)]
