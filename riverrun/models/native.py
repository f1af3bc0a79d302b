"""The kernels of csrc/, by name. `available()` is False where they were not built; every user has a torch form.

Pointers go to C as they are: callers hand over contiguous CPU tensors of one dtype, float32 or bfloat16. The library is
compiled for OpenMP and takes torch's runtime, so that no second team of threads competes for the cores.

RIVERRUN_NATIVE=off leaves the kernels out; plain, avx2, avx512 or avx512bf16 takes at most that instruction set.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from riverrun.base.errors import ConfigError

__all__ = ["HALVES", "LEVELS", "Shape", "available", "call", "dtype_code", "fits", "forced", "level"]

LEVELS = ("plain", "avx2", "avx512", "avx512bf16")
_DTYPES = {torch.float32: 0, torch.bfloat16: 1}
HALVES = 2
"""In optimizers: bfloat16 weights with the lower halves of their masters."""


class Shape(ctypes.Structure):
    """`AttentionShape` of csrc/kernels.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("tokens", "heads", "kv_heads", "dim", "row", "window")),
        ("scale", ctypes.c_float),
    ]


def _runtime() -> None:
    """Make the OpenMP runtime that torch has loaded visible to the library."""
    folder = Path(torch.__file__).parent / "lib"
    beside = folder.parent.parent / "torch.libs"
    found = [*folder.glob("libgomp*"), *beside.glob("libgomp*")]
    for name in [*map(str, found), "libgomp.so.1"]:
        try:
            ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        return


@cache
def _library() -> ctypes.CDLL | None:
    asked = os.environ.get("RIVERRUN_NATIVE", "")
    if asked and asked not in (*LEVELS, "off"):
        raise ConfigError(f"RIVERRUN_NATIVE={asked} is not one of off, {', '.join(LEVELS)}")
    files = sorted(Path(__file__).parent.glob("_native*.so"))
    if not files or asked == "off":
        return None
    _runtime()
    try:
        library = ctypes.CDLL(str(files[0]))
    except OSError:
        return None
    if asked:
        library.riverrun_set_level(LEVELS.index(asked))
    return library


def available() -> bool:
    return _library() is not None


def level() -> str:
    """The instruction set in use, or 'none'."""
    library = _library()
    return LEVELS[library.riverrun_level()] if library else "none"


@contextmanager
def forced(name: str) -> Iterator[str]:
    """Use at most this instruction set for a while (tests); yields the one taken."""
    library = _library()
    assert library is not None, "the native kernels were not built"
    before = library.riverrun_level()
    try:
        yield LEVELS[library.riverrun_set_level(LEVELS.index(name))]
    finally:
        library.riverrun_set_level(before)


def fits(*tensors: Tensor) -> bool:
    """Whether the kernels take these: built, on the CPU, all of one type that they know."""
    first = tensors[0].dtype
    if first not in _DTYPES or any(x.dtype != first or x.device.type != "cpu" for x in tensors):
        return False
    return available()


def dtype_code(x: Tensor) -> int:
    return _DTYPES[x.dtype]


def call(name: str, *arguments: Any) -> None:
    """Call `riverrun_NAME`: tensors become pointers, None a null pointer, int 64 bits, float 32 bits."""
    library = _library()
    assert library is not None, "ask fits() first"
    getattr(library, f"riverrun_{name}")(*map(_argument, arguments))


def _argument(value: Any) -> Any:
    if isinstance(value, Tensor):
        assert value.is_contiguous() or value.dim() == 0 or value.stride(-1) == 1, "rows must be contiguous"
        return ctypes.c_void_p(value.data_ptr())
    if value is None:
        return ctypes.c_void_p()
    if isinstance(value, float):
        return ctypes.c_float(value)
    if isinstance(value, int):
        return ctypes.c_int64(value)
    return ctypes.byref(value) if isinstance(value, ctypes.Structure) else value
