"""LoRA adapters in the layout of PEFT: adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from riverrun.base.artifacts import atomic_file, write_json
from riverrun.base.errors import InputError, IntegrityError, UnsupportedError
from riverrun.base.optional import require
from riverrun.models.io.layouts import split_parts
from riverrun.models.lora import Init
from riverrun.models.transformer import CausalLM

__all__ = ["adapter_config", "adapter_tensors", "add_adapters", "load_adapter", "save_adapter", "write_adapter"]

_PREFIX = "base_model.model."
# Options of PEFT that change what an adapter computes, and the value that means "not used".
_PLAIN: dict[str, Any] = {
    "peft_type": "LORA",
    "alora_invocation_tokens": None,
    "alpha_pattern": {},
    "arrow_config": None,
    "bias": "none",
    "fan_in_fan_out": False,
    "kasa_config": None,
    "layer_replication": None,
    "layers_to_transform": None,
    "lora_bias": False,
    "modules_to_save": None,
    "monteclora_config": None,
    "rank_pattern": {},
    "target_parameters": None,
    "trainable_token_indices": None,
    "use_bdlora": None,
    "use_dora": False,
    "use_qalora": False,
}
# Ways to draw the first factors that also take something away from the base weights; other ways leave no trace.
_MOVES_BASE = ("corda", "loftq", "lora_ga", "olora", "pissa")
_INTERNLM2 = {
    "wqkv": ("q_proj", "k_proj", "v_proj"),
    "wo": ("o_proj",),
    "w1": ("gate_proj",),
    "w3": ("up_proj",),
    "w2": ("down_proj",),
}
"""Projections by the names of InternLM2's published code, which adapters trained with it have."""
_ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def add_adapters(
    model: CausalLM,
    rank: int,
    alpha: float,
    *,
    targets: tuple[str, ...] = _ALL,
    seed: int = 0,
    init: Init = "kaiming",
    rslora: bool = False,
) -> None:
    """Put a fresh adapter (A random, B zero) beside every target projection."""
    if unknown := set(targets) - set(_ALL):
        raise UnsupportedError(f"LoRA target '{sorted(unknown)[0]}' does not exist, targets: {', '.join(_ALL)}")
    generator = torch.Generator().manual_seed(seed)
    for _, matrix in model.linears():
        for part in matrix.parts:
            if part in targets:
                matrix.add_adapter(part, rank, alpha, generator, init=init, rslora=rslora)


def adapter_tensors(model: CausalLM) -> dict[str, Tensor]:
    """PEFT name -> parameter, in a fixed order."""
    out: dict[str, Tensor] = {}
    for prefix, matrix in model.linears():
        for part, adapter in matrix.adapters.items():
            for side in ("lora_A", "lora_B"):
                out[f"{_PREFIX}{prefix}.{part}.{side}.weight"] = getattr(adapter, side).data
    return out


def adapter_config(model: CausalLM, *, base: str = "") -> dict[str, Any]:
    """What `adapter_config.json` says of the model's adapters; `base` names the base model."""
    adapters = [(part, adapter) for _, matrix in model.linears() for part, adapter in matrix.adapters.items()]
    assert adapters, "adapter_config needs a model with adapters"
    first: Any = adapters[0][1]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": first.rank,
        "lora_alpha": first.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted({part for part, _ in adapters}),
        "fan_in_fan_out": False,
        "use_rslora": first.rslora,
        "use_dora": False,
    }


def write_adapter(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write both files of an adapter so that PEFT loads them."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "adapter_config.json", dict(config))
    serialize = require("safetensors.torch", extra="serve").save
    with atomic_file(folder / "adapter_model.safetensors", "wb") as handle:
        handle.write(serialize({k: v.contiguous() for k, v in tensors.items()}, metadata={"format": "pt"}))


def save_adapter(model: CausalLM, folder: Path, *, base: str = "") -> None:
    """Write the adapters so that PEFT loads them; `base` names the base model."""
    write_adapter(folder, adapter_config(model, base=base), adapter_tensors(model))


def load_adapter(model: CausalLM, folder: Path) -> None:
    """Read a PEFT LoRA adapter onto a model that has none."""
    path = folder / "adapter_config.json"
    if not path.is_file():
        raise InputError(
            f"{path} does not exist: an adapter folder needs adapter_config.json and adapter_model.safetensors"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        rank, alpha, named = int(config["r"]), float(config["lora_alpha"]), config["target_modules"]
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{path} is not a LoRA configuration: {error!r}") from None
    for key, plain in _PLAIN.items():
        if config.get(key) and config[key] != plain:
            raise UnsupportedError(f"{path}: {key} = {config[key]!r} is not supported, supported: {plain!r}")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(_MOVES_BASE):
        raise UnsupportedError(
            f"{path}: init_lora_weights = {start!r} is not supported, because it changed the base weights: "
            "let PEFT convert the adapter to plain LoRA (path_initial_model_for_weight_conversion)"
        )
    if not isinstance(named, list):
        raise UnsupportedError(f"{path}: target_modules = {named!r} is not supported, supported: a list of names")
    own_names = model.config.model_type == "internlm2" and not set(named) & set(_ALL)
    targets = tuple(
        part for name in named for part in (_INTERNLM2.get(str(name), (str(name),)) if own_names else (str(name),))
    )
    add_adapters(model, rank, alpha, targets=targets, rslora=bool(config.get("use_rslora")))
    try:
        stored = require("safetensors.torch", extra="serve").load_file(str(folder / "adapter_model.safetensors"))
    except Exception as error:  # SafetensorError and OSError
        raise IntegrityError(f"{folder / 'adapter_model.safetensors'} cannot be read: {error}") from None
    if own_names:
        stored = dict(_from_internlm2(model, stored))
    wanted = adapter_tensors(model)
    if unknown := sorted(set(stored) - set(wanted)):
        raise UnsupportedError(
            f"{folder}: adapter tensor '{unknown[0]}' has no place in a LoRA of {', '.join(targets)}"
        )
    for name, parameter in wanted.items():
        if name not in stored or stored[name].shape != parameter.shape:
            found = list(stored[name].shape) if name in stored else "nothing"
            raise IntegrityError(
                f"{folder}: adapter tensor '{name}' must have shape {list(parameter.shape)}, found {found}"
            )
        parameter.copy_(stored[name])


def _from_internlm2(model: CausalLM, stored: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Our names and tensors of an adapter over `wqkv` and the others: q, k and v share its A and divide its B."""
    for name, tensor in stored.items():
        stem, side, _ = name.rsplit(".", 2)
        start, _, module = stem.rpartition(".")
        parts = _INTERNLM2.get(module)
        if parts is None:
            yield name, tensor
            continue
        start = start.replace(".attention", ".self_attn").replace(".feed_forward", ".mlp")
        whole = len(parts) == 1 or side == "lora_A"
        split = [tensor] * len(parts) if whole else split_parts(model.config, tensor, parts)
        for part, each in zip(parts, split, strict=True):
            yield f"{start}.{part}.{side}.weight", each
