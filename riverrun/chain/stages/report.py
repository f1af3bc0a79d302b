"""report: the page that shows the run; made again whenever a stage before it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from riverrun.base.artifacts import LINEAGE_FILE, digest_file, write_text
from riverrun.base.progress import Progress
from riverrun.chain.report import build_report
from riverrun.chain.stage import STAGES, Context, StageResult

__all__ = ["Report"]


class Report:
    name: ClassVar[str] = "report"
    code: ClassVar[tuple[str, ...]] = ("web", "chain/report.py")
    resumable: ClassVar[bool] = False
    isolated: ClassVar[bool] = False

    def inputs(self, ctx: Context) -> dict[str, str]:
        """The records of all stages: they hold the times and the memory that the page shows."""
        return {f"{s}/{LINEAGE_FILE}": digest_file(ctx.folder(s) / LINEAGE_FILE) for s in STAGES if s != self.name}

    def config(self, ctx: Context) -> dict[str, Any]:
        return {"gates": ctx.spec.gates.model_dump(mode="json"), "name": ctx.spec.name}

    def run(self, ctx: Context, folder: Path, progress: Progress) -> StageResult:
        write_text(folder / "index.html", build_report(ctx.out))
        return StageResult()
