"""Progress for people and programs: a live bar in a terminal, plain lines elsewhere, JSON events on request."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any, Literal, TextIO, TypeVar

__all__ = ["Progress", "Task"]

T = TypeVar("T")
Mode = Literal["auto", "bar", "lines", "json", "quiet"]


class Task:
    """One running count. `advance` and `note` are cheap; output is limited to one line per `every_seconds`."""

    def __init__(self, owner: Progress, name: str, total: int | None, unit: str) -> None:
        self.owner, self.name, self.total, self.unit = owner, name, total, unit
        self.done = 0
        self.fields: dict[str, Any] = {}
        self.started = self._printed = time.monotonic()
        self.update: Callable[[], None] | None = None

    def advance(self, count: int = 1, **fields: Any) -> None:
        """Count work done; fields (loss, tokens/s, ...) are shown beside it."""
        self.done += count
        self.fields.update(fields)
        self.owner._show(self)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def line(self) -> str:
        of = f"/{self.total}" if self.total else ""
        extra = "".join(f"  {key} {_short(value)}" for key, value in self.fields.items())
        return f"{self.name}: {self.done}{of} {self.unit}{extra}  {self.seconds:.0f} s"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class Progress:
    """`with progress.task("finetune", total=100, unit="steps") as task: task.advance()`."""

    def __init__(self, mode: Mode = "auto", *, stream: TextIO | None = None, every_seconds: float = 5.0) -> None:
        self.stream = stream or sys.stderr
        if mode == "auto":
            mode = "bar" if self.stream.isatty() else "lines"
        self.mode, self.every_seconds = mode, every_seconds

    def say(self, text: str, **fields: Any) -> None:
        """One line of news (a JSON event in json mode)."""
        if self.mode == "json":
            self._write(json.dumps({"event": "message", "text": text, **fields}, ensure_ascii=False, default=str))
        elif self.mode != "quiet":
            self._write(text)

    def _write(self, text: str) -> None:
        print(text, file=self.stream, flush=True)

    def _event(self, kind: str, task: Task) -> None:
        event = {"event": kind, "task": task.name, "done": task.done, "total": task.total, "unit": task.unit}
        self._write(
            json.dumps({**event, "seconds": round(task.seconds, 3), **task.fields}, ensure_ascii=False, default=str)
        )

    def _show(self, task: Task) -> None:
        if self.mode == "bar" and task.update:
            task.update()
            return
        now = time.monotonic()
        if now - task._printed < self.every_seconds:
            return
        task._printed = now
        if self.mode == "lines":
            self._write("  " + task.line())
        elif self.mode == "json":
            self._event("progress", task)

    @contextmanager
    def task(self, name: str, *, total: int | None = None, unit: str = "items") -> Iterator[Task]:
        task = Task(self, name, total, unit)
        if self.mode == "bar":
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as RichProgress

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total} {task.fields[unit]}"),
            )
            more = (TextColumn("{task.fields[extra]}"), TimeElapsedColumn(), TimeRemainingColumn())
            with RichProgress(*columns, *more, console=Console(file=self.stream), transient=True) as bar:
                row = bar.add_task(name, total=total, unit=unit, extra="")

                def update() -> None:
                    extra = "  ".join(f"{key} {_short(value)}" for key, value in task.fields.items())
                    bar.update(row, completed=task.done, extra=extra)

                task.update = update
                yield task
        else:
            yield task
        if self.mode == "json":
            self._event("done", task)
        elif self.mode != "quiet":
            self._write("  " + task.line())

    def track(self, items: Iterable[T], name: str, *, total: int | None = None, unit: str = "items") -> Iterator[T]:
        """Iterate with a task around it."""
        if total is None and isinstance(items, Sized):
            total = len(items)
        with self.task(name, total=total, unit=unit) as task:
            for item in items:
                yield item
                task.advance()
