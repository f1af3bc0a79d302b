"""Tensor names. Inside, the names of Hugging Face are used: loading a checkpoint of most families is the identity."""

from __future__ import annotations

from riverrun.models.config import ModelConfig
from riverrun.models.families import families

__all__ = ["is_constant", "plain_name", "stored_names"]

INTERNLM2_TOP = {
    "model.embed_tokens.weight": "model.tok_embeddings.weight",
    "model.norm.weight": "model.norm.weight",
    "lm_head.weight": "output.weight",
}
INTERNLM2_LAYER = {
    "self_attn.q_proj": "attention.wqkv",  # q, k and v of each key head together, see io/layouts
    "self_attn.k_proj": "attention.wqkv",
    "self_attn.v_proj": "attention.wqkv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}


def _internlm2(name: str) -> str:
    if name in INTERNLM2_TOP:
        return INTERNLM2_TOP[name]
    model, layers, index, part = name.split(".", 3)
    block, kind = part.rsplit(".", 1)
    return f"{model}.{layers}.{index}.{INTERNLM2_LAYER[block]}.{kind}"


def stored_names(config: ModelConfig) -> dict[str, tuple[str, ...]]:
    """Name in the family's files -> our names of what it holds, in the order of those files."""
    if families()[config.model_type].get("layout") != "internlm2":
        return {name: (name,) for name in config.shapes()}
    out: dict[str, tuple[str, ...]] = {}
    for name in config.shapes():
        theirs = _internlm2(name)
        out[theirs] = (*out.get(theirs, ()), name)
    return out


def plain_name(name: str) -> str | None:
    """The text model's name of a tensor in a file that may hold pictures too; None: not of the text model."""
    for prefix, start in (("language_model.", ""), ("model.language_model.", "model.")):
        if name.startswith(prefix):
            return start + name.removeprefix(prefix)
    return None if name.startswith(_PICTURES) else name


_PICTURES = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")


def is_constant(name: str) -> bool:
    """Tables that old versions of the published code wrote beside the weights."""
    return name.endswith(".rotary_emb.inv_freq")
