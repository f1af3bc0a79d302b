"""`riverrun study run`: a grid of trainings and measurements, and where its page stands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast, get_args

from riverrun.base.errors import InputError, nearest
from riverrun.base.progress import Mode, Progress

__all__ = ["run_command"]


def run_command(recipe: Path, overrides: Sequence[str], *, out: Path | None, dry_run: bool, progress: str) -> None:
    if progress not in get_args(Mode):
        raise InputError(f"--progress {progress}: no such form.{nearest(progress, get_args(Mode))}")
    from riverrun.chain.study.runner import plan_text, run_study
    from riverrun.chain.study.study import load_study

    name = recipe.parent.name if recipe.name == "recipe.yaml" else recipe.stem
    folder = out or Path("runs") / name
    if dry_run:
        print(plan_text(load_study(recipe, overrides), folder))
        return
    news = Progress(cast(Mode, progress))
    run_study(recipe, overrides, folder, progress=news)
    news.say(f"{folder / 'index.html'}: the page; {folder / 'study.json'}: every figure")
