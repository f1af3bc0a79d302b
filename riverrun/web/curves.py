"""Curves over a common x axis as inline SVG, of any number of points.

Long curves are drawn with four points for each column of the drawing: its first, lowest, highest and last, so that no
spike is lost. Values are also in hover titles and in the description that a screen reader speaks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Literal

from markupsafe import Markup

from riverrun.web.page import Both, Content, number, plain
from riverrun.web.svg import COLOURS, WIDTH, figure, hover, label, log_ticks, nice_ticks, percent_text, text_width

__all__ = ["EMPTY", "LARGEST", "Mark", "Series", "line_chart", "thin"]

Point = tuple[float, float]

LARGEST = 1e100
"""Beyond it (and for infinity and nan) nothing is drawn."""
EMPTY = Both("no data", "没有数据")
_COLUMNS, _HIT_COLUMNS, _MARK_COLUMNS = 640, 37, 160
_HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 300.0, 62.0, 16.0, 26.0, 40.0


@dataclass(frozen=True, slots=True)
class Series:
    """A named curve. Points whose value is not finite (or beyond 1e100) break the line.

    look: a line, one that stands back behind the others, or a line with a dot on each point. Two curves of one thing
    may share a `colour` (0 to 5; the place in the chart unless given).
    """

    name: Content
    points: Sequence[Point]
    look: Literal["line", "faint", "dots"] = "line"
    colour: int | None = None


@dataclass(frozen=True, slots=True)
class Mark:
    """A place on the x axis where something happened: a line from top to bottom, or a red tick for something bad."""

    x: float
    name: Content
    kind: Literal["plain", "bad"] = "plain"


@dataclass(frozen=True, slots=True)
class _Frame:
    """What turns values into places."""

    x_low: float
    x_high: float
    x_ticks: Sequence[float]
    y_ticks: Sequence[float]
    log_y: bool

    def up(self, y: float) -> float:
        scale: Callable[[float], float] = math.log10 if self.log_y else float
        low, high = scale(self.y_ticks[0]), scale(self.y_ticks[-1])
        share = (scale(y) - low) / (high - low)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)

    def across(self, x: float) -> float:
        return _LEFT + (x - self.x_low) / (self.x_high - self.x_low) * (WIDTH - _LEFT - _RIGHT)

    def drawable(self, point: Point) -> bool:
        x, y = point
        return abs(x) < LARGEST and abs(y) < LARGEST and (not self.log_y or y > 1 / LARGEST)


def line_chart(
    series: Sequence[Series],
    *,
    title: Content,
    x_label: Content = "",
    y_label: Content = "",
    description: Content = "",
    log_y: bool = False,
    from_zero: bool = False,
    percent: bool = False,
    marks: Sequence[Mark] = (),
    span: tuple[float, float] | None = None,
    limit: float | None = None,
    limit_label: Content = "",
) -> Markup:
    """Curves over a common x axis. With `log_y` values at or below 0 are left out of the line.

    `span`: least and greatest x of the axis, where the curves do not decide it.
    `from_zero`: the y axis begins at 0. `percent`: values are shares. `limit` draws a dashed line across.
    """
    bounds = _Frame(0.0, 1.0, (0.0, 1.0), (1.0, 2.0), log_y)
    shown = [(each, [p for p in each.points if bounds.drawable(p)]) for each in series]
    frame = _frame(shown, log_y, from_zero, limit, span)
    write = percent_text if percent else number
    body = _axes(frame, x_label, y_label, percent)
    if limit is not None:
        y = frame.up(limit)
        body += Markup('<path class="limit" d="M{:.1f} {:.1f}H{:.1f}"/>').format(_LEFT, y, WIDTH - _RIGHT)
    body += _marks(marks, frame)
    hits = Markup("")
    for index, (one, points) in enumerate(shown):
        body += _curve(one, _colour(one, index), frame)
        for x, y in thin(points, _HIT_COLUMNS):
            text = f"{plain(one.name)}: {write(y)} ({plain(x_label) or 'x'} {number(x)})"
            hits += Markup('<circle class="hit" cx="{:.1f}" cy="{:.1f}" r="5">{}</circle>').format(
                frame.across(x), frame.up(y), hover(text)
            )
    body += hits  # on top of all curves, or a later one would cover them
    if limit is not None and limit_label:
        y = frame.up(limit)
        body += label(WIDTH - _RIGHT, y - 5 if y > _TOP + 16 else y + 15, limit_label, anchor="end", css="limit-text")
    if not any(points for _, points in shown):
        body += label(WIDTH / 2, _HEIGHT / 2, EMPTY, anchor="middle", css="quiet")
    summary = "; ".join(_spoken(one, points, write) for one, points in shown)
    if marks:
        summary += f"; {len(marks)} marks, the first at {number(marks[0].x)}: {plain(marks[0].name)}"
    several = enumerate(series) if len(series) > 1 else ()
    legend = [(_colour(one, index), one.name, "faint" if one.look == "faint" else "") for index, one in several]
    return figure(body, height=_HEIGHT, title=title, description=description, summary=summary, legend=legend)


def thin(points: Sequence[Point], columns: int) -> list[Point]:
    """The points, in order; of many, no more than five for each of `columns` equal parts of the x axis.

    A part keeps its first, lowest, highest and last point, and one that is not finite where it has any, so that a line
    still breaks there. Points whose x does not rise stay as they are.
    """
    own = list(points)
    if len(own) <= 4 * columns:
        return own
    low, high = own[0][0], own[-1][0]
    if not (abs(low) < LARGEST and abs(high) < LARGEST and high > low):
        return own
    if any(not later[0] >= earlier[0] for earlier, later in pairwise(own)):
        return own
    kept: list[Point] = []
    width, start = (high - low) / columns, 0
    for column in range(columns):
        edge = low + (column + 1) * width
        stop = start
        while stop < len(own) and (own[stop][0] < edge or column == columns - 1):
            stop += 1
        kept += _ends(own[start:stop])
        start = stop
    return kept


def _ends(part: Sequence[Point]) -> list[Point]:
    """First, lowest, highest and last, and the first that is not finite; in order."""
    finite = [(y, at) for at, (_, y) in enumerate(part) if abs(y) < LARGEST]
    chosen = {0, len(part) - 1} if part else set[int]()
    if finite:
        chosen |= {min(finite)[1], max(finite)[1]}
    if len(finite) < len(part):
        chosen.add(next(at for at, (_, y) in enumerate(part) if not abs(y) < LARGEST))
    return [part[at] for at in sorted(chosen)]


def _frame(
    shown: Sequence[tuple[Series, list[Point]]],
    log_y: bool,
    from_zero: bool,
    limit: float | None,
    span: tuple[float, float] | None,
) -> _Frame:
    xs = [x for _, points in shown for x, _ in points] + list(span or ()) or [0.0, 1.0]
    ys = [y for _, points in shown for _, y in points] or [1.0, 2.0]
    ys += [limit] if limit is not None else []
    low = min(0.0, *ys) if from_zero and not log_y else min(ys)
    x_ticks = nice_ticks(min(xs), max(xs), 7)
    x_low, x_high = (min(xs), max(xs)) if max(xs) > min(xs) else (x_ticks[0], x_ticks[-1])
    shown_ticks = [tick for tick in x_ticks if x_low <= tick <= x_high]
    if all(x.is_integer() for x in map(float, xs)):  # such as steps, of which there are no halves
        shown_ticks = [tick for tick in shown_ticks if tick.is_integer()]
    y_ticks = log_ticks(low, max(ys)) if log_y else nice_ticks(low, max(ys))
    return _Frame(x_low, x_high, shown_ticks, y_ticks, log_y)


def _axes(frame: _Frame, x_label: Content, y_label: Content, percent: bool) -> Markup:
    foot = _HEIGHT - _BOTTOM
    body = Markup("")
    for tick in frame.y_ticks:
        y = frame.up(tick)
        body += Markup('<path class="grid" d="M{:.1f} {:.1f}H{:.1f}"/>').format(_LEFT, y, WIDTH - _RIGHT)
        text = f"{100 * tick:.4g} %" if percent else number(tick)
        body += label(_LEFT - 6, y + 4, text, anchor="end", css="quiet")
    for tick in frame.x_ticks:
        at, text = frame.across(tick), number(tick)
        near = at + text_width(text) / 2 > WIDTH  # its end would be cut off
        body += label(WIDTH if near else at, foot + 17, text, anchor="end" if near else "middle", css="quiet")
    body += Markup('<path class="axis" d="M{:.1f} {:.1f}H{:.1f}"/>').format(_LEFT, foot, WIDTH - _RIGHT)
    body += label(_LEFT - 6, 13, y_label, css="quiet")
    return body + label(WIDTH - _RIGHT, _HEIGHT - 6, x_label, anchor="end", css="quiet")


def _marks(marks: Sequence[Mark], frame: _Frame) -> Markup:
    """Marks closer than a few pixels are drawn as one that counts them."""
    body = Markup("")
    span = frame.x_high - frame.x_low
    inside = sorted((m for m in marks if frame.x_low <= m.x <= frame.x_high), key=lambda m: (m.kind, m.x))
    for (kind, _), group in groupby(inside, lambda m: (m.kind, int((m.x - frame.x_low) / span * _MARK_COLUMNS))):
        some = list(group)
        text: Content = some[0].name
        if len(some) > 1:
            text = Both(f"{plain(text)} and {len(some) - 1} more", f"{plain(text, 'zh')} 等 {len(some)} 处")
        x = frame.across(some[0].x)
        if kind == "bad":
            path = Markup('<path class="bad-mark" d="M{:.1f} {:.1f}l-4 -8h8z">{}</path>')
            body += path.format(x, _TOP, hover(text))
        else:
            path = Markup('<path class="mark" d="M{:.1f} {:.1f}V{:.1f}">{}</path>')
            body += path.format(x, _TOP, _HEIGHT - _BOTTOM, hover(text))
    return body


def _spoken(one: Series, points: Sequence[Point], write: Callable[[float], str]) -> str:
    if not points:
        return f"{plain(one.name)}: no points"
    ends = f"from {write(points[0][1])} to {write(points[-1][1])}"
    return f"{plain(one.name)}: {len(points)} points, {ends}"


def _runs(points: Sequence[Point], frame: _Frame) -> Iterator[list[str]]:
    """Places of the points that one line goes through."""
    run: list[str] = []
    for point in points:
        if frame.drawable(point):
            run.append(f"{frame.across(point[0]):.1f} {frame.up(point[1]):.1f}")
        elif run:
            yield run
            run = []
    if run:
        yield run


def _colour(one: Series, index: int) -> int:
    return (index if one.colour is None else one.colour) % COLOURS


def _curve(one: Series, colour: int, frame: _Frame) -> Markup:
    runs = list(_runs(thin(one.points, _COLUMNS), frame))
    lines = "".join(f"M{run[0]}" + "".join(f"L{at}" for at in run[1:]) for run in runs if len(run) > 1)
    look = " faint" if one.look == "faint" else ""
    dotted = [at for run in runs if len(run) == 1 or one.look == "dots" for at in run]
    dots = Markup("").join(
        Markup('<circle class="f{}{}" cx="{}" cy="{}" r="3"/>').format(colour, look, *at.split()) for at in dotted
    )
    path = Markup('<path class="curve s{}{}" d="{}"/>').format(colour, look, lines) if lines else Markup("")
    return path + dots
