"""Read GGUF version 2 and 3 (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md): header, metadata, tensors.

Tensors stay memory-mapped until asked for. llama.cpp stores the query and key rows of Llama models interleaved for its
rotary kernel; `GGUFFile.weights` puts them back into the half-split order of Hugging Face.
"""

from __future__ import annotations

import math
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
from riverrun.models.io.names import from_gguf
from riverrun.models.quantized import BlockType, block_type, dequantize_blocks

__all__ = ["GGUFFile", "TensorInfo", "is_gguf"]

_MAGIC = b"GGUF"
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_NEEDED = {
    "llama.embedding_length",
    "llama.feed_forward_length",
    "llama.block_count",
    "llama.attention.head_count",
    "llama.context_length",
    "llama.attention.layer_norm_rms_epsilon",
}


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
        return [self.value(item, nested=True) for _ in range(count)]


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
            nbytes = math.prod(shape) // kind.block_values * kind.block_bytes
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

    def read(self, name: str) -> NDArray[np.float32]:
        """One tensor, dequantised to float32."""
        info = self.tensors[name]
        raw = np.frombuffer(self._data, dtype=np.uint8, count=info.nbytes, offset=info.offset)
        return dequantize_blocks(info.kind, raw, info.shape)

    def config(self) -> ModelConfig:
        """The model's shape from the `<architecture>.*` keys; a missing or impossible one is named."""
        meta = self.metadata
        family = meta.get("general.architecture")
        if family != "llama":
            raise UnsupportedError(f"GGUF architecture '{family}' is not supported, supported: llama")
        if meta.get("llama.expert_count", 0):
            raise UnsupportedError(f"{self.path} is a mixture of experts, supported: dense llama")
        if meta.get("llama.rope.scaling.type", "none") != "none" or "rope_freqs.weight" in self.tensors:
            raise UnsupportedError(f"{self.path} uses scaled rotary embedding, supported: the plain form")
        for needed in sorted(_NEEDED - meta.keys()):
            raise IntegrityError(f"{self.path} has no key '{needed}': convert the model again")
        if "token_embd.weight" not in self.tensors:
            raise IntegrityError(f"{self.path} has no tensor 'token_embd.weight': convert the model again")
        heads, embed = meta["llama.attention.head_count"], self.tensors["token_embd.weight"]
        values = {
            "vocab_size": embed.shape[0],
            "hidden_size": meta["llama.embedding_length"],
            "intermediate_size": meta["llama.feed_forward_length"],
            "num_hidden_layers": meta["llama.block_count"],
            "num_attention_heads": heads,
            "num_key_value_heads": meta.get("llama.attention.head_count_kv", heads),
            "head_dim": meta.get("llama.attention.key_length", 0),
            "max_position_embeddings": meta["llama.context_length"],
            "rms_norm_eps": meta["llama.attention.layer_norm_rms_epsilon"],
            "rope_theta": meta.get("llama.rope.freq_base", 10000.0),
            "tie_word_embeddings": "output.weight" not in self.tensors,
            "bos_token_id": meta.get("tokenizer.ggml.bos_token_id"),
            "eos_token_id": meta.get("tokenizer.ggml.eos_token_id"),
        }
        config = ModelConfig.of(values, str(self.path))
        for key in ("attention.value_length", "rope.dimension_count"):
            if (size := meta.get(f"llama.{key}", config.head_dim)) != config.head_dim:
                raise UnsupportedError(f"{self.path}: llama.{key} is {size}, supported: head_dim ({config.head_dim})")
        return config

    def weights(self, config: ModelConfig) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """(our name, float32 values) of every tensor, query and key rows in half-split order."""
        heads = {"self_attn.q_proj": config.num_attention_heads, "self_attn.k_proj": config.num_key_value_heads}
        for name in self.tensors:
            ours = from_gguf(name)
            if ours is None:
                raise UnsupportedError(f"{self.path}: tensor '{name}' has no place in a llama model")
            values = self.read(name)
            part = ours.removesuffix(".weight").split(".", 3)[-1]
            if part in heads and values.shape != config.linear_shapes()[part]:
                raise IntegrityError(
                    f"{self.path}: tensor {name} has shape {list(values.shape)}, its heads need "
                    f"{list(config.linear_shapes()[part])}: fetch or convert it again"
                )
            yield ours, _unpermute(values, heads[part]) if part in heads else values


def _unpermute(rows: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Undo llama.cpp's interleaving of the two rotary halves: per head, row 2i + j came from row j * d/2 + i."""
    out, into = rows.shape
    return rows.reshape(heads, out // heads // 2, 2, into).swapaxes(1, 2).reshape(out, into)
