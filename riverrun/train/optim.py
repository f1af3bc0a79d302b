"""Optimizers: AdamW, AdamW with 8-bit moments, Muon. All arithmetic is in fp32, whatever the weights' type.

A weight in 16 bits either has an fp32 master, which is rounded into it after each step, or none: then each step is
rounded at random, so that what is too small for one step is not lost over many (https://arxiv.org/abs/2010.06192). A
bfloat16 weight is the upper half of its master; what is kept here is the lower one (`joined`).
Only matrices decay (decoupled, https://arxiv.org/abs/1711.05101).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from riverrun.base.errors import IntegrityError
from riverrun.models import native
from riverrun.models.lora import FusedLinear
from riverrun.train.eightbit import LEAST, adamw8bit_, empty_state, kernel_state
from riverrun.train.recipe import OptimizerConfig

__all__ = ["Optimizer", "bit_sums", "draw_seed", "joined", "newton_schulz", "part_rows", "round_at_random", "split"]

NS_STEPS = 5
NS_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of Muon's quintic iteration (https://kellerjordan.github.io/posts/muon/)."""
RMS = 0.2
"""Muon's updates times 0.2 sqrt(longer side) have AdamW's size (https://arxiv.org/abs/2502.16982), so one rate fits."""


def draw_seed(*key: int | str) -> int:
    """A seed of 63 bits for the numbers drawn under `key`."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, key)).encode()).digest()[:8], "big") >> 1


def part_rows(model: nn.Module) -> dict[str, list[slice]]:
    """Parameter name -> rows of its parts, for matrices that are several in one (q, k, v; gate, up)."""
    matrices = ((name, module) for name, module in model.named_modules() if isinstance(module, FusedLinear))
    return {f"{name}.weight": [rows for _, rows in matrix.slices()] for name, matrix in matrices}


@torch.no_grad()
def newton_schulz(matrix: Tensor) -> Tensor:
    """The nearest orthogonal matrix, roughly (singular values within 0.7 and 1.2), in bf16 where that is multiplied."""
    fast = matrix.device.type != "cpu" or torch.cpu._is_avx512_bf16_supported()
    x = matrix.to(torch.bfloat16 if fast else torch.float32)
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    x = x / x.norm().clamp(min=1e-7)
    a, b, c = NS_COEFFICIENTS
    for _ in range(NS_STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


@torch.no_grad()
def round_at_random(value: Tensor, seed: int) -> Tensor:
    """fp32 -> bf16, up or down with the probability of the distance: the mean is exact."""
    noise = torch.empty(value.shape, dtype=torch.int32, device=value.device)
    noise.random_(0, 1 << 16, generator=torch.Generator(value.device).manual_seed(seed))
    return ((value.view(torch.int32) + noise) & -65536).view(torch.float32).to(torch.bfloat16)


def joined(weight: Tensor, low: Tensor) -> Tensor:
    """The fp32 master of a bfloat16 weight, from the lower half of its bits (int16, of either sign)."""
    return ((weight.view(torch.int16).int() << 16) + low).view(torch.float32)


def split(value: Tensor, weight: Tensor, low: Tensor) -> None:
    """Put an fp32 value into a bfloat16 weight, which is the value rounded to nearest, and what that leaves over."""
    bits = value.view(torch.int32)
    high = (bits + 0x8000) >> 16
    weight.view(torch.int16).copy_(high)
    low.copy_(bits - (high << 16))


def bit_sums(tensor: Tensor) -> list[int]:
    """Sums of the bits, run by run: they tell a change as well as a copy would, and take no room."""
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    runs = tensor.detach().reshape(-1).view(kind).split(1 << 20)  # type: ignore[no-untyped-call]
    return [int(run.sum(dtype=torch.int64)) for run in runs]


@dataclass(slots=True)
class _Weight:
    """One parameter, its rule (adamw, adamw8bit, muon), and what the rule remembers."""

    name: str
    tensor: Tensor
    rule: str
    ratio: float  # of the learning rate
    decay: float
    rows: Sequence[slice]
    state: dict[str, Tensor] = field(default_factory=dict)

    @property
    def wide(self) -> bool:
        """Whether the parameter itself is updated."""
        return self.tensor.dtype in (torch.float32, torch.float64)

    def value(self) -> Tensor:
        """What is updated: the parameter, its master, or a passing fp32 copy; `put` brings that back."""
        if "low" in self.state:
            return joined(self.tensor, self.state["low"])
        return self.tensor if self.wide else self.state["master"] if "master" in self.state else self.tensor.float()

    def put(self, value: Tensor, seed: int) -> None:
        """The parameter from what was updated; `seed` draws where there is no master."""
        if "low" in self.state:
            split(value, self.tensor, self.state["low"])
        elif "master" in self.state:
            self.tensor.copy_(value)
        elif not self.wide:
            self.tensor.copy_(round_at_random(value, seed))

    def has_halves(self, gradient: Tensor) -> bool:
        """Whether the package's kernel updates the weight and the lower half of its master where they are."""
        known = self.rule in ("adamw", "adamw8bit") and "low" in self.state and self.tensor.is_contiguous()
        return known and native.fits(self.tensor) and native.fits(gradient)

    def fingerprint(self) -> list[int]:
        """Sums of the bits of its fp32 value, run by run: tells a change without a copy."""
        kept = [self.tensor, *(self.state[name] for name in ("low", "master") if name in self.state)]
        return [each for tensor in kept for each in bit_sums(tensor)]


