"""What is tried of each peer: its default, and the settings among which its best is looked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.parts.contest import Setting

__all__ = [
    "HF_DEFAULT",
    "LITGPT_DEFAULT",
    "LITGPT_PRETRAIN_DEFAULT",
    "TRL_DEFAULT",
    "Lines",
    "hf_lines",
    "litgpt_lines",
    "litgpt_pretrain_lines",
    "quick",
    "trl_lines",
]  # fmt: skip

Lines = dict[str, list[tuple[str, Setting]]]
BATCHES = (4, 8, 16)
TRL_DEFAULT: Setting = {"dtype": "float32"}
"""SFTConfig as it comes: batch 8, padded, activation checkpointing, fp32 weights multiplied in bf16."""
HF_DEFAULT: Setting = {"dtype": "float32"}
"""TrainingArguments as they come: batch 8, fp32, nothing compiled."""
LITGPT_DEFAULT: Setting = {}
"""Micro-batch 1 of a global batch of 16, bf16-mixed."""
LITGPT_PRETRAIN_DEFAULT: Setting = {}
"""Micro-batch 4, bf16-mixed, compiled."""
PACK = 1024


def _line(kind: str, given: Setting, batches: Sequence[int] = BATCHES) -> list[tuple[str, Setting]]:
    points = ((size, {**given, "per_device_train_batch_size": size}) for size in batches)
    return [(f"{kind}, batch {size}", setting) for size, setting in points]


def trl_lines(*, compiled: bool = True) -> Lines:
    """{padded, length-grouped, packed} x batch x {eager, compiled}: bf16 weights, checkpointing off."""
    plain = {"dtype": "bfloat16", "gradient_checkpointing": False}
    lines: Lines = {}
    for how in ("eager", "compiled") if compiled else ("eager",):
        base = plain | ({"torch_compile": True} if how == "compiled" else {})
        lines[f"padded {how}"] = _line(f"TRL padded {how}", base)
        grouped = base | {"train_sampling_strategy": "group_by_length"}
        lines[f"grouped {how}"] = _line(f"TRL grouped {how}", grouped)
        # a packed batch is one long sequence under a dense mask: small ones are where it is at its best
        packed = base | {"packing": True, "max_length": PACK}
        lines[f"packed {how}"] = _line(f"TRL packed {how}", packed, (1, 2, *BATCHES))
    eager = plain | {"train_sampling_strategy": "group_by_length", "attn_implementation": "eager"}
    lines["grouped, eager attention"] = _line("TRL grouped, eager attention", eager)
    return lines


def hf_lines(*, compiled: bool = True) -> Lines:
    """Batch x {eager, compiled} with bf16 weights, and fp32 weights multiplied in bf16."""
    batches = (2, 4, 8)
    lines: Lines = {
        "bf16 eager": _line("Trainer bf16 eager", {"dtype": "bfloat16"}, batches),
        "mixed eager": _line("Trainer mixed eager", {"dtype": "float32", "bf16": True}, batches),
    }
    if compiled:
        lines["bf16 compiled"] = _line("Trainer bf16 compiled", {"dtype": "bfloat16", "torch_compile": True}, batches)
    return lines


def litgpt_lines() -> Lines:
    """Micro-batch x precision; its LoRA compiles nothing."""
    return {
        precision: [
            (f"litgpt {precision}, micro-batch {size}", {"precision": precision, "train": {"micro_batch_size": size}})
            for size in (1, 4, 8, 16)
        ]
        for precision in ("bf16-true", "bf16-mixed")
    }


def litgpt_pretrain_lines(*, compiled: bool = True) -> Lines:
    """Micro-batch x {its own compiled step, the compiling taken out}, bf16 weights."""
    lines: Lines = {}
    for how in ("compiled", "eager") if compiled else ("eager",):
        given = {"precision": "bf16-true", "compile": how == "compiled"}
        lines[how] = [
            (f"litgpt bf16-true {how}, micro-batch {size}", {**given, "train": {"micro_batch_size": size}})
            for size in (2, 4, 8)
        ]
    return lines


def quick(lines: Mapping[str, Sequence[tuple[str, Setting]]], *names: str) -> Lines:
    """Only the points of these names, a line each."""
    wanted = {name: setting for points in lines.values() for name, setting in points if name in names}
    return {name: [(name, setting)] for name, setting in wanted.items()}
