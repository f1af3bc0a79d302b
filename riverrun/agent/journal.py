"""A file of events, one JSON object a line, only ever appended: what a killed agent continues from.

Each event is on the disk (fsync, unless `sync=False`) before the step after it begins. A line that was being written
when the process died is cut off at the next opening. One process writes a journal at a time; many may read it.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from riverrun.agent.state import Event, State
from riverrun.base.errors import InputError, IntegrityError

__all__ = ["Journal", "read_events", "replay"]


class Journal:
    """Open for writing; thread-safe. InputError when another process holds the file."""

    def __init__(self, path: Path | str, *, sync: bool = True) -> None:
        self.path, self.sync = Path(path), sync
        self._lock = threading.Lock()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._descriptor)
            raise InputError(f"journal {self.path} is being written by another agent: use another file") from None
        self._cut_torn_line()

    def _cut_torn_line(self) -> None:
        whole = self.path.read_bytes().rfind(b"\n") + 1
        if whole < os.fstat(self._descriptor).st_size:
            os.ftruncate(self._descriptor, whole)

    def append(self, event: Event) -> None:
        line = json.dumps(event, ensure_ascii=True, separators=(",", ":"), default=str) + "\n"
        with self._lock:
            data = line.encode()
            while data:
                data = data[os.write(self._descriptor, data) :]
            if self.sync:
                os.fsync(self._descriptor)

    def states(self) -> dict[str, State]:
        """Every run in the file as it stands."""
        return replay(self.path)

    def close(self) -> None:
        os.close(self._descriptor)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_events(path: Path | str) -> Iterator[dict[str, Any]]:
    """The events in order; a torn last line is left out. IntegrityError names a line that is no event."""
    with open(path, encoding="utf-8") as handle:
        for number, line in enumerate(handle, 1):
            if not line.endswith("\n"):
                return
            try:
                event = json.loads(line)
                event["run"], event["kind"], event["at"]
            except (ValueError, KeyError, TypeError):
                raise IntegrityError(f"{path}, line {number} is no event of an agent: {line[:60]!r}") from None
            yield event


def replay(path: Path | str) -> dict[str, State]:
    """The state of every run in a journal, by run id, in the order they began."""
    out: dict[str, State] = {}
    for event in read_events(path):
        try:
            out.setdefault(event["run"], State()).apply(event)
        except (KeyError, TypeError, AttributeError, StopIteration) as error:
            raise IntegrityError(f"{path}: event '{event['kind']}' does not fit its run ({error!r})") from None
    return out
