"""`riverrun train`: a recipe, what it would do, what it did; the page of a run; runs side by side."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from riverrun.base.artifacts import write_json
from riverrun.base.errors import GateError, InputError, nearest
from riverrun.base.progress import Mode, Progress

if TYPE_CHECKING:
    from riverrun.train.recipe import TrainConfig
    from riverrun.train.rows import LoadedRows

__all__ = ["list_command", "report_command", "run_command"]


def run_command(recipe: Path, overrides: Sequence[str], *, out: Path | None, dry_run: bool, progress: str) -> None:
    if progress not in get_args(Mode):
        raise InputError(f"--progress {progress}: no such form.{nearest(progress, get_args(Mode))}")
    from riverrun.chain.abilities import is_ability
    from riverrun.train.recipe import load_recipe

    if is_ability(recipe):
        _run_ability(recipe, overrides, out=out, dry_run=dry_run, news=Progress(cast(Mode, progress)))
        return
    name = recipe.parent.name if recipe.name == "recipe.yaml" else recipe.stem
    folder = out or Path("runs") / name
    config, notes, items = _resolved(load_recipe(recipe, tuple(overrides)), folder)
    if dry_run:
        print("\n".join([*notes, _preview(config)]))
        return
    if items:
        write_json(folder / "plan.json", {"items": items, "notes": notes})
    from riverrun.base.memory import keep_freed_memory
    from riverrun.chain.rollouts import PolicyModel
    from riverrun.chain.words import word
    from riverrun.train.run import train_recipe

    keep_freed_memory()
    news = Progress(cast(Mode, progress))
    for note in notes:
        news.say(note)
    try:
        done = train_recipe(config, folder, progress=news, serve=PolicyModel)
    finally:  # a run that failed is the one to look at
        if (folder / "train.jsonl").is_file():
            news.say(word("finished", path=_page(folder)))
    if done.status != "done":
        news.say(f"{done.status} at step {done.steps}: the same command goes on from there")
        return
    speed = done.row_tokens / max(1e-9, done.seconds)
    news.say(
        f"{done.folder}: {done.steps} steps, loss {done.losses[0]:.4f} to {done.losses[-1]:.4f}, {speed:.0f} tokens/s, "
        f"peak {done.peak_bytes / 1e9:.2f} GB"
    )


def _resolved(config: TrainConfig, folder: Path) -> tuple[TrainConfig, tuple[str, ...], tuple[dict[str, Any], ...]]:
    """The recipe without what is left to the memory, why each value was taken, and the memory that is expected."""
    from riverrun.chain.resolving import as_it_began, is_open, resolve_recipe

    config = as_it_began(config, folder)
    if not is_open(config):
        return config, (), ()
    found = resolve_recipe(config)
    return found.config, found.notes, found.plan.method().items


def _page(folder: Path) -> Path:
    """Write a run's page; in the reader's browser's language unless RIVERRUN_LANG says one."""
    from riverrun.chain.words import language
    from riverrun.train.page import write_page

    return write_page(folder, lang=language() if os.environ.get("RIVERRUN_LANG") else "auto")


def report_command(folder: Path, *, show: bool) -> None:
    path = _page(folder).resolve()
    print(path)
    if show:
        import webbrowser

        webbrowser.open(path.as_uri())


def list_command(folders: Sequence[Path]) -> None:
    from riverrun.chain.words import language
    from riverrun.train.compare import compare

    print(compare(folders, chinese=language() == "zh"))


def _run_ability(recipe: Path, overrides: Sequence[str], *, out: Path | None, dry_run: bool, news: Progress) -> None:
    """A recipe with stages: GateError for the first goal that is missed."""
    import yaml

    from riverrun.base.memory import keep_freed_memory
    from riverrun.chain.abilities import load_ability, run_ability
    from riverrun.chain.words import word

    folder = out or Path("runs") / (recipe if recipe.is_dir() else recipe.parent).name
    if dry_run:
        config = load_ability(recipe, overrides)
        print(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True))
        return
    keep_freed_memory()
    try:
        result = run_ability(recipe, folder, overrides=overrides, progress=news)
    finally:
        for log in sorted(folder.glob("*/train.jsonl")):
            news.say(word("finished", path=_page(log.parent)))
    if result["status"] != "done":
        news.say(f"{result['status']} in stage {result['stage']}: the same command goes on from there")
        return
    news.say(f"{folder / 'ability.json'}: {result['stages']}")
    for goal in result["goals"]:
        if not goal["met"]:
            raise GateError(goal["name"], goal["value"], goal["goal"], f"Its pages are in {folder}")


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
