"""Does a model still follow plain instructions? Prompts whose answers a program can check, asked as chat turns.

A check is a few regular expressions over the answer, so it sees whether the asked thing was said, not whether all else
that was said is true. The prompts stand in instructions.yaml.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from riverrun.base.config import Config, load_config
from riverrun.base.protocols import LanguageModel, Request
from riverrun.base.types import Message, SamplingParams
from riverrun.evaluate.statistics import Rate

__all__ = ["Instruction", "InstructionRecord", "instructions", "judge", "replay_prompts", "run", "score"]


class Instruction(Config):
    """One prompt with the expressions that its answer must and must not hold."""

    prompt: str = Field(min_length=1, description="what the user says")
    expect: tuple[str, ...] = Field(min_length=1, description="all must be found, case-insensitive")
    forbid: tuple[str, ...] = Field(default=(), description="none may be found")

    @field_validator("expect", "forbid")
    @classmethod
    def _compiles(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for expression in value:
            re.compile(expression)
        return value


class _File(Config):
    check: tuple[Instruction, ...] = Field(min_length=1, description="measured")
    replay: tuple[str, ...] = Field(description="only answered")


@dataclass(frozen=True, slots=True)
class InstructionRecord:
    """One answer and whether it passed."""

    prompt: str
    answer: str
    success: bool

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> InstructionRecord:
        return cls(**value)


def _read() -> _File:
    return load_config(_File, Path(__file__).with_suffix(".yaml"))


def instructions(count: int = 0) -> list[Instruction]:
    """The prompts that are measured; the first `count` of them, or all for 0."""
    return list(_read().check[: count or None])


def replay_prompts(count: int = 0) -> list[str]:
    """Prompts of the same kinds that are not measured; the first `count` of them, or all for 0."""
    return list(_read().replay[: count or None])


def judge(instruction: Instruction, answer: str) -> bool:
    """Whether an answer holds what it must and nothing it must not."""
    found = [re.search(expression, answer, re.IGNORECASE) is not None for expression in instruction.expect]
    return all(found) and not any(re.search(each, answer, re.IGNORECASE) for each in instruction.forbid)


def run(model: LanguageModel, asked: Sequence[Instruction], *, max_tokens: int = 64) -> list[InstructionRecord]:
    """Ask every prompt as a chat turn, greedy, in one batch."""
    params = SamplingParams(max_tokens=max_tokens)
    answers = model.generate([Request((Message.of("user", each.prompt),), params=params) for each in asked])
    return [
        InstructionRecord(each.prompt, answer.message.text, judge(each, answer.message.text))
        for each, answer in zip(asked, answers, strict=True)
    ]


def score(records: Sequence[InstructionRecord]) -> Rate:
    return Rate.of([record.success for record in records])
