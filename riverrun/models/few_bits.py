"""A checkpoint's own few bits, kept as they are: group grids of AWQ, GPTQ and group4, blocks of GGUF files.

Each matrix is multiplied tile by tile (`models/stored`), with the values that reading it whole would give. Blocks stay
in their mapped file; group grids are unpacked once to codes in the order of rows. Slower than 16 bits where those fit.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from riverrun.base.errors import UnsupportedError
from riverrun.models.config import ModelConfig
from riverrun.models.io.bnb import METHOD as BNB
from riverrun.models.io.gguf import GGUFFile
from riverrun.models.io.groups import stored_matrices
from riverrun.models.io.hf import array_places
from riverrun.models.io.layouts import split_parts
from riverrun.models.io.names import stored_names
from riverrun.models.quantized import BlockType, GroupQuantized, dequantize_blocks
from riverrun.models.stored import Stored
from riverrun.models.transformer import CausalLM

if TYPE_CHECKING:
    from riverrun.models.load import Checkpoint

__all__ = ["BlockMatrix", "GroupMatrix", "load_few_bits"]


class GroupMatrix(Stored):
    """Codes of 2, 4 or 8 bits with a scale and a zero point for each group of a row."""

    def __init__(self, value: GroupQuantized) -> None:
        self.bits, self.size, self.shape = value.bits, value.group_size, torch.Size(value.shape)
        self.packed, self.scale, self.zero = map(torch.from_numpy, (value.packed, value.scale, value.zero))
        inputs = self.shape[1]
        even = value.group_of is None and inputs % value.group_size == 0
        columns = np.arange(inputs) // value.group_size if value.group_of is None else value.group_of
        self.columns = None if even else torch.from_numpy(columns.astype(np.int64))

    @property
    def nbytes(self) -> int:
        held = (self.packed, self.scale, self.zero, *(() if self.columns is None else (self.columns,)))
        return sum(each.numel() * each.element_size() for each in held)

    def picked(self, rows: Tensor) -> GroupMatrix:
        """These rows, in this order."""
        out = object.__new__(GroupMatrix)
        out.bits, out.size, out.columns = self.bits, self.size, self.columns
        out.packed, out.scale, out.zero = self.packed[rows], self.scale[rows], self.zero[rows]
        out.shape = torch.Size((len(rows), self.shape[1]))
        return out

    def tile(self, rows: slice, cols: slice, out: Tensor) -> Tensor:
        packed = self.packed[rows]
        mask = (1 << self.bits) - 1
        codes = torch.stack([(packed >> place) & mask for place in range(0, 8, self.bits)], dim=2).flatten(1)
        scale, zero = self.scale[rows].float(), self.zero[rows].float()
        if self.columns is None:
            values = codes.view(len(codes), -1, self.size).float()
            values.sub_(zero[:, :, None]).mul_(scale[:, :, None])
        else:
            values = (codes.float() - zero[:, self.columns]).mul_(scale[:, self.columns])
        return out.copy_(values.view(len(codes), -1)[:, cols])


class BlockMatrix(Stored):
    """Blocks of a ggml type, a view of the mapped file; `order`: the file's row of each row here."""

    def __init__(
        self, raw: NDArray[np.uint8], kind: BlockType, shape: tuple[int, int], order: NDArray[np.int64] | None = None
    ) -> None:
        self.raw, self.kind, self.shape, self.order = raw.reshape(shape[0], -1), kind, torch.Size(shape), order

    @property
    def nbytes(self) -> int:
        return int(self.raw.nbytes)

    def tile(self, rows: slice, cols: slice, out: Tensor) -> Tensor:
        chosen = self.raw[rows] if self.order is None else self.raw[self.order[rows]]
        return out.copy_(self._values(chosen)[:, cols])

    def take(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        return self._values(self.raw[ids.numpy()]).to(dtype)

    def _values(self, raw: NDArray[np.uint8]) -> Tensor:
        shape = (len(raw), self.shape[1])
        return torch.from_numpy(dequantize_blocks(self.kind, np.ascontiguousarray(raw).reshape(-1), shape))


def load_few_bits(checkpoint: Checkpoint, dtype: torch.dtype) -> CausalLM:
    """The model with its quantised matrices as they are; an adapter of the checkpoint is computed beside them.

    UnsupportedError for a checkpoint that holds no matrix in few bits, or NF4 (`qlora.load_nf4` reads that).
    """
    model = CausalLM(checkpoint.config, dtype, empty=True)
    if checkpoint.gguf:
        items = _blocks(checkpoint.gguf, checkpoint.config)
    elif checkpoint.quantization and checkpoint.quantization.get("quant_method") != BNB:
        items = _groups(checkpoint.path, checkpoint.quantization, checkpoint.config)
    else:
        raise UnsupportedError(f"{checkpoint.path} holds no matrix in few bits that stays so: leave weights at auto")
    with torch.no_grad():
        model.load(items, str(checkpoint.path))
    if checkpoint.adapter:
        from riverrun.models.io.adapter import load_adapter

        load_adapter(model, checkpoint.adapter)
    return model.eval()


def _blocks(file: GGUFFile, config: ModelConfig) -> Iterator[tuple[str, Tensor | Stored]]:
    for name, info, order in file.places(config):
        if len(info.shape) == 2 and info.kind.block_values > 1:
            own = None if order is None else np.argsort(order)
            yield name, BlockMatrix(file.raw(info.name), info.kind, (info.shape[0], info.shape[1]), own)
        else:
            yield name, torch.from_numpy(file.weight(name, info, order, config))


def _groups(folder: Path, quantization: dict[str, Any], config: ModelConfig) -> Iterator[tuple[str, Tensor | Stored]]:
    places, array, tensor = array_places(folder)
    names = stored_names(config)
    for name, value in stored_matrices(places, array, quantization, str(folder)):
        parts = names.get(name, (name,))
        if isinstance(value, GroupQuantized):
            matrix = GroupMatrix(value)
            if len(parts) == 1:
                yield parts[0], matrix
                continue
            rows = split_parts(config, torch.arange(matrix.shape[0])[:, None], parts)
            yield from ((part, matrix.picked(own[:, 0])) for part, own in zip(parts, rows, strict=True))
        else:
            plain = tensor(name) if value is None else torch.from_numpy(value)
            yield from zip(parts, split_parts(config, plain, parts), strict=True)
