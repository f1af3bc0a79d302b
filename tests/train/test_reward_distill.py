"""A reward model from pairs, and a student that learns from a teacher."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from riverrun.base.errors import ConfigError, InputError, IntegrityError
from riverrun.base.types import Message
from riverrun.models.load import load_checkpoint, load_model
from riverrun.models.transformer import CausalLM
from riverrun.train.objectives.config import DistillConfig, RewardConfig
from riverrun.train.objectives.distill import Distill
from riverrun.train.objectives.reward import HEAD_FILE, Reward, RewardScorer, last_places, load_head, score_rows
from riverrun.wire.codec import get_codec
from tests.tiny_model import tiny_config, write_tiny
from tests.train.tiny_policy import gradient, pack, pairs, policy, swapped


def test_scores_are_read_after_each_rows_last_token() -> None:
    batch = pack(*pairs(3))
    ids = batch.ids()
    assert ids[last_places(batch).numpy()].tolist() == [row.ids[-1] for row in batch.rows]
    model = policy(moved=True)
    head = torch.randn(64, generator=torch.Generator().manual_seed(0))
    together = score_rows(model, head, batch.rows, micro_tokens=4096)
    apart = score_rows(model, head, batch.rows, micro_tokens=64)
    assert together == pytest.approx(apart, rel=1e-4, abs=1e-5)
    for row, score in zip(batch.rows, apart, strict=True):
        attend = model.packed_groups([(0, [len(row.ids)])])
        with torch.no_grad():
            hidden = model(torch.tensor(row.ids), attend.positions, attend)
        assert float(hidden[-1] @ head) == pytest.approx(score, rel=1e-4, abs=1e-5)


def test_the_loss_is_bradley_terry_and_neighbours_do_not_matter() -> None:
    groups = pairs(4)
    model = policy(moved=True)
    objective = Reward(model, RewardConfig(centering=0.1))
    batch = pack(*groups)
    scores = torch.tensor(score_rows(model, objective.head.detach(), batch.rows)).view(-1, 2)
    wanted = -torch.nn.functional.logsigmoid(scores[:, 0] - scores[:, 1]) + 0.1 * scores.sum(1) ** 2
    whole = objective(batch)
    assert float(whole.total.detach()) == pytest.approx(float(wanted.sum()), rel=1e-4)
    assert whole.metrics["accuracy"] == float((scores[:, 0] > scores[:, 1]).sum())
    parts = torch.stack([objective(pack(group)).total for group in groups])
    assert float(parts.sum().detach()) == pytest.approx(float(whole.total.detach()), rel=1e-5)
    turned = objective(pack(*map(swapped, groups)))
    assert turned.metrics["margin"] == pytest.approx(-whole.metrics["margin"], rel=1e-4)
    one, other = gradient(model, whole.total), gradient(model, parts.sum())
    assert float((one - other).norm() / one.norm()) < 1e-5


def test_a_reward_model_learns_ranks_and_is_read_again(tmp_path: Path) -> None:
    model = policy()
    objective = Reward(model)
    batch = pack(*pairs(6))
    learns = [p for p in model.parameters() if p.requires_grad] + list(objective.parameters().values())
    optimizer = torch.optim.AdamW(learns, lr=5e-3)
    losses = []
    for _ in range(12):
        loss = objective(batch)
        losses.append(float(loss.total.detach()) / 6)
        optimizer.zero_grad()
        (loss.total / 6).backward()
        optimizer.step()
        model.refresh()
    assert losses[-1] < 0.3 < losses[0]
    assert objective(batch).metrics["accuracy"] == 6
    objective.save(tmp_path)
    head = load_head(tmp_path, 64)
    scores = torch.tensor(score_rows(model, head, batch.rows)).view(-1, 2)
    assert (scores[:, 0] > scores[:, 1]).all()
    with pytest.raises(IntegrityError, match=r"'score.weight' is \[1, 64\], this model needs \[1, 32\]"):
        load_head(tmp_path, 32)
    with pytest.raises(InputError, match=f"{HEAD_FILE} does not exist"):
        load_head(tmp_path / "none", 64)


def test_conversations_are_scored_as_they_are_trained(tmp_path: Path) -> None:
    opened = load_checkpoint(write_tiny(tmp_path / "m"))
    model = load_model(opened, torch.float32)
    scorer = RewardScorer(model, torch.ones(64), opened.tokenizer, opened.template, get_codec("hermes"))
    talk = [Message.of("user", "How much?"), Message.of("assistant", "12.")]
    other = [*talk[:1], Message.of("assistant", "No idea at all.")]
    one, two = scorer.score([talk, other])
    assert one != two
    assert scorer.score([other])[0] == pytest.approx(two, rel=1e-5)


# ---- distillation -------------------------------------------------------------------------------------------------


def whole_logits(model: CausalLM, rows: list) -> torch.Tensor:
    """[N, V] of every label, row by row, each computed alone."""
    out = []
    for row in rows:
        attend = model.packed_groups([(0, [len(row.ids)])])
        logits = model.logits(model(torch.tensor(row.ids), attend.positions, attend))
        out.append(logits[[i - 1 for i in range(1, len(row.ids)) if row.learned[i]]])
    return torch.cat(out)


@pytest.mark.parametrize("mixture", [0.0, 0.5, 1.0])
def test_distilling_is_the_divergence_of_whole_logits(mixture: float) -> None:
    student, teacher = policy(moved=True), policy(full=True, seed=5).requires_grad_(False)
    batch = pack(*pairs(3))
    config = DistillConfig(mixture=mixture, temperature=2.0, hard_weight=0.3)
    objective = Distill(student, config, teacher=teacher)
    assert objective.count(batch) == batch.label_tokens
    loss = objective(batch)
    got = gradient(student, loss.total)
    logits = whole_logits(student, list(batch.rows))
    p, q = (torch.log_softmax(x / 2.0, 1) for x in (logits, whole_logits(teacher, list(batch.rows))))
    if mixture == 0.5:
        middle = (0.5 * (p.exp() + q.exp())).log()
        soft = 0.5 * (q.exp() * (q - middle)).sum() + 0.5 * (p.exp() * (p - middle)).sum()
    else:
        soft = (p.exp() * (p - q)).sum() if mixture else (q.exp() * (q - p)).sum()
    targets = torch.tensor([i for row in batch.rows for i, flag in zip(row.ids, row.learned, strict=True) if flag])
    hard = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    wanted = gradient(student, 0.7 * soft + 0.3 * hard)
    assert float(loss.total.detach()) == pytest.approx(float((0.7 * soft + 0.3 * hard).detach()), rel=1e-5)
    assert loss.metrics["divergence"] == pytest.approx(float(soft.detach()), rel=1e-5)
    assert loss.metrics["next_token"] == pytest.approx(float(hard.detach()), rel=1e-5)
    assert float((got - wanted).norm() / wanted.norm()) < 1e-4


def test_a_student_comes_nearer_to_its_teacher() -> None:
    student, teacher = policy(full=True), policy(full=True, seed=5).requires_grad_(False)
    batch = pack(*pairs(4))
    objective = Distill(student, teacher=teacher)
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    seen = []
    for _ in range(10):
        loss = objective(batch)
        seen.append(float(loss.total.detach()) / objective.count(batch))
        optimizer.zero_grad()
        (loss.total / objective.count(batch)).backward()
        optimizer.step()
    assert 0 < seen[-1] < 0.7 * seen[0]
    assert math.isfinite(seen[-1])


def test_a_teacher_of_another_vocabulary_is_refused() -> None:
    with pytest.raises(ConfigError, match="the teacher's vocabulary has 330 tokens, the student's 320"):
        Distill(policy(), teacher=CausalLM(tiny_config(vocab_size=330)))
