"""The store: what cards name, kept by digest and shared by all projects of a user.

    <root>/sha256/<digest>/...        files, see blobs
    <root>/repos/<name>-<identity>/   manifest.json (every file, its size and sha256) and files/ (links to the above)
    <root>/unpacked/<digest>/         archives that were unpacked

A card of one file with a digest is that file. A repository is a folder: its listing comes from the card, or from the
first source that answers, and is written down before anything is fetched. Once there, everything is found and verified
without network. Files that neither card nor source gave a digest are trusted as they first came: their sha256 is
written into the manifest then and compared from then on.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path

from riverrun.base.artifacts import digest_file, write_json
from riverrun.base.config import build_config
from riverrun.base.errors import ConfigError, InputError, IntegrityError, nearest
from riverrun.base.progress import Progress
from riverrun.hub.archives import is_archive, unpack
from riverrun.hub.blobs import IN_REPOSITORY, Blobs, Wanted, link_or_copy
from riverrun.hub.card import Card, FileEntry, Manifest
from riverrun.hub.remotes import Locator, open_remote
from riverrun.hub.spec import parse_spec
from riverrun.hub.transport import Patience, SourceError

__all__ = ["Store", "default_root", "select_files"]


def default_root() -> Path:
    """$RIVERRUN_HOME, else ~/.cache/riverrun."""
    home = os.environ.get("RIVERRUN_HOME")
    return Path(home).expanduser() if home else Path.home() / ".cache" / "riverrun"


def select_files(manifest: Manifest, only: Sequence[str]) -> tuple[FileEntry, ...]:
    """Entries whose path fits one of the patterns (all without patterns); InputError for a pattern that fits none.

    `*` goes over folders too; a folder's name means everything in it.
    """
    if not only:
        return manifest.files
    chosen: set[str] = set()
    paths = [entry.path for entry in manifest.files]
    for pattern in only:
        folder = pattern.rstrip("/") + "/"
        found = [path for path in paths if fnmatchcase(path, pattern) or path.startswith(folder)]
        if not found:
            raise InputError(
                f"no file of '{manifest.name}' is '{pattern}': a file outside its manifest is not fetched."
                f"{nearest(pattern, paths) if len(paths) < 50 else ''}"
            )
        chosen.update(found)
    return tuple(entry for entry in manifest.files if entry.path in chosen)


class Store:
    """A content-addressed folder. `attempts`, `pause_seconds` and `timeout_seconds` are for broken connections."""

    def __init__(
        self,
        root: Path | None = None,
        *,
        attempts: int = 4,
        pause_seconds: float = 0.5,
        timeout_seconds: float = 30.0,
    ) -> None:
        self.root = default_root() if root is None else root
        self.patience = Patience(attempts, pause_seconds, timeout_seconds)
        self.blobs = Blobs(self.root, self.patience)

    def path(self, card: Card) -> Path:
        """Where the card's file, or its folder, is or will be."""
        if card.sha256:
            return self.blobs.path(_wanted_file(card, self.patience))
        files = self._folder(card) / "files"
        member = parse_spec(card.sources[0]).member
        one = card.entries[0].path if len(card.entries) == 1 else "" if card.entries else member
        return files / one if one else files

    def manifest(self, card: Card) -> Manifest | None:
        """What is written down of a repository; None before its first fetch. IntegrityError when it is damaged."""
        path = self._folder(card) / "manifest.json"
        if not path.is_file():
            return None
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            return build_config(Manifest, data, origin=str(path))
        except (OSError, ValueError, TypeError, ConfigError) as error:
            raise IntegrityError(f"{path} is no manifest ({error}): delete it, then it is made again") from None

    def find(self, card: Card, *, only: Sequence[str] = ()) -> Path | None:
        """The stored file or folder, or None when a file is missing. IntegrityError when one is not what it was."""
        if card.sha256:
            return self.blobs.find(_wanted_file(card, self.patience))
        manifest = self.manifest(card)
        if manifest is None:
            return None
        for entry in select_files(manifest, only):
            if not self._linked(card, entry, self.blobs.find(self._wanted(card, manifest, entry))):
                return None
        return self.path(card)

    def verify(self, card: Card) -> Path:
        """Read every file that is here and compare size and digest. InputError when nothing is here, IntegrityError
        with the path when a file is damaged."""
        if card.sha256:
            return self.blobs.verify(_wanted_file(card, self.patience))
        manifest = self.manifest(card)
        here = [e for e in manifest.files if (self._folder(card) / "files" / e.path).is_file()] if manifest else []
        if manifest is None or not here:
            raise InputError(f"'{card.name}' is not in the store {self.root}: fetch it first")
        for entry in here:
            path = self._folder(card) / "files" / entry.path
            if problem := self._wanted(card, manifest, entry).mismatch(path):
                raise IntegrityError(f"{path} is damaged ({problem}): fetch it again (riverrun hub get --again)")
        return self.path(card)

    def entries(self, card: Card) -> tuple[FileEntry, ...]:
        """The files as well as they are known: the stored manifest's, the card's, else what its source lists."""
        if card.sha256:
            return card.entries
        return (self.manifest(card) or self._list(card)).files

    def chosen(self, card: Card, only: Sequence[str]) -> list[str] | None:
        """Paths of a repository that fit; None for a card of one file."""
        manifest = None if card.sha256 else self.manifest(card)
        return [entry.path for entry in select_files(manifest, only)] if manifest else None

    def missing(self, card: Card) -> tuple[str, ...]:
        """Paths of the manifest that were never fetched; empty for a card of one file."""
        manifest = None if card.sha256 else self.manifest(card)
        files = manifest.files if manifest else ()
        return tuple(entry.path for entry in files if not (self._folder(card) / "files" / entry.path).is_file())

    def fetch(
        self, card: Card, progress: Progress | None = None, *, again: bool = False, only: Sequence[str] = ()
    ) -> Path:
        """The stored file or folder; what is not there is brought from the first source that gives the right bytes.

        `only` takes files of a repository by pattern. `again` asks the source anew and replaces what is stored, damaged
        or not. InputError names every source that failed and the next step.
        """
        progress = progress or Progress("quiet")
        if card.sha256:
            if only:
                select_files(Manifest(name=card.name, source=card.sources[0], files=card.entries), only)
            return self.blobs.fetch(_wanted_file(card, self.patience), progress, again=again)[0]
        if not again and (path := self.find(card, only=only)):
            return path
        with self.blobs.writable(), self.blobs.alone(self._folder(card).name, card.name, progress):
            known = self.manifest(card)
            manifest = known if known and not again else self._list(card)
            chosen = select_files(manifest, only)
            if known is None:
                self._write(card, manifest)
            came = {entry.path: self._bring(card, manifest, entry, progress, again) for entry in chosen}
            files = tuple(came.get(entry.path, entry) for entry in manifest.files)
            if known is None or files != known.files:
                self._write(card, manifest.model_copy(update={"files": files}))
                self._tidy(card, files)
        return self.path(card)

    def remove(self, card: Card) -> bool:
        """Delete what is stored of the card, but files other repositories share; False when nothing was there."""
        if card.sha256:
            return self.blobs.remove(_wanted_file(card, self.patience))
        folder = self._folder(card)
        there = folder.exists()
        manifest = self.manifest(card)
        shutil.rmtree(folder, ignore_errors=True)
        for entry in manifest.files if manifest else ():
            if entry.sha256:
                self.blobs.remove_unused(entry.sha256)
        return there

    def unpack(self, archive: Path) -> Path:
        """The folder an archive of the store was unpacked into; unpacked confined, once."""
        digest = digest_file(archive)
        target = self.root / "unpacked" / digest
        with self.blobs.writable(), self.blobs.alone(f"{digest}-unpacked", archive.name, Progress("quiet")):
            if not target.is_dir():
                target.parent.mkdir(parents=True, exist_ok=True)
                for left in target.parent.glob(f".{digest[:60]}.*"):
                    shutil.rmtree(left, ignore_errors=True)  # of a run that was killed
                unpack(archive, target)
        return target

    def archives(self, card: Card) -> list[Path]:
        """The fetched files of the card that can be unpacked."""
        path = self.path(card)
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        return [file for file in files if file.is_file() and is_archive(file)]

    # repositories ---------------------------------------------------------------------------------------------------

    def _folder(self, card: Card) -> Path:
        return self.root / "repos" / f"{card.name}-{card.identity[:12]}"

    def _list(self, card: Card) -> Manifest:
        """The files of the card, or what its first answering source lists."""
        if card.entries:
            return Manifest(name=card.name, source=card.sources[0], files=card.entries)
        reasons = []
        for source in card.sources:
            try:
                return open_remote(source, self.patience).listing()
            except SourceError as error:
                reasons.append(str(error))
        raise InputError(f"the files of '{card.name}' could not be listed ({'; '.join(reasons)}): check and run again")

    def _write(self, card: Card, manifest: Manifest) -> None:
        write_json(self._folder(card) / "manifest.json", manifest.model_dump(mode="json"))

    def _wanted(self, card: Card, manifest: Manifest, entry: FileEntry) -> Wanted:
        """Other sources than the one that was listed may help only where the digest says that they gave the same."""
        others = [s for s in card.sources if s != manifest.source] if entry.sha256 or card.entries else []
        named = [(manifest.source, manifest.revision), *((source, "") for source in others)]
        return Wanted(
            label=card.name if len(manifest.files) == 1 else f"{card.name}/{entry.path}",
            name=IN_REPOSITORY,
            size=entry.size_bytes,
            sha256=entry.sha256,
            git_sha1=entry.git_sha1,
            places=_places(named, entry, self.patience),
            sources=(manifest.source, manifest.revision, entry.path, *others),
        )

    def _bring(self, card: Card, manifest: Manifest, entry: FileEntry, progress: Progress, again: bool) -> FileEntry:
        """Have one file below files/; the entry with its size and sha256."""
        want = self._wanted(card, manifest, entry)
        target = self._folder(card) / "files" / entry.path
        if not again and not entry.sha256 and target.is_file() and not want.mismatch(target):
            digest = digest_file(target)  # it came before the run was killed: only whole files are linked
        else:
            path, digest = self.blobs.fetch(want, progress, again=again)
            if not _same(path, target):
                link_or_copy(path, target)
        return entry.model_copy(update={"sha256": digest, "size_bytes": target.stat().st_size})

    def _tidy(self, card: Card, files: Sequence[FileEntry]) -> None:
        """Remove what an older manifest had below files/, and what a killed run left."""
        root, known = self._folder(card) / "files", {entry.path for entry in files}
        for path in sorted(root.rglob("*"), reverse=True):
            if path.is_dir():
                with suppress(OSError):
                    path.rmdir()  # only when it is empty
            elif path.relative_to(root).as_posix() not in known:
                path.unlink()

    def _linked(self, card: Card, entry: FileEntry, blob: Path | None) -> bool:
        """Whether the file stands below files/ as it is in the blobs; a link that was lost is made again."""
        if blob is None:
            return False
        target = self._folder(card) / "files" / entry.path
        if not _same(blob, target):
            with self.blobs.writable():
                link_or_copy(blob, target)
        return True


