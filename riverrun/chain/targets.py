"""Targets of the spec against predictions: what each form a model may be served in will need and reach."""

from __future__ import annotations

from typing import Any

from riverrun.chain.candidates import Candidate, kept_models
from riverrun.chain.machine import dtype_name
from riverrun.chain.planning import ANSWER_TOKENS, SLOT_TOKENS, TURN_TOKENS
from riverrun.chain.spec import AppSpec
from riverrun.chain.stage import Context
from riverrun.models.config import ModelConfig
from riverrun.plan.hardware import Hardware
from riverrun.plan.memory import inference_memory
from riverrun.plan.serving import Asking, Form, Target, judge_targets, serving_forms

__all__ = ["beside_bytes", "drafts_of", "predict_forms", "predict_targets", "serving_memory"]

QUESTION_TOKENS = 15
CALL_TOKENS = 40


def drafts_of(spec: AppSpec) -> int:
    """Calls sampled for each question, where the agent has such a setting."""
    return int(getattr(spec.agent, "drafts", 1) or 1)


def serving_memory(spec: AppSpec, shape: ModelConfig) -> int:
    """Predicted bytes of the process that serves one such model."""
    dtype, slots = dtype_name(spec.finetune.dtype), spec.deploy.slots
    tokens = slots * SLOT_TOKENS
    return inference_memory(shape, weights=dtype, cache_dtype=dtype, cache_tokens=tokens, rows=slots).total


def beside_bytes(ctx: Context) -> int:
    """Predicted bytes of the larger models of this machine that are served beside the tuned one."""

    def need(candidate: Candidate) -> int:
        if candidate.endpoint is not None:
            return 0
        return serving_memory(ctx.spec, ctx.parts.load("load_config")(candidate.fetch()))

    return sum(need(candidate) for candidate in kept_models(ctx)[1:])


def predict_forms(spec: AppSpec, shape: ModelConfig, hardware: Hardware, *, tuned: bool, beside: int) -> list[Form]:
    """The forms as the engine of this machine would serve them."""
    return serving_forms(
        shape,
        hardware,
        dtype=dtype_name(spec.finetune.dtype),
        asking=Asking(QUESTION_TOKENS + TURN_TOKENS, CALL_TOKENS, TURN_TOKENS, ANSWER_TOKENS, drafts_of(spec)),
        slots=spec.deploy.slots,
        slot_tokens=SLOT_TOKENS,
        rank=spec.finetune.rank if tuned else 0,
        beside_bytes=beside,
    )


def predict_targets(spec: AppSpec, forms: list[Form]) -> list[str]:
    """A sentence for each target that is predicted to be missed; CapacityError when it is by far."""
    stated = spec.targets
    rows: list[tuple[str, float | None, Any, bool, str]] = [
        ("rps", stated.rps, lambda form: form.rps, True, "answers a second"),
        ("p95_ttft_ms", stated.p95_ttft_ms, lambda form: 1000 * form.ttft_seconds, False, "ms on an idle server"),
        ("memory_gb", stated.memory_gb, lambda form: form.memory_bytes / 1e9, False, "GB"),
    ]
    targets = [
        Target(name, value, {form.name: figure(form) for form in forms}, higher, unit)
        for name, value, figure, higher, unit in rows
        if value is not None
    ]
    return judge_targets(targets)
