"""Optional packages: imported where they are used, asked for at construction, named with their pip line."""

from __future__ import annotations

import importlib
from types import ModuleType

from riverrun.base.errors import MissingDependency

__all__ = ["require"]


def require(module: str, *, extra: str) -> ModuleType:
    """Import a package of an extra, or say which pip line brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = error.name or module
        raise MissingDependency(
            f"package '{missing}' is needed here and not installed: pip install 'riverrun[{extra}]'"
        ) from None
