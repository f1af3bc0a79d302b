"""Long curves keep their spikes and their gaps; marks, limits and axes stand where they should."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

from hypothesis import given, settings
from hypothesis import strategies as st

from riverrun.web.charts import Mark, Series, line_chart
from riverrun.web.curves import thin
from riverrun.web.page import Both

values = st.lists(st.one_of(st.floats(-1e6, 1e6), st.just(math.nan), st.just(math.inf)), max_size=400)


def columns_of(points: list[tuple[float, float]], columns: int) -> list[list[tuple[float, float]]]:
    low, high = points[0][0], points[-1][0]
    out: list[list[tuple[float, float]]] = [[] for _ in range(columns)]
    for point in points:
        edges = [low + (n + 1) * ((high - low) / columns) for n in range(columns - 1)]
        out[sum(point[0] >= edge for edge in edges)].append(point)
    return out


@settings(derandomize=True, max_examples=150, deadline=None)
@given(values, st.integers(1, 12))
def test_thinning_keeps_the_extremes_ends_and_breaks_of_every_column(ys: list[float], columns: int) -> None:
    points = [(float(x), y) for x, y in enumerate(ys)]
    kept = thin(points, columns)
    assert len(kept) <= max(5 * columns, len(points) if len(points) <= 4 * columns else 0)
    places = [points.index(point) for point in kept if point[1] == point[1]]
    assert places == sorted(places)
    if len(points) <= 4 * columns:
        assert [str(p) for p in kept] == [str(p) for p in points]
        return
    for before, after in zip(columns_of(points, columns), columns_of(kept, columns), strict=True):
        assert str(before[0]) == str(after[0])
        assert str(before[-1]) == str(after[-1])
        finite, left = ([y for _, y in part if math.isfinite(y)] for part in (before, after))
        assert (min(finite, default=0), max(finite, default=0)) == (min(left, default=0), max(left, default=0))
        assert (len(finite) < len(before)) == (len(left) < len(after))


def test_curves_that_turn_back_are_not_thinned() -> None:
    turning = [(float(n % 50), float(n)) for n in range(100)]
    assert thin(turning, 4) == turning
    still = [(1.0, float(n)) for n in range(100)]
    assert thin(still, 4) == still


def test_a_spike_in_a_hundred_thousand_points_is_drawn_and_can_be_hovered() -> None:
    points = [(float(n), 1.0 + (n % 7) / 10) for n in range(100_000)]
    points[54_321] = (54_321.0, 50.0)
    drawing = ElementTree.fromstring(str(line_chart([Series("a", points)], title="t")))
    [curve] = [p for p in drawing.iter("path") if "curve" in str(p.get("class"))]
    heights = [float(y) for y in re.findall(r" ([\d.]+)", str(curve.get("d")))]
    assert min(heights) == 26.0
    assert len(heights) < 4 * 640 + 1
    hits = ["".join(c.itertext()) for c in drawing.iter("circle")]
    assert "a: 50 (x 54,321)" in hits
    assert len(hits) <= 150


def test_marks_limit_and_whole_steps() -> None:
    marks = [Mark(5.5, Both("went on", "继续")), Mark(3, "bad", "bad"), Mark(3.01, "bad too", "bad"), Mark(99, "out")]
    curve = Series("m", [(1, 1.0), (10, 2.0)])
    text = str(line_chart([curve], title="t", marks=marks, limit=4.0, limit_label="most", from_zero=True))
    drawing = ElementTree.fromstring(text)
    kinds = [str(p.get("class")) for p in drawing.iter("path")]
    assert kinds.count("mark") == 1
    assert kinds.count("bad-mark") == 1
    assert "bad and 1 more / bad 等 2 处" in text
    assert ">most<" in text
    limit = next(p for p in drawing.iter("path") if p.get("class") == "limit")
    assert float(str(limit.get("d")).split()[1].split("H")[0]) >= 26.0
    one = "".join(ElementTree.fromstring(str(line_chart([Series("a", [(1, 2.0)])], title="t"))).itertext())
    assert "0.95" not in one


def test_curves_of_one_thing_share_a_colour_and_legend_swatches_differ() -> None:
    both = [Series("raw", [(0, 1), (1, 2)], "faint", 3), Series("smooth", [(0, 1), (1, 2)], "line", 3)]
    text = str(line_chart(both, title="t"))
    assert text.count('class="curve s3') == 2
    assert 'class="f3 faint"' in text
    assert text.count("<li>") == 2


def test_shares_and_spans() -> None:
    text = str(line_chart([Series("s", [(4, 0.25), (6, 0.5)])], title="t", percent=True, span=(0, 10), from_zero=True))
    assert ">20 %<" in text
    assert "s: 25.0 % (x 4)" in text
    assert ">10<" in text
