"""Every family against transformers: logits, greedy text, gradients of all weights, and what is written back."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.parts.family_parity import LENGTH, greedy, hidden_of, ids_of, ours_of
from riverrun.models.config import ModelConfig
from riverrun.models.families import families
from riverrun.models.io.hf import Weights, write_weights
from riverrun.models.load import load_config
from riverrun.models.paged import NewTokens, PagedAttend, PagedCache
from riverrun.train.loss import linear_cross_entropy
from tests.models.families import CASES, make_folder

pytest.importorskip("transformers", reason="not run here: transformers")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("families")

    @cache
    def one(case: str) -> tuple[Path, Any]:
        return root / case, make_folder(case, root / case)

    return one


@pytest.mark.parametrize("case", CASES)
def test_logits_and_parameters_are_those_of_the_reference(case: str, made: Any) -> None:
    folder, reference = made(case)
    model, ids = ours_of(folder), ids_of(LENGTH)
    with torch.no_grad():
        ours, theirs = model.logits(hidden_of(model, ids)), reference(ids[None]).logits[0]
    assert float((ours - theirs).abs().max()) <= 1e-4
    assert float(theirs.abs().max()) > 1, "logits that say something"
    assert model.config.num_parameters() == sum(p.numel() for p in reference.parameters())
    assert model.config.model_type in families()


@pytest.mark.parametrize("case", CASES)
def test_greedy_text_is_that_of_the_reference(case: str, made: Any) -> None:
    """64 tokens from the cache; of dynamic NTK, whose base is the prompt's, against ours without a cache."""
    folder, reference = made(case)
    model, prompt = ours_of(folder), ids_of(LENGTH - 20, seed=5)
    ids = [*prompt.tolist(), *greedy(model, prompt.tolist(), 64)]
    if case == "llama-dynamic":  # the reference would stretch more with every token
        length = model.config.rope_length(len(prompt))
        whole = model.packed(0, [len(ids)])
        with torch.no_grad():
            hidden = model(torch.tensor(ids), whole.positions, whole, torch.full((len(ids),), length))
            assert model.logits(hidden[len(prompt) - 1 : -1]).argmax(dim=1).tolist() == ids[len(prompt) :]
        return
    theirs = reference.generate(
        prompt[None],
        attention_mask=torch.ones_like(prompt)[None],
        do_sample=False,
        max_new_tokens=64,
        min_new_tokens=64,
        eos_token_id=None,
        pad_token_id=0,
    )
    assert ids == theirs[0].tolist()


@pytest.mark.parametrize("case", CASES)
def test_gradients_of_every_weight(case: str, made: Any) -> None:
    folder, reference = made(case)
    model, ids = ours_of(folder, learn=True), ids_of(40, seed=3)
    hidden = hidden_of(model, ids)
    loss = linear_cross_entropy(hidden[:-1], model.lm_head, ids[1:])
    loss.backward()
    reference.zero_grad()
    theirs = torch.nn.functional.cross_entropy(reference(ids[None]).logits[0, :-1], ids[1:], reduction="sum")
    theirs.backward()
    assert float(loss.detach()) == pytest.approx(float(theirs.detach()), rel=1e-5)
    wanted = {name: p.grad for name, p in reference.named_parameters()}
    got = model.gradients()
    assert set(got) == set(wanted)
    for name, gradient in wanted.items():
        error = float((got[name] - gradient).norm() / gradient.norm())
        assert error <= 1e-4, f"{name}: {error}"


@pytest.mark.parametrize("case", CASES)
def test_what_is_written_is_what_was_read(case: str, made: Any, tmp_path: Path) -> None:
    """config.json says the same to us and to transformers; the weights are the same bytes."""
    import transformers

    folder, reference = made(case)
    config = load_config(folder)
    weights = Weights(folder, config)
    write_weights(tmp_path, config, weights, torch.float32, partition=weights.partition())
    assert (tmp_path / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    again = json.loads((tmp_path / "config.json").read_text())
    assert ModelConfig.from_hf(again) == config
    if config.model_type not in ("internlm", "internlm2"):
        theirs = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path, dtype=torch.float32, attn_implementation="eager"
        )
        ids = ids_of(LENGTH, seed=7)[None]
        with torch.no_grad():
            assert torch.equal(theirs(ids).logits, reference(ids).logits)


@pytest.mark.parametrize("case", ["llama", "mistral", "qwen2-sliding", "qwen3", "gemma3", "internlm3-biases"])
def test_a_config_file_may_leave_out_what_its_class_says(case: str, made: Any) -> None:
    """transformers writes the whole config into a folder, and only what differs from the class into other places."""
    _, reference = made(case)
    short = reference.config.to_diff_dict()
    assert ModelConfig.from_hf(short) == ModelConfig.from_hf(reference.config.to_dict())
    bare = type(reference.config)()
    wanted = ModelConfig.from_hf(bare.to_dict())
    assert ModelConfig.from_hf({"model_type": bare.model_type}) == wanted


def test_packs_share_a_prefix_in_sliding_layers_too(made: Any) -> None:
    folder, _ = made("gemma3")
    model, prefix = ours_of(folder), ids_of(30, seed=2)
    documents = [ids_of(count, seed=count) for count in (7, 40, 19)]
    packed = model.packed(30, [len(d) for d in documents], multiple=16)
    ids = torch.cat([prefix, *documents, torch.zeros(packed.padding, dtype=torch.long)])
    with torch.no_grad():
        together = model(ids, packed.positions, packed)
        at = 30
        for document in documents:
            alone = hidden_of(model, torch.cat([prefix, document]))
            assert torch.allclose(together[at : at + len(document)], alone[30:], atol=2e-5)
            at += len(document)


def test_sequences_of_one_beginning_in_sliding_layers(made: Any) -> None:
    folder, _ = made("gemma3")
    model, prefix = ours_of(folder), ids_of(50, seed=2)
    rows = [torch.cat([prefix, ids_of(count, seed=count)]) for count in (3, 9)]
    cache = PagedCache(model.config, 12, 16, torch.float32)
    tables = [[0, 1, 2, 3, 4], [0, 1, 2, 5, 6]]
    with torch.no_grad():
        for table in tables:
            first = PagedAttend(cache, [NewTokens(0, 50, table)])
            model(prefix, first.positions, first)
        for step in range(9):  # one token of each, as long as it has one
            going = [n for n, row in enumerate(rows) if 50 + step < len(row)]
            attend = PagedAttend(cache, [NewTokens(50 + step, 1, tables[n]) for n in going])
            got = model(torch.stack([rows[n][50 + step] for n in going]), attend.positions, attend)
            for place, n in enumerate(going):
                assert torch.allclose(got[place], hidden_of(model, rows[n])[50 + step], atol=2e-5)


def test_the_text_model_of_a_checkpoint_with_pictures(made: Any, tmp_path: Path) -> None:
    """Gemma 3's larger sizes hold a vision tower; its tensors are left alone."""
    from safetensors.torch import load_file, save_file

    folder, _ = made("gemma3")
    text = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": text}))
    weights = load_file(folder / "model.safetensors")
    named = {f"language_model.{name}": tensor for name, tensor in weights.items()}
    save_file(named | {"vision_tower.x.weight": torch.ones(2)}, tmp_path / "model.safetensors")
    ids = ids_of(30)
    with torch.no_grad():
        assert torch.equal(hidden_of(ours_of(tmp_path), ids), hidden_of(ours_of(folder), ids))
