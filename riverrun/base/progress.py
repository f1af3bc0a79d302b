"""Progress for people and programs: a live bar in a terminal, plain lines elsewhere, JSON events on request.

Fields are shown by what their names end in: `_per_second`, `_share` (and `mfu`), `_bytes`; JSON events carry them as
they are, with null for numbers that are not finite.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TextIO, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

__all__ = ["Progress", "Task", "shown"]

T = TypeVar("T")
Mode = Literal["auto", "bar", "lines", "json", "quiet"]
_FIXED = 32
"""Columns of a terminal that name, bar and times of a bar need."""


class Task:
    """One running count. `advance` is cheap; output is limited to one line per `every_seconds`.

    `first`: what was done before, by an earlier process; it does not count towards the speed.
    """

    def __init__(self, owner: Progress, name: str, total: float | None, unit: str, first: float = 0) -> None:
        self.owner, self.name, self.total, self.unit = owner, name, total, unit
        self.done = self.first = first
        self.fields: dict[str, Any] = {}
        self.started = self._printed = time.monotonic()
        self.update: Callable[[], None] | None = None

    def advance(self, count: float = 1, **fields: Any) -> None:
        """Count work done; fields (loss, tokens_per_second, ...) are shown beside it."""
        self.done += count
        self.fields.update(fields)
        self.owner._show(self)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    @property
    def seconds_left(self) -> float | None:
        """At the speed so far; None where that or the total is not known."""
        if not self.total or self.done <= self.first:
            return None
        return max(0.0, self.total - self.done) * self.seconds / (self.done - self.first)

    @property
    def count(self) -> str:
        """12/1,234 steps."""
        of = f"/{_counted(self.total)}" if self.total else ""
        return f"{_counted(self.done)}{of} {self.unit}"

    def line(self) -> str:
        extra = "".join(f"  {text}" for text in shown(self.fields))
        left = self.seconds_left
        more = f", {_clock(left)} left" if left else ""
        return f"{self.name}: {self.count}{extra}  {_clock(self.seconds)}{more}"


def shown(fields: Mapping[str, Any]) -> list[str]:
    """Fields for people: "1,234 tokens/s", "padded 3.1 %", "peak 1.23 GB", "loss 1.235"."""
    out = []
    for key, value in fields.items():
        name = key.replace("_", " ")
        if isinstance(value, bool) or not isinstance(value, int | float):
            out.append(f"{name} {value}")
        elif key.endswith("_per_second"):
            out.append(f"{value:,.0f} {name.removesuffix(' per second')}/s")
        elif key.endswith("_share"):
            out.append(f"{name.removesuffix(' share')} {100 * value:.1f} %")
        elif key == "mfu":
            out.append(f"MFU {100 * value:.1f} %")
        elif key.endswith("_bytes"):
            out.append(f"{name.removesuffix(' bytes')} {value / 1e9:.2f} GB")
        else:
            out.append(f"{name} {_short(value)}")
    return out


def _short(value: float) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _counted(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"


def _clock(seconds: float) -> str:
    """59 s, 12:34, 1:02:03."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Progress:
    """`with progress.task("finetune", total=100, unit="steps") as task: task.advance()`."""

    def __init__(self, mode: Mode = "auto", *, stream: TextIO | None = None, every_seconds: float = 5.0) -> None:
        self.stream = stream or sys.stderr
        if mode == "auto":
            mode = "bar" if self.stream.isatty() else "lines"
        self.mode, self.every_seconds = mode, every_seconds
        self._live: RichProgress | None = None

    def say(self, text: str, **fields: Any) -> None:
        """One line of news (a JSON event in json mode), above a bar that is running."""
        if self.mode == "json":
            self._json({"event": "message", "text": text, **fields})
        elif self.mode != "quiet":
            self._write(text)

    def _write(self, text: str) -> None:
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=self.stream, flush=True)

    def _json(self, event: Mapping[str, Any]) -> None:
        finite = {key: _finite(value) for key, value in event.items()}
        self._write(json.dumps(finite, ensure_ascii=False, default=str))

    def _event(self, kind: str, task: Task) -> None:
        event = {"event": kind, "task": task.name, "done": task.done, "total": task.total, "unit": task.unit}
        self._json({**event, "seconds": round(task.seconds, 3), **task.fields})

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
    def task(self, name: str, *, total: float | None = None, unit: str = "items", first: float = 0) -> Iterator[Task]:
        """A count up to `total`, `first` of which were done before. One inside another shares its display."""
        task = Task(self, name, total, unit, first)
        if self.mode != "bar":
            yield task
        elif self._live is not None:
            with self._row(self._live, task):
                yield task
        else:
            with self._display() as live:
                self._live = live
                try:
                    with self._row(live, task):
                        yield task
                finally:
                    self._live = None
        if self.mode == "json":
            self._event("done", task)
        elif self.mode != "quiet":
            self._write("  " + task.line())

    def _display(self) -> RichProgress:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as RichProgress
        from rich.table import Column

        whole = Column(no_wrap=True)
        return RichProgress(
            TextColumn("{task.description}", table_column=whole),
            BarColumn(bar_width=10),
            TextColumn("{task.fields[count]}", table_column=whole, markup=False),
            TextColumn("{task.fields[extra]}", table_column=whole, markup=False),
            TextColumn("{task.fields[times]}", table_column=whole, markup=False),
            console=Console(file=self.stream),
            transient=True,
        )

    @contextmanager
    def _row(self, live: RichProgress, task: Task) -> Iterator[None]:
        """The task's row of a display; as many fields as the terminal is wide enough for."""
        row = live.add_task(task.name, total=task.total, count="", extra="", times="")

        def update() -> None:
            count, left = task.count, task.seconds_left
            room, kept = live.console.width - _FIXED - len(task.name) - len(count), list[str]()
            for text in shown(task.fields):
                room -= len(text) + 2
                if room < 0:
                    break
                kept.append(text)
            times = _clock(task.seconds) + ("" if left is None else f" < {_clock(left)}")
            live.update(row, completed=task.done, count=count, extra="  ".join(kept), times=times)

        task.update = update
        update()
        try:
            yield
        finally:
            task.update = None
            live.remove_task(row)

    def track(self, items: Iterable[T], name: str, *, total: int | None = None, unit: str = "items") -> Iterator[T]:
        """Iterate with a task around it."""
        if total is None and isinstance(items, Sized):
            total = len(items)
        with self.task(name, total=total, unit=unit) as task:
            for item in items:
                yield item
                task.advance()
