"""The decoder. One class; training and decoding differ by the `attend` object passed in (a pack, or a KV cache).

T = tokens of all sequences, packed without padding; E = hidden_size; H, K = query and key/value heads; D = head_dim.
Parameter names follow Hugging Face, except that q/k/v and gate/up are one matrix each (`views` splits them). What
differs between families is decided by `ModelConfig`; the weights are frozen unless `train_all` is called.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear
from torch.utils.checkpoint import checkpoint

from riverrun.base.errors import IntegrityError
from riverrun.models.attention import Attend, PackedCausal, PackedGroups, Past
from riverrun.models.config import ModelConfig
from riverrun.models.kernels import add_norm, attend_packed, embedded, norm, swiglu, takes_attention
from riverrun.models.lora import Adapter, FusedLinear
from riverrun.models.products import PackedWeight
from riverrun.models.rope import Rope, Turn, rotate
from riverrun.models.stored import Stored, stored_linear

__all__ = ["CausalLM"]


class RMSNorm(nn.Module):
    def __init__(self, size: int, config: ModelConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.plus_one, self.eps = config.norm_plus_one, config.rms_norm_eps
        start = torch.zeros(size, dtype=dtype) if self.plus_one else torch.ones(size, dtype=dtype)
        self.weight = nn.Parameter(start, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return norm(x, self.weight, self.eps, self.plus_one)

    def after(self, x: Tensor, more: Tensor) -> tuple[Tensor, Tensor]:
        """(x + more, its norm) in one pass."""
        return add_norm(x, more, self.weight, self.eps, self.plus_one)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig, layer: int, dtype: torch.dtype, *, empty: bool = False) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        sizes = {"q_proj": config.query_size, "k_proj": config.kv_size, "v_proj": config.kv_size}
        self.qkv_proj = FusedLinear(sizes, config.hidden_size, dtype, bias=config.qkv_bias, empty=empty)
        self.o_proj = FusedLinear(
            {"o_proj": config.hidden_size}, config.query_size, dtype, bias=config.o_bias, empty=empty
        )
        self.q_norm = RMSNorm(config.head_dim, config, dtype) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, config, dtype) if config.qk_norm else None
        scalar = config.query_pre_attn_scalar or config.head_dim
        # the kernels divide by sqrt(head_dim); queries bring what is different
        self.query_scale = 1.0 if scalar == config.head_dim else (config.head_dim / scalar) ** 0.5

    def forward(self, x_TE: Tensor, turn: Turn, attend: Attend) -> Tensor:
        config = self.config
        heads = self.qkv_proj(x_TE).view(x_TE.shape[0], -1, config.head_dim)  # [T, H + 2K, D]
        queries, kv_heads = config.num_attention_heads, config.num_key_value_heads
        turning = queries + kv_heads
        qk = heads[:, :turning]
        if self.q_norm is not None and self.k_norm is not None:
            qk = torch.cat([self.q_norm(qk[:, :queries]), self.k_norm(qk[:, queries:])], dim=1)
        if attend.segments is not None and takes_attention(heads, config.head_dim):
            whole = heads if self.q_norm is None else torch.cat([qk, heads[:, turning:]], dim=1)
            window = config.windows[self.layer] if config.windows else None
            scale = self.query_scale * config.head_dim**-0.5
            packed = whole.reshape(x_TE.shape[0], -1)
            out = attend_packed(packed, turn, attend.segments, queries, kv_heads, window=window, scale=scale)
            return self.o_proj(out)  # type: ignore[no-any-return]
        turned = rotate(qk, turn)  # queries and keys in one pass
        q, k = turned[:, :queries], turned[:, queries:]
        if self.query_scale != 1.0:
            q = q * self.query_scale
        out = attend(self.layer, q, k, heads[:, turning:])
        return self.o_proj(out.reshape(x_TE.shape[0], -1))  # type: ignore[no-any-return]


class MLP(nn.Module):
    def __init__(self, config: ModelConfig, dtype: torch.dtype, *, empty: bool = False) -> None:
        super().__init__()
        width = config.intermediate_size
        parts = {"gate_proj": width, "up_proj": width}
        self.gate_up_proj = FusedLinear(parts, config.hidden_size, dtype, bias=config.mlp_bias, empty=empty)
        self.down_proj = FusedLinear({"down_proj": config.hidden_size}, width, dtype, bias=config.mlp_bias, empty=empty)
        self.gelu = config.hidden_act == "gelu_pytorch_tanh"

    def forward(self, x_TE: Tensor) -> Tensor:
        gate_up = self.gate_up_proj(x_TE)
        if self.gelu:
            gate, up = gate_up.chunk(2, dim=-1)
            return self.down_proj(gelu(gate, approximate="tanh") * up)  # type: ignore[no-any-return]
        return self.down_proj(swiglu(gate_up))  # type: ignore[no-any-return]


class DecoderLayer(nn.Module):
    def __init__(self, config: ModelConfig, layer: int, dtype: torch.dtype, *, empty: bool = False) -> None:
        super().__init__()
        self.sliding = bool(config.windows) and config.windows[layer] is not None
        self.input_layernorm = RMSNorm(config.hidden_size, config, dtype)
        self.self_attn = Attention(config, layer, dtype, empty=empty)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config, dtype)
        self.mlp = MLP(config, dtype, empty=empty)
        self.post_norms = config.post_norms
        if self.post_norms:
            self.pre_feedforward_layernorm = RMSNorm(config.hidden_size, config, dtype)
            self.post_feedforward_layernorm = RMSNorm(config.hidden_size, config, dtype)

    def forward(self, x_TE: Tensor, turns: tuple[Turn, Turn], attend: Attend) -> Tensor:
        attended = self.self_attn(self.input_layernorm(x_TE), turns[self.sliding], attend)
        if not self.post_norms:
            x_TE, normed = self.post_attention_layernorm.after(x_TE, attended)
            return x_TE + self.mlp(normed)  # type: ignore[no-any-return]
        x_TE = x_TE + self.post_attention_layernorm(attended)
        return x_TE + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x_TE)))  # type: ignore[no-any-return]


class CausalLM(nn.Module):
    """Embeddings, layers, final norm, head. `forward` gives hidden states; `logits` maps chosen rows of them."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype = torch.float32, *, empty: bool = False) -> None:
        """`empty` reserves no matrices: `load` then keeps the tensors it is given, where their dtype is the model's."""
        super().__init__()
        self.config, self.dtype, self._empty = config, dtype, empty
        table = torch.empty(0 if empty else config.vocab_size, config.hidden_size, dtype=dtype)
        self.embed_tokens = nn.Parameter(table, requires_grad=False)
        self.layers = nn.ModuleList(
            DecoderLayer(config, i, dtype, empty=empty) for i in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config, dtype)
        self._rope = Rope(config)
        self.lm_head = self.embed_tokens
        if not config.tie_word_embeddings:
            self.lm_head = nn.Parameter(torch.empty_like(table), requires_grad=False)
        self._packed_head: PackedWeight | None = None
        self._tables: dict[str, Stored] = {}
        self.recompute = 0.0
        """Share of the layers, from the first on, that keep only their input for the backward and run again there."""

    def forward(self, ids_T: Tensor, positions_T: Tensor, attend: Attend, lengths_T: Tensor | None = None) -> Tensor:
        """Token ids and positions -> normed hidden states [T, E].

        `lengths_T`: `ModelConfig.rope_length` of each token's sequence; only dynamic NTK looks at it.
        """
        table = self._tables.get("model.embed_tokens.weight")
        tied = self.config.tie_word_embeddings
        x_TE = embedded(self.embed_tokens, ids_T, tied=tied) if table is None else table.take(ids_T, self.dtype)
        if self.config.scale_embeddings:
            x_TE = x_TE * torch.tensor(self.config.hidden_size**0.5, dtype=self.dtype)
        turns = self._rope.tables(positions_T, self.dtype, lengths_T)
        again = round(self.recompute * len(self.layers)) if torch.is_grad_enabled() else 0
        for index, layer in enumerate(self.layers):
            if index < again:
                x_TE = checkpoint(layer, x_TE, turns, attend, use_reentrant=False, preserve_rng_state=False)
            else:
                x_TE = layer(x_TE, turns, attend)
        return self.norm(x_TE)  # type: ignore[no-any-return]

    def packed(
        self, prefix: int, lengths: Sequence[int], *, multiple: int = 1, past: Past | None = None
    ) -> PackedCausal:
        """The attention of a pack (`PackedCausal`) in this model's dtype and windows."""
        windows = self.config.windows
        return PackedCausal(prefix, lengths, dtype=self.dtype, multiple=multiple, past=past, windows=windows)

    def packed_groups(self, groups: Sequence[tuple[int, Sequence[int]]], *, multiple: int = 1) -> PackedGroups:
        """The attention of several groups (prefix, lengths of the documents behind it) one after another."""
        return PackedGroups(groups, dtype=self.dtype, multiple=multiple, windows=self.config.windows)

    @property
    def head(self) -> Tensor | Stored:
        """What hidden states are multiplied by for logits: a tensor [V, E], or rows of few bits read in runs."""
        name = "model.embed_tokens.weight" if self.config.tie_word_embeddings else "lm_head.weight"
        return self._tables.get(name, self.lm_head)

    def logits(self, hidden: Tensor) -> Tensor:
        """[rows, E] -> [rows, vocabulary] in the model's dtype."""
        if isinstance(head := self.head, Stored):
            return stored_linear(hidden, [head])
        return linear(hidden, self.lm_head) if self._packed_head is None else self._packed_head(hidden)

    def pack(self) -> None:
        """Lay the weights out for inference, for good: they cannot be read, trained or saved afterwards."""
        for _, matrix in self.linears():
            matrix.pack()
        if isinstance(self.head, Tensor):
            self._packed_head = PackedWeight.of(self.lm_head.data)

    def linears(self) -> Iterator[tuple[str, FusedLinear]]:
        """(Hugging Face prefix such as model.layers.0.self_attn, fused matrix) of every projection."""
        for index, layer in enumerate(self.layers):
            for block, names in (("self_attn", ("qkv_proj", "o_proj")), ("mlp", ("gate_up_proj", "down_proj"))):
                for name in names:
                    yield f"model.layers.{index}.{block}", getattr(getattr(layer, block), name)

    def train_all(self) -> None:
        """Let every weight learn (full fine-tuning, pre-training); they are frozen as they come."""
        for parameter in self.parameters():
            parameter.requires_grad_(True)

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
        return {name: parameter.data[rows] for name, parameter, rows in self._named()}

    def gradients(self) -> dict[str, Tensor]:
        """Hugging Face name -> view of the gradient of each weight that has one."""
        return {name: parameter.grad[rows] for name, parameter, rows in self._named() if parameter.grad is not None}

    def _named(self) -> Iterator[tuple[str, nn.Parameter, slice]]:
        """(Hugging Face name, parameter, its rows) of every tensor of a checkpoint."""
        every = slice(None)
        yield "model.embed_tokens.weight", self.embed_tokens, every
        for prefix, matrix in self.linears():
            for part, rows in matrix.slices():
                yield f"{prefix}.{part}.weight", matrix.weight, rows
                if matrix.bias is not None:
                    yield f"{prefix}.{part}.bias", matrix.bias, rows
        for name, module in self.named_modules():
            if isinstance(module, RMSNorm):
                yield f"model.{name}.weight", module.weight, every
        if not self.config.tie_word_embeddings:
            yield "lm_head.weight", self.lm_head, every

    def load(self, weights: Iterable[tuple[str, Tensor | Stored]], origin: str) -> None:
        """Copy named tensors in, keep stored matrices; IntegrityError names a missing, unknown or misshaped one."""
        shapes = self.config.shapes()
        places = {} if self._empty else self.views()
        if self._empty:
            places = {name: view for name, view in self.views().items() if view.dim() == 1}
        missing = set(shapes)
        for name, tensor in weights:
            if name == "lm_head.weight" and self.config.tie_word_embeddings:
                continue
            if name not in shapes:
                raise IntegrityError(f"{origin}: tensor '{name}' has no place in a {self.config.model_type} model")
            if tuple(tensor.shape) != shapes[name]:
                raise IntegrityError(
                    f"{origin}: tensor '{name}' has shape {list(tensor.shape)}, the config needs {list(shapes[name])}"
                )
            if isinstance(tensor, Stored):
                self._store(name, tensor)
            elif name in places:
                places[name].copy_(tensor)
            else:
                self._keep(name, tensor.to(self.dtype))
            missing.discard(name)
        if missing:
            raise IntegrityError(f"{origin}: {len(missing)} tensors are missing, the first is '{sorted(missing)[0]}'")

    def _store(self, name: str, matrix: Stored) -> None:
        """Use this matrix of few bits in the place of that name; the model must be `empty`."""
        assert self._empty, "a model that reserved its matrices takes no stored ones"
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            matrix.dtype = self.dtype
            self._tables[name] = matrix
        else:
            part, whole = self._place(name)
            whole.store(part, matrix)

    def _keep(self, name: str, tensor: Tensor) -> None:
        """Use this very tensor as the matrix of that name."""
        if name == "model.embed_tokens.weight":
            self.embed_tokens.data = tensor
        elif name == "lm_head.weight":
            self.lm_head.data = tensor
        else:
            part, whole = self._place(name)
            whole.keep(part, tensor)

    def _place(self, name: str) -> tuple[str, FusedLinear]:
        """(part, matrix) of a projection's Hugging Face name."""
        _, _, index, block, part, _ = name.split(".")
        layer = getattr(self.layers[int(index)], block)
        return part, next(matrix for matrix in layer.children() if part in getattr(matrix, "parts", ()))
