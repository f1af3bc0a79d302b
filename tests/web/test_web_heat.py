"""The map of shares: one cell a value, figures that can be read, nothing where nothing was measured."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from riverrun.web.heat import heat_map
from tests.web.test_web_charts import svg

shares = st.one_of(st.none(), st.floats(0, 1))


@settings(derandomize=True, max_examples=40, deadline=None)
@given(st.lists(st.lists(shares, min_size=3, max_size=3), min_size=1, max_size=5))
def test_every_value_has_its_cell(values: list[list[float | None]]) -> None:
    rows = [f"r{place}" for place in range(len(values))]
    drawing = svg(heat_map(["a", "b", "<c>"], rows, values, title="Found", x_label="x", y_label="y"))
    cells = [cell for cell in drawing.iter("rect") if cell.get("class") == "f0"]
    flat = [value for row in values for value in row]
    assert len(cells) == len(flat)
    width, height = (float(x) for x in str(drawing.get("viewBox")).split()[2:])
    for cell, value in zip(cells, flat, strict=True):
        x, y, w, h = (float(str(cell.get(name))) for name in ("x", "y", "width", "height"))
        assert 0 <= x <= x + w <= width
        assert 0 <= y <= y + h <= height
        assert float(str(cell.get("opacity"))) <= (0.0 if value is None else 1.0)
    texts = [text.text for text in drawing.iter("text") if text.get("text-anchor") == "middle"][: len(flat)]
    assert texts == ["–" if value is None else f"{100 * value:.0f}" for value in flat]
