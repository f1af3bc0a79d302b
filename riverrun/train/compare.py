"""Runs side by side as lines of text: what differs in their settings, where they ended, speed, memory. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from riverrun.base.errors import InputError
from riverrun.train.history import LOGS, History, flat
from riverrun.web.page import number
from riverrun.web.svg import text_width

__all__ = ["compare", "differing", "find_runs"]


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """The folders that are runs, and the runs directly in those that are none; InputError for one without any."""
    out: list[Path] = []
    for folder in folders:
        inside = [folder] if _is_run(folder) else sorted(path for path in folder.glob("*/") if _is_run(path))
        if not inside:
            raise InputError(f"{folder} holds no run (no {LOGS[0]}): give what `riverrun train run --out` wrote")
        out += inside
    return list(dict.fromkeys(out))


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in LOGS)


def differing(settings: Sequence[dict[str, Any]]) -> list[str]:
    """Dotted names of settings that are not the same in all, in the order they stand."""
    names = dict.fromkeys(name for each in settings for name in each)
    return [name for name in names if any(each.get(name) != settings[0].get(name) for each in settings)]


def compare(folders: Sequence[Path], *, chinese: bool = False) -> str:
    """A table, a run a line. Figures that a run does not have are dashes."""
    runs = [History.open(path) for path in find_runs(folders)]
    settings = [flat(run.settings) for run in runs]
    keys = differing(settings)
    sources = list(dict.fromkeys(name for run in runs for name in run.evaluations("bits_per_byte")))
    heads = ["运行", *keys, "步数", "损失", *(f"比特/字节 {name}" for name in sources), "词元/秒", "峰值 GB", "状态"]
    if not chinese:
        heads = [
            "run",
            *keys,
            "steps",
            "loss",
            *(f"bits/byte {name}" for name in sources),
            "tokens/s",
            "peak GB",
            "state",
        ]
    states = {"done": "完成", "open": "未完成"} if chinese else {"done": "done", "open": "not finished"}
    rows = [heads]
    for run, own in zip(runs, settings, strict=True):
        bits = run.evaluations("bits_per_byte")
        peak = run.peak_bytes
        rows.append(
            [
                str(run.folder),
                *(_short(own.get(key)) for key in keys),
                number(run.steps[-1] if run.steps else 0),
                number(run.final_loss()),
                *(number(bits[name][-1][1]) if name in bits else "–" for name in sources),
                number(run.rate("tokens")),
                "–" if peak is None else f"{peak / 1e9:.2f}",
                states[run.status],
            ]
        )
    return _aligned(rows)


def _short(value: Any) -> str:
    text = "–" if value in (None, "") else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= 32 else f"…{text[-31:]}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns of equal width; a Chinese character takes two places."""

    def places(text: str) -> int:
        return len(text) + sum(text_width(char) > 10 for char in text)

    widths = [max(places(row[at]) for row in rows) for at in range(len(rows[0]))]
    lines = (
        "  ".join(cell + " " * (width - places(cell)) for cell, width in zip(row, widths, strict=True)) for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)
