"""What every bench shares: options, rows, the table, the JSON, peers in virtual environments, measured processes.

Every bench runs as `python -m bench.NAME [--quick] [--peers none|LIST] [--json FILE]`. Nothing here imports torch: the
peak memory of a child starts at that of its parent.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal, TypeVar

from riverrun.base.artifacts import write_json, write_text
from riverrun.base.errors import InputError, RiverrunError, nearest

__all__ = [
    "PEERS",
    "ROOT",
    "Done",
    "Options",
    "Row",
    "child",
    "home",
    "interleave",
    "main_of",
    "middle",
    "parser",
    "peer_python",
    "read_options",
    "run",
    "say",
    "table",
    "write_report",
]

ROOT = Path(__file__).parents[1]
PEERS = ROOT / "bench" / "peers"
Sense = Literal["at most", "at least", "below", "above", "within"]
T = TypeVar("T")


def home() -> Path:
    """Where benches keep what they install and make: $RIVERRUN_BENCH, else .bench in the project (not in git)."""
    return Path(os.environ.get("RIVERRUN_BENCH") or ROOT / ".bench").absolute()


def say(text: str) -> None:
    """One line of news on standard error."""
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Row:
    """One figure. `limit` is what `sense` compares with (within: the absolute value); None when nothing is asked.

    `holds` is what else must be true for the row to pass; None means that the row is not to be judged.
    """

    name: str
    value: float | None
    unit: str = ""
    limit: float | None = None
    sense: Sense = "at most"
    peers: Mapping[str, float] = field(default_factory=dict)
    note: str = ""
    runs: Mapping[str, Sequence[float]] = field(default_factory=dict)
    holds: bool | None = True

    @property
    def passed(self) -> bool | None:
        """None when there is no limit, no figure, or nothing to judge."""
        if self.limit is None or self.value is None or self.holds is None:
            return None
        within = {
            "at most": self.value <= self.limit,
            "at least": self.value >= self.limit,
            "below": self.value < self.limit,
            "above": self.value > self.limit,
            "within": abs(self.value) <= self.limit,
        }
        return self.holds and within[self.sense]

    def as_dict(self) -> dict[str, Any]:
        out = {
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "peers": dict(self.peers),
            "limit": self.limit,
            "sense": self.sense if self.limit is not None else "",
            "passed": self.passed,
            "note": self.note,
        }
        return out | ({"runs": {name: list(values) for name, values in self.runs.items()}} if self.runs else {})


def short(value: float | None) -> str:
    """Four significant digits."""
    return "-" if value is None else f"{value:.4g}"


def table(rows: Sequence[Row]) -> str:
    """Fixed-width columns: name, value, limit, verdict, peers; the note stands on a line of its own."""
    cells = [("", "measured", "limit", "", "peers")]
    for row in rows:
        limit = "" if row.limit is None else f"{row.sense} {short(row.limit)}"
        verdict = {True: "pass", False: "MISS", None: ""}[row.passed]
        peers = ", ".join(f"{name} {short(value)}" for name, value in row.peers.items())
        cells.append((row.name, f"{short(row.value)} {row.unit}".strip(), limit, verdict, peers))
    widths = [min(64, max(len(line[column]) for line in cells)) for column in range(4)]
    lines = []
    for line, note in zip(cells, ["", *(row.note for row in rows)], strict=True):
        shown = [text.ljust(width) for text, width in zip(line[:4], widths, strict=True)]
        lines.append("  ".join([*shown, line[4]]).rstrip())
        if note:
            lines.append(f"    {note}")
    return "\n".join(lines)


def write_report(path: Path | None, machine: Mapping[str, Any], rows: Sequence[Row], **more: Any) -> None:
    """The JSON form of a bench: {"machine": {...}, "rows": [{name, value, unit, peers, limit, ...}], ...}."""
    if path is not None:
        write_json(path, {"machine": dict(machine), "rows": [row.as_dict() for row in rows], **more})
        say(f"written: {path}")


@dataclass(frozen=True)
class Options:
    """The options every bench has, and the parsed rest."""

    quick: bool
    peers: tuple[str, ...]
    json: Path | None
    rest: argparse.Namespace


def parser(description: str) -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    out.add_argument("--quick", action="store_true", help="end within 10 minutes, peer installs not counted")
    out.add_argument("--peers", default="all", help="none, all, or names with commas between")
    out.add_argument("--json", type=Path, help="also write the figures to this file")
    return out


def read_options(arguments: argparse.Namespace, known_peers: Sequence[str]) -> Options:
    """InputError names an unknown peer."""
    asked = str(arguments.peers)
    names = tuple(known_peers) if asked == "all" else () if asked == "none" else tuple(asked.split(","))
    for name in names:
        if name not in known_peers:
            raise InputError(f"--peers {asked}: no peer is named '{name}'.{nearest(name, [*known_peers, 'none'])}")
    return Options(arguments.quick, names, arguments.json, arguments)


def main_of(bench: Callable[[], int]) -> None:
    """Run a bench; an error meant for a person is one sentence and its exit code."""
    try:
        sys.exit(bench())
    except RiverrunError as error:
        say(f"error: {error}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


@dataclass(frozen=True)
class Done:
    """A process that ended: exit code, wall time, peak resident memory of its largest process, its output."""

    code: int
    seconds: float
    peak_bytes: int
    output: str


def run(
    command: Sequence[str | Path],
    *,
    log: Path,
    cwd: Path = ROOT,
    env: Mapping[str, str] | None = None,
    unset: Sequence[str] = (),
) -> Done:
    """Run to the end; output and errors go to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    variables = {key: value for key, value in os.environ.items() if key not in unset} | dict(env or {})
    began = time.monotonic()
    with open(log, "wb") as handle:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=handle,
            stderr=handle,
            cwd=cwd,
            env=variables,
        )
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            raise
    process.returncode = os.waitstatus_to_exitcode(status)
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    output = log.read_text(encoding="utf-8", errors="replace")
    return Done(process.returncode, time.monotonic() - began, peak, output)


