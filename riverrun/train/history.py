"""What a run's folder says about it: steps, evaluations, samples, checkpoints, settings, prediction. No torch.

Reads what `riverrun train run` writes (train.jsonl, resolved.yaml, plan.json, bad_rows.jsonl, result.json, work/) and
the loss.jsonl of the chain's fine-tunes. A run may be going on, stopped and continued, or failed:
what is not there is empty, a line cut short is left out and counted.

    {"event": "step", "step": 1, "loss": ..., ...}         any numbers; see STEP in riverrun/train/page.py
    {"event": "eval", "step": 1, "name": ..., "loss": ..., "bits_per_byte": ...}
    {"event": "sample", "step": 1, "prompt": ..., "text": ...}
    {"event": "checkpoint", "step": 1, "seconds": ...}     seconds that training waited for it
    {"event": "begin", "step": 0, ...}                     at each start; `step` is where it goes on from
    {"event": "memory", "step": 0, "name": "weights", "bytes": ...}    a measured line of the prediction
    {"event": "rows", "step": 0, "kept": ..., "left_out": ..., "bad": {reason: count}}
"""

from __future__ import annotations

import json
import math
import re
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from riverrun.base.errors import InputError

__all__ = ["History", "MemoryLine", "flat", "smooth"]

LOGS = ("train.jsonl", "loss.jsonl")
GUARDED = ("loss", "grad_norm")
"""What must be finite in a step."""
NAN = math.nan


@dataclass(frozen=True, slots=True)
class MemoryLine:
    """A line of the memory prediction, in bytes; `measured` is None where nothing was."""

    name: str
    predicted: int | None
    measured: int | None
    formula: str = ""


