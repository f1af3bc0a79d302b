"""A policy that writes its own rollouts in one process: weights, caches, and a task that is learned by reward alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from riverrun.base.errors import RiverrunError
from riverrun.base.protocols import Request
from riverrun.base.types import Message, SamplingParams
from riverrun.chain.rollouts import PolicyModel
from riverrun.models.io.adapter import add_adapters, save_adapter
from riverrun.models.load import load_checkpoint, load_model
from riverrun.models.transformer import CausalLM
from riverrun.serve.llm import LLM
from riverrun.train.objectives.config import GRPOConfig, RolloutConfig
from riverrun.train.objectives.rewards import Problem
from riverrun.train.objectives.rl import GRPO
from riverrun.train.objectives.rollout import AnswerRows, Rollouts
from riverrun.wire.codec import get_codec
from tests.tiny_model import write_tiny
from tests.train.tiny_policy import move

ASKED = [
    Request(
        messages=(Message.of("user", f"How much is book {n}? {'please ' * 12}"),), params=SamplingParams(max_tokens=8)
    )
    for n in range(3)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(Path(tmp_path_factory.mktemp("tiny")))


def learning(folder: Path) -> CausalLM:
    model = load_model(load_checkpoint(folder), torch.float32)
    add_adapters(model, 4, 8.0, seed=1)
    model.refresh()
    return model.train()


def said(model: LLM) -> list[str]:
    return [completion.raw for completion in model.generate(ASKED)]


def test_it_says_what_the_weights_of_the_moment_say(folder: Path, tmp_path: Path) -> None:
    """Before and after a change it is a served model of these weights; without `refresh` a cached prompt is old."""
    model = learning(folder)
    with LLM(folder, dtype="float32", slots=4, context=256) as base:
        at_start = said(base)
    with PolicyModel(model, folder, slots=4, context=256) as asked:
        assert said(asked) == at_start
        move(model)
        save_adapter(model, tmp_path / "adapter")
        with LLM(folder, adapter=tmp_path / "adapter", dtype="float32", slots=4, context=256) as fresh:
            wanted = said(fresh)
        assert wanted != at_start
        asked.refresh()
        completions = asked.generate(ASKED[:1])
        assert completions[0].usage.cached_tokens == 0, "nothing of the old weights is left"
        asked.refresh()
        assert said(asked) == wanted
        assert asked.generate(ASKED[:1])[0].usage.cached_tokens > 0, "of the same weights it is used"


def test_the_model_learns_on_while_it_is_served(folder: Path) -> None:
    model = learning(folder)
    with PolicyModel(model, folder, slots=4, context=256) as asked:
        said(asked)
        attend = model.packed_groups([(0, [5])])
        hidden = model(torch.arange(5) + 3, attend.positions, attend)
        hidden.sum().backward()
        assert any(p.grad is not None and bool(p.grad.any()) for p in model.parameters())


def test_caches_are_not_dropped_under_an_answer(folder: Path) -> None:
    with PolicyModel(learning(folder), folder, slots=4, context=512) as asked:
        stream = asked.stream(Request(messages=ASKED[0].messages, params=SamplingParams(max_tokens=400)))
        next(iter(stream))
        with pytest.raises(RiverrunError, match=r"1 answers of model '.*' still run"):
            asked.refresh()
        stream.close()


def test_a_task_is_learned_by_reward_alone(folder: Path) -> None:
    """Answers that hold the letter e: by chance a few, after some steps most."""
    opened = load_checkpoint(folder)
    model = learning(folder)
    problems = [Problem(str(n), (Message.of("user", f"Book {n}?"),)) for n in range(4)]
    config = GRPOConfig(rollouts=RolloutConfig(problems=4, answers=8, max_tokens=6))
    objective = GRPO(model, config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-2)
    seen = []
    with PolicyModel(model, folder, slots=32, context=128) as asked:
        rows = AnswerRows(opened.tokenizer, opened.template, get_codec("hermes"))
        made = Rollouts(
            asked,
            problems,
            lambda _, text: float("e" in text),
            rows,
            objective,
            config.rollouts,
            seed=3,
            refresh=asked.refresh,
        )
        for step in range(12):
            packs = made.batch(step)
            seen.append(packs[0].metrics["reward"])
            total = torch.stack([objective(pack).total for pack in packs]).sum()
            optimizer.zero_grad()
            (total / sum(map(objective.count, packs))).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            model.refresh()
    assert sum(seen[-3:]) / 3 > sum(seen[:3]) / 3 + 0.3, seen
