"""Files that are whole or absent, digests, and the record of how an output came to be.

A stage's folder is finished when its `lineage.json` exists: it is written last, holds the key of everything that went
in (inputs by sha256, config, code version, seed) and the sha256 of everything that came out. A rerun with the same key
skips the stage after checking its outputs.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from riverrun.base.errors import IntegrityError

__all__ = [
    "LINEAGE_FILE",
    "Lineage",
    "atomic_file",
    "code_version",
    "digest_file",
    "digest_json",
    "digest_outputs",
    "digest_tree",
    "read_lineage",
    "write_json",
    "write_lineage",
    "write_text",
]

LINEAGE_FILE = "lineage.json"


def digest_file(path: Path) -> str:
    """sha256 of a file's bytes, hex."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def digest_json(value: Any) -> str:
    """sha256 of a value's canonical JSON (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def digest_tree(root: Path) -> str:
    """sha256 over the sorted (relative path, file digest) pairs of a folder, or of the file itself."""
    if root.is_file():
        return digest_file(root)
    files = sorted(path for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return digest_json([[path.relative_to(root).as_posix(), digest_file(path)] for path in files])


@contextmanager
def atomic_file(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Write to a temporary neighbour; on success flush, fsync and rename over `path`, on error leave nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, mode, encoding=None if "b" in mode else "utf-8") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
        _sync_directory(path.parent)
    except BaseException:
        if os.path.exists(name):
            os.unlink(name)
        raise


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Replace a text file atomically (UTF-8)."""
    with atomic_file(path) as handle:
        handle.write(text)


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file atomically; keys keep their order."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


@dataclass(frozen=True)
class Lineage:
    """How one stage's outputs came to be. `key()` is the identity that decides whether a rerun may skip it."""

    stage: str
    inputs: Mapping[str, str]
    config: Mapping[str, Any]
    code: str
    seed: int
    outputs: Mapping[str, str] = field(default_factory=dict)
    counts: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def key(self) -> str:
        return digest_json([self.stage, dict(self.inputs), dict(self.config), self.code, self.seed])


def code_version(package_root: Path, rooms: tuple[str, ...] = ()) -> str:
    """sha256 over the package's Python sources (all, or the named rooms): a changed line makes a new version."""
    roots = [package_root / room for room in rooms] if rooms else [package_root]
    files = sorted(
        path for root in roots for path in root.rglob("*") if path.suffix in {".py", ".yaml", ".jinja", ".html"}
    )
    return digest_json([[path.relative_to(package_root).as_posix(), digest_file(path)] for path in files])


def digest_outputs(folder: Path) -> dict[str, str]:
    """Relative path -> sha256 of every finished file of a stage's folder (hidden and lineage files left out)."""
    out = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.is_file() and path.name != LINEAGE_FILE and not any(part.startswith(".") for part in relative.parts):
            out[relative.as_posix()] = digest_file(path)
    return out


def write_lineage(folder: Path, lineage: Lineage) -> None:
    """The completion marker: call it when all outputs stand."""
    write_json(folder / LINEAGE_FILE, asdict(lineage) | {"key": lineage.key()})


def read_lineage(folder: Path, *, verify: bool = True) -> Lineage | None:
    """The record of a finished stage, or None when it never finished. IntegrityError if an output changed since."""
    path = folder / LINEAGE_FILE
    if not path.exists():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        stored_key = data.pop("key")
        lineage = Lineage(**data)
    except (ValueError, TypeError, KeyError) as error:
        raise IntegrityError(
            f"{path} is not a lineage record ({error}): delete the folder {folder} and run again"
        ) from None
    if stored_key != lineage.key():
        raise IntegrityError(f"{path} was edited (its key does not match): delete the folder {folder} and run again")
    if verify:
        for name, sha in lineage.outputs.items():
            file = folder / name
            found = digest_file(file) if file.is_file() else "no file"
            if found != sha:
                raise IntegrityError(
                    f"{file}: sha256 is {found[:12]}, the record says {sha[:12]}: "
                    f"delete the folder {folder} and run again"
                )
    return lineage
