"""Layers that run again in the backward change memory, never a bit of a gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from riverrun.data.packing import Pack
from riverrun.models.transformer import CausalLM
from riverrun.train.objectives.supervised import Supervised
from tests.train.test_gradients import adapted, rows

SHARES = [0.5, 1.0]


def gradients(model: CausalLM, recompute: float) -> dict[str, Tensor]:
    model.recompute = recompute
    for parameter in model.parameters():
        parameter.grad = None
    Supervised(model)(Pack.of(tuple(rows(3, shared=7)), 7)).total.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("method", ["lora", "full"])
def test_gradients_are_bitwise_those_without_it(share: float, method: str) -> None:
    model = adapted(num_hidden_layers=4)
    if method == "full":
        model.take_adapters()
        model.train_all()
    kept, again = gradients(model, 0.0), gradients(model, share)
    assert kept
    assert kept.keys() == again.keys()
    assert all(torch.equal(kept[name], again[name]) for name in kept)


def test_it_keeps_one_input_a_layer() -> None:
    """Of the first half of four layers nothing but their inputs is saved, so the share decides what is held."""

    def held(share: float) -> int:
        model = adapted(num_hidden_layers=4)
        model.recompute, seen = share, {}

        def pack(tensor: Tensor) -> Tensor:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = Supervised(model)(Pack.of(tuple(rows(3, shared=7)), 7)).total
        assert loss.requires_grad
        own = {p.untyped_storage().data_ptr() for p in model.parameters()}
        return sum(size for place, size in seen.items() if place not in own)

    none, half, full = held(0.0), held(0.5), held(1.0)
    assert full < half < none
    assert half - full == pytest.approx(none - half, rel=0.25)
