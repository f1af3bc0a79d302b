"""What a finished run says last: its report, a few of its answers, and the commands to go on with."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from riverrun.chain.stage import Context, read_jsonl
from riverrun.chain.words import word

__all__ = ["closing", "pick_answers", "program"]

SHOWN = 3
LONGEST = 160


def closing(ctx: Context) -> Iterator[str]:
    """Lines for the end of a run whose report is written; only what was measured is shown."""
    yield word("finished", path=ctx.out / "report" / "index.html")
    folder = os.path.relpath(ctx.out)
    for answer in pick_answers(read_jsonl(ctx.folder("agent") / "answers.jsonl")):
        yield f"\n  > {answer['question']}"
        for step in answer["steps"]:
            yield _cut(f"    [{step['tool']}] {', '.join(str(value) for value in step['arguments'].values())}")
        yield from (_cut(f"    {line}") for line in answer["answer"].strip().splitlines()[:4])
    yield f"\n{word('talk')}  {program()} chat {folder}"
    yield f"{word('serve')}  {program()} serve {folder}"


def pick_answers(rows: Sequence[Mapping[str, Any]], count: int = SHOWN) -> list[Mapping[str, Any]]:
    """Right answers that used a tool, of as many kinds of question as there are; fewer when fewer were right."""
    right = [row for row in rows if row["success"] and row["steps"] and row["answer"].strip()]
    first: dict[str, Mapping[str, Any]] = {}
    for row in right:
        first.setdefault(str(row["kind"]), row)
    kinds = sorted(first, key=lambda kind: (kind not in ("lookup", "join", "page"), kind))
    chosen = [first[kind] for kind in kinds]
    return [*chosen, *(row for row in right if row not in chosen)][:count]


def program() -> str:
    """How the reader starts riverrun here: its name where the shell finds this one, else the path it was started by."""
    path = Path(sys.argv[0])
    found = shutil.which("riverrun")
    if path.stem != "riverrun" or (found and path.exists() and os.path.samefile(found, path)):
        return "riverrun"
    return os.path.relpath(path)


def _cut(line: str) -> str:
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 4]} ..."
