"""The matrix products of a training step, and what this machine multiplies in exactly those shapes.

T = rows of the body (tokens of a pack), N = rows of the head (tokens with a label). Products of attention (queries with
keys, weights with values) and of LoRA's own factors are not among them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from riverrun.models.config import ModelConfig

__all__ = ["Product", "flops", "lora_parameters", "products", "rate", "rates", "seconds_at"]

SECONDS = 0.4


@dataclass(frozen=True)
class Product:
    """`count` products of a pack: [rows, inner] x [inner, outer] of one kind (forward, dx) or [outer, rows] x
    [rows, inner] (dw). `on_labels`: its rows are those with a label.
    """

    name: str
    kind: str
    inner: int
    outer: int
    count: int
    on_labels: bool = False

    def flops(self, rows: int) -> float:
        """Operations of all `count` of them, a multiplication and an addition each counted."""
        return 2.0 * rows * self.inner * self.outer * self.count


def products(config: ModelConfig, *, weights_learn: bool) -> list[Product]:
    """All products with a weight: forward and dx of every matrix, dw where the weights learn."""
    hidden, wide = config.hidden_size, config.intermediate_size
    shapes = {
        "qkv": (hidden, config.query_size + 2 * config.kv_size),
        "o": (config.query_size, hidden),
        "gate_up": (hidden, 2 * wide),
        "down": (wide, hidden),
    }
    kinds = ("forward", "dx", "dw") if weights_learn else ("forward", "dx")
    layers = config.num_hidden_layers
    found = [Product(name, kind, *shape, layers) for name, shape in shapes.items() for kind in kinds]
    return found + [Product("head", kind, hidden, config.vocab_size, 1, True) for kind in kinds]


def lora_parameters(config: ModelConfig, rank: int) -> int:
    """Numbers in A and B of an adapter on every linear layer of the body."""
    return config.num_hidden_layers * rank * sum(out + inner for out, inner in config.linear_shapes().values())


def rates(wanted: Sequence[Product], rows: int, labels: int, dtype: torch.dtype) -> dict[tuple[str, str], float]:
    """FLOP/s of each product at these numbers of rows, the best of the runs that fit into `SECONDS`."""
    found: dict[tuple[str, str], float] = {}
    for product in wanted:
        count = labels if product.on_labels else rows
        x, dy = torch.randn(count, product.inner).to(dtype), torch.randn(count, product.outer).to(dtype)
        weight = torch.randn(product.outer, product.inner).to(dtype)
        left, right = {"forward": (x, weight.T), "dx": (dy, weight), "dw": (dy.T, x)}[product.kind]
        torch.mm(left, right)
        best, deadline = float("inf"), time.monotonic() + SECONDS
        while best == float("inf") or time.monotonic() < deadline:
            began = time.perf_counter()
            torch.mm(left, right)
            best = min(best, time.perf_counter() - began)
        found[product.name, product.kind] = 2.0 * count * product.inner * product.outer / best
    return found


def flops(wanted: Sequence[Product], rows: int, labels: int) -> float:
    """Operations of all of them at these numbers of rows."""
    return sum(product.flops(labels if product.on_labels else rows) for product in wanted)


def seconds_at(measured: Mapping[tuple[str, str], float], wanted: Sequence[Product], rows: int, labels: int) -> float:
    """Seconds that all products take at their measured rates."""
    return sum(
        product.flops(labels if product.on_labels else rows) / measured[product.name, product.kind]
        for product in wanted
    )


def rate(measured: Mapping[tuple[str, str], float], wanted: Sequence[Product], rows: int, labels: int) -> float:
    """FLOP/s of all of them one after another."""
    return flops(wanted, rows, labels) / seconds_at(measured, wanted, rows, labels)
