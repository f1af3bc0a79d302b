"""General text for a fine-tune to keep what the model knew: docstrings of the standard library.

Every Python has it, so nothing is downloaded. The help topics (`pydoc_data.topics`), on which retention is measured,
are not among them.
"""

from __future__ import annotations

import importlib
import inspect
import random

__all__ = ["MODULES", "replay_texts"]

MODULES = [
    "argparse",
    "collections",
    "datetime",
    "decimal",
    "difflib",
    "fractions",
    "functools",
    "inspect",
    "itertools",
    "json",
    "logging",
    "pathlib",
    "random",
    "shutil",
    "statistics",
    "string",
    "subprocess",
    "textwrap",
    "threading",
    "typing",
    "unittest",
    "zipfile",
]
SHORTEST = 300


def replay_texts(count: int, *, characters: int, seed: int) -> list[tuple[str, str]]:
    """At most `count` (id, docstring) pairs of 300 to `characters` characters, the same for the same Python."""
    found: dict[str, str] = {}
    for name in MODULES:
        module = importlib.import_module(name)
        for attribute, value in sorted(vars(module).items()):
            if getattr(value, "__module__", None) == name and (inspect.isclass(value) or inspect.isroutine(value)):
                text = inspect.getdoc(value) or ""
                if len(text) >= SHORTEST:
                    found.setdefault(text[:characters], f"{name}.{attribute}")
    texts = sorted((origin, text) for text, origin in found.items())
    random.Random(seed).shuffle(texts)
    return texts[:count]
