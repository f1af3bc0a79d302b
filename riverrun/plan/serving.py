"""Serving: memory, speed and the first token of each form a model may be deployed in, and whether targets can be met.

The engine unpacks weights as it loads them, so the forms differ in their files, not in memory or speed. Figures are for
the best case: an idle server for the first token, all slots busy for answers a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from riverrun.base.errors import CapacityError
from riverrun.plan.compute import decode_seconds, forward_flops
from riverrun.plan.hardware import Hardware
from riverrun.plan.memory import inference_memory, weight_bytes
from riverrun.plan.shape import ModelShape, lora_parameters

__all__ = ["FAR_OFF", "Asking", "Form", "Target", "judge_targets", "serving_forms", "speed"]

FAR_OFF = 2.0
"""Predictions are rough: only what is off by more than this factor is refused."""


@dataclass(frozen=True, slots=True)
class Asking:
    """Tokens of one question to the agent. What all prompts begin with is computed once and not counted here.

    new: the question and its turn marks; call: of the tool call; result: what the tool gives; answer: of the text.
    drafts: calls that are sampled for each question.
    """

    new: int
    call: int
    result: int
    answer: int
    drafts: int = 1


@dataclass(frozen=True, slots=True)
class Form:
    """`tokens_per_second` of one sequence alone; `ttft_seconds` to the first text of an answer after its tool call."""

    name: str
    file_bytes: int
    memory_bytes: int
    tokens_per_second: float
    ttft_seconds: float
    rps: float


@dataclass(frozen=True, slots=True)
class Target:
    """A stated figure and each form's predicted one."""

    name: str
    stated: float
    predicted: dict[str, float]
    higher_is_better: bool
    unit: str

    def distance(self, form: str) -> float:
        """By which factor the form misses; at most 1 when it meets."""
        value = self.predicted[form]
        return self.stated / value if self.higher_is_better else value / self.stated


def speed(shape: ModelShape, hardware: Hardware, *, dtype: str, prompt_tokens: int) -> tuple[float, float]:
    """(tokens a second, seconds to the first token) of one sequence alone that computes all of its prompt."""
    step = decode_seconds(shape, hardware, weight_bytes=weight_bytes(shape, dtype), dtype=dtype)
    return 1 / step, _reading(shape, hardware, dtype, prompt_tokens) + step


def _reading(shape: ModelShape, hardware: Hardware, dtype: str, tokens: int) -> float:
    return tokens * forward_flops(shape, max(1, tokens), head_share=1 / max(1, tokens)) / hardware.rate(dtype)


def serving_forms(
    shape: ModelShape,
    hardware: Hardware,
    *,
    dtype: str,
    asking: Asking,
    slots: int,
    slot_tokens: int,
    rank: int,
    beside_bytes: int = 0,
) -> list[Form]:
    """16-bit, the 4-bit base beside its adapter (rank 0: no adapter, no such form), and merged in 4 bit.

    `beside_bytes`: of other models in the same process.
    """
    memory = inference_memory(
        shape, weights=dtype, cache_dtype=dtype, cache_tokens=slots * slot_tokens, rows=slots
    ).total
    read = weight_bytes(shape, dtype)
    alone = decode_seconds(shape, hardware, weight_bytes=read, dtype=dtype)
    drafting = decode_seconds(shape, hardware, weight_bytes=read, dtype=dtype, rows=asking.drafts)
    busy = decode_seconds(shape, hardware, weight_bytes=read, dtype=dtype, rows=slots) / slots
    reading = _reading(shape, hardware, dtype, asking.new) + _reading(shape, hardware, dtype, asking.result)
    first = reading + asking.call * drafting + alone
    whole = reading + (asking.drafts * asking.call + asking.answer) * busy
    files = {
        "16-bit": weight_bytes(shape, "bf16"),
        "q4-base-adapter": weight_bytes(shape, "q4_1") + 4 * (lora_parameters(shape, rank) if rank else 0),
        "q4-merged": weight_bytes(shape, "w4g64"),
    }
    if not rank:
        del files["q4-base-adapter"]
    return [Form(name, size, memory + beside_bytes, 1 / alone, first, 1 / whole) for name, size in files.items()]


def judge_targets(targets: Sequence[Target]) -> list[str]:
    """One sentence for each target that the nearest form misses; CapacityError for one that it misses by far."""
    missed = []
    for target in targets:
        nearest = min(target.predicted, key=target.distance)
        if (distance := target.distance(nearest)) <= 1:
            continue
        figures = (
            f"targets.{target.name} = {target.stated:g}: {nearest}, the nearest form, is predicted to reach "
            f"{target.predicted[nearest]:.3g} {target.unit}"
        )
        if distance > FAR_OFF:
            raise CapacityError(f"{figures}: change the target, take a smaller model or a faster machine")
        missed.append(f"{figures}; the load test will tell")
    return missed
