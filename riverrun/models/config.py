"""The shape of a decoder, with the field names of Hugging Face `config.json`. No torch.

One decoder class serves every family in `families.yaml`; what differs between them is said by these fields. A family's
defaults are those of its published config class, because a `config.json` leaves out what equals them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from riverrun.base.config import Config
from riverrun.base.errors import ConfigError
from riverrun.models.families import SLIDING, families
from riverrun.models.hf_config import read_hf, write_hf

__all__ = ["ModelConfig", "RopeScaling"]

LayerType = Literal["full_attention", "sliding_attention"]


class RopeScaling(Config):
    """How rotary frequencies are stretched beyond the trained length, with the names of `rope_scaling`.

    linear: positions / factor. dynamic: NTK, the base grows with the sequence's prompt. llama3, yarn: by wavelength.
    """

    rope_type: Literal["linear", "dynamic", "llama3", "yarn"]
    factor: float = Field(default=1.0, ge=1)
    original_max_position_embeddings: int | None = Field(default=None, gt=0)
    low_freq_factor: float = Field(default=1.0, gt=0)
    high_freq_factor: float = Field(default=4.0, gt=0)
    beta_fast: float = Field(default=32.0, gt=0)
    beta_slow: float = Field(default=1.0, gt=0)
    attention_factor: float | None = Field(default=None, gt=0)
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    @model_validator(mode="after")
    def _check(self) -> RopeScaling:
        if self.rope_type == "llama3":
            if self.original_max_position_embeddings is None:
                raise ValueError("rope_type llama3 needs original_max_position_embeddings")
            if self.high_freq_factor <= self.low_freq_factor:
                raise ValueError(
                    f"high_freq_factor ({self.high_freq_factor}) must be above low_freq_factor ({self.low_freq_factor})"
                )
        return self

    def to_hf(self) -> dict[str, Any]:
        """The object that `transformers` reads: only what this type uses and what is set."""
        used = {
            "linear": {"factor"},
            "dynamic": {"factor"},
            "llama3": {"factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"},
        }.get(self.rope_type, set(type(self).model_fields) - {"low_freq_factor", "high_freq_factor"})
        values = self.model_dump(include=used | {"rope_type"}, exclude_none=True)
        return values if values.get("truncate") is not True else {k: v for k, v in values.items() if k != "truncate"}


class ModelConfig(Config):
    """Sizes are counts of elements; `head_dim` defaults to hidden_size / num_attention_heads.

    `eos_token_id` is one id or several: each of them ends an answer. `layer_types` is empty where every layer sees all
    tokens before; a sliding layer sees the last `sliding_window`, itself included, and turns by `rope_local_theta`
    without scaling where that is given.
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
    hidden_act: Literal["silu", "gelu_pytorch_tanh"] = "silu"
    rope_theta: float = Field(default=10000.0, gt=0)
    rope_local_theta: float | None = Field(default=None, gt=0)
    rope_scaling: RopeScaling | None = None
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    norm_plus_one: bool = False
    """Norm weights are stored as w where the factor is 1 + w (Gemma)."""
    post_norms: bool = False
    """A norm after attention and one after the MLP, each before its sum (Gemma)."""
    scale_embeddings: bool = False
    """Embeddings times sqrt(hidden_size), rounded to the compute dtype (Gemma)."""
    query_pre_attn_scalar: int | float | None = Field(default=None, gt=0)
    sliding_window: int | None = Field(default=None, gt=0)
    layer_types: tuple[LayerType, ...] = ()
    tie_word_embeddings: bool = False
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None

    @field_validator("model_type")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in families():
            raise ValueError(f"'{value}' is not computed here, computed: {', '.join(families())}")
        return value

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
        if self.layer_types and len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(
                f"layer_types has {len(self.layer_types)} entries, num_hidden_layers is {self.num_hidden_layers}"
            )
        if SLIDING in self.layer_types and self.sliding_window is None:
            raise ValueError("layer_types names sliding_attention, so sliding_window must be given")
        return self

    @classmethod
    def from_hf(cls, data: Mapping[str, Any]) -> ModelConfig:
        """Read a `config.json`; an architecture or a switch that this class does not compute is refused by name."""
        return cls.of(read_hf(data), "config.json")

    @classmethod
    def of(cls, values: Mapping[str, Any], origin: str) -> ModelConfig:
        """Validate; ConfigError with the first problem."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            found = error.errors()[0]
            where = "".join(f"{part}: " for part in found["loc"][:1])
            family = values.get("model_type", "llama")
            raise ConfigError(f"{origin} does not describe a {family} model: {where}{found['msg']}") from None

    def to_hf(self) -> dict[str, Any]:
        """The `config.json` that `transformers` reads (InternLM and InternLM2: the published remote code's fields)."""
        scaling = self.rope_scaling.to_hf() if self.rope_scaling else None
        return write_hf(self.model_dump() | {"rope_scaling": scaling})

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

    @property
    def windows(self) -> tuple[int | None, ...]:
        """Tokens that each layer sees, itself included; empty where every layer sees all."""
        if SLIDING not in self.layer_types:
            return ()
        return tuple(self.sliding_window if kind == SLIDING else None for kind in self.layer_types)

    @property
    def longest(self) -> int | None:
        """Most positions that the model was made for; None where the rotary base follows the prompt's length."""
        scaling = self.rope_scaling
        if scaling is not None and scaling.rope_type == "dynamic":
            return None
        if scaling is not None and scaling.rope_type in ("linear", "yarn"):
            original = scaling.original_max_position_embeddings or self.max_position_embeddings
            return max(self.max_position_embeddings, round(scaling.factor * original))
        return self.max_position_embeddings

    def rope_length(self, prompt_tokens: int) -> int:
        """The length that decides a sequence's rotary base (dynamic NTK), fixed by its prompt; 0: the plain base."""
        dynamic = self.rope_scaling is not None and self.rope_scaling.rope_type == "dynamic"
        return prompt_tokens if dynamic and prompt_tokens > self.max_position_embeddings else 0

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

    def has_bias(self, part: str) -> bool:
        """Whether the projection of that name (q_proj, ..., down_proj) adds a bias."""
        if part in ("q_proj", "k_proj", "v_proj"):
            return self.qkv_bias
        return self.o_bias if part == "o_proj" else self.mlp_bias

    def layer_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor of one layer, by Hugging Face name behind `model.layers.N.`, as its files order it."""
        shapes: dict[str, tuple[int, ...]] = {}
        for name, shape in self.linear_shapes().items():
            if name == "mlp.gate_proj" and self.qk_norm:
                shapes |= {f"self_attn.{norm}.weight": (self.head_dim,) for norm in ("q_norm", "k_norm")}
            shapes[f"{name}.weight"] = shape
            if self.has_bias(name.split(".")[-1]):
                shapes[f"{name}.bias"] = shape[:1]
        norms = ["input_layernorm", "post_attention_layernorm"]
        if self.post_norms:
            norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
        return shapes | {f"{norm}.weight": (self.hidden_size,) for norm in norms}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor by Hugging Face name; a tied head has none of its own."""
        table = (self.vocab_size, self.hidden_size)
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": table}
        for layer in range(self.num_hidden_layers):
            shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in self.layer_shapes().items()}
        shapes["model.norm.weight"] = (self.hidden_size,)
        return shapes if self.tie_word_embeddings else shapes | {"lm_head.weight": table}

    def num_parameters(self) -> int:
        """All weights; a tied head is counted once."""
        layer = sum(_product(shape) for shape in self.layer_shapes().values())
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        return self.num_hidden_layers * layer + embeddings + self.hidden_size


def _product(shape: tuple[int, ...]) -> int:
    return shape[0] if len(shape) == 1 else shape[0] * shape[1]
