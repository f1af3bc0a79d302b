"""Adapters go both ways between PEFT and us: by PEFT itself, and by its file format read and written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from riverrun.base.errors import UnsupportedError
from riverrun.models.attention import PackedCausal
from riverrun.models.io.adapter import adapter_tensors, add_adapters, load_adapter, save_adapter
from riverrun.models.io.hf import write_weights
from riverrun.models.load import load_checkpoint, load_model
from riverrun.models.transformer import CausalLM
from tests.naive_model import NaiveLlama
from tests.tiny_model import tiny_config, tiny_weights, write_tiny

ATTENTION, MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
CHOICES = [(3, 5.0, ("q_proj", "v_proj")), (4, 8.0, ATTENTION + MLP), (2, 1.0, MLP)]
IDS = torch.randint(3, 320, (40,), generator=torch.Generator().manual_seed(4))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model folder whose matrices keep the size of what they multiply: float32 rounds its logits by 1e-6."""
    folder = write_tiny(tmp_path_factory.mktemp("base"))
    calm = {name: w * 0.4 if w.dim() == 2 else w for name, w in tiny_weights(tiny_config()).items()}
    write_weights(folder, tiny_config(), calm, torch.float32)
    return folder


def adapted(base: Path, rank: int, alpha: float, targets: tuple[str, ...]) -> CausalLM:
    model = load_model(load_checkpoint(base), torch.float32)
    add_adapters(model, rank, alpha, targets=targets)
    generator = torch.Generator().manual_seed(5)
    for name, tensor in adapter_tensors(model).items():
        if "lora_B" in name:
            torch.nn.init.normal_(tensor, std=0.1, generator=generator)
    model.refresh()
    return model


def logits(model: CausalLM) -> torch.Tensor:
    attend = PackedCausal(0, [len(IDS)], dtype=model.dtype)
    with torch.no_grad():
        return model.logits(model(IDS, attend.positions, attend))


def by_hand(base: Path, adapter: Path | None) -> torch.Tensor:
    """Logits in float64 from the files alone."""
    weights = {name: tensor.double() for name, tensor in load_file(base / "model.safetensors").items()}
    naive = NaiveLlama(json.loads((base / "config.json").read_text()), weights)
    if adapter:
        config = json.loads((adapter / "adapter_config.json").read_text())
        tensors = load_file(adapter / "adapter_model.safetensors")
        naive.adapt(tensors, config["lora_alpha"] / config["r"], torch.float64)
    with torch.no_grad():
        return naive.logits(IDS.tolist())


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.double() - other.double()).abs().max())


def test_the_reference_read_by_hand_is_the_base_model(base: Path) -> None:
    assert apart(logits(load_model(load_checkpoint(base), torch.float32)), by_hand(base, None)) < 1e-5


@pytest.mark.parametrize(("rank", "alpha", "targets"), CHOICES)
def test_the_files_we_write_are_those_of_peft(
    base: Path, rank: int, alpha: float, targets: tuple[str, ...], tmp_path: Path
) -> None:
    model = adapted(base, rank, alpha, targets)
    save_adapter(model, tmp_path, base="tiny")
    wanted = set()
    for layer in range(2):
        for part in targets:
            block = "self_attn" if part in ATTENTION else "mlp"
            stem = f"base_model.model.model.layers.{layer}.{block}.{part}"
            wanted |= {f"{stem}.lora_A.weight", f"{stem}.lora_B.weight"}
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert set(stored) == wanted
    assert all(tensor.shape[0 if "lora_A" in name else 1] == rank for name, tensor in stored.items())
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["peft_type"], config["task_type"], config["bias"]) == ("LORA", "CAUSAL_LM", "none")
    assert config["target_modules"] == sorted(targets)
    assert apart(logits(model), by_hand(base, tmp_path)) < 1e-5
    assert apart(logits(model), by_hand(base, None)) > 1e-2


def write_by_hand(folder: Path, rank: int, alpha: float, targets: tuple[str, ...], **changes: Any) -> Path:
    """An adapter as PEFT 0.21 writes it: every field of its LoraConfig, tensors under its names."""
    config: dict[str, Any] = {
        "alora_invocation_tokens": None,
        "alpha_pattern": {},
        "arrow_config": None,
        "auto_mapping": None,
        "base_model_name_or_path": "tiny",
        "bias": "none",
        "corda_config": None,
        "ensure_weight_tying": False,
        "eva_config": None,
        "exclude_modules": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "kasa_config": None,
        "layer_replication": None,
        "layers_pattern": None,
        "layers_to_transform": None,
        "loftq_config": {},
        "lora_alpha": alpha,
        "lora_bias": False,
        "lora_dropout": 0.1,
        "lora_ga_config": None,
        "megatron_config": None,
        "megatron_core": "megatron.core",
        "modules_to_save": None,
        "monteclora_config": None,
        "peft_type": "LORA",
        "peft_version": "0.21.2",
        "qalora_group_size": 16,
        "r": rank,
        "rank_pattern": {},
        "revision": None,
        "target_modules": list(targets),
        "target_parameters": None,
        "task_type": "CAUSAL_LM",
        "trainable_token_indices": None,
        "use_bdlora": None,
        "use_dora": False,
        "use_qalora": False,
        "use_rslora": False,
        "velora_config": None,
    }
    sizes = {"q_proj": (64, 64), "k_proj": (32, 64), "v_proj": (32, 64), "o_proj": (64, 64)}
    sizes |= {"gate_proj": (96, 64), "up_proj": (96, 64), "down_proj": (64, 96)}
    generator, tensors = torch.Generator().manual_seed(6), {}
    for layer in range(2):
        for part in targets:
            block, (out, into) = "self_attn" if part in ATTENTION else "mlp", sizes[part]
            stem = f"base_model.model.model.layers.{layer}.{block}.{part}"
            tensors[f"{stem}.lora_A.weight"] = torch.randn(rank, into, generator=generator) * 0.1
            tensors[f"{stem}.lora_B.weight"] = torch.randn(out, rank, generator=generator) * 0.1
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(config | changes))
    return folder


