"""A stage's own process: killed with its parent, its end explained, its peak memory its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from riverrun.base.errors import CapacityError, GateError, IntegrityError, RiverrunError
from riverrun.chain.process import peak_memory, raise_error, show_error
from riverrun.chain.run import run_app
from riverrun.chain.stage import Parts
from tests.chain.conftest import QUIET
from tests.chain.doubles import PARTS
from tests.chain.test_chain_kill import ROOT, RUN


def test_errors_keep_their_class_and_exit_code() -> None:
    for error in (IntegrityError("cut"), CapacityError("too large")):
        with pytest.raises(type(error), match=str(error)) as caught:
            raise_error(show_error(error))
        assert caught.value.exit_code == 2
    with pytest.raises(RiverrunError, match="KeyError: 'x'") as other:
        raise_error(show_error(KeyError("x")))
    assert other.value.exit_code == 1
    with pytest.raises(RiverrunError, match="GateError: gate"):
        raise_error(show_error(GateError("a", 1.0, 2.0, "b")))


def suicide(path: Path, **_: object) -> None:
    """A model whose process is killed, as by the system when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)


def broken(path: Path, **_: object) -> None:
    raise ValueError("wires crossed")


def test_the_end_of_a_process_is_explained(recipe: Path, tmp_path: Path) -> None:
    killed = Parts(**{**PARTS.__dict__, "model": "tests.chain.test_chain_process:suicide"})
    with pytest.raises(RiverrunError, match=r"stage 'select' was ended by signal 9 \(out of memory\?"):
        run_app(recipe, out=tmp_path / "killed", progress=QUIET, parts=killed, until="select")
    bug = Parts(**{**PARTS.__dict__, "model": "tests.chain.test_chain_process:broken"})
    with pytest.raises(RiverrunError, match="ValueError: wires crossed"):
        run_app(recipe, out=tmp_path / "bug", progress=QUIET, parts=bug, until="select")


def test_the_stage_ends_with_its_parent_and_ctrl_c_ends_both(finished: Path, recipe: Path, tmp_path: Path) -> None:
    out, fifo = tmp_path / "run", tmp_path / "fifo"
    shutil.copytree(finished, out)
    shutil.rmtree(out / "quantize")
    os.mkfifo(fifo)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TEST_HOLD_QUANTIZE": str(fifo)}
    for number in (signal.SIGKILL, signal.SIGINT):
        child = subprocess.Popen(
            [sys.executable, "-c", RUN, str(recipe), str(out)],
            env=env,
            cwd=ROOT,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        # The held part keeps its end open for as long as its process lives: reading ends when it is gone.
        with open(fifo) as handle:
            os.kill(child.pid, number)
            assert handle.read() == ""
        assert child.wait() in (-number, 130)
    run_app(recipe, out=out, progress=QUIET, parts=PARTS, isolate=False)


def test_peak_memory_is_this_process_own() -> None:
    block = bytearray(60_000_000)
    code = "from riverrun.chain.process import peak_memory; print(peak_memory())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert int(done.stdout) < peak_memory()
    assert peak_memory() > len(block)
