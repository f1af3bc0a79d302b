"""The rule about skips, tried on a small suite of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SUITE = """
import pytest
def test_ran(): pass
def test_missing(): pytest.skip("not run here: needs a thing")
@pytest.mark.skip(reason="some day")
def test_lazy(): pass
"""
MODULE = "import pytest\npytest.importorskip('no_such_package')\ndef test_ran(): pass\n"


@pytest.mark.parametrize(
    ("require", "line"),
    [("", "1 passed, 1 skipped, 2 errors"), ("all", "1 failed, 1 passed, 2 errors")],
    ids=["here", "all"],
)
def test_a_skip_names_what_is_missing_or_fails(tmp_path: Path, require: str, line: str) -> None:
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_few.py").write_text(SUITE)
    (tmp_path / "test_module.py").write_text(MODULE)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--continue-on-collection-errors", "."]
    root = str(Path(__file__).parent.parent)  # conftest imports fixtures of the suite
    environ = {**os.environ, "RIVERRUN_REQUIRE": require, "PYTHONPATH": root}
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert line in done.stdout, done.stdout
    assert "some day" in done.stdout
    assert ("RIVERRUN_REQUIRE=all allows no skip; not run here: needs a thing" in done.stdout) == (require == "all")
