"""A tiny config of every family and of every rotary scaling, with random weights: what a file format has to carry."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from riverrun.models.config import ModelConfig
from riverrun.models.families import FULL, SLIDING

__all__ = ["FAMILIES", "config_of", "weights_of"]

_BASE: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
_GEMMA: dict[str, Any] = {
    "model_type": "gemma3_text",
    "num_hidden_layers": 7,
    "head_dim": 32,
    "tie_word_embeddings": True,
    "hidden_act": "gelu_pytorch_tanh",
    **dict.fromkeys(("qk_norm", "norm_plus_one", "post_norms", "scale_embeddings"), True),
    "sliding_window": 8,
    "layer_types": (*[SLIDING] * 5, FULL, SLIDING),
    "rope_theta": 1e6,
    "rope_local_theta": 1e4,
    "query_pre_attn_scalar": 32.0,
}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
_LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64}
_BIASES = {"qkv_bias": True, "o_bias": True}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama, all biases, tied": {**_BIASES, "mlp_bias": True, "tie_word_embeddings": True},
    "llama, llama3": {"rope_scaling": _LLAMA3, "rope_theta": 500000.0, "head_dim": 32},
    "llama, linear": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "llama, yarn": {"rope_scaling": _YARN | {"attention_factor": 1.3}},
    "mistral": {"model_type": "mistral", "head_dim": 32, "sliding_window": 128, "layer_types": (SLIDING, SLIDING)},
    "qwen2": {"model_type": "qwen2", "qkv_bias": True, "tie_word_embeddings": True},
    "qwen2, yarn": {"model_type": "qwen2", "qkv_bias": True, "rope_scaling": _YARN},
    "qwen3": {"model_type": "qwen3", "qk_norm": True, "head_dim": 32},
    "gemma3": _GEMMA,
    "gemma3, linear": _GEMMA | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    "internlm": {"model_type": "internlm", "num_key_value_heads": 4, **_BIASES},
    "internlm2": {"model_type": "internlm2"},
    "internlm2, dynamic": {"model_type": "internlm2", "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
    "internlm2, biases": {"model_type": "internlm2", **_BIASES},
    "internlm3": {"model_type": "internlm3", "head_dim": 32, "mlp_bias": True, **_BIASES},
}


def config_of(name: str) -> ModelConfig:
    return ModelConfig.of(_BASE | FAMILIES[name], name)


def weights_of(config: ModelConfig, seed: int = 0) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """(Hugging Face name, values), large enough that every layer and every norm matters."""
    rng = np.random.default_rng(seed)
    for name, shape in config.shapes().items():
        values = rng.standard_normal(shape).astype(np.float32)
        if name.endswith("norm.weight"):
            yield name, values * np.float32(0.1) + np.float32(not config.norm_plus_one)
        elif name.endswith("bias"):
            yield name, values * np.float32(0.5)
        else:
            yield name, (values * 1.5 / shape[-1] ** 0.5).astype(np.float32)
