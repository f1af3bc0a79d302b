"""Tensor names. Inside, the names of Hugging Face Llama are used: loading such a checkpoint is the identity."""

from __future__ import annotations

__all__ = ["GGUF_LAYER", "GGUF_TOP", "LAYER_WEIGHTS", "from_gguf", "layer_names"]

GGUF_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
GGUF_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
LAYER_WEIGHTS = tuple(GGUF_LAYER.values())


def from_gguf(name: str) -> str | None:
    """GGUF tensor name -> our name, None when the table has none."""
    if name in GGUF_TOP:
        return GGUF_TOP[name]
    parts = name.split(".")
    if len(parts) == 4 and parts[0] == "blk" and parts[2] in GGUF_LAYER:
        return f"model.layers.{parts[1]}.{GGUF_LAYER[parts[2]]}.{parts[3]}"
    return None


def layer_names(layers: int, *, tied: bool) -> list[str]:
    """All tensor names of a model with that many layers."""
    names = ["model.embed_tokens.weight", "model.norm.weight"] + ([] if tied else ["lm_head.weight"])
    return names + [f"model.layers.{i}.{weight}.weight" for i in range(layers) for weight in LAYER_WEIGHTS]