def loaded(base: Path, adapter: Path) -> list[torch.Tensor]:
    """Logits with the adapter folded into the weights, and beside them."""
    opened = load_checkpoint(base, adapter=adapter)
    return [logits(load_model(opened, torch.float32, fold=fold)) for fold in (True, False)]


@pytest.mark.parametrize(("rank", "alpha", "targets"), CHOICES)
def test_files_in_the_form_of_peft_load(
    base: Path, rank: int, alpha: float, targets: tuple[str, ...], tmp_path: Path
) -> None:
    adapter = write_by_hand(tmp_path / "a", rank, alpha, targets)
    wanted = by_hand(base, adapter)
    assert apart(wanted, by_hand(base, None)) > 1e-2
    for ours in loaded(base, adapter):
        assert apart(ours, wanted) < 1e-5


@pytest.mark.parametrize(
    "change",
    [
        {"alora_invocation_tokens": [5, 6]},
        {"alpha_pattern": {"q_proj": 64}},
        {"arrow_config": {"top_k": 1}},
        {"bias": "all"},
        {"fan_in_fan_out": True},
        {"init_lora_weights": "corda"},
        {"init_lora_weights": "loftq"},
        {"init_lora_weights": "lora_ga"},
        {"init_lora_weights": "olora"},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "pissa_niter_4"},
        {"kasa_config": {"beta": 1e-4}},
        {"layer_replication": [[0, 1], [0, 1]]},
        {"layers_to_transform": [0]},
        {"lora_bias": True},
        {"modules_to_save": ["lm_head"]},
        {"monteclora_config": {"num_samples": 8}},
        {"peft_type": "LOHA"},
        {"rank_pattern": {"q_proj": 8}},
        {"target_parameters": ["experts"]},
        {"trainable_token_indices": [1]},
        {"use_bdlora": {"nblocks": 2}},
        {"use_dora": True},
        {"use_qalora": True},
    ],
    ids=str,
)
def test_what_changes_an_adapter_and_is_not_computed_is_refused_by_name(
    base: Path, change: dict[str, Any], tmp_path: Path
) -> None:
    adapter = write_by_hand(tmp_path / "a", 2, 4.0, ("q_proj",), **change)
    model = load_model(load_checkpoint(base), torch.float32)
    with pytest.raises(UnsupportedError, match=f"{next(iter(change))} = "):
        load_adapter(model, adapter)
    assert not adapter_tensors(model)


@pytest.mark.parametrize("start", [True, False, "gaussian", "orthogonal", "eva", "mica", None])
def test_how_factors_were_drawn_does_not_matter_once_they_are_stored(
    base: Path, start: bool | str | None, tmp_path: Path
) -> None:
    adapter = write_by_hand(tmp_path / "a", 2, 4.0, ("q_proj",), init_lora_weights=start)
    assert apart(loaded(base, adapter)[0], by_hand(base, adapter)) < 1e-5


@pytest.mark.parametrize(("rank", "alpha", "targets"), CHOICES)
def test_peft_loads_what_we_saved(
    base: Path, rank: int, alpha: float, targets: tuple[str, ...], tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft", reason="not run here: peft is not installed")
    transformers = pytest.importorskip("transformers", reason="not run here: transformers is not installed")
    model = adapted(base, rank, alpha, targets)
    save_adapter(model, tmp_path)
    plain = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(plain, tmp_path).eval()
    with torch.no_grad():
        assert apart(logits(model), theirs(IDS[None]).logits[0]) < 1e-5
        with theirs.disable_adapter():
            assert apart(logits(model), theirs(IDS[None]).logits[0]) > 1e-2


@pytest.mark.parametrize(("rank", "alpha", "targets"), CHOICES)
def test_we_load_what_peft_saved(base: Path, rank: int, alpha: float, targets: tuple[str, ...], tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="not run here: peft is not installed")
    transformers = pytest.importorskip("transformers", reason="not run here: transformers is not installed")
    plain = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    settings = peft.LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=list(targets), task_type="CAUSAL_LM", lora_dropout=0.1
    )
    theirs = peft.get_peft_model(plain, settings).eval()
    generator = torch.Generator().manual_seed(7)
    for name, parameter in theirs.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    theirs.save_pretrained(tmp_path)
    with torch.no_grad():
        wanted = theirs(IDS[None]).logits[0]
    for ours in loaded(base, tmp_path):
        assert apart(ours, wanted) < 1e-5
