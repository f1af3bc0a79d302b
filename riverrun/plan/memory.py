"""Peak memory of inference, item by item, in bytes; what estimates are made of (training: `plan/training`).

Every coefficient stands in `tables/training.yaml` with its source. Not covered: sharding, offloading.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from riverrun.base.errors import InputError, nearest
from riverrun.plan.shape import ModelShape, linear_parameters, parameters, widths
from riverrun.plan.tables import read_values

__all__ = ["Estimate", "Item", "inference_memory", "known_bytes", "process_item", "weight_bytes"]


@dataclass(frozen=True, slots=True)
class Item:
    """One line of an estimate. `formula` says where the bytes come from."""

    name: str
    bytes: int
    formula: str


@dataclass(frozen=True)
class Estimate:
    """Line items that are held at the same time; `total` is their sum in bytes."""

    items: tuple[Item, ...]

    @property
    def total(self) -> int:
        return sum(item.bytes for item in self.items)

    def __getitem__(self, name: str) -> int:
        return next(item.bytes for item in self.items if item.name == name)


def known_bytes(dtype: str) -> float:
    """Bytes a weight takes in a way to store it."""
    table = read_values("training", "weight_bytes")
    if dtype not in table:
        raise InputError(f"no size is known for weights of type '{dtype}'.{nearest(dtype, table)}")
    return table[dtype]


def weight_bytes(shape: ModelShape, dtype: str, *, table_dtype: str | None = None) -> int:
    """Bytes of all weights: linear layers in `dtype`, embedding, head and norms in `table_dtype` (default the same)."""
    linear = linear_parameters(shape)
    return round(linear * known_bytes(dtype) + (parameters(shape) - linear) * known_bytes(table_dtype or dtype))


def process_item(base_bytes: int | None) -> Item:
    """The bare process, measured or as the table has it."""
    default = int(read_values("training", "coefficients")["base_process_bytes"])
    return Item("process", default if base_bytes is None else base_bytes, "resident before the model is loaded")


def _with_slack(fixed: Sequence[Item], moving: Sequence[Item]) -> Estimate:
    """`moving` are the blocks that come and go with every batch."""
    slack = read_values("training", "coefficients")["slack"]
    share = f"{slack:g} x ({' + '.join(item.name for item in moving)})"
    item = Item("slack", round(slack * sum(each.bytes for each in moving)), share)
    return Estimate((*fixed, *moving, item))


def inference_memory(
    shape: ModelShape,
    *,
    weights: str = "fp32",
    table_dtype: str | None = None,
    cache_tokens: int = 2048,
    cache_dtype: str = "fp32",
    rows: int = 1,
    base_bytes: int | None = None,
) -> Estimate:
    """Peak of generation: weights, keys and values of `cache_tokens` tokens in all, logits of `rows` sequences.

    Loading takes the largest tensor twice in fp32, and the head stands there twice: as a table and packed.
    """
    _, k = widths(shape)
    table = shape.vocab_size * shape.hidden_size
    cache = round(2 * shape.num_hidden_layers * k * cache_tokens * known_bytes(cache_dtype))
    fixed = (
        process_item(base_bytes),
        Item("weights", weight_bytes(shape, weights, table_dtype=table_dtype), f"N in {weights}"),
        Item("packed head", round(table * known_bytes(cache_dtype)), f"V h in {cache_dtype}"),
        Item("loading", 8 * table, "8 V h"),
    )
    head = Item("head", 4 * rows * shape.vocab_size, "4 V per row")
    return _with_slack(fixed, (Item("cache", cache, "2 L k c per token"), head))
