"""A checkpoint into another format, tensor by tensor: never more in memory than twice the largest. torch inside."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from riverrun.base.artifacts import write_json
from riverrun.base.errors import InputError, UnsupportedError
from riverrun.models.config import ModelConfig
from riverrun.models.families import families, refuse_family
from riverrun.models.io.gguf import GGUFFile
from riverrun.models.io.gguf_write import write_gguf
from riverrun.models.io.groups import write_groups
from riverrun.models.io.hf import SHARD_BYTES, SHARD_INDEX, Weights, read_weights, write_quantized, write_weights
from riverrun.models.io.layouts import join_parts
from riverrun.models.io.names import stored_names
from riverrun.models.load import Checkpoint, load_checkpoint, load_config, quantization_of, save_companions
from riverrun.models.quantized import quantize_groups
from riverrun.models.templates import folder_templates, gguf_templates

__all__ = ["convert_to_gguf", "convert_to_groups", "convert_to_hf", "in_family", "open_any", "require_new_folder"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "config.json", "*.bin", "*.gguf", "*.pt", "*.pth")


def in_family(config: ModelConfig, family: str) -> ModelConfig:
    """The same decoder under another family's name, where that family's config can say it; UnsupportedError if not."""
    if family not in families():
        raise refuse_family(family)
    renamed = config.model_copy(update={"model_type": family})
    try:
        told = ModelConfig.from_hf(renamed.to_hf())
    except ValidationError:
        told = None
    if told != renamed:
        differs = [key for key in ModelConfig.model_fields if told and getattr(told, key) != getattr(renamed, key)]
        field = differs[0] if differs else "shape"
        value = getattr(config, field, "")
        raise UnsupportedError(
            f"a {config.model_type} model with {field} = {value!r} cannot be written as {family}: keep its family"
        )
    return renamed


def convert_to_hf(
    source: Path, target: Path, *, family: str = "", dtype: str = "", shard_bytes: int = 0
) -> ModelConfig:
    """Write a folder of safetensors (config, weights, tokenizer, template) and return its config.

    Without `family`, `dtype` ("float32", "bfloat16", "float16") and `shard_bytes` the files of a folder are the same
    bytes again. A GGUF file or quantised weights are dequantised, to float32 unless a dtype is given.
    """
    if dtype and dtype not in _DTYPES:
        raise InputError(f"dtype '{dtype}' is not written, written: {', '.join(_DTYPES)}")
    require_new_folder(target)
    if shard_bytes < 0:
        raise InputError(f"shard_bytes must be positive, it is {shard_bytes}")
    own = load_config(source)
    config = in_family(own, family) if family and family != own.model_type else own
    if source.is_file():
        opened, own_template = open_any(source)
        whole = _DTYPES.get(dtype, torch.float32)
        write_weights(target, config, dict(_tensors(opened)), whole, shard_bytes=shard_bytes or SHARD_BYTES)
        _companions(opened, own_template, target)
        return config
    quantization = quantization_of(source)
    weights: Mapping[str, Tensor]
    kind, keep, same = _DTYPES.get(dtype), [], False
    if quantization:
        weights, kind = dict(read_weights(source, quantization, own)), kind or torch.float32
    else:
        weights = stored = Weights(source, own)
        keep = stored.partition() if config == own and not shard_bytes else []
        same = bool(keep) and all(kind in (None, stored.dtype(name)) for name in stored)
    write_weights(target, config, weights, kind, shard_bytes=shard_bytes or SHARD_BYTES, partition=keep)
    _copy_companions(source, target)
    for name in ("config.json", SHARD_INDEX):
        if same and (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    return config


def convert_to_gguf(source: Path, target: Path, *, kind: str = "Q8_0") -> ModelConfig:
    """Write one GGUF file that llama.cpp loads; matrices in F32, F16, BF16, Q8_0 or Q4_0."""
    if target.exists():
        raise InputError(f"{target} exists: give a new file")
    opened, own_template = open_any(source)
    tensors = ((name, _array(tensor)) for name, tensor in _tensors(opened))
    template = opened.template.source if own_template else None
    name = source.stem if source.is_file() else source.resolve().name
    write_gguf(target, opened.config, tensors, opened.tokenizer.to_gguf(), template, kind=kind, name=name)
    return opened.config


def convert_to_groups(source: Path, target: Path, method: str, *, group_size: int = 128) -> ModelConfig:
    """Write a folder on a 4-bit group grid (awq, gptq, gptq_v2, group4), rounded to nearest without calibration.

    Embedding and head stay in float16 (group4: 8 bits). Rows must hold whole groups; ConfigError says which sizes do.
    """
    require_new_folder(target)
    if method not in ("awq", "gptq", "gptq_v2", "group4"):
        raise InputError(f"method '{method}' is not written, written: awq, gptq, gptq_v2, group4")
    opened, own_template = open_any(source)
    config = opened.config
    ours = dict(_tensors(opened))
    if method == "group4":
        write_quantized(target, config, ours, group_size)
    else:
        matrices, plain = {}, {}
        for theirs, parts in stored_names(config).items():
            whole = join_parts(config, [ours[part] for part in parts])
            if whole.dim() == 2 and ".layers." in theirs:
                matrices[theirs] = quantize_groups(np.ascontiguousarray(_array(whole)), group_size)
            else:
                plain[theirs] = _array(whole.to(torch.float16))
        write_groups(target, config.to_hf() | {"torch_dtype": "float16"}, matrices, plain, method)  # type: ignore[arg-type]
    _companions(opened, own_template, target)
    return config


def open_any(source: Path, adapter: Path | None = None) -> tuple[Checkpoint, bool]:
    """The checkpoint, and whether it has a chat template of its own: a base model has none, and is given none."""
    if source.is_file():
        own = bool(gguf_templates(GGUFFile(source).metadata))
    else:
        settings = source / "tokenizer_config.json"
        own = bool(folder_templates(source, json.loads(settings.read_text("utf-8")) if settings.is_file() else {}))
    return load_checkpoint(source, adapter=adapter, template="" if own else "chatml"), own


def _tensors(opened: Checkpoint) -> Iterator[tuple[str, Tensor]]:
    """Our names and tensors, one at a time."""
    if opened.gguf:
        yield from ((name, torch.from_numpy(values)) for name, values in opened.gguf.weights(opened.config))
    elif opened.adapter:
        raise InputError(f"{opened.path} has an adapter beside it: merge it first (riverrun models merge)")
    else:
        yield from read_weights(opened.path, opened.quantization, opened.config)


def _array(tensor: Tensor) -> NDArray[Any]:
    """numpy knows no bfloat16: its values are the same in float32."""
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def require_new_folder(target: Path) -> None:
    """InputError unless a folder can be written there without touching what is."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target} {'is not empty' if target.is_dir() else 'is a file'}: give a new folder")


def _companions(opened: Checkpoint, own_template: bool, target: Path) -> None:
    save_companions(opened, target)
    if not own_template:
        (target / "chat_template.jinja").unlink()
    write_json(target / "generation_config.json", {"eos_token_id": list(opened.tokenizer.end_ids)})


def _copy_companions(source: Path, target: Path) -> None:
    """Tokenizer, template, card, licence: every small file beside the weights, as it is. Code is not copied."""
    for path in sorted(source.iterdir()):
        weights = any(path.match(pattern) for pattern in _WEIGHTS)
        if path.is_file() and not weights and path.suffix != ".py" and path.name != ".gitattributes":
            shutil.copyfile(path, target / path.name)