@dataclass(slots=True)
class History:
    """`columns` has a value for each entry of `steps` (rising), NaN where a step does not say it or it is not finite.

    `resumes`: last finished step of each beginning after the first. `bad`: steps whose loss or gradient is not finite.
    """

    folder: Path
    steps: array[int] = field(default_factory=lambda: array("q"))
    columns: dict[str, array[float]] = field(default_factory=dict)
    events: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    resumes: list[int] = field(default_factory=list)
    bad: list[int] = field(default_factory=list)
    cut_lines: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    bad_rows: list[dict[str, Any]] = field(default_factory=list)
    stored: list[int] = field(default_factory=list)

    @classmethod
    def open(cls, folder: Path) -> History:
        """InputError when the folder has no log of a training."""
        own = cls(folder)
        log = next((folder / name for name in LOGS if (folder / name).is_file()), None)
        if log is None:
            raise InputError(f"{folder} has no train.jsonl: give the folder of `riverrun train run` (--out)")
        own._read(log)
        own.settings = _mapping(folder / "resolved.yaml")
        own.plan, own.result = _mapping(folder / "plan.json"), _mapping(folder / "result.json")
        for path in sorted([*folder.glob("bad_rows.jsonl"), *folder.glob("*/bad_rows.jsonl")]):
            own.bad_rows += [row for row in _lines(path) if isinstance(row, dict)]
        saved = [re.fullmatch(r"step-(\d+)", path.name) for path in sorted((folder / "work").glob("step-*"))]
        own.stored = sorted(int(match[1]) for match in saved if match)
        return own

    def _read(self, log: Path) -> None:
        for line in _lines(log):
            step = line.get("step") if isinstance(line, dict) else None
            if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step < 1 << 53:
                self.cut_lines += 1
                continue
            event = str(line.get("event", "step"))
            if event == "begin":
                self._back_to(step)
            if event == "step":
                self._add(step, line)
            else:
                self.events.setdefault(event, []).append(line)
        self._find_resumes()

    def _add(self, step: int, line: dict[str, Any]) -> None:
        if self.steps and step <= self.steps[-1]:
            self._back_to(step - 1)
        for name, value in line.items():
            number = NAN if name in GUARDED and value is None else _number(value)
            if name in ("event", "step") or number is None:
                continue
            if name not in self.columns:
                self.columns[name] = array("d", [NAN]) * len(self.steps)
            if name in GUARDED and not math.isfinite(number) and self.bad[-1:] != [step]:
                self.bad.append(step)
            self.columns[name].append(number if math.isfinite(number) else NAN)
        self.steps.append(step)
        for column in self.columns.values():
            if len(column) < len(self.steps):
                column.append(NAN)

    def _back_to(self, step: int) -> None:
        """A run goes on behind an earlier step: what came after it is done again."""
        while self.steps and self.steps[-1] > step:
            self.steps.pop()
            for column in self.columns.values():
                column.pop()
        self.bad = [each for each in self.bad if each <= step]
        for event in ("eval", "sample", "checkpoint"):
            if event in self.events:
                self.events[event] = [line for line in self.events[event] if line["step"] <= step]
        if self.steps and self.resumes[-1:] != [step]:
            self.resumes.append(step)

    def _find_resumes(self) -> None:
        """Logs without beginnings: a new process shows by a lower peak of memory than the one before had reached."""
        found = set(self.resumes)
        peaks = self.columns.get("peak_bytes", array("d"))
        found |= {self.steps[at] for at, (old, new) in enumerate(pairwise(peaks)) if new < old}
        self.resumes = sorted(step for step in found if step and self.steps and step <= self.steps[-1])

    # figures

    def section(self, name: str) -> dict[str, Any]:
        """A section of the settings; empty where there is none."""
        value = self.settings.get(name)
        return value if isinstance(value, dict) else {}

    def column(self, name: str) -> list[float]:
        """A value for each step; NaN where there is none."""
        return list(self.columns.get(name, array("d", [NAN]) * len(self.steps)))

    def has(self, name: str) -> bool:
        return any(value == value for value in self.columns.get(name, ()))

    def points(self, name: str, values: Sequence[float] | None = None) -> list[tuple[float, float]]:
        """(step, value), broken where steps are missing and where a run went on in a new process."""
        values = self.column(name) if values is None else values
        breaks, out = set(self.resumes), list[tuple[float, float]]()
        gap = self.usual_gap
        for at, (step, value) in enumerate(zip(self.steps, values, strict=True)):
            if at and (self.steps[at - 1] in breaks or step - self.steps[at - 1] > gap):
                out.append((float(self.steps[at - 1]), NAN))
            out.append((float(step), value))
        return out

    @property
    def units(self) -> str:
        """The column that says how much a step's loss counts: its units, or its label tokens."""
        return "units" if self.has("units") else "label_tokens"

    def final_loss(self) -> float | None:
        """Smoothed, of the last step; None where no step has one."""
        weights = self.column(self.units) if self.has(self.units) else None
        value = next(reversed(smooth(self.column("loss"), weights)), NAN)
        return value if math.isfinite(value) else None

    @property
    def usual_gap(self) -> int:
        """Steps between two lines of the log: 1, or more where not every step is written."""
        return min((later - earlier for earlier, later in pairwise(self.steps)), default=1)

    def total(self, name: str) -> float | None:
        """Sum over all steps; None where no step says it."""
        return math.fsum(v for v in self.columns[name] if v == v) if self.has(name) else None

    def rate(self, name: str) -> float | None:
        """`name` a second over all steps that say both."""
        pairs = [(n, s) for n, s in zip(self.column(name), self.column("seconds"), strict=True) if n == n and s == s]
        seconds = math.fsum(s for _, s in pairs)
        return math.fsum(n for n, _ in pairs) / seconds if seconds > 0 else None

    def last(self, name: str) -> float | None:
        return next((value for value in reversed(self.columns.get(name, ())) if value == value), None)

    def most(self, name: str) -> float | None:
        return max((value for value in self.columns.get(name, ()) if value == value), default=None)

    @property
    def peak_bytes(self) -> float | None:
        """Of all processes of the run."""
        known = [self.most("peak_bytes"), _number(self.result.get("peak_bytes"))]
        return max((value for value in known if value is not None and value == value), default=None)

    @property
    def status(self) -> str:
        """done, or open: going on, stopped or failed; `riverrun train run` goes on from there."""
        return "done" if self.result.get("status") == "done" or (self.folder / LOGS[1]).is_file() else "open"

    def evaluations(self, key: str) -> dict[str, list[tuple[float, float]]]:
        """(step, value) of each validation source, in the order they first appear."""
        out: dict[str, list[tuple[float, float]]] = {}
        for line in self.events.get("eval", []):
            value = _number(line.get(key))
            if value is not None:
                out.setdefault(str(line.get("name", "")), []).append((float(line["step"]), value))
        return out

    def memory(self) -> list[MemoryLine]:
        """The prediction line by line, then what was measured and not predicted; both may be empty."""
        inside = self.plan.get("memory", self.plan)
        items = inside.get("items") if isinstance(inside, dict) else None
        measured = {str(line.get("name")): _whole(line.get("bytes")) for line in self.events.get("memory", [])}
        out = [
            MemoryLine(
                str(item.get("name")),
                _whole(item.get("bytes")),
                measured.pop(str(item.get("name")), None),
                str(item.get("formula", "")),
            )
            for item in (items if isinstance(items, list) else [])
            if isinstance(item, dict)
        ]
        return out + [MemoryLine(name, None, value) for name, value in measured.items()]

    @property
    def predicted_bytes(self) -> int | None:
        """The whole prediction."""
        lines = [line.predicted for line in self.memory() if line.predicted is not None]
        return sum(lines) if lines else None

    @property
    def dropped(self) -> list[tuple[str, str]]:
        """(row, reason) of the result."""
        pairs = self.result.get("dropped")
        if not isinstance(pairs, list):
            return []
        return [(str(each[0]), str(each[1])) for each in pairs if isinstance(each, list) and len(each) == 2]

    def left_out(self) -> dict[str, int]:
        """Rows that are not learned, by reason; figures in the reasons are not told apart."""
        told: Counter[str] = Counter()
        counted = next((line.get("bad") for line in reversed(self.events.get("rows", []))), None)
        if isinstance(counted, dict):
            told.update({str(reason): _whole(count) or 0 for reason, count in counted.items()})
        elif self.bad_rows:
            told.update(str(row.get("reason", "")) for row in self.bad_rows)
        else:
            told.update(re.sub(r"\d+(\.\d+)?", "N", reason) for _, reason in self.dropped)
        return dict(told.most_common())


