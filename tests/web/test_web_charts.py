"""Charts: well-formed SVG with title and description, right geometry, no crash on empty or odd data."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from riverrun.web.charts import Bar, BarGroup, FunnelStep, Node, Series, bar_chart, dag, funnel, line_chart
from riverrun.web.page import Both, Markup
from riverrun.web.svg import log_ticks, nice_ticks, wrap

finite = st.floats(-1e9, 1e9)
texts = st.text(alphabet=st.sampled_from("ab <>&\"'中"), max_size=12)


def svg(chart: Markup) -> ElementTree.Element:
    """The parsed drawing (a parse error fails the test), after checking its accessible names."""
    root = ElementTree.fromstring(str(chart))
    drawing = root.find(".//svg[@role='img']")
    assert drawing is not None
    ids = str(drawing.get("aria-labelledby")).split()
    assert [drawing[0].tag, drawing[1].tag] == ["title", "desc"]
    assert [drawing[0].get("id"), drawing[1].get("id")] == ids
    assert drawing[1].text
    return drawing


def numbers(element: ElementTree.Element, *names: str) -> list[float]:
    return [float(str(element.get(name))) for name in names]


@settings(derandomize=True, max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(texts, st.lists(st.tuples(finite, st.floats()), max_size=12)), max_size=3), texts, st.booleans()
)
def test_line_chart_draws_any_series(
    series: list[tuple[str, list[tuple[float, float]]]], text: str, log_y: bool
) -> None:
    chart = line_chart([Series(n, p) for n, p in series], title=text, x_label=text, y_label=text, log_y=log_y)
    drawing = svg(chart)
    shown = [p for _, points in series for p in points if abs(p[1]) < 1e100 and (not log_y or p[1] > 1e-100)]
    hits = [c for c in drawing.iter("circle") if c.get("class") == "hit"]
    assert len(hits) == len(shown)
    width, height = (float(x) for x in str(drawing.get("viewBox")).split()[2:])
    for circle in hits:
        x, y = numbers(circle, "cx", "cy")
        assert 0 <= x <= width
        assert 0 <= y <= height


def test_line_chart_keeps_order_and_breaks_at_missing_values() -> None:
    points = [(0, 3.0), (1, 2.0), (2, float("nan")), (3, 1.0), (4, 0.5)]
    drawing = svg(line_chart([Series("loss", points)], title="Loss"))
    [curve] = [p for p in drawing.iter("path") if "curve" in str(p.get("class"))]
    assert str(curve.get("d")).count("M") == 2
    hits = [numbers(c, "cx", "cy") for c in drawing.iter("circle") if c.get("class") == "hit"]
    assert all(a[0] < b[0] and a[1] < b[1] for a, b in pairwise(hits))


def test_line_chart_of_many_points_has_few_hover_targets_and_a_legend_only_for_several() -> None:
    many = Series("a", [(i, math.sin(i)) for i in range(5000)])
    one, two = line_chart([many], title="t"), line_chart([many, Series(Both("b", "乙"), [(0, 1)])], title="t")
    assert len(list(svg(one).iter("circle"))) <= 150
    assert "legend" not in one
    assert two.count("<li>") == 2


@settings(derandomize=True, max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(texts, st.lists(st.tuples(texts, st.floats(), st.none() | finite, st.none() | finite), max_size=3)),
        max_size=4,
    ),
    st.booleans(),
    st.none() | finite,
)
def test_bar_chart_draws_any_groups(
    groups: list[tuple[str, list[tuple[str, float, float | None, float | None]]]], percent: bool, limit: float | None
) -> None:
    made = [BarGroup(label, [Bar(*bar) for bar in bars]) for label, bars in groups]
    drawing = svg(bar_chart(made, title="t", percent=percent, limit=limit))
    bars = [bar for group in made for bar in group.bars if abs(bar.value) < 1e100]
    rectangles = list(drawing.iter("rect"))
    assert len(rectangles) == len(bars)
    assert all(numbers(r, "width")[0] >= 0 for r in rectangles)


def test_bar_lengths_are_in_proportion_and_whiskers_enclose() -> None:
    groups = [BarGroup("g", [Bar("a", 0.25, 0.2, 0.3), Bar("b", 0.5), Bar("c", 1.0)])]
    drawing = svg(bar_chart(groups, title="t", percent=True, limit=0.5))
    a, b, c = [numbers(r, "x", "width") for r in drawing.iter("rect")]
    assert b[1] == pytest.approx(2 * a[1], abs=0.3)
    assert c[1] == pytest.approx(4 * a[1], abs=0.3)
    [whisker] = [p for p in drawing.iter("path") if p.get("class") == "whisker"]
    low, high = [float(x) for x in re.findall(r"M([\d.]+)", str(whisker.get("d")))[:2]]
    assert low < a[0] + a[1] < high
    [limit] = [p for p in drawing.iter("path") if p.get("class") == "limit"]
    assert float(str(limit.get("d"))[1:].split()[0]) == pytest.approx(b[0] + b[1], abs=0.3)
    text = "".join(drawing.itertext())
    assert "25.0 %  [20, 30]" in text
    assert "a 25.0 % (interval 20.0 % to 30.0 %)" in text


def test_bars_of_one_name_share_a_colour() -> None:
    groups = [BarGroup("x", [Bar("before", 1), Bar("after", 2)]), BarGroup("y", [Bar("after", 3)])]
    colours = [r.get("class") for r in svg(bar_chart(groups, title="t")).iter("rect")]
    assert colours == ["f0", "f1", "f1"]


def test_funnel_shows_every_reason_and_count() -> None:
    steps = [FunnelStep("in", 100), FunnelStep("rules", 70, {"too short": 10, "spam": 20}), FunnelStep("safety", 70)]
    drawing = svg(funnel(steps, title="Documents"))
    text = "".join(drawing.itertext()).replace("\u00a0", " ")
    assert "-20 spam · -10 too short" in text
    kept = [numbers(r, "width")[0] for r in drawing.iter("rect") if r.get("class") == "f0"]
    assert kept[1] == pytest.approx(0.7 * kept[0], abs=0.2)
    assert "rules: 70 kept, dropped 30" in text


@settings(derandomize=True, max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(texts, st.integers(0, 10**7), st.dictionaries(texts, st.integers(0, 10**6), max_size=4)), max_size=4
    )
)
def test_funnel_draws_any_steps(steps: list[tuple[str, int, dict[str, int]]]) -> None:
    svg(funnel([FunnelStep(*step) for step in steps], title="t"))


edges_of = st.integers(1, 9).flatmap(
    lambda n: st.tuples(
        st.just(n),
        st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)).filter(lambda e: e[0] < e[1]), max_size=16),
    )
)


@settings(derandomize=True, max_examples=80, deadline=None)
@given(edges_of)
def test_dag_boxes_do_not_overlap_and_edges_run_downwards(graph: tuple[int, list[tuple[int, int]]]) -> None:
    count, edges = graph
    nodes = [Node(str(i), f"stage {i} <&>", digest="ab12" * 16, note="3 s") for i in range(count)]
    drawing = svg(dag(nodes, [(str(a), str(b)) for a, b in edges], title="t"))
    boxes = [numbers(r, "x", "y", "width", "height") for r in drawing.iter("rect")]
    width, height = (float(x) for x in str(drawing.get("viewBox")).split()[2:])
    assert len(boxes) == count
    for i, (x, y, w, h) in enumerate(boxes):
        assert x >= 0
        assert x + w <= width
        assert y + h <= height
        for other_x, other_y, other_w, other_h in boxes[i + 1 :]:
            assert x + w <= other_x or other_x + other_w <= x or y + h <= other_y or other_y + other_h <= y
    assert all(boxes[a][1] < boxes[b][1] for a, b in edges)
    assert sum(p.get("class") == "edge" for p in drawing.iter("path")) == len(set(edges))


def test_dag_long_edges_do_not_cross_boxes() -> None:
    nodes = [Node(n, n) for n in "abcd"]
    drawing = svg(dag(nodes, [("a", "b"), ("b", "c"), ("c", "d"), ("a", "d")], title="t"))
    boxes = [numbers(r, "x", "y", "width", "height") for r in drawing.iter("rect")]
    for path in (p for p in drawing.iter("path") if p.get("class") == "edge"):
        for x, y in _straight_parts(str(path.get("d"))):
            assert not any(bx < x < bx + w and by < y < by + h for bx, by, w, h in boxes)


def _straight_parts(path: str) -> list[tuple[float, float]]:
    """Points along the vertical parts of an edge (they are what runs beside boxes)."""
    out, x, y = [], 0.0, 0.0
    for command, rest in re.findall(r"([MCV])([^MCV]*)", path):
        values = [float(v) for v in rest.split()]
        if command == "V":
            out += [(x, y + (values[0] - y) * t / 4) for t in range(1, 4)]
            y = values[0]
        else:
            x, y = values[-2:]
    return out


def test_dag_refuses_cycles_and_unknown_names() -> None:
    nodes = [Node("a", "a"), Node("b", "b")]
    with pytest.raises(AssertionError, match="cycle"):
        dag(nodes, [("a", "b"), ("b", "a")], title="t")
    with pytest.raises(AssertionError, match="unknown"):
        dag(nodes, [("a", "c")], title="t")
    svg(dag([], [], title="t"))


def test_dag_shows_a_short_digest_and_the_whole_one_on_hover() -> None:
    digest = "0123456789abcdef" * 4
    drawing = svg(dag([Node("a", "a", digest=digest, state="failed")], [], title="t"))
    [text] = [t for t in drawing.iter("text") if "mono" in str(t.get("class"))]
    assert "".join(text.itertext()) == digest + digest[:8]
    assert [r.get("class") for r in drawing.iter("rect")] == ["box failed"]


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.floats(-1e12, 1e12), st.floats(0, 1e12))
def test_nice_ticks_enclose_and_rise(low: float, spread: float) -> None:
    high = low + spread
    ticks = nice_ticks(low, high)
    size = abs(low) + abs(high) + 1e-300
    assert 2 <= len(ticks) <= 12
    assert ticks[0] <= low + 1e-6 * size
    assert ticks[-1] >= high - 1e-6 * size


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.floats(1e-9, 1e9), st.floats(1, 1e6))
def test_log_ticks_enclose_and_rise(low: float, factor: float) -> None:
    ticks = log_ticks(low, low * factor)
    assert len(ticks) >= 2
    assert all(a < b for a, b in pairwise(ticks))
    assert ticks[0] <= low * 1.001
    assert ticks[-1] >= low * factor * 0.999


def test_wrap_keeps_every_word() -> None:
    assert " ".join(map(str, wrap("a rather long label of seven words", 60))) == "a rather long label of seven words"
    assert len(wrap("a rather long label of seven words", 60)) > 1
