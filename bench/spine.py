"""The table of the spine: from an open model to a running application, measured row by row.

`python -m bench.spine [--quick] [--peers none|trl,transformers] [--json FILE] [--run FOLDER] [--only PARTS]`.
In full it clones the project, runs `make quickstart` there, and takes all figures from that run; this takes an hour or
more. `--quick` takes them from a run that is there (--run, runs/bookshop), else from one on a tiny budget, whose scores
are shown and not judged; it leaves out the clone, the kills and the tests unless `--only` names them.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.common import ROOT, Options, Row, home, main_of, parser, read_options, run, say, table, write_report
from bench.parts import fresh, parity, scores, speed
from bench.parts.context import RunFolder
from bench.parts.machine import machine
from bench.soak import kill
from riverrun.base.errors import InputError, RiverrunError, nearest

__all__ = ["PARTS", "Spine", "main"]

PARTS = ("quickstart", "parity", "scores", "speed", "memory", "kill", "test")
QUICK = ("parity", "scores", "speed", "memory")
KNOWN_PEERS = ("trl", "transformers")
RECIPE = ROOT / "recipes" / "bookshop"


@dataclass
class Spine:
    """The parts that were asked for, over one run."""

    options: Options
    parts: tuple[str, ...]
    given: Path | None
    clone: Path | None = None
    tiny: bool = False
    _run: RunFolder | None = None
    rows: dict[str, list[Row]] = field(default_factory=dict)

    @property
    def run(self) -> RunFolder:
        """The run that the figures are taken from; made when there is none."""
        if self._run is None:
            self._run = RunFolder(self._find())
            say(f"figures of {self._run.path}")
        return self._run

    def _find(self) -> Path:
        if self.given:
            return self.given.resolve()
        cloned = self.clone / "runs" / "bookshop" if self.clone else None
        for folder in (cloned, ROOT / "runs" / "bookshop"):
            if folder and (folder / "report" / "lineage.json").is_file():
                return folder
        self.tiny = self.options.quick
        out = home() / ("tiny-run" if self.tiny else "run")
        say(f"no finished run is here: making one in {out} ...")
        command = [sys.executable, "-m", "riverrun.cli.main", "run", str(RECIPE), "--out", str(out)]
        done = run([*command, *(kill.TINY if self.tiny else ())], log=home() / f"{out.name}.log")
        if done.code:
            raise RiverrunError(f"the run ended with code {done.code}: see {home() / out.name}.log")
        return out

    def measure(self) -> list[Row]:
        """All rows of the issue's table in its order; those that were not asked for have no value."""
        for part in PARTS:
            if part in self.parts:
                say(f"--- {part}")
                self.rows[part] = getattr(self, f"_{part}")()
            else:
                self.rows[part] = [Row(name, None, note=f"not measured: add --only {part}") for name in NAMES[part]]
        return [row for part in PARTS for row in self.rows[part]]

    def _quickstart(self) -> list[Row]:
        self.clone = fresh.clone()
        return fresh.quickstart_rows(fresh.run_make("quickstart", self.clone), self.clone)

    def _parity(self) -> list[Row]:
        wanted = "transformers" in self.options.peers
        return parity.rows_of(parity.measure(self.run, quick=self.options.quick) if wanted else None)

    def _scores(self) -> list[Row]:
        return scores.score_rows(self.run.json("summary.json"), judged=not self.tiny)

    def _speed(self) -> list[Row]:
        return speed.rows_of(speed.measure(self.run, self.options.peers, quick=self.options.quick))

    def _memory(self) -> list[Row]:
        return scores.memory_rows(self.run.json("summary.json"), judged=not self.tiny)

    def _kill(self) -> list[Row]:
        rows, _ = kill.measure(RECIPE, quick=self.options.quick)
        return rows

    def _test(self) -> list[Row]:
        return [fresh.test_row(fresh.run_make("test", self.clone or fresh.clone()))]


NAMES: dict[str, tuple[str, ...]] = {
    "quickstart": (fresh.QUICKSTART,),
    "parity": (parity.NAME,),
    "scores": (scores.TOOLS, scores.CHOICE, scores.RETENTION, scores.W4, scores.THROUGH),
    "speed": (speed.NAME,),
    "memory": (scores.MEMORY,),
    "kill": (kill.NAME,),
    "test": (fresh.TEST,),
}


def chosen_parts(only: str, *, quick: bool) -> tuple[str, ...]:
    """The parts by name; InputError names an unknown one."""
    if not only:
        return QUICK if quick else PARTS
    for name in only.split(","):
        if name not in PARTS:
            raise InputError(f"--only {only}: no part is named '{name}'.{nearest(name, PARTS)}")
    return tuple(only.split(","))


def drift(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """The machine at the start, with what it multiplied and read at the end beside it."""
    rates = ("gemm_fp32_gflops", "gemm_bf16_gflops", "read_gb_per_second", "load")
    return before | {"at_the_end": {name: after[name] for name in rates}}


def main() -> int:
    options = parser((__doc__ or "").split("\n\n")[0])
    options.add_argument("--run", type=Path, help="a finished run folder whose figures are taken")
    options.add_argument("--only", default="", help=f"parts with commas between: {', '.join(PARTS)}")
    chosen = read_options(options.parse_args(), KNOWN_PEERS)
    spine = Spine(chosen, chosen_parts(chosen.rest.only, quick=chosen.quick), chosen.rest.run)
    before = machine()
    rows = spine.measure()
    measured_on = drift(before, machine())
    rates = f"{measured_on['gemm_bf16_gflops']:.0f} bf16 GFLOP/s, {measured_on['read_gb_per_second']:.0f} GB/s"
    print(f"{measured_on['cores']} cores ({measured_on['cpu']}), {rates}, torch {measured_on['torch']}\n")
    print(table(rows))
    write_report(chosen.json, measured_on, rows, run=str(spine.run.path) if spine._run else "")
    return 1 if any(row.passed is False for row in rows) else 0


if __name__ == "__main__":
    main_of(main)
