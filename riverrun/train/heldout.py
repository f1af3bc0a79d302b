"""What is measured of an objective that is not next-token loss: its own numbers on held-out groups, and greedy answers
to held-out problems."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from riverrun.base.protocols import LanguageModel, Request
from riverrun.base.types import SamplingParams
from riverrun.data.packing import Group
from riverrun.data.preferences import cut_groups
from riverrun.train.objectives import Objective
from riverrun.train.objectives.config import RolloutConfig
from riverrun.train.objectives.rewards import Problem, Reward, judge

__all__ = ["HeldOutGroups", "HeldOutProblems"]


class HeldOutGroups:
    """Loss and metrics of an objective on named sets of groups, as means over their units."""

    def __init__(self, objective: Objective, groups: Mapping[str, Sequence[Group]], *, micro_tokens: int) -> None:
        self.objective = objective
        self.sets = {name: cut_groups(some, micro_tokens) for name, some in groups.items()}

    @torch.no_grad()
    def measure(self) -> list[dict[str, Any]]:
        out = []
        for name, packs in self.sets.items():
            units = sum(self.objective.count(pack) for pack in packs)
            sums: dict[str, float] = {}
            for pack in packs:
                loss = self.objective(pack)
                for key, value in {"loss": float(loss.total), **loss.metrics}.items():
                    sums[key] = sums.get(key, 0.0) + value
            out.append({"name": name, "units": units} | {key: value / units for key, value in sums.items()})
        return out


class HeldOutProblems:
    """Mean reward of the greedy answers to named sets of problems; 1 is a share where rewards are 0 or 1."""

    def __init__(
        self,
        model: LanguageModel,
        problems: Mapping[str, Sequence[Problem]],
        reward: Reward,
        config: RolloutConfig,
        *,
        refresh: Callable[[], None],
    ) -> None:
        self.model, self.problems, self.reward, self.config, self._refresh = model, problems, reward, config, refresh

    def measure(self) -> list[dict[str, Any]]:
        stop = (self.config.stop,) if self.config.stop else ()
        params = SamplingParams(max_tokens=self.config.max_tokens, stop=stop)
        self._refresh()
        out = []
        for name, some in self.problems.items():
            asked = [Request(messages=each.messages, prompt=each.prompt, params=params) for each in some]
            answers = self.model.generate(asked)
            earned = [judge(self.reward, p, a.raw or a.message.text) for p, a in zip(some, answers, strict=True)]
            tokens = sum(answer.usage.completion_tokens for answer in answers) / len(answers)
            out.append({"name": name, "units": len(some), "reward": sum(earned) / len(earned), "answer_tokens": tokens})
        return out
