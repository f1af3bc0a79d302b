"""Which way of training to take on this memory, with what settings, and why. Refuses when none fits.

The order under `auto`: none when the untuned model meets the bar already; full fine-tuning when it fits and there are
as many rows as the tuning study wants for it, or as many label tokens as weights (below that it gains little over
LoRA and forgets more, arXiv:2405.09673); else LoRA; else QLoRA. Within a method the settings of `_settings` are tried
from the fastest to the smallest, so that with more memory neither micro-batch nor rank ever becomes smaller.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from riverrun.base.errors import CapacityError, InputError
from riverrun.plan.compute import training_flops, training_seconds
from riverrun.plan.hardware import Hardware
from riverrun.plan.memory import Estimate, inference_memory
from riverrun.plan.shape import LINEARS, ModelShape, lora_parameters, parameters
from riverrun.plan.tables import read_values
from riverrun.plan.training import Batch, Setup, TrainMethod, training_memory
from riverrun.plan.tuning import advise, threshold

__all__ = ["Choice", "Method", "Plan", "Work", "choose", "wanted_rank"]

Choice = Literal["auto", "full", "lora", "qlora", "none"]


@dataclass(frozen=True, slots=True)
class Work:
    """The training to plan for. tokens: all that are computed, over all epochs. length: mean tokens of a document.

    rows: different documents, 0 where that is not known; then the tuning study is not asked.
    micro_tokens: the largest micro-batch; smaller ones are tried down to `least_tokens`. rank 0 and recompute None are
    chosen. dtype: of weights and activations; compute: the operands' type for the rate. global_tokens: of a step (0:
    one micro-batch).
    """

    tokens: int
    label_tokens: int
    micro_tokens: int
    length: int
    least_tokens: int = 256
    global_tokens: int = 0
    steps: int = 0
    rank: int = 16
    targets: tuple[str, ...] = LINEARS
    dtype: str = "fp32"
    compute: str = "fp32"
    recompute: float | None = 0.0
    optimizer: str = "adamw"
    master: bool = True
    native: bool = True
    rows: int = 0

    def __post_init__(self) -> None:
        if self.tokens < 1 or not 0 <= self.label_tokens <= self.tokens:
            raise InputError(f"need tokens >= label tokens >= 0, got {self.tokens} and {self.label_tokens}")
        if not 1 <= self.least_tokens <= self.micro_tokens:
            raise InputError(f"need micro_tokens >= least_tokens >= 1, got {self.micro_tokens} and {self.least_tokens}")

    @property
    def label_share(self) -> float:
        return self.label_tokens / self.tokens

    def batch(self, tokens: int, recompute: float = 0.0) -> Batch:
        rows = min(tokens, -(-tokens * self.label_tokens // self.tokens))
        return Batch(tokens, rows, self.dtype, recompute, self.native)

    def setup(self, method: TrainMethod, rank: int, tokens: int) -> Setup:
        micro = -(-self.global_tokens // tokens) if self.global_tokens else 1
        return Setup(method, rank or 1, self.targets, self.optimizer, micro, master=self.master)


@dataclass(frozen=True)
class Method:
    """One way and its price: the first settings tried that fit, or the smallest. rank 0: it has none."""

    name: str
    memory_bytes: int
    seconds: float
    fits: bool
    reason: str
    micro_tokens: int
    items: tuple[dict[str, Any], ...]
    recompute: float = 0.0
    rank: int = 0
    notes: tuple[str, ...] = ()


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
    offered: Sequence[TrainMethod] = get_args(TrainMethod),
    available_bytes: int | None = None,
    base_bytes: int | None = None,
    score: float | None = None,
    bar: float | None = None,
) -> Plan:
    """Price every offered way of training and no training, and choose.

    available_bytes: memory to stay in (default all of the hardware's). score: the untuned model's, to be held against
    `bar`. CapacityError with both figures when the asked method, or under `auto` every one that could meet the bar,
    needs more than there is.
    """
    available = hardware.memory_bytes if available_bytes is None else available_bytes
    ways = {name: _training(name, shape, hardware, work, available, base_bytes) for name in offered}
    none = _untuned(shape, work, available, base_bytes)
    methods = (*ways.values(), none)
    if method not in ("auto", "none", *ways):
        raise InputError(f"method {method} is not offered here, offered: {', '.join(ways)}")
    if not none.fits and "qlora" not in ways:
        raise CapacityError(
            f"the model alone needs {_gb(none.memory_bytes)} and {_gb(available)} are available: free memory or "
            "choose a smaller model"
        )
    if method != "auto":
        asked = next(each for each in methods if each.name == method)
        if not asked.fits:
            raise CapacityError(_too_large([asked], ways.values(), available, bar, score))
        return Plan(methods, method, f"asked for; {asked.reason}", available)
    if score is not None and bar is not None and score >= bar:
        return Plan(methods, "none", f"the untuned model scores {score:.3g}, the bar is {bar:.3g}", available)
    enough, data = _enough(shape, work)
    reasons: list[str] = []
    for name, way in ways.items():
        if way.fits and (name != "full" or enough):
            reasons += [data] if name == "full" else []
            return Plan(methods, name, "; ".join([*reasons, way.reason]), available)
        reasons.append(data if way.fits else way.reason)
    raise CapacityError(_too_large(list(ways.values()), (), available, bar, score))


def _enough(shape: ModelShape, work: Work) -> tuple[bool, str]:
    """Whether there is data enough to train all weights, and why; few rows are told of."""
    tokens = f"{work.label_tokens} label tokens for {parameters(shape)} weights"
    if work.label_tokens >= parameters(shape):
        return True, f"{tokens} are enough to train them all"
    if not work.rows or threshold("tuning_from_rows") is None:
        return False, tokens
    advice = advise(work.rows)
    return advice.method == "full", tokens if advice.method == "lora" else f"{tokens}; {advice.why}"


def wanted_rank(shape: ModelShape, label_tokens: int, targets: Sequence[str] = LINEARS) -> tuple[int, str]:
    """The rank for so many label tokens, and why: as many adapter weights as tokens, within the table's bounds.

    None is taken above the one that the tuning study found enough.
    """
    table = read_values("training", "choices")
    least, most = int(table["least_rank"]), int(threshold("enough_rank") or table["most_rank"])
    rank = least
    while rank < most and lora_parameters(shape, 2 * rank, targets) <= label_tokens:
        rank *= 2
    count = lora_parameters(shape, rank, targets)
    bound = {least: ", the least rank taken", most: ", the largest rank taken"}.get(rank, "")
    return rank, f"rank {rank}: {count} adapter weights for {label_tokens} label tokens{bound}"


def _settings(work: Work, rank: int, chosen_rank: bool) -> Iterator[tuple[int, float, int]]:
    """(micro-batch tokens, share of layers that run again, rank), from the fastest to the smallest.

    Down to `good_tokens` a smaller micro-batch costs less time than layers that run again. Last, a rank that was
    chosen here is halved.
    """
    table = read_values("training", "choices")
    good = min(work.micro_tokens, max(work.least_tokens, int(table["good_tokens"])))
    sizes, tokens = [work.micro_tokens], work.micro_tokens
    while tokens > work.least_tokens:
        tokens = max(work.least_tokens, tokens // 2)
        sizes.append(tokens)
    if work.recompute is not None:
        yield from ((size, work.recompute, rank) for size in sizes)
        last = work.recompute
    else:
        yield from ((size, 0.0, rank) for size in sizes if size >= good)
        least_good = min(size for size in sizes if size >= good)
        yield least_good, 0.5, rank
        yield from ((size, 1.0, rank) for size in sizes if size <= least_good)
        last = 1.0
    while chosen_rank and rank > int(table["least_rank"]):
        rank //= 2
        yield sizes[-1], last, rank


def _training(
    name: TrainMethod, shape: ModelShape, hardware: Hardware, work: Work, available: int, base_bytes: int | None
) -> Method:
    rank, why = (0, "") if name == "full" else (work.rank, "")
    if name != "full" and not work.rank:
        rank, why = wanted_rank(shape, work.label_tokens, work.targets)
    tokens, recompute, estimate = work.micro_tokens, 0.0, Estimate(())
    wanted = rank
    for tokens, recompute, rank in _settings(work, wanted, chosen_rank=name != "full" and not work.rank):
        setup = work.setup(name, rank, tokens)
        estimate = training_memory(shape, work.batch(tokens, recompute), setup, base_bytes=base_bytes)
        if estimate.total <= available:
            break
    if why and rank < wanted:
        why = f"rank {rank}: the memory has no room for rank {wanted}"
    flops = training_flops(
        shape,
        name,
        length=work.length,
        label_share=work.label_share,
        rank=rank,
        targets=work.targets,
        recompute=recompute,
    )
    trained = work.setup(name, rank, tokens).trained(shape)
    seconds = training_seconds(flops * work.tokens, hardware, dtype=work.compute, steps=work.steps, trained=trained)
    how = f"micro-batches of {tokens} tokens"
    if recompute:
        how += f" and {'every layer' if recompute == 1 else f'{recompute:.0%} of the layers'} run again"
    made = _priced(name, estimate, seconds, available, tokens, how)
    return Method(**{**_fields(made), "recompute": recompute, "rank": rank, "notes": (why,) if why else ()})


def _fields(method: Method) -> dict[str, Any]:
    return {name: getattr(method, name) for name in Method.__dataclass_fields__}


def _untuned(shape: ModelShape, work: Work, available: int, base_bytes: int | None) -> Method:
    estimate = inference_memory(shape, weights=work.dtype, cache_dtype=work.dtype, base_bytes=base_bytes)
    return _priced("none", estimate, 0.0, available, 0, "inference only")


def _priced(name: str, estimate: Estimate, seconds: float, available: int, tokens: int, how: str) -> Method:
    fits = estimate.total <= available
    verb = "fits" if fits else "does not fit"
    reason = f"{name} {verb}: {_gb(estimate.total)} of {_gb(available)} with {how}"
    items = tuple(asdict(item) for item in estimate.items)
    return Method(name, estimate.total, seconds, fits, reason, tokens, items)


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f} GB"


def _too_large(methods: Sequence[Method], others: Any, available: int, bar: float | None, score: float | None) -> str:
    """What was asked for, what it needs at least, and the nearest thing that fits."""
    least = min(methods, key=lambda each: each.memory_bytes)
    goal = "the training"
    if bar is not None:
        known = "" if score is None else f" (untuned: {score:.3g})"
        goal = f"the bar {bar:.3g}{known} needs a training, and it"
    fitting = [each for each in others if each.fits]
    advice = "free memory, choose a smaller model or lower the bar"
    if fitting:
        best = max(fitting, key=lambda each: each.memory_bytes)
        advice = f"{best.name} needs {_gb(best.memory_bytes)} and fits, or free memory"
    again = " and every layer run again" if least.recompute == 1 else ""
    return (
        f"{goal} does not fit into this memory: {least.name} with micro-batches of {least.micro_tokens} tokens{again} "
        f"needs {_gb(least.memory_bytes)} and {_gb(available)} are available: {advice}"
    )
