"""`riverrun train run`: a recipe, what it would do, what it did."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

from riverrun.base.errors import InputError, nearest
from riverrun.base.progress import Mode, Progress

if TYPE_CHECKING:
    from riverrun.train.rows import LoadedRows

__all__ = ["run_command"]


def run_command(recipe: Path, overrides: Sequence[str], *, out: Path | None, dry_run: bool, progress: str) -> None:
    if progress not in get_args(Mode):
        raise InputError(f"--progress {progress}: no such form.{nearest(progress, get_args(Mode))}")
    from riverrun.train.recipe import load_recipe

    config = load_recipe(recipe, tuple(overrides))
    if dry_run:
        print(_preview(config))
        return
    from riverrun.base.memory import keep_freed_memory
    from riverrun.chain.rollouts import PolicyModel
    from riverrun.train.run import train_recipe

    keep_freed_memory()
    news = Progress(cast(Mode, progress))
    name = recipe.parent.name if recipe.name == "recipe.yaml" else recipe.stem
    folder = out or Path("runs") / name
    done = train_recipe(config, folder, progress=news, serve=PolicyModel)
    if done.status != "done":
        news.say(f"{done.status} at step {done.steps}: the same command goes on from there")
        return
    speed = done.row_tokens / max(1e-9, done.seconds)
    news.say(
        f"{done.folder}: {done.steps} steps, loss {done.losses[0]:.4f} to {done.losses[-1]:.4f}, {speed:.0f} tokens/s, "
        f"peak {done.peak_bytes / 1e9:.2f} GB"
    )


def _preview(config: object) -> str:
    """The resolved recipe and the work it is."""
    import yaml

    from riverrun.train.objectives.rollout import ProblemOrder
    from riverrun.train.recipe import TrainConfig
    from riverrun.train.run import prepare

    assert isinstance(config, TrainConfig)
    ready = prepare(config)
    lines = [yaml.safe_dump(ready.resolved.config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)]
    lines += [*ready.resolved.notes, f"length: {ready.length}; an epoch is {ready.sampler.steps_in_epoch(0)} steps"]
    if isinstance(ready.sampler, ProblemOrder):
        asked = ready.sampler.config
        lines.append(
            f"problems: {len(ready.rows.problems)}, {asked.problems} at a time with {asked.answers} answers each"
        )
        return "\n".join([*lines, *_left_out(ready.rows)])
    stats = ready.sampler.stats(1)
    lines.append(
        f"rows: {stats.rows} in {stats.packs} packs, {stats.row_tokens} tokens ({stats.label_tokens} learned, "
        f"{stats.computed_tokens} computed)"
    )
    return "\n".join([*lines, *_left_out(ready.rows)])


def _left_out(rows: LoadedRows) -> list[str]:
    """How many records are not learned, and the first of them."""
    total = rows.counts
    told = f"records: {total.records}, {total.kept} kept, {total.records - total.kept} left out"
    first = islice(rows.bad_lines(), 5)
    return [told, *(f"  {bad['file']}, line {bad['line']}: {bad['reason']}, {bad['detail']}" for bad in first)]
