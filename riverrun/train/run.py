"""A recipe from its rows to its result: read, resolve, build, train, write.

out/adapter or out/model    PEFT adapter, or a model folder with tokenizer and template
out/train.jsonl             what became of the rows; a line for each step, evaluation and sample
out/bad_rows.jsonl          every record that was set aside, with file, line and reason
out/resolved.yaml           the recipe without `auto`
out/result.json             what was done; written last
out/work                    checkpoints and the stop file while it runs
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from riverrun.base.artifacts import digest_json, write_json, write_text
from riverrun.base.errors import InputError
from riverrun.base.memory import resident_memory
from riverrun.base.progress import Progress
from riverrun.models.load import Checkpoint
from riverrun.train.build import Trained, build, compute_dtype, model_digest, open_model
from riverrun.train.duration import Duration
from riverrun.train.flops import pack_flops
from riverrun.train.heldout import HeldOutGroups, HeldOutProblems
from riverrun.train.log import TrainLog
from riverrun.train.loop import Hooks, LoopConfig, LoopResult, peak_bytes, train
from riverrun.train.objectives import Objective, WithHead, WithReference
from riverrun.train.objectives.config import DistillConfig
from riverrun.train.objectives.rewards import Reward
from riverrun.train.objectives.rollout import ProblemOrder
from riverrun.train.policy import PolicyRun, Serve, made_objective, teacher_of
from riverrun.train.probe import matmul_rate
from riverrun.train.recipe import MOST, TrainConfig
from riverrun.train.rows import LoadedRows, check_rows, load_rows, longest_row
from riverrun.train.sampler import MixedPackSampler, Prefetch
from riverrun.train.sampling import Sampler, make_sampler
from riverrun.train.validate import Validation, continue_greedily

__all__ = ["Resolved", "TrainResult", "identity_of", "prepare", "resolve", "train_recipe"]

_FREE = {
    "data": {"validation", "workers", "bad_rows"},
    "batch": {"recompute"},
    "method": {"cache"},
    "run": {
        *("save_every", "save_async", "keep_last", "keep_every", "eval_every", "prompts", "prompt_tokens"),
        *("time_limit", "tensorboard"),
    },
}
"""Keys that change no weight: a checkpoint may be continued with others."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """A recipe without `auto`, and a sentence for each value that was chosen."""

    config: TrainConfig
    dtype: torch.dtype
    micro_tokens: int
    notes: tuple[str, ...] = ()

    @property
    def method(self) -> str:
        return self.config.method.name


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a run did; `folder` holds the weights when `status` is done."""

    status: str
    folder: Path | None
    steps: int
    losses: list[float]
    row_tokens: int
    label_tokens: int
    seconds: float
    peak_bytes: int
    resumed_from: int
    rows: dict[str, Any] = field(default_factory=dict)
    """What became of the records: those of `data.counts.Counts`, `left_out`, and the same of each validation source."""


def resolve(config: TrainConfig, opened: Checkpoint) -> Resolved:
    """Choose what the recipe still leaves open, before any weight is read; by memory it was chosen before
    (`chain/resolving`)."""
    notes = []
    method = config.method.name
    if method == "auto":
        method = "full" if config.model.new else "lora"
        why = "a new model is trained whole" if config.model.new else "the base keeps its weights"
        notes.append(f"method {method}: {why}")
    dtype = compute_dtype(config.run.dtype)
    name = str(dtype).removeprefix("torch.")
    if config.run.dtype == "auto":
        has = "multiplies" if dtype == torch.bfloat16 else "has no product of"
        notes.append(f"run.dtype {name}: this machine {has} bfloat16")
    micro = config.batch.usual_micro_tokens
    if config.batch.micro_tokens == "auto":
        notes.append(f"batch.micro_tokens {micro}: at most {MOST}, and no more than a step takes")
    rank = 16 if config.method.rank == "auto" else config.method.rank
    done = config.model_copy(
        update={
            "method": config.method.model_copy(update={"name": method, "rank": rank}),
            "run": config.run.model_copy(update={"dtype": name}),
            "batch": config.batch.model_copy(update={"micro_tokens": micro}),
        }
    )
    return Resolved(done, dtype, micro, tuple(notes))


