"""Tiny random checkpoints of every family, made by transformers; InternLM and InternLM2, which it has not, by hand.

Their reference is a Llama of the same shape: InternLM is a Llama with biases on q, k, v and o; InternLM2 keeps q, k and
v of each key head together (the published layout, https://github.com/InternLM/InternLM/blob/main/tools/convert2llama.py).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

__all__ = ["CASES", "make_folder"]

SMALL: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_theta": 500000.0,
}
# name -> (family in transformers, changes)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4}),
    "llama3-rope": ("llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": True, "head_dim": 32}),
    "llama-linear": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}}),
    "llama-dynamic": (
        "llama",
        {"max_position_embeddings": 48, "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
    ),
    "llama-yarn": ("llama", {"rope_parameters": YARN, "max_position_embeddings": 64}),
    "smollm2": ("llama", {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 1e5}}),
    "mistral": ("mistral", {"sliding_window": 24, "head_dim": 16}),
    "mistral-full": ("mistral", {"sliding_window": None, "head_dim": 24}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2-sliding": ("qwen2", {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1}),
    "qwen2-yarn": ("qwen2", {"rope_parameters": YARN | {"rope_theta": 1e6}}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "qwen3-tied": ("qwen3", {"head_dim": 16, "tie_word_embeddings": True, "attention_bias": True}),
    "gemma3": (
        "gemma3_text",
        {"head_dim": 32, "sliding_window": 16, "query_pre_attn_scalar": 24, "num_hidden_layers": 4}
        | {"layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]},
    ),
    "internlm3": ("internlm3", {"head_dim": 32}),
    "internlm3-biases": ("internlm3", {"head_dim": 16, "attention_bias": True, "mlp_bias": True}),
    "internlm": ("internlm", {"num_key_value_heads": 4}),
    "internlm2": ("internlm2", {}),
    "internlm2-biases": ("internlm2", {"bias": True, "num_key_value_heads": 1}),
}


def _classes(family: str) -> tuple[Any, Any]:
    import transformers as t

    names = {
        "llama": ("LlamaConfig", "LlamaForCausalLM"),
        "mistral": ("MistralConfig", "MistralForCausalLM"),
        "qwen2": ("Qwen2Config", "Qwen2ForCausalLM"),
        "qwen3": ("Qwen3Config", "Qwen3ForCausalLM"),
        "gemma3_text": ("Gemma3TextConfig", "Gemma3ForCausalLM"),
    }
    if family == "internlm3":
        return t.AutoConfig.for_model("internlm3").__class__, None
    config, model = names[family]
    return getattr(t, config), getattr(t, model)


def make_folder(case: str, folder: Path, *, shard: str = "5GB") -> Any:
    """Write the checkpoint; returns the model of transformers that says what is right (fp32, eager attention)."""
    import transformers

    torch.manual_seed(hash_of(case))
    family, changes = CASES[case]
    values = SMALL | changes
    ours = family in ("internlm", "internlm2")
    if ours:
        bias = bool(values.pop("bias", family == "internlm"))
        config = transformers.LlamaConfig(**values, attention_bias=bias)
        model = transformers.LlamaForCausalLM(config)
    else:
        kind, made = _classes(family)
        config = kind(**values)
        model = made(config) if made else transformers.AutoModelForCausalLM.from_config(config)
    config._attn_implementation = "eager"
    model = model.float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # norms and biases that matter, calm matrices
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            else:
                wide = "embed" in name and not config.tie_word_embeddings
                parameter.copy_(torch.randn_like(parameter) * (0.3 if wide else 0.12))
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, max_shard_size=shard)
    if ours:
        _rewrite(family, folder, values, bias)
    return model


def hash_of(case: str) -> int:
    return sum((place + 1) * ord(char) for place, char in enumerate(case))


def _rewrite(family: str, folder: Path, values: dict[str, Any], bias: bool) -> None:
    """The Llama that transformers wrote, as the family's published code stores it."""
    config: dict[str, Any] = {key: values[key] for key in SMALL if key != "pad_token_id"}
    config |= {"model_type": family, "bias": bias, "rms_norm_eps": 1e-6, "tie_word_embeddings": False}
    weights = load_file(folder / "model.safetensors")
    if family == "internlm":
        config.pop("num_key_value_heads")
        config["rotary"] = {"base": 10000, "type": "origin"}
    else:
        config |= {"rope_theta": 10000.0, "rope_scaling": None}
        heads, kv_heads = values["num_attention_heads"], values["num_key_value_heads"]
        weights = {_internlm2_name(n): w for n, w in _joined(weights, heads // kv_heads, kv_heads).items()}
    (folder / "config.json").write_text(json.dumps(config))
    save_file({n: w.contiguous() for n, w in weights.items()}, folder / "model.safetensors", metadata={"format": "pt"})


def _joined(weights: dict[str, torch.Tensor], queries: int, kv_heads: int) -> dict[str, torch.Tensor]:
    out = {}
    for name, tensor in weights.items():
        if ".q_proj." in name:
            parts = [tensor, weights[name.replace("q_proj", "k_proj")], weights[name.replace("q_proj", "v_proj")]]
            dim = len(parts[1]) // kv_heads
            rows = []
            for head in range(kv_heads):
                rows.append(parts[0][head * queries * dim : (head + 1) * queries * dim])
                rows += [part[head * dim : (head + 1) * dim] for part in parts[1:]]
            out[name.replace("q_proj", "wqkv")] = torch.cat(rows)
        elif ".k_proj." not in name and ".v_proj." not in name:
            out[name] = tensor
    return out


def _internlm2_name(name: str) -> str:
    for ours, theirs in {
        "model.embed_tokens": "model.tok_embeddings",
        "lm_head": "output",
        "self_attn.wqkv": "attention.wqkv",
        "self_attn.o_proj": "attention.wo",
        "mlp.gate_proj": "feed_forward.w1",
        "mlp.up_proj": "feed_forward.w3",
        "mlp.down_proj": "feed_forward.w2",
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm",
    }.items():
        name = name.replace(ours, theirs)
    return name
