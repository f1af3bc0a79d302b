"""The query tool under attack: every attempt on a copy of a database, in a folder where any new file shows.

The tool runs in a process of its own (`python -m bench.parts.sql_attacks FILE SECONDS`: one JSON line in, one out), so
that a hang can be ended and a crash be seen. Asked of each attempt: the file keeps its bytes, no file appears (in the
database's folder, the working folder, the folder for temporary files), the answer comes within the tool's seconds + 1,
the process grows by less than 200 MB, no private value is told, and what is forbidden is refused.
"""

from __future__ import annotations

import json
import os
import resource
import select
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.common import ROOT, Row
from bench.parts.sql_attempts import ATTEMPTS, DENIED, OUTSIDE, REFUSED, SCRIPT, SECRET
from riverrun.base.artifacts import digest_file

__all__ = ["HANG_SECONDS", "NAME", "Verdict", "Worker", "attack", "rows", "rows_of", "serve"]

NAME = "SQL tool: attempts to write, attach, set, load, tell or run away"
GRACE_SECONDS = 1.0
"""How much longer than the tool's seconds an answer may take."""
HANG_SECONDS = 20.0
"""After this the process is ended."""
GROWTH_BYTES = 200_000_000
ADDRESS_BYTES = 2_000_000_000
"""Address space of the process: an attempt that asks for more gets an error instead of this machine's memory."""


@dataclass(frozen=True)
class Verdict:
    """What one attempt did. problems, () when all is right: writes, hangs, slow, memory, crashes, tells, ..."""

    kind: str
    sql: str
    problems: tuple[str, ...] = ()
    said: str = ""
    seconds: float = 0.0
    grown: int = 0


@dataclass
class Worker:
    """The process that holds the tool, and the folder it lives in; started again after a hang, a crash or a write."""

    folder: Path
    seconds: float
    grace: float = GRACE_SECONDS
    process: subprocess.Popen[bytes] | None = None
    digest: str = ""
    stray: set[str] = field(default_factory=set)

    @property
    def database(self) -> Path:
        return self.folder / "data" / "shop.sqlite"

    def start(self) -> subprocess.Popen[bytes]:
        if self.process is not None and self.process.poll() is None:
            return self.process
        shutil.rmtree(self.folder, ignore_errors=True)
        for name in ("data", "tmp", "cwd"):
            (self.folder / name).mkdir(parents=True)
        with closing(sqlite3.connect(self.database)) as connection:
            connection.executescript(SCRIPT)
        self.digest, self.stray = digest_file(self.database), set()
        places = dict.fromkeys(("TMPDIR", "SQLITE_TMPDIR", "HOME"), str(self.folder / "tmp"))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench.parts.sql_attacks", str(self.database), str(self.seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=self.folder / "cwd",
            env={**os.environ, **places, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        )
        return self.process

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None

    def ask(self, sql: str) -> dict[str, Any]:
        """The answer; {"problem": ...} when there is none."""
        process = self.start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps({"sql": sql}).encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            return {"problem": "crashes"}
        if not select.select([process.stdout], [], [], HANG_SECONDS)[0]:
            return {"problem": "hangs"}
        line = process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line.endswith(b"\n") else {"problem": "crashes"}
        return answer

    def files(self) -> set[str]:
        found = {path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file()}
        return (found | ({str(OUTSIDE)} if OUTSIDE.exists() else set())) - {"data/shop.sqlite"}

    def attempt(self, kind: str, sql: str) -> Verdict:
        """Run one attempt and judge it."""
        answer = self.ask(sql)
        problems = [answer["problem"]] if "problem" in answer else []
        seconds, grown = answer.get("seconds", HANG_SECONDS), answer.get("grown", 0)
        if not problems:
            problems += ["slow"] if seconds > self.seconds + self.grace else []
            problems += ["memory"] if grown > GROWTH_BYTES else []
            problems += ["tells"] if answer["told"] else []
            problems += ["allowed"] if kind in REFUSED and not answer["error"] else []
            problems += ["crashes"] if answer["raised"] else []
        if new := self.files() - self.stray:
            problems.append("makes a file")
            self.stray |= new
            OUTSIDE.unlink(missing_ok=True)
        if not self.database.is_file() or digest_file(self.database) != self.digest:
            problems.append("writes")
        if {"hangs", "crashes", "writes"} & {*problems}:
            self.stop()
        return Verdict(kind, sql, tuple(problems), str(answer.get("said", "")), seconds, grown)


def attack(attempts: Sequence[tuple[str, str]], *, seconds: float, grace: float = GRACE_SECONDS) -> Iterator[Verdict]:
    """Judge (kind, SQL) one after the other. seconds: the tool's own limit; grace: what an answer may take more."""
    OUTSIDE.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        worker = Worker(Path(folder) / "w", seconds, grace)
        try:
            for kind, sql in attempts:
                yield worker.attempt(kind, sql)
        finally:
            worker.stop()


def rows(*, seconds: float = 1.0) -> list[Row]:
    """The issue's row over all written attempts."""
    return rows_of(list(attack(ATTEMPTS, seconds=seconds)), seconds, least=60)


def rows_of(verdicts: Sequence[Verdict], seconds: float, *, least: int, name: str = NAME) -> list[Row]:
    """Attempts that got anywhere, then the slowest answer and the largest growth. `least`: fewer do not pass."""
    bad = [verdict for verdict in verdicts if verdict.problems]
    counts = Counter(problem for verdict in bad for problem in verdict.problems)
    parts = [f"{counts['writes']} writes, {counts['makes a file']} files, {counts['hangs'] + counts['slow']} hangs"]
    parts += [f"{problem}: {number}" for problem, number in sorted(counts.items())]
    parts += [f"{verdict.kind}: {verdict.sql[:80]!r}" for verdict in bad[:3]]
    kinds = Counter(verdict.kind for verdict in verdicts)
    parts.append(", ".join(f"{kind} {number}" for kind, number in kinds.items()))
    slowest = max((verdict.seconds for verdict in verdicts), default=0.0)
    grown = max((verdict.grown for verdict in verdicts), default=0) / 1e6
    return [
        Row(name, len(bad), f"of {len(verdicts)} got anywhere", 0, note="; ".join(parts), holds=len(verdicts) >= least),
        Row(f"{name}: slowest", slowest, "s", seconds + GRACE_SECONDS, note=f"the tool's own limit: {seconds:g} s"),
        Row(f"{name}: growth", grown, "MB", GROWTH_BYTES / 1e6),
    ]


def serve(database: Path, seconds: float) -> None:
    """The worker: statements on standard input, what they did on standard output."""
    from riverrun.agent.tools.sql import DatabaseTool
    from riverrun.chain.process import peak_memory, reset_peak_memory

    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_BYTES, ADDRESS_BYTES))
    tool = DatabaseTool(database, deny_columns=DENIED, seconds=seconds)
    tool.run({"sql": "SELECT count(*) FROM books"})
    for line in sys.stdin.buffer:
        sql = json.loads(line)["sql"]
        reset_peak_memory()
        before, began = peak_memory(), time.monotonic()
        answer: dict[str, Any] = {"raised": False}
        try:
            result = tool.run({"sql": sql})
            told = json.dumps([result.content, result.data])
            answer |= {"error": result.is_error, "told": SECRET in told and SECRET not in sql, "said": result.content}
        except Exception as error:  # whatever comes out of the tool is the finding
            answer |= {"error": True, "told": False, "said": repr(error)[:300], "raised": True}
        answer |= {"seconds": time.monotonic() - began, "grown": peak_memory() - before}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve(Path(sys.argv[1]), float(sys.argv[2]))