def child(python: Path | str, program: Sequence[str | Path], job: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Run a measuring program in a process of its own; it is called as `PROGRAM JOB.json ANSWER.json`.

    Returns its answer with `peak_bytes` added. RiverrunError with the last line of its log when it fails.
    """
    folder = home() / "jobs"
    files = [folder / f"{name}.{kind}.json" for kind in ("job", "answer")]
    files[1].unlink(missing_ok=True)
    write_json(files[0], dict(job))
    # The rest of the environment is the user's own, so that both sides see the same threads and settings.
    quiet = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    done = run([python, *program, *files], log=folder / f"{name}.log", env=quiet)
    if done.code or not files[1].is_file():
        raise RiverrunError(f"{name} ended with code {done.code} ({_last_line(done.output)}): see {folder / name}.log")
    answer: dict[str, Any] = json.loads(files[1].read_text(encoding="utf-8"))
    return {"peak_bytes": done.peak_bytes, **answer}


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no output"])[-1]


def peer_python(name: str) -> Path:
    """The interpreter of a peer's virtual environment, made from bench/peers/NAME.txt on first use.

    The folder carries the digest of the requirements, so a changed pin makes a new one; a half-made one is made again.
    """
    requirements = PEERS / f"{name}.txt"
    digest = hashlib.sha256("".join(_lines(requirements)).encode()).hexdigest()[:10]
    folder = home() / "venvs" / f"{name}-{digest}"
    python = folder / "bin" / "python"
    if not (folder / "ready").is_file():
        say(f"installing peer {name} into {folder} (once) ...")
        steps: list[list[str | Path]] = [
            [sys.executable, "-m", "venv", "--clear", folder],
            [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", requirements],
        ]
        for step in steps:
            done = run(step, log=home() / "venvs" / f"{name}.log", unset=("PYTHONPATH", "VIRTUAL_ENV"))
            if done.code:
                raise InputError(
                    f"peer '{name}' could not be installed ({_last_line(done.output)}): "
                    f"see {home() / 'venvs' / name}.log, or leave it out with --peers"
                )
        write_text(folder / "ready", "")
    return python


def _lines(requirements: Path) -> list[str]:
    """All requirement lines, those of files named with -r in their place."""
    out: list[str] = []
    for line in requirements.read_text(encoding="utf-8").splitlines():
        if line.startswith("-r "):
            out += _lines(requirements.parent / line[3:].strip())
        elif line.strip():
            out.append(line.strip() + "\n")
    return out


def interleave(contestants: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Let all take turns, `rounds` times, so that a change of the machine meets all alike."""
    out: dict[str, list[T]] = {name: [] for name in contestants}
    for number in range(rounds):
        for name, contest in contestants.items():
            say(f"  round {number + 1}/{rounds}: {name}")
            out[name].append(contest())
    return out


def middle(values: Sequence[float]) -> float:
    """The median."""
    return float(median(values))
