"""Preference objectives on packs: the start, the reference, neighbours, the arithmetic against rows computed alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from riverrun.base.errors import ConfigError, IntegrityError
from riverrun.data.packing import Pack
from riverrun.models.transformer import CausalLM
from riverrun.train.objectives import formulas
from riverrun.train.objectives.config import DPOConfig, IPOConfig, KTOConfig, ORPOConfig, SimPOConfig
from riverrun.train.objectives.preference import DPO, IPO, KTO, ORPO, SimPO
from riverrun.train.objectives.reference import (
    ModelReference,
    StoredReference,
    base_weights,
    label_logprobs,
    row_sums,
    starts_at_base,
    store_reference,
)
from tests.train.tiny_policy import gradient, judged, move, pack, pairs, policy, swapped

ALL: list[Any] = [
    (DPO, DPOConfig(beta=0.3, label_smoothing=0.1)),
    (IPO, IPOConfig(beta=0.5)),
    (SimPO, SimPOConfig()),
    (ORPO, ORPOConfig(beta=0.4)),
]


def of_start(model: CausalLM, kind: Any, config: Any) -> Any:
    """The objective as a run makes it: with fresh adapters, which move afterwards."""
    made = kind(model, config)
    move(model)
    return made


def alone(model: CausalLM, row: Any) -> float:
    """Log-probability of a row's learned tokens by a whole softmax over the row by itself."""
    attend = model.packed_groups([(0, [len(row.ids)])])
    with torch.no_grad():
        logprobs = torch.log_softmax(model.logits(model(torch.tensor(row.ids), attend.positions, attend)).double(), 1)
    return sum(float(logprobs[i - 1, row.ids[i]]) for i in range(1, len(row.ids)) if row.learned[i])


def test_rows_of_pairs_have_the_log_probabilities_of_rows_alone() -> None:
    model = policy(moved=True)
    batch = pack(*pairs(3))
    sums = row_sums(label_logprobs(model, batch), batch)
    assert all(group.prefix for group in batch.groups), "the prompt stands once"
    assert sums.tolist() == pytest.approx([alone(model, row) for row in batch.rows], rel=1e-5)


def test_the_base_is_the_model_without_its_adapters() -> None:
    model, batch = policy(), pack(*pairs(3))
    with torch.no_grad():
        before = label_logprobs(model, batch)
    assert starts_at_base(model)
    move(model)
    assert not starts_at_base(model)
    with base_weights(model):
        assert torch.equal(label_logprobs(model, batch), before)
    with torch.no_grad():
        assert not torch.allclose(label_logprobs(model, batch), before, atol=1e-3), "outside, they are there again"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_first_loss_of_dpo_is_ln_2(dtype: torch.dtype) -> None:
    groups = pairs(6)
    for batch in (pack(*groups), pack(groups[2])):
        loss = DPO(policy(dtype=dtype))(batch)
        assert float(loss.total.detach()) / len(batch.groups) == pytest.approx(math.log(2), abs=1e-6)
        assert loss.metrics["margin"] == 0.0
    ipo = IPO(policy(dtype=dtype), IPOConfig(beta=0.5))(pack(*groups))
    assert float(ipo.total.detach()) / 6 == pytest.approx(1.0, abs=1e-6)
    kto = KTO(policy(dtype=dtype))(pack(*judged(groups)))
    assert float(kto.total.detach()) / 6 == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_full_fine_tune_keeps_the_reference_on_disk(tmp_path: Path, dtype: torch.dtype) -> None:
    """The first loss is ln 2 there, too; after the weights moved the numbers are those of the start, also resumed."""
    model, batch = policy(full=True, dtype=dtype), pack(*pairs(5))
    objective = DPO(model, DPOConfig(beta=0.3))
    with pytest.raises(ConfigError, match="dpo of a model without fresh adapters needs the reference"):
        objective(batch)
    objective.prepare_reference([batch], tmp_path, identity="a")
    assert float(objective(batch).total.detach()) / 5 == pytest.approx(math.log(2), abs=1e-6)
    assert objective.reference is not None
    start = objective.reference.sums(batch)
    with torch.no_grad():
        model.embed_tokens.mul_(1.1)
    again = DPO(model, DPOConfig(beta=0.3))
    again.prepare_reference([batch], tmp_path, identity="a")
    assert again.reference is not None
    assert torch.equal(again.reference.sums(batch), start)
    assert not torch.allclose(ModelReference(model).sums(batch), start, atol=1e-2)
    other = store_reference(model, [batch], tmp_path / "reference.safetensors", identity="b")
    assert not torch.equal(other.sums(batch), start), "a file of another run is not taken"
    with pytest.raises(IntegrityError, match="row '0/chosen' has no stored reference log-probability"):
        again.reference.sums(pack(*pairs(1, seed=9)))
    (tmp_path / "reference.safetensors").write_bytes(b"no")
    with pytest.raises(IntegrityError, match="cannot be read"):
        StoredReference.open(tmp_path / "reference.safetensors", identity="a")


