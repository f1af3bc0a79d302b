"""The decoder. One class; training and decoding differ by the `attend` object passed in (a pack, or a KV cache).

T = tokens of all sequences, packed without padding; E = hidden_size; H, K = query and key/value heads; D = head_dim.
Parameter names follow Hugging Face Llama, except that q/k/v and gate/up are one matrix each (`hf_state` splits them).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from riverrun.base.errors import IntegrityError
from riverrun.models.attention import Attend
from riverrun.models.config import ModelConfig
from riverrun.models.io.names import layer_names
from riverrun.models.lora import Adapter, FusedLinear, PackedWeight

__all__ = ["CausalLM", "rope_table", "rotate"]


def rope_table(config: ModelConfig, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin [T, 1, D] of the half-split rotary embedding (https://arxiv.org/abs/2104.09864); angles in fp32.

    The first half of sin is negative, so that rotating is x * cos + swap_halves(x) * sin.
    """
    halves = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    angles = positions.float()[:, None] * (1.0 / config.rope_theta**halves)[None, :]  # [T, D/2]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], dim=1)[:, None].to(dtype), torch.cat([-sin, sin], dim=1)[:, None].to(dtype)


def rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate [T, heads, D]."""
    cos, sin = rope
    first, second = x.chunk(2, dim=-1)
    return torch.addcmul(x * cos, torch.cat([second, first], dim=-1), sin)


class _SwiGLU(torch.autograd.Function):
    """silu(gate) * up on [T, 2F]; keeps only its input and recomputes silu in the backward."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return silu(gate) * up

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        out = torch.empty_like(gate_up)
        d_gate, d_up = out.chunk(2, dim=-1)
        torch.mul(grads[0], silu(gate), out=d_up)
        d_gate.copy_(torch.ops.aten.silu_backward(grads[0] * up, gate))
        return out


