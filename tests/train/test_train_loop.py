"""The loop's guards and ends, on an objective of a few numbers; the recipe's runs on a tiny model."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from riverrun.base.errors import RiverrunError
from riverrun.base.progress import Progress
from riverrun.data.packing import Pack
from riverrun.data.tokens import TokenRow
from riverrun.train import guard
from riverrun.train.checkpoint import latest
from riverrun.train.duration import Duration, parse_duration
from riverrun.train.log import TrainLog
from riverrun.train.loop import STOP, Hooks, LoopConfig, LoopResult, train
from riverrun.train.objectives import Loss
from riverrun.train.recipe import OptimizerConfig

PACK = Pack.of((TokenRow("r", (1, 2, 3, 4), (False, True, True, True)),))
SETTINGS = OptimizerConfig(learning_rate=0.1, schedule="constant", warmup=0.0, clip_norm=1e9)


class Packs:
    """Two micro-batches a step."""

    def batch(self, step: int) -> list[Pack]:
        return [PACK, PACK]


class Toy:
    name = "toy"

    def __init__(self, loss: Callable[[], Tensor]) -> None:
        self.loss, self.calls = loss, 0

    def count(self, batch: Pack) -> int:
        return batch.label_tokens

    def __call__(self, batch: Pack) -> Loss:
        self.calls += 1
        return Loss(self.loss(), {"calls": 3.0})


def run(
    weights: dict[str, Tensor],
    loss: Callable[[], Tensor],
    work: Path,
    steps: int = 5,
    hooks: Hooks = Hooks(),
    **more: Any,
) -> LoopResult:
    more = {"length": Duration(steps, "steps"), "optimizer": SETTINGS, "identity": {"run": "toy"}} | more
    return train(
        weights,
        Packs(),
        Toy(loss),
        lambda: None,
        LoopConfig(**more),
        work=work,
        progress=Progress("quiet"),
        hooks=hooks,
    )


def leaf(*values: float, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.tensor(values, dtype=dtype, requires_grad=True)


def test_sums_are_divided_by_the_global_count(tmp_path: Path) -> None:
    w = leaf(1.0, 2.0)
    result = run({"w": w}, lambda: (w * w).sum(), tmp_path, steps=1)
    assert result.losses[0]["loss"] == pytest.approx(2 * 5.0 / 6)
    assert result.losses[0]["grad_norm"] == pytest.approx(math.sqrt(4 + 16) * 2 / 6)
    assert result.losses[0]["calls"] == pytest.approx(6.0 / 6)
    assert result.losses[0]["label_tokens"] == 6


def test_a_stop_file_saves_and_ends_and_the_next_run_goes_on(tmp_path: Path) -> None:
    def squared(w: Tensor) -> Tensor:
        return (w * w).sum()

    straight = leaf(1.0, 2.0)
    run({"w": straight}, lambda: squared(straight), tmp_path / "straight")
    w = leaf(1.0, 2.0)
    work = tmp_path / "work"
    work.mkdir()
    (work / STOP).touch()
    result = run({"w": w}, lambda: squared(w), work)
    assert (result.status, len(result.losses)) == ("stopped", 1)
    assert not (work / STOP).exists()
    again = leaf(9.0, 9.0)
    result = run({"w": again}, lambda: squared(again), work)
    assert (result.status, result.resumed_from, len(result.losses)) == ("done", 1, 5)
    assert torch.equal(again, straight)


def test_a_time_limit_saves_and_ends(tmp_path: Path) -> None:
    w = leaf(1.0)
    result = run({"w": w}, lambda: (w * w).sum(), tmp_path, time_limit=1e-9)
    assert (result.status, len(result.losses)) == ("time limit", 1)
    saved = latest(tmp_path, identity={"run": "toy"})
    assert saved is not None
    assert saved.step == 1


@pytest.mark.parametrize(("length", "steps"), [("7 tokens", 1), ("8 tokens", 1), ("9 tokens", 2), ("3 steps", 3)])
def test_lengths_in_steps_and_tokens(length: str, steps: int, tmp_path: Path) -> None:
    w = leaf(1.0)
    result = run({"w": w}, lambda: (w * w).sum(), tmp_path, length=parse_duration(length))
    assert len(result.losses) == steps


def test_a_length_in_seconds_ends_and_its_rate_starts_above_0(tmp_path: Path) -> None:
    w = leaf(1.0)
    settings = OptimizerConfig(learning_rate=0.1, schedule="cosine", warmup=0.5)
    result = run({"w": w}, lambda: (w * w).sum(), tmp_path, length=Duration(0.05, "seconds"), optimizer=settings)
    rates = [row["lr"] for row in result.losses]
    assert result.seconds >= 0.05
    assert rates[0] > 0
    assert max(rates) <= 0.1


@pytest.mark.parametrize("most", [0, 2])
def test_steps_without_a_finite_gradient_are_refused_or_skipped(most: int, tmp_path: Path) -> None:
    w, seen = leaf(1.0), 0

    def loss() -> Tensor:
        nonlocal seen
        seen += 1
        return (w * w).sum() * (math.nan if seen in (3, 7, 11) else 1.0)

    text = rf"^step {2 if most == 0 else 6}: loss nan and gradient norm nan are not finite"
    with pytest.raises(RiverrunError, match=text):
        run({"w": w}, loss, tmp_path, steps=8, skip_nonfinite=most)
    seen = 7 if most else 100
    kept = leaf(1.0)
    result = run({"w": kept}, lambda: (kept * kept).sum(), tmp_path / "fine", steps=8, skip_nonfinite=most)
    assert len(result.losses) == 8


def test_a_skipped_step_moves_nothing(tmp_path: Path) -> None:
    w, seen = leaf(1.0), 0
    values = []

    def loss() -> Tensor:
        nonlocal seen
        seen += 1
        values.append(float(w.detach()))
        return (w * w).sum() * (math.inf if seen == 4 else 1.0)

    run({"w": w}, loss, tmp_path, steps=4, skip_nonfinite=1)
    assert values[2] == values[3] == values[4] == values[5]
    assert values[6] != values[5]


def test_float16_lowers_its_loss_scale_until_gradients_fit_and_raises_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "GROWS_AFTER", 4)
    half, full = leaf(2.0, dtype=torch.float16), leaf(2.0)
    log = TrainLog(tmp_path / "log.jsonl")
    run({"w": half}, lambda: (half * 900.0).float().sum(), tmp_path / "half", 16, Hooks(log=log), loss_scaling=True)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    rows = [line for line in lines if line["event"] == "step"]
    scales = [row["loss_scale"] for row in rows]
    lowest = min(scales)
    assert lowest <= 65504 / 150 < 2 * lowest
    assert scales[: scales.index(lowest) + 1] == [2.0**16 / 2 ** (n + 1) for n in range(scales.index(lowest) + 1)]
    assert max(scales[scales.index(lowest) :]) == 2 * lowest
    good = sum(math.isfinite(row["grad_norm"]) for row in rows)
    run({"w": full}, lambda: (full * 900.0).sum(), tmp_path / "full", good)
    assert float(half.detach()) == pytest.approx(float(full.detach()), rel=1e-3)
    assert all(row["skipped"] == 0 for row in rows)


def test_parameters_without_gradient_and_without_movement_are_named(tmp_path: Path) -> None:
    w, idle, frozen = leaf(1.0), leaf(1.0), leaf(1.0)
    text = r"step 1: 1 of 3 parameters got no gradient \(idle\) and 1 of 3 parameters did not move \(frozen\)"
    with pytest.raises(RiverrunError, match=text):
        run({"w": w, "idle": idle, "frozen": frozen}, lambda: (w * w + 0.0 * frozen).sum(), tmp_path)


def test_a_standing_lora_a_is_right_only_while_its_b_moves(tmp_path: Path) -> None:
    a, b, w = leaf(1.0), leaf(0.0), leaf(1.0)
    weights = {"x.lora_A": a, "x.lora_B": b, "w": w}
    result = run(weights, lambda: (a * b + w).sum(), tmp_path / "fine", steps=2)
    assert len(result.losses) == 2
    assert float(a.detach()) != 1.0, "it moves in the second step"
    a, b, w = leaf(0.0), leaf(0.0), leaf(1.0)
    weights = {"x.lora_A": a, "x.lora_B": b, "w": w}
    with pytest.raises(RiverrunError, match=r"2 of 3 parameters did not move \(x.lora_A, x.lora_B\)"):
        run(weights, lambda: (a * b + w).sum(), tmp_path / "dead")


def test_rewards_that_are_all_the_same_at_first_are_no_error_and_none_ever_is_one(tmp_path: Path) -> None:
    w, seen = leaf(1.0), 0

    def loss() -> Tensor:
        nonlocal seen
        seen += 1
        return (w * w).sum() * (0.0 if seen <= 6 else 1.0)

    assert len(run({"w": w}, loss, tmp_path / "late").losses) == 5
    with pytest.raises(RiverrunError, match="20 steps gave no gradient at all"):
        run({"w": w}, lambda: (w * 0.0).sum(), tmp_path / "never", steps=30)


def test_keep_last_and_keep_every(tmp_path: Path) -> None:
    w = leaf(1.0)
    every = Duration(1, "steps")
    run({"w": w}, lambda: (w * w).sum(), tmp_path, 12, save_every=every, keep_last=2, keep_every=4)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{n:06d}" for n in (4, 8, 10, 11)]


def test_event_files_have_the_framing_and_the_values(tmp_path: Path) -> None:
    """Bytes that the tensorboard package read back when this was written: framing, checksums, message fields."""
    w = leaf(1.0)
    log = TrainLog(tmp_path / "log.jsonl", tensorboard=tmp_path / "tb")
    run({"w": w}, lambda: (w * w).sum(), tmp_path / "work", 3, Hooks(log=log))
    (file,) = (tmp_path / "tb").iterdir()
    data, records = file.read_bytes(), []
    while data:
        size = int.from_bytes(data[:8], "little")
        records.append(data[12 : 12 + size])
        data = data[16 + size :]
    assert records[0].endswith(b"\x1a\x0dbrain.Event:2")
    assert len(records) == 4
    assert all(b"step/loss" in record and b"step/lr" in record for record in records[1:])
    assert file.name.startswith("events.out.tfevents.")
    assert str(os.getpid()) in file.name


@pytest.mark.parametrize(
    ("text", "duration"),
    [
        ("2 epochs", Duration(2, "epochs")),
        ("1 step", Duration(1, "steps")),
        ("1.5M tokens", Duration(1.5e6, "tokens")),
        ("10 minutes", Duration(600, "seconds")),
        ("3k steps", Duration(3000, "steps")),
    ],
)
def test_durations(text: str, duration: Duration) -> None:
    assert parse_duration(text) == duration
    assert parse_duration(str(duration)) == duration


@pytest.mark.parametrize("text", ["", "5", "0 steps", "-1 steps", "five steps", "2 weeks", "nan tokens"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration above 0: write a number and one of steps"):
        parse_duration(text)
