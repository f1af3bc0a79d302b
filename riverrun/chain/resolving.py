"""What a training recipe leaves to the machine (`auto`), chosen by the planner from the free memory and the rows.

The trainer takes resolved values and knows no planner; the planner reads no files. Here the rows are counted, the
memory is looked at, and a sentence says why each value was taken, before any weight is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from riverrun.base.config import load_yaml
from riverrun.base.memory import free_memory
from riverrun.chain.machine import measure_machine
from riverrun.models.config import ModelConfig
from riverrun.plan.flow import Choice, Method, Plan, Work, choose
from riverrun.plan.hardware import Hardware
from riverrun.plan.shape import LINEARS
from riverrun.plan.tables import read_values
from riverrun.plan.training import TrainMethod
from riverrun.train.recipe import TrainConfig

__all__ = ["ResolvedRecipe", "Volume", "as_it_began", "count_volume", "is_open", "resolve", "resolve_recipe"]

MOST_TOKENS = 2048
"""The largest micro-batch that is tried: larger ones are no faster."""
SPARE = 0.9
"""Share of the free memory to plan for: other programs want some, too."""


@dataclass(frozen=True, slots=True)
class Volume:
    """What is trained on: tokens and label tokens of the whole run, mean and longest row, optimizer steps, rows."""

    tokens: int
    label_tokens: int
    length: int
    longest: int
    steps: int
    rows: int = 0


@dataclass(frozen=True, slots=True)
class ResolvedRecipe:
    """The recipe with values, why each was taken, and the plan with its line items."""

    config: TrainConfig
    notes: tuple[str, ...]
    plan: Plan


def as_it_began(config: TrainConfig, out: Path) -> TrainConfig:
    """The recipe with the values that a run in `out` began with: what it chose then is no choice when it goes on."""
    file = out / "resolved.yaml"
    if not file.is_file():
        return config
    before = load_yaml(file)
    if _rate_is_open(config) and "learning_rate" in before.get("optimizer", {}):
        config = _with_rate(config, before["optimizer"]["learning_rate"])
    for section, keys in _OPEN.items():
        own = getattr(config, section)
        stored = before.get(section) or {}
        update = {key: stored[key] for key in keys if getattr(own, key) == "auto" and key in stored}
        config = config.model_copy(update={section: own.model_copy(update=update)})
    return config


def is_open(config: TrainConfig) -> bool:
    """Whether the recipe leaves something to the memory."""
    return any(getattr(getattr(config, section), key) == "auto" for section, keys in _OPEN.items() for key in keys)


def _rate_is_open(config: TrainConfig) -> bool:
    """The rate follows the method where neither is stated: what suits adapters destroys a model."""
    return config.method.name == "auto" and "learning_rate" not in config.optimizer.model_fields_set


def _with_rate(config: TrainConfig, rate: float) -> TrainConfig:
    return config.model_copy(update={"optimizer": config.optimizer.model_copy(update={"learning_rate": rate})})


_OPEN = {"method": ("name", "rank"), "batch": ("micro_tokens", "recompute")}


def resolve_recipe(config: TrainConfig, *, memory_gb: float | None = None) -> ResolvedRecipe:
    """Read the rows, look at this machine, and resolve. CapacityError says what would fit where nothing does."""
    from riverrun.train.build import compute_dtype, open_model

    opened = open_model(config.model)
    dtype = "bf16" if "bfloat16" in str(compute_dtype(config.run.dtype)) else "fp32"
    hardware = measure_machine(dtype, memory_gb)
    available = hardware.memory_bytes if memory_gb else round(SPARE * (free_memory() or hardware.memory_bytes))
    return resolve(config, opened.config, count_volume(config, opened), hardware, dtype=dtype, available=available)


def count_volume(config: TrainConfig, opened: Any) -> Volume:
    """Tokenise the rows; no row is left out for a micro-batch that is not chosen yet."""
    from riverrun.train.rows import load_rows

    given = config.batch.micro_tokens
    limit = given if isinstance(given, int) else max(config.batch.global_tokens, config.data.max_tokens)
    lengths, tokens, labels = load_rows(config, opened, micro_tokens=limit).sizes(config, opened)
    own = config.run.length
    times = {
        "epochs": own.amount,
        "steps": own.amount * config.batch.global_tokens / tokens,
        "tokens": own.amount / tokens,
        "seconds": 1.0,
    }[own.unit]
    every = max(1, round(times * tokens))
    return Volume(
        tokens=every,
        label_tokens=min(every, round(times * labels)),
        length=max(1, sum(lengths) // len(lengths)),
        longest=max(lengths),
        steps=max(1, every // config.batch.global_tokens),
        rows=len(lengths) if config.objective.name == "sft" else 0,
    )


def resolve(
    config: TrainConfig, shape: ModelConfig, volume: Volume, hardware: Hardware, *, dtype: str, available: int
) -> ResolvedRecipe:
    """Method, rank, micro-batch and recompute of a recipe; what it states is kept."""
    given, again = config.batch.micro_tokens, config.batch.recompute
    most = given if isinstance(given, int) else max(64, volume.longest, min(MOST_TOKENS, config.batch.global_tokens))
    least = most if isinstance(given, int) else min(most, max(64, volume.longest, 256))
    work = Work(
        tokens=volume.tokens,
        label_tokens=volume.label_tokens,
        micro_tokens=most,
        length=volume.length,
        least_tokens=least,
        global_tokens=config.batch.global_tokens,
        steps=volume.steps,
        rank=0 if config.method.rank == "auto" else config.method.rank,
        targets=config.method.targets or LINEARS,
        dtype=dtype,
        compute=dtype,
        recompute=None if again == "auto" else config.batch.recompute_share,
        optimizer=config.optimizer.name,
        master=config.optimizer.master,
        rows=volume.rows,
    )
    named = config.method.name
    if config.model.new and named == "auto":
        named = "full"
    offered = get_args(TrainMethod) if not config.model.new else ("full", "lora")
    plan = choose(
        shape, hardware, work, method=cast(Choice, named), offered=cast(Any, offered), available_bytes=available
    )
    made, notes = _with(config, plan.method()), _notes(config, plan)
    if plan.chosen == "full" and _rate_is_open(config) and not config.model.new:
        made = _with_rate(made, read_values("training", "choices")["full_rate"])
        notes += (f"optimizer.learning_rate {made.optimizer.learning_rate:g}: what all weights bear",)
    return ResolvedRecipe(made, notes, plan)


def _with(config: TrainConfig, chosen: Method) -> TrainConfig:
    method: dict[str, Any] = {"name": chosen.name}
    if config.method.rank == "auto":
        method["rank"] = chosen.rank or 16
    batch: dict[str, Any] = {"micro_tokens": chosen.micro_tokens}
    if config.batch.recompute == "auto":
        batch["recompute"] = chosen.recompute
    return config.model_copy(
        update={
            "method": config.method.model_copy(update=method),
            "batch": config.batch.model_copy(update=batch),
        }
    )


def _notes(config: TrainConfig, plan: Plan) -> tuple[str, ...]:
    chosen, notes = plan.method(), []
    if config.method.name == "auto":
        notes.append(f"method {chosen.name}: {plan.why}")
    if config.method.rank == "auto" and chosen.rank:
        notes += [f"method.{note}" for note in chosen.notes]
    room = f"{chosen.memory_bytes / 1e9:.2f} GB of {plan.available_bytes / 1e9:.2f} GB"
    if config.batch.micro_tokens == "auto":
        notes.append(f"batch.micro_tokens {chosen.micro_tokens}: {room}")
    if config.batch.recompute == "auto":
        why = "all activations fit" if not chosen.recompute else "less would not fit"
        notes.append(f"batch.recompute {chosen.recompute:g}: {why}, {room}")
    items = sorted(chosen.items, key=lambda item: -item["bytes"])
    notes.append("memory: " + ", ".join(f"{i['name']} {i['bytes'] / 1e9:.2f} GB ({i['formula']})" for i in items))
    return tuple(notes)