class _RMSNorm(torch.autograd.Function):
    """x / rms(x) * weight, formed in fp32 and rounded once; keeps x and one number a row. The weight is frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        squares = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=_wide(x)).square_()
        scale = torch.rsqrt(squares / x.shape[-1] + eps)  # [T, 1]
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).to(x.dtype) * weight

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        x, weight, scale = ctx.saved_tensors
        inner = grads[0] * weight
        along = (inner * x).sum(dim=-1, keepdim=True, dtype=scale.dtype) * scale.pow(3) / x.shape[-1]
        return torch.addcmul(inner * scale, x, along, value=-1).to(x.dtype), None, None


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


class Attention(nn.Module):
    def __init__(self, config: ModelConfig, layer: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        sizes = {"q_proj": config.query_size, "k_proj": config.kv_size, "v_proj": config.kv_size}
        self.qkv_proj = FusedLinear(sizes, config.hidden_size, dtype)
        self.o_proj = FusedLinear({"o_proj": config.hidden_size}, config.query_size, dtype)

    def forward(self, x_TE: Tensor, rope: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        config = self.config
        heads = self.qkv_proj(x_TE).view(x_TE.shape[0], -1, config.head_dim)  # [T, H + 2K, D]
        turning = config.num_attention_heads + config.num_key_value_heads
        turned = rotate(heads[:, :turning], rope)  # queries and keys in one pass
        q, k = turned[:, : config.num_attention_heads], turned[:, config.num_attention_heads :]
        out = attend(self.layer, q, k, heads[:, turning:])
        return self.o_proj(out.reshape(x_TE.shape[0], -1))  # type: ignore[no-any-return]


class MLP(nn.Module):
    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        super().__init__()
        width = config.intermediate_size
        self.gate_up_proj = FusedLinear({"gate_proj": width, "up_proj": width}, config.hidden_size, dtype)
        self.down_proj = FusedLinear({"down_proj": config.hidden_size}, width, dtype)

    def forward(self, x_TE: Tensor) -> Tensor:
        return self.down_proj(_SwiGLU.apply(self.gate_up_proj(x_TE)))  # type: ignore[no-any-return,no-untyped-call]


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size, dtype=dtype), requires_grad=False)
        self.eps = eps

    def forward(self, x_TE: Tensor) -> Tensor:
        return _RMSNorm.apply(x_TE, self.weight, self.eps)  # type: ignore[no-any-return,no-untyped-call]


class DecoderLayer(nn.Module):
    def __init__(self, config: ModelConfig, layer: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)
        self.self_attn = Attention(config, layer, dtype)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)
        self.mlp = MLP(config, dtype)

    def forward(self, x_TE: Tensor, rope: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        x_TE = x_TE + self.self_attn(self.input_layernorm(x_TE), rope, attend)
        return x_TE + self.mlp(self.post_attention_layernorm(x_TE))  # type: ignore[no-any-return]


class CausalLM(nn.Module):
    """Embeddings, layers, final norm, head. `forward` gives hidden states; `logits` maps chosen rows of them."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config, self.dtype = config, dtype
        table = torch.empty(config.vocab_size, config.hidden_size, dtype=dtype)
        self.embed_tokens = nn.Parameter(table, requires_grad=False)
        self.layers = nn.ModuleList(DecoderLayer(config, i, dtype) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)
        self.lm_head = self.embed_tokens
        if not config.tie_word_embeddings:
            self.lm_head = nn.Parameter(torch.empty_like(table), requires_grad=False)
        self._packed_head: PackedWeight | None = None

    def forward(self, ids_T: Tensor, positions_T: Tensor, attend: Attend) -> Tensor:
        """Token ids and positions -> normed hidden states [T, E]."""
        x_TE = self.embed_tokens[ids_T]
        rope = rope_table(self.config, positions_T, self.dtype)
        for layer in self.layers:
            x_TE = layer(x_TE, rope, attend)
        return self.norm(x_TE)  # type: ignore[no-any-return]

    def logits(self, hidden: Tensor) -> Tensor:
        """[rows, E] -> [rows, vocabulary] in the model's dtype."""
        return linear(hidden, self.lm_head) if self._packed_head is None else self._packed_head(hidden)

    def pack(self) -> None:
        """Lay the weights out for inference, for good: they cannot be read, trained or saved afterwards."""
        for _, matrix in self.linears():
            matrix.pack()
        self._packed_head = PackedWeight.of(self.lm_head.data)

    def linears(self) -> Iterator[tuple[str, FusedLinear]]:
        """(Hugging Face prefix such as model.layers.0.self_attn, fused matrix) of every projection."""
        for index, layer in enumerate(self.layers):
            for block, names in (("self_attn", ("qkv_proj", "o_proj")), ("mlp", ("gate_up_proj", "down_proj"))):
                for name in names:
                    yield f"model.layers.{index}.{block}", getattr(getattr(layer, block), name)

    def refresh(self) -> None:
        """Form the merged weights of all adapters; call after every optimizer step."""
        for _, matrix in self.linears():
            matrix.refresh()

    def take_adapters(self) -> dict[str, Adapter]:
        """Remove all adapters; each under the Hugging Face name of the weight that it updates."""
        taken: dict[str, Adapter] = {}
        for prefix, matrix in self.linears():
            taken |= {f"{prefix}.{part}.weight": adapter for part, adapter in matrix.take_adapters()}
        return taken

    def views(self) -> dict[str, Tensor]:
        """Hugging Face name -> view of the tensor here; writing to a view loads it."""
        out: dict[str, Tensor] = {
            "model.embed_tokens.weight": self.embed_tokens.data,
            "model.norm.weight": self.norm.weight.data,
        }
        if not self.config.tie_word_embeddings:
            out["lm_head.weight"] = self.lm_head.data
        for prefix, matrix in self.linears():
            for part, rows in matrix.slices():
                out[f"{prefix}.{part}.weight"] = matrix.weight.data[rows]
        for index, layer in enumerate(self.layers):
            for norm in ("input_layernorm", "post_attention_layernorm"):
                out[f"model.layers.{index}.{norm}.weight"] = getattr(layer, norm).weight.data
        return out

    def load(self, weights: Iterable[tuple[str, Tensor]], origin: str) -> None:
        """Copy named tensors in; IntegrityError names a missing, unknown or misshaped one."""
        views = self.views()
        missing = set(layer_names(self.config.num_hidden_layers, tied=self.config.tie_word_embeddings))
        for name, tensor in weights:
            if name == "lm_head.weight" and self.config.tie_word_embeddings:
                continue
            if name.endswith(".rotary_emb.inv_freq"):  # a constant that old versions of transformers wrote
                continue
            if name not in views:
                raise IntegrityError(f"{origin}: tensor '{name}' has no place in a {self.config.model_type} model")
            if tuple(tensor.shape) != tuple(views[name].shape):
                raise IntegrityError(
                    f"{origin}: tensor '{name}' has shape {list(tensor.shape)}, "
                    f"the config needs {list(views[name].shape)}"
                )
            views[name].copy_(tensor)
            missing.discard(name)
        if missing:
            raise IntegrityError(f"{origin}: {len(missing)} tensors are missing, the first is '{sorted(missing)[0]}'")
