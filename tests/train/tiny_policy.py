"""A tiny model with adapters, and drawn pairs, for the tests of objectives."""

from __future__ import annotations

import torch

from riverrun.data.packing import Group, Pack
from riverrun.data.preferences import JudgedGroup, pair_group
from riverrun.data.tokens import TokenRow
from riverrun.models.io.adapter import adapter_tensors, add_adapters
from riverrun.models.transformer import CausalLM
from tests.tiny_model import tiny_config, tiny_weights


def policy(*, moved: bool = False, full: bool = False, dtype: torch.dtype = torch.float32, seed: int = 0) -> CausalLM:
    """A tiny model that learns: fresh adapters, adapters that were `moved`, or (`full`) all of its weights."""
    config = tiny_config()
    model = CausalLM(config, dtype)
    with torch.no_grad():
        calm = {name: w * 0.4 if w.dim() == 2 else w for name, w in tiny_weights(config, seed).items()}
        model.load(calm.items(), "tiny")
    if full:
        model.train_all()
        return model.train()
    add_adapters(model, 3, 5.0, seed=1)
    if moved:
        move(model)
    model.refresh()
    return model.train()


def move(model: CausalLM, seed: int = 2) -> None:
    """Take the adapters away from the base."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in adapter_tensors(model).items():
        if "lora_B" in name:
            torch.nn.init.normal_(tensor, std=0.05, generator=generator)
    model.refresh()


def pairs(count: int, *, prompt: int = 20, seed: int = 0) -> list[Group]:
    """Pairs of different lengths, each with a prompt of its own."""
    generator = torch.Generator().manual_seed(seed)

    def draw(number: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 320, (number,), generator=generator).tolist())

    out = []
    for index in range(count):
        start = draw(prompt + index)
        rows = []
        for side, size in (("chosen", 3 + index), ("rejected", 5 + (index * 3) % 4)):
            own = draw(size)
            rows.append(TokenRow(f"{index}/{side}", start + own, (False,) * len(start) + (True,) * size))
        out.append(pair_group(*rows))
    return out


def swapped(group: Group) -> Group:
    return Group((group.rows[1], group.rows[0]), group.prefix)


def judged(groups: list[Group]) -> list[JudgedGroup]:
    return [JudgedGroup(group.rows, group.prefix, bool(n % 2)) for n, group in enumerate(groups)]


def gradient(model: CausalLM, loss: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def pack(*groups: Group) -> Pack:
    return Pack(tuple(groups))
