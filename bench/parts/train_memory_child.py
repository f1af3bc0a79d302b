"""One training in a process of its own, measured: `python -m bench.parts.train_memory_child JOB ANSWER`.

The model has random weights; its shape, the method and the batch stand in the job. The peak is VmHWM, the baseline that
of the process before there is a model. With "group" in the job the process first enters that control group.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench.parts.memory_cgroup import enter


def peak_bytes() -> int:
    """VmHWM: what this process had resident at most."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def shape_of(job: Mapping[str, Any]) -> Any:
    """A preset, with changes where the job has some."""
    from riverrun.models.presets import load_preset

    preset = load_preset(job["preset"])
    changes = dict(job.get("changes") or {})
    if not changes:
        return preset
    if {"hidden_size", "num_attention_heads"} & set(changes) and "head_dim" not in changes:
        changes["head_dim"] = 0
    return type(preset).model_validate(preset.model_dump() | changes)


def measure(job: Mapping[str, Any]) -> dict[str, Any]:
    """Train `steps` steps of one micro-batch each; documents of equal length fill it."""
    import numpy as np
    import torch

    from bench.parts.random_nf4 import random_model, random_nf4
    from riverrun.base.memory import keep_freed_memory, return_freed_memory
    from riverrun.base.progress import Progress
    from riverrun.data.packing import Pack
    from riverrun.data.tokens import TokenRow
    from riverrun.models.io.adapter import add_adapters
    from riverrun.train.build import LOGIT_BYTES, is_short
    from riverrun.train.duration import Duration
    from riverrun.train.loop import LoopConfig, train
    from riverrun.train.loss import bound_logits
    from riverrun.train.objectives.supervised import Supervised
    from riverrun.train.recipe import OptimizerConfig

    short = is_short(job["method"], float(job.get("recompute", 0.0)))
    (return_freed_memory if short else keep_freed_memory)()
    if short:
        bound_logits(LOGIT_BYTES[job["method"]])
    torch.set_num_threads(job.get("threads") or torch.get_num_threads())
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[job.get("dtype", "bf16")]
    config = shape_of(job)
    warm = torch.ones(256, 256, dtype=dtype)
    (warm @ warm).sum()
    baseline, began = peak_bytes(), time.monotonic()
    model = random_nf4(config, dtype) if job["method"] == "qlora" else random_model(config, dtype)
    model.train()
    model.recompute = float(job.get("recompute", 0.0))
    if job["method"] == "full":
        model.train_all()
    else:
        add_adapters(model, job["rank"], 2.0 * job["rank"])
    model.refresh()
    loaded, loading = peak_bytes() - baseline, time.monotonic() - began
    rng, length = np.random.default_rng(0), job["micro_tokens"] // job.get("documents", 1)
    learned = round(length * job.get("label_share", 1.0))

    class Batches:
        def batch(self, step: int) -> list[Pack]:
            rows = []
            for number in range(job.get("documents", 1)):
                ids = rng.integers(0, config.vocab_size, length).tolist()
                flags = [place >= length - learned for place in range(length)]
                rows.append(TokenRow(f"{step}-{number}", tuple(ids), tuple(flags)))
            return [Pack.of(tuple(rows))]

    parameters: dict[str, Any] = {name: p for name, p in model.named_parameters() if p.requires_grad}
    rule = job.get("optimizer", "adamw")
    optimizer = OptimizerConfig(name=rule, learning_rate=1e-5, schedule="constant", warmup=0)
    loop = LoopConfig(length=Duration(job["steps"], "steps"), optimizer=optimizer, identity={})
    times: list[float] = [time.monotonic()]
    peaks: list[int] = []

    def after_step() -> None:
        model.refresh()
        times.append(time.monotonic())
        peaks.append(peak_bytes() - baseline)

    with tempfile.TemporaryDirectory() as work:
        result = train(
            parameters,
            Batches(),
            Supervised(model),
            after_step,
            loop,
            work=Path(work),
            progress=Progress("quiet"),
        )
    return {
        "baseline_bytes": baseline,
        "loaded_bytes": loaded,
        "grown_bytes": peak_bytes() - baseline,
        "vmhwm_bytes": peak_bytes(),
        "loading_seconds": loading,
        "seconds": [b - a for a, b in pairwise(times)],
        "step_peaks": peaks,
        "losses": [row["loss"] for row in result.losses],
        "parameters": config.num_parameters(),
        "trained": sum(p.numel() for p in parameters.values()),
    }


if __name__ == "__main__":
    asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    if asked.get("group"):
        enter(Path(asked["group"]))
    Path(sys.argv[2]).write_text(json.dumps(measure(asked)), encoding="utf-8")