def identity_of(resolved: Resolved, opened: Checkpoint, rows: LoadedRows) -> dict[str, Any]:
    """What makes a training this one: digests of model and data, and every key that changes a weight."""
    dump = resolved.config.model_dump(mode="json")
    identity: dict[str, Any] = {"model": model_digest(opened, resolved.config.model)}
    for index, (source, report) in enumerate(zip(dump["data"].pop("train"), rows.reports, strict=True)):
        own = {key: value for key, value in source.items() if key not in ("path", "name")}
        identity[f"data.train.{index}"] = digest_json([report.digest, own])
    del dump["model"]
    if isinstance(resolved.config.objective, DistillConfig):
        identity["objective.teacher"] = teacher_of(resolved.config.objective).digest()
        del dump["objective"]["teacher"]
    for section, values in dump.items():
        free = _FREE.get(section, set())
        identity |= {f"{section}.{key}": value for key, value in values.items() if key not in free}
    return identity


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything before the weights: what --dry-run shows."""

    opened: Checkpoint
    resolved: Resolved
    rows: LoadedRows
    sampler: Sampler

    @property
    def length(self) -> Duration:
        """Of the run, without epochs."""
        own = self.resolved.config.run.length
        if own.unit != "epochs":
            return own
        whole = int(own.amount)
        steps = self.sampler.total_steps(whole) + round((own.amount - whole) * self.sampler.steps_in_epoch(whole))
        return Duration(float(max(1, steps)), "steps")

    def period(self, own: Duration | None) -> Duration | None:
        """How often, without epochs."""
        return own.in_steps(self.sampler.steps_in_epoch(0)) if own else None


def prepare(config: TrainConfig, *, bad_file: Path | None = None, progress: Progress | None = None) -> Prepared:
    """Open the model, resolve, read the rows; no weight is read.

    InputError when more rows were set aside than `data.bad_rows` allows: they are then written into `bad_file`.
    """
    opened = open_model(config.model)
    resolved = resolve(config, opened)
    micro_tokens = resolved.micro_tokens
    rows = load_rows(resolved.config, opened, micro_tokens=micro_tokens, progress=progress)
    limit = longest_row(config, opened, micro_tokens)
    check_rows(rows, config, limit, bad_file)
    notes = [*resolved.notes]
    if config.objective.data != "problems" and limit[0] < config.data.max_tokens:
        notes.append(f"rows of at most {limit[0]} tokens: {limit[1]} is less than data.max_tokens")
    counts = rows.counts
    if counts.bad:
        notes.append(f"{counts.records - counts.kept} of {counts.records} records are left out: {counts.told()}")
    sampler, share, note = make_sampler(resolved.config, rows, micro_tokens)
    if note:
        notes.append(note)
    data = resolved.config.data.model_copy(update={"share_prefix": share})
    done = replace(resolved, config=resolved.config.model_copy(update={"data": data}), notes=tuple(notes))
    return Prepared(opened, done, rows, sampler)


def train_recipe(
    config: TrainConfig,
    out: Path,
    *,
    progress: Progress | None = None,
    serve: Serve | None = None,
    reward: Reward | None = None,
) -> TrainResult:
    """Train into `out`. The same call goes on from the last checkpoint, or gives the stored result of a finished run.

    Objectives that learn from their own answers need `serve`, which makes a LanguageModel of the model that learns
    (`chain.rollouts`); `reward` takes the place of the recipe's. InputError when `out` holds another training.
    """
    progress = progress or Progress("quiet")
    bad_file = out / "bad_rows.jsonl"
    ready = prepare(config, bad_file=None if (out / "result.json").is_file() else bad_file, progress=progress)
    own = ready.resolved.config
    identity = identity_of(ready.resolved, ready.opened, ready.rows)
    if (finished := _finished(out, identity)) is not None:
        return finished
    log = TrainLog(out / "train.jsonl", tensorboard=out / "tensorboard" if own.run.tensorboard else None)
    write_text(out / "resolved.yaml", yaml.safe_dump(own.model_dump(mode="json"), sort_keys=False, allow_unicode=True))
    ready.rows.write_bad(bad_file)
    log.opening.append(("rows", ready.rows.summary()))
    for note in ready.resolved.notes:
        progress.say(note)
    before = resident_memory()
    trained = build(own, ready.opened, ready.resolved.method, ready.resolved.dtype)
    for name, size in (("process", before), ("model", resident_memory() - before)):
        log.opening.append(("memory", {"name": name, "bytes": size}))
    objective = made_objective(own, ready.opened, trained.model, ready.resolved.dtype)
    parameters = trained.parameters | (objective.parameters() if isinstance(objective, WithHead) else {})
    batches: Prefetch | PolicyRun
    if isinstance(ready.sampler, ProblemOrder):
        batches = PolicyRun(
            own, ready.opened, ready.rows, trained.model, objective, serve, reward, out / "work", digest_json(identity)
        )
    else:
        batches = Prefetch(ready.sampler, own.data.workers)
        if isinstance(objective, WithReference):
            assert not isinstance(ready.sampler, MixedPackSampler), "a reference is of pairs or judged answers"
            packs = ready.sampler.every_pack()
            objective.prepare_reference(packs, out / "work", identity=digest_json(identity), progress=progress)
    try:
        result = train(
            parameters,
            batches,
            objective,
            trained.model.refresh,
            _loop_config(ready, identity),
            work=out / "work",
            progress=progress,
            hooks=_hooks(ready, trained, log, objective, batches),
        )
    finally:
        batches.close()
    return _close(ready, trained, objective, result, out, identity)


def _loop_config(ready: Prepared, identity: Mapping[str, Any]) -> LoopConfig:
    own = ready.resolved.config
    scaled = ready.resolved.dtype == torch.float16
    return LoopConfig(
        length=ready.length,
        optimizer=own.optimizer,
        identity=identity,
        seed=own.run.seed,
        save_every=ready.period(own.run.save_every),
        save_async=own.run.save_async,
        keep_last=own.run.keep_last,
        keep_every=own.run.keep_every,
        eval_every=ready.period(own.run.eval_every),
        time_limit=own.run.time_limit,
        skip_nonfinite=own.run.skip_nonfinite,
        loss_scaling=scaled,
        peak_flops=0.0
        if scaled and not torch.cuda.is_available()
        else matmul_rate(ready.resolved.dtype),  # float16 on a CPU is a form for tests
        lora_plus=own.method.lora_plus,
    )


def _hooks(
    ready: Prepared, trained: Trained, log: TrainLog, objective: Objective, batches: Prefetch | PolicyRun
) -> Hooks:
    own, tokenizer, model = ready.resolved.config, ready.opened.tokenizer, trained.model
    micro_tokens = ready.resolved.micro_tokens
    held_out: Validation | HeldOutGroups | HeldOutProblems
    if isinstance(batches, PolicyRun):
        held_out = batches.held_out
    elif ready.rows.held_groups:
        held_out = HeldOutGroups(objective, ready.rows.held_groups, micro_tokens=micro_tokens)
    else:
        held_out = Validation(model, tokenizer, ready.rows.validation, micro_tokens=micro_tokens)

    def evaluate(step: int) -> Sequence[tuple[str, Mapping[str, Any]]]:
        lines: list[tuple[str, Mapping[str, Any]]] = [("eval", row) for row in held_out.measure()]
        for prompt in own.run.prompts:
            text = continue_greedily(model, tokenizer, prompt, tokens=own.run.prompt_tokens)
            lines.append(("sample", {"prompt": prompt, "text": text}))
        return lines

    flops = pack_flops(model.config, lora_parameters=trained.lora_parameters)
    return Hooks(files=trained.files, parts=trained.parts, log=log, evaluate=evaluate, flops=flops)


def _close(
    ready: Prepared,
    trained: Trained,
    objective: Objective,
    result: LoopResult,
    out: Path,
    identity: Mapping[str, Any],
) -> TrainResult:
    """Write the weights and, last, what was done."""
    folder = None
    if result.status == "done":
        folder = out / ("model" if ready.resolved.method == "full" else "adapter")
        trained.files.snapshot(copy=False)(folder)
        if isinstance(objective, WithHead):
            objective.save(folder)
    done = TrainResult(
        status=result.status,
        folder=folder,
        steps=len(result.losses),
        losses=[row["loss"] for row in result.losses],
        row_tokens=result.row_tokens,
        label_tokens=result.label_tokens,
        seconds=result.seconds,
        peak_bytes=peak_bytes(),
        resumed_from=result.resumed_from,
        rows=ready.rows.summary(),
    )
    if folder:
        kept = {name: getattr(done, name) for name in TrainResult.__slots__ if name != "folder"}
        write_json(out / "result.json", kept | {"weights": folder.name, "identity": digest_json(identity)})
        if not ready.resolved.config.run.keep_every:
            shutil.rmtree(out / "work", ignore_errors=True)
    return done


def _finished(out: Path, identity: Mapping[str, Any]) -> TrainResult | None:
    """The result of this very training when it stands in `out`."""
    path = out / "result.json"
    if not path.is_file():
        return None
    stored = json.loads(path.read_text(encoding="utf-8"))
    if stored.pop("identity") != digest_json(identity):
        raise InputError(f"{out} holds the result of another training: give another --out, or delete it")
    weights = out / stored.pop("weights")
    return TrainResult(folder=weights, **stored)
