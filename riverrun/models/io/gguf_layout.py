"""How a decoder stands in a GGUF file: architectures of llama.cpp, their keys, tensor names and row order. No torch.

Facts from llama.cpp (`convert_hf_to_gguf.py`, `src/llama-arch.cpp`, `src/models/*.cpp`):

| family                              | architecture | query and key rows   | norms   |
|-------------------------------------|--------------|----------------------|---------|
| llama, mistral, internlm, internlm3 | llama        | interleaved by head  | factor  |
| internlm2                           | internlm2    | interleaved by head  | factor  |
| qwen2, qwen3                        | qwen2, qwen3 | as in Hugging Face   | factor  |
| gemma3_text                         | gemma3       | as in Hugging Face   | 1 + w   |

Two things of ours it has no key for: the family of a `llama` file and rotary scaling as `config.json` says it. They
stand in `riverrun.model_type` and `riverrun.rope_scaling`, which llama.cpp passes over: a dynamic NTK model is the
plain one there up to its context length, and a window of a Mistral or Qwen model is not kept there at all.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from riverrun.base.errors import ConfigError, IntegrityError, UnsupportedError
from riverrun.models.config import ModelConfig, RopeScaling
from riverrun.models.families import FULL, SLIDING

__all__ = ["ARCHITECTURES", "ROPE_FREQS", "Architecture", "architecture_of", "config_of", "metadata_of", "rope_factors"]

ROPE_FREQS = "rope_freqs.weight"
_FAMILY, _SCALING = "riverrun.model_type", "riverrun.rope_scaling"
_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GEMMA_LAYER = _LAYER | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_PLAIN: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.scale": (0,),
    "attn_logit_softcapping": (0,),
    "embedding_scale": (0, 1),
    "expert_count": (0,),
    "final_logit_softcapping": (0,),
    "logit_scale": (0, 1),
    "residual_scale": (0, 1),
    "rope.scaling.yarn_ext_factor": (1,),
    "rope.scaling.yarn_log_multiplier": (0,),
}
"""Keys that change what is computed, and the values with which they do not."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """What llama.cpp computes under a name. `holds`: what may differ from a plain Llama with one head size."""

    name: str
    families: tuple[str, ...]
    interleaved: bool
    holds: frozenset[str]
    gemma: bool = False
    qk_norm: bool = False

    def tensor_names(self, config: ModelConfig) -> dict[str, str]:
        """GGUF name -> our name of every tensor of that config, in the order of `ModelConfig.shapes`."""
        layer = {ours: theirs for theirs, ours in (_GEMMA_LAYER if self.gemma else _LAYER).items()}
        top = {ours: theirs for theirs, ours in _TOP.items()}
        names = {}
        for ours in config.shapes():
            if ours in top:
                names[top[ours]] = ours
            else:
                _, _, index, part = ours.split(".", 3)
                stem, _, kind = part.rpartition(".")
                names[f"blk.{index}.{layer[stem]}.{kind}"] = ours
        return names

    def row_order(self, ours: str, config: ModelConfig) -> NDArray[np.intp] | None:
        """The row of our tensor that each row of the GGUF tensor is; None where they are the same."""
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        part = ours.split(".")[-2]
        if not self.interleaved or part not in heads:
            return None
        rows = np.arange(heads[part] * config.head_dim).reshape(heads[part], 2, config.head_dim // 2)
        return rows.swapaxes(1, 2).reshape(-1)

    def cannot(self, config: ModelConfig) -> str:
        """What of the config this architecture does not compute; "" when nothing."""
        scaling = config.rope_scaling
        kind = None if scaling is None else scaling.rope_type
        needs = {
            "tied head": config.tie_word_embeddings,
            "query, key and value biases": config.qkv_bias,
            "output bias": config.o_bias,
            "MLP biases": config.mlp_bias,
            "head size of its own": config.query_size != config.hidden_size,
            "llama3 rotary scaling": kind == "llama3",
        }
        missing = [what for what, needed in needs.items() if needed and what not in self.holds]
        differs = {
            "query and key norms": config.qk_norm != self.qk_norm,
            "norms after the blocks": config.post_norms != self.gemma,
            "scaled embeddings": config.scale_embeddings != self.gemma,
            f"activation {config.hidden_act}": (config.hidden_act != "silu") != self.gemma,
            "rope_local_theta": config.rope_local_theta is not None and not self.gemma,
            f"query_pre_attn_scalar {config.query_pre_attn_scalar}": self.scalar(config)
            != (config.query_pre_attn_scalar or config.head_dim),
        }
        missing += [what for what, differ in differs.items() if differ]
        if scaling is not None and kind == "yarn":
            plain = (scaling.beta_fast, scaling.beta_slow, scaling.truncate) == (32, 1, True)
            missing += [] if plain else ["yarn with its own beta_fast, beta_slow or truncate"]
        if self.gemma and scaling is not None and config.windows and config.rope_local_theta is None:
            missing.append("scaled rotary embedding in sliding layers")
        return missing[0] if missing else ""

    def scalar(self, config: ModelConfig) -> float:
        """What llama.cpp divides scores by the root of: the head size, but hidden / heads in Gemma 3 27B."""
        big = self.gemma and config.num_hidden_layers == 62
        return config.hidden_size // config.num_attention_heads if big else config.head_dim


_ALSO_LLAMA = ("internlm2", "qwen2")
"""Families with an architecture of their own whose models may be written as `llama`, see `architecture_of`."""
_ANY = frozenset({"tied head", "query, key and value biases", "head size of its own"})
ARCHITECTURES = {
    kind.name: kind
    for kind in (
        Architecture(
            "llama",
            ("llama", "mistral", "internlm", "internlm3"),
            True,
            _ANY | {"output bias", "MLP biases", "llama3 rotary scaling"},
        ),
        Architecture("internlm2", ("internlm2",), True, frozenset({"query, key and value biases"})),
        Architecture("qwen2", ("qwen2",), False, frozenset({"tied head", "query, key and value biases"})),
        Architecture("qwen3", ("qwen3",), False, _ANY, qk_norm=True),
        Architecture("gemma3", ("gemma3_text",), False, _ANY, gemma=True, qk_norm=True),
    )
}


def architecture_of(config: ModelConfig) -> Architecture:
    """The architecture a config is written as: its family's, or `llama` where that computes what its own does not.

    UnsupportedError names what neither computes.
    """
    own = next(kind for kind in ARCHITECTURES.values() if config.model_type in kind.families)
    for kind in (own, ARCHITECTURES["llama"]):
        if not kind.cannot(config):
            return kind
    raise UnsupportedError(
        f"GGUF architecture '{own.name}' has no {own.cannot(config)}: this {config.model_type} model is not written as "
        "GGUF, write it as safetensors"
    )


def metadata_of(config: ModelConfig, kind: Architecture) -> dict[str, Any]:
    """Keys and values of the shape, without `general.*` and the tokenizer's. Floats are float32 in the file."""
    sizes: dict[str, Any] = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.dimension_count": config.head_dim,
        "rope.freq_base": float(config.rope_theta),
        "vocab_size": config.vocab_size,
    }
    if config.windows:
        sizes["attention.sliding_window"] = config.sliding_window
        sizes["attention.sliding_window_pattern"] = [window is not None for window in config.windows]
        if kind.gemma:
            sizes["rope.freq_base_swa"] = float(config.rope_local_theta or config.rope_theta)
    own: dict[str, Any] = {_FAMILY: config.model_type}
    if config.rope_scaling is not None:
        sizes |= _scaling_keys(config.rope_scaling, config)
        own[_SCALING] = json.dumps(config.rope_scaling.to_hf(), sort_keys=True)
    return {f"{kind.name}.{key}": value for key, value in sizes.items()} | own


