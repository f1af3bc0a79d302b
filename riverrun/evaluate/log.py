"""Records on disk, one JSON object a line. They hold all that a score is made of: scoring again needs no model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from riverrun.base.artifacts import atomic_file
from riverrun.base.errors import InputError

__all__ = ["Recorded", "read_records", "write_records"]

R = TypeVar("R")


class Recorded(Protocol):
    def as_dict(self) -> dict[str, Any]: ...


def write_records(path: Path, records: Iterable[Recorded]) -> int:
    """Write the file whole or not at all; gives the number of lines."""
    count = 0
    with atomic_file(path) as handle:
        for record in records:
            handle.write(json.dumps(record.as_dict(), ensure_ascii=False) + "\n")
            count += 1
    return count


def read_records(path: Path, read: Callable[[Mapping[str, Any]], R]) -> list[R]:
    """Read every line with a record's `from_dict`; InputError names the file and the line that cannot be read."""
    if not path.is_file():
        raise InputError(f"{path} does not exist: run the evaluation that writes it")
    out = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):  # splitlines breaks at U+2028
        if not line:
            continue
        try:
            out.append(read(json.loads(line)))
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{path}, line {number}: not a record of this task ({error}): evaluate again") from None
    return out