def test_training_that_goes_on_from_an_adapter_starts_at_it(tmp_path: Path) -> None:
    """Its reference is the adapter, not the base under it."""
    for dtype in (torch.float32, torch.bfloat16):
        model, batch = policy(moved=True, dtype=dtype), pack(*pairs(5))
        objective = DPO(model)
        assert objective.reference is None
        objective.prepare_reference([batch], tmp_path / str(dtype), identity="a")
        assert float(objective(batch).total.detach()) / 5 == pytest.approx(math.log(2), abs=1e-6)
        assert objective.reference is not None
        base = ModelReference(model).sums(batch)
        assert not torch.allclose(objective.reference.sums(batch), base, atol=1e-2)


def test_objectives_are_their_formulas_on_rows_alone() -> None:
    groups = pairs(4)
    batch = pack(*groups)
    start = policy()
    reference = torch.tensor([alone(start, row) for row in batch.rows]).view(-1, 2)
    model = policy(moved=True)
    sums = torch.tensor([alone(model, row) for row in batch.rows]).view(-1, 2)
    means = sums / torch.tensor([row.label_tokens for row in batch.rows]).view(-1, 2)
    ratios = sums - reference
    averaged = ratios / (sums / means)
    wanted = [
        formulas.dpo(ratios[:, 0] - ratios[:, 1], 0.3, 0.1),
        formulas.ipo(averaged[:, 0] - averaged[:, 1], 0.5),
        formulas.simpo(means[:, 0] - means[:, 1], 2.0, 1.0),
        -means[:, 0] + 0.4 * formulas.odds_ratio(means[:, 0], means[:, 1]),
    ]
    for (kind, config), losses in zip(ALL, wanted, strict=True):
        loss = of_start(policy(), kind, config)(batch)
        assert float(loss.total.detach()) == pytest.approx(float(losses.sum()), rel=1e-4), kind.__name__
        assert loss.metrics["accuracy"] == float((ratios if kind in (DPO, IPO) else means).diff().lt(0).sum())
    labelled = judged(groups)
    good = torch.tensor([group.desirable for group in labelled])
    kl = ratios[:, 1].mean().clamp(min=0)
    config = KTOConfig(beta=0.3, undesirable_weight=1.5)
    loss = of_start(policy(), KTO, config)(pack(*labelled))
    assert float(loss.total.detach()) == pytest.approx(
        float(formulas.kto(ratios[:, 0], good, kl, 0.3, (1.0, 1.5)).sum()), rel=1e-4
    )
    assert loss.metrics["kl"] == pytest.approx(float(kl) * 4, abs=1e-3)


@pytest.mark.parametrize(("kind", "config"), ALL)
def test_neighbours_and_the_cut_change_nothing(kind: Any, config: Any) -> None:
    groups = pairs(5)
    model = policy()
    objective = of_start(model, kind, config)
    whole = objective(pack(*groups))
    assert objective.count(pack(*groups)) == 5
    wanted = gradient(model, whole.total)
    parts = [objective(pack(*some)) for some in (groups[:2], groups[2:3], groups[3:])]
    total = torch.stack([part.total for part in parts]).sum()
    assert float(total.detach()) == pytest.approx(float(whole.total.detach()), rel=1e-5)
    for name, value in whole.metrics.items():
        assert sum(part.metrics[name] for part in parts) == pytest.approx(value, rel=1e-4, abs=1e-5), name
    got = gradient(model, total)
    assert float((got - wanted).norm() / wanted.norm()) < 1e-5
    # a neighbour's other content moves nothing
    one = objective(pack(groups[0], *pairs(3, seed=7)[1:])).total - objective(pack(*pairs(3, seed=7)[1:])).total
    assert float(one.detach()) == pytest.approx(float(objective(pack(groups[0])).total.detach()), rel=1e-4)


def test_a_swapped_pair_has_the_margin_the_other_way_round() -> None:
    groups = pairs(4)
    for kind, config in ALL:
        objective = of_start(policy(), kind, config)
        straight, turned = objective(pack(*groups)), objective(pack(*map(swapped, groups)))
        assert turned.metrics["margin"] == pytest.approx(-straight.metrics["margin"], rel=1e-4)
        assert turned.metrics["accuracy"] == 4 - straight.metrics["accuracy"]


def test_kto_knows_its_micro_batch_by_one_number_alone() -> None:
    """The sum over micro-batches with their own estimates is the formula with those estimates."""
    groups = judged(pairs(4))
    objective = of_start(policy(), KTO, KTOConfig(beta=0.3))
    reference = objective.reference
    assert reference is not None
    parts: list[Pack] = [pack(*groups[:1]), pack(*groups[1:])]
    for part in parts:
        ratios = (row_sums(label_logprobs(objective.model, part), part) - reference.sums(part)).detach().view(-1, 2)
        desirable = torch.tensor([group.desirable for group in part.groups])  # type: ignore[attr-defined]
        wanted = formulas.kto(ratios[:, 0], desirable, ratios[:, 1].mean().clamp(min=0), 0.3, (1.0, 1.0))
        assert float(objective(part).total.detach()) == pytest.approx(float(wanted.sum()), rel=1e-6)


def test_steps_raise_the_chosen_answers() -> None:
    for kind, config in ALL:
        model, batch = policy(), pack(*pairs(4))
        objective = kind(model, config)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
        margins = []
        for _ in range(8):
            loss = objective(batch)
            margins.append(loss.metrics["margin"])
            optimizer.zero_grad()
            (loss.total / 4).backward()
            optimizer.step()
            model.refresh()
        assert margins[-1] > margins[0] + 0.1, kind.__name__