def _stretch(factor: float) -> float:
    """What YaRN multiplies scores' cos and sin by when nothing else is said (https://arxiv.org/abs/2309.00071)."""
    return 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0


def _scaling_keys(scaling: RopeScaling, config: ModelConfig) -> dict[str, Any]:
    if scaling.rope_type == "linear":
        return {"rope.scaling.type": "linear", "rope.scaling.factor": float(scaling.factor)}
    if scaling.rope_type != "yarn":
        return {}  # llama3 is a tensor, dynamic has no key
    out = {"rope.scaling.type": "yarn", "rope.scaling.factor": float(scaling.factor)}
    original = scaling.original_max_position_embeddings or config.max_position_embeddings
    out["rope.scaling.original_context_length"] = original
    factor = scaling.attention_factor
    if factor is None and scaling.mscale and scaling.mscale_all_dim:
        ends = (0.1 * part * math.log(scaling.factor) + 1.0 for part in (scaling.mscale, scaling.mscale_all_dim))
        factor = next(ends) / next(ends)
    if factor is not None:
        out["rope.scaling.attn_factor"] = factor / _stretch(scaling.factor)
    return out


def rope_factors(config: ModelConfig) -> NDArray[np.float32] | None:
    """The tensor `rope_freqs.weight` [head_dim / 2] of llama3 scaling: what each frequency is divided by."""
    scaling = config.rope_scaling
    if scaling is None or scaling.rope_type != "llama3":
        return None
    frequencies = 1.0 / config.rope_theta ** (np.arange(0, config.head_dim, 2) / config.head_dim)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    turns = (scaling.original_max_position_embeddings or 0) * frequencies / (2 * math.pi)  # in the trained length
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / scaling.factor + smooth)).astype(np.float32)


