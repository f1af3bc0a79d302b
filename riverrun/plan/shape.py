"""A decoder's dimensions and what follows from them: parameters in all, in linear layers, in LoRA factors.

Symbols: h hidden, k key/value width, a attention width (heads x head size), f feed-forward, L layers, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from riverrun.base.errors import InputError, nearest

__all__ = ["LINEARS", "ModelShape", "linear_parameters", "linears", "lora_parameters", "parameters", "widths"]

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class ModelShape(Protocol):
    """The fields of a Llama-family `config.json` that decide size; `head_dim` may be there too."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def num_hidden_layers(self) -> int: ...
    @property
    def num_attention_heads(self) -> int: ...
    @property
    def num_key_value_heads(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def tie_word_embeddings(self) -> bool: ...


def widths(shape: ModelShape) -> tuple[int, int]:
    """(attention width a, key/value width k)."""
    head = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    return head * shape.num_attention_heads, head * shape.num_key_value_heads


def linears(shape: ModelShape) -> dict[str, tuple[int, int]]:
    """(in, out) of each linear layer of a block."""
    h, f = shape.hidden_size, shape.intermediate_size
    a, k = widths(shape)
    sizes = ((h, a), (h, k), (h, k), (a, h), (h, f), (h, f), (f, h))
    return dict(zip(LINEARS, sizes, strict=True))


def linear_parameters(shape: ModelShape) -> int:
    """Weights of all blocks' linear layers (no embedding, no head)."""
    return shape.num_hidden_layers * sum(i * o for i, o in linears(shape).values())


def parameters(shape: ModelShape) -> int:
    """All weights: embedding, head unless tied, linear layers, two norms a block and the last one.

    A `ModelConfig` counts its own, with biases and the norms that only some families have.
    """
    if callable(exact := getattr(shape, "num_parameters", None)):
        return int(exact())
    h, tables = shape.hidden_size, 1 if shape.tie_word_embeddings else 2
    return tables * shape.vocab_size * h + linear_parameters(shape) + (2 * shape.num_hidden_layers + 1) * h


def lora_parameters(shape: ModelShape, rank: int, targets: Sequence[str] = LINEARS) -> int:
    """N_t = L sum r (in + out) over the target layers (arXiv:2106.09685)."""
    if rank < 1:
        raise InputError(f"the rank must be at least 1, got {rank}")
    sizes = linears(shape)
    if unknown := [name for name in targets if name not in sizes]:
        raise InputError(f"there is no linear layer '{unknown[0]}'.{nearest(unknown[0], sizes)}")
    return shape.num_hidden_layers * sum(rank * sum(sizes[name]) for name in targets)
