"""What can be refused before any work: missing files, an empty folder, a database that is none.

Whether a candidate exists in the catalogue, is whole and fits in memory is the business of the stages select and plan.
"""

from __future__ import annotations

from pathlib import Path

from riverrun.base.errors import InputError
from riverrun.chain.spec import GENERATED, GENERIC
from riverrun.chain.stage import Context

__all__ = ["SUFFIXES", "check_database", "check_inputs", "is_path"]

SUFFIXES = (".html", ".htm", ".txt", ".md")
_SQLITE = b"SQLite format 3\x00"


def is_path(candidate: str) -> bool:
    """Whether a candidate is a path rather than a name of the catalogue."""
    return "/" in candidate or candidate.startswith(".") or candidate.endswith((".gguf", ".safetensors"))


def check_database(path: Path) -> None:
    """InputError unless the file begins as every SQLite database does."""
    if not path.is_file():
        raise InputError(f"database {path} does not exist: correct database.path in the spec")
    with open(path, "rb") as handle:
        head = handle.read(len(_SQLITE))
    if head != _SQLITE:
        found = f"it begins with {head!r}" if head else "it is empty"
        raise InputError(f"{path} is not an SQLite database ({found}): give the path of one as database.path")


def check_inputs(ctx: Context) -> None:
    """InputError at the first thing of the spec that is not there or not what it should be."""
    spec = ctx.spec
    if spec.documents is not None:
        _check_documents(ctx.file(spec.documents.path))
    if spec.database.path:
        check_database(ctx.file(spec.database.path))
    for key, name in (
        ("database.make", spec.database.make),
        ("intents", spec.intents),
        ("choices", "" if spec.choices == GENERATED else spec.choices),
        ("safety", "" if spec.safety == GENERIC else spec.safety),
    ):
        if name and not ctx.file(name).is_file():
            raise InputError(f"{key}: file {ctx.file(name)} does not exist: correct '{key}' in the spec")
    for candidate in spec.candidates:
        if isinstance(candidate, str) and is_path(candidate) and not ctx.file(candidate).exists():
            raise InputError(
                f"candidate {ctx.file(candidate)} does not exist: give a model's path or a name of `riverrun hub list`"
            )


def _check_documents(folder: Path) -> None:
    if not folder.is_dir():
        raise InputError(f"documents folder {folder} does not exist: correct documents.path in the spec")
    if not any(path.suffix.lower() in SUFFIXES for path in folder.rglob("*") if path.is_file()):
        raise InputError(
            f"documents folder {folder} holds no page ({', '.join(SUFFIXES)}): "
            f"put the pages there or correct documents.path"
        )
