"""A map of shares: a grid of cells, each as strong as its value. Needs the page's style sheet and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from riverrun.web.page import Content, plain
from riverrun.web.svg import WIDTH, figure, hover, label, percent_text

__all__ = ["heat_map"]

_ROW, _TOP, _LEFT = 30.0, 26.0, 70.0
_DARK = 0.55
"""From this share on a cell is so strong that its figure is written on the page's ground colour."""


def heat_map(
    columns: Sequence[Content],
    rows: Sequence[Content],
    values: Sequence[Sequence[float | None]],
    *,
    title: Content,
    x_label: Content = "",
    y_label: Content = "",
    description: Content = "",
) -> Markup:
    """`values[r][c]` are shares from 0 to 1, None where nothing was measured."""
    assert [len(row) for row in values] == [len(columns)] * len(rows)
    width = (WIDTH - _LEFT - 10) / max(1, len(columns))
    height = _TOP + _ROW * len(rows) + 44
    body, spoken = Markup(""), []
    for r, (name, row) in enumerate(zip(rows, values, strict=True)):
        y = _TOP + _ROW * r
        body += label(_LEFT - 8, y + 19, name, anchor="end")
        for c, value in enumerate(row):
            x = _LEFT + width * c
            said = f"{plain(name)}, {plain(columns[c])}: {'–' if value is None else percent_text(value)}"
            spoken.append(said)
            shape = '<rect class="f0" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" opacity="{:.3f}">{}</rect>'
            strength = 0.0 if value is None else 0.06 + 0.94 * min(1.0, max(0.0, value))
            body += Markup(shape).format(x + 1, y + 1, width - 2, _ROW - 2, strength, hover(said))
            text = "–" if value is None else f"{100 * value:.0f}"
            css = "inverse" if value is not None and value >= _DARK else ""
            body += label(x + width / 2, y + 19, text, anchor="middle", css=css)
    for c, name in enumerate(columns):
        body += label(_LEFT + width * (c + 0.5), height - 26, name, anchor="middle", css="quiet")
    body += label(_LEFT - 8, 15, y_label, anchor="end", css="quiet")
    body += label(WIDTH - 10, height - 6, x_label, anchor="end", css="quiet")
    return figure(body, height=height, title=title, description=description, summary="; ".join(spoken))
