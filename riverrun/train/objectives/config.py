"""Settings of the objectives, without torch: one class for each family of them, found by the objective's name."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from riverrun.base.config import Config, build_config
from riverrun.base.errors import ConfigError, nearest

__all__ = [
    "OBJECTIVES",
    "DPOConfig",
    "DataKind",
    "DistillConfig",
    "GRPOConfig",
    "IPOConfig",
    "KTOConfig",
    "ORPOConfig",
    "ObjectiveConfig",
    "PPOConfig",
    "PolicyConfig",
    "RewardConfig",
    "RewardPart",
    "RolloutConfig",
    "SimPOConfig",
    "SupervisedConfig",
    "read_objective",
]

DataKind = Literal["rows", "pairs", "judged", "problems"]
"""What an objective learns from: conversations or texts, pairs of answers, judged answers, problems with a reward."""


class ObjectiveConfig(Config):
    """What every objective has."""

    data: ClassVar[DataKind] = "rows"

    name: str = Field(description="what is minimised")


class SupervisedConfig(ObjectiveConfig):
    """Next-token loss."""

    name: Literal["pretrain", "sft"] = Field(
        default="sft",
        description="pretrain: every token is learned; sft: what the assistant says and the token that ends its turn",
    )


class DPOConfig(ObjectiveConfig):
    """Direct preference optimisation (https://arxiv.org/abs/2305.18290)."""

    data: ClassVar[DataKind] = "pairs"

    name: Literal["dpo"] = Field(default="dpo", description="learn from pairs against the model of the start")
    beta: float = Field(default=0.1, gt=0, description="how dearly distance from the start is paid")
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5, description="share of pairs taken to be swapped")


class IPOConfig(ObjectiveConfig):
    """Identity preference optimisation (https://arxiv.org/abs/2310.12036)."""

    data: ClassVar[DataKind] = "pairs"

    name: Literal["ipo"] = Field(default="ipo", description="pull each pair's margin to 1 / (2 beta)")
    beta: float = Field(default=0.1, gt=0, description="the margin sought is 1 / (2 beta), in nats a token")


class SimPOConfig(ObjectiveConfig):
    """Simple preference optimisation (https://arxiv.org/abs/2405.14734)."""

    data: ClassVar[DataKind] = "pairs"

    name: Literal["simpo"] = Field(default="simpo", description="learn from pairs without a reference")
    beta: float = Field(default=2.0, gt=0, description="scale of mean log-probabilities")
    gamma: float = Field(default=1.0, ge=0, description="margin that is sought")
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5, description="share of pairs taken to be swapped")


class ORPOConfig(ObjectiveConfig):
    """Odds ratio preference optimisation (https://arxiv.org/abs/2403.07691)."""

    data: ClassVar[DataKind] = "pairs"

    name: Literal["orpo"] = Field(default="orpo", description="imitate the chosen answer and push the other away")
    beta: float = Field(default=0.1, ge=0, description="weight of the odds-ratio term (lambda in the paper)")


class KTOConfig(ObjectiveConfig):
    """Kahneman-Tversky optimisation (https://arxiv.org/abs/2402.01306)."""

    data: ClassVar[DataKind] = "judged"

    name: Literal["kto"] = Field(default="kto", description="learn from single answers judged good or bad")
    beta: float = Field(default=0.1, gt=0, description="how dearly distance from the start is paid")
    desirable_weight: float = Field(default=1.0, ge=0, description="weight of good answers")
    undesirable_weight: float = Field(default=1.0, ge=0, description="weight of bad answers")


class RewardConfig(ObjectiveConfig):
    """A reward model: one score a conversation, from pairs (Bradley-Terry)."""

    data: ClassVar[DataKind] = "pairs"

    name: Literal["reward"] = Field(default="reward", description="learn a score of answers from pairs")
    centering: float = Field(
        default=0.0, ge=0, description="weight of the term that keeps scores near 0; 0.01 is usual"
    )
    seed: int = Field(default=0, description="of the head's first numbers")


class DistillConfig(ObjectiveConfig):
    """Learning a teacher's distribution over the vocabulary (https://arxiv.org/abs/2306.13649)."""

    name: Literal["distill"] = Field(default="distill", description="match a teacher's next-token distribution")
    teacher: str = Field(default="", description="folder, file or catalogue name of the model that is imitated")
    mixture: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="0: KL(teacher || student); 1: KL(student || teacher); between: generalised Jensen-Shannon",
    )
    temperature: float = Field(default=1.0, gt=0, description="both models' logits are divided by it")
    hard_weight: float = Field(
        default=0.0, ge=0, le=1, description="share of the plain next-token loss; the rest is the teacher's"
    )


