"""Freed memory stays with the process where the C library lets it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from riverrun.base.memory import keep_freed_memory

CODE = """
import resource, torch
from riverrun.base.memory import keep_freed_memory
kept = keep_freed_memory()
def work():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    x = torch.ones(4_000_000)
    del x
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(kept, min(work() for _ in range(12)))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="not run here: a setting of glibc")
def test_a_block_of_a_freed_one_takes_no_new_pages() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    kept, faults = done.stdout.split()
    assert kept == "True"
    assert int(faults) < 100  # 16 MB are 3,900 pages


def test_elsewhere_nothing_is_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_freed_memory() is False
