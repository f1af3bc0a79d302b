"""Which way of fine-tuning to take on this memory, and why. Refuses when none fits.

The order under `auto`: none when the untuned model meets the bar already; full fine-tuning when it fits and there are
as many label tokens as weights (below that it gains little over LoRA and forgets more, arXiv:2405.09673); else LoRA.
A method that does not fit is tried with smaller micro-batches first, down to `least_tokens`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from riverrun.base.errors import CapacityError, InputError
from riverrun.plan.compute import Training, training_flops, training_seconds
from riverrun.plan.hardware import Hardware
from riverrun.plan.memory import Batch, Estimate, full_memory, inference_memory, lora_memory
from riverrun.plan.shape import LINEARS, ModelShape, lora_parameters, parameters

__all__ = ["Choice", "Method", "Plan", "Work", "choose"]

Choice = Literal["auto", "full", "lora", "none"]


@dataclass(frozen=True, slots=True)
class Work:
    """The fine-tune to plan for. tokens: all that are computed, over all epochs. length: mean tokens of a document.

    weights, dtype: how frozen weights are stored and what activations are; compute: the operands' type for the rate.
    """

    tokens: int
    label_tokens: int
    micro_tokens: int
    length: int
    least_tokens: int = 256
    steps: int = 0
    rank: int = 16
    targets: tuple[str, ...] = LINEARS
    weights: str = "fp32"
    dtype: str = "fp32"
    compute: str = "fp32"
    head_rows: int = 0
    recompute: bool = False

    def __post_init__(self) -> None:
        if self.tokens < 1 or not 0 <= self.label_tokens <= self.tokens:
            raise InputError(f"need tokens >= label tokens >= 0, got {self.tokens} and {self.label_tokens}")
        if not 1 <= self.least_tokens <= self.micro_tokens:
            raise InputError(f"need micro_tokens >= least_tokens >= 1, got {self.micro_tokens} and {self.least_tokens}")

    @property
    def label_share(self) -> float:
        return self.label_tokens / self.tokens

    def batch(self, tokens: int) -> Batch:
        rows = min(tokens, -(-tokens * self.label_tokens // self.tokens))
        return Batch(tokens, rows, self.dtype, self.head_rows, self.recompute)


@dataclass(frozen=True)
class Method:
    """One way and its price. micro_tokens is the largest micro-batch tried that fits, or the smallest tried."""

    name: str
    memory_bytes: int
    seconds: float
    fits: bool
    reason: str
    micro_tokens: int
    items: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Plan:
    methods: tuple[Method, ...]
    chosen: str
    why: str
    available_bytes: int

    def method(self, name: str = "") -> Method:
        """The method of that name, by default the chosen one."""
        return next(method for method in self.methods if method.name == (name or self.chosen))

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def choose(
    shape: ModelShape,
    hardware: Hardware,
    work: Work,
    *,
    method: Choice = "auto",
    available_bytes: int | None = None,
    base_bytes: int | None = None,
    score: float | None = None,
    bar: float | None = None,
) -> Plan:
    """Price full, LoRA and no fine-tuning, and choose.

    available_bytes: memory to stay in (default all of the hardware's). score: the untuned model's, to be held against
    `bar`. CapacityError with both figures when the asked method, or under `auto` every one that could meet the bar,
    needs more than there is.
    """
    available = hardware.memory_bytes if available_bytes is None else available_bytes
    trainings: tuple[Training, ...] = ("full", "lora")
    methods = [_training(name, shape, hardware, work, available, base_bytes) for name in trainings]
    methods.append(_untuned(shape, work, available, base_bytes))
    full, lora, none = methods
    if not none.fits:
        raise CapacityError(
            f"the model alone needs {_gb(none.memory_bytes)} and {_gb(available)} are available: free memory or "
            "choose a smaller model"
        )
    if method != "auto":
        asked = next(each for each in methods if each.name == method)
        if not asked.fits:
            raise CapacityError(_too_large([asked], available, bar, score))
        return Plan(tuple(methods), method, f"asked for; {asked.reason}", available)
    met = score is not None and bar is not None and score >= bar
    if met:
        return Plan(tuple(methods), "none", f"the untuned model scores {score:.3g}, the bar is {bar:.3g}", available)
    if full.fits and work.label_tokens >= parameters(shape):
        why = f"{work.label_tokens} label tokens for {parameters(shape)} weights are enough to train them all"
        return Plan(tuple(methods), "full", f"{why}; {full.reason}", available)
    if lora.fits:
        why = f"{work.label_tokens} label tokens for {parameters(shape)} weights" if full.fits else full.reason
        return Plan(tuple(methods), "lora", f"{why}; {lora.reason}", available)
    raise CapacityError(_too_large([full, lora], available, bar, score))


def _training(
    name: Training, shape: ModelShape, hardware: Hardware, work: Work, available: int, base_bytes: int | None
) -> Method:
    tokens = work.micro_tokens
    estimate = _memory(name, shape, work, tokens, base_bytes)
    while estimate.total > available and tokens > work.least_tokens:
        tokens = max(work.least_tokens, tokens // 2)
        estimate = _memory(name, shape, work, tokens, base_bytes)
    rank = work.rank if name == "lora" else 0
    flops = training_flops(
        shape,
        name,
        length=work.length,
        label_share=work.label_share,
        rank=rank,
        targets=work.targets,
        recompute=work.recompute,
    )
    trained = lora_parameters(shape, rank, work.targets) if name == "lora" else parameters(shape)
    seconds = training_seconds(flops * work.tokens, hardware, dtype=work.compute, steps=work.steps, trained=trained)
    return _priced(name, estimate, seconds, available, tokens, f"micro-batches of {tokens} tokens")


def _memory(name: Training, shape: ModelShape, work: Work, tokens: int, base_bytes: int | None) -> Estimate:
    batch = work.batch(tokens)
    if name == "full":
        return full_memory(shape, batch, base_bytes=base_bytes)
    return lora_memory(shape, batch, rank=work.rank, targets=work.targets, weights=work.weights, base_bytes=base_bytes)


def _untuned(shape: ModelShape, work: Work, available: int, base_bytes: int | None) -> Method:
    estimate = inference_memory(shape, weights=work.weights, cache_dtype=work.dtype, base_bytes=base_bytes)
    return _priced("none", estimate, 0.0, available, 0, "inference only")


def _priced(name: str, estimate: Estimate, seconds: float, available: int, tokens: int, how: str) -> Method:
    fits = estimate.total <= available
    verb = "fits" if fits else "does not fit"
    reason = f"{name} {verb}: {_gb(estimate.total)} of {_gb(available)} with {how}"
    items = tuple(asdict(item) for item in estimate.items)
    return Method(name, estimate.total, seconds, fits, reason, tokens, items)


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f} GB"


def _too_large(methods: Sequence[Method], available: int, bar: float | None, score: float | None) -> str:
    least = min(methods, key=lambda each: each.memory_bytes)
    goal = "the fine-tune"
    if bar is not None:
        known = "" if score is None else f" (untuned: {score:.3g})"
        goal = f"the bar {bar:.3g}{known} needs a fine-tune, and it"
    return (
        f"{goal} does not fit into this memory: {least.name} with micro-batches of {least.micro_tokens} tokens needs "
        f"{_gb(least.memory_bytes)} and {_gb(available)} are available: "
        "free memory, choose a smaller model or lower the bar"
    )
