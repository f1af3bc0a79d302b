"""Write GGUF version 3, tensor by tensor, as llama.cpp's own converter lays a model out.

The header follows from the config alone, so tensors may come in any order and go straight to their place in the file:
besides the tensor in hand there is never more than a slice of its rows in memory.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from riverrun.base.artifacts import atomic_file
from riverrun.base.errors import ConfigError, InputError, IntegrityError
from riverrun.models.config import ModelConfig
from riverrun.models.io.gguf_layout import ROPE_FREQS, Architecture, architecture_of, metadata_of, rope_factors
from riverrun.models.quantized import BlockType, block_type_of, quantize_blocks

__all__ = ["GgufPlan", "Place", "plan_gguf", "write_gguf"]

_ALIGNMENT = 32
_SLICE_VALUES = 1 << 22
"""Values converted at a time: 16 MB of float32."""
_FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "BF16": 32}  # general.file_type (llama.h, llama_ftype)
_LARGEST = {"F16": 1.0, "Q8_0": 127.0, "Q4_0": 8.0}
"""Largest magnitude that a type holds, in units of the largest fp16 (its scale is one)."""
_FP16_END = 65520.0  # rounds to infinity
_UNUSED = 5  # tokenizer.ggml.token_type
_TOKENS, _TYPES, _SCORES = (f"tokenizer.ggml.{key}" for key in ("tokens", "token_type", "scores"))


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor goes. offset: bytes from the start of the tensor data."""

    name: str
    shape: tuple[int, ...]
    kind: BlockType
    offset: int


@dataclass(frozen=True, slots=True)
class GgufPlan:
    """A file before its tensors: the bytes of its header, the place of each tensor by Hugging Face name, its size."""

    config: ModelConfig
    architecture: Architecture
    head: bytes
    places: dict[str, Place]

    @property
    def nbytes(self) -> int:
        last = max(self.places.values(), key=lambda place: place.offset)
        return len(self.head) + _aligned(last.offset + last.kind.bytes_of(last.shape))


def plan_gguf(
    config: ModelConfig,
    tokenizer: Mapping[str, Any],
    chat_template: str | None = None,
    *,
    kind: str = "Q8_0",
    embedding: str | None = None,
    output: str | None = None,
    name: str = "",
) -> GgufPlan:
    """What `write_gguf` with the same arguments begins with; errors as there."""
    architecture = architecture_of(config)
    kinds = {"": kind, "token_embd.weight": embedding or kind, "output.weight": output or kind}
    places = _places(config, architecture, {key: block_type_of(value) for key, value in kinds.items()})
    metadata: dict[str, Any] = {"general.architecture": architecture.name, "general.type": "model"}
    metadata |= {"general.name": name} if name else {}
    metadata |= metadata_of(config, architecture)
    metadata |= {"general.file_type": _FILE_TYPES[kind], "general.quantization_version": 2}
    metadata |= _vocabulary(config, tokenizer)
    if chat_template is not None:
        metadata["tokenizer.chat_template"] = chat_template
    return GgufPlan(config, architecture, _header(metadata, places.values()), places)


def write_gguf(
    path: Path,
    config: ModelConfig,
    tensors: Iterable[tuple[str, NDArray[np.floating[Any]]]],
    tokenizer: Mapping[str, Any],
    chat_template: str | None = None,
    *,
    kind: str = "Q8_0",
    embedding: str | None = None,
    output: str | None = None,
    name: str = "",
) -> None:
    """Write a whole GGUF file, or none.

    tensors: (Hugging Face name, float16 or float32 values) in any order, exactly those of `config.shapes()`
    tokenizer: `tokenizer.ggml.*` keys and values; a vocabulary shorter than the embedding is filled up
    kind: F32, F16, BF16, Q8_0 or Q4_0 for matrices, `embedding` and `output` for those of their name alone; a matrix
        whose rows do not hold whole blocks is F16, norms and biases are F32, as in llama.cpp

    Errors: UnsupportedError (a type that is not written; a model that no architecture of llama.cpp computes),
    IntegrityError (a missing, unknown, repeated or misshaped tensor), InputError (values that are not finite or that
    the type cannot hold), ConfigError (a vocabulary that does not fit).
    """
    plan = plan_gguf(config, tokenizer, chat_template, kind=kind, embedding=embedding, output=output, name=name)
    start, missing = len(plan.head), dict(plan.places)
    with atomic_file(path, "wb") as handle:
        handle.write(plan.head)
        if (factors := rope_factors(config)) is not None:
            _write(handle, start, missing.pop(ROPE_FREQS), factors, None, 0)
        for ours, values in tensors:
            if ours not in missing:
                what = "is given twice" if ours in plan.places else f"has no place in a {config.model_type} model"
                raise IntegrityError(f"{path}: tensor '{ours}' {what}")
            place = missing.pop(ours)
            if values.shape != place.shape:
                raise IntegrityError(
                    f"{path}: tensor '{ours}' has shape {list(values.shape)}, the config needs {list(place.shape)}"
                )
            add = 1 if config.norm_plus_one and ours.endswith("norm.weight") else 0
            _write(handle, start, place, values, plan.architecture.row_order(ours, config), add)
        if missing:
            raise IntegrityError(f"{path}: {len(missing)} tensors were not given, the first is '{next(iter(missing))}'")
        handle.truncate(plan.nbytes)


