"""`riverrun run`: the dry run or the chain, then the report's place, some answers and what to do next."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast, get_args

from riverrun.base.errors import InputError, nearest
from riverrun.base.progress import Mode, Progress
from riverrun.chain.closing import closing
from riverrun.chain.run import open_context, run_app

__all__ = ["run_command"]


def run_command(
    recipe: Path,
    overrides: Sequence[str],
    *,
    out: Path | None,
    start: str,
    until: str,
    dry_run: bool,
    progress: str,
) -> None:
    if progress not in get_args(Mode):
        raise InputError(f"--progress {progress}: no such form.{nearest(progress, get_args(Mode))}")
    if dry_run:
        from riverrun.chain.preview import preview

        print(preview(open_context(recipe, overrides, out=out)))
        return
    news = Progress(cast(Mode, progress))
    run_app(recipe, overrides, out=out, start=start, until=until, progress=news)
    ctx = open_context(recipe, overrides, out=out)
    if until in ("", "report"):
        for line in closing(ctx):
            news.say(line)
