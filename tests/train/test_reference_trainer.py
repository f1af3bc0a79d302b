"""A whole fine-tune against a trainer written a second time: losses, norms, rates and the adapter it ends with."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from riverrun.data.tokens import TokenRow
from riverrun.models.io.adapter import adapter_tensors, add_adapters
from riverrun.models.io.hf import write_weights
from riverrun.models.load import load_checkpoint, load_model
from riverrun.train.config import FinetuneConfig
from riverrun.train.finetune import encode, finetune
from riverrun.train.sampler import PackSampler
from tests.naive_model import NaiveLlama
from tests.tiny_model import tiny_config, tiny_weights, write_rows, write_tiny

STEPS = 20
BETA1, BETA2, EPS = 0.9, 0.99, 1e-8


def rate(config: FinetuneConfig, step: int, total: int) -> float:
    """Linear rise over the warm-up's share of the steps, then down to 0 at the end (or not, if constant)."""
    rising = round(config.warmup * total)
    if step < rising:
        return config.learning_rate * (step + 1) / rising
    passed = (step - rising) / (total - rising)
    shape = {"linear": 1 - passed, "cosine": (1 + math.cos(math.pi * passed)) / 2, "constant": 1.0}
    return config.learning_rate * shape[config.schedule]


def reference(
    naive: NaiveLlama, leaves: dict[str, Tensor], steps: list[list[TokenRow]], config: FinetuneConfig
) -> list[dict[str, float]]:
    """AdamW with decoupled decay and a clipped gradient, from its paper (https://arxiv.org/abs/1711.05101)."""
    first, second = ({name: torch.zeros_like(leaf) for name, leaf in leaves.items()} for _ in range(2))
    out = []
    for step, rows in enumerate(steps):
        labels = sum(sum(row.learned[1:]) for row in rows)
        loss = torch.stack([naive.loss((row.ids, row.learned)) for row in rows]).sum() / labels
        loss.backward()
        grads = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
        assert len(grads) == len(leaves)
        norm = math.sqrt(sum(float((grad**2).sum()) for grad in grads.values()))
        scale, lr = min(1.0, config.clip_norm / norm), rate(config, step, len(steps))
        with torch.no_grad():
            for name, leaf in leaves.items():
                grad = grads[name] * scale
                first[name] = BETA1 * first[name] + (1 - BETA1) * grad
                second[name] = BETA2 * second[name] + (1 - BETA2) * grad**2
                mean = first[name] / (1 - BETA1 ** (step + 1))
                spread = (second[name] / (1 - BETA2 ** (step + 1))).sqrt()
                leaf -= lr * config.weight_decay * leaf + lr * mean / (spread + EPS)
                leaf.grad = None
        out.append({"loss": float(loss.detach()), "grad_norm": norm, "lr": lr, "label_tokens": labels})
    return out


@pytest.mark.parametrize(
    ("schedule", "changes"),
    [("linear", {}), ("cosine", {"tie_word_embeddings": False, "num_key_value_heads": 4})],
)
def test_twenty_steps_are_those_of_the_reference(schedule: str, changes: dict[str, Any], tmp_path: Path) -> None:
    base = write_tiny(tmp_path / "m", **changes)
    shape = tiny_config(**changes)
    calm = {name: w * 0.4 if w.dim() == 2 else w for name, w in tiny_weights(shape).items()}
    write_weights(base, shape, calm, torch.float32)
    rows = write_rows(tmp_path / "rows.jsonl", 20)
    config = FinetuneConfig(
        rank=4,
        alpha=8.0,
        epochs=10,
        micro_tokens=256,
        global_tokens=512,
        max_tokens=200,
        dtype="float32",
        learning_rate=5e-3,
        schedule=schedule,
        warmup=0.15,
        weight_decay=0.1,
        clip_norm=1.9,
        save_every=7,
        seed=3,
    )
    opened = load_checkpoint(base)
    encoded = encode(rows, opened, config).rows
    sampler = PackSampler(encoded, micro_tokens=256, packs_per_step=2, seed=3)
    order = [[row for pack in sampler.batch(i) for row in pack.rows] for i in range(sampler.total_steps(10))]
    fresh = load_model(opened, torch.float32)
    add_adapters(fresh, config.rank, config.alpha, seed=config.seed)
    naive = NaiveLlama(shape.to_hf(), {name: w.double() for name, w in load_file(base / "model.safetensors").items()})
    leaves = naive.adapt(adapter_tensors(fresh), config.alpha / config.rank, torch.float64)
    began = {name: leaf.detach().clone() for name, leaf in leaves.items()}
    wanted = reference(naive, leaves, order, config)

    finetune(base, rows, tmp_path / "out", config, work=tmp_path / "work")
    got = [json.loads(line) for line in (tmp_path / "out" / "loss.jsonl").read_text().splitlines()]
    stored = load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors")
    assert len(got) == len(wanted) >= STEPS
    assert any(row["grad_norm"] < config.clip_norm for row in wanted)
    assert any(row["grad_norm"] > config.clip_norm for row in wanted)
    for ours, theirs in zip(got, wanted, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
        assert ours["lr"] == pytest.approx(theirs["lr"], rel=1e-9)
        assert ours["label_tokens"] == theirs["label_tokens"]
    for name, leaf in leaves.items():
        moved = float((leaf.detach() - began[name]).norm())
        assert moved > 0
        assert float((stored[name].double() - leaf.detach()).norm()) < 1e-4 * moved, name
