"""Adapters of every family against PEFT, rsLoRA, and three ways to merge."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from riverrun.base.errors import InputError
from riverrun.models.io.adapter import adapter_tensors, add_adapters, load_adapter, save_adapter
from riverrun.models.io.hf import write_quantized
from riverrun.models.load import load_checkpoint, load_model, save_companions
from riverrun.models.merge import PROBES, logit_change, merge
from riverrun.models.transformer import CausalLM
from tests.models.families import CASES, make_folder
from tests.tiny_model import write_tiny, write_tokenizer

pytest.importorskip("peft", reason="not run here: peft")
IDS = torch.randint(3, 320, (40,), generator=torch.Generator().manual_seed(4))
FAMILIES = [case for case in CASES if CASES[case][0] not in ("internlm", "internlm2")]


def opened(folder: Path) -> CausalLM:
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    write_tokenizer(folder)
    return load_model(load_checkpoint(folder), torch.float32)


def logits(model: CausalLM) -> torch.Tensor:
    attend = model.packed(0, [len(IDS)])
    lengths = torch.full((len(IDS),), model.config.rope_length(len(IDS)))
    with torch.no_grad():
        return model.logits(model(IDS, attend.positions, attend, lengths))


def draw(model: CausalLM, **how: object) -> None:
    add_adapters(model, 4, 8.0, seed=3, **how)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(5)
    for name, tensor in adapter_tensors(model).items():
        if "lora_B" in name:
            torch.nn.init.normal_(tensor, std=0.05, generator=generator)
    model.refresh()


@pytest.mark.parametrize("case", FAMILIES)
def test_peft_loads_ours_and_we_load_its(case: str, tmp_path: Path) -> None:
    import peft

    reference = make_folder(case, tmp_path / "m")
    model = opened(tmp_path / "m")
    rslora = case in ("qwen2", "gemma3")
    draw(model, rslora=rslora, init="gaussian" if rslora else "kaiming")
    save_adapter(model, tmp_path / "ours")
    theirs = peft.PeftModel.from_pretrained(reference, tmp_path / "ours")
    with torch.no_grad():
        assert float((logits(model) - theirs(IDS[None]).logits[0]).abs().max()) <= 1e-5
        theirs.save_pretrained(tmp_path / "theirs")
    again = opened(tmp_path / "m")
    load_adapter(again, tmp_path / "theirs")
    again.refresh()
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize("init", ["kaiming", "gaussian"])
def test_step_0_is_the_base_and_factors_are_drawn_as_said(init: str, tmp_path: Path) -> None:
    model = load_model(load_checkpoint(write_tiny(tmp_path)), torch.float32)
    before = logits(model)
    add_adapters(model, 16, 8.0, seed=3, init=init, rslora=True)  # type: ignore[arg-type]
    model.refresh()
    assert torch.equal(logits(model), before)
    drawn = torch.cat(
        [t.flatten() for name, t in adapter_tensors(model).items() if "lora_A" in name and "down" not in name]
    )
    if init == "gaussian":
        assert float(drawn.std()) == pytest.approx(1 / 16, rel=0.05)
        assert float(drawn.abs().max()) > 3 / 16
    else:
        assert float(drawn.abs().max()) <= 64**-0.5
        assert float(drawn.std()) == pytest.approx(64**-0.5 / 3**0.5, rel=0.05)
    _, first = next(model.linears())
    assert first.adapters["q_proj"].scaling == pytest.approx(8.0 / 4.0), "alpha / sqrt(rank)"


def test_adapters_that_internlm2s_own_code_trained(tmp_path: Path) -> None:
    """Targets wqkv, wo, w1, w3, w2: the update of wqkv is divided as its rows are."""
    from riverrun.models.io.layouts import join_parts

    make_folder("internlm2", tmp_path / "m")
    model = opened(tmp_path / "m")
    config, generator = model.config, torch.Generator().manual_seed(1)
    stem = "base_model.model.model.layers.1"
    a, b = torch.randn(3, 64, generator=generator), torch.randn(128, 3, generator=generator)
    wo = torch.randn(3, 64, generator=generator), torch.randn(64, 3, generator=generator)
    tensors = {
        f"{stem}.attention.wqkv.lora_A.weight": a,
        f"{stem}.attention.wqkv.lora_B.weight": b,
        f"{stem}.attention.wo.lora_A.weight": wo[0],
        f"{stem}.attention.wo.lora_B.weight": wo[1],
    }
    for layer in (0, 2):
        for name, tensor in list(tensors.items()):
            tensors[name.replace("layers.1", f"layers.{layer}")] = torch.zeros_like(tensor)
    (tmp_path / "a").mkdir()
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, tmp_path / "a" / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "target_modules": ["wqkv", "wo"]}
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(settings))
    load_adapter(model, tmp_path / "a")
    model.refresh()
    updated = load_model(load_checkpoint(tmp_path / "m"), torch.float32).views()
    names = [f"model.layers.1.self_attn.{part}_proj.weight" for part in "qkv"]
    whole = join_parts(config, [updated[name] for name in names]) + 2.0 * (b @ a)
    from riverrun.models.io.layouts import split_parts

    wanted = dict(zip(names, split_parts(config, whole, names), strict=True))
    taken = model.take_adapters()
    for name, tensor in wanted.items():
        assert torch.allclose(updated[name] + taken[name].delta(), tensor, atol=1e-6)


@pytest.fixture
def trained(tmp_path: Path) -> tuple[Path, Path, Path]:
    """(base, its 4-bit form, an adapter)."""
    base, adapter, small = write_tiny(tmp_path / "base"), tmp_path / "adapter", tmp_path / "small"
    checkpoint = load_checkpoint(base)
    model = load_model(checkpoint, torch.float32)
    write_quantized(small, checkpoint.config, model.views(), 32)
    save_companions(checkpoint, small)
    draw(model)
    save_adapter(model, adapter)
    return base, small, adapter


def test_three_ways_to_merge(trained: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, small, adapter = trained
    exact = merge(small, adapter, tmp_path / "1", "into_dequant", dtype=torch.float32)
    half = merge(small, adapter, tmp_path / "2", "into_dequant")
    other = merge(small, adapter, tmp_path / "3", "into_base", base=base, dtype=torch.float32)
    again = merge(small, adapter, tmp_path / "4", "requantize", group_size=32)
    assert exact.change <= 1e-4, "what was trained"
    assert exact.change < half.change < other.change
    assert again.change > half.change
    assert again.bytes < half.bytes < exact.bytes
    assert exact.probes == len(PROBES)
    checkpoint = load_checkpoint(small, adapter=adapter)
    truth = load_model(checkpoint, torch.float32)
    for number, change in enumerate((exact, half, other, again), 1):
        written = load_model(load_checkpoint(tmp_path / str(number)), torch.float32)
        assert logit_change(truth, written, checkpoint, PROBES) == pytest.approx(change.change)
    merged = load_file(tmp_path / "3" / "model.safetensors")
    whole = load_model(load_checkpoint(base, adapter=adapter), torch.float32).views()
    assert all(torch.equal(tensor, merged[name]) for name, tensor in whole.items())


def test_merges_that_cannot_be(trained: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, small, adapter = trained
    with pytest.raises(InputError, match="into_base needs the unquantised base"):
        merge(small, adapter, tmp_path / "x", "into_base")
    with pytest.raises(InputError, match="requantize uses no --base, into_base does"):
        merge(small, adapter, tmp_path / "x", "requantize", base=base)
    with pytest.raises(InputError, match="give at least one text"):
        merge(small, adapter, tmp_path / "x", probes=[])
    other = write_tiny(tmp_path / "other", hidden_size=128, num_attention_heads=8)
    with pytest.raises(InputError):
        merge(small, adapter, tmp_path / "x", "into_base", base=other)