class Optimizer:
    """Moves `parameters` by given gradients. `updates` counts the steps made."""

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        config: OptimizerConfig,
        *,
        seed: int = 0,
        parts: Mapping[str, Sequence[slice]] | None = None,
        lora_plus: float = 1.0,
    ) -> None:
        """`parts`: see `part_rows`. `lora_plus`: rate of lora_B over that of lora_A."""
        self.config, self.seed, self.updates = config, seed, 0
        self._weights = []
        for name, tensor in parameters.items():
            rule = _rule(config.name, name, tensor)
            ratio = lora_plus if name.endswith("lora_B") else 1.0
            decay = config.weight_decay if tensor.dim() == 2 else 0.0
            rows = (parts or {}).get(name, ()) if rule == "muon" else ()
            weight = _Weight(name, tensor, rule, ratio, decay, rows)
            weight.state = _fresh(weight, config.master)
            self._weights.append(weight)

    def tensors(self) -> dict[str, Tensor]:
        """What is remembered, by "kind/parameter"."""
        return {f"{kind}/{w.name}": tensor for w in self._weights for kind, tensor in w.state.items()}

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor], updates: int, origin: str) -> None:
        """Put stored tensors back; IntegrityError names one of another optimizer or model, and nothing is changed."""
        own = self.tensors()
        wanted, found = (
            {name: (list(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in each.items()}
            for each in (own, tensors)
        )
        if wrong := sorted(name for name in wanted | found if wanted.get(name) != found.get(name)):
            is_, must = (each.get(wrong[0], "nothing") for each in (found, wanted))
            raise IntegrityError(f"{origin}: tensor '{wrong[0]}' is {is_}, this training needs {must}")
        for name, tensor in own.items():
            tensor.copy_(tensors[name])
        self.updates = updates

    @torch.no_grad()
    def step(
        self, gradients: Mapping[str, Tensor], rate: float, *, scale: float = 1.0, watch: bool = False
    ) -> list[str]:
        """One update with gradients times `scale` (they may be changed). `watch`: names of parameters that kept every
        bit of their fp32 value; otherwise the list is empty."""
        same: list[str] = []
        plain: dict[tuple[float, float, torch.dtype], list[tuple[_Weight, Tensor]]] = {}
        for index, weight in enumerate(self._weights):
            if (gradient := gradients.get(weight.name)) is None:
                continue
            if weight.rule == "adamw" and weight.wide and not watch:
                plain.setdefault((weight.ratio, weight.decay, weight.tensor.dtype), []).append((weight, gradient))
                continue
            if weight.has_halves(gradient):
                sums = weight.fingerprint() if watch else []
                self._by_kernel(weight, None, gradient, rate * weight.ratio, scale)
                same += [weight.name] if watch and sums == weight.fingerprint() else []
                continue
            value = weight.value()
            sums = bit_sums(value) if watch else []
            if _has_kernel(weight, value, gradient):
                self._by_kernel(weight, value, gradient, rate * weight.ratio, scale)
            else:
                gradient = gradient.to(value.dtype)
                self._update(weight, value, gradient.mul_(scale) if scale != 1.0 else gradient, rate * weight.ratio)
            same += [weight.name] if watch and sums == bit_sums(value) else []
            weight.put(value, draw_seed(self.seed, self.updates, index))
        for (ratio, decay, _), pairs in plain.items():
            listed = [gradient for _, gradient in pairs]
            if scale != 1.0:
                torch._foreach_mul_(listed, scale)
            self._adamw([w.tensor for w, _ in pairs], listed, [w.state for w, _ in pairs], rate * ratio, decay)
        self.updates += 1
        return same

    def _update(self, weight: _Weight, value: Tensor, gradient: Tensor, rate: float) -> None:
        if weight.rule == "muon":
            self._muon(weight, value, gradient, rate)
        elif weight.rule == "adamw8bit":
            config, state = self.config, weight.state
            value.mul_(1.0 - rate * weight.decay)
            adamw8bit_(value, gradient, state, rate=rate, betas=config.betas, eps=config.eps, step=self.updates + 1)
        else:
            self._adamw([value], [gradient], [weight.state], rate, weight.decay)

    def _adamw(
        self,
        values: list[Tensor],
        gradients: list[Tensor],
        states: list[dict[str, Tensor]],
        rate: float,
        decay: float,
    ) -> None:
        first, second = self.config.betas
        adamw(
            values,
            gradients,
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [torch.tensor(float(self.updates), device=value.device) for value in values],
            fused=True,
            amsgrad=False,
            beta1=first,
            beta2=second,
            lr=rate,
            weight_decay=decay,
            eps=self.config.eps,
            maximize=False,
        )

    def _by_kernel(self, weight: _Weight, value: Tensor | None, gradient: Tensor, rate: float, scale: float) -> None:
        """AdamW in one pass by a gradient as it came, of an fp32 value or, without one, of the weight and its half."""
        state, (first, second) = weight.state, self.config.betas
        moments = [state["exp_avg"], state["exp_avg_sq"]] if weight.rule == "adamw" else kernel_state(state)
        native.call(
            weight.rule,
            native.HALVES if value is None else native.dtype_code(value),
            native.dtype_code(gradient),
            *((state["low"], weight.tensor) if value is None else (value, None)),
            *(gradient.contiguous(), *moments, gradient.numel()),
            *(rate, first, second, self.config.eps, weight.decay),
            *(1.0 - first ** (self.updates + 1), 1.0 - second ** (self.updates + 1), scale),
        )

    def _muon(self, weight: _Weight, value: Tensor, gradient: Tensor, rate: float) -> None:
        """Nesterov momentum, orthogonalised part by part: q, k and v are matrices of their own."""
        moved, momentum = weight.state["momentum"], self.config.momentum
        moved.lerp_(gradient, 1.0 - momentum)
        update = gradient.lerp_(moved, momentum)
        value.mul_(1.0 - rate * weight.decay)
        for rows in weight.rows or (slice(None),):
            part = value[rows]
            part.add_(newton_schulz(update[rows]).to(value.dtype), alpha=-rate * RMS * math.sqrt(max(part.shape)))


def _has_kernel(weight: _Weight, value: Tensor, gradient: Tensor) -> bool:
    """Where the package's own kernel pays: for plain fp32 weights torch's takes all of them in one call."""
    own = weight.rule == "adamw8bit" or (weight.rule == "adamw" and not weight.wide)
    return own and value.dtype == torch.float32 and native.fits(value) and native.fits(gradient)


def _rule(chosen: str, name: str, tensor: Tensor) -> str:
    """Muon takes the matrices of the layers; embedding, head, norms and biases are AdamW's."""
    if chosen == "muon":
        return "muon" if tensor.dim() == 2 and "layers." in name else "adamw"
    return "adamw" if chosen == "adamw8bit" and tensor.numel() < LEAST else chosen


def _fresh(weight: _Weight, master: bool) -> dict[str, Tensor]:
    tensor = weight.tensor.detach()
    like = tensor if weight.wide else torch.empty(tensor.shape, dtype=torch.float32, device=tensor.device)
    state: dict[str, Tensor] = {}
    if not weight.wide and master:
        halves = tensor.dtype == torch.bfloat16
        state |= {"low": torch.zeros_like(tensor, dtype=torch.int16)} if halves else {"master": tensor.float()}
    if weight.rule == "muon":
        return state | {"momentum": torch.zeros_like(like)}
    if weight.rule == "adamw8bit":
        return state | empty_state(like)
    return state | {"exp_avg": torch.zeros_like(like), "exp_avg_sq": torch.zeros_like(like)}