def config_of(
    metadata: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    factors: NDArray[np.float32] | None,
    origin: str,
) -> tuple[Architecture, ModelConfig]:
    """The shape that a file's keys and tensors describe; a missing or impossible one is named.

    shapes: of every tensor by GGUF name; factors: the values of `rope_freqs.weight` where the file has it
    """
    name = metadata.get("general.architecture")
    kind = ARCHITECTURES.get(str(name))
    if kind is None:
        raise UnsupportedError(f"GGUF architecture '{name}' is not supported, supported: {', '.join(ARCHITECTURES)}")
    own = {key.removeprefix(f"{kind.name}."): value for key, value in metadata.items()}
    for key, plain in _PLAIN.items():
        if key in own and own[key] not in plain:
            raise UnsupportedError(
                f"{origin}: {kind.name}.{key} is {own[key]!r}, supported: {' or '.join(map(str, plain))}"
            )
    wanted = ("embedding_length", "feed_forward_length", "block_count", "attention.head_count", "context_length")
    for key in (*wanted, "attention.layer_norm_rms_epsilon"):
        if key not in own:
            raise IntegrityError(f"{origin} has no key '{kind.name}.{key}': convert the model again")
    if len(shapes.get("token_embd.weight", ())) != 2:
        raise IntegrityError(f"{origin} has no matrix 'token_embd.weight': convert the model again")
    layers = own["block_count"]
    if isinstance(layers, int) and layers > len(shapes):
        raise IntegrityError(f"{origin}: {kind.name}.block_count is {layers}, the file has {len(shapes)} tensors")
    family = metadata.get(_FAMILY, kind.families[0])
    if family not in (*kind.families, *(_ALSO_LLAMA if kind.name == "llama" else ())):
        raise UnsupportedError(f"{origin}: {_FAMILY} '{family}' is not a family of architecture '{kind.name}'")
    values: dict[str, Any] = {
        "model_type": family,
        "vocab_size": shapes["token_embd.weight"][0],
        "hidden_size": own["embedding_length"],
        "intermediate_size": own["feed_forward_length"],
        "num_hidden_layers": own["block_count"],
        "num_attention_heads": own["attention.head_count"],
        "num_key_value_heads": own.get("attention.head_count_kv", own["attention.head_count"]),
        "head_dim": own.get("attention.key_length", 0),
        "max_position_embeddings": own["context_length"],
        "rms_norm_eps": _decimal(own["attention.layer_norm_rms_epsilon"]),
        "rope_theta": _decimal(own.get("rope.freq_base", 10000.0)),
        "tie_word_embeddings": "output.weight" not in shapes,
        "qkv_bias": "blk.0.attn_q.bias" in shapes,
        "o_bias": "blk.0.attn_output.bias" in shapes,
        "mlp_bias": "blk.0.ffn_up.bias" in shapes,
        "qk_norm": kind.qk_norm,
        "norm_plus_one": kind.gemma,
        "post_norms": kind.gemma,
        "scale_embeddings": kind.gemma,
        "hidden_act": "gelu_pytorch_tanh" if kind.gemma else "silu",
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": metadata.get("tokenizer.ggml.eos_token_id"),
    }
    values |= _windows(kind, own, origin)
    try:
        values["rope_scaling"] = _scaling(metadata, own, factors, origin)
    except (ValueError, TypeError, ArithmeticError) as error:  # of pydantic, of json, of arithmetic with a text
        raise ConfigError(f"{origin}: its keys of rotary scaling do not fit together: {error}") from None
    config = ModelConfig.of(values, origin)
    if factors is not None and factors.shape != (config.head_dim // 2,):
        raise IntegrityError(
            f"{origin}: tensor {ROPE_FREQS} has shape {list(factors.shape)}, its keys need {[config.head_dim // 2]}"
        )
    if kind.gemma:
        config = config.model_copy(update={"query_pre_attn_scalar": float(kind.scalar(config))})
    for key in ("attention.value_length", "rope.dimension_count"):
        if (size := own.get(key, config.head_dim)) != config.head_dim:
            raise UnsupportedError(f"{origin}: {kind.name}.{key} is {size}, supported: head_dim ({config.head_dim})")
    return kind, config


def _decimal(value: Any) -> Any:
    """The shortest decimal of a float32: 1e-05 in a config, not 9.999999747378752e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _windows(kind: Architecture, own: Mapping[str, Any], origin: str) -> dict[str, Any]:
    window, layers = own.get("attention.sliding_window"), own["block_count"]
    if not window or not isinstance(layers, int):
        return {}
    pattern = own.get("attention.sliding_window_pattern", 6 if kind.gemma else 0)
    if isinstance(pattern, int) and not isinstance(pattern, bool):  # every n-th layer sees all; 0: none does
        pattern = [pattern == 0 or layer % pattern < pattern - 1 for layer in range(layers)]
    if not isinstance(pattern, list) or len(pattern) != layers:
        raise IntegrityError(
            f"{origin}: {kind.name}.attention.sliding_window_pattern must be a number or {layers} flags, "
            f"it is {pattern!r}: convert the model again"
        )
    if not any(pattern):
        return {}
    values = {"sliding_window": window, "layer_types": tuple(SLIDING if slides else FULL for slides in pattern)}
    return values | ({"rope_local_theta": _decimal(own.get("rope.freq_base_swa", 10000.0))} if kind.gemma else {})


def _scaling(
    metadata: Mapping[str, Any], own: Mapping[str, Any], factors: NDArray[np.float32] | None, origin: str
) -> RopeScaling | None:
    if _SCALING in metadata:
        return RopeScaling.model_validate(json.loads(metadata[_SCALING]))
    factor = own.get("rope.scaling.factor", own.get("rope.scale_linear", 0.0))
    name = own.get("rope.scaling.type", "linear" if factor else "none")
    if factors is not None:
        if name != "none" and factor not in (0.0, 1.0):
            raise UnsupportedError(f"{origin} has {ROPE_FREQS} and rope.scaling.type {name}, supported: one of them")
        return _llama3(factors, own, origin)
    if name == "none" or factor in (0.0, 1.0):
        return None
    if name == "linear":
        return RopeScaling(rope_type="linear", factor=_decimal(factor))
    if name != "yarn":
        raise UnsupportedError(f"{origin}: rope.scaling.type '{name}' is not read, read: none, linear, yarn")
    attention = own.get("rope.scaling.yarn_attn_factor")
    if "rope.scaling.attn_factor" in own:
        attention = own["rope.scaling.attn_factor"] * _stretch(factor)
    return RopeScaling(
        rope_type="yarn",
        factor=_decimal(factor),
        original_max_position_embeddings=own.get("rope.scaling.original_context_length", own["context_length"]),
        beta_fast=_decimal(own.get("rope.scaling.yarn_beta_fast", 32.0)),
        beta_slow=_decimal(own.get("rope.scaling.yarn_beta_slow", 1.0)),
        attention_factor=None if attention is None else _decimal(float(attention)),
    )


def _llama3(factors: NDArray[np.float32], own: Mapping[str, Any], origin: str) -> RopeScaling | None:
    """The llama3 scaling whose factors these are.

    Only the ratios of its three lengths show in them, so low_freq_factor is taken as 1, as in every published model.
    """
    widest = float(factors.max())
    if widest == 1.0:
        return None
    theta = own.get("rope.freq_base", 10000.0)
    turns = 1.0 / theta ** (np.arange(len(factors)) / len(factors)) / (2 * math.pi)
    trials = [(8192, 4.0)]  # as published
    between = (factors > 1) & (factors < widest)
    smooth = (1 / factors[between].astype(float) - 1 / widest) / (1 - 1 / widest)
    if len(smooth):
        trials.append((round((1 + 3 * smooth[0]) / turns[between][0]), 4.0))
    if len(smooth) > 1:
        slope, offset = np.polyfit(turns[between], smooth, 1)
        if slope > 0 and offset < 0:
            trials.append((round(-slope / offset), 1 - 1 / offset))
    for original, high in trials:
        smooth = np.clip((turns * original - 1) / (high - 1), 0, 1)
        if np.allclose(1 / ((1 - smooth) / widest + smooth), factors, rtol=1e-4):
            return RopeScaling(
                rope_type="llama3",
                factor=widest,
                low_freq_factor=1.0,
                high_freq_factor=round(float(high), 3),
                original_max_position_embeddings=original,
            )
    raise UnsupportedError(
        f"{origin}: {ROPE_FREQS} holds factors that are not of the llama3 form, supported: that form; use safetensors"
    )
