"""Peak memory, item by item, in bytes. Every coefficient stands in `tables/training.yaml` with its source.

Covered: one device; a micro-batch of T tokens with R label rows; fused attention; LoRA and full fine-tuning with AdamW
in fp32; inference with a KV cache. Not covered: sharding, offloading, memory of the data loader.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from riverrun.base.errors import InputError, nearest
from riverrun.plan.shape import (
    LINEARS,
    ModelShape,
    linear_parameters,
    lora_parameters,
    parameters,
    widths,
)
from riverrun.plan.tables import read_values

__all__ = ["Batch", "Estimate", "Item", "full_memory", "inference_memory", "lora_memory", "weight_bytes"]


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


@dataclass(frozen=True, slots=True)
class Batch:
    """What one forward and backward pass holds: tokens T, rows with a label R, the type of activations.

    head_rows: rows whose logits exist at once (0: all label rows). recompute: only each block's input is kept.
    """

    tokens: int
    label_rows: int
    dtype: str = "fp32"
    head_rows: int = 0
    recompute: bool = False

    def __post_init__(self) -> None:
        if self.tokens < 1 or not 0 <= self.label_rows <= self.tokens:
            raise InputError(f"a batch needs tokens >= label rows >= 0, got {self.tokens} and {self.label_rows}")

    @property
    def logit_rows(self) -> int:
        return min(self.label_rows, self.head_rows) if self.head_rows else self.label_rows


def _known(dtype: str) -> float:
    table = read_values("training", "weight_bytes")
    if dtype not in table:
        raise InputError(f"no size is known for weights of type '{dtype}'.{nearest(dtype, table)}")
    return table[dtype]


def weight_bytes(shape: ModelShape, dtype: str, *, table_dtype: str | None = None) -> int:
    """Bytes of all weights: linear layers in `dtype`, embedding, head and norms in `table_dtype` (default the same)."""
    linear = linear_parameters(shape)
    return round(linear * _known(dtype) + (parameters(shape) - linear) * _known(table_dtype or dtype))


def _saved_per_block(shape: ModelShape, batch: Batch, rank: int, targets: Sequence[str]) -> float:
    """T [c (6h + 2k + 4f + r per adapter) + 4 heads + 8]: what one block keeps for its backward pass."""
    c, table = _known(batch.dtype), read_values("training", "coefficients")
    _, k = widths(shape)
    elements = table["saved_hidden"] * shape.hidden_size + table["saved_key_value"] * k
    elements += table["saved_feed_forward"] * shape.intermediate_size
    elements += table["saved_rank_per_adapter"] * rank * len(targets)
    fixed = table["saved_bytes_per_head"] * shape.num_attention_heads + table["saved_norm_bytes"]
    return batch.tokens * (c * elements + fixed)


def _activations(shape: ModelShape, batch: Batch, rank: int = 0, targets: Sequence[str] = ()) -> Item:
    block, layers = _saved_per_block(shape, batch, rank, targets), shape.num_hidden_layers
    if batch.recompute:
        inputs = layers * batch.tokens * shape.hidden_size * _known(batch.dtype)
        return Item("activations", round(inputs + block), "L T h c + one block (recomputed)")
    return Item("activations", round(layers * block), "L T [c (6h + 2k + 4f + r per adapter) + 4 heads + 8]")


def _head(shape: ModelShape, batch: Batch) -> Item:
    logit = read_values("training", "coefficients")["logit_bytes"]
    return Item("head", round(logit * batch.logit_rows * shape.vocab_size), f"{logit:g} R V")


def _process(base_bytes: int | None) -> Item:
    default = int(read_values("training", "coefficients")["base_process_bytes"])
    return Item("process", default if base_bytes is None else base_bytes, "resident before the model is loaded")


def _trained(count: int, *, weights_too: bool) -> tuple[Item, ...]:
    table = read_values("training", "coefficients")
    weight, gradient, moments = (
        round(table[name] * count) for name in ("trained_weight_bytes", "gradient_bytes", "optimizer_bytes")
    )
    adapters = (Item("adapters", weight, "4 N_t"),) if weights_too else ()
    return (*adapters, Item("gradients", gradient, "4 N_t"), Item("optimizer", moments, "8 N_t"))


def _with_slack(fixed: Sequence[Item], moving: Sequence[Item]) -> Estimate:
    """`moving` are the blocks that come and go with every batch."""
    slack = read_values("training", "coefficients")["slack"]
    share = f"{slack:g} x ({' + '.join(item.name for item in moving)})"
    item = Item("slack", round(slack * sum(each.bytes for each in moving)), share)
    return Estimate((*fixed, *moving, item))


def lora_memory(
    shape: ModelShape,
    batch: Batch,
    *,
    rank: int,
    targets: Sequence[str] = LINEARS,
    weights: str = "fp32",
    base_bytes: int | None = None,
) -> Estimate:
    """Peak of LoRA fine-tuning: frozen weights, the merged ones, 16 N_t for the adapters, activations, logits, slack.

    weights: how the frozen weights are stored. base_bytes: measured resident memory of the bare process.
    """
    count = lora_parameters(shape, rank, targets)
    merged = round(linear_parameters(shape) * _known(batch.dtype))
    fixed = (
        _process(base_bytes),
        Item("weights", weight_bytes(shape, weights), f"N in {weights}"),
        Item("merged", merged, f"W + s B A of the linear layers in {batch.dtype}"),
        *_trained(count, weights_too=True),
    )
    return _with_slack(fixed, (_activations(shape, batch, rank, targets), _head(shape, batch)))


def full_memory(shape: ModelShape, batch: Batch, *, base_bytes: int | None = None) -> Estimate:
    """Peak of full fine-tuning with fp32 AdamW: 16 N, activations, logits, slack."""
    fixed = (
        _process(base_bytes),
        Item("weights", weight_bytes(shape, "fp32"), "4 N"),
        *_trained(parameters(shape), weights_too=False),
    )
    return _with_slack(fixed, (_activations(shape, batch), _head(shape, batch)))


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
    cache = round(2 * shape.num_hidden_layers * k * cache_tokens * _known(cache_dtype))
    fixed = (
        _process(base_bytes),
        Item("weights", weight_bytes(shape, weights, table_dtype=table_dtype), f"N in {weights}"),
        Item("packed head", round(table * _known(cache_dtype)), f"V h in {cache_dtype}"),
        Item("loading", 8 * table, "8 V h"),
    )
    head = Item("head", 4 * rows * shape.vocab_size, "4 V per row")
    return _with_slack(fixed, (Item("cache", cache, "2 L k c per token"), head))
