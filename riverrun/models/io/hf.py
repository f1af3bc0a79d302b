"""Hugging Face folders: config.json, safetensors (single or sharded), tokenizer.json, chat template. torch inside.

Weights may stand as plain tensors, or on the 4-bit group grid of `models/quantized` (`quantization_config.quant_method`
= "group4": <name>.packed, .scale, .zero per matrix and <name>.codes, .scale for the 8-bit embedding).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from riverrun.base.artifacts import atomic_file, write_json
from riverrun.base.errors import InputError, IntegrityError, UnsupportedError
from riverrun.base.optional import require
from riverrun.models.config import ModelConfig
from riverrun.models.quantized import (
    GroupQuantized,
    dequantize_groups,
    dequantize_rows,
    quantize_groups,
    quantize_rows,
)

__all__ = ["read_weights", "write_quantized", "write_weights"]

SHARD_INDEX = "model.safetensors.index.json"


def _files(folder: Path) -> list[Path]:
    index = folder / SHARD_INDEX
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise IntegrityError(f"{index} is not a shard index: {error!r}") from None
        files = [folder / Path(name).name for name in names]
    else:
        files = [folder / "model.safetensors"]
    for file in files:
        if not file.is_file():
            raise InputError(
                f"{file} does not exist: a model folder needs model.safetensors or all shards of its index"
            )
    return files


def _open(file: Path) -> Any:
    try:
        return require("safetensors", extra="serve").safe_open(str(file), framework="pt")
    except Exception as error:  # SafetensorError and OSError, both with a short text
        raise IntegrityError(f"{file} is not a whole safetensors file ({error}): fetch or write it again") from None


def read_weights(folder: Path, quantization: Mapping[str, Any] | None) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) one at a time; quantised matrices come dequantised to float32."""
    if quantization and quantization.get("quant_method") != "group4":
        raise UnsupportedError(f"{folder}: quant_method '{quantization.get('quant_method')}' is not read, read: group4")
    for file in _files(folder):
        with _open(file) as handle:
            for name in handle.keys():  # noqa: SIM118 - not a dict
                if not quantization:
                    yield name, handle.get_tensor(name)
                elif name.endswith(".packed"):
                    stem = name.removesuffix(".packed")
                    packed, scale, zero = (
                        handle.get_tensor(f"{stem}.{part}").numpy() for part in ("packed", "scale", "zero")
                    )
                    matrix = GroupQuantized(packed, scale, zero, int(quantization["group_size"]))
                    yield stem, torch.from_numpy(dequantize_groups(matrix))
                elif name.endswith(".codes"):
                    stem = name.removesuffix(".codes")
                    codes, scale = handle.get_tensor(name).numpy(), handle.get_tensor(f"{stem}.scale").numpy()
                    yield stem, torch.from_numpy(dequantize_rows(codes, scale))
                elif not name.endswith((".scale", ".zero")):
                    yield name, handle.get_tensor(name)


def _save(folder: Path, config: Mapping[str, Any], tensors: dict[str, Tensor]) -> None:
    serialize = require("safetensors.torch", extra="serve").save
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", dict(config))
    with atomic_file(folder / "model.safetensors", "wb") as handle:
        handle.write(
            serialize({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata={"format": "pt"})
        )


def write_weights(folder: Path, config: ModelConfig, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """config.json and one model.safetensors that `transformers` loads."""
    name = str(dtype).removeprefix("torch.")
    _save(folder, config.to_hf() | {"torch_dtype": name}, {key: tensor.to(dtype) for key, tensor in tensors.items()})


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
