"""A directed graph without cycles as inline SVG: layers from top to bottom, long edges led around the boxes.

Layered drawing after Sugiyama, Tagawa and Toda (1981), kept small: longest-path layers, placeholder points where an
edge crosses a layer, order by the mean position of the neighbours, positions relaxed towards them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from markupsafe import Markup

from riverrun.web.page import Content, plain
from riverrun.web.svg import WIDTH, figure, hover, label, text_width

__all__ = ["Node", "dag"]

_BOX_HEIGHT, _LAYER_GAP, _BOX_GAP, _POINT_WIDTH, _SWEEPS = 46.0, 42.0, 26.0, 14.0, 12

Neighbours = Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class Node:
    """A box: `digest` is shown with 8 characters and whole on hover; `note` stands beside it."""

    id: str
    label: Content
    digest: str = ""
    note: Content = ""
    state: Literal["done", "skipped", "failed", "none"] = "none"


def dag(
    nodes: Sequence[Node], edges: Sequence[tuple[str, str]], *, title: Content, description: Content = ""
) -> Markup:
    """Boxes and arrows from inputs (top) to outputs (bottom). A cycle or an unknown id is a programmer's error."""
    by_id = {node.id: node for node in nodes}
    assert len(by_id) == len(nodes), "two nodes have the same id"
    layer = _layers(by_id, edges)
    chains, rows, above, below = _with_points(by_id, edges, layer)
    widths = {name: _box_width(by_id[name]) if name in by_id else _POINT_WIDTH for row in rows for name in row}
    _order(rows, above, below)
    x = _positions(rows, widths, above, below)
    shift = 10 - min((x[name] - widths[name] / 2 for name in x), default=0.0)
    extent = max((x[name] + widths[name] / 2 + shift for name in x), default=0.0) + 10
    width = max(float(WIDTH), extent)
    shift += (width - extent) / 2
    body = Markup("")
    for chain in chains:
        body += _edge([(x[name] + shift, layer_of) for name, layer_of in chain])
    for node in nodes:
        body += _box(node, x[node.id] + shift, _top(layer[node.id]), widths[node.id])
    height = _top(len(rows)) - _LAYER_GAP + 8 if rows else 30.0
    spoken = [f"{plain(by_id[a].label)} leads to {plain(by_id[b].label)}" for a, b in edges]
    summary = "; ".join(spoken) or ", ".join(plain(node.label) for node in nodes)
    return figure(body, height=height, width=width, title=title, description=description, summary=summary)


def _layers(by_id: Mapping[str, Node], edges: Sequence[tuple[str, str]]) -> dict[str, int]:
    inputs: dict[str, list[str]] = {name: [] for name in by_id}
    for source, target in edges:
        assert {source, target} <= set(by_id), f"edge {source} -> {target} names an unknown node"
        inputs[target].append(source)
    layer: dict[str, int] = {}
    while len(layer) < len(by_id):
        ready = [name for name in by_id if name not in layer and all(source in layer for source in inputs[name])]
        assert ready, "the graph has a cycle"
        layer |= {name: 1 + max((layer[source] for source in inputs[name]), default=-1) for name in ready}
    return layer


def _with_points(
    by_id: Mapping[str, Node], edges: Sequence[tuple[str, str]], layer: Mapping[str, int]
) -> tuple[list[list[tuple[str, int]]], list[list[str]], dict[str, list[str]], dict[str, list[str]]]:
    """Edges as chains of (name, layer) with a placeholder point in every layer they cross; rows; neighbours."""
    rows: list[list[str]] = [[] for _ in range(1 + max(layer.values(), default=-1))]
    for name in by_id:
        rows[layer[name]].append(name)
    chains = []
    above: dict[str, list[str]] = {name: [] for name in by_id}
    below: dict[str, list[str]] = {name: [] for name in by_id}
    for source, target in dict.fromkeys(edges):
        chain = [(source, layer[source])]
        for crossed in range(layer[source] + 1, layer[target]):
            point = f"{source}\0{target}\0{crossed}"
            rows[crossed].append(point)
            above[point], below[point] = [], []
            chain.append((point, crossed))
        chain.append((target, layer[target]))
        for (upper, _), (lower, _) in pairwise(chain):
            below[upper].append(lower)
            above[lower].append(upper)
        chains.append(chain)
    return chains, rows, above, below


