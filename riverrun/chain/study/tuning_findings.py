"""What a tuning study shows: figures of each method over its seeds, and the thresholds that a planner can use.

Two methods are compared question by question and seed by seed (a method without chance answers for every seed); one is
better where the 95 % interval of the paired difference lies above 0. Seeds ask the same questions, so the interval is
somewhat too narrow for questions never asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from riverrun.base.errors import InputError
from riverrun.chain.stage import read_jsonl
from riverrun.chain.study.study import Outcome
from riverrun.evaluate.statistics import PairedComparison, Rate, compare_outcomes

__all__ = ["Group", "groups_of", "table_of", "thresholds_of"]


@dataclass(frozen=True)
class Group:
    """All seeds of one method at one rank and one number of rows (`all_rows` of them where nothing is left out)."""

    method: str
    rank: int
    rows: int
    fewer: bool
    seeds: tuple[Outcome, ...]
    answers: tuple[tuple[bool, ...], ...]
    """Right or wrong, seed by seed, in the order of the questions."""

    @property
    def name(self) -> str:
        return self.method + (f" r={self.rank}" if self.rank else "")

    @property
    def rate(self) -> Rate:
        return Rate.of([answer for seed in self.answers for answer in seed])

    @property
    def range(self) -> tuple[float, float]:
        """Lowest and highest success of a seed."""
        shares = [sum(seed) / len(seed) for seed in self.answers]
        return min(shares), max(shares)

    def mean(self, *path: str) -> float | None:
        """Mean over the seeds of a figure in the results; None where there is none."""
        values = []
        for seed in self.seeds:
            value: Any = seed.result
            for key in path:
                value = value.get(key) if isinstance(value, Mapping) else None
            if value is not None:
                values.append(float(value))
        return sum(values) / len(values) if values else None

    def over(self, other: Group) -> PairedComparison:
        """This one's gain over another."""
        count = max(len(self.answers), len(other.answers))
        mine, theirs = (self._of(count), other._of(count))
        return compare_outcomes(theirs, mine)

    def _of(self, seeds: int) -> list[bool]:
        if len(self.answers) not in (1, seeds):
            raise InputError(f"{self.name} has {len(self.answers)} seeds, it is compared with {seeds}: use the same")
        return [answer for place in range(seeds) for answer in self.answers[place % len(self.answers)]]

    def figures(self) -> dict[str, Any]:
        low, high = self.range
        return {
            "method": self.method,
            "rank": self.rank,
            "rows": self.rows,
            "success": self.rate.as_dict() | {"lowest_seed": low, "highest_seed": high},
            "perplexity_ratio": self.mean("against_base", "perplexity", "ratio"),
            "sums_change": self.mean("against_base", "sums", "difference"),
            "instructions_change": self.mean("against_base", "instructions", "difference"),
            "peak_bytes": self.mean("training", "peak_bytes") or max(seed.peak_bytes for seed in self.seeds),
            "training_seconds": self.mean("training", "seconds"),
            "tokens_per_second": self.mean("training", "tokens_per_second"),
            "seconds": sum(seed.seconds for seed in self.seeds) / len(self.seeds),
        }


def groups_of(outcomes: Mapping[str, Outcome], out: Path) -> list[Group]:
    """The finished cells by method, rank and rows, in the order of the grid; the base comes first."""
    all_rows = int(outcomes["data"].result["train"])
    found: dict[tuple[str, int, int], list[Outcome]] = {}
    for name, outcome in outcomes.items():
        if name != "data":
            point = outcome.settings
            found.setdefault((point.get("method", "base"), point.get("rank", 0), point.get("rows", 0)), []).append(
                outcome
            )
    groups = []
    for (method, rank, rows), seeds in found.items():
        files = [out / "cells" / seed.name / "records.jsonl" for seed in seeds]
        answers = tuple(tuple(bool(row["success"]) for row in read_jsonl(file)) for file in files)
        groups.append(Group(method, rank, rows or all_rows, bool(rows), tuple(seeds), answers))
    return groups


