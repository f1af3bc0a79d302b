"""Twelve trainings whose peak is predicted and measured: size, method, tokens, recompute, optimizer, vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.parts.train_memory_child import shape_of
from riverrun.plan.memory import Estimate
from riverrun.plan.training import Batch, Setup, training_memory

__all__ = ["SETTINGS", "predicted", "predicted_bytes"]


def _setting(preset: str, method: str, tokens: int, **more: Any) -> dict[str, Any]:
    return {"preset": preset, "method": method, "micro_tokens": tokens, "rank": 16, "steps": 3} | more


_WIDE = {"vocab_size": 152064}
_SMALL = {"num_hidden_layers": 8, "hidden_size": 384, "intermediate_size": 1024, "num_attention_heads": 6}
SETTINGS: dict[str, dict[str, Any]] = {
    "135M full": _setting("smollm2-135m", "full", 2048),
    "135M full, 8-bit Adam": _setting("smollm2-135m", "full", 4096, optimizer="adamw8bit", recompute=1.0),
    "135M full, muon": _setting("smollm2-135m", "full", 1024, optimizer="muon"),
    "135M full, 152k": _setting("smollm2-135m", "full", 4096, changes=_WIDE),
    "135M lora": _setting("smollm2-135m", "lora", 2048, documents=8),
    "135M lora, recompute": _setting("smollm2-135m", "lora", 4096, recompute=1.0, documents=4, label_share=0.3),
    "30M full": _setting("smollm2-135m", "full", 8192, changes=_SMALL | {"num_key_value_heads": 6}, documents=8),
    "360M lora, half": _setting("smollm2-360m", "lora", 2048, recompute=0.5, documents=4),
    "360M qlora": _setting("smollm2-360m", "qlora", 2048, documents=4, optimizer="adamw8bit"),
    "0.5B lora, 152k": _setting("qwen2.5-0.5b", "lora", 1024, documents=2, label_share=0.5),
    "0.4B full, 8-bit Adam": _setting(
        "qwen3-0.6b", "full", 512, changes={"num_hidden_layers": 14}, recompute=1.0, optimizer="adamw8bit"
    ),
    "1.2B qlora, 128k": _setting("llama3.2-1b", "qlora", 2048, recompute=1.0, optimizer="adamw8bit"),
}


def predicted(job: Mapping[str, Any]) -> Estimate:
    """The plan's estimate of a job of `train_memory_child`, line by line."""
    tokens = job["micro_tokens"]
    documents = job.get("documents", 1)
    labels = documents * (round(tokens // documents * job.get("label_share", 1.0)))
    batch = Batch(tokens, min(tokens, labels), job.get("dtype", "bf16"), job.get("recompute", 0.0))
    setup = Setup(job["method"], rank=job["rank"], optimizer=job.get("optimizer", "adamw"))
    return training_memory(shape_of(job), batch, setup, base_bytes=0)


def predicted_bytes(job: Mapping[str, Any]) -> int:
    """Above the bare process."""
    return predicted(job).total


"""Peak less the process before there was a model."""
