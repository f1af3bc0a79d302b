"""Losses as TRL computes them, on small drawn tensors, for tests that need no TRL: tests/train/trl_vectors.json.

Runs in a virtual environment with bench/peers/trl.txt: python -m bench.parts.trl_vectors > tests/train/trl_vectors.json
The trainers' own loss methods are called on a stand-in for the trainer: a model that gives log-probabilities out. PPO,
which TRL 1 no longer has, follows the arithmetic of `PPOTrainer.train` in TRL 0.19.1.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

__all__: list[str] = []

PAIRS, TOKENS = 4, 5
LENGTHS = [5, 3, 4, 1, 2, 5, 4, 3]


def _same(value: Any, *_: Any, **__: Any) -> Any:
    return value


def _trainer(**values: Any) -> Any:
    """What the loss methods ask of a trainer on one device."""
    accelerator = SimpleNamespace(
        device=torch.device("cpu"), gather=_same, gather_for_metrics=_same, reduce=_same, sync_gradients=False,
        num_processes=1,
    )  # fmt: skip
    plain = {
        "accelerator": accelerator,
        "model": SimpleNamespace(training=True),
        "aux_loss_enabled": False,
        "precompute_ref_logps": True,
        "_metrics": {"train": defaultdict(list), "eval": defaultdict(list)},
        "_total_train_tokens": 0,
        "_tp_size": 1,
    }
    return SimpleNamespace(**(plain | values))


def _drawn(generator: torch.Generator, *shape: int, scale: float = 1.0) -> torch.Tensor:
    return -torch.rand(*shape, generator=generator, dtype=torch.float64) * scale - 0.05


def _completions(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """(log-probabilities [2P, tokens], mask) of P chosen and P rejected answers, 0 behind their ends."""
    mask = (torch.arange(TOKENS)[None] < torch.tensor(LENGTHS)[:, None]).double()
    return _drawn(generator, 2 * PAIRS, TOKENS, scale=3.0) * mask, mask


def _outputs(logprobs: torch.Tensor) -> Callable[..., Any]:
    zeros = torch.zeros_like(logprobs)
    return lambda **_: SimpleNamespace(log_probs=logprobs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())


def _with_first(mask: torch.Tensor) -> torch.Tensor:
    """A column for the token that nothing predicts."""
    return torch.cat([torch.zeros(len(mask), 1, dtype=mask.dtype), mask], dim=1)


def preferences() -> dict[str, Any]:
    from trl import DPOTrainer, KTOTrainer
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

    generator = torch.Generator().manual_seed(0)
    logprobs, mask = _completions(generator)
    reference = _drawn(generator, 2 * PAIRS, scale=8.0)
    sums, means = logprobs.sum(1), logprobs.sum(1) / mask.sum(1)
    out: dict[str, Any] = {"policy": logprobs.tolist(), "lengths": LENGTHS, "reference": reference.tolist()}
    inputs = {
        "input_ids": torch.zeros(2 * PAIRS, TOKENS + 1, dtype=torch.long),
        "attention_mask": torch.ones(2 * PAIRS, TOKENS + 1),
        "completion_mask": _with_first(mask).long(),
        "ref_chosen_logps": reference[:PAIRS],
        "ref_rejected_logps": reference[PAIRS:],
    }
    dpo = {"ld_alpha": None, "f_divergence_type": "reverse_kl", "loss_weights": [1.0], "use_weighting": False}
    for kind, beta in (("sigmoid", 0.1), ("sigmoid", 0.7), ("ipo", 0.3)):
        trainer = _trainer(beta=beta, loss_types=[kind], label_smoothing=0.0, **dpo)
        out[f"{kind}/{beta}"] = float(DPOTrainer._compute_loss(trainer, _outputs(logprobs), inputs, False))
    ratios = sums - reference
    smooth = _trainer(alpha=0.0, loss_type="sigmoid", beta=0.1, label_smoothing=0.2)
    out["smoothed/0.1/0.2"] = CPOTrainer.cpo_loss(smooth, ratios[:PAIRS], ratios[PAIRS:])[0].tolist()
    simpo = _trainer(alpha=0.0, loss_type="simpo", beta=2.0, simpo_gamma=0.8, label_smoothing=0.1)
    out["simpo/2.0/0.8/0.1"] = CPOTrainer.cpo_loss(simpo, means[:PAIRS], means[PAIRS:])[0].tolist()
    ratio = ORPOTrainer.odds_ratio_loss(_trainer(beta=1.0), means[:PAIRS], means[PAIRS:])[0]
    out["odds_ratio"] = (-ratio).tolist()
    unrelated, reference_unrelated = _drawn(generator, 2 * PAIRS, scale=5.0), _drawn(generator, 2 * PAIRS, scale=9.0)
    label = torch.tensor([True, False, False, True, True, False, True, False])
    judged = inputs | {"ref_logps": reference, "ref_KL_logps": reference_unrelated, "label": label}
    kto = _trainer(
        calculate_KL=True, loss_type="kto", beta=0.3, desirable_weight=1.0, undesirable_weight=1.5,
        _compute_kl_logps=lambda *_: unrelated,
    )  # fmt: skip
    out["kto"] = {
        "unrelated": (unrelated - reference_unrelated).tolist(),
        "desirable": label.tolist(),
        "loss/0.3/1.0/1.5": float(KTOTrainer._compute_loss(kto, _outputs(logprobs), judged, False)),
    }
    return out


def reward() -> dict[str, Any]:
    from trl import RewardTrainer

    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(2 * PAIRS, generator=generator, dtype=torch.float64)
    out: dict[str, Any] = {"scores": scores.tolist()}
    for centering in (None, 0.01):
        trainer = _trainer(args=SimpleNamespace(center_rewards_coefficient=centering))
        inputs = {"attention_mask": torch.ones(1)}
        model: Callable[..., Any] = lambda **_: SimpleNamespace(logits=scores[:, None])  # noqa: E731
        out[f"loss/{centering or 0.0}"] = float(RewardTrainer.compute_loss(trainer, model, inputs))
    return out


def distill() -> dict[str, Any]:
    from trl.experimental.gkd import GKDTrainer

    generator = torch.Generator().manual_seed(2)
    student, teacher = (torch.randn(3, 7, generator=generator, dtype=torch.float64) * 2 for _ in range(2))
    out: dict[str, Any] = {"student": student.tolist(), "teacher": teacher.tolist()}
    for mixture in (0.0, 0.3, 1.0):
        for temperature in (1.0, 2.5):
            loss = GKDTrainer.generalized_jsd_loss(
                student[None], teacher[None], beta=mixture, temperature=temperature, reduction="sum"
            )
            out[f"{mixture}/{temperature}"] = float(loss)
    return out


def grpo() -> dict[str, Any]:
    from trl import GRPOTrainer
    from trl.trainer.utils import nanstd

    generator = torch.Generator().manual_seed(3)
    logprobs, mask = _completions(generator)
    old = (logprobs + torch.randn(logprobs.shape, generator=generator, dtype=torch.float64) * 0.3) * mask
    reference = (logprobs + torch.randn(logprobs.shape, generator=generator, dtype=torch.float64) * 0.4) * mask
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.5, 0.2, 0.9, 0.1]], dtype=torch.float64)
    centred = rewards - rewards.mean(1, keepdim=True)
    advantages = {
        "none": centred,
        "group": centred / (nanstd(rewards, dim=1)[:, None] + 1e-4),
        "batch": centred / (nanstd(rewards) + 1e-4),
    }
    out: dict[str, Any] = {
        "policy": logprobs.tolist(), "old": old.tolist(), "reference": reference.tolist(), "lengths": LENGTHS,
        "rewards": rewards.tolist(), "max_tokens": 9,
        "advantages": {name: value.tolist() for name, value in advantages.items()},
    }  # fmt: skip
    for kind in ("grpo", "bnpo", "dr_grpo", "dapo"):
        for kl in (0.0, 0.2):
            trainer = _trainer(
                top_entropy_quantile=1.0, off_policy_mask_threshold=None, importance_sampling_level="token", beta=kl,
                loss_type=kind, epsilon_low=0.2, epsilon_high=0.28, use_vllm=False, max_completion_length=9,
                current_gradient_accumulation_steps=1, _entropy_bonus_enabled=False,
                args=SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1),
                _get_per_token_logps_and_entropies=lambda *_, **__: (logprobs, torch.zeros_like(logprobs), None),
            )  # fmt: skip
            inputs = {
                "prompt_ids": torch.zeros(8, 1).long(), "prompt_mask": torch.ones(8, 1),
                "completion_ids": torch.zeros(8, TOKENS).long(), "completion_mask": mask,
                "advantages": advantages["group"].reshape(-1), "old_per_token_logps": old,
                "ref_per_token_logps": reference, "num_items_in_batch": mask.sum(),
            }  # fmt: skip
            out[f"{kind}/{kl}"] = float(GRPOTrainer._compute_loss(trainer, None, inputs))
    return out


def ppo() -> dict[str, Any]:
    """One batch of whole-length answers: rewards from scores and k1, GAE, whitening, both clipped losses."""
    gamma, lam, kl_weight, clip, value_clip, value_weight = 0.98, 0.9, 0.05, 0.2, 0.3, 0.1
    generator = torch.Generator().manual_seed(4)
    rows, size = 3, 4

    def normal(scale: float) -> torch.Tensor:
        return torch.randn(rows, size, generator=generator, dtype=torch.float64) * scale

    old = _drawn(generator, rows, size, scale=2.0)
    reference, new = old + normal(0.2), old + normal(0.3)
    values, predicted = normal(0.5), normal(0.5)
    scores = torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64)
    rewards = -kl_weight * (old - reference)
    rewards[:, -1] += scores
    last = torch.zeros(rows, dtype=torch.float64)
    backwards = []
    for place in range(size - 1, -1, -1):
        following = values[:, place + 1] if place + 1 < size else torch.zeros(rows, dtype=torch.float64)
        last = rewards[:, place] + gamma * following - values[:, place] + gamma * lam * last
        backwards.append(last)
    raw = torch.stack(backwards[::-1], dim=1)
    returns = raw + values
    advantages = (raw - raw.mean()) * torch.rsqrt(raw.var() + 1e-8)
    ratio = torch.exp(new - old)
    policy = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip)).mean()
    near = torch.clamp(predicted, values - value_clip, values + value_clip)
    value = 0.5 * torch.maximum((predicted - returns) ** 2, (near - returns) ** 2).mean()
    settings = {"gamma": gamma, "lam": lam, "kl_weight": kl_weight, "clip": clip, "value_clip": value_clip}
    tensors = {"old": old, "reference": reference, "new": new, "values": values, "predicted": predicted}
    results = {"advantages": advantages, "returns": returns}
    return {
        "settings": settings | {"value_weight": value_weight},
        "scores": scores.tolist(),
        **{name: tensor.tolist() for name, tensor in (tensors | results).items()},
        "loss": float(policy + value_weight * value),
    }


def _short(value: Any) -> Any:
    """Numbers of nine digits: a few kB."""
    if isinstance(value, dict):
        return {key: _short(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_short(each) for each in value]
    return float(f"{value:.9g}") if isinstance(value, float) else value


def main() -> None:
    import trl

    parts = (preferences, reward, distill, grpo, ppo)
    print(
        json.dumps({"trl": trl.__version__, **{part.__name__: _short(part()) for part in parts}}, separators=(",", ":"))
    )


if __name__ == "__main__":
    main()
