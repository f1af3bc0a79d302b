"""What studies measure of a model, and what a training costs: one home for the figures that they have in common."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from riverrun.base.config import Config
from riverrun.base.protocols import LanguageModel
from riverrun.chain.machine import dtype_name, measure_machine
from riverrun.chain.measure import lines_once
from riverrun.chain.stage import read_jsonl
from riverrun.evaluate import instructions, retention
from riverrun.evaluate.instructions import InstructionRecord
from riverrun.evaluate.retention import SumRecord, WindowRecord
from riverrun.evaluate.statistics import compare_outcomes
from riverrun.models.load import Checkpoint, load_checkpoint
from riverrun.plan.compute import decode_seconds, forward_flops, training_flops, training_seconds
from riverrun.plan.shape import lora_parameters, parameters

if TYPE_CHECKING:
    from riverrun.train.run import TrainResult

__all__ = ["KeptConfig", "Times", "compare_kept", "cost_of", "measure_kept", "opened_model"]

CONTEXT = 2048
SLOTS = 16
"""Tokens of a question and its answer, and questions at a time: the cache of a model that is measured stays small."""


class KeptConfig(Config):
    """How much is asked to see what a training has cost elsewhere."""

    characters: int = Field(default=20_000, ge=1000, description="plain text (help topics of CPython) that is scored")
    sums: int = Field(default=40, ge=1, description="two-digit sums that are asked")
    instructions: int = Field(default=0, ge=0, description="plain instructions that are asked; 0 takes all")
    answer_tokens: int = Field(default=64, ge=1, description="longest answer to an instruction")


@contextmanager
def opened_model(path: Path, adapter: Path | None = None, *, context: int = CONTEXT) -> Iterator[LanguageModel]:
    """The model as it is served, at most `context` tokens a question."""
    from riverrun.serve.llm import LLM

    opened = load_checkpoint(path)
    with LLM(path, adapter=adapter, slots=SLOTS, context=min(context, opened.config.longest or context)) as model:
        yield model


def measure_kept(model: LanguageModel, folder: Path, config: KeptConfig, seed: int) -> dict[str, float]:
    """Plain text, sums and plain instructions; each a file of the folder, none is measured twice."""
    texts = retention.held_out(retention.cpython_topics(), characters=config.characters)
    windows = [
        WindowRecord.from_dict(row)
        for row in lines_once(
            folder / "perplexity.jsonl", lambda: [each.as_dict() for each in retention.run_perplexity(model, texts)]
        )
    ]
    sums = retention.two_digit_sums(config.sums, seed)
    asked = [
        SumRecord.from_dict(row)
        for row in lines_once(
            folder / "sums.jsonl", lambda: [each.as_dict() for each in retention.run_sums(model, sums)]
        )
    ]
    plain = instructions.instructions(config.instructions)
    said = [
        InstructionRecord.from_dict(row)
        for row in lines_once(
            folder / "instructions.jsonl",
            lambda: [each.as_dict() for each in instructions.run(model, plain, max_tokens=config.answer_tokens)],
        )
    ]
    text = retention.score_perplexity(windows)
    return {
        "perplexity": text["perplexity"],
        "bits_per_byte": text["bits_per_byte"],
        "sums": retention.score_sums(asked)["value"],
        "instructions": instructions.score(said).value,
    }


def compare_kept(before: Path, after: Path) -> dict[str, Any]:
    """Two folders of `measure_kept`: the perplexity ratio with its interval, paired changes of the rest."""

    def rows(name: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        return read_jsonl(before / name), read_jsonl(after / name)

    first, second = rows("perplexity.jsonl")
    ratio = retention.compare_perplexity([*map(WindowRecord.from_dict, first)], [*map(WindowRecord.from_dict, second)])
    sums = [[SumRecord.from_dict(row) for row in each] for each in rows("sums.jsonl")]
    first, second = rows("instructions.jsonl")
    return {
        "perplexity": ratio,
        "sums": retention.compare_sums(*sums),
        "instructions": compare_outcomes([r["success"] for r in first], [r["success"] for r in second]).as_dict(),
    }


def cost_of(done: TrainResult) -> dict[str, Any]:
    """What a finished training took."""
    speed = done.row_tokens / max(done.seconds, 1e-9)
    return {
        "steps": done.steps,
        "row_tokens": done.row_tokens,
        "seconds": done.seconds,
        "tokens_per_second": speed,
        "peak_bytes": done.peak_bytes,
        "losses": done.losses,
    }


class Times:
    """Seconds that things may take on this machine: a guess before anything has run, from measured products."""

    def __init__(self, opened: Checkpoint) -> None:
        self.shape = opened.config
        self.dtype = dtype_name("auto")
        self.hardware = measure_machine(self.dtype, None)

    def training(
        self, method: Literal["full", "lora", "qlora"], tokens: float, *, rank: int = 16, step_tokens: int = 2048
    ) -> float:
        """`tokens` that are computed, on steps of `step_tokens`; all of their outputs are taken for labels."""
        kind: Literal["full", "lora"] = "full" if method == "full" else "lora"
        trained = parameters(self.shape) if method == "full" else lora_parameters(self.shape, rank)
        flops = tokens * training_flops(self.shape, kind, length=256, rank=rank)
        steps = max(1, round(tokens / step_tokens))
        return training_seconds(flops, self.hardware, dtype=self.dtype, steps=steps, trained=trained)

    def reading(self, tokens: float) -> float:
        """Of prompts, or of text that is scored."""
        return tokens * forward_flops(self.shape, 512) / self.hardware.rate(self.dtype)

    def writing(self, answers: int, tokens: int, *, slots: int = SLOTS) -> float:
        """Of so many answers of so many tokens, `slots` at a time."""
        rows = min(slots, max(1, answers))
        size = parameters(self.shape) * (2 if self.dtype == "bf16" else 4)
        step = decode_seconds(self.shape, self.hardware, weight_bytes=size, dtype=self.dtype, rows=rows)
        return 3 * step * tokens * answers / rows

    def kept(self, config: KeptConfig) -> float:
        """Of `measure_kept`."""
        prompts = config.instructions or len(instructions.instructions())
        answers = self.writing(prompts, config.answer_tokens) + self.writing(config.sums, 16)
        return self.reading(config.characters / 3.5) + answers
