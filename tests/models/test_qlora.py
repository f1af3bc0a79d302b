"""A base in NF4: quantised while it is read, written and mapped, trained beside; what is held on the way."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from riverrun.base.errors import InputError, IntegrityError, UnsupportedError
from riverrun.data.packing import Pack
from riverrun.models.io.adapter import add_adapters, save_adapter
from riverrun.models.load import load_checkpoint, load_model
from riverrun.models.merge import merge
from riverrun.models.qlora import load_nf4
from riverrun.models.stored import Int8Matrix, Nf4Matrix, Stored
from riverrun.models.transformer import CausalLM
from riverrun.train.objectives.supervised import Supervised
from tests.tiny_model import write_tiny
from tests.train.test_gradients import rows

SIZES = {"hidden_size": 64, "intermediate_size": 128}


def explicit(model: CausalLM, dtype: torch.dtype) -> CausalLM:
    """The same model with every stored matrix written out."""
    whole = CausalLM(model.config, dtype)
    views = whole.views()
    for prefix, matrix in model.linears():
        for part, stored in matrix.stored().items():
            views[f"{prefix}.{part}.weight"].copy_(stored.whole(dtype))
    for name, stored in model._tables.items():
        views[name].copy_(stored.whole(dtype))
    for name, view in model.views().items():
        if view.numel() and view.shape == views[name].shape:
            views[name].copy_(view)
    return whole


def loss_of(model: CausalLM) -> torch.Tensor:
    return Supervised(model)(Pack.of(tuple(rows(3, shared=7)), 7)).total


def adapted(model: CausalLM) -> CausalLM:
    add_adapters(model, 4, 8.0, seed=1)
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.05, generator=generator)
    model.refresh()
    return model.train()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("tables", ["int8", "plain"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-2)])
def test_loss_and_gradients_are_those_of_the_dequantised_weights(
    tied: bool, tables: str, dtype: torch.dtype, bound: float, tmp_path: Path
) -> None:
    write_tiny(tmp_path, tie_word_embeddings=tied, **SIZES)
    model = adapted(load_nf4(load_checkpoint(tmp_path), dtype, tables=tables))  # type: ignore[arg-type]
    assert isinstance(model.head, Int8Matrix if tables == "int8" else torch.Tensor)
    reference = adapted(explicit(model, torch.float32))
    found = []
    for each in (model, reference):
        loss = loss_of(each)
        loss.backward()  # type: ignore[no-untyped-call]
        found.append((loss.detach(), {n: p.grad for n, p in each.named_parameters() if p.grad is not None}))
    (ours, grads), (theirs, wanted) = found
    assert float((ours - theirs).abs() / theirs) <= bound
    assert grads.keys() == wanted.keys()
    assert len(grads) == 2 * 7 * 2
    for name, grad in grads.items():
        assert grad is not None
        want = wanted[name]
        assert want is not None
        assert float((grad - want).norm() / want.norm()) <= 3 * bound, name
    kept = {name: grad.clone() for name, grad in grads.items() if grad is not None}
    for parameter in model.parameters():
        parameter.grad = None
    model.recompute = 1.0
    loss_of(model).backward()  # type: ignore[no-untyped-call]
    assert all(torch.equal(kept[name], p.grad) for name, p in model.named_parameters() if p.grad is not None)


def test_logits_read_an_eight_bit_head(tmp_path: Path) -> None:
    write_tiny(tmp_path, **SIZES)
    model = load_nf4(load_checkpoint(tmp_path), torch.float32)
    hidden = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    assert isinstance(model.head, Int8Matrix)
    assert torch.allclose(model.logits(hidden), hidden @ model.head.whole().T, atol=1e-5)
    model.pack()
    assert torch.allclose(model.logits(hidden), hidden @ model.head.whole().T, atol=1e-5)


@pytest.mark.parametrize("tables", ["int8", "plain"])
@pytest.mark.parametrize("family", ["llama", "internlm2", "qwen2"])
def test_a_written_folder_is_mapped_and_gives_the_same(family: str, tables: str, tmp_path: Path) -> None:
    opened = load_checkpoint(write_tiny(tmp_path / "source", model_type=family, qkv_bias=family == "qwen2", **SIZES))
    fresh = load_nf4(opened, torch.bfloat16, tables=tables)  # type: ignore[arg-type]
    cache = tmp_path / "cache"
    first = load_nf4(opened, torch.bfloat16, tables=tables, cache=cache)  # type: ignore[arg-type]
    stamp = (cache / "model.safetensors").stat().st_mtime_ns
    second = load_nf4(opened, torch.bfloat16, tables=tables, cache=cache)  # type: ignore[arg-type]
    alone = load_nf4(load_checkpoint(cache), torch.bfloat16)
    assert (cache / "model.safetensors").stat().st_mtime_ns == stamp
    assert not list(cache.glob("*.tmp"))
    whole = explicit(fresh, torch.float32).views()
    for model in (first, second, alone):
        assert all(torch.equal(whole[n], v) for n, v in explicit(model, torch.float32).views().items())
    plain = load_model(load_checkpoint(cache), torch.float32).views()  # dequantised, as any other quantised folder
    assert all(torch.allclose(whole[n], v, rtol=1e-6, atol=0) for n, v in plain.items())


def test_the_cache_of_another_checkpoint_is_written_again(tmp_path: Path) -> None:
    write_tiny(tmp_path / "a", **SIZES)
    write_tiny(tmp_path / "b", **SIZES)
    cache = tmp_path / "cache"
    load_nf4(load_checkpoint(tmp_path / "a"), torch.bfloat16, cache=cache)
    before = (cache / "model.safetensors").read_bytes()
    load_nf4(load_checkpoint(tmp_path / "b"), torch.bfloat16, cache=cache, tables="plain")
    assert (cache / "model.safetensors").read_bytes() != before
    with pytest.raises(InputError, match="is not a cache of quantised weights: give an empty folder"):
        load_nf4(load_checkpoint(tmp_path / "a"), torch.bfloat16, cache=tmp_path / "b")


def test_damage_is_named(tmp_path: Path) -> None:
    write_tiny(tmp_path / "a", **SIZES)
    cache = tmp_path / "cache"
    load_nf4(load_checkpoint(tmp_path / "a"), torch.bfloat16, cache=cache)
    from safetensors.torch import load_file, save_file

    whole = load_file(cache / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    for change, error, text in (
        ({f"{name}.absmax": None}, IntegrityError, r"has no tensor '.*up_proj.weight.absmax'"),
        ({f"{name}.absmax": whole[f"{name}.absmax"][1:]}, IntegrityError, r"has 127 values, the matrix .* needs 128"),
        ({f"{name}.quant_map": whole[f"{name}.quant_map"] * 2}, UnsupportedError, "other levels than NF4's"),
        (
            {f"{name}.quant_state.bitsandbytes__nf4": whole[f"{name}.absmax"].clone()},
            IntegrityError,
            "is not a state of NF4",
        ),
    ):
        save_file({k: v for k, v in (whole | change).items() if v is not None}, cache / "model.safetensors")
        for load in (load_nf4, load_model):
            with pytest.raises(error, match=text):
                load(load_checkpoint(cache), torch.bfloat16)
    config = json.loads((cache / "config.json").read_text())
    config["quantization_config"]["bnb_4bit_quant_type"] = "fp4"
    (cache / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedError, match="type fp4 are not read, read: nf4"):
        load_nf4(load_checkpoint(cache), torch.bfloat16)


def test_an_adapter_trained_beside_it_merges_into_what_it_was_trained_on(tmp_path: Path) -> None:
    write_tiny(tmp_path / "base", **SIZES)
    cache = tmp_path / "nf4"
    model = adapted(load_nf4(load_checkpoint(tmp_path / "base"), torch.float32, cache=cache))
    save_adapter(model, tmp_path / "adapter")
    done = merge(cache, tmp_path / "adapter", tmp_path / "merged", "into_dequant", dtype=torch.float32)
    assert done.change <= 1e-5
    merged = load_model(load_checkpoint(tmp_path / "merged"), torch.float32)
    with torch.no_grad():
        assert float(loss_of(merged)) == pytest.approx(float(loss_of(model)), rel=1e-5)
    lost = merge(
        cache, tmp_path / "adapter", tmp_path / "other", "into_base", base=tmp_path / "base", dtype=torch.float32
    )
    assert lost.change > 1e-2


def test_quantising_at_load_holds_the_result_and_one_tensor(tmp_path: Path) -> None:
    """Peak memory above the start, in a process of its own: far below the 16-bit weights."""
    program = """
