"""kill -9 in each stage: the rerun goes on, redoes nothing that was finished, and ends with the same files."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from riverrun.chain.run import run_app
from riverrun.chain.stage import STAGES, read_jsonl
from tests.chain.conftest import QUIET
from tests.chain.doubles import PARTS
from tests.chain.test_chain_run import digests, skipped

RUN = """
import sys
from pathlib import Path
from riverrun.base.progress import Progress
from riverrun.chain.run import run_app
from tests.chain.doubles import PARTS
run_app(Path(sys.argv[1]), out=Path(sys.argv[2]), progress=Progress("quiet"), parts=PARTS)
"""
ROOT = Path(__file__).parents[2]
# The part that waits to be killed in each stage; for deploy and agent the model answers over HTTP by then.
HELD = {
    "select": "generate",
    "data": "database",
    "plan": "count",
    "finetune": "finetune",
    "evaluate": "score",
    "quantize": "quantize",
    "deploy": "model",
    "agent": "generate",
}


@pytest.mark.parametrize("stage", list(HELD))
def test_kill_nine(finished: Path, recipe: Path, tmp_path: Path, stage: str) -> None:
    out, fifo = tmp_path / "run", tmp_path / "fifo"
    shutil.copytree(finished, out)
    for later in STAGES[STAGES.index(stage) :]:
        shutil.rmtree(out / later)
    os.mkfifo(fifo)
    env = {**os.environ, "PYTHONPATH": str(ROOT), f"TEST_HOLD_{HELD[stage].upper()}": str(fifo)}
    child = subprocess.Popen(
        [sys.executable, "-c", RUN, str(recipe), str(out)], env=env, cwd=ROOT, start_new_session=True
    )
    with open(fifo):  # returns when the held part opens its end
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    assert not (out / stage / "lineage.json").exists()
    summary = run_app(recipe, out=out, progress=QUIET, parts=PARTS, isolate=False)
    assert skipped(summary) == list(STAGES[: STAGES.index(stage)])
    assert digests(out) == digests(finished)
    if stage == "finetune":
        assert summary["stages"]["finetune"]["counts"]["resumed_from"] == 3
    if stage == "evaluate":
        events = [row["event"] for row in read_jsonl(out / "run.log")]
        assert "stage_resume" in events