def _order(rows: list[list[str]], above: Neighbours, below: Neighbours) -> None:
    """Sort each row by the mean index of its neighbours, downwards and upwards in turn (fewer crossings)."""
    for sweep in range(_SWEEPS):
        down = sweep % 2 == 0
        for row in rows[1:] if down else reversed(rows[:-1]):
            neighbours = above if down else below
            index = {name: i for other in rows for i, name in enumerate(other)}
            key = {n: _mean([index[o] for o in neighbours[n]], default=index[n]) for n in row}
            row.sort(key=key.__getitem__)


def _positions(
    rows: list[list[str]], widths: Mapping[str, float], above: Neighbours, below: Neighbours
) -> dict[str, float]:
    x: dict[str, float] = {}
    for row in rows:
        _spread(row, dict.fromkeys(row, 0.0), widths, x)
    for sweep in range(_SWEEPS):
        for row in rows if sweep % 2 == 0 else reversed(rows):
            wanted = {n: _mean([x[o] for o in (*above[n], *below[n])], default=x[n]) for n in row}
            _spread(row, wanted, widths, x)
    return x


def _spread(row: list[str], wanted: Mapping[str, float], widths: Mapping[str, float], x: dict[str, float]) -> None:
    """Place a row near the wanted positions, in its order and without overlap, with no drift to one side."""
    placed: list[float] = []
    for index, name in enumerate(row):
        least = placed[-1] + (widths[row[index - 1]] + widths[name]) / 2 + _BOX_GAP if placed else wanted[name]
        placed.append(max(least, wanted[name]))
    drift = _mean([p - wanted[n] for p, n in zip(placed, row, strict=True)], default=0.0)
    x.update({name: at - drift for name, at in zip(row, placed, strict=True)})


def _mean(values: Sequence[float], *, default: float) -> float:
    return sum(values) / len(values) if values else default


def _top(layer: int) -> float:
    return 8 + layer * (_BOX_HEIGHT + _LAYER_GAP)


def _box_width(node: Node) -> float:
    upper = max(text_width(plain(node.label, lang)) for lang in ("en", "zh"))
    notes = max(text_width(plain(node.note, lang)) for lang in ("en", "zh"))
    return max(96.0, upper + 24, notes + 24 + (72 if node.digest else 0))


def _box(node: Node, middle: float, top: float, width: float) -> Markup:
    digest = node.digest[:8]
    out = Markup('<rect class="box {}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.0f}" rx="8">{}</rect>').format(
        node.state, middle - width / 2, top, width, _BOX_HEIGHT, hover(f"{plain(node.label)} {node.digest}".strip())
    )
    single = not digest and not node.note
    out += label(middle, top + (28 if single else 19), node.label, anchor="middle", css="strong")
    if digest and node.note:
        out += label(middle - width / 2 + 12, top + 36, digest, css="mono quiet", title=node.digest)
        out += label(middle + width / 2 - 12, top + 36, node.note, anchor="end", css="quiet")
    elif digest:
        out += label(middle, top + 36, digest, anchor="middle", css="mono quiet", title=node.digest)
    elif node.note:
        out += label(middle, top + 36, node.note, anchor="middle", css="quiet")
    return out


def _edge(points: Sequence[tuple[float, int]]) -> Markup:
    """A smooth line down through all points, with an arrow head at the last."""
    x, layer = points[0]
    y = _top(layer) + _BOX_HEIGHT
    path = f"M{x:.1f} {y:.1f}"
    for index, (next_x, next_layer) in enumerate(points[1:], start=1):
        last = index == len(points) - 1
        end = _top(next_layer) - (7 if last else 0)
        bend = (end - y) / 2
        path += f"C{x:.1f} {y + bend:.1f} {next_x:.1f} {end - bend:.1f} {next_x:.1f} {end:.1f}"
        x, y = next_x, end
        if not last:
            y += _BOX_HEIGHT
            path += f"V{y:.1f}"
    head = f"M{x - 4.5:.1f} {y:.1f}h9l-4.5 7z"
    return Markup('<path class="edge" d="{}"/><path class="arrow" d="{}"/>').format(path, head)
