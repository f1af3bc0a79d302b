"""Learning from preferences: DPO, IPO, SimPO and ORPO on pairs, KTO on single answers that are judged.

A pack's groups are the examples: (chosen row, rejected row) of one prompt, which is computed once. The counted unit is
the group; its loss knows only its own two rows, so neither neighbours nor the cut into micro-batches matter. KTO is the
exception: its point of reference is the mean of the micro-batch (see `KTO`).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from riverrun.base.errors import ConfigError
from riverrun.base.progress import Progress
from riverrun.data.packing import Pack
from riverrun.data.preferences import JudgedGroup
from riverrun.models.transformer import CausalLM
from riverrun.train.objectives import Loss, formulas
from riverrun.train.objectives.config import DPOConfig, IPOConfig, KTOConfig, ORPOConfig, SimPOConfig
from riverrun.train.objectives.reference import (
    ModelReference,
    Reference,
    label_logprobs,
    row_sums,
    starts_at_base,
    store_reference,
)

__all__ = ["DPO", "IPO", "KTO", "ORPO", "SimPO"]


class _Pairs:
    """What the objectives on groups of two rows share."""

    name: str
    needs_reference = True

    def __init__(self, model: CausalLM, reference: Reference | None) -> None:
        self.model = model
        self.reference = reference
        if reference is None and self.needs_reference and starts_at_base(model):
            self.reference = ModelReference(model)  # its adapters are left out: no file, no second model

    def prepare_reference(
        self, packs: Iterable[Pack], work: Path, *, identity: str, progress: Progress | None = None
    ) -> None:
        """Before the first step: where the start cannot be had back from the model, its log-probabilities are kept."""
        if self.needs_reference and self.reference is None:
            self.reference = store_reference(
                self.model, packs, work / "reference.safetensors", identity=identity, progress=progress
            )

    def count(self, batch: Pack) -> int:
        return len(batch.groups)

    def _policy(self, batch: Pack) -> Tensor:
        """[P, 2] summed log-probabilities of (first, second) row, float64."""
        assert all(len(group.rows) == 2 for group in batch.groups), f"{self.name} needs groups of two rows"
        return row_sums(label_logprobs(self.model, batch), batch).view(-1, 2)

    def _ratios(self, policy: Tensor, batch: Pack) -> Tensor:
        """[P, 2] log-probabilities less those of the reference."""
        if self.reference is None:
            raise ConfigError(
                f"{self.name} of a model without fresh adapters needs the reference's log-probabilities: "
                "call prepare_reference() with the first epoch's packs before training"
            )
        return policy - self.reference.sums(batch).view(-1, 2)

    @staticmethod
    def _lengths(batch: Pack) -> Tensor:
        """[P, 2] learned tokens of each row."""
        counts = [row.label_tokens for row in batch.rows]
        return torch.tensor(counts, dtype=torch.float64).view(-1, 2)

    @staticmethod
    def _loss(losses: Tensor, rewards: Tensor, policy: Tensor, lengths: Tensor) -> Loss:
        """`rewards` [P, 2] are those that the loss compares."""
        good, bad = rewards.detach().unbind(1)
        token = (policy.detach() / lengths).sum(0)  # of the mean token
        return Loss(
            losses.sum(),
            {
                "accuracy": float((good > bad).sum()),
                "margin": float((good - bad).sum()),
                "reward_chosen": float(good.sum()),
                "reward_rejected": float(bad.sum()),
                "logprob_chosen": float(token[0]),
                "logprob_rejected": float(token[1]),
            },
        )


class DPO(_Pairs):
    """Direct preference optimisation. Its first step's loss is ln 2."""

    def __init__(self, model: CausalLM, config: DPOConfig | None = None, *, reference: Reference | None = None) -> None:
        self.config = config or DPOConfig()
        self.name = self.config.name
        super().__init__(model, reference)

    def __call__(self, batch: Pack) -> Loss:
        policy = self._policy(batch)
        ratios = self._ratios(policy, batch)
        margin = ratios[:, 0] - ratios[:, 1]
        losses = formulas.dpo(margin, self.config.beta, self.config.label_smoothing)
        return self._loss(losses, self.config.beta * ratios, policy, self._lengths(batch))


