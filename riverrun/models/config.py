"""The shape of a decoder, with the field names of Hugging Face `config.json`. No torch.

Covers the Llama family as the spine needs it (GQA, RoPE, SwiGLU, RMSNorm, tied or separate head). Biases, sliding
windows and scaled RoPE are refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, ValidationError, model_validator

from riverrun.base.config import Config
from riverrun.base.errors import ConfigError, UnsupportedError

__all__ = ["ModelConfig"]

_FAMILIES = {"llama"}
_MUST_BE = {
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "hidden_act": ("silu",),
    "partial_rotary_factor": (1.0, None),
    "rope_scaling": (None,),
    "sliding_window": (None,),
}


class ModelConfig(Config):
    """Sizes are counts of elements; `head_dim` defaults to hidden_size / num_attention_heads.

    `eos_token_id` is one id or several: each of them ends an answer.
    """

    model_type: str = "llama"
    vocab_size: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    intermediate_size: int = Field(gt=0)
    num_hidden_layers: int = Field(gt=0)
    num_attention_heads: int = Field(gt=0)
    num_key_value_heads: int = Field(gt=0)
    head_dim: int = Field(default=0, ge=0)
    max_position_embeddings: int = Field(default=2048, gt=0)
    rms_norm_eps: float = Field(default=1e-5, gt=0)
    rope_theta: float = Field(default=10000.0, gt=0)
    tie_word_embeddings: bool = False
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None

    @model_validator(mode="before")
    @classmethod
    def _fill_head_dim(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or data.get("head_dim"):
            return data
        hidden, heads = data.get("hidden_size"), data.get("num_attention_heads")
        if not (isinstance(hidden, int) and isinstance(heads, int) and hidden > 0 and heads > 0):
            return data  # the fields' own checks say what is wrong
        if hidden % heads:
            raise ValueError(f"num_attention_heads ({heads}) must divide hidden_size ({hidden}), or head_dim be given")
        return {**data, "head_dim": hidden // heads}

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads ({self.num_key_value_heads}) must divide "
                f"num_attention_heads ({self.num_attention_heads})"
            )
        if self.head_dim % 2 or not self.head_dim:
            raise ValueError(f"head_dim ({self.head_dim}) must be even for rotary embedding")
        return self

    @classmethod
    def from_hf(cls, data: Mapping[str, Any]) -> ModelConfig:
        """Read a `config.json`; an architecture or a switch that this class does not compute is refused by name."""
        family = data.get("model_type")
        if family not in _FAMILIES:
            raise UnsupportedError(f"model_type '{family}' is not supported, supported: {', '.join(sorted(_FAMILIES))}")
        values = dict(data)
        rope = values.pop("rope_parameters", None) or {}
        if not isinstance(rope, Mapping):
            raise ConfigError(f"config.json: rope_parameters must be an object, it is {type(rope).__name__}")
        if rope.get("rope_type", "default") != "default":
            raise UnsupportedError(f"rope_type '{rope['rope_type']}' is not supported, supported: default")
        if rope.get("partial_rotary_factor") is not None:
            values["partial_rotary_factor"] = rope["partial_rotary_factor"]
        if "rope_theta" in rope:
            values["rope_theta"] = rope["rope_theta"]
        for key, allowed in _MUST_BE.items():
            if key in values and values[key] not in allowed:
                raise UnsupportedError(f"{key} = {values[key]!r} is not supported, supported: {allowed[0]!r}")
        if not values.get("num_key_value_heads"):
            values["num_key_value_heads"] = values.get("num_attention_heads")
        known = {key: values[key] for key in cls.model_fields if values.get(key) is not None}
        return cls.of(known, "config.json")

    @classmethod
    def of(cls, values: Mapping[str, Any], origin: str) -> ModelConfig:
        """Validate; ConfigError with the first problem."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            found = error.errors()[0]
            where = "".join(f"{part}: " for part in found["loc"][:1])
            raise ConfigError(f"{origin} does not describe a llama model: {where}{found['msg']}") from None

    def to_hf(self) -> dict[str, Any]:
        """The `config.json` that `transformers` reads."""
        extra = {
            "architectures": ["LlamaForCausalLM"],
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
        }
        return self.model_dump() | extra

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Every id of `eos_token_id`, in order."""
        ends = self.eos_token_id
        return () if ends is None else (ends,) if isinstance(ends, int) else ends

    @property
    def query_size(self) -> int:
        return self.num_attention_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_key_value_heads * self.head_dim

    @property
    def queries_per_kv(self) -> int:
        return self.num_attention_heads // self.num_key_value_heads

    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """(out, in) of one layer's seven projections, by Hugging Face name."""
        h, f = self.hidden_size, self.intermediate_size
        return {
            "self_attn.q_proj": (self.query_size, h),
            "self_attn.k_proj": (self.kv_size, h),
            "self_attn.v_proj": (self.kv_size, h),
            "self_attn.o_proj": (h, self.query_size),
            "mlp.gate_proj": (f, h),
            "mlp.up_proj": (f, h),
            "mlp.down_proj": (h, f),
        }

    def num_parameters(self) -> int:
        """All weights; a tied head is counted once."""
        layer = sum(out * into for out, into in self.linear_shapes().values()) + 2 * self.hidden_size
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        return self.num_hidden_layers * layer + embeddings + self.hidden_size
