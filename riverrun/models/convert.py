"""A checkpoint into another format, tensor by tensor: never more in memory than twice the largest. torch inside."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

from riverrun.base.artifacts import write_json, write_text
from riverrun.base.errors import InputError, UnsupportedError
from riverrun.models.config import ModelConfig
from riverrun.models.families import families, refuse_family
from riverrun.models.io.gguf import GGUFFile
from riverrun.models.io.hf import SHARD_BYTES, SHARD_INDEX, Weights, read_weights, write_weights
from riverrun.models.load import load_config, quantization_of
from riverrun.models.tokenizer import Tokenizer

__all__ = ["convert_to_hf", "in_family"]

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
    if target.exists() and any(target.iterdir()):
        raise InputError(f"{target} is not empty: give a new folder")
    own = load_config(source)
    config = in_family(own, family) if family and family != own.model_type else own
    if source.is_file():
        _from_gguf(source, target, config, _DTYPES.get(dtype, torch.float32), shard_bytes or SHARD_BYTES)
        return config
    quantization = quantization_of(source)
    weights: Mapping[str, Tensor]
    if quantization:
        weights, kind, keep = dict(read_weights(source, quantization, own)), torch.float32, []
    else:
        stored = Weights(source, own)
        weights, kind = stored, stored.dtype("model.norm.weight")
        keep = stored.partition() if config == own and not shard_bytes else []
    same = bool(keep) and _DTYPES.get(dtype, kind) == kind
    write_weights(
        target, config, weights, _DTYPES.get(dtype, kind), shard_bytes=shard_bytes or SHARD_BYTES, partition=keep
    )
    _copy_companions(source, target)
    for name in ("config.json", SHARD_INDEX):
        if same and (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    return config


def _from_gguf(source: Path, target: Path, config: ModelConfig, dtype: torch.dtype, shard_bytes: int) -> None:
    file = GGUFFile(source)
    weights = {name: torch.from_numpy(values.copy()) for name, values in file.weights(config)}
    write_weights(target, config, weights, dtype, shard_bytes=shard_bytes)
    tokenizer = Tokenizer.from_gguf(file.metadata)
    tokenizer.save(target / "tokenizer.json")
    if template := file.metadata.get("tokenizer.chat_template"):
        write_text(target / "chat_template.jinja", str(template))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    words = {"bos_token": tokenizer.token(tokenizer.bos_id), "eos_token": tokenizer.token(tokenizer.eos_id)}
    write_json(target / "tokenizer_config.json", settings | {key: word for key, word in words.items() if word})
    write_json(target / "generation_config.json", {"eos_token_id": list(tokenizer.end_ids)})


def _copy_companions(source: Path, target: Path) -> None:
    """Tokenizer, template, card, licence: every small file beside the weights, as it is. Code is not copied."""
    for path in sorted(source.iterdir()):
        weights = any(path.match(pattern) for pattern in _WEIGHTS)
        if path.is_file() and not weights and path.suffix != ".py" and path.name != ".gitattributes":
            shutil.copyfile(path, target / path.name)
