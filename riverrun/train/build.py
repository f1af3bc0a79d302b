"""From a recipe's model and method to a model that learns: opened or made anew, adapted, ready for the loop."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from riverrun.base.artifacts import digest_json, digest_tree
from riverrun.base.errors import ConfigError, InputError, UnsupportedError, nearest
from riverrun.base.memory import return_freed_memory
from riverrun.models.chat import ChatTemplate
from riverrun.models.config import ModelConfig
from riverrun.models.io.adapter import add_adapters, load_adapter
from riverrun.models.load import Checkpoint, load_checkpoint, load_model
from riverrun.models.presets import load_preset
from riverrun.models.qlora import load_nf4
from riverrun.models.templates import builtin_template, folder_templates
from riverrun.models.tokenizer import Tokenizer
from riverrun.models.transformer import CausalLM
from riverrun.train.checkpoint import WeightFiles
from riverrun.train.loss import bound_logits
from riverrun.train.optim import part_rows
from riverrun.train.recipe import MethodConfig, ModelSpec, TrainConfig
from riverrun.train.weights import AdapterFiles, ModelFiles

__all__ = [
    "Trained",
    "build",
    "compute_dtype",
    "go_on_from",
    "is_short",
    "model_digest",
    "new_config",
    "new_model",
    "open_model",
]

LOGIT_BYTES = {"qlora": 32 << 20, "full": 64 << 20, "lora": 64 << 20}
"""Of the logits that exist at once where memory is short."""
DEVIATION = 0.02
"""Of new weights (GPT-2); projections into the residual stream have it divided by sqrt(2 layers)."""
_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16}


def compute_dtype(name: str) -> torch.dtype:
    """auto is bfloat16 where the processor multiplies it (AVX512-BF16, AMX) or a GPU is there, else float32."""
    if name == "auto":
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cuda.is_available()
        return torch.bfloat16 if fast else torch.float32
    return _DTYPES[name]


def open_model(spec: ModelSpec) -> Checkpoint:
    """Shape, tokenizer and template; of a new model, those that its recipe says."""
    if spec.new:
        return _open_new(spec.new)
    path = Path(spec.path)
    if not path.exists() and len(path.parts) == 1:
        from riverrun.hub.catalog import get_card
        from riverrun.hub.store import Store

        path = Path(Store().fetch(get_card(spec.path)))
    return load_checkpoint(path)


def _open_new(new: Mapping[str, Any]) -> Checkpoint:
    folder = Path(str(new["vocab"]))
    file = folder / "tokenizer_config.json"
    try:
        settings = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except ValueError as error:
        raise InputError(f"{file} is not JSON: {error}") from None
    words = {key: settings[key] for key in ("bos_token", "eos_token") if isinstance(settings.get(key), str)}
    tokenizer = Tokenizer.from_folder(folder, eos_token=words.get("eos_token", ""))
    tokenizer.bos_id = tokenizer.special.get(words.get("bos_token", ""), tokenizer.bos_id)
    config = new_config(new, tokenizer)
    template = folder_templates(folder, settings) or {"default": builtin_template("chatml")}
    return Checkpoint(folder, config, tokenizer, ChatTemplate(template, **words))


def new_config(new: Mapping[str, Any], tokenizer: Tokenizer) -> ModelConfig:
    """The shape that `model.new` describes: fields of config.json, over those of a preset where `like` names one."""
    own = {key: value for key, value in new.items() if key not in ("vocab", "like")}
    base = load_preset(str(new["like"])).to_hf() if "like" in new else {"model_type": "llama"}
    known = {*base, *ModelConfig.model_fields, "rope_scaling", "bias"}
    if unknown := [key for key in own if key not in known]:
        raise ConfigError(f"model.new: unknown key '{unknown[0]}'.{nearest(unknown[0], known)}")
    values = base | own
    if {"hidden_size", "num_attention_heads"} & set(own) and "head_dim" not in own:
        values.pop("head_dim", None)  # follows from the two
    if "num_hidden_layers" in own and "layer_types" not in own:
        values.pop("layer_types", None)
    if "vocab_size" not in own:
        values["vocab_size"] = tokenizer.vocab_size
    if values["vocab_size"] < tokenizer.vocab_size:
        raise ConfigError(
            f"model.new: vocab_size is {values['vocab_size']}, the tokenizer has {tokenizer.vocab_size}: leave it out"
        )
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        values.pop(key, None)  # the preset's are those of another vocabulary
    made = ModelConfig.from_hf(values)
    ends = tokenizer.end_ids
    return made.model_copy(
        update={"bos_token_id": tokenizer.bos_id, "eos_token_id": ends if len(ends) > 1 else tokenizer.eos_id}
    )


def new_model(config: ModelConfig, dtype: torch.dtype, seed: int) -> CausalLM:
    """Random weights: N(0, 0.02), those into the residual stream N(0, 0.02 / sqrt(2 layers)), norms 1, biases 0."""
    model = CausalLM(config, dtype)
    generator = torch.Generator().manual_seed(seed)
    residual = DEVIATION / math.sqrt(2 * config.num_hidden_layers)
    with torch.no_grad():
        for name, view in model.views().items():
            if view.dim() == 2:
                deviation = residual if name.endswith(("o_proj.weight", "down_proj.weight")) else DEVIATION
                view.copy_(torch.randn(view.shape, generator=generator) * deviation)
    return model


def model_digest(opened: Checkpoint, spec: ModelSpec) -> str:
    """sha256 identity of what training starts from."""
    parts: list[Any] = [opened.digest()]
    if spec.new:
        parts.append(opened.config.model_dump(mode="json"))
    if spec.adapter:
        parts.append(digest_tree(Path(spec.adapter)))
    return digest_json(parts)


@dataclass(frozen=True, slots=True)
class Trained:
    """A model that learns, its parameters by name, and how they are written."""

    model: CausalLM
    parameters: dict[str, Tensor]
    files: WeightFiles
    parts: dict[str, list[slice]]
    lora_parameters: int | None


def is_short(method: str, recompute: float) -> bool:
    """Whether memory counts more than time: weights in four bits, or all layers run again. Freed memory then goes back
    to the system, and fewer logits exist at once."""
    return method == "qlora" or recompute == 1.0


def build(config: TrainConfig, opened: Checkpoint, method: str, dtype: torch.dtype) -> Trained:
    """The weights in memory, frozen and adapted or all learning. `method` is resolved: full, lora or qlora."""
    if config.model.new and method == "qlora":
        raise UnsupportedError("method qlora needs a trained base: a new model is trained by full or lora")
    short = is_short(method, config.batch.recompute_share)
    if short:
        return_freed_memory()
    bound_logits(LOGIT_BYTES[method] if short else 0)  # an earlier training of this process may have said otherwise
    if config.model.new:
        model = new_model(opened.config, dtype, config.run.seed)
    elif method == "qlora":
        cache = Path(config.method.cache) if config.method.cache else None
        model = load_nf4(opened, dtype, tables=config.method.tables, cache=cache)
    else:
        model = load_model(opened, dtype)
    model.train()
    model.recompute = config.batch.recompute_share
    if method == "full":
        model.train_all()
    elif config.model.adapter:
        go_on_from(model, Path(config.model.adapter), config.method)
    else:
        own = config.method
        assert isinstance(own.rank, int), "resolve the rank first"
        chosen = {"targets": own.targets} if own.targets else {}
        add_adapters(model, own.rank, own.alpha, seed=config.run.seed, init=own.init, rslora=own.rslora, **chosen)
    model.refresh()
    parameters: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if method == "full":
        return Trained(model, parameters, ModelFiles(model, opened), part_rows(model), None)
    count = sum(p.numel() for p in parameters.values())
    return Trained(model, parameters, AdapterFiles(model, base=opened.path.name), part_rows(model), count)


def go_on_from(model: CausalLM, adapter: Path, settings: MethodConfig) -> None:
    """Put a trained adapter onto the model; InputError when the settings are not its own."""
    load_adapter(model, adapter)
    first: Any = next(each for _, matrix in model.linears() for each in matrix.adapters.values())
    own, asked = (first.rank, first.alpha, first.rslora), (settings.rank, settings.alpha, settings.rslora)
    if own != asked:
        names = ("rank", "alpha", "rslora")
        told = [", ".join(f"{name} {value}" for name, value in zip(names, each, strict=True)) for each in (own, asked)]
        raise InputError(f"{adapter} has {told[0]}, the settings ask for {told[1]}: give its own, or start without it")
