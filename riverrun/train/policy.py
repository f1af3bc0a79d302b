"""What objectives need beside the model that learns: a teacher, and a model that answers with its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch

from riverrun.base.errors import ConfigError, UnsupportedError
from riverrun.base.protocols import LanguageModel
from riverrun.models.load import Checkpoint, load_model
from riverrun.models.transformer import CausalLM
from riverrun.train.build import open_model
from riverrun.train.heldout import HeldOutProblems
from riverrun.train.objectives import Objective, make_objective
from riverrun.train.objectives.config import DistillConfig, PolicyConfig
from riverrun.train.objectives.rewards import Reward, combined, make_reward
from riverrun.train.objectives.rollout import AnswerRows, RolloutPack, Rollouts
from riverrun.train.recipe import ModelSpec, TrainConfig
from riverrun.train.rows import LoadedRows
from riverrun.wire.codec import get_codec

__all__ = ["PolicyRun", "Serve", "Served", "made_objective", "teacher_of"]


class Served(LanguageModel, Protocol):
    """The model that learns as a LanguageModel (`chain.rollouts.PolicyModel`)."""

    def refresh(self) -> None:
        """Take over the weights as they are now."""
        ...

    def close(self) -> None: ...


class Serve(Protocol):
    def __call__(self, model: CausalLM, path: Path, *, slots: int, context: int) -> Served:
        """`path`: of the model's tokenizer and template; `context`: most tokens of prompt and answer."""
        ...


def teacher_of(config: DistillConfig) -> Checkpoint:
    """The teacher, opened; ConfigError when the recipe names none."""
    if not config.teacher:
        raise ConfigError("objective.teacher is not given: name the model that is imitated")
    return open_model(ModelSpec(path=config.teacher))


def made_objective(config: TrainConfig, opened: Checkpoint, model: CausalLM, dtype: torch.dtype) -> Objective:
    """The recipe's objective, with its teacher in memory where it has one."""
    if not isinstance(config.objective, DistillConfig):
        return make_objective(model, config.objective)
    teacher = teacher_of(config.objective)
    ours, theirs = (each.tokenizer for each in (opened, teacher))
    count = min(ours.vocab_size, theirs.vocab_size)
    other = next((i for i in range(count) if ours.token(i) != theirs.token(i)), None)
    if other is not None:
        raise ConfigError(
            f"token {other} is {theirs.token(other)!r} to the teacher {config.objective.teacher} and "
            f"{ours.token(other)!r} to the student: choose a teacher with the student's tokenizer"
        )
    return make_objective(model, config.objective, teacher=load_model(teacher, dtype))


class PolicyRun:
    """Rollouts of a recipe: batches for the loop, and greedy answers to the held-out problems."""

    def __init__(
        self,
        config: TrainConfig,
        opened: Checkpoint,
        rows: LoadedRows,
        model: CausalLM,
        objective: Any,
        serve: Serve | None,
        reward: Reward | None,
        work: Path,
        identity: str,
    ) -> None:
        settings = config.objective
        assert isinstance(settings, PolicyConfig), f"{settings.name} writes no rollouts"
        if serve is None:
            raise UnsupportedError(
                f"objective {settings.name} needs a model that answers: start it with `riverrun train run`, "
                "or hand one in (serve=riverrun.chain.rollouts.PolicyModel)"
            )
        if config.model.new:
            raise UnsupportedError(f"a new model has no answers to judge: {settings.name} needs model.path")
        own = reward or combined([(make_reward(part.name, **part.options), part.weight) for part in settings.reward])
        encode = AnswerRows(opened.tokenizer, opened.template, get_codec(config.data.codec))
        asked = settings.rollouts
        slots = min(64, asked.problems * asked.answers)
        problems = [*rows.problems, *(each for some in rows.held_problems.values() for each in some)]
        context = asked.max_tokens + max(encode.prompt_tokens(problem) for problem in problems)
        self._served = serve(model, opened.path, slots=slots, context=context + 1)
        self._rollouts = Rollouts(
            self._served,
            rows.problems,
            own,
            encode,
            objective,
            asked,
            micro_tokens=int(config.batch.micro_tokens),
            seed=config.run.seed,
            iterations=settings.iterations,
            refresh=self._served.refresh,
            work=work / "rollouts",
            identity=identity,
        )
        self.held_out = HeldOutProblems(self._served, rows.held_problems, own, asked, refresh=self._served.refresh)

    def batch(self, step: int) -> list[RolloutPack]:
        return self._rollouts.batch(step)

    def close(self) -> None:
        self._served.close()