def thresholds_of(groups: Sequence[Group], rank: int) -> dict[str, dict[str, Any]]:
    """name -> {value, why}; a threshold that the study does not show is left out."""
    out: dict[str, dict[str, Any]] = {}
    full_sets = [group for group in groups if not group.fewer]
    if (enough := _enough_rank([group for group in full_sets if group.method == "lora"])) is not None:
        out["enough_rank"] = enough
    by_rows = _by_rows(groups, rank)
    for name, first, second, said in (
        ("tuning_from_rows", ("lora", "full"), ("prompt", "retrieval"), "training is better than any prompt"),
        ("full_from_rows", ("full",), ("lora",), "full training is better than LoRA"),
    ):
        for rows, there in sorted(by_rows.items(), reverse=True):
            ours, theirs = ([there[method] for method in methods if method in there] for methods in (first, second))
            if not ours or not theirs:
                continue
            best, rival = max(ours, key=_rate), max(theirs, key=_rate)
            gain = best.over(rival)
            if gain.low <= 0:
                break  # with more rows only: the threshold is where all larger numbers agree
            out[name] = {"value": rows, "why": f"from {rows} rows {said}: {_said(best, rival, gain)}"}
    pair = [next((g for g in full_sets if g.method == m and g.rank == rank), None) for m in ("lora", "qlora")]
    if (lora := pair[0]) is not None and (qlora := pair[1]) is not None:
        loss = lora.over(qlora)
        out["qlora_loss"] = {"value": round(loss.difference, 4), "why": _said(lora, qlora, loss)}
    return out


def _rate(group: Group) -> float:
    return group.rate.value


def _enough_rank(groups: Sequence[Group]) -> dict[str, Any] | None:
    """The smallest rank that the best one is not proven better than; None where only one was tried."""
    if len(groups) < 2:
        return None
    best = max(groups, key=_rate)
    for group in sorted(groups, key=lambda each: each.rank):
        if group is best:
            others = ", ".join(str(each.rank) for each in groups if each is not best)
            smaller = ", and smaller ones are proven worse" if any(each.rank < best.rank for each in groups) else ""
            return {"value": group.rank, "why": f"rank {group.rank} is the best{smaller} (tried beside it: {others})"}
        gain = best.over(group)
        if gain.low <= 0:
            return {"value": group.rank, "why": f"no higher rank is proven better: {_said(best, group, gain)}"}
    return None


def _by_rows(groups: Sequence[Group], rank: int) -> dict[int, dict[str, Group]]:
    """rows -> method -> group, LoRA at one rank. A prompt holds a few examples however many there are."""
    out: dict[int, dict[str, Group]] = {}
    for group in sorted(groups, key=lambda each: each.rows):
        if group.method in ("retrieval", "full") or (group.method == "lora" and group.rank == rank):
            out.setdefault(group.rows, {})[group.method] = group
    prompts = [group for group in groups if group.method == "prompt"]
    for there in out.values():
        there |= dict.fromkeys(["prompt"], prompts[0]) if prompts else {}
    return out


def _said(one: Group, other: Group, gain: PairedComparison) -> str:
    rates = f"{one.name} {one.rate.value:.3f}, {other.name} {other.rate.value:.3f}"
    return f"{rates}, difference {gain.difference:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"


def table_of(groups: Sequence[Group], thresholds: Mapping[str, Mapping[str, Any]], source: str) -> dict[str, Any]:
    """The findings in the form of `plan/tables/tuning.yaml`; every figure with its source."""
    measured = {}
    for group in groups:
        if group.method in ("lora", "qlora", "full") and not group.fewer:
            figures = group.figures()
            name = group.name.replace(" r=", "-r")
            measured[name] = {
                "success": round(figures["success"]["value"], 4),
                "perplexity_ratio": round(figures["perplexity_ratio"] or 1.0, 4),
                "peak_bytes": round(figures["peak_bytes"]),
                "tokens_per_second": round(figures["tokens_per_second"] or 0.0),
                "source": source,
            }
    return {
        "thresholds": {
            name: {"value": each["value"], "source": f"{source}; {each['why']}"} for name, each in thresholds.items()
        },
        "measured": measured,
    }