class IPO(_Pairs):
    """Identity preference optimisation, on means over the answer's tokens. Its first step's loss is 1 / (4 beta^2)."""

    def __init__(self, model: CausalLM, config: IPOConfig | None = None, *, reference: Reference | None = None) -> None:
        self.config = config or IPOConfig()
        self.name = self.config.name
        super().__init__(model, reference)

    def __call__(self, batch: Pack) -> Loss:
        policy, lengths = self._policy(batch), self._lengths(batch)
        ratios = self._ratios(policy, batch) / lengths
        losses = formulas.ipo(ratios[:, 0] - ratios[:, 1], self.config.beta)
        return self._loss(losses, self.config.beta * ratios, policy, lengths)


class SimPO(_Pairs):
    """Simple preference optimisation: mean log-probabilities, a margin to be reached, no reference."""

    needs_reference = False

    def __init__(self, model: CausalLM, config: SimPOConfig | None = None) -> None:
        self.config = config or SimPOConfig()
        self.name = self.config.name
        super().__init__(model, None)

    def __call__(self, batch: Pack) -> Loss:
        config, policy, lengths = self.config, self._policy(batch), self._lengths(batch)
        means = policy / lengths
        losses = formulas.simpo(means[:, 0] - means[:, 1], config.beta, config.gamma, config.label_smoothing)
        return self._loss(losses, config.beta * means, policy, lengths)


class ORPO(_Pairs):
    """Odds ratio preference optimisation: next-token loss of the chosen answer + beta * odds-ratio loss, no reference.

    The first term is the mean over the tokens of each chosen answer (the paper's L_SFT), not over the prompt.
    """

    needs_reference = False

    def __init__(self, model: CausalLM, config: ORPOConfig | None = None) -> None:
        self.config = config or ORPOConfig()
        self.name = self.config.name
        super().__init__(model, None)

    def __call__(self, batch: Pack) -> Loss:
        policy, lengths = self._policy(batch), self._lengths(batch)
        means = policy / lengths
        losses = -means[:, 0] + self.config.beta * formulas.odds_ratio(means[:, 0], means[:, 1])
        return self._loss(losses, self.config.beta * means, policy, lengths)


class KTO(_Pairs):
    """Kahneman-Tversky optimisation of single answers that are judged desirable or not.

    Each group holds a second row, another prompt's answer to this prompt. The point of reference is, as in the paper's
    section 4.1, max(0, mean over the micro-batch of log policy / reference of those second rows), without gradient. A
    micro-batch of one group has its own estimate; bigger ones give a steadier one, and the only thing that neighbours
    change is this number.
    """

    def __init__(self, model: CausalLM, config: KTOConfig | None = None, *, reference: Reference | None = None) -> None:
        self.config = config or KTOConfig()
        self.name = self.config.name
        super().__init__(model, reference)

    def __call__(self, batch: Pack) -> Loss:
        config = self.config
        judged = [group for group in batch.groups if isinstance(group, JudgedGroup)]
        assert len(judged) == len(batch.groups), "kto needs groups that say whether they are desirable"
        desirable = torch.tensor([group.desirable for group in judged])
        ratios = self._ratios(self._policy(batch), batch)
        kl = ratios[:, 1].detach().mean().clamp(min=0)
        losses = formulas.kto(
            ratios[:, 0], desirable, kl, config.beta, (config.desirable_weight, config.undesirable_weight)
        )
        rewards = config.beta * ratios[:, 0].detach()
        signed = torch.where(desirable, rewards, -rewards)
        return Loss(losses.sum(), {"signed_reward": float(signed.sum()), "kl": float(kl) * len(judged)})
