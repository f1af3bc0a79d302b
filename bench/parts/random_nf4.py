"""A model of any shape with random weights, made matrix by matrix: in NF4 none of them ever exists in 16 bits."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from riverrun.models.config import ModelConfig
from riverrun.models.quantized.nf4 import BLOCK, Nf4
from riverrun.models.stored import Int8Matrix, Nf4Matrix, Stored
from riverrun.models.transformer import CausalLM

__all__ = ["random_model", "random_nf4"]

DEVIATION = 0.02


def random_nf4(config: ModelConfig, dtype: torch.dtype, *, seed: int = 0) -> CausalLM:
    """Projections in NF4, embedding and head in 8 bits, norms 1; weights of deviation 0.02."""
    model = CausalLM(config, dtype, empty=True)
    with torch.no_grad():
        model.load(_stored(config, np.random.Generator(np.random.SFC64(seed))), "random weights")
    return model


def _stored(config: ModelConfig, rng: np.random.Generator) -> Iterator[tuple[str, Tensor | Stored]]:
    for name, shape in config.shapes().items():
        if len(shape) == 1:
            yield name, torch.zeros(shape) if name.endswith("bias") or config.norm_plus_one else torch.ones(shape)
            continue
        count = shape[0] * shape[1]
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            mapped = name == "model.embed_tokens.weight" and not config.tie_word_embeddings
            codes = _codes(rng, shape, mapped=mapped)
            yield name, Int8Matrix(codes, torch.full((shape[0],), DEVIATION / 74))
            continue
        blocks = count // BLOCK
        packed = np.frombuffer(rng.bytes(count // 2), dtype=np.uint8)
        absmax = np.frombuffer(rng.bytes(blocks), dtype=np.uint8)
        scale = np.full(-(-blocks // 256), 0.2 * DEVIATION, dtype=np.float32)
        yield name, Nf4Matrix(Nf4(packed, absmax, shape, BLOCK, scale, 1.8 * DEVIATION))


def _codes(rng: np.random.Generator, shape: tuple[int, ...], *, mapped: bool) -> Tensor:
    """int8 [V, h]; an embedding that is no head is mapped from a file, as `load_nf4` leaves it where it is."""
    if not mapped:
        out = torch.empty(shape, dtype=torch.int8)
        for rows in torch.split(out, 1024):
            rows.copy_(torch.frombuffer(bytearray(rng.bytes(rows.numel())), dtype=torch.int8).view(rows.shape))
        return out
    with tempfile.TemporaryFile() as file:
        for start in range(0, shape[0], 1024):
            file.write(rng.bytes(min(1024, shape[0] - start) * shape[1]))
        file.flush()
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    return torch.frombuffer(data, dtype=torch.int8).view(shape)


def random_model(config: ModelConfig, dtype: torch.dtype, *, seed: int = 0) -> CausalLM:
    """Plain weights of deviation 0.02, drawn in `dtype`."""
    model, generator = CausalLM(config, dtype), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for view in model.views().values():
            if view.dim() == 2:
                view.normal_(std=DEVIATION, generator=generator)
    return model
