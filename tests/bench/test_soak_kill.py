"""The judge of the kill soak, on made-up run folders, and a kill of a real process in the middle of a stage."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bench.soak.kill import DETERMINISTIC, TINY, Attempt, changed_files, events, finished, kill_in, rows_of, started
from riverrun.base.artifacts import Lineage, digest_outputs, write_lineage, write_text
from riverrun.base.errors import RiverrunError
from riverrun.chain.spec import load_app
from riverrun.chain.stage import STAGES

ROOT = Path(__file__).parents[2]


def finish(out: Path, stage: str, **files: str) -> None:
    """A finished stage with these files."""
    for name, text in files.items():
        write_text(out / stage / name.replace("__", "/"), text)
    write_lineage(out / stage, Lineage(stage, {}, {}, "code", 0, outputs=digest_outputs(out / stage)))


def test_changed_files(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    finish(one, "data", same="1", different="1", gone="1")
    finish(other, "data", same="1", different="2")
    assert changed_files("data", one, other) == ["different", "gone"]
    finish(one, "quantize", **{"q4-merged__weights": "1", "records": "1"})
    finish(other, "quantize", **{"q4-merged__weights": "1", "records": "2"})
    assert changed_files("quantize", one, other) == [], "records of a quantised model are not asked to be equal"
    assert finished(one) == {"data", "quantize"}


def test_rows() -> None:
    good = [Attempt("data", 0.5, False), Attempt("agent", 3.0, False, changed=["answers.jsonl"])]
    rows = rows_of(good)
    assert rows[0].passed is True
    assert rows[0].value == 2
    for bad in (
        Attempt("data", 0.5, True),
        Attempt("data", 0.5, False, redone=["select"]),
        Attempt("data", 0.5, False, changed=["train.jsonl"]),
    ):
        assert bad.problems
        assert rows_of([bad, good[1]])[0].passed is False


def test_the_tiny_budget_is_a_valid_spec() -> None:
    spec, _ = load_app(ROOT / "recipes" / "bookshop", TINY)
    assert spec.finetune.epochs == 1
    assert spec.safety == ""
    assert spec.gates.success is None
    assert set(DETERMINISTIC) <= set(STAGES)


STAGE = """
import json, signal, sys, time
from pathlib import Path
out = Path(sys.argv[1])
out.mkdir(parents=True, exist_ok=True)
def log(event):
    with open(out / "run.log", "a") as handle:
        handle.write(json.dumps({"event": event, "stage": "plan", "time": time.time()}) + chr(10))
log("stage_start")
if sys.argv[2] == "waits":
    signal.pause()
log("stage_end")
"""


def test_kill_in_the_middle(tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-c", STAGE, str(out)]
    inside = kill_in("plan", [*command, "waits"], out, usual_seconds=0.02, share=0.5)
    assert inside is not None
    assert inside >= 0.01
    assert [event["event"] for event in events(out)] == ["stage_start"]
    assert started(events(out)) == {"plan"}


def test_a_run_that_never_comes_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RiverrunError, match="ended with code 5 before stage 'plan'"):
        kill_in("plan", [sys.executable, "-c", "raise SystemExit(5)"], tmp_path / "run", usual_seconds=1, share=0.5)
