"""The losses of preferences and of rewards as functions of log-probabilities; they know no model and no pack.

P = pairs, N = completion tokens of a micro-batch. Every function gives one loss a pair or a token; who divides by what
is the objective's business. Log-probabilities are natural.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

__all__ = [
    "bradley_terry",
    "clipped_surrogate",
    "clipped_value",
    "divergence",
    "dpo",
    "gae",
    "group_advantages",
    "ipo",
    "k1",
    "k3",
    "kto",
    "odds_ratio",
    "simpo",
    "whiten",
]


def dpo(margin: Tensor, beta: float, smoothing: float = 0.0) -> Tensor:
    """-log sigmoid(beta * margin) [P] (https://arxiv.org/abs/2305.18290, eq. 7).

    `margin`: (chosen - its reference) - (rejected - its reference), sums over the completion. `smoothing` is the share
    of pairs taken to be labelled the wrong way round (conservative DPO).
    """
    return -logsigmoid(beta * margin) * (1 - smoothing) - logsigmoid(-beta * margin) * smoothing


def ipo(margin: Tensor, beta: float) -> Tensor:
    """(margin - 1 / (2 beta))^2 [P] (https://arxiv.org/abs/2310.12036, eq. 17).

    `margin` of means over the completion's tokens, as the paper's results were made: with sums a long answer's square
    outweighs all others.
    """
    return (margin - 1 / (2 * beta)) ** 2


def simpo(margin: Tensor, beta: float, gamma: float, smoothing: float = 0.0) -> Tensor:
    """-log sigmoid(beta * margin - gamma) [P] (https://arxiv.org/abs/2405.14734, eq. 6); `margin` of means."""
    logits = beta * margin - gamma
    return -logsigmoid(logits) * (1 - smoothing) - logsigmoid(-logits) * smoothing


def odds_ratio(chosen: Tensor, rejected: Tensor) -> Tensor:
    """-log sigmoid(log odds(chosen) - log odds(rejected)) [P] of mean log-probabilities.

    https://arxiv.org/abs/2403.07691, eq. 7: odds(p) = p / (1 - p).
    """
    return -logsigmoid((chosen - rejected) - (_log1mexp(chosen) - _log1mexp(rejected)))


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x < 0, exact on both sides of -ln 2."""
    far = x < -math.log(2)
    # the branch that is not taken must have a finite gradient, too
    near = torch.log(-torch.expm1(torch.where(far, torch.full_like(x, -1.0), x)))
    return torch.where(far, torch.log1p(-torch.exp(torch.where(far, x, torch.full_like(x, -1.0)))), near)


def kto(ratio: Tensor, desirable: Tensor, kl: Tensor, beta: float, weights: tuple[float, float]) -> Tensor:
    """weight * (1 - sigmoid(+-beta * (ratio - kl))) [P] (https://arxiv.org/abs/2402.01306, eq. 7).

    `ratio`: completion's log-probability less its reference; `desirable` [P] bool; `kl` the point of reference;
    `weights` of desirable and undesirable ones.
    """
    sign = torch.where(desirable, 1.0, -1.0).to(ratio.dtype)
    weight = torch.where(desirable, weights[0], weights[1]).to(ratio.dtype)
    return weight * (1 - torch.sigmoid(sign * beta * (ratio - kl)))


def bradley_terry(chosen: Tensor, rejected: Tensor, centering: float = 0.0) -> Tensor:
    """-log sigmoid(chosen - rejected) + centering * (chosen + rejected)^2 [P] of scores.

    The second term keeps scores near 0, which pairs alone leave open (https://arxiv.org/abs/2312.09244).
    """
    return -logsigmoid(chosen - rejected) + centering * (chosen + rejected) ** 2


def divergence(student: Tensor, teacher: Tensor, mixture: float) -> Tensor:
    """Generalised Jensen-Shannon divergence [N] of log-probabilities [N, V] (https://arxiv.org/abs/2306.13649, eq. 1).

    `mixture` 0 is KL(teacher || student), 1 is KL(student || teacher), between them
    mixture * KL(teacher || m) + (1 - mixture) * KL(student || m) with m = mixture * teacher + (1 - mixture) * student.
    """
    if mixture == 0.0:
        return _kl(teacher, student)
    if mixture == 1.0:
        return _kl(student, teacher)
    middle = torch.logaddexp(student + math.log1p(-mixture), teacher + math.log(mixture))
    return mixture * _kl(teacher, middle) + (1 - mixture) * _kl(student, middle)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) of log-probabilities over the last axis."""
    return (p.exp() * (p - q)).sum(dim=-1)


# ---- rewards ------------------------------------------------------------------------------------------------------


def group_advantages(rewards: Tensor, scale: str = "group") -> Tensor:
    """(reward - mean of its group) / (deviation + 1e-4), [groups, G] -> [groups, G].

    https://arxiv.org/abs/2402.03300, section 4.1.2. `scale` group divides by the deviation within the group, batch by
    that of all rewards, none does not divide (https://arxiv.org/abs/2503.20783). Equal rewards give exactly 0.
    """
    # a mean of equal numbers may miss them by a rounding, which the 1e-4 would not hide: compare, too
    same = (rewards == rewards[:, :1]).all(dim=1, keepdim=True)
    centred = torch.where(same, torch.zeros_like(rewards), rewards - rewards.mean(dim=1, keepdim=True))
    if scale == "none" or rewards.numel() < 2:
        return centred
    if scale == "batch":
        return centred / (rewards.std() + 1e-4)
    deviation = rewards.std(dim=1, keepdim=True) if rewards.shape[1] > 1 else torch.zeros_like(rewards)
    return centred / (deviation + 1e-4)


def clipped_surrogate(logprobs: Tensor, old: Tensor, advantages: Tensor, low: float, high: float) -> Tensor:
    """-min(r A, clip(r, 1 - low, 1 + high) A) [N], r = exp(logprobs - old).

    https://arxiv.org/abs/1707.06347, eq. 7.
    """
    ratio = torch.exp(logprobs - old)
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages)


def k3(logprobs: Tensor, reference: Tensor) -> Tensor:
    """exp(d) - d - 1 with d = reference - logprobs: an estimate of KL(policy || reference) [N], never negative."""
    difference = reference - logprobs
    return torch.expm1(difference) - difference


def k1(logprobs: Tensor, reference: Tensor) -> Tensor:
    """logprobs - reference: the plain estimate of KL(policy || reference) [N]."""
    return logprobs - reference


def clipped_value(values: Tensor, old: Tensor, returns: Tensor, clip: float) -> Tensor:
    """0.5 * max((v - R)^2, (clip(v, old +- clip) - R)^2) [N]: the value may move no further than `clip` at a time."""
    near = torch.clamp(values, old - clip, old + clip)
    return 0.5 * torch.maximum((values - returns) ** 2, (near - returns) ** 2)


def gae(rewards: Tensor, values: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """(advantages, returns) [N] of ONE completion by generalised advantage estimation.

    https://arxiv.org/abs/1506.02438, eq. 16.
    `rewards[t]` is what token t brought, `values[t]` what was expected before it; after the last token 0 is expected.
    """
    advantages = torch.zeros_like(rewards)
    running = rewards.new_zeros(())
    for place in reversed(range(len(rewards))):
        following = values[place + 1] if place + 1 < len(values) else 0.0
        running = rewards[place] + gamma * following - values[place] + gamma * lam * running
        advantages[place] = running
    return advantages, advantages + values


def whiten(values: Tensor) -> Tensor:
    """Mean 0 and variance 1 [N]; one value alone, or equal ones, become 0."""
    if len(values) < 2:
        return torch.zeros_like(values)
    return (values - values.mean()) * torch.rsqrt(values.var() + 1e-8)