class RolloutConfig(Config):
    """How the policy is asked for answers."""

    problems: int = Field(default=8, ge=1, description="problems of one batch of rollouts")
    answers: int = Field(default=8, ge=2, description="answers to each problem")
    max_tokens: int = Field(default=64, ge=1, description="longest answer in tokens")
    temperature: float = Field(default=1.0, gt=0, le=2, description="of sampling, and of the log-probabilities learned")
    stop: str = Field(default="", description="a text that ends an answer, beside the end token")
    system: str = Field(default="", description="system text before every problem that is a question")


class RewardPart(Config):
    """A named reward and its weight in the sum; options of the reward by their names."""

    name: str = Field(description="exact_number, regex or json_schema")
    weight: float = Field(default=1.0, description="factor of this reward in the sum")
    options: dict[str, Any] = Field(default_factory=dict, description="of the reward: first, pattern, schema")


class PolicyConfig(ObjectiveConfig):
    """What learning from rewards has in any form."""

    data: ClassVar[DataKind] = "problems"

    kl_weight: float = Field(default=0.0, ge=0, description="weight of the distance from the model of the start")
    iterations: int = Field(default=1, ge=1, description="optimizer steps that one batch of rollouts is used for")
    rollouts: RolloutConfig = Field(default=RolloutConfig(), description="how the policy is asked")
    reward: tuple[RewardPart, ...] = Field(
        default=(RewardPart(name="exact_number"),), min_length=1, description="what an answer earns: the sum of these"
    )


class GRPOConfig(PolicyConfig):
    """Group relative policy optimisation (https://arxiv.org/abs/2402.03300)."""

    name: Literal["grpo"] = Field(default="grpo", description="learn from rewards relative to those of the same prompt")
    loss_type: Literal["grpo", "bnpo", "dr_grpo", "dapo"] = Field(
        default="dapo",
        description=(
            "what a token's loss is divided by. grpo: tokens of its answer, then answers; bnpo: tokens of the "
            "micro-batch; dr_grpo: max_tokens, then answers; dapo: tokens of the whole step"
        ),
    )
    clip_low: float = Field(default=0.2, gt=0, lt=1, description="how far a token's ratio may fall below 1")
    clip_high: float = Field(default=0.2, gt=0, description="how far a token's ratio may rise above 1")
    scale: Literal["group", "batch", "none"] = Field(
        default="group", description="whose deviation the advantages are divided by"
    )


class PPOConfig(PolicyConfig):
    """Proximal policy optimisation (https://arxiv.org/abs/1707.06347) with a value head on the same model."""

    name: Literal["ppo"] = Field(default="ppo", description="learn from rewards with a learned value of each token")
    kl_weight: float = Field(default=0.05, ge=0, description="price of each token's distance from the start")
    clip: float = Field(default=0.2, gt=0, lt=1, description="how far a token's ratio may leave 1")
    value_clip: float = Field(default=0.2, gt=0, description="how far a value may move between rollout and step")
    value_weight: float = Field(default=0.1, ge=0, description="weight of the value's loss")
    gamma: float = Field(default=1.0, gt=0, le=1, description="what a reward is worth one token earlier")
    lam: float = Field(default=0.95, ge=0, le=1, description="lambda of generalised advantage estimation")


OBJECTIVES: dict[str, type[ObjectiveConfig]] = {
    "pretrain": SupervisedConfig,
    "sft": SupervisedConfig,
    "dpo": DPOConfig,
    "ipo": IPOConfig,
    "simpo": SimPOConfig,
    "orpo": ORPOConfig,
    "kto": KTOConfig,
    "reward": RewardConfig,
    "distill": DistillConfig,
    "grpo": GRPOConfig,
    "ppo": PPOConfig,
}


def read_objective(value: Any) -> ObjectiveConfig:
    """Settings from a name or a mapping with a name; ConfigError names the nearest objectives or keys."""
    if isinstance(value, ObjectiveConfig):
        return value
    given = {"name": value} if isinstance(value, str) else value
    if not isinstance(given, dict):
        raise ConfigError(f"objective must be a name or a mapping with a name, it is {given!r}")
    name = str(given.get("name", "sft"))
    if name not in OBJECTIVES:
        raise ConfigError(f"objective '{name}' does not exist.{nearest(name, OBJECTIVES)}")
    return build_config(OBJECTIVES[name], given, origin="objective")
