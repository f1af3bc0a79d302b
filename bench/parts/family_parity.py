"""One family's tiny checkpoint against transformers: logits, greedy text, gradients, adapters."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from riverrun.models.io.adapter import adapter_tensors, add_adapters, save_adapter
from riverrun.models.io.hf import Weights
from riverrun.models.load import load_config
from riverrun.models.paged import Growing
from riverrun.models.transformer import CausalLM
from riverrun.train.loss import linear_cross_entropy

__all__ = ["LENGTH", "Parity", "greedy", "hidden_of", "ids_of", "measure", "ours_of"]

LENGTH = 72
"""Tokens: beyond the windows and the trained lengths of the cases that have them."""


@dataclass(frozen=True)
class Parity:
    """Largest difference of a logit, equal greedy text, largest relative error of a gradient, PEFT's logits.

    None where the reference computes something else by design (dynamic NTK grows its base with every token) or has no
    such model.
    """

    logits: float
    greedy: bool | None
    gradients: float
    peft: float | None


def ids_of(count: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(3, 320, (count,), generator=torch.Generator().manual_seed(seed))


def ours_of(folder: Path, *, learn: bool = False) -> CausalLM:
    config = load_config(folder)
    model = CausalLM(config)
    with torch.no_grad():
        model.load(Weights(folder, config).items(), str(folder))
    if learn:
        model.train_all()
    return model


def hidden_of(model: CausalLM, ids: torch.Tensor) -> torch.Tensor:
    """Hidden states of one sequence."""
    attend = model.packed(0, [len(ids)])
    lengths = torch.full((len(ids),), model.config.rope_length(len(ids)))
    return model(ids, attend.positions, attend, lengths)  # type: ignore[no-any-return]


def greedy(model: CausalLM, prompt: list[int], count: int) -> list[int]:
    """`count` tokens after the prompt, from the cache."""
    cache = Growing(model.config, len(prompt) + count, model.dtype)
    length, out, new = model.config.rope_length(len(prompt)), list[int](), list(prompt)
    with torch.no_grad():
        while len(out) < count:
            attend = cache.attend(len(new))
            lengths = torch.full((len(new),), length)
            logits = model.logits(model(torch.tensor(new), attend.positions, attend, lengths)[-1:])
            new = [int(logits.argmax())]
            out += new
    return out


def measure(case: str, folder: Path) -> Parity:
    """Make the case's checkpoint in `folder` and compare."""
    cases = import_module("tests.models.families")

    reference = cases.make_folder(case, folder)
    model, ids = ours_of(folder), ids_of(LENGTH)
    with torch.no_grad():
        apart = float((model.logits(hidden_of(model, ids)) - reference(ids[None]).logits[0]).abs().max())
    equal = None
    if case != "llama-dynamic":
        prompt = ids_of(LENGTH - 20, seed=5)
        theirs = reference.generate(
            prompt[None], attention_mask=torch.ones_like(prompt)[None], do_sample=False, max_new_tokens=64,
            min_new_tokens=64, eos_token_id=None, pad_token_id=0,
        )[0, len(prompt) :]  # fmt: skip
        equal = greedy(model, prompt.tolist(), 64) == theirs.tolist()
    gradients = _gradients(folder, reference)  # before PEFT freezes the reference
    peft = _peft(folder, reference) if cases.CASES[case][0] not in ("internlm", "internlm2") else None
    return Parity(apart, equal, gradients, peft)


def _gradients(folder: Path, reference: Any) -> float:
    model, ids = ours_of(folder, learn=True), ids_of(40, seed=3)
    linear_cross_entropy(hidden_of(model, ids)[:-1], model.lm_head, ids[1:]).backward()  # type: ignore[no-untyped-call]
    reference.zero_grad()
    torch.nn.functional.cross_entropy(reference(ids[None]).logits[0, :-1], ids[1:], reduction="sum").backward()  # type: ignore[no-untyped-call]
    ours = model.gradients()
    return max(
        float((ours[name] - parameter.grad).norm() / parameter.grad.norm())
        for name, parameter in reference.named_parameters()
    )


def _peft(folder: Path, reference: Any) -> float:
    """Our adapter in PEFT, and PEFT's copy of it here."""
    import peft

    from riverrun.models.io.adapter import load_adapter

    model, ids = ours_of(folder), ids_of(40, seed=4)
    add_adapters(model, 4, 8.0, seed=3)
    generator = torch.Generator().manual_seed(5)
    for name, tensor in adapter_tensors(model).items():
        if "lora_B" in name:
            torch.nn.init.normal_(tensor, std=0.05, generator=generator)
    model.refresh()
    save_adapter(model, folder / "ours")
    theirs = peft.PeftModel.from_pretrained(reference, folder / "ours")
    again = ours_of(folder)
    with torch.no_grad():
        theirs.save_pretrained(str(folder / "theirs"))
        load_adapter(again, folder / "theirs")
        again.refresh()
        wanted = theirs(ids[None]).logits[0]
        apart = [float((each.logits(hidden_of(each, ids)) - wanted).abs().max()) for each in (model, again)]
    theirs.unload()
    return max(apart)
