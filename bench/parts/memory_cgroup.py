"""A memory limit for one process: a control group of its own inside this process's, removed at the end. Linux alone.

Version 1 (memory.limit_in_bytes) and 2 (memory.max) of control groups; swap is off in both. The limit counts what the
kernel charges: anonymous memory, page cache of files that were first read there, kernel memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Group", "enter", "limited"]


@dataclass(frozen=True)
class Group:
    """A control group. `enter` puts a process in; the figures are the kernel's own."""

    folder: Path
    version: int

    def _read(self, *names: str) -> int | None:
        for name in names:
            with suppress(OSError, ValueError):
                return int((self.folder / name).read_text())
        return None

    @property
    def peak_bytes(self) -> int | None:
        return self._read("memory.max_usage_in_bytes" if self.version == 1 else "memory.peak")

    @property
    def refused(self) -> int | None:
        """Times that the limit was met and memory had to be reclaimed."""
        if self.version == 1:
            return self._read("memory.failcnt")
        with suppress(OSError, ValueError):
            events = dict(line.split() for line in (self.folder / "memory.events").read_text().splitlines())
            return int(events["max"])
        return None


def _own() -> tuple[Path, int] | None:
    """(folder of this process's memory group, version) where there is one."""
    lines = Path("/proc/self/cgroup").read_text().splitlines() if Path("/proc/self/cgroup").exists() else []
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()] if lines else []
    for line in lines:
        number, controllers, inside = line.split(":", 2)
        for _, place, kind, options, *_ in mounts:
            first = kind == "cgroup" and "memory" in options.split(",") and "memory" in controllers.split(",")
            second = kind == "cgroup2" and number == "0" and (Path(place) / "cgroup.controllers").is_file()
            if second and "memory" not in (Path(place) / "cgroup.controllers").read_text().split():
                continue
            folder = Path(place) / inside.lstrip("/")
            if (first or second) and folder.is_dir():
                return folder, 1 if first else 2
    return None


@contextmanager
def limited(count: int) -> Iterator[Group | None]:
    """A group of at most `count` bytes and no swap; None where this system lets us make none."""
    found = _own()
    if found is None:
        yield None
        return
    outer, version = found
    folder = outer / f"riverrun-{os.getpid()}"
    try:
        yield Group(folder, version) if _made(folder, version, count) else None
    finally:
        with suppress(OSError):
            folder.rmdir()


def _made(folder: Path, version: int, count: int) -> bool:
    """Whether the group and its limit could be made; swap is off where the system knows it."""
    limit, swap, most = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", str(count))
    if version == 2:
        limit, swap, most = ("memory.max", "memory.swap.max", "0")
    try:
        if version == 2:
            (folder.parent / "cgroup.subtree_control").write_text("+memory")
        folder.mkdir()
        (folder / limit).write_text(str(count))
    except OSError:
        return False
    with suppress(OSError):
        (folder / swap).write_text(most)
    return True


def enter(folder: Path) -> None:
    """Put this process into the group; call before anything large is imported."""
    (folder / "cgroup.procs").write_text(str(os.getpid()))
