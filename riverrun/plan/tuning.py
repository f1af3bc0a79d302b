"""Which way to adapt a model: advice from the figures of a tuning study (`riverrun study run recipes/tuning_study`).

The thresholds stand in tables/tuning.yaml, each with the study it comes from; a study writes a new table beside its
page. They hold for models and tasks like those studied and say so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from riverrun.base.errors import InputError
from riverrun.plan.tables import read_table

__all__ = ["Advice", "advise", "threshold"]


@dataclass(frozen=True, slots=True)
class Advice:
    """A way to adapt a model and why; rank 0 where there is none."""

    method: Literal["prompt", "lora", "full"]
    rank: int
    why: str


def threshold(name: str) -> float | None:
    """A figure of the study, None where it showed none."""
    table = read_table("tuning", "thresholds")
    return float(table[name]["value"]) if name in table else None


def advise(rows: int) -> Advice:
    """The cheapest way that no dearer one is shown to beat with so many rows of training data."""
    if rows < 0:
        raise InputError(f"a number of rows cannot be {rows}: count the training rows")
    table = read_table("tuning", "thresholds")
    if not table:
        raise InputError(
            "plan/tables/tuning.yaml holds no threshold: run `riverrun study run recipes/tuning_study` and put its "
            "tuning.yaml there"
        )

    def why(name: str) -> str:
        return str(table[name]["source"])

    tuning, full = threshold("tuning_from_rows"), threshold("full_from_rows")
    if tuning is None:
        return Advice("prompt", 0, "no training was shown to be better than examples in the prompt")
    if rows < tuning:
        said = f"{rows} rows are fewer than the {tuning:.0f} from which training was better than examples in the prompt"
        return Advice("prompt", 0, f"{said} ({why('tuning_from_rows')})")
    if full is not None and rows >= full:
        return Advice("full", 0, f"from {full:.0f} rows training all weights was better ({why('full_from_rows')})")
    rank = int(threshold("enough_rank") or 0)
    if not rank:
        raise InputError("plan/tables/tuning.yaml has no enough_rank: run the tuning study with LoRA among its methods")
    return Advice("lora", rank, f"no rank above {rank} was shown to be better ({why('enough_rank')})")
