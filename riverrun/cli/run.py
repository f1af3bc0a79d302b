"""`riverrun run`: the dry run or the chain, and where the report is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast, get_args

from riverrun.base.errors import InputError, nearest
from riverrun.base.progress import Mode, Progress
from riverrun.chain.run import open_context, run_app
from riverrun.chain.words import word

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
    path = open_context(recipe, overrides, out=out).out / "report" / "index.html"
    if path.is_file() and until in ("", "report"):
        news.say(word("finished", path=path), report=str(path))
