"""Real material that is too big for the repository: found under the folder that RIVERRUN_SHARED names.

Where it is absent the test reports "not run here"; with RIVERRUN_REQUIRE=all that is a failure.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

__all__ = ["shared_path"]


def shared_path(*parts: str) -> Path:
    """The path below RIVERRUN_SHARED, or the test ends here (skipped or failed)."""
    root = os.environ.get("RIVERRUN_SHARED", "")
    path = Path(root).joinpath(*parts)
    if root and path.exists():
        return path
    why = f"not run here: needs {'/'.join(parts)} under the folder that RIVERRUN_SHARED names"
    if os.environ.get("RIVERRUN_REQUIRE") == "all":
        pytest.fail(why)
    pytest.skip(why)
