"""What pre-training on texts gives: bits per byte of held-out text by language over the run, and samples."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from riverrun.base.artifacts import write_text
from riverrun.web.charts import Series, line_chart
from riverrun.web.page import Both, Content, join, page, paragraph, section, table

__all__ = ["bits_per_byte", "render", "samples", "write_texts"]

Curve = list[tuple[int, float]]


def _events(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for line in lines if (row := json.loads(line))["event"] == kind]


def bits_per_byte(folder: Path) -> dict[str, Curve]:
    """(finished steps, bits per byte) of each validation set of a training run, in order."""
    out: dict[str, Curve] = {}
    for row in _events(folder, "eval"):
        if row["bits_per_byte"] is not None:
            out.setdefault(row["name"], []).append((row["step"], row["bits_per_byte"]))
    return out


def samples(folder: Path) -> list[tuple[int, str, str]]:
    """(finished steps, beginning, greedy continuation) in order."""
    return [(row["step"], row["prompt"], row["text"]) for row in _events(folder, "sample")]


def render(runs: Mapping[str, Path]) -> str:
    """The page of one training run or several."""
    parts: list[Content] = []
    for name, folder in runs.items():
        curves = bits_per_byte(folder)
        chart = line_chart(
            [Series(language, [(float(step), bits) for step, bits in curve]) for language, curve in curves.items()],
            title=Both("Bits per byte of held-out documents", "留出文档上的每字节比特数"),
            x_label=Both("step", "步"),
            y_label=Both("bits per byte", "每字节比特"),
        )
        heads: list[Content] = [
            Both("Text", "文本"),
            Both("First", "最初"),
            Both("Last", "最后"),
            Both("Share", "比例"),
        ]
        rows: list[list[Content | float]] = [
            [key, curve[0][1], curve[-1][1], curve[-1][1] / curve[0][1]] for key, curve in curves.items()
        ]
        said: list[list[Content | int]] = [[step, prompt, text] for step, prompt, text in samples(folder)]
        columns: list[Content] = [Both("Step", "步"), Both("Beginning", "开头"), Both("Continued greedily", "贪心续写")]
        parts.append(section(name, chart, table(heads, rows, numeric=(1, 2, 3)), table(columns, said, numeric=(0,))))
    words = paragraph(
        Both(
            "Whole documents are held out, and bytes are those of the text, so vocabularies can be compared.",
            "留出的是整篇文档;字节按原文计算,因此不同词表可以比较。",
        )
    )
    return page(Both("Pre-training on texts", "文本预训练"), join(words), *parts)


def write_texts(out: Path, runs: Mapping[str, Path]) -> dict[str, Any]:
    """`texts.html`; first and last bits per byte of every run and set."""
    write_text(out / "texts.html", render(runs))
    return {
        name: {key: [curve[0][1], curve[-1][1]] for key, curve in bits_per_byte(folder).items()}
        for name, folder in runs.items()
    }