def smooth(values: Sequence[float], weights: Sequence[float] | None = None, *, span: float = 0.0) -> list[float]:
    """Exponential mean without the bias of its beginning; entries that are not finite count as nothing.

    With `weights` (seconds of rates, tokens of losses) each value counts so much. `span`: steps that the mean looks
    back; a fiftieth of all, at least 5, unless given.
    """
    keep = 1 - 1 / (span or max(5.0, len(values) / 50))
    above, below, out = 0.0, 0.0, []
    for at, value in enumerate(values):
        weight = 1.0 if weights is None else weights[at]
        above, below = above * keep, below * keep
        if math.isfinite(value) and math.isfinite(weight) and weight > 0:
            above, below = above + value * weight, below + weight
        out.append(above / below if below > 0 else NAN)
    return out


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted names; lists of plain values stay whole."""
    out: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, list) and any(isinstance(each, dict) for each in value):
            value = {str(index): each for index, each in enumerate(value)}
        if isinstance(value, dict) and value:
            out |= flat(value, f"{name}.")
        else:
            out[name] = value
    return out


def _number(value: Any) -> float | None:
    """A number, also where it was written as text ("NaN", "inf"); None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str) and value.lower().lstrip("+-") not in ("nan", "inf", "infinity"):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _whole(value: Any) -> int | None:
    number = _number(value)
    return round(number) if number is not None and math.isfinite(number) else None


def _lines(path: Path) -> Iterator[Any]:
    """Every line as JSON, None for one that is none."""
    with open(path, encoding="utf-8", errors="replace") as handle:
        for line in handle:
            if line.strip():
                try:
                    yield json.loads(line)
                except (ValueError, RecursionError):
                    yield None


def _mapping(path: Path) -> dict[str, Any]:
    """A JSON or YAML file's mapping; empty where there is none or it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return value if isinstance(value, dict) else {}
