"""Builds the kernels of csrc/ into riverrun/models/_native*.so. Without a C++ compiler the package works without them.

The library has a C interface (riverrun/models/native.py) and knows nothing of Python. It is compiled for OpenMP and not
linked to a runtime of its own: it takes that of torch, so that both share their threads.
"""

from __future__ import annotations

from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCES = sorted(
    str(path.relative_to(Path(__file__).parent)) for path in (Path(__file__).parent / "csrc").glob("*.cpp")
)
HEADERS = sorted(str(path) for pattern in ("*.h", "*.inc") for path in (Path(__file__).parent / "csrc").glob(pattern))
FLAGS = [
    "-O3",
    "-std=c++17",
    "-fopenmp",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wall",
    "-g0",
]


class Build(build_ext):
    """`optional` of an extension covers a failing compiler; a missing one is told, too."""

    def build_extension(self, ext: Extension) -> None:
        try:
            super().build_extension(ext)
        except Exception as error:
            print(f"riverrun: the native kernels were not built ({error}); torch's own operations are used")


setup(
    ext_modules=[
        Extension(
            "riverrun.models._native", SOURCES, depends=HEADERS, language="c++", extra_compile_args=FLAGS, optional=True
        )
    ],
    cmdclass={"build_ext": Build},
)