import sys, json, resource
from pathlib import Path
import torch
torch.set_num_threads(1)
from riverrun.models.load import load_checkpoint
from riverrun.models.qlora import load_nf4
from riverrun.models.stored import Nf4Matrix
def peak():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) * 1024
Nf4Matrix.of(torch.randn(64, 64))
opened = load_checkpoint(Path(sys.argv[1]))
before = peak()
model = load_nf4(opened, torch.bfloat16)
held = sum(s.nbytes for _, m in model.linears() for s in m.stored().values())
held += sum(t.nbytes for t in model._tables.values())
print(json.dumps([peak() - before, held]))
"""
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8, "num_attention_heads": 8}
    write_tiny(tmp_path, num_key_value_heads=8, **sizes)
    if not Path("/proc/self/status").exists():
        pytest.skip("not run here: /proc")
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    grown, held = json.loads(done.stdout)
    weights, largest = 8 * (4 * 512 * 512 + 3 * 512 * 2048) * 4, 512 * 2048 * 4
    assert held < weights / 7
    assert grown <= held + 2 * largest + 12_000_000


"""Largest tensor once from the file and once as the kernel's input, a table in 8 bits, and the allocator's rounding."""


def test_an_embedding_of_its_own_stays_in_the_file(tmp_path: Path) -> None:
    """Where the head is another tensor and the file has the model's type; its rows are those of the file."""
    write_tiny(tmp_path / "own", tie_word_embeddings=False, **SIZES)
    model = load_nf4(load_checkpoint(tmp_path / "own"), torch.float32)
    assert "model.embed_tokens.weight" not in model._tables
    whole = load_model(load_checkpoint(tmp_path / "own"), torch.float32)
    assert torch.equal(model.embed_tokens, whole.embed_tokens)
    assert isinstance(model.head, Int8Matrix)
    other = load_nf4(load_checkpoint(tmp_path / "own"), torch.bfloat16)
    assert "model.embed_tokens.weight" in other._tables


def test_stored_matrices_need_an_empty_model(tmp_path: Path) -> None:
    write_tiny(tmp_path, **SIZES)
    model = load_nf4(load_checkpoint(tmp_path), torch.bfloat16)
    matrix = next(model.linears())[1]
    assert isinstance(next(iter(matrix.stored().values())), Nf4Matrix)
    assert isinstance(next(iter(matrix.stored().values())), Stored)
    assert matrix.weight.numel() == 0
