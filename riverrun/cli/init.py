"""`riverrun init`: draft an application from a database and a folder of pages."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from riverrun.base.errors import InputError
from riverrun.chain.drafting import draft_app, write_draft

__all__ = ["init_command"]


def init_command(
    target: Path, database: str, documents: Path | None, language: str, candidates: Sequence[str], force: bool
) -> None:
    """Write TARGET/app.yaml and say what it holds."""
    if (target / "app.yaml").exists() and not force:
        raise InputError(f"{target / 'app.yaml'} is there already: give another NAME, or --force to write it anew")
    name = target.name or target.resolve().name
    draft = draft_app(name, target, database, documents, language=language, candidates=candidates)
    path = write_draft(draft, target, force=force)
    for line in draft.said:
        print(line)
    print(path)
    print(f"riverrun run {os.path.relpath(target)}")
