"""Learning from rewards of answers that the policy wrote itself: GRPO and PPO.

Both take the packs of `rollout.Rollouts`. N = answer tokens of a pack, G = answers to a problem, E = hidden_size.
Log-probabilities are those of the distribution that was sampled from: logits divided by the temperature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from riverrun.base.errors import ConfigError
from riverrun.data.packing import Group, Pack
from riverrun.models.io.hf import save_tensors
from riverrun.models.transformer import CausalLM
from riverrun.train.loss import token_logprobs
from riverrun.train.objectives import Loss, formulas
from riverrun.train.objectives.config import GRPOConfig, PPOConfig
from riverrun.train.objectives.reference import ModelReference, base_weights, row_of_label, starts_at_base
from riverrun.train.objectives.rollout import Floats, RolloutPack, pack_groups
from riverrun.train.objectives.supervised import hidden_states, label_rows

__all__ = ["GRPO", "PPO", "VALUE_FILE"]

VALUE_FILE = "value_head.safetensors"


class _Policy:
    """What both have: the policy's and the reference's log-probabilities of a pack."""

    def __init__(
        self,
        model: CausalLM,
        config: GRPOConfig | PPOConfig,
        reference: ModelReference | None,
    ) -> None:
        self.model, self.name, self.temperature = model, config.name, config.rollouts.temperature
        self.reference = reference
        if reference is None and config.kl_weight:
            if not starts_at_base(model):
                raise ConfigError(
                    f"{config.name} with kl_weight {config.kl_weight:g} needs the model of the start: train fresh LoRA "
                    "adapters, hand a second model in, or set kl_weight to 0"
                )
            self.reference = ModelReference(model)

    def _rows(self, model: CausalLM, pack: Pack) -> tuple[Tensor, Tensor]:
        """(hidden states that predict an answer's token [N, E], log-probabilities of those tokens [N])."""
        hidden, targets = label_rows(hidden_states(model, pack), pack)
        # the head has no bias: logits / temperature is the head of hidden / temperature
        cooled = hidden if self.temperature == 1.0 else hidden / self.temperature
        return hidden, token_logprobs(cooled, model.head, targets)

    def _of_reference(self, pack: Pack) -> Floats | None:
        if self.reference is None:
            return None
        with base_weights(self.reference.model):
            return _numbers(self._rows(self.reference.model, pack)[1])


def _numbers(values: Tensor) -> Floats:
    return values.detach().double().numpy()


def _tensor(values: Floats, like: Tensor) -> Tensor:
    return torch.from_numpy(values).to(like.dtype)


def _seen(rewards: Floats, groups: Sequence[Group]) -> dict[str, float]:
    """Means over the rollout, for the log."""
    tokens = [row.label_tokens for group in groups for row in group.rows]
    same = (rewards == rewards[:, :1]).all(axis=1)
    return {
        "reward": float(rewards.mean()),
        "answer_tokens": float(np.mean(tokens)),
        "groups_alike": float(same.mean()),
    }


class GRPO(_Policy):
    """Group relative policy optimisation: an answer's advantage is its reward against the others of its problem.

    The counted unit follows `loss_type`: answers (grpo, dr_grpo), tokens (dapo), micro-batches (bnpo). All but bnpo do
    not depend on how a rollout is cut into packs.
    """

    def __init__(
        self,
        model: CausalLM,
        config: GRPOConfig | None = None,
        *,
        reference: ModelReference | None = None,
    ) -> None:
        self.config = config or GRPOConfig()
        super().__init__(model, self.config, reference)

    def prepare(self, groups: Sequence[Group], rewards: Floats, micro_tokens: int) -> list[RolloutPack]:
        """Packs with advantages. A problem whose answers all earned the same has no gradient and is not computed,
        where nothing else is asked of it; its answers are divided by all the same."""
        advantages = formulas.group_advantages(torch.from_numpy(rewards), self.config.scale).numpy()
        live = list(range(len(groups)))
        if not self.config.kl_weight and self.config.loss_type != "bnpo":
            live = [p for p in live if advantages[p].any()] or live[:1]
        idle = [row for p in set(range(len(groups))) - set(live) for row in groups[p].rows]
        packs = pack_groups([groups[p] for p in live], micro_tokens)
        of_row = {id(row): (rewards[p, k], advantages[p, k]) for p in live for k, row in enumerate(groups[p].rows)}
        metrics = _seen(rewards, groups)
        out = []
        for pack in packs:
            row_rewards, row_advantages = (
                np.array(each) for each in zip(*(of_row[id(r)] for r in pack.rows), strict=True)
            )
            out.append(
                RolloutPack(
                    pack.groups,
                    rewards=row_rewards,
                    advantages=row_advantages[row_of_label(pack).numpy()],
                    old=self._old(pack),
                    reference=self._of_reference(pack),
                    metrics=metrics,
                )
            )
        idle_tokens = sum(row.label_tokens for row in idle)
        out[0] = replace(out[0], idle_rows=len(idle), idle_tokens=idle_tokens)
        return out

    def _old(self, pack: Pack) -> Floats | None:
        """With one step a rollout the old policy is the present one."""
        if self.config.iterations == 1:
            return None
        with torch.no_grad():
            return _numbers(self._rows(self.model, pack)[1])

    def count(self, batch: Pack) -> int:
        assert isinstance(batch, RolloutPack), "grpo learns from the packs of Rollouts"
        if self.config.loss_type == "bnpo":
            return 1
        if self.config.loss_type == "dapo":
            return batch.label_tokens + batch.idle_tokens
        return len(batch.rows) + batch.idle_rows

    def __call__(self, batch: Pack) -> Loss:
        assert isinstance(batch, RolloutPack), "grpo learns from the packs of Rollouts"
        config = self.config
        _, logprobs = self._rows(self.model, batch)
        old = logprobs.detach() if batch.old is None else _tensor(batch.old, logprobs)
        advantages = _tensor(batch.advantages, logprobs)
        losses = formulas.clipped_surrogate(logprobs, old, advantages, config.clip_low, config.clip_high)
        with torch.no_grad():
            ratio = torch.exp(logprobs - old)
            clipped = ((ratio < 1 - config.clip_low) & (advantages < 0)) | (
                (ratio > 1 + config.clip_high) & (advantages > 0)
            )
            units = self.count(batch)
            metrics = {name: value * units for name, value in batch.metrics.items()}
            metrics["clipped"] = float(clipped.double().mean()) * units if len(clipped) else 0.0
        if config.kl_weight:
            assert batch.reference is not None, "prepare() forms the reference's log-probabilities"
            distance = formulas.k3(logprobs, _tensor(batch.reference, logprobs))
            losses = losses + config.kl_weight * distance
            metrics["kl"] = float(distance.detach().mean()) * units if len(distance) else 0.0
        return Loss(self._reduced(losses, batch), metrics)

    def _reduced(self, losses: Tensor, batch: RolloutPack) -> Tensor:
        """The sum over the counted units, each divided by what `loss_type` says."""
        if self.config.loss_type == "dapo":
            return losses.sum()
        if self.config.loss_type == "dr_grpo":
            return losses.sum() / self.config.rollouts.max_tokens
        if self.config.loss_type == "bnpo":
            return losses.sum() / max(1, len(losses))
        tokens = torch.tensor([max(1, row.label_tokens) for row in batch.rows], dtype=losses.dtype)
        return (losses / tokens[row_of_label(batch)]).sum()


class PPO(_Policy):
    """Proximal policy optimisation. The value is a vector [E] and a bias on the policy's own hidden states.

    Each answer token earns -kl_weight * (log policy - log reference), the last one the answer's reward as well; its
    advantage is estimated by GAE and whitened over the rollout. The counted unit is the answer token.
    """

    def __init__(
        self,
        model: CausalLM,
        config: PPOConfig | None = None,
        *,
        reference: ModelReference | None = None,
    ) -> None:
        self.config = config or PPOConfig()
        super().__init__(model, self.config, reference)
        self.value_weight = nn.Parameter(torch.zeros(model.config.hidden_size))
        self.value_bias = nn.Parameter(torch.zeros(1))

    def parameters(self) -> dict[str, Tensor]:
        """What learns beside the model."""
        return {"value.weight": self.value_weight, "value.bias": self.value_bias}

    def save(self, folder: Path) -> None:
        """Write the value's vector and bias beside the adapter or model."""
        save_tensors(folder / VALUE_FILE, {name: each.detach() for name, each in self.parameters().items()})

    def _values(self, hidden: Tensor) -> Tensor:
        return hidden.to(self.value_weight.dtype) @ self.value_weight + self.value_bias

    def prepare(self, groups: Sequence[Group], rewards: Floats, micro_tokens: int) -> list[RolloutPack]:
        """Packs with old log-probabilities, values, advantages and returns."""
        earned = {id(row): rewards[p, k] for p, group in enumerate(groups) for k, row in enumerate(group.rows)}
        metrics = _seen(rewards, groups)
        made: list[dict[str, Any]] = []
        for pack in pack_groups(groups, micro_tokens):
            with torch.no_grad():
                hidden, logprobs = self._rows(self.model, pack)
                values = self._values(hidden).double()
            reference = self._of_reference(pack)
            prices = torch.zeros_like(values)
            if reference is not None:
                prices = -self.config.kl_weight * formulas.k1(logprobs.double(), torch.from_numpy(reference))
            scores = [earned[id(row)] for row in pack.rows]
            advantages, returns = self._estimate(pack, prices, values, scores)
            made.append(
                {
                    "groups": pack.groups,
                    "rewards": np.asarray(scores),
                    "advantages": advantages,
                    "old": _numbers(logprobs),
                    "reference": reference,
                    "values": _numbers(values),
                    "returns": returns.numpy(),
                    "metrics": metrics,
                }
            )
        sizes = [len(each["advantages"]) for each in made]
        whole = formulas.whiten(torch.cat([each["advantages"] for each in made]))
        white = torch.split(whole, sizes)
        return [RolloutPack(**(each | {"advantages": part.numpy()})) for each, part in zip(made, white, strict=True)]

    def _estimate(self, pack: Pack, prices: Tensor, values: Tensor, scores: Sequence[float]) -> tuple[Tensor, Tensor]:
        """(advantages, returns) [N], answer by answer."""
        advantages, returns, start = [], [], 0
        for row, score in zip(pack.rows, scores, strict=True):
            mine = slice(start, start := start + row.label_tokens)
            rewards = prices[mine].clone()
            if len(rewards):
                rewards[-1] += score
            gained, worth = formulas.gae(rewards, values[mine], self.config.gamma, self.config.lam)
            advantages.append(gained)
            returns.append(worth)
        return torch.cat(advantages), torch.cat(returns)

    def count(self, batch: Pack) -> int:
        return batch.label_tokens

    def __call__(self, batch: Pack) -> Loss:
        assert isinstance(batch, RolloutPack), "ppo learns from the packs of Rollouts"
        assert batch.old is not None, "prepare() forms the old log-probabilities"
        assert batch.values is not None, "prepare() forms the values"
        assert batch.returns is not None, "prepare() forms the returns"
        config = self.config
        hidden, logprobs = self._rows(self.model, batch)
        values = self._values(hidden)
        policy = formulas.clipped_surrogate(
            logprobs, _tensor(batch.old, logprobs), _tensor(batch.advantages, logprobs), config.clip, config.clip
        ).sum()
        value = formulas.clipped_value(
            values, _tensor(batch.values, values), _tensor(batch.returns, values), config.value_clip
        ).sum()
        units = self.count(batch)
        metrics = {name: mean * units for name, mean in batch.metrics.items()}
        metrics |= {"policy_loss": float(policy.detach()), "value_loss": float(value.detach())}
        if batch.reference is not None:
            metrics["kl"] = float(formulas.k1(_tensor(batch.old, values), _tensor(batch.reference, values)).sum())
        return Loss(policy + config.value_weight * value, metrics)
