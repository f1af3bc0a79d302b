"""A base in four bits (QLoRA, https://arxiv.org/abs/2305.14314): quantised while it is read, or mapped from a folder.

Quantising takes one tensor after another from the file, so that the peak is the quantised model and one tensor. With
`cache` the result is written to a folder first (bitsandbytes' layout, `io/bnb`) and mapped from there, then and at
every later start: pages are read when they are first used, and other processes share them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from riverrun.base.artifacts import digest_json, write_json
from riverrun.base.errors import InputError
from riverrun.models.config import ModelConfig
from riverrun.models.io.bnb import METHOD, check_nf4, nf4_tensors, quantization_config, read_nf4
from riverrun.models.io.hf import Weights, read_weights
from riverrun.models.io.safetensors import Entry, SafetensorsFile, write_safetensors
from riverrun.models.load import Checkpoint, save_companions
from riverrun.models.stored import Int8Matrix, Nf4Matrix, Stored
from riverrun.models.transformer import CausalLM

__all__ = ["TABLES", "Tables", "load_nf4", "quantized", "write_nf4"]

Tables = Literal["int8", "plain"]
"""How embedding and head are kept: 8-bit rows, or 16 bits as they come."""
TABLES = ("model.embed_tokens.weight", "lm_head.weight")
_FILE = "model.safetensors"


def quantized(
    weights: Iterable[tuple[str, Tensor]], dtype: torch.dtype, tables: Tables
) -> Iterator[tuple[str, Tensor | Stored]]:
    """Each tensor in its stored form: matrices of layers NF4, embedding and head by `tables`, the rest in `dtype`."""
    value: Tensor | Stored
    for name, tensor in weights:
        if name in TABLES:
            value = Int8Matrix.of(tensor, name) if tables == "int8" else tensor.to(dtype)
        elif tensor.dim() == 2:
            value = Nf4Matrix.of(tensor, name)
        else:
            value = tensor.to(dtype)
        del tensor  # before the next one is read
        yield name, value


def load_nf4(
    checkpoint: Checkpoint, dtype: torch.dtype, *, tables: Tables = "int8", cache: Path | None = None
) -> CausalLM:
    """The model with its projections in NF4, ready for adapters.

    `cache`: a folder to write the quantised weights to, or one that holds those of this very checkpoint and tables; one
    of another is written again. A checkpoint that is stored in NF4 is mapped as it is. Adapters of the checkpoint
    (a bundle's) are not folded in: InputError.
    """
    if checkpoint.adapter is not None:
        raise InputError(f"{checkpoint.path} has an adapter: merge it first (riverrun models merge), then quantise")
    if cache is not None and not _stored_nf4(checkpoint):
        write_nf4(checkpoint, cache, dtype, tables=tables)
        folder: Path | None = cache
    else:
        folder = checkpoint.path if _stored_nf4(checkpoint) else None
    model = CausalLM(checkpoint.config, dtype, empty=True)
    items = _mapped(folder, checkpoint.config, dtype) if folder else _quantized(checkpoint, dtype, tables)
    with torch.no_grad():
        model.load(items, str(folder or checkpoint.path))
    return model.eval()


def _stored_nf4(checkpoint: Checkpoint) -> bool:
    """Whether the folder holds each projection in NF4 under our name (InternLM2's own hold q, k and v at once)."""
    if (checkpoint.quantization or {}).get("quant_method") != METHOD:
        return False
    check_nf4(checkpoint.quantization or {}, str(checkpoint.path))
    found = {name for path in checkpoint.path.glob("*.safetensors") for name in SafetensorsFile(path).entries}
    return (
        f"{next(n for n, shape in checkpoint.config.shapes().items() if n not in TABLES and len(shape) == 2)}.absmax"
        in found
    )


def _identity(checkpoint: Checkpoint) -> str:
    """Of a checkpoint's files by name, size and time: reading them all would take longer than to quantise them."""
    folder = checkpoint.path
    files = [folder] if folder.is_file() else sorted(folder.glob("*.safetensors"))
    return digest_json([[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files])


def _plain(checkpoint: Checkpoint) -> Iterator[tuple[str, Tensor]]:
    if checkpoint.gguf:
        for name, values in checkpoint.gguf.weights(checkpoint.config):
            yield name, torch.from_numpy(values)
    else:
        yield from read_weights(checkpoint.path, checkpoint.quantization, checkpoint.config)


def _in_place(checkpoint: Checkpoint, dtype: torch.dtype) -> tuple[str, Tensor] | None:
    """The embedding as a view of the mapped file, of which only rows that are looked up are read.

    None where it is the head as well, or does not stand in `dtype` in a file.
    """
    if checkpoint.gguf or checkpoint.quantization or checkpoint.config.tie_word_embeddings:
        return None
    stored = Weights(checkpoint.path, checkpoint.config)
    name = TABLES[0]
    return (name, stored.mapped(name)) if stored.dtype(name) == dtype else None


def _quantized(checkpoint: Checkpoint, dtype: torch.dtype, tables: Tables) -> Iterator[tuple[str, Tensor | Stored]]:
    found = _in_place(checkpoint, dtype)
    if found is not None:
        yield found
    weights = ((name, tensor) for name, tensor in _plain(checkpoint) if found is None or name != found[0])
    yield from quantized(weights, dtype, tables)


def write_nf4(checkpoint: Checkpoint, folder: Path, dtype: torch.dtype, *, tables: Tables) -> None:
    """Write a model folder with the quantised weights in `model.safetensors`, one tensor in memory at a time.

    Nothing is done where it holds those of this checkpoint; the weights are written last, complete or not at all.
    """
    kind = {torch.bfloat16: "bfloat16", torch.float16: "float16"}.get(dtype, "float32")
    marks = {"format": "pt", "source": _identity(checkpoint), "tables": tables, "dtype": kind}
    target = folder / _FILE
    if target.is_file():
        if SafetensorsFile(target).metadata == marks:
            return
        if not (folder / "nf4.json").is_file():
            raise InputError(f"{target} is not a cache of quantised weights: give an empty folder")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "nf4.json", marks)
    write_json(folder / "config.json", checkpoint.config.to_hf() | {"quantization_config": quantization_config(kind)})
    parts = folder / "parts.tmp"
    shutil.rmtree(parts, ignore_errors=True)
    parts.mkdir()
    entries: list[Entry] = []
    try:
        for name, value in quantized(_plain(checkpoint), dtype, tables):
            for each, array in _arrays(name, value, kind).items():
                file = parts / str(len(entries))
                file.write_bytes(array[1])
                entries.append(Entry(each, array[0], array[2]))
        order = sorted(range(len(entries)), key=lambda i: (-_ITEM[entries[i].dtype], entries[i].name))
        data = ((parts / str(number)).read_bytes() for number in order)
        save_companions(checkpoint, folder)
        write_safetensors(target, [entries[number] for number in order], data, marks)
    finally:
        shutil.rmtree(parts, ignore_errors=True)


_ITEM = {"F32": 4, "BF16": 2, "F16": 2, "U8": 1, "I8": 1}
_NUMPY = {"F32": np.float32, "U8": np.uint8, "I8": np.int8}
_TORCH = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int8: "I8"}


def _arrays(name: str, value: Tensor | Stored, kind: str) -> dict[str, tuple[str, bytes, tuple[int, ...]]]:
    """Tensor name -> (safetensors type, bytes, shape)."""
    if isinstance(value, Nf4Matrix):
        named = nf4_tensors(name, value.value, kind)
        types = {np.dtype(np.float32): "F32", np.dtype(np.uint8): "U8"}
        return {each: (types[array.dtype], array.tobytes(), array.shape) for each, array in named.items()}
    if isinstance(value, Int8Matrix):
        return _arrays(f"{name}.codes", value.codes, kind) | _arrays(f"{name}.scale", value.scale, kind)
    assert isinstance(value, Tensor)
    raw: Any = value.contiguous().reshape(-1).view(torch.uint8).numpy()
    return {name: (_TORCH[value.dtype], raw.tobytes(), tuple(value.shape))}


def _mapped(folder: Path, config: ModelConfig, dtype: torch.dtype) -> Iterator[tuple[str, Tensor | Stored]]:
    """Every tensor of a folder in NF4 as views of its mapped files."""
    files = [SafetensorsFile(path) for path in sorted(folder.glob("*.safetensors"))]
    places = {name: (number, entry) for number, file in enumerate(files) for name, entry in file.entries.items()}
    maps = [file.map_data() for file in files]

    def tensor(name: str) -> Tensor:
        number, entry = places[name]
        data = maps[number][entry.start : entry.start + entry.nbytes]
        return torch.frombuffer(data, dtype=next(t for t, n in _TYPES.items() if n == entry.dtype)).view(entry.shape)

    def array(name: str) -> np.ndarray[Any, Any]:
        found: np.ndarray[Any, Any] = tensor(name).numpy()
        return found

    for name in config.shapes():
        if f"{name}.codes" in places:
            yield name, Int8Matrix(tensor(f"{name}.codes"), tensor(f"{name}.scale"))
        elif (value := read_nf4(name, places, array, str(folder))) is not None:
            yield name, Nf4Matrix(value)
        elif name in places:
            yield name, tensor(name).to(dtype)


_TYPES = _TORCH | {torch.uint8: "U8"}
