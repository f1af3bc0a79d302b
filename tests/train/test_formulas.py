"""The losses of preferences and rewards: TRL's numbers (bench/parts/trl_vectors.py), gradients, symmetries."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from riverrun.train.objectives import formulas
from riverrun.train.objectives.config import DistillConfig
from riverrun.train.objectives.distill import linear_divergence

VECTORS: dict[str, Any] = json.loads((Path(__file__).parent / "trl_vectors.json").read_text())


def tensor(values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(ours: torch.Tensor, theirs: Any, bar: float = 1e-6) -> bool:
    return bool((ours - tensor(theirs)).abs().max() <= bar)


@pytest.fixture(scope="module")
def pairs() -> dict[str, torch.Tensor]:
    """Sums and means of log-probabilities, less the reference: [P] chosen, [P] rejected each."""
    given_ = VECTORS["preferences"]
    sums, lengths = tensor(given_["policy"]).sum(1), tensor(given_["lengths"])
    ratios = sums - tensor(given_["reference"])
    out = {}
    for name, value in (("sum", ratios), ("mean", ratios / lengths), ("policy_mean", sums / lengths)):
        half = len(value) // 2
        out |= {f"{name}_chosen": value[:half], f"{name}_rejected": value[half:], name: value}
    return out


@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_dpo_is_trls(pairs: dict[str, torch.Tensor], beta: float) -> None:
    losses = formulas.dpo(pairs["sum_chosen"] - pairs["sum_rejected"], beta)
    assert close(losses.mean(), VECTORS["preferences"][f"sigmoid/{beta}"])


def test_smoothed_dpo_is_trls(pairs: dict[str, torch.Tensor]) -> None:
    losses = formulas.dpo(pairs["sum_chosen"] - pairs["sum_rejected"], 0.1, 0.2)
    assert close(losses, VECTORS["preferences"]["smoothed/0.1/0.2"])


def test_ipo_is_trls(pairs: dict[str, torch.Tensor]) -> None:
    losses = formulas.ipo(pairs["mean_chosen"] - pairs["mean_rejected"], 0.3)
    assert close(losses.mean(), VECTORS["preferences"]["ipo/0.3"])


def test_simpo_is_trls(pairs: dict[str, torch.Tensor]) -> None:
    losses = formulas.simpo(pairs["policy_mean_chosen"] - pairs["policy_mean_rejected"], 2.0, 0.8, 0.1)
    assert close(losses, VECTORS["preferences"]["simpo/2.0/0.8/0.1"])


def test_odds_ratio_is_trls(pairs: dict[str, torch.Tensor]) -> None:
    losses = formulas.odds_ratio(pairs["policy_mean_chosen"], pairs["policy_mean_rejected"])
    assert close(losses, VECTORS["preferences"]["odds_ratio"])


def test_kto_is_trls(pairs: dict[str, torch.Tensor]) -> None:
    kto = VECTORS["preferences"]["kto"]
    kl = tensor(kto["unrelated"]).mean().clamp(min=0)
    assert float(kl) > 0, "a point of reference of 0 would show nothing"
    losses = formulas.kto(pairs["sum"], torch.tensor(kto["desirable"]), kl, 0.3, (1.0, 1.5))
    assert close(losses.mean(), kto["loss/0.3/1.0/1.5"])


@pytest.mark.parametrize("centering", [0.0, 0.01])
def test_bradley_terry_is_trls(centering: float) -> None:
    chosen, rejected = tensor(VECTORS["reward"]["scores"]).view(2, -1)
    losses = formulas.bradley_terry(chosen, rejected, centering)
    assert close(losses.mean(), VECTORS["reward"][f"loss/{centering}"])


@pytest.mark.parametrize("mixture", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_divergence_is_that_of_trls_gkd(mixture: float, temperature: float) -> None:
    student, teacher = (
        torch.log_softmax(tensor(VECTORS["distill"][name]) / temperature, dim=1) for name in ("student", "teacher")
    )
    losses = formulas.divergence(student, teacher, mixture)
    assert close(losses.sum(), VECTORS["distill"][f"{mixture}/{temperature}"])


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_group_advantages_are_trls(scale: str) -> None:
    given_ = VECTORS["grpo"]
    assert close(formulas.group_advantages(tensor(given_["rewards"]), scale), given_["advantages"][scale])


@pytest.mark.parametrize("kind", ["grpo", "bnpo", "dr_grpo", "dapo"])
@pytest.mark.parametrize("kl", [0.0, 0.2])
def test_the_surrogate_is_that_of_trls_grpo(kind: str, kl: float) -> None:
    """The sum over the counted units, divided by their number; `GRPO` is held to the same numbers in test_rl.py."""
    given_ = VECTORS["grpo"]
    lengths = torch.tensor(given_["lengths"])
    inside = torch.arange(5)[None] < lengths[:, None]
    policy, old, reference = (tensor(given_[name])[inside] for name in ("policy", "old", "reference"))
    advantages = tensor(given_["advantages"]["group"]).reshape(-1).repeat_interleave(lengths)
    losses = formulas.clipped_surrogate(policy, old, advantages, 0.2, 0.28) + kl * formulas.k3(policy, reference)
    ours = {
        "grpo": (losses / lengths.repeat_interleave(lengths)).sum() / len(lengths),
        "bnpo": losses.mean(),
        "dr_grpo": losses.sum() / given_["max_tokens"] / len(lengths),
        "dapo": losses.sum() / lengths.sum(),
    }
    assert close(ours[kind], given_[f"{kind}/{kl}"])


def test_ppo_is_trls() -> None:
    given_ = VECTORS["ppo"]
    old, reference, new, values, predicted = (
        tensor(given_[name]) for name in ("old", "reference", "new", "values", "predicted")
    )
    settings_ = given_["settings"]
    rewards = -settings_["kl_weight"] * formulas.k1(old, reference)
    rewards[:, -1] += tensor(given_["scores"])
    estimates = [formulas.gae(r, v, settings_["gamma"], settings_["lam"]) for r, v in zip(rewards, values, strict=True)]
    returns = torch.stack([each for _, each in estimates])
    advantages = formulas.whiten(torch.cat([each for each, _ in estimates]))
    assert close(returns, given_["returns"])
    assert close(advantages.view(returns.shape), given_["advantages"])
    clip = settings_["clip"]
    policy = formulas.clipped_surrogate(new.flatten(), old.flatten(), advantages, clip, clip).mean()
    value = formulas.clipped_value(predicted, values, returns, settings_["value_clip"]).mean()
    assert close(policy + settings_["value_weight"] * value, given_["loss"])


# ---- gradients and symmetries -------------------------------------------------------------------------------------


def leaf(*shape: int, seed: int = 0, scale: float = 1.0, below: float = 0.0) -> torch.Tensor:
    values = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * scale
    return (values if not below else -values.abs() - below).requires_grad_()


def test_gradients_are_those_of_differences() -> None:
    check = torch.autograd.gradcheck
    old, advantages = leaf(6, seed=1, scale=0.2).detach(), leaf(6, seed=2).detach()
    desirable = torch.tensor([True, False, True, False, True, True])
    assert check(lambda m: formulas.dpo(m, 0.3, 0.1), leaf(6))
    assert check(lambda m: formulas.ipo(m, 0.3), leaf(6))
    assert check(lambda m: formulas.simpo(m, 2.0, 0.5, 0.1), leaf(6))
    # on both sides of the branch at -ln 2
    assert check(formulas.odds_ratio, (leaf(6, below=0.01), leaf(6, seed=3, below=0.8)))
    assert check(lambda r: formulas.kto(r, desirable, torch.tensor(0.2).double(), 0.3, (1.0, 2.0)), leaf(6))
    assert check(lambda a, b: formulas.bradley_terry(a, b, 0.05), (leaf(6), leaf(6, seed=3)))
    assert check(lambda x: formulas.clipped_surrogate(x, old, advantages, 0.1, 0.2), leaf(6, scale=0.2))
    assert check(lambda x: formulas.k3(x, old), leaf(6))
    assert check(lambda v: formulas.clipped_value(v, old, advantages, 0.2), leaf(6))


@pytest.mark.parametrize("mixture", [0.0, 0.4, 1.0])
def test_the_chunked_divergence_has_the_gradient_of_the_whole(mixture: float) -> None:
    """300 rows are three chunks; also of the head, where it learns, and mixed with the plain loss."""
    hidden, head = leaf(300, 6), leaf(11, 6, seed=1)
    guide, teacher_head = leaf(300, 4, seed=2).detach(), leaf(11, 4, seed=3).detach()
    targets = torch.randint(0, 11, (300,), generator=torch.Generator().manual_seed(4))
    config = DistillConfig(mixture=mixture, temperature=1.7, hard_weight=0.25)
    total, soft, hard = linear_divergence(hidden, head, guide, teacher_head, targets, config)
    got = torch.autograd.grad(total * 0.5, (hidden, head))
    logits, wanted = hidden @ head.T, guide @ teacher_head.T
    whole = formulas.divergence(torch.log_softmax(logits / 1.7, 1), torch.log_softmax(wanted / 1.7, 1), mixture).sum()
    plain = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    both = 0.75 * whole + 0.25 * plain
    assert float(total.detach()) == pytest.approx(float(both.detach()), rel=1e-12)
    assert (float(soft), float(hard)) == pytest.approx((float(whole.detach()), float(plain.detach())), rel=1e-12)
    for ours, theirs in zip(got, torch.autograd.grad(both * 0.5, (hidden, head)), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-12)
    assert torch.autograd.gradcheck(
        lambda h, w: linear_divergence(h, w, guide[:5], teacher_head, targets[:5], config)[0],
        (hidden[:5].detach().requires_grad_(), head),
    )


def test_a_head_given_out_in_slabs_diverges_alike() -> None:
    hidden, guide = leaf(9, 6), leaf(9, 6, seed=2).detach().float()
    head = leaf(11, 6, seed=1).detach().float()

    class Slabs:
        shape = head.shape

        def slabs(self):  # type: ignore[no-untyped-def]
            yield from ((slice(at, min(at + 4, 11)), head[at : at + 4]) for at in (0, 4, 8))

    made = []
    for each in (head, Slabs()):
        total, _, _ = linear_divergence(hidden.float(), each, guide, each, torch.zeros(9).long(), DistillConfig())
        made.append((float(total.detach()), torch.autograd.grad(total, hidden)[0]))
    assert made[0][0] == pytest.approx(made[1][0], rel=1e-5)
    assert torch.allclose(made[0][1], made[1][1], atol=1e-5)


def test_a_student_that_is_its_teacher_has_nothing_to_learn() -> None:
    hidden, head = leaf(9, 6), leaf(11, 6, seed=1).detach()
    for mixture in (0.0, 0.5, 1.0):
        total, _, _ = linear_divergence(
            hidden, head, hidden.detach(), head, torch.zeros(9).long(), DistillConfig(mixture=mixture)
        )
        (gradient,) = torch.autograd.grad(total, hidden)
        assert abs(float(total.detach())) < 1e-12
        assert float(gradient.abs().max()) < 1e-12


FINITE = st.floats(-30, 30, allow_nan=False)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(FINITE, st.floats(0.01, 2.0), st.floats(0, 0.4))
def test_a_swapped_pair_is_a_swapped_label(margin: float, beta: float, smoothing: float) -> None:
    """With half of the labels swapped the two ways round cost the same; and dpo(-m) - dpo(m) is beta m (1 - 2 s)."""
    one, other = tensor([margin]), tensor([-margin])
    difference = float(formulas.dpo(other, beta, smoothing) - formulas.dpo(one, beta, smoothing))
    assert difference == pytest.approx(beta * margin * (1 - 2 * smoothing), abs=1e-9)
    assert float(formulas.simpo(one, beta, 0.0)) == pytest.approx(float(formulas.dpo(one, beta)), abs=1e-12)
    assert float(formulas.dpo(tensor([0.0]), beta, smoothing)) == pytest.approx(math.log(2), abs=1e-15)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(FINITE)
def test_a_beta_of_almost_nothing_prefers_almost_nothing(margin: float) -> None:
    value = tensor([margin]).requires_grad_()
    loss = formulas.dpo(value, 1e-9)
    (gradient,) = torch.autograd.grad(loss, value)
    assert float(loss) == pytest.approx(math.log(2), abs=1e-7)
    assert abs(float(gradient)) <= 1e-9


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.lists(st.floats(-5, 5), min_size=3, max_size=3), min_size=1, max_size=4), st.floats(-5, 5))
def test_advantages_are_centred_and_equal_rewards_give_none(rewards: list[list[float]], same: float) -> None:
    for scale in ("group", "batch", "none"):
        advantages = formulas.group_advantages(tensor([*rewards, [same] * 3]), scale)
        assert float(advantages.sum(1).abs().max()) < 1e-3 * (1 + float(advantages.abs().max()))
        assert not advantages[-1].any(), "exactly 0, not a rounding's width beside it"


def test_estimates_of_advantages_at_their_ends() -> None:
    """lam 1 is the sum of what was earned less the value, lam 0 the error of one step."""
    rewards, values = tensor([0.5, -1.0, 2.0]), tensor([0.1, 0.7, -0.3])
    whole, returns = formulas.gae(rewards, values, 0.9, 1.0)
    assert close(returns, [0.5 + 0.9 * (-1.0 + 0.9 * 2.0), -1.0 + 0.9 * 2.0, 2.0], 1e-12)
    assert close(whole, (returns - values).tolist(), 1e-12)
    step, _ = formulas.gae(rewards, values, 0.9, 0.0)
    assert close(step, [0.5 + 0.9 * 0.7 - 0.1, -1.0 + 0.9 * -0.3 - 0.7, 2.0 + 0.3], 1e-12)
