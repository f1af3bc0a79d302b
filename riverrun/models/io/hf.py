"""Hugging Face folders: config.json and safetensors, single or sharded, one tensor at a time. torch inside.

`Weights` reads plain tensors lazily and knows before the first one whether all are there and fit. Quantised folders
(`quantization_config`, see `io/groups`) are read in order by `read_weights`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from riverrun.base.artifacts import write_json
from riverrun.base.errors import InputError, IntegrityError, UnsupportedError
from riverrun.models.config import ModelConfig
from riverrun.models.io.groups import dequantized
from riverrun.models.io.layouts import join_parts, split_parts, stored_shape
from riverrun.models.io.names import is_constant, plain_name, stored_names
from riverrun.models.io.safetensors import Entry, SafetensorsFile, write_safetensors
from riverrun.models.quantized import quantize_groups, quantize_rows

__all__ = [
    "SHARD_BYTES",
    "SHARD_INDEX",
    "Weights",
    "load_tensors",
    "read_weights",
    "save_tensors",
    "write_quantized",
    "write_weights",
]

SHARD_INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000
_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_READ = ", ".join(_DTYPES)


def _files(folder: Path) -> list[Path]:
    index = folder / SHARD_INDEX
    if index.is_file() and not (folder / "model.safetensors").is_file():  # the order of transformers
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise IntegrityError(f"{index} is not a shard index: {error!r}") from None
        if outside := [name for name in names if not isinstance(name, str) or Path(name).name != name]:
            raise IntegrityError(f"{index} names {outside[0]!r}, which is not a file of its folder")
        files = [folder / name for name in names]
    else:
        files = [folder / "model.safetensors"]
    for file in files:
        if not file.is_file():
            raise InputError(
                f"{file} does not exist: a model folder needs model.safetensors or all shards of its index"
            )
    return files


def _tensor(file: SafetensorsFile, entry: Entry) -> Tensor:
    if entry.dtype not in _DTYPES:
        raise UnsupportedError(f"{file.path}: tensor '{entry.name}' is of type {entry.dtype}, read: {_READ}")
    data = file.read(entry)
    return torch.frombuffer(data, dtype=_DTYPES[entry.dtype]).view(entry.shape) if data else _empty(entry)


def _empty(entry: Entry) -> Tensor:
    return torch.empty(entry.shape, dtype=_DTYPES[entry.dtype])


class Weights(Mapping[str, Tensor]):
    """The tensors of a folder by our names, each read when it is asked for.

    IntegrityError names a tensor that is missing, has no place or another shape than the config's, before any is read.
    """

    def __init__(self, folder: Path, config: ModelConfig) -> None:
        self.folder, self.config = folder, config
        self.files = [SafetensorsFile(file) for file in _files(folder)]
        self._stored = stored_names(config)
        self._whose = {name: theirs for theirs, parts in self._stored.items() for name in parts}
        self._places: dict[str, tuple[SafetensorsFile, Entry]] = {}
        self._tied: tuple[SafetensorsFile, Entry] | None = None
        for file in self.files:
            for entry in file.entries.values():
                if (name := plain_name(entry.name)) is not None:
                    self._place(name, file, entry)
        if missing := [theirs for theirs in self._stored if theirs not in self._places]:
            raise IntegrityError(f"{folder}: {len(missing)} tensors are missing, the first is '{missing[0]}'")
        self._check_head()
        self._last: tuple[str, list[Tensor]] = ("", [])
        self._maps: dict[SafetensorsFile, memoryview] = {}

    def _place(self, name: str, file: SafetensorsFile, entry: Entry) -> None:
        if self.config.tie_word_embeddings and name in ("lm_head.weight", "output.weight"):
            self._tied = (file, entry)
            return
        if is_constant(name):
            return
        if entry.dtype not in _DTYPES:
            raise UnsupportedError(f"{file.path}: tensor '{entry.name}' is of type {entry.dtype}, read: {_READ}")
        if name not in self._stored:
            raise IntegrityError(f"{file.path}: tensor '{entry.name}' has no place in a {self.config.model_type} model")
        needed = stored_shape(self.config, self._stored[name])
        if entry.shape != needed:
            raise IntegrityError(
                f"{file.path}: tensor '{entry.name}' has shape {list(entry.shape)}, the config needs {list(needed)}"
            )
        self._places[name] = file, entry

    def _check_head(self) -> None:
        """A head that is stored although it is tied must be the embedding."""
        if self._tied is None:
            return
        first, second = self._tied, self._places[next(iter(self._stored))]
        if first[1].shape != second[1].shape or first[0].read(first[1]) != second[0].read(second[1]):
            raise IntegrityError(
                f"{self.folder}: tie_word_embeddings is true, and '{first[1].name}' is not the embedding: "
                "say tie_word_embeddings: false in config.json"
            )

    def __getitem__(self, name: str) -> Tensor:
        theirs = self._whose[name]
        if self._last[0] != theirs:  # q, k and v are asked for one after another
            parts = self._stored[theirs]
            self._last = theirs, split_parts(self.config, _tensor(*self._places[theirs]), parts)
        found = self._last[1][self._stored[theirs].index(name)]
        if name == self._stored[theirs][-1]:
            self._last = ("", [])
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._whose)

    def __len__(self) -> int:
        return len(self._whose)

    def mapped(self, name: str) -> Tensor:
        """The tensor as a view of the mapped file where it is stored alone, else as `[name]` gives it."""
        theirs = self._whose[name]
        file, entry = self._places[theirs]
        dtype = _DTYPES.get(entry.dtype)
        if len(self._stored[theirs]) > 1 or dtype is None or not entry.nbytes:
            return self[name]
        if file not in self._maps:
            self._maps[file] = file.map_data()
        data = self._maps[file][entry.start : entry.start + entry.nbytes]
        return torch.frombuffer(data, dtype=dtype).view(entry.shape)

    def dtype(self, name: str) -> torch.dtype:
        """As it is stored."""
        return _DTYPES[self._places[self._whose[name]][1].dtype]

    def partition(self) -> list[tuple[str, list[str]]]:
        """(file name, names of its tensors in the order of their data) of each file."""
        kept = {id(entry) for _, entry in self._places.values()}
        return [(file.path.name, [e.name for e in file.entries.values() if id(e) in kept]) for file in self.files]


def read_weights(
    folder: Path, quantization: Mapping[str, Any] | None, config: ModelConfig | None = None
) -> Iterator[tuple[str, Tensor]]:
    """(our name, tensor) one at a time; quantised matrices come dequantised to float32."""
    config = config or ModelConfig.from_hf(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    if not quantization:
        yield from Weights(folder, config).items()
        return
    places, array, plain = array_places(folder)
    stored = stored_names(config)
    for name, values in dequantized(places, array, quantization, str(folder)):
        tensor = plain(name) if values is None else torch.from_numpy(values)
        parts = stored.get(name, (name,))
        yield from zip(parts, split_parts(config, tensor, parts), strict=True)


def array_places(
    folder: Path,
) -> tuple[Collection[str], Callable[[str], NDArray[Any]], Callable[[str], Tensor]]:
    """(names of all tensors of a folder, one's values with bfloat16 as float32, one as it is)."""
    places = {
        name: (file, entry) for file in map(SafetensorsFile, _files(folder)) for name, entry in file.entries.items()
    }

    def tensor(name: str) -> Tensor:
        return _tensor(*places[name])

    def array(name: str) -> NDArray[Any]:
        found = tensor(name)
        return (found.float() if found.dtype == torch.bfloat16 else found).numpy()

    return places, array, tensor


def raw_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, row-major."""
    values: Any = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(values)


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write named tensors as one safetensors file, one after another, whole or not at all."""
    entries = [Entry(name, _NAMES[tensor.dtype], tuple(tensor.shape)) for name, tensor in tensors.items()]
    entries.sort(key=lambda entry: (-(entry.nbytes // max(1, _count(entry))), entry.name))
    write_safetensors(path, entries, (raw_bytes(tensors[e.name]) for e in entries), {"format": "pt"})


def load_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of one safetensors file by name."""
    file = SafetensorsFile(path)
    return {name: _tensor(file, entry) for name, entry in file.entries.items()}


def _save(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", dict(config))
    save_tensors(folder / "model.safetensors", tensors)


def _count(entry: Entry) -> int:
    return int(np.prod(entry.shape))


def write_weights(
    folder: Path,
    config: ModelConfig,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype | None,
    *,
    shard_bytes: int = SHARD_BYTES,
    partition: Sequence[tuple[str, list[str]]] = (),
) -> None:
    """config.json and safetensors as `transformers` (InternLM2: its published code) reads them, tensor by tensor.

    Shards have at most `shard_bytes`, or are those of `partition` (file name, names of its tensors). Without a dtype
    every tensor keeps its own.
    """
    stored = stored_names(config)

    def kind(name: str) -> torch.dtype:
        return dtype or (tensors.dtype(name) if isinstance(tensors, Weights) else tensors[name].dtype)

    kinds = {theirs: kind(parts[0]) for theirs, parts in stored.items()}
    entries = {
        theirs: Entry(theirs, _NAMES[kinds[theirs]], stored_shape(config, parts)) for theirs, parts in stored.items()
    }
    files = list(partition) or _cut(list(entries.values()), shard_bytes)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(
        folder / "config.json", config.to_hf() | {"torch_dtype": str(next(iter(kinds.values()))).removeprefix("torch.")}
    )

    def data(names: Sequence[str]) -> Iterator[memoryview]:
        for theirs in names:
            whole = join_parts(config, [tensors[part] for part in stored[theirs]])
            yield raw_bytes(whole.to(kinds[theirs]))

    for file, names in files:
        write_safetensors(folder / file, [entries[each] for each in names], data(names), {"format": "pt"})
    if len(files) > 1:
        total = sum(entry.nbytes for entry in entries.values())
        where = {theirs: file for file, names in files for theirs in names}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
        write_json(folder / SHARD_INDEX, index)


def _cut(entries: Sequence[Entry], shard_bytes: int) -> list[tuple[str, list[str]]]:
    """Shards in the order of the model, each filled until the next tensor would be too much."""
    shards: list[list[Entry]] = [[]]
    for entry in entries:
        if shards[-1] and sum(each.nbytes for each in shards[-1]) + entry.nbytes > shard_bytes:
            shards.append([])
        shards[-1].append(entry)
    if len(shards) == 1:
        return [("model.safetensors", sorted(entry.name for entry in shards[0]))]
    return [
        (f"model-{number:05d}-of-{len(shards):05d}.safetensors", sorted(entry.name for entry in shard))
        for number, shard in enumerate(shards, 1)
    ]


def write_quantized(folder: Path, config: ModelConfig, tensors: Mapping[str, Tensor], group_size: int) -> None:
    """Matrices on the 4-bit group grid, embedding and head on 8-bit rows of 32, norms in float32."""
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        values = tensor.float().numpy()
        if name.startswith(("model.embed_tokens", "lm_head")):
            codes, scale = quantize_rows(values)
            out |= {f"{name}.codes": torch.from_numpy(codes), f"{name}.scale": torch.from_numpy(scale)}
        elif tensor.dim() == 2:
            matrix = quantize_groups(np.ascontiguousarray(values), group_size)
            parts = {"packed": matrix.packed, "scale": matrix.scale, "zero": matrix.zero}
            out |= {f"{name}.{part}": torch.from_numpy(array) for part, array in parts.items()}
        else:
            out[name] = tensor.float()
    quantization = {"quant_method": "group4", "bits": 4, "group_size": group_size, "zero_point": True}
    _save(folder, config.to_hf() | {"quantization_config": quantization}, out)
