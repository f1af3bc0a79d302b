"""Read GGUF version 2 and 3 (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md): header, metadata, tensors.

Opening reads the header; tensors stay memory-mapped until asked for. What the keys and tensors mean stands in
`gguf_layout`: `GGUFFile.weights` gives every tensor under its Hugging Face name, in its row order and norm convention.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from riverrun.base.errors import InputError, IntegrityError, UnsupportedError
from riverrun.models.config import ModelConfig
from riverrun.models.io.gguf_layout import ROPE_FREQS, Architecture, config_of
from riverrun.models.quantized import BlockType, block_type, dequantize_blocks

__all__ = ["GGUFFile", "TensorInfo", "is_gguf"]

_MAGIC = b"GGUF"
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_LENGTH = struct.Struct("<Q")


def is_gguf(path: Path) -> bool:
    """True when the file starts with the GGUF magic."""
    with open(path, "rb") as handle:
        return handle.read(4) == _MAGIC


@dataclass(frozen=True, slots=True)
class TensorInfo:
    name: str
    shape: tuple[int, ...]  # row-major, as numpy has it: the reverse of the file's order
    kind: BlockType
    offset: int  # bytes from the start of the file
    nbytes: int


class _Cursor:
    """Reads little-endian values; running past the end says that the file is truncated."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data, self.path, self.at = data, path, 0

    def take(self, count: int) -> bytes:
        end = self.at + count
        if count < 0 or end > len(self.data):
            raise IntegrityError(
                f"{self.path} is truncated: it has {len(self.data)} bytes and the header needs {end}; fetch it again"
            )
        out = self.data[self.at : end]
        self.at = end
        return out

    def scalar(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def string(self) -> str:
        return self.take(self.scalar("Q")).decode("utf-8", errors="replace")

    def value(self, kind: int, *, nested: bool = False) -> Any:
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY or nested:  # llama.cpp writes no arrays of arrays
            raise IntegrityError(
                f"{self.path}: metadata type {kind} does not exist; the file is damaged, fetch it again"
            )
        item, count = self.scalar("I"), self.scalar("Q")
        if item in _SCALARS:
            code = _SCALARS[item]
            return list(struct.unpack(f"<{count}{code}", self.take(count * struct.calcsize("<" + code))))
        return self.strings(count) if item == _STRING else [self.value(item, nested=True) for _ in range(count)]

    def strings(self, count: int) -> list[str]:
        """A vocabulary is hundreds of thousands of texts: the plain loop, with the one check that it needs."""
        data, at, size, out = self.data, self.at, len(self.data), []
        for _ in range(count):
            end = at + 8
            if end <= size:
                end += _LENGTH.unpack_from(data, at)[0]
            if end > size:
                self.take(end - self.at)  # says that the file is truncated
            out.append(data[at + 8 : end].decode("utf-8", errors="replace"))
            at = end
        self.at = at
        return out


@dataclass
class GGUFFile:
    """An opened file: `metadata` by key, `tensors` by name."""

    path: Path
    metadata: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, TensorInfo] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.path.is_file():
            raise InputError(f"{self.path} does not exist: give the path of a GGUF file")
        with open(self.path, "rb") as handle:
            if handle.read(4) != _MAGIC:
                raise IntegrityError(f"{self.path} is not a GGUF file (it does not start with 'GGUF')")
            self._data = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
        cursor = _Cursor(self._data, self.path)
        cursor.take(4)
        version = cursor.scalar("I")
        if version not in (2, 3):
            raise UnsupportedError(f"{self.path} has GGUF version {version}, read here: 2 and 3")
        tensor_count, value_count = cursor.scalar("Q"), cursor.scalar("Q")
        for _ in range(value_count):
            key = cursor.string()
            if key in self.metadata:
                raise IntegrityError(f"{self.path} has key '{key}' twice; the file is damaged, fetch it again")
            self.metadata[key] = cursor.value(cursor.scalar("I"))
        found = [self._tensor_header(cursor) for _ in range(tensor_count)]
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise IntegrityError(
                f"{self.path}: general.alignment is {alignment!r}; the file is damaged, fetch it again"
            )
        start = -(-cursor.at // alignment) * alignment
        for name, shape, kind, offset in found:
            if not shape or shape[-1] % kind.block_values:
                raise IntegrityError(
                    f"{self.path}: tensor {name} of type {kind.name} has shape {list(shape)}, rows must be a multiple "
                    f"of {kind.block_values}; the file is damaged, fetch it again"
                )
            if name in self.tensors:
                raise IntegrityError(f"{self.path} has tensor {name} twice; the file is damaged, fetch it again")
            nbytes = kind.bytes_of(shape)
            info = TensorInfo(name, shape, kind, start + offset, nbytes)
            if info.offset + nbytes > len(self._data):
                raise IntegrityError(
                    f"{self.path} is truncated: tensor {name} ends at byte {info.offset + nbytes}, "
                    f"the file has {len(self._data)}; fetch it again"
                )
            self.tensors[name] = info

    @staticmethod
    def _tensor_header(cursor: _Cursor) -> tuple[str, tuple[int, ...], BlockType, int]:
        name = cursor.string()
        shape = tuple(cursor.scalar("Q") for _ in range(cursor.scalar("I")))[::-1]
        return name, shape, block_type(cursor.scalar("I")), cursor.scalar("Q")

    def raw(self, name: str) -> NDArray[np.uint8]:
        """The bytes of one tensor, a view of the mapped file."""
        info = self.tensors[name]
        return np.frombuffer(self._data, dtype=np.uint8, count=info.nbytes, offset=info.offset)

    def read(self, name: str) -> NDArray[np.float32]:
        """One tensor, dequantised to float32."""
        info = self.tensors[name]
        return dequantize_blocks(info.kind, self.raw(name), info.shape)

    def config(self) -> ModelConfig:
        """The model's shape; a missing or impossible key, a missing, unknown or misshaped tensor is named."""
        return self._layout()[1]

    def _layout(self) -> tuple[Architecture, ModelConfig]:
        shapes = {name: info.shape for name, info in self.tensors.items()}
        factors = self.read(ROPE_FREQS) if ROPE_FREQS in shapes else None
        kind, config = config_of(self.metadata, shapes, factors, str(self.path))
        names, wanted = kind.tensor_names(config), config.shapes()
        for name, ours in names.items():
            if name not in shapes:
                raise IntegrityError(f"{self.path} has no tensor '{name}': fetch it again or convert the model again")
            if shapes[name] != wanted[ours]:
                raise IntegrityError(
                    f"{self.path}: tensor {name} has shape {list(shapes[name])}, its keys need {list(wanted[ours])}: "
                    "fetch or convert it again"
                )
        for name in shapes.keys() - names.keys() - {ROPE_FREQS}:
            raise UnsupportedError(f"{self.path}: tensor '{name}' has no place in a {config.model_type} model")
        return kind, config

    def weights(self, config: ModelConfig) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """(Hugging Face name, float32 values) of every tensor; `config` is that of `config()`, its token ids aside.

        Norm weights of Gemma are the file's less 1, as its checkpoints have them.
        """
        for ours, info, order in self.places(config):
            yield ours, self.weight(ours, info, order, config)

    def places(self, config: ModelConfig) -> Iterator[tuple[str, TensorInfo, NDArray[np.int64] | None]]:
        """(Hugging Face name, tensor, where each of its rows goes; None: where it is) of every tensor."""
        kind, _ = self._layout()
        for name, ours in kind.tensor_names(config).items():
            yield ours, self.tensors[name], kind.row_order(ours, config)

    def weight(
        self, ours: str, info: TensorInfo, order: NDArray[np.int64] | None, config: ModelConfig
    ) -> NDArray[np.float32]:
        """One of `places` as `weights` gives it."""
        values = self.read(info.name)
        if order is not None:
            rows = np.empty_like(values)
            rows[order] = values
            return rows
        if config.norm_plus_one and ours.endswith("norm.weight"):
            values -= 1
        return values
