"""A map of what a model finds: length of the document by depth of the fact in it, asked through the model itself."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from riverrun.base.artifacts import write_json, write_text
from riverrun.base.protocols import LanguageModel, Request
from riverrun.base.types import Message, SamplingParams
from riverrun.data.needles import DIGITS, Retrieval, make
from riverrun.web.heat import heat_map
from riverrun.web.page import Both, Content, page, paragraph, section, tiles

__all__ = ["DEPTHS", "Map", "measure", "probes", "render", "write_maps"]

DEPTHS = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
DISTRACTORS = 3
"""Facts of other names in every document: only the name tells which is asked for."""


@dataclass(frozen=True, slots=True)
class Map:
    """`found[length][depth]` of `asked` documents each."""

    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    found: tuple[tuple[int, ...], ...]
    asked: int

    def share(self, length: int) -> float:
        """Found of all that were asked at a length."""
        row = self.found[self.lengths.index(length)]
        return sum(row) / (self.asked * len(row))

    def to_json(self) -> dict[str, Any]:
        return {
            "lengths": list(self.lengths),
            "depths": list(self.depths),
            "asked": self.asked,
            "found": [list(row) for row in self.found],
            "share": {str(length): self.share(length) for length in self.lengths},
        }


def probes(
    length: int, depth: float, each: int, hay: Sequence[str], count: Callable[[str], int], *, seed: int = 0
) -> list[Retrieval]:
    """`each` documents of `length` tokens with one fact at `depth` that is asked for and `DISTRACTORS` elsewhere."""
    rng = random.Random(f"probes/{length}/{depth}/{seed}")
    out = []
    for _ in range(each):
        others = [rng.random() for _ in range(DISTRACTORS)]
        found = make(length, [depth, *others], hay, count, rng, ask=1)
        out.append(found)
    return out


def measure(
    model: LanguageModel,
    hay: Sequence[str],
    count: Callable[[str], int],
    *,
    lengths: Sequence[int],
    each: int,
    depths: Sequence[float] = DEPTHS,
    seed: int = 0,
    done: Callable[[], None] = lambda: None,
) -> Map:
    """Ask for every fact greedily; it is found when the answer begins with its code. `done` is called for each cell."""
    params = SamplingParams(temperature=0.0, max_tokens=2 * DIGITS + 2)
    rows = []
    for length in lengths:
        row = []
        for depth in depths:
            asked = probes(length, depth, each, hay, count, seed=seed)
            requests = [
                Request((Message.of("user", found.messages()[0]["content"]),), params=params) for found in asked
            ]
            answers = [completion.message.require_text("model") for completion in model.generate(requests)]
            row.append(
                sum(
                    answer.strip().startswith(found.needles[0].code)
                    for answer, found in zip(answers, asked, strict=True)
                )
            )
            done()
        rows.append(tuple(row))
    return Map(tuple(lengths), tuple(depths), tuple(rows), each)


def render(maps: Mapping[str, Map], goal: float) -> str:
    """The page: a map for each model, in order."""
    last = list(maps.values())[-1]
    longest = last.lengths[-1]
    figures: list[tuple[Content, Content]] = [
        (Both(f"{name}: found at {longest:,}", f"{name}:{longest:,} 词元处找到"), f"{100 * each.share(longest):.1f} %")
        for name, each in maps.items()
        if longest in each.lengths
    ]
    words = Both(
        f"Each cell is the share of {last.asked} documents in which the fact at that depth was found among "
        f"{DISTRACTORS} others. The goal is {100 * goal:.0f} % at {longest:,} tokens.",
        f"每格为 {last.asked} 篇文档中找到该深度事实的比例,文中另有 {DISTRACTORS} 条事实。"
        f"目标:{longest:,} 词元时达到 {100 * goal:.0f} %。",
    )
    charts = [
        heat_map(
            [f"{length:,}" for length in each.lengths],
            [f"{100 * depth:.0f} %" for depth in each.depths],
            [[row[place] / each.asked for row in each.found] for place in range(len(each.depths))],
            title=Both(f"Found, in percent: {name}", f"找到的比例(%):{name}"),
            x_label=Both("tokens", "词元"),
            y_label=Both("depth", "深度"),
        )
        for name, each in maps.items()
    ]
    short = section(Both("In short", "概要"), tiles(figures), paragraph(words))
    return page(
        Both("Needles in long texts", "长文检索"), short, section(Both("Length by depth", "长度与深度"), *charts)
    )


def write_maps(folder: Path, maps: Mapping[str, Map], goal: float) -> None:
    """`needles.json` and `needles.html`."""
    write_json(folder / "needles.json", {name: each.to_json() for name, each in maps.items()})
    write_text(folder / "needles.html", render(maps, goal))
