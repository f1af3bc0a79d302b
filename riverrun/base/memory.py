"""What a process does with memory it has freed."""

from __future__ import annotations

import ctypes
import os
import sys

__all__ = ["free_memory", "keep_freed_memory", "resident_memory", "return_freed_memory"]

# parameters of mallopt(3), glibc's malloc.h
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
M_ARENA_MAX = -8
_MOST = 2**31 - 1
_MOST_BEFORE_GLIBC_2_35 = 32 * 1024 * 1024


def keep_freed_memory(arenas: int = 0) -> bool:
    """Let malloc use freed memory again instead of giving it back; True where that could be set (Linux with glibc).

    For processes that are ours alone and allocate the same large blocks at every step: without it each step of a
    fine-tune gets 160 MB of fresh pages from the system, a tenth of its time. `arenas`: at most so many heaps (0: eight
    a core, glibc's rule). A server, with a thread for each request, has each of them keep its own largest request.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library
        return False
    return bool(
        (not arenas or mallopt(M_ARENA_MAX, arenas))
        and mallopt(M_TRIM_THRESHOLD, _MOST)
        and (mallopt(M_MMAP_THRESHOLD, _MOST) or mallopt(M_MMAP_THRESHOLD, _MOST_BEFORE_GLIBC_2_35))
    )


def return_freed_memory(least: int = 8 << 20) -> bool:
    """Give freed blocks of at least so many bytes back at once; True where that could be set (Linux with glibc).

    For models that barely fit: malloc keeps freed blocks of up to 32 MB otherwise, and the holes between them cost a
    fine-tune of a 7B model in four bits 0.25 GB.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(M_TRIM_THRESHOLD, least) and mallopt(M_MMAP_THRESHOLD, least))


def free_memory() -> int:
    """Bytes that Linux could give now without swapping (MemAvailable); 0 on other systems."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            found = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), "0")
    except OSError:
        return 0
    return int(found) * 1024


def resident_memory() -> int:
    """Bytes of this process that are in memory now; 0 where /proc is missing."""
    try:
        with open("/proc/self/statm", encoding="ascii") as line:
            pages = int(line.read().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
