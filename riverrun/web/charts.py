"""Inline SVG charts: bars with confidence intervals, a funnel of documents; curves come from web.curves, `dag` from
web.graph.

They need the page's style sheet and nothing else: no script, no outside file. Values are also in hover titles and in
the description that a screen reader speaks. Not covered: zooming, live data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from riverrun.web.curves import EMPTY, LARGEST, Mark, Series, line_chart
from riverrun.web.graph import Node, dag
from riverrun.web.page import Content, number, plain
from riverrun.web.svg import COLOURS, WIDTH, figure, hover, label, nice_ticks, percent_text, text_width, wrap

__all__ = ["Bar", "BarGroup", "FunnelStep", "Mark", "Node", "Series", "bar_chart", "dag", "funnel", "line_chart"]

_LABEL_WIDTH = 190.0


@dataclass(frozen=True, slots=True)
class Bar:
    """One value; `low` and `high` are the ends of its interval, drawn as a whisker when both are given."""

    name: Content
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class BarGroup:
    """Bars that are compared with one another, such as one task before, after and quantised."""

    label: Content
    bars: Sequence[Bar]


@dataclass(frozen=True, slots=True)
class FunnelStep:
    """How many were left after a step, and how many went for which reason."""

    label: Content
    kept: int
    dropped: Mapping[str, int] = field(default_factory=dict)


def bar_chart(
    groups: Sequence[BarGroup],
    *,
    title: Content,
    value_label: Content = "",
    description: Content = "",
    percent: bool = False,
    limit: float | None = None,
    limit_label: Content = "",
) -> Markup:
    """Horizontal bars in groups, with whiskers for intervals. Bars of the same name share a colour.

    `percent`: values are shares from 0 to 1, the axis runs from 0 to 100 %. `limit` draws a dashed line.
    """
    colours: dict[str, int] = {}
    names: list[Content] = []
    for bar in (bar for group in groups for bar in group.bars):
        if plain(bar.name) not in colours:
            colours[plain(bar.name)] = len(colours)
            names.append(bar.name)
    finite = [v for g in groups for b in g.bars for v in (b.value, b.low, b.high) if v is not None and abs(v) < LARGEST]
    finite += [limit] if limit is not None else []
    ticks = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0] if percent else nice_ticks(min([0.0, *finite]), max([0.0, *finite]))
    left = 24 + min(_LABEL_WIDTH, max((text_width(plain(g.label, x)) for g in groups for x in ("en", "zh")), default=0))
    axis = _Axis(ticks[0], ticks[-1], left, WIDTH - 150.0, percent)
    top, row, gap = 24.0, 20.0, 16.0
    height = top + sum(max(1, len(g.bars)) * row + gap for g in groups) + 24

    body = Markup("")
    for tick in ticks:
        body += Markup('<path class="grid" d="M{:.1f} {:.1f}V{:.1f}"/>').format(axis.x(tick), top, height - 22)
        body += label(axis.x(tick), height - 8, axis.short(tick), anchor="middle", css="quiet")
    body += label(WIDTH, height - 8, value_label, anchor="end", css="quiet")
    if limit is not None:
        body += Markup('<path class="limit" d="M{:.1f} {:.1f}V{:.1f}"/>').format(axis.x(limit), top - 6, height - 22)
        body += label(axis.x(limit), 13, limit_label or axis.write(limit), anchor="middle", css="limit-text")
    y = top + gap / 2
    for group in groups:
        lines = wrap(group.label, _LABEL_WIDTH)
        middle = y + max(1, len(group.bars)) * row / 2 - (len(lines) - 1) * 7 + 4
        for index, line in enumerate(lines):
            body += label(left - 10, middle + 14 * index, line, anchor="end")
        for bar in group.bars:
            body += _bar(bar, colours[plain(bar.name)], axis, y, row)
            y += row
        y += gap if group.bars else gap + row
    body += Markup('<path class="axis" d="M{:.1f} {:.1f}V{:.1f}"/>').format(axis.x(0.0), top, height - 22)
    summary = "; ".join(f"{plain(g.label)}: " + ", ".join(_spoken(b, axis) for b in g.bars) for g in groups)
    legend = [(colours[plain(name)], name) for name in names] if len(names) > 1 else []
    return figure(body, height=height, title=title, description=description, summary=summary, legend=legend)


@dataclass(frozen=True, slots=True)
class _Axis:
    low: float
    high: float
    start: float
    stop: float
    percent: bool

    def x(self, value: float) -> float:
        inside = min(max(value, self.low), self.high)
        return self.start + (inside - self.low) / (self.high - self.low) * (self.stop - self.start)

    def write(self, value: float) -> str:
        return percent_text(value) if self.percent else number(value)

    def short(self, value: float) -> str:
        return f"{100 * value:.0f} %" if self.percent else number(value)


def _spoken(bar: Bar, axis: _Axis) -> str:
    text = f"{plain(bar.name)} {axis.write(bar.value)}"
    if bar.low is not None and bar.high is not None:
        text += f" (interval {axis.write(bar.low)} to {axis.write(bar.high)})"
    return text


def _bar(bar: Bar, colour: int, axis: _Axis, y: float, row: float) -> Markup:
    if not abs(bar.value) < LARGEST:
        return label(axis.x(0.0) + 6, y + row / 2 + 4, number(bar.value), css="quiet")
    start, stop = sorted((axis.x(0.0), axis.x(bar.value)))
    out = Markup('<rect class="f{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" rx="2">{}</rect>').format(
        colour % COLOURS, start, y + 2, max(0.5, stop - start), row - 4, hover(_spoken(bar, axis))
    )
    text, edge = axis.write(bar.value), stop
    if bar.low is not None and bar.high is not None and math.isfinite(bar.low) and math.isfinite(bar.high):
        low, high, middle = axis.x(bar.low), axis.x(bar.high), y + row / 2
        out += Markup(
            '<path class="whisker" d="M{low:.1f} {top:.1f}V{end:.1f}M{high:.1f} {top:.1f}V{end:.1f}'
            'M{low:.1f} {middle:.1f}H{high:.1f}"/>'
        ).format(low=low, high=high, middle=middle, top=middle - 4, end=middle + 4)
        unit = 100 if axis.percent else 1
        text += (
            f"  [{number(round(unit * bar.low, 1))}, {number(round(unit * bar.high, 1))}]"
            if axis.percent
            else (f"  [{number(bar.low)}, {number(bar.high)}]")
        )
        edge = max(stop, high)
    return out + label(edge + 6, y + row / 2 + 4, text)


def funnel(steps: Sequence[FunnelStep], *, title: Content, description: Content = "") -> Markup:
    """What was left after each step (first step: what came in), with the drops by reason under each bar."""
    widest = max((step.kept + sum(step.dropped.values()) for step in steps), default=0) or 1
    sizes = [text_width(plain(step.label, lang)) for step in steps for lang in ("en", "zh")]
    left = 24 + min(_LABEL_WIDTH, max(sizes, default=0))
    room = WIDTH - left - 110
    body, y, spoken = Markup(""), 6.0, []
    for step in steps:
        gone = sum(step.dropped.values())
        kept_width, gone_width = step.kept / widest * room, gone / widest * room
        lines = wrap(step.label, _LABEL_WIDTH)
        for index, line in enumerate(lines):
            body += label(left - 10, y + 16 + 14 * index, line, anchor="end")
        said = f"{plain(step.label)}: {number(step.kept)} kept"
        body += Markup('<rect class="f0" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="22" rx="2">{}</rect>').format(
            left, y, max(kept_width, 0.5), hover(said)
        )
        if gone:
            reasons = [f"{number(-count)} {reason}" for reason, count in sorted(step.dropped.items(), key=_most_first)]
            said += f", dropped {number(gone)} ({', '.join(reasons)})"
            body += Markup(
                '<rect class="f1" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="22" rx="2" opacity=".75">{}</rect>'
            ).format(left + kept_width, y, max(gone_width, 1.5), hover(", ".join(reasons)))
        else:
            reasons = []
        body += label(left + kept_width + gone_width + 8, y + 16, number(step.kept), css="strong")
        notes = wrap(" · ".join(reasons).replace(" ", "\u00a0").replace("\u00a0·\u00a0", " · "), WIDTH - left - 10)
        for index, line in enumerate(notes if reasons else []):
            body += label(left, y + 37 + 15 * index, line, css="quiet")
        y += max(22.0 + (15.0 * len(notes) + 4 if reasons else 0), 14.0 * len(lines) + 4) + 12
        spoken.append(said)
    if not steps:
        body += label(WIDTH / 2, 20, EMPTY, anchor="middle", css="quiet")
    return figure(body, height=max(y, 36), title=title, description=description, summary="; ".join(spoken))


def _most_first(item: tuple[str, int]) -> tuple[int, str]:
    return -item[1], item[0]
