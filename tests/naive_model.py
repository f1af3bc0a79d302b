"""A Llama with LoRA written a second time, as plainly as the papers say it: the reference of several tests.

One document at a time, no cache, no packing, no fused matrices, every step an autograd operation. Nothing of
`riverrun.models` is imported: weights and factors come by their Hugging Face and PEFT names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

Encoded = tuple[Sequence[int], Sequence[bool]]


@dataclass
class NaiveLlama:
    """`config` is a config.json, `weights` are by Hugging Face name; `factors` maps a projection to its A and B."""

    config: Mapping[str, object]
    weights: dict[str, Tensor]
    factors: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    scaling: float = 0.0

    def _size(self, key: str) -> int:
        return int(str(self.config[key]))

    def _project(self, name: str, x: Tensor) -> Tensor:
        """x W^T + s (x A^T) B^T"""
        out = x @ self.weights[f"{name}.weight"].T
        if name in self.factors:
            a, b = self.factors[name]
            out = out + self.scaling * ((x @ a.T) @ b.T)
        return out

    def _norm(self, name: str, x: Tensor) -> Tensor:
        mean = (x * x).mean(dim=-1, keepdim=True)
        return x / torch.sqrt(mean + float(str(self.config["rms_norm_eps"]))) * self.weights[f"{name}.weight"]

    def _turn(self, x: Tensor) -> Tensor:
        """Rotary embedding of one head [T, D]: pairs (i, i + D/2) turn by position * theta^(-2i/D)."""
        count, dim = x.shape
        theta = float(str(self.config["rope_theta"]))
        powers = torch.tensor([theta ** (-2 * i / dim) for i in range(dim // 2)], dtype=x.dtype)
        angles = torch.arange(count, dtype=x.dtype)[:, None] * powers
        first, second = x[:, : dim // 2], x[:, dim // 2 :]
        return torch.cat(
            [first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()], dim=1
        )

    def _attention(self, name: str, x: Tensor) -> Tensor:
        heads, kv_heads = self._size("num_attention_heads"), self._size("num_key_value_heads")
        q, k, v = (self._project(f"{name}.{part}_proj", x) for part in "qkv")
        dim, out = q.shape[1] // heads, []
        future = torch.ones(len(x), len(x)).triu(1).bool()
        for head in range(heads):
            mine = slice(head * dim, (head + 1) * dim)
            at = head // (heads // kv_heads)
            theirs = slice(at * dim, (at + 1) * dim)
            scores = self._turn(q[:, mine]) @ self._turn(k[:, theirs]).T / math.sqrt(dim)
            out.append(scores.masked_fill(future, -math.inf).softmax(dim=-1) @ v[:, theirs])
        return self._project(f"{name}.o_proj", torch.cat(out, dim=1))

    def logits(self, ids: Sequence[int]) -> Tensor:
        """[T, vocabulary] of one document."""
        x = self.weights["model.embed_tokens.weight"][list(ids)]
        for layer in range(self._size("num_hidden_layers")):
            name = f"model.layers.{layer}"
            x = x + self._attention(f"{name}.self_attn", self._norm(f"{name}.input_layernorm", x))
            y = self._norm(f"{name}.post_attention_layernorm", x)
            gate, up = self._project(f"{name}.mlp.gate_proj", y), self._project(f"{name}.mlp.up_proj", y)
            x = x + self._project(f"{name}.mlp.down_proj", gate * torch.sigmoid(gate) * up)
        tied = "model.embed_tokens.weight"
        head = self.weights[tied if self.config["tie_word_embeddings"] else "lm_head.weight"]
        return self._norm("model.norm", x) @ head.T

    def loss(self, row: Encoded) -> Tensor:
        """Sum of -log p(token) over the learned tokens of one document; the first has nothing to be predicted from."""
        ids, learned = row
        chances = self.logits(ids).log_softmax(dim=-1)
        return -sum((chances[i - 1, ids[i]] for i in range(1, len(ids)) if learned[i]), start=torch.zeros(()))

    def adapt(self, tensors: Mapping[str, Tensor], scaling: float, dtype: torch.dtype) -> dict[str, Tensor]:
        """Copy factors named as PEFT stores them; returns them by that name, asking for gradients."""
        leaves = {name: tensor.detach().to(dtype).clone().requires_grad_() for name, tensor in tensors.items()}
        self.scaling, self.factors = scaling, {}
        for name in leaves:
            if name.endswith(".lora_A.weight"):
                stem = name.removesuffix(".lora_A.weight")
                pair = (leaves[name], leaves[f"{stem}.lora_B.weight"])
                self.factors[stem.removeprefix("base_model.model.")] = pair
        return leaves

    def greedy(self, ids: Sequence[int], count: int, ends: Callable[[int], bool]) -> list[int]:
        """At most `count` tokens, each the likeliest after everything before it, all of it computed anew."""
        out: list[int] = []
        with torch.no_grad():
            while len(out) < count and not (out and ends(out[-1])):
                out.append(int(self.logits([*ids, *out])[-1].argmax()))
        return out