def _places(config: ModelConfig, architecture: Architecture, kinds: Mapping[str, BlockType]) -> dict[str, Place]:
    """Hugging Face name -> place; `rope_freqs.weight` stands under its own name."""
    shapes = config.shapes()
    named = {ours: (theirs, shapes[ours]) for theirs, ours in architecture.tensor_names(config).items()}
    if (factors := rope_factors(config)) is not None:
        named[ROPE_FREQS] = (ROPE_FREQS, factors.shape)
    places, offset = {}, 0
    for ours, (theirs, shape) in named.items():
        kind = kinds.get(theirs, kinds[""])
        if len(shape) == 1:
            kind = block_type_of("F32")
        elif shape[-1] % kind.block_values:
            kind = block_type_of("F16")
        places[ours] = Place(theirs, shape, kind, offset)
        offset += _aligned(kind.bytes_of(shape))
    return places


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _write(
    handle: IO[bytes],
    start: int,
    place: Place,
    values: NDArray[np.floating[Any]],
    order: NDArray[np.intp] | None,
    add: int,
) -> None:
    """One tensor, a slice of rows after the other."""
    handle.seek(start + place.offset)
    step = max(1, _SLICE_VALUES * len(values) // max(values.size, 1))
    largest = _FP16_END * _LARGEST[place.kind.name] if place.kind.name in _LARGEST else np.inf
    for row in range(0, len(values), step):
        rows = slice(row, row + step) if order is None else order[row : row + step]
        piece = np.ascontiguousarray(values[rows], dtype=np.float32)
        if add:
            piece = piece + np.float32(add)
        top = float(np.abs(piece).max(initial=0))
        if not top < largest:
            what = f"a magnitude of {top:g}" if np.isfinite(top) else "values that are not finite"
            raise InputError(f"tensor {place.name} has {what}, which {place.kind.name} does not hold: {_advice(top)}")
        handle.write(quantize_blocks(place.kind, piece).data)


def _advice(top: float) -> str:
    return "write BF16 or F32" if np.isfinite(top) else "the weights are damaged, fetch or train them again"


def _vocabulary(config: ModelConfig, tokenizer: Mapping[str, Any]) -> dict[str, Any]:
    """The tokenizer's keys, with a token for each row of the embedding and the ends that only the config knows."""
    out = dict(tokenizer)
    if foreign := [key for key in out if not key.startswith("tokenizer.")]:
        raise ConfigError(f"the tokenizer's keys start with 'tokenizer.', got '{foreign[0]}'")
    tokens = list(out.get(_TOKENS, []))
    spare = config.vocab_size - len(tokens)
    if spare < 0:
        raise ConfigError(
            f"the tokenizer has {len(tokens)} tokens, the embedding {config.vocab_size} rows: they are of two models"
        )
    if tokens and spare:
        out[_TOKENS] = tokens + [f"[PAD{index}]" for index in range(len(tokens), config.vocab_size)]
        for key, value in ((_TYPES, _UNUSED), (_SCORES, -1000.0)):
            if key in out:
                out[key] = [*out[key], *[value] * spare]
    ends = {"bos": config.bos_token_id, "eos": config.end_ids[0] if config.end_ids else None}
    for key, index in ends.items():
        if index is not None:
            out.setdefault(f"tokenizer.ggml.{key}_token_id", index)
    return out


def _header(metadata: Mapping[str, Any], places: Iterable[Place]) -> bytes:
    """Magic, version, counts, keys, tensor infos, filled up to the alignment."""
    places = list(places)
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(places), len(metadata))]
    for key, value in metadata.items():
        parts += [_text(key), _typed(key, value)]
    for place in places:
        sizes = place.shape[::-1]
        parts.append(_text(place.name) + struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes))
        parts.append(struct.pack("<IQ", place.kind.code, place.offset))
    head = b"".join(parts)
    return head + bytes(_aligned(len(head)) - len(head))


def _text(value: str) -> bytes:
    data = value.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9


def _typed(key: str, value: Any) -> bytes:
    """Type and value: bool, uint32, float32, text, or a list of one of them (whole numbers in a list are int32)."""
    try:
        if isinstance(value, list | tuple):
            return struct.pack("<I", _ARRAY) + _items(list(value))
        if isinstance(value, bool):
            return struct.pack("<I?", _BOOL, value)
        if isinstance(value, int):
            return struct.pack("<II", _UINT32, value)
        if isinstance(value, float):
            return struct.pack("<If", _FLOAT32, value)
        if isinstance(value, str):
            return struct.pack("<I", _STRING) + _text(value)
    except (struct.error, OverflowError, UnicodeEncodeError) as error:
        raise ConfigError(f"GGUF key '{key}' cannot hold its value: {error}") from None
    raise ConfigError(f"GGUF key '{key}' cannot hold a value of type {type(value).__name__}")


def _items(values: list[Any]) -> bytes:
    kinds = {type(value) for value in values}
    if kinds <= {str}:
        return struct.pack("<IQ", _STRING, len(values)) + b"".join(map(_text, values))
    if kinds == {bool}:
        return struct.pack(f"<IQ{len(values)}?", _BOOL, len(values), *values)
    if kinds == {int}:
        return struct.pack(f"<IQ{len(values)}i", _INT32, len(values), *values)
    if kinds <= {int, float}:
        return struct.pack(f"<IQ{len(values)}f", _FLOAT32, len(values), *values)
    raise OverflowError(f"a list of {', '.join(sorted(kind.__name__ for kind in kinds))}")
