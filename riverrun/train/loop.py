"""The training loop, readable from top to bottom. Knows neither what a model is nor where data comes from."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from riverrun.base.errors import RiverrunError
from riverrun.base.progress import Progress
from riverrun.data.packing import Pack
from riverrun.train import checkpoint
from riverrun.train.schedule import factor

__all__ = ["LoopConfig", "LoopResult", "train"]


class Batches(Protocol):
    def batch(self, step: int) -> list[Pack]: ...


@dataclass(frozen=True, slots=True)
class LoopConfig:
    """Resolved values only. Learning rate per step, weight decay 0 on all (LoRA), gradient norm clipped."""

    total_steps: int
    learning_rate: float
    schedule: str
    warmup_steps: int
    clip_norm: float
    betas: tuple[float, float]
    weight_decay: float
    save_every: int
    identity: str


@dataclass(slots=True)
class LoopResult:
    """`losses` has one row per optimizer step; `seconds` counts this process's own steps only."""

    losses: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    computed_tokens: int = 0
    row_tokens: int = 0
    label_tokens: int = 0
    resumed_from: int = 0


def train(
    parameters: dict[str, Tensor],
    batches: Batches,
    objective: Callable[[Pack], Tensor],
    after_step: Callable[[], None],
    config: LoopConfig,
    *,
    work: Path,
    progress: Progress,
) -> LoopResult:
    """Minimise the objective over `config.total_steps`; checkpoints go to `work`, a complete one there is continued.

    The loss of a step is the sum over its label tokens divided by their global count, taken before the forward.
    """
    optimizer = torch.optim.AdamW(
        list(parameters.values()),
        lr=config.learning_rate,
        betas=config.betas,
        weight_decay=config.weight_decay,
        fused=True,
    )
    result = LoopResult()
    if saved := checkpoint.latest(work, identity=config.identity):
        checkpoint.restore(saved, parameters, optimizer)
        result.losses, result.resumed_from = list(saved.state["losses"]), saved.step
        after_step()
    else:
        checkpoint.prune(work, keep=0)  # of another run: among its higher steps the new ones would be pruned
    started = time.monotonic()
    with progress.task("finetune", total=config.total_steps, unit="steps") as task:
        task.advance(result.resumed_from)
        for step in range(result.resumed_from, config.total_steps):
            micro = batches.batch(step)
            denominator = max(1, sum(pack.label_tokens for pack in micro))
            summed = 0.0
            for pack in micro:
                loss = objective(pack)
                (loss / denominator).backward()  # type: ignore[no-untyped-call]
                summed += float(loss.detach())
            norm = float(torch.nn.utils.clip_grad_norm_(list(parameters.values()), config.clip_norm))
            if not (math.isfinite(norm) and math.isfinite(summed)):
                raise RiverrunError(
                    f"step {step + 1}: loss {summed / denominator} and gradient norm {norm} are not finite: "
                    "lower finetune.learning_rate"
                )
            rate = config.learning_rate * factor(config.schedule, step, config.total_steps, config.warmup_steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            before = _fingerprint(parameters) if step == 0 else None
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            _check_moved(before, parameters)
            if not all(bool(torch.isfinite(tensor).all()) for tensor in parameters.values()):
                raise RiverrunError(
                    f"step {step + 1}: with a rate of {rate:.4g} the parameters are not finite: "
                    "lower finetune.learning_rate"
                )
            after_step()
            _count(result, micro)
            row = {
                "step": step + 1,
                "loss": summed / denominator,
                "lr": rate,
                "grad_norm": norm,
                "label_tokens": denominator,
                "plain_text": all(pack.plain_text for pack in micro),
            }
            result.losses.append(row)
            result.seconds = time.monotonic() - started
            task.advance(loss=row["loss"], tok_s=result.row_tokens / result.seconds, gb=peak_bytes() / 1e9)
            if (step + 1) % config.save_every == 0 and step + 1 < config.total_steps:
                state = {"identity": config.identity, "losses": result.losses}
                checkpoint.save(work, step + 1, parameters, optimizer, state)
                checkpoint.prune(work, keep=2)
    return result


def peak_bytes() -> int:
    """Peak resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _count(result: LoopResult, micro: Sequence[Pack]) -> None:
    result.computed_tokens += sum(pack.computed_tokens for pack in micro)
    result.row_tokens += sum(pack.row_tokens for pack in micro)
    result.label_tokens += sum(pack.label_tokens for pack in micro)


def _fingerprint(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in parameters.items() if tensor.grad is not None}


def _check_moved(before: dict[str, Tensor] | None, parameters: dict[str, Tensor]) -> None:
    """After the first step something must have been trained (in LoRA's first step only B moves)."""
    if before is None:
        return
    assert len(before) == len(parameters), "a trainable parameter got no gradient"
    if all(torch.equal(old, parameters[name]) for name, old in before.items()):
        raise RiverrunError("the first step changed no parameter: the learning rate is 0 or no token is learned")
