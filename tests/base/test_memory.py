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


ARENAS = """
import re, threading
from riverrun.base.memory import keep_freed_memory

assert keep_freed_memory(arenas=2)
there, go = threading.Barrier(13), threading.Event()
def hold():
    block = [bytearray(2000) for _ in range(200)]
    there.wait()
    go.wait()
for _ in range(12):
    threading.Thread(target=hold).start()
there.wait()
maps = open("/proc/self/maps").read()
go.set()
# an arena of a thread reserves 64 MB: what is used of it, and the rest behind it
print(len(re.findall(r"^[0-9a-f]+-[0-9a-f]+ ---p 00000000 00:00 0 *$", maps, re.M)))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="not run here: a setting of glibc")
def test_many_threads_share_few_heaps() -> None:
    counts = []
    for code in (ARENAS, ARENAS.replace("arenas=2", "arenas=0")):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        counts.append(int(done.stdout))
    assert counts[0] < counts[1]


def test_elsewhere_nothing_is_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_freed_memory() is False
