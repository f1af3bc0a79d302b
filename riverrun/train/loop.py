"""The training loop, readable from top to bottom. Knows neither what a model is nor where data comes from."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from riverrun.base.memory import resident_memory
from riverrun.base.progress import Progress
from riverrun.data.packing import Pack
from riverrun.train import checkpoint
from riverrun.train.checkpoint import Saver, WeightFiles
from riverrun.train.duration import Duration, Every
from riverrun.train.gradients import Gradients
from riverrun.train.guard import FIRST_SCALE, Position, check_finite, check_moved, skip
from riverrun.train.log import TrainLog
from riverrun.train.objectives import Objective
from riverrun.train.objectives.supervised import padded_tokens
from riverrun.train.optim import Optimizer, draw_seed
from riverrun.train.recipe import OptimizerConfig
from riverrun.train.schedule import factor

__all__ = ["STOP", "Batches", "Hooks", "LoopConfig", "LoopResult", "peak_bytes", "train"]

STOP = "stop"
"""A file of this name in the work folder ends the run after the step it is in; the run saves first."""

_SPEED = ("tokens_per_second", "label_tokens_per_second")
WATCHED = ("step", "loss", *_SPEED, "peak_bytes", "padded_share", "mfu", "resident_bytes")
"""What progress shows of a step, the first things first."""


class Batches(Protocol):
    def batch(self, step: int) -> Sequence[Pack]:
        """The micro-batches of an optimizer step (from 0)."""
        ...


@dataclass(frozen=True, slots=True)
class LoopConfig:
    """Resolved values only: no `auto`, no epochs."""

    length: Duration
    optimizer: OptimizerConfig
    identity: Mapping[str, Any]
    seed: int = 0
    save_every: Duration | None = None
    save_async: bool = True
    keep_last: int = 2
    keep_every: int = 0
    eval_every: Duration | None = None
    time_limit: float = 0.0
    skip_nonfinite: int = 0
    loss_scaling: bool = False
    peak_flops: float = 0.0
    """Measured rate of a bare matrix product, FLOP/s; 0: not measured, no MFU."""
    lora_plus: float = 1.0
    rate_name: str = "optimizer.learning_rate"
    discard_other: bool = False
    """Checkpoints of another training in the work folder are deleted, not refused."""


@dataclass(frozen=True, slots=True)
class Hooks:
    """What is joined to the loop from outside. `evaluate(step)` gives log lines (event, values); `flops` of a pack."""

    files: WeightFiles | None = None
    parts: Mapping[str, Sequence[slice]] = field(default_factory=dict)
    log: TrainLog | None = None
    evaluate: Callable[[int], Sequence[tuple[str, Mapping[str, Any]]]] | None = None
    flops: Callable[[Pack], float] | None = None


@dataclass(slots=True)
class LoopResult:
    """`losses` has one row per optimizer step; `seconds` and tokens count this process's own steps only.

    `status`: done, stopped (stop file) or time limit; the last two saved a checkpoint that the same call goes on from.
    """

    losses: list[dict[str, Any]] = field(default_factory=list)
    status: str = "done"
    seconds: float = 0.0
    computed_tokens: int = 0
    row_tokens: int = 0
    label_tokens: int = 0
    resumed_from: int = 0


def train(
    parameters: dict[str, Tensor],
    batches: Batches,
    objective: Objective,
    after_step: Callable[[], None],
    config: LoopConfig,
    *,
    work: Path,
    progress: Progress,
    hooks: Hooks = Hooks(),
    name: str = "train",
) -> LoopResult:
    """Minimise the objective over `config.length`; checkpoints go to `work`, a complete one there is continued.

    The loss of a step is the sum over its units divided by their global count, taken before the forward.
    """
    optimizer = Optimizer(parameters, config.optimizer, seed=config.seed, parts=hooks.parts, lora_plus=config.lora_plus)
    saver = Saver(work, keep_last=config.keep_last, keep_every=config.keep_every, background=config.save_async)
    at, result = _begin(parameters, optimizer, after_step, config, work, hooks)
    save, look = Every(config.save_every), Every(config.eval_every)
    for each in (save, look):
        each.start(**at.counts)
    started = time.monotonic()
    length, done = config.length, config.length.of(**at.counts)
    if at.step == 0:
        _evaluate(hooks, at, config)
    watched = progress.task(name, total=length.amount, unit=length.unit, first=done)
    with saver, Gradients(parameters) as gradients, watched as task:
        while not _finished(at, config):
            began = time.monotonic()
            torch.manual_seed(draw_seed(config.seed, at.step))  # whatever an objective draws
            micro = batches.batch(at.step)
            units = max(1, sum(objective.count(pack) for pack in micro))
            gradients.begin(len(micro))
            summed, metrics = 0.0, dict[str, float]()
            for pack in micro:
                loss = objective(pack)
                (loss.total * (at.scale / units)).backward()  # type: ignore[no-untyped-call]
                summed += float(loss.total.detach())
                for key, value in loss.metrics.items():
                    metrics[key] = metrics.get(key, 0.0) + value / units
            found = gradients.take()
            norm, rate = gradients.norm(found) / at.scale, _rate(at, micro, config)
            if math.isfinite(norm) and math.isfinite(summed):
                clip = min(1.0, config.optimizer.clip_norm / (norm + 1e-6)) / at.scale
                same = optimizer.step(found, rate, scale=clip, watch=not at.checked)
                check_moved(at, same, found, parameters, norm)
                check_finite(at, parameters, rate, config.rate_name)
                if config.loss_scaling:
                    at.worked()
            else:
                skip(
                    at,
                    summed / units,
                    norm,
                    scaling=config.loss_scaling,
                    most=config.skip_nonfinite,
                    rate_name=config.rate_name,
                )
            del found
            gradients.clear()
            after_step()
            seconds = time.monotonic() - began
            row = _count(at, result, micro, seconds)
            row |= {"loss": summed / units, "lr": rate, "grad_norm": norm, **metrics}
            result.losses.append(row)
            told = _told(row, micro, units, seconds, at, config, hooks)
            if hooks.log:
                hooks.log.write("step", at.step, told)
            task.advance(length.of(**at.counts) - task.done, **_shown(told, config))
            finished = _finished(at, config)
            if look.due(**at.counts) or finished:
                _evaluate(hooks, at, config)
            result.status = _ending(at, work, time.monotonic() - started, config)
            if (save.due(**at.counts) and not finished) or result.status != "done":
                state = {"identity": dict(config.identity), "position": asdict(at), "losses": result.losses}
                saving = time.monotonic()
                saver.save(at.step, parameters, optimizer, state | {"rng": f"{config.seed}/{at.step}"}, hooks.files)
                if hooks.log:
                    hooks.log.write("checkpoint", at.step, {"seconds": time.monotonic() - saving})
            if result.status != "done":
                break
    return result


def _begin(
    parameters: dict[str, Tensor],
    optimizer: Optimizer,
    after_step: Callable[[], None],
    config: LoopConfig,
    work: Path,
    hooks: Hooks,
) -> tuple[Position, LoopResult]:
    """Start, or go on from the newest checkpoint."""
    at, result = Position(scale=FIRST_SCALE if config.loss_scaling else 1.0), LoopResult()
    saved = checkpoint.latest(work, identity=config.identity, discard_other=config.discard_other)
    if saved:
        checkpoint.restore(saved, parameters, optimizer, hooks.files)
        at = Position(**saved.state["position"])
        result.losses, result.resumed_from = list(saved.state["losses"]), saved.step
        after_step()
    else:
        checkpoint.prune(work, keep_last=0)  # of another run: among its higher steps the new ones would be pruned
    if hooks.log:
        hooks.log.begin(at.step)
    return at, result


def _finished(at: Position, config: LoopConfig) -> bool:
    return config.length.of(**at.counts) >= config.length.amount


def _rate(at: Position, micro: Sequence[Pack], config: LoopConfig) -> float:
    """The learning rate of the coming step, by the share of the whole that is done."""
    settings, total = config.optimizer, config.length.amount
    warmup = settings.warmup * total
    if config.length.unit == "steps":
        warmup, ahead = float(round(warmup)), 1.0
    elif config.length.unit == "tokens":
        ahead = float(sum(pack.row_tokens for pack in micro))
    else:  # how long the step will take is not known: as long as those before
        ahead = at.seconds / at.step if at.step else warmup / 100
    return settings.learning_rate * factor(
        settings.schedule,
        config.length.of(**at.counts),
        total,
        warmup,
        ahead=ahead,
        decay=settings.decay,
        shape=settings.decay_shape,
        final=settings.final_rate,
    )


def _count(at: Position, result: LoopResult, micro: Sequence[Pack], seconds: float) -> dict[str, Any]:
    """Move on by one step; the beginning of its row."""
    labels, tokens = sum(pack.label_tokens for pack in micro), sum(pack.row_tokens for pack in micro)
    result.computed_tokens += sum(pack.computed_tokens for pack in micro)
    result.row_tokens, result.label_tokens = result.row_tokens + tokens, result.label_tokens + labels
    result.seconds += seconds
    at.step, at.tokens, at.seconds = at.step + 1, at.tokens + tokens, at.seconds + seconds
    return {"step": at.step, "label_tokens": labels, "plain_text": all(pack.plain_text for pack in micro)}


def _told(
    row: Mapping[str, Any],
    micro: Sequence[Pack],
    units: int,
    seconds: float,
    at: Position,
    config: LoopConfig,
    hooks: Hooks,
) -> dict[str, Any]:
    """A step's line in the log."""
    tokens, computed = sum(pack.row_tokens for pack in micro), sum(pack.computed_tokens for pack in micro)
    padded = sum(padded_tokens(pack) for pack in micro)
    told = {
        **row,
        "units": units,
        "tokens": tokens,
        "computed_tokens": computed,
        "tokens_seen": at.tokens,
        "padded_share": padded / max(1, padded + computed),
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "label_tokens_per_second": row["label_tokens"] / seconds,
        "resident_bytes": resident_memory(),
        "peak_bytes": peak_bytes(),
        "skipped": at.skipped,
    }
    if hooks.flops and config.peak_flops:
        told["mfu"] = sum(hooks.flops(pack) for pack in micro) / seconds / config.peak_flops
    return told | ({"loss_scale": at.scale} if config.loss_scaling else {})


def _shown(told: Mapping[str, Any], config: LoopConfig) -> dict[str, Any]:
    """The part of it that a person watches."""
    return {name: told[name] for name in WATCHED if name in told and (name != "step" or config.length.unit != "steps")}


def _evaluate(hooks: Hooks, at: Position, config: LoopConfig) -> None:
    if hooks.evaluate is None or config.eval_every is None:
        return
    for event, values in hooks.evaluate(at.step):
        if hooks.log:
            hooks.log.write(event, at.step, values)


def _ending(at: Position, work: Path, seconds: float, config: LoopConfig) -> str:
    """Why the run ends here although it is not finished; "done" when it does not."""
    if _finished(at, config):
        return "done"
    if (work / STOP).exists():
        (work / STOP).unlink()  # obeyed once; the next run goes on
        return "stopped"
    return "time limit" if config.time_limit and seconds >= config.time_limit else "done"


def peak_bytes() -> int:
    """Peak resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
