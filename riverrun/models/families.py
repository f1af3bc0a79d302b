"""The decoder families of families.yaml: what their published configs preset, and what their layers are called."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any, Literal

import yaml

from riverrun.base.errors import UnsupportedError, nearest

__all__ = ["FULL", "SLIDING", "families", "refuse_family"]

FULL: Literal["full_attention"] = "full_attention"
SLIDING: Literal["sliding_attention"] = "sliding_attention"


@cache
def families() -> dict[str, dict[str, Any]]:
    """model_type -> {architecture, defaults, rename, ...} of every family that is computed here."""
    text = files("riverrun.models").joinpath("families.yaml").read_text(encoding="utf-8")
    table: dict[str, dict[str, Any]] = yaml.safe_load(text)["families"]
    return table


def refuse_family(family: Any) -> UnsupportedError:
    """The error for an architecture that is not computed here; it names the closest that is."""
    known = families()
    related = [name for name in known if str(family).startswith(name.removesuffix("_text"))]
    near = nearest(str(family), known)
    hint = f" The closest is {max(related, key=len)}." if related else near if "Did you mean" in near else ""
    return UnsupportedError(f"model_type '{family}' is not supported, supported: {', '.join(known)}.{hint}")
