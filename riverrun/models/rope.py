"""Rotary position embedding (https://arxiv.org/abs/2104.09864), half-split, and the ways to stretch it.

All arithmetic is in float32 and in the order of `transformers`: at position 200,000 the last bit of a frequency moves
an angle by 0.01, so equal logits need equal bits. T = tokens, D = head_dim.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from riverrun.models.config import ModelConfig, RopeScaling

__all__ = ["Rope", "Turn", "dynamic_base", "frequencies", "rotate"]

Turn = tuple[Tensor, Tensor]


def _plain(base: float | Tensor, dim: int) -> Tensor:
    """1 / base^(2i / D) for each pair i, [D / 2]; `base` [T, 1] gives [T, D / 2]."""
    device = base.device if isinstance(base, Tensor) else None
    out: Tensor = 1.0 / (base ** (torch.arange(0, dim, 2, dtype=torch.int64, device=device).to(torch.float32) / dim))
    return out


def dynamic_base(config: ModelConfig, length: Tensor) -> Tensor:
    """The base of dynamic NTK for sequences of `length` tokens: base * (s L / Lmax - (s - 1))^(D / (D - 2)).

    Up to Lmax it is the plain base. Float32, as the published code computes it.
    """
    assert config.rope_scaling is not None
    factor, trained, dim = config.rope_scaling.factor, config.max_position_embeddings, config.head_dim
    length = length.clamp(min=trained)
    grown: Tensor = config.rope_theta * ((factor * length / trained) - (factor - 1)) ** (dim / (dim - 2))
    return grown


def frequencies(config: ModelConfig) -> tuple[Tensor, float]:
    """(angle per position of each pair [D / 2], factor of cos and sin); for dynamic NTK the plain ones."""
    inverse = _plain(config.rope_theta, config.head_dim)
    scaling = config.rope_scaling
    if scaling is None or scaling.rope_type == "dynamic":
        return inverse, 1.0
    if scaling.rope_type == "linear":
        return inverse / scaling.factor, 1.0
    return _llama3(inverse, scaling) if scaling.rope_type == "llama3" else _yarn(config, scaling)


def _llama3(inverse: Tensor, scaling: RopeScaling) -> tuple[Tensor, float]:
    """Long waves divided by the factor, short ones kept, between them a mixture (Llama 3.1)."""
    assert scaling.original_max_position_embeddings is not None
    factor, low, high = scaling.factor, scaling.low_freq_factor, scaling.high_freq_factor
    trained = scaling.original_max_position_embeddings
    wave = 2 * math.pi / inverse
    out = torch.where(wave > trained / low, inverse / factor, inverse)
    smooth = (trained / wave - low) / (high - low)
    mixed = (1 - smooth) * out / factor + smooth * out
    between = ~(wave < trained / high) * ~(wave > trained / low)
    return torch.where(between, mixed, out), 1.0


def _yarn(config: ModelConfig, scaling: RopeScaling) -> tuple[Tensor, float]:
    """YaRN (https://arxiv.org/abs/2309.00071): interpolated where a wave turns rarely within the trained length."""
    dim, base, factor = config.head_dim, config.rope_theta, scaling.factor
    trained = scaling.original_max_position_embeddings or config.max_position_embeddings

    def pair_of(rotations: float) -> float:
        return (dim * math.log(trained / (rotations * 2 * math.pi))) / (2 * math.log(base))

    low, high = pair_of(scaling.beta_fast), pair_of(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    ramp = torch.clamp((torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low), 0, 1)
    waves = base ** (torch.arange(0, dim, 2).to(torch.float32) / dim)
    kept = 1 - ramp
    inverse = (1.0 / (factor * waves)) * (1 - kept) + (1.0 / waves) * kept
    if scaling.attention_factor is not None:
        return inverse, scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return inverse, _mscale(factor, scaling.mscale) / _mscale(factor, scaling.mscale_all_dim)
    return inverse, _mscale(factor, 1.0)


def _mscale(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


class Rope:
    """Tables for one forward: `global_turn`, and `local_turn` for sliding layers that turn by a base of their own."""

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        self._inverse, self._scale = frequencies(config)
        local = config.rope_local_theta
        self._local = None if local is None else _plain(local, config.head_dim)
        self._scaling = config.rope_scaling

    def tables(self, positions_T: Tensor, dtype: torch.dtype, lengths_T: Tensor | None = None) -> tuple[Turn, Turn]:
        """(of full layers, of sliding layers), each cos and sin [T, 1, D].

        `lengths_T` are the `ModelConfig.rope_length` of each token's sequence, for dynamic NTK alone; 0 and None mean
        the plain base.
        """
        self._inverse = self._inverse.to(positions_T.device)
        inverse = self._inverse[None, :]
        if lengths_T is not None and bool(lengths_T.any()):
            assert self._scaling is not None, "lengths are for models with dynamic NTK"
            inverse = _plain(dynamic_base(self._config, lengths_T)[:, None], self._config.head_dim)
        whole = _turn(positions_T, inverse, self._scale, dtype)
        if self._local is None:
            return whole, whole
        self._local = self._local.to(positions_T.device)
        return whole, _turn(positions_T, self._local[None, :], 1.0, dtype)


def _turn(positions_T: Tensor, inverse: Tensor, scale: float, dtype: torch.dtype) -> Turn:
    """The first half of sin is negative, so that rotating is x * cos + swap_halves(x) * sin."""
    angles = positions_T.float()[:, None] * inverse  # [T, D / 2]
    cos, sin = angles.cos(), angles.sin()
    if scale != 1.0:
        cos, sin = cos * scale, sin * scale
    return torch.cat([cos, cos], dim=1)[:, None].to(dtype), torch.cat([-sin, sin], dim=1)[:, None].to(dtype)


def rotate(x: Tensor, turn: Turn) -> Tensor:
    """Rotate [T, heads, D]."""
    cos, sin = turn
    first, second = x.chunk(2, dim=-1)
    return torch.addcmul(x * cos, torch.cat([second, first], dim=-1), sin)
