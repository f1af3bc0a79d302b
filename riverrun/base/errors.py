"""Every error a user can meet, in one tree.

    RiverrunError               one sentence, both values, the next step; the CLI prints it without a traceback
    ├── InputError (exit 2)     bad file, bad value, bad request
    │   ├── ConfigError         unknown key or wrong type in a spec
    │   ├── IntegrityError      a stored file is truncated or its digest is wrong
    │   ├── UnsupportedError    an option or content part this component does not have (named in the text)
    │   ├── CapacityError       it does not fit (memory, context, queue)
    │   └── MissingDependency   an optional package is not installed; the text holds the pip line
    ├── BusyError               more requests wait than may: ask again later
    ├── LateError               a request was given up at its own time limit
    ├── GateError (exit 3)      a stage ended, its figure missed its bar: figure, bar, advice
    └── ToolError (exit 1)      a tool refused or failed; agents feed it back to the model

Programmer errors are assertions and are never caught.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "BusyError",
    "CapacityError",
    "ConfigError",
    "GateError",
    "InputError",
    "IntegrityError",
    "LateError",
    "MissingDependency",
    "RiverrunError",
    "ToolError",
    "UnsupportedError",
    "nearest",
]


class RiverrunError(Exception):
    """Base of all errors meant for a person. `exit_code` is what the command line returns."""

    exit_code = 1


class InputError(RiverrunError):
    """The input cannot be used; nothing was changed."""

    exit_code = 2


class ConfigError(InputError):
    """A key or value of a spec is wrong."""


class IntegrityError(InputError):
    """A file is not what its digest or its header says."""


class UnsupportedError(InputError):
    """A known option or content part that this component does not offer."""


class CapacityError(InputError):
    """More memory, context or queue is needed than there is."""


class MissingDependency(InputError):
    """An optional package is needed and not installed."""


class BusyError(RiverrunError):
    """There is no room in the queue now; the same request may be taken later."""


class LateError(RiverrunError):
    """A request took longer than it was given."""


class GateError(RiverrunError):
    """A measured figure missed its bar."""

    exit_code = 3

    def __init__(self, name: str, value: float, bar: float, advice: str) -> None:
        super().__init__(f"gate '{name}': measured {value:.4g}, the bar is {bar:.4g}. {advice}")
        self.name, self.value, self.bar, self.advice = name, value, bar, advice


class ToolError(RiverrunError):
    """A tool call could not be carried out; the text is written for the model that called it."""


def nearest(name: str, known: Iterable[str], *, count: int = 3) -> str:
    """' Did you mean …?' with the closest known names, or a list of all when none is close."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=count, cutoff=0.5)
    if close:
        return f" Did you mean {' or '.join(repr(c) for c in close)}?"
    return f" Known: {', '.join(names)}." if names else ""