def _places(
    sources: Sequence[tuple[str, str]], entry: FileEntry, patience: Patience
) -> tuple[Callable[[], Locator], ...]:
    """One function for each (source, revision) that says where the file is there."""

    def place(source: str, revision: str) -> Callable[[], Locator]:
        return lambda: open_remote(source, patience).locate(entry, revision)

    return tuple(place(source, revision) for source, revision in sources)


def _wanted_file(card: Card, patience: Patience) -> Wanted:
    """The one file of a card with a digest."""
    entry = card.entries[0]
    places = _places([(source, "") for source in card.sources], _named(entry, card), patience)
    return Wanted(card.name, card.file_name, card.size_bytes, card.sha256, places=places, sources=card.sources)


def _named(entry: FileEntry, card: Card) -> FileEntry:
    """The file under the name its repository has for it."""
    member = next((spec.member for source in card.sources if (spec := parse_spec(source)).is_member), "")
    return entry.model_copy(update={"path": member}) if member else entry


def _same(one: Path, other: Path) -> bool:
    """Whether both are one file, or a copy with the same time."""
    if not other.is_file():
        return False
    a, b = one.stat(), other.stat()
    return a.st_ino == b.st_ino or (a.st_size, a.st_mtime_ns) == (b.st_size, b.st_mtime_ns)
