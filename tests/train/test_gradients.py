"""What the trainer computes against a model written a second time: gradients of packs, sums over micro-batches."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from riverrun.base.progress import Progress
from riverrun.data.packing import Pack
from riverrun.data.tokens import TokenRow
from riverrun.models.io.adapter import adapter_tensors, add_adapters
from riverrun.models.transformer import CausalLM
from riverrun.train import checkpoint
from riverrun.train.duration import Duration
from riverrun.train.loop import LoopConfig, train
from riverrun.train.objectives.supervised import Supervised
from riverrun.train.optim import Optimizer
from riverrun.train.recipe import OptimizerConfig
from tests.naive_model import NaiveLlama
from tests.tiny_model import tiny_config, tiny_weights

PREFIX = 20
RANK, ALPHA = 3, 5.0
SHAPES = [
    {},
    {"num_key_value_heads": 1, "tie_word_embeddings": False},
    {"head_dim": 32, "num_key_value_heads": 4, "rope_theta": 500.0},
]


def adapted(**changes: object) -> CausalLM:
    """A tiny model whose A and B are both random: with B zero no gradient would reach A.

    Its matrices keep the size of what they multiply, so that float32 rounds the gradients by 1e-6 and not by 1e-5.
    """
    config = tiny_config(**changes)
    model = CausalLM(config, torch.float32)
    calm = {name: w * 0.4 if w.dim() == 2 else w for name, w in tiny_weights(config).items()}
    model.load(calm.items(), "tiny")
    add_adapters(model, RANK, ALPHA, seed=1)
    generator = torch.Generator().manual_seed(2)
    for name, tensor in adapter_tensors(model).items():
        if "lora_B" in name:
            torch.nn.init.normal_(tensor, std=0.05, generator=generator)
    model.refresh()
    return model.train()


def rows(count: int, *, shared: int) -> list[TokenRow]:
    """Documents of different lengths that begin alike; learned tokens come in runs, as answers do."""
    generator = torch.Generator().manual_seed(count)

    def draw(number: int) -> list[int]:
        return torch.randint(3, 320, (number,), generator=generator).tolist()

    start, out = draw(shared), []
    for index in range(count):
        own = draw(4 + 5 * index)
        flags = [False] * (shared + 2) + [(place // 3) % 2 == index % 2 for place in range(len(own) - 2)]
        flags[-1] = True
        out.append(TokenRow(f"row-{index}", (*start, *own), tuple(flags)))
    return out


def reference(model: CausalLM, documents: list[TokenRow]) -> tuple[float, dict[str, torch.Tensor]]:
    """(summed loss, gradient of every factor by its PEFT name) of the naive model in float64."""
    weights = {name: tensor.double() for name, tensor in model.views().items()}
    naive = NaiveLlama(model.config.to_hf(), weights)
    leaves = naive.adapt(adapter_tensors(model), ALPHA / RANK, torch.float64)
    loss = torch.stack([naive.loss((row.ids, row.learned)) for row in documents]).sum()
    loss.backward()
    return float(loss.detach()), {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}


def gradients(model: CausalLM) -> dict[str, torch.Tensor]:
    """By PEFT name; `adapter_tensors` gives the parameters' own storage, which names them."""
    names = {tensor.data_ptr(): name for name, tensor in adapter_tensors(model).items()}
    return {names[p.data_ptr()]: p.grad for p in model.parameters() if p.grad is not None}


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.double() - other.double()).norm() / other.double().norm())


@pytest.mark.parametrize("changes", SHAPES)
@pytest.mark.parametrize("prefix", [PREFIX, 0])
def test_the_gradient_of_a_pack_is_that_of_each_document_alone(changes: dict[str, object], prefix: int) -> None:
    model, documents = adapted(**changes), rows(5, shared=PREFIX)
    wanted_loss, wanted = reference(model, documents)
    loss = Supervised(model)(Pack.of(documents, prefix)).total
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == pytest.approx(wanted_loss, rel=1e-6)
    got = gradients(model)
    assert set(got) == set(wanted) == set(adapter_tensors(model))
    for name, gradient in wanted.items():
        assert float(gradient.norm()) > 0, name
        assert distance(got[name], gradient) < 1e-5, name


def test_a_token_that_is_not_learned_is_not_in_the_gradient() -> None:
    """One flag less changes every factor's gradient, and to what the reference says."""
    model, documents = adapted(), rows(2, shared=PREFIX)
    _, wanted = reference(model, documents)
    last = documents[-1]
    fewer = [documents[0], TokenRow(last.id, last.ids, (*last.learned[:-1], False))]
    _, changed = reference(model, fewer)
    Supervised(model)(Pack.of(fewer, PREFIX)).total.backward()  # type: ignore[no-untyped-call]
    for name, gradient in gradients(model).items():
        assert distance(gradient, changed[name]) < 1e-5, name
        assert distance(gradient, wanted[name]) > 1e-3, name


@dataclass
class Fixed:
    """The same packs at every step."""

    packs: list[Pack]

    def batch(self, step: int) -> list[Pack]:
        assert step >= 0
        return self.packs


@pytest.mark.parametrize("prefix", [PREFIX, 0])
def test_micro_batches_change_neither_loss_nor_gradient(prefix: int, tmp_path: Path) -> None:
    """The gradient is read where the loop stores it: after one step AdamW's first moment is (1 - beta) times it."""
    documents = rows(8, shared=PREFIX)
    settings = OptimizerConfig(learning_rate=1e-3, schedule="constant", warmup=0.0, clip_norm=1e9)
    every = Duration(1, "steps")
    config = LoopConfig(Duration(2, "steps"), settings, {"run": "same"}, save_every=every)
    results = {}
    for count in (1, 2, 4):
        model = adapted()
        size = len(documents) // count
        packs = [Pack.of(documents[i * size : (i + 1) * size], prefix) for i in range(count)]
        assert len({pack.label_tokens for pack in packs}) == count, "a mean of means would go unnoticed"
        parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        work = tmp_path / str(count)
        done = train(
            parameters,
            Fixed(packs),
            Supervised(model),
            model.refresh,
            config,
            work=work,
            progress=Progress("quiet"),
        )
        moments = Optimizer(parameters, settings)
        saved = checkpoint.latest(work, identity={"run": "same"})
        assert saved is not None
        assert saved.step == 1
        checkpoint.restore(saved, parameters, moments)
        gradient = torch.cat([moments.tensors()[f"exp_avg/{name}"].flatten() / 0.1 for name in parameters])
        results[count] = (done.losses[0]["loss"], done.losses[0]["grad_norm"], gradient)
    loss, norm, gradient = results[1]
    assert float(gradient.norm()) == pytest.approx(norm, rel=1e-5)
    wanted, _ = reference(adapted(), documents)
    assert loss == pytest.approx(wanted / sum(row.label_tokens for row in documents), rel=1e-6)
    for count in (2, 4):
        assert results[count][0] == pytest.approx(loss, rel=1e-6)
        assert results[count][1] == pytest.approx(norm, rel=1e-6)
        assert distance(results[count][2], gradient) < 1e-6
