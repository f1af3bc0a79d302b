"""LoRA fine-tuning of a checkpoint on conversations: config, data, model, loop, adapter.

`finetune(model, rows, out, config)` reads OpenAI-style JSON lines, packs them, trains, and writes a PEFT adapter and
`loss.jsonl`. Stopped at any point, the same call continues from its last checkpoint and ends with the same bytes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from riverrun.base.artifacts import digest_file, digest_json, digest_tree, write_text
from riverrun.base.errors import InputError
from riverrun.base.progress import Progress
from riverrun.base.types import Message, ToolSpec
from riverrun.data.packing import Pack
from riverrun.data.tokens import EncodedRows, encode_rows
from riverrun.models.io.adapter import add_adapters, load_adapter, save_adapter
from riverrun.models.load import Checkpoint, load_checkpoint, load_model
from riverrun.models.transformer import CausalLM
from riverrun.train.config import FinetuneConfig
from riverrun.train.loop import LoopConfig, LoopResult, peak_bytes, train
from riverrun.train.objectives import supervised
from riverrun.train.sampler import PackSampler
from riverrun.wire.codec import get_codec

__all__ = ["FinetuneConfig", "FinetuneResult", "compute_dtype", "finetune", "read_rows"]


@dataclass(frozen=True, slots=True)
class FinetuneResult:
    """What a fine-tune did. row_tokens has every row with its own prefix; computed_tokens is what was multiplied."""

    steps: int
    row_tokens: int
    computed_tokens: int
    label_tokens: int
    seconds: float
    peak_bytes: int
    losses: list[float]
    resumed_from: int
    dropped: list[tuple[str, str]]

    @property
    def tokens_per_second(self) -> float:
        """Row tokens per second of this process's own steps."""
        return self.row_tokens / max(1e-9, self.seconds)


def compute_dtype(name: str) -> torch.dtype:
    """auto is bfloat16 where the processor multiplies it (AVX512-BF16, AMX) or a GPU is there, else float32."""
    if name == "auto":
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cuda.is_available()
        return torch.bfloat16 if fast else torch.float32
    return {"bfloat16": torch.bfloat16, "float32": torch.float32}[name]


def read_rows(path: Path) -> Iterator[tuple[str, tuple[Message, ...] | str, tuple[ToolSpec, ...]]]:
    """(id, messages, tools) of a JSON-lines file in the OpenAI form, or (id, text, ()) of lines {"text": ...}.

    InputError names file and line.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist: give a JSON-lines file of conversations")
    with open(path, "rb") as handle:
        for number, line in enumerate(handle, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8"))
                if isinstance(row.get("text"), str):
                    yield str(row.get("id", number)), row["text"], ()
                    continue
                messages = tuple(Message.from_openai(message) for message in row["messages"])
                tools = tuple(ToolSpec.from_openai(tool) for tool in row.get("tools") or ())
            except InputError as error:
                raise type(error)(f"{path}, line {number}: {error}") from None
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise InputError(f"{path}, line {number}: not a conversation ({error!r})") from None
            yield str(row.get("id", number)), messages, tools


def encode(path: Path, opened: Checkpoint, config: FinetuneConfig) -> EncodedRows:
    """All rows as tokens; InputError when none is left."""
    encoded = encode_rows(
        read_rows(path),
        tokenizer=opened.tokenizer,
        template=opened.template,
        codec=get_codec(config.codec),
        max_tokens=min(config.max_tokens, opened.config.max_position_embeddings, config.micro_tokens),
    )
    if not encoded.rows:
        reason = encoded.dropped[0][1] if encoded.dropped else "the file is empty"
        raise InputError(f"{path} has no row to learn from: {reason}")
    return encoded


def finetune(
    model: Path,
    rows: Path,
    out: Path,
    config: FinetuneConfig,
    *,
    work: Path,
    progress: Progress | None = None,
    adapter: Path | None = None,
) -> FinetuneResult:
    """Train an adapter into `out/adapter` and the loss curve into `out/loss.jsonl`; resumes from `work`.

    With `adapter` (a folder in PEFT's layout) training goes on from it instead of a fresh one; its rank and alpha must
    be those of the settings, InputError otherwise.
    """
    progress = progress or Progress("quiet")
    opened = load_checkpoint(model)
    encoded = encode(rows, opened, config)
    packs_per_step = -(-config.global_tokens // config.micro_tokens)
    sampler = PackSampler(
        encoded.rows,
        micro_tokens=config.micro_tokens,
        packs_per_step=packs_per_step,
        seed=config.seed,
        share=config.share_prefix,
    )
    total = sampler.total_steps(config.epochs)
    dtype = compute_dtype(config.dtype)
    lm = load_model(opened, dtype).train()
    parts = [opened.digest(), digest_file(rows), config.model_dump(exclude={"save_every"}), str(dtype)]
    if adapter is None:
        add_adapters(lm, config.rank, config.alpha, seed=config.seed, init=config.init, rslora=config.rslora)
    else:
        _go_on(lm, adapter, config)
        parts.append(digest_tree(adapter))
    lm.refresh()
    identity = digest_json(parts)
    resolved = LoopConfig(
        total_steps=total,
        learning_rate=config.learning_rate,
        schedule=config.schedule,
        warmup_steps=round(config.warmup * total),
        clip_norm=config.clip_norm,
        betas=(0.9, 0.99),
        weight_decay=config.weight_decay,
        save_every=config.save_every,
        identity=identity,
    )

    def objective(pack: Pack) -> torch.Tensor:
        return supervised(lm, pack)

    parameters: dict[str, torch.Tensor] = {name: p for name, p in lm.named_parameters() if p.requires_grad}
    result = train(parameters, sampler, objective, lm.refresh, resolved, work=work, progress=progress)
    save_adapter(lm, out / "adapter", base=opened.path.name)
    write_text(out / "loss.jsonl", "".join(json.dumps(row) + "\n" for row in result.losses))
    shutil.rmtree(work, ignore_errors=True)
    return _report(result, total, encoded.dropped)


def _go_on(lm: CausalLM, adapter: Path, config: FinetuneConfig) -> None:
    """Put a trained adapter onto the model; InputError when the settings are not its own."""
    load_adapter(lm, adapter)
    first: Any = next(each for _, matrix in lm.linears() for each in matrix.adapters.values())
    own, asked = (first.rank, first.alpha, first.rslora), (config.rank, config.alpha, config.rslora)
    if own != asked:
        names = ("rank", "alpha", "rslora")
        told = [", ".join(f"{name} {value}" for name, value in zip(names, each, strict=True)) for each in (own, asked)]
        raise InputError(f"{adapter} has {told[0]}, the settings ask for {told[1]}: give its own, or start without it")


def _report(result: LoopResult, steps: int, dropped: Sequence[tuple[str, str]]) -> FinetuneResult:
    return FinetuneResult(
        steps=steps,
        row_tokens=result.row_tokens,
        computed_tokens=result.computed_tokens,
        label_tokens=result.label_tokens,
        seconds=result.seconds,
        peak_bytes=peak_bytes(),
        losses=[row["loss"] for row in result.losses],
        resumed_from=result.resumed_from,
        dropped=list(dropped),
    )
