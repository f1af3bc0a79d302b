"""What differs between two versions of a repository, or between a folder and its card: by path and digest."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from riverrun.base.artifacts import digest_file
from riverrun.base.errors import InputError
from riverrun.hub.blobs import git_sha1
from riverrun.hub.card import FileEntry

__all__ = ["CARD_FILE", "Difference", "compare", "folder_entries"]

CARD_FILE = "card.yaml"


@dataclass(frozen=True)
class Difference:
    """Sorted paths. `unknown` are files of one size on both sides of which no common digest is known."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]
    unknown: tuple[str, ...]
    same: int

    @property
    def none(self) -> bool:
        return not (self.added or self.removed or self.changed or self.unknown)

    def lines(self) -> list[str]:
        """`+ path`, `- path`, `! path`, `? path`, and a summary."""
        out = [
            f"{sign} {path}"
            for sign, paths in (("+", self.added), ("-", self.removed), ("!", self.changed), ("?", self.unknown))
            for path in paths
        ]
        counts = f"{len(self.added)} added, {len(self.removed)} removed, {len(self.changed)} changed, {self.same} equal"
        return [*out, counts + (f", {len(self.unknown)} without a common digest" if self.unknown else "")]


def compare(old: Iterable[FileEntry], new: Iterable[FileEntry]) -> Difference:
    """From `old` to `new`."""
    before, after = ({entry.path: entry for entry in side} for side in (old, new))
    changed, unknown, same = [], [], 0
    for path in sorted(before.keys() & after.keys()):
        equal = _equal(before[path], after[path])
        if equal is None:
            unknown.append(path)
        elif equal:
            same += 1
        else:
            changed.append(path)
    added, removed = sorted(after.keys() - before.keys()), sorted(before.keys() - after.keys())
    return Difference(tuple(added), tuple(removed), tuple(changed), tuple(unknown), same)


def _equal(one: FileEntry, other: FileEntry) -> bool | None:
    """None when nothing says it."""
    if one.sha256 and other.sha256:
        return one.sha256 == other.sha256
    if one.git_sha1 and other.git_sha1:
        return one.git_sha1 == other.git_sha1
    if None not in (one.size_bytes, other.size_bytes) and one.size_bytes != other.size_bytes:
        return False
    return None


def folder_entries(folder: Path) -> tuple[FileEntry, ...]:
    """Every file of a folder with size and digests, but card.yaml and hidden ones; InputError names what cannot be."""
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder: give one with {CARD_FILE} and the files")
    entries = []
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if any(part.startswith(".") for part in inside.parts) or inside.as_posix() == CARD_FILE:
            continue
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise InputError(f"{path} is a link or a device: put the file itself there")
        if path.is_file():
            try:
                entry = FileEntry(
                    path=inside.as_posix(),
                    size_bytes=path.stat().st_size,
                    sha256=digest_file(path),
                    git_sha1=git_sha1(path),
                )
            except ValueError:
                raise InputError(
                    f"{inside.as_posix()!r} in {folder} cannot be a file's name everywhere: rename it"
                ) from None
            entries.append(entry)
    return tuple(entries)
