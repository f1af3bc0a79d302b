"""The executor: one run folder, the stages in order, each skipped, resumed or run, and judged by its gates.

A stage is finished when its lineage record stands. Its key holds the digests of what it reads, its part of the spec,
the seed and the version of its code; the bars of the gates are not in it, so a lowered bar costs no new work. Half-done
folders are emptied, unless the stage can resume and the half was made under the same key.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from riverrun.base.artifacts import (
    LINEAGE_FILE,
    Lineage,
    digest_outputs,
    read_lineage,
    write_json,
    write_lineage,
    write_text,
)
from riverrun.base.errors import GateError, InputError, IntegrityError, nearest
from riverrun.base.progress import Progress
from riverrun.chain.check import check_inputs
from riverrun.chain.process import peak_memory, reset_peak_memory, run_isolated, show_error
from riverrun.chain.spec import load_app
from riverrun.chain.stage import STAGES, Context, Gate, Parts, Stage, StageResult, code_digest
from riverrun.chain.stages import get_stage
from riverrun.chain.summary import Summary, pack_result
from riverrun.chain.words import word

__all__ = ["Run", "open_context", "run_app"]

WORK = ".work"
LOCK_SECONDS = 3.0
KEY_FILE = "key"


def open_context(
    recipe: Path, overrides: Sequence[str] = (), *, out: Path | None = None, parts: Parts | None = None
) -> Context:
    """Read the spec and fix the run folder (default runs/NAME under the current folder); writes nothing."""
    spec, folder = load_app(recipe, overrides)
    return Context(spec, folder, (out or Path("runs") / spec.name).resolve(), parts or Parts())


def run_app(
    recipe: Path,
    overrides: Sequence[str] = (),
    *,
    out: Path | None = None,
    start: str = "",
    until: str = "",
    progress: Progress | None = None,
    parts: Parts | None = None,
    isolate: bool = True,
) -> dict[str, Any]:
    """Run the chain and return the summary.

    `start` forces that stage and the later ones to run again, `until` stops after a stage. Raises InputError (exit 2)
    for what cannot be used, GateError (exit 3) for a figure below its bar; both leave the run folder resumable.
    """
    ctx = open_context(recipe, overrides, out=out, parts=parts)
    for option, name in (("--from", start), ("--until", until)):
        if name and name not in STAGES:
            raise InputError(f"{option} {name}: no such stage.{nearest(name, STAGES)}")
    if start and until and STAGES.index(start) > STAGES.index(until):
        raise InputError(f"--from {start} comes after --until {until}: swap them or leave one out")
    check_inputs(ctx)
    ctx.out.mkdir(parents=True, exist_ok=True)
    with _lock(ctx.out) as handle:
        return Run(ctx, progress or Progress(), isolate, handle.fileno()).execute(start, until)


@contextmanager
def _lock(folder: Path) -> Iterator[IO[str]]:
    """Hold the run folder. A stage's process holds it too, so it may outlast a killed parent by a moment."""
    with open(folder / ".lock", "a+") as handle:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise InputError(
                        f"{folder} is in use by another run: wait for it or give another folder with --out"
                    ) from None
                time.sleep(0.05)
        yield handle


@dataclass
class Run:
    """One execution over one folder."""

    ctx: Context
    progress: Progress
    isolate: bool
    lock: int

    def execute(self, start: str, until: str) -> dict[str, Any]:
        ctx = self.ctx
        write_json(ctx.out / "run.json", {"recipe": str(ctx.recipe), "spec": ctx.spec.model_dump(mode="json")})
        summary = Summary(ctx.spec, ctx.out / "summary.json")
        self.log("run_start", name=ctx.spec.name)
        for index, name in enumerate(STAGES):
            stage = get_stage(name)
            place = {"n": index + 1, "total": len(STAGES), "stage": name}
            forced = bool(start) and index >= STAGES.index(start)
            lineage, skipped = self._stage(stage, forced, place)
            self._judge(name, summary.add(lineage, skipped=skipped))
            if name == until:
                self.progress.say(word("until", stage=name))
                break
        self.log("run_end")
        return summary.to_dict()

    def _stage(self, stage: Stage, forced: bool, place: dict[str, Any]) -> tuple[Lineage, bool]:
        ctx, folder = self.ctx, self.ctx.folder(stage.name)
        wanted = Lineage(stage.name, stage.inputs(ctx), stage.config(ctx), code_digest(stage), ctx.spec.seed)
        if not forced and (old := self._finished(stage, wanted)):
            self.log("stage_skip", stage=stage.name, key=wanted.key())
            self.progress.say(word("skip", **place), stage=stage.name)
            return old, True
        self._prepare(stage, folder, wanted.key(), forced)
        self.log("stage_start", stage=stage.name, key=wanted.key())
        self.progress.say(word("start", **place), stage=stage.name)
        began = time.monotonic()
        try:
            packed = self._run(stage, folder)
        except BaseException as error:
            self.log("stage_error", stage=stage.name, error=show_error(error))
            raise
        seconds = time.monotonic() - began
        lineage = replace(wanted, outputs=digest_outputs(folder), counts=packed, seconds=round(seconds, 3))
        write_lineage(folder, lineage)
        shutil.rmtree(folder / WORK, ignore_errors=True)
        self.log("stage_end", stage=stage.name, seconds=lineage.seconds, peak_bytes=packed["peak_bytes"])
        memory = word("memory", megabytes=packed["peak_bytes"] / 1e6) if packed["peak_bytes"] else ""
        self.progress.say(word("done", **place, seconds=seconds, memory=memory), stage=stage.name)
        return lineage, False

    def _finished(self, stage: Stage, wanted: Lineage) -> Lineage | None:
        """The stored record when it still stands: same key, outputs untouched."""
        try:
            old = read_lineage(self.ctx.folder(stage.name))
        except IntegrityError as error:
            self.progress.say(word("again", stage=stage.name, reason=str(error).partition(": delete")[0]))
            return None
        return old if old is not None and old.key() == wanted.key() else None

    def _prepare(self, stage: Stage, folder: Path, key: str, forced: bool) -> None:
        marker = folder / WORK / KEY_FILE
        half_done = marker.is_file() and not (folder / LINEAGE_FILE).exists() and marker.read_text() == key
        if stage.resumable and half_done and not forced:
            self.progress.say(word("resume", stage=stage.name))
            self.log("stage_resume", stage=stage.name)
            return
        (folder / LINEAGE_FILE).unlink(missing_ok=True)
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        write_text(marker, key)

    def _run(self, stage: Stage, folder: Path) -> dict[str, Any]:
        if stage.isolated and self.isolate:
            return run_isolated(self.ctx, stage.name, self.progress.mode, keep_open=self.lock)
        reset_peak_memory()
        result: StageResult = stage.run(self.ctx, folder, self.progress)
        return pack_result(result, peak_memory())

    def _judge(self, stage: str, failed: Sequence[Gate]) -> None:
        for gate in failed:
            bar = gate.bar(self.ctx.spec)
            assert bar is not None
            self.log("gate_failed", stage=stage, name=gate.name, value=gate.value, bar=bar)
            raise GateError(gate.name, gate.value, bar, gate.advice)

    def log(self, event: str, **fields: Any) -> None:
        """One JSON line in run.log; the only file of a run that holds the clock beside summary and lineage."""
        line: Mapping[str, Any] = {"event": event, "time": round(time.time(), 3), "pid": os.getpid(), **fields}
        with open(self.ctx.out / "run.log", "a", encoding="utf-8") as handle:
            handle.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")
