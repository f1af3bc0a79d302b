"""Peak memory of a training step, item by item, in bytes. Every coefficient stands in `tables/training.yaml`.

Covered: one device; a micro-batch of T tokens with R label rows, through the project's own kernels or torch's; full
fine-tuning, LoRA and QLoRA; AdamW with 32-bit or 8-bit moments, and Muon; layers that run again in the backward
(Chen et al., arXiv:1604.06174); a head whose logits are formed in chunks. Not covered: sharding, offloading, the rows.

The peak is the largest of three moments: the backward begins (activations of all layers, the head's gradient, what one
layer's backward needs), it ends (all gradients, one layer's activations), or the optimizer is at the largest weight. In
between one falls as the other rises. Freed blocks leave holes where the process keeps them (train/build.is_short).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from riverrun.base.errors import InputError, nearest
from riverrun.plan.memory import Estimate, Item, known_bytes, process_item
from riverrun.plan.shape import LINEARS, ModelShape, linear_parameters, linears, lora_parameters, parameters, widths
from riverrun.plan.tables import read_values

__all__ = ["OPTIMIZERS", "Batch", "Setup", "TrainMethod", "training_memory"]

TrainMethod = Literal["full", "lora", "qlora"]
OPTIMIZERS = ("adamw", "adamw8bit", "muon")


@dataclass(frozen=True, slots=True)
class Batch:
    """What one forward and backward pass holds: tokens T, rows with a label R, and the type of activations.

    recompute: share of the layers of which only the input is kept. native: through the project's own kernels.
    """

    tokens: int
    label_rows: int
    dtype: str = "bf16"
    recompute: float = 0.0
    native: bool = True

    def __post_init__(self) -> None:
        if self.tokens < 1 or not 0 <= self.label_rows <= self.tokens:
            raise InputError(f"a batch needs tokens >= label rows >= 0, got {self.tokens} and {self.label_rows}")
        if not 0 <= self.recompute <= 1:
            raise InputError(f"recompute is a share of the layers between 0 and 1, got {self.recompute}")


@dataclass(frozen=True, slots=True)
class Setup:
    """What is trained and how. micro_batches: of one optimizer step. tables: of QLoRA's embedding and head.

    master: fp32 values of trained 16-bit weights. threads: those of the matrix products.
    """

    method: TrainMethod
    rank: int = 16
    targets: tuple[str, ...] = LINEARS
    optimizer: str = "adamw"
    micro_batches: int = 1
    tables: Literal["int8", "plain"] = "int8"
    master: bool = True
    threads: int = 2

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise InputError(f"there is no optimizer '{self.optimizer}'.{nearest(self.optimizer, OPTIMIZERS)}")

    def trained(self, shape: ModelShape) -> int:
        """N_t, the parameters that learn."""
        return parameters(shape) if self.method == "full" else lora_parameters(shape, self.rank, self.targets)


def training_memory(shape: ModelShape, batch: Batch, setup: Setup, *, base_bytes: int | None = None) -> Estimate:
    """Peak of a training. base_bytes: measured resident memory of the bare process."""
    c = known_bytes(batch.dtype)
    gradients, summed = _gradients(shape, batch, setup)
    kept, passing = _activations(shape, batch, setup)
    head = _head_gradient(shape, batch, setup)
    # the head's gradient is part of the first two; activations count as far as gradients do not take their place
    begins, ends = kept.bytes + head.bytes, gradients.bytes
    weights = _weights(shape, batch, setup)
    items = [
        process_item(base_bytes),
        *weights,
        *_optimizer(shape, setup, batch.dtype),
        gradients,
        *([summed] if summed.bytes else []),
        Item("activations", max(0, begins - ends), f"{kept.formula}{', beyond the gradients' if ends else ''}"),
        passing,
        _logits(shape, batch, setup),
    ]
    step = 0 if batch.native and batch.dtype == "bf16" else _step(shape, setup, c)  # else through copies in fp32
    if (more := step - items[-3].bytes - passing.bytes) > 0:
        items.append(Item("largest weight", more, "8 V h in the optimizer, beyond activations"))
    items.append(_slack(shape, batch, setup, kept.bytes + passing.bytes, weights))
    return Estimate(tuple(items))


def _step(shape: ModelShape, setup: Setup, c: float) -> int:
    """The optimizer at the largest 16-bit weight: its gradient in fp32, in the first step its old value, too."""
    if setup.method != "full" or c >= 4:
        return 0
    widest = max(shape.vocab_size * shape.hidden_size, *(i * o for i, o in linears(shape).values()))
    return round(read_values("training", "coefficients")["step_bytes"] * widest)


def _slack(shape: ModelShape, batch: Batch, setup: Setup, moving: int, weights: Sequence[Item]) -> Item:
    """Scratch of libraries, and holes of the heap."""
    table = read_values("training", "coefficients")
    kind = "qlora_slack" if setup.method == "qlora" else "slack"
    constant, share = table[f"{kind}_bytes"], table[f"{kind}_share"]
    slack = constant + share * moving
    how = f"{constant / 1e6:.0f} MB + {share:g} of activations"
    if setup.method == "lora":
        slack += table["merged_holes"] * sum(item.bytes for item in weights if item.name == "merged")
        how += f" + {table['merged_holes']:g} x merged"
    if setup.method == "full" and batch.recompute < 1:
        slack += table["head_holes"] * shape.vocab_size * shape.hidden_size * known_bytes(batch.dtype)
        how += f" + {table['head_holes']:g} x V h"
    if 0 < batch.recompute < 1 and setup.method != "qlora":  # with all layers run again freed memory goes back
        slack += table["recompute_holes"] * _layer(shape, batch, setup)
        how += f" + {table['recompute_holes']:g} x one layer"
    return Item("slack", round(slack), how)


def _tables(shape: ModelShape) -> int:
    """Weights of embedding and head together."""
    return shape.vocab_size * shape.hidden_size * (1 if shape.tie_word_embeddings else 2)


def _weights(shape: ModelShape, batch: Batch, setup: Setup) -> list[Item]:
    c, linear, tables = known_bytes(batch.dtype), linear_parameters(shape), _tables(shape)
    if setup.method != "qlora":
        items = [Item("weights", round(parameters(shape) * c), f"N in {batch.dtype}")]
        if setup.method == "lora":
            copies = read_values("training", "coefficients")["merged_copies"] if c == 2 and batch.native else 1
            items.append(Item("merged", round(copies * linear * c), f"{copies:g} x (W + s B A) of the linear layers"))
        return items
    small = round((parameters(shape) - linear - tables) * c)
    head = shape.vocab_size * shape.hidden_size  # an embedding of its own stays in its file
    held = head + 4 * shape.vocab_size if setup.tables == "int8" else round(head * c)
    return [
        Item("weights", round(linear * known_bytes("nf4")) + small, "N of the linear layers in nf4, norms"),
        Item("tables", held, f"head in {'8 bits' if setup.tables == 'int8' else batch.dtype}"),
    ]


def _optimizer(shape: ModelShape, setup: Setup, dtype: str) -> list[Item]:
    """Masters or adapters, and moments. A bf16 weight is the upper half of its master: only the lower is kept."""
    table, count = read_values("training", "coefficients"), setup.trained(shape)
    moment = {"adamw": 2 * table["moment_bytes"], "adamw8bit": 2 * table["moment8_bytes"]}
    if setup.optimizer == "muon":
        hidden = linear_parameters(shape) if setup.method == "full" else count
        states = table["moment_bytes"] * hidden + 2 * table["moment_bytes"] * (count - hidden)
    else:
        states = moment[setup.optimizer] * count
    items = [Item("optimizer", round(states), f"moments of {setup.optimizer}")]
    if setup.method != "full":
        items.insert(0, Item("adapters", 4 * count, "4 N_t"))
    elif setup.master and known_bytes(dtype) < 4:
        each = 2 if dtype == "bf16" else 4
        items.insert(0, Item("masters", each * count, "lower halves, 2 N" if each == 2 else "4 N"))
    return items


def _gradients(shape: ModelShape, batch: Batch, setup: Setup) -> tuple[Item, Item]:
    """(those of one backward, the fp32 sums over several micro-batches)."""
    count = setup.trained(shape)
    each = 4.0 if setup.method != "full" else known_bytes(batch.dtype)
    several = setup.micro_batches > 1 and setup.method == "full" and each < 4
    # moved into their sums as they are formed, so that only sums are held
    one = Item("gradients", 0 if several else round(each * count), f"{each:g} N_t")
    return one, Item("summed gradients", 4 * count if several else 0, "4 N_t")


def _layer(shape: ModelShape, batch: Batch, setup: Setup) -> float:
    """Bytes that one layer keeps for its backward."""
    c, table = known_bytes(batch.dtype), read_values("training", "coefficients")
    a, k = widths(shape)
    elements = table["saved_hidden"] * shape.hidden_size + table["saved_attention"] * a
    elements += table["saved_key_value"] * k + table["saved_feed_forward"] * shape.intermediate_size
    if setup.method == "qlora":
        elements += setup.rank * len(setup.targets)
    small = table["saved_bytes_per_head"] * shape.num_attention_heads + table["saved_norm_bytes"]
    return batch.tokens * (c * elements + small)


def _activations(shape: ModelShape, batch: Batch, setup: Setup) -> tuple[Item, Item]:
    """(kept for the backward when it begins, what comes and goes within one layer's backward)."""
    c, table, layers = known_bytes(batch.dtype), read_values("training", "coefficients"), shape.num_hidden_layers
    a, k = widths(shape)
    again = round(batch.recompute * layers)
    block, inputs = _layer(shape, batch, setup), batch.tokens * shape.hidden_size * c
    kept = (layers - again) * block + again * inputs + table["saved_top_hidden"] * inputs
    how = "L T [c (4h + 2a + 2k + 3f) + 4 heads + 8]"
    if again:
        how = f"inputs of {again} of {layers} layers, all of the others" if again < layers else "L T h c"
    mlp = table["passing_feed_forward"] * shape.intermediate_size + table["passing_hidden"] * shape.hidden_size
    attention = table["passing_attention"] * (a + 2 * k) + table["passing_hidden"] * shape.hidden_size
    lanes = table["attention_scratch_bytes"] * k * min(setup.threads, 2) if batch.native else 0.0
    passing = batch.tokens * max(mlp * c, attention * c + lanes)
    if again == layers:
        passing += block  # of the layer that runs again
    widest = max(i * o for i, o in linears(shape).values())
    if setup.method == "full" and batch.recompute < 1:
        passing += table["weight_gradient_share"] * widest * c
    tile = table["tile_bytes"] if setup.method == "qlora" else 0
    formula = "gradients within one layer" + (", and that layer again" if again == layers else "")
    return Item("activations", round(kept), how), Item("one layer", round(passing + tile), formula)


def _head_gradient(shape: ModelShape, batch: Batch, setup: Setup) -> Item:
    """Of the head where it learns: formed with the loss, in fp32 while several chunks are summed. Where memory is short
    it comes by slabs of the vocabulary, and nothing is summed."""
    if setup.method != "full" or not batch.label_rows:
        return Item("head gradient", 0, "")
    size, c = shape.vocab_size * shape.hidden_size, known_bytes(batch.dtype)
    several = batch.label_rows > _chunk(shape, batch, setup) and c < 4 and batch.recompute < 1
    return Item("head gradient", round(size * (4 + c if several else c)), "V h")


def _chunk_name(batch: Batch, setup: Setup) -> str:
    if setup.method == "qlora":
        return "qlora_chunk_bytes"
    return "short_chunk_bytes" if batch.recompute == 1 else "chunk_bytes"


def _chunk(shape: ModelShape, batch: Batch, setup: Setup) -> int:
    table, c = read_values("training", "coefficients"), known_bytes(batch.dtype)
    step, most = int(table["chunk_step"]), table[_chunk_name(batch, setup)]
    return max(step, int(most / (shape.vocab_size * c)) // step * step)


def _logits(shape: ModelShape, batch: Batch, setup: Setup) -> Item:
    rows = min(batch.label_rows, _chunk(shape, batch, setup))
    c = known_bytes(batch.dtype)
    wide = 0 if batch.native else 8
    return Item("logits", round(rows * shape.vocab_size * (c + wide)), f"{rows} rows x V at once")
