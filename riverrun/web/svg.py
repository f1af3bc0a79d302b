"""What every inline chart shares: a figure around an SVG, text in two languages, round axis ticks.

Coordinates are SVG user units (one unit is one CSS pixel at full width). Colours come from the page's style sheet, so
that one drawing serves dark and light.
"""

from __future__ import annotations

import hashlib
import math
import unicodedata
from collections.abc import Sequence

from markupsafe import Markup, escape

from riverrun.web.page import Both, Content, number, plain

__all__ = [
    "COLOURS",
    "WIDTH",
    "figure",
    "hover",
    "label",
    "log_ticks",
    "nice_ticks",
    "percent_text",
    "text_width",
    "wrap",
]

WIDTH = 720
COLOURS = 6


def label(x: float, y: float, content: Content, *, anchor: str = "start", css: str = "", title: Content = "") -> Markup:
    """A text at (x, y); `anchor` is start, middle or end."""
    if isinstance(content, Both):
        inner = Markup('<tspan lang="en">{}</tspan><tspan lang="zh">{}</tspan>').format(content.en, content.zh)
    else:
        inner = escape(plain(content))
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}" class="{}">{}{}</text>').format(
        x, y, anchor, css, hover(title) if title else "", inner
    )


def hover(content: Content) -> Markup:
    """The text shown while the pointer rests on the enclosing element."""
    return Markup("<title>{}</title>").format(_both_plain(content))


def _both_plain(content: Content) -> str:
    return f"{content.en} / {content.zh}" if isinstance(content, Both) else plain(content)


def figure(
    body: Markup,
    *,
    height: float,
    title: Content,
    description: Content,
    summary: str,
    legend: Sequence[tuple[int, Content] | tuple[int, Content, str]] = (),
    width: float = WIDTH,
) -> Markup:
    """The framed chart. `summary` says in words what the drawing shows; `legend` lists (colour index, name), and
    a class where the swatch needs one."""
    below = Markup("<small>{}</small>").format(description) if description else Markup("")
    keys = Markup("").join(
        Markup(
            '<li><svg viewBox="0 0 10 10" aria-hidden="true"><rect width="10" height="10" rx="2" class="f{}{}"/>'
            "</svg>{}</li>"
        ).format(colour % COLOURS, "".join(f" {css}" for css in more if css), name)
        for colour, name, *more in legend
    )
    name = hashlib.sha256(f"{title}{summary}{body}".encode("utf-8", "replace")).hexdigest()[:10]
    return Markup(
        '<figure><figcaption>{caption}{below}</figcaption>{legend}<div class="scroll">'
        '<svg class="chart" viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-labelledby="t{name} d{name}">'
        '<title id="t{name}">{title}</title><desc id="d{name}">{summary}</desc>{body}</svg></div></figure>'
    ).format(
        caption=title,
        below=below,
        legend=Markup('<ul class="legend">{}</ul>').format(keys) if keys else "",
        width=width,
        height=height,
        name=name,
        title=_both_plain(title),
        summary=summary or "no data",
        body=body,
    )


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round values (steps of 1, 2 or 5 times a power of ten) that enclose [low, high], both finite."""
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-300):  # too close to tell apart in figures of 9 digits
        spread = abs(low) * 0.1 or 1.0
        low, high = low - spread, high + spread
    raw = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next((factor * power for factor in (1, 2, 5) if factor * power >= raw * 0.999), 10 * power)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Values 1, 2, 5 times powers of ten (powers alone beyond two decades) that enclose [low, high], both above 0."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high) + 1e-9)
    factors = (1, 2, 5) if math.log10(high) - math.log10(low) <= 2 else (1,)
    values = [factor * 10.0**power for power in range(first, last + 1) for factor in factors]
    start = max((i for i, value in enumerate(values) if value <= low * 1.0001), default=0)
    stop = min((i for i, value in enumerate(values) if value >= high * 0.9999), default=len(values) - 1)
    return values[start : max(stop, start + 1) + 1]


def percent_text(share: float) -> str:
    """0.8749 -> 87.5 %."""
    return f"{100 * share:.1f} %" if share == share else number(share)


def text_width(text: str) -> float:
    """Estimated width of 12-unit text: wide (CJK) characters are one em."""
    return sum(12.0 if unicodedata.east_asian_width(char) in "WF" else 7.0 for char in text)


def wrap(content: Content, width: float) -> list[Content]:
    """Lines no wider than about `width` where the words allow it. A text in two languages stays on one line."""
    if isinstance(content, Both):
        return [content]
    lines: list[str] = []
    for word in plain(content).split():
        if lines and text_width(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return list(lines) or [""]
