"""Stretched rotary embedding: published vectors, 200,000 positions, and sequences that do not know of each other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from riverrun.base.errors import ConfigError
from riverrun.models.config import ModelConfig, RopeScaling
from riverrun.models.io.hf import Weights
from riverrun.models.load import load_config
from riverrun.models.rope import dynamic_base
from riverrun.models.transformer import CausalLM
from tests.models.families import CASES, SMALL, make_folder


def config_of(**changes: object) -> ModelConfig:
    return ModelConfig.from_hf(SMALL | {"model_type": "llama"} | changes)


def test_the_base_of_dynamic_ntk() -> None:
    """InternLM2: base 1e6, D 128, factor 2, trained on 32,768 (base' = base * (s L / Lmax - (s - 1))^(D / (D - 2)))."""
    config = config_of(
        head_dim=128,
        rope_theta=1e6,
        max_position_embeddings=32768,
        rope_scaling={"type": "dynamic", "factor": 2.0},
    )
    bases = dynamic_base(config, torch.tensor([0, 20000, 32768, 65536, 200000])).tolist()
    assert bases[:3] == [1e6, 1e6, 1e6]
    assert bases[3:] == pytest.approx([3_052_773.7, 11_645_259.3], rel=1e-6)
    assert [config.rope_length(count) for count in (20, 32768, 32769, 200000)] == [0, 0, 32769, 200000]
    assert config.longest is None


def test_200_000_positions_are_those_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="not run here: transformers")
    torch.manual_seed(4)
    rope = {"rope_type": "dynamic", "factor": 2.5, "rope_theta": 1e6}
    reference = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL | {"rope_parameters": rope}))
    reference.float().eval().save_pretrained(tmp_path)
    config = load_config(tmp_path)
    model = CausalLM(config)
    with torch.no_grad():
        model.load(Weights(tmp_path, config).items(), "reference")
        ids = torch.randint(3, 320, (64,), generator=torch.Generator().manual_seed(1))
        positions = torch.arange(200_000 - 64, 200_000)
        lengths = torch.full((64,), config.rope_length(200_000))
        ours = model.logits(model(ids, positions, model.packed(0, [64]), lengths))
        theirs = reference(ids[None], position_ids=positions[None]).logits[0]
    assert float((ours - theirs).abs().max()) <= 1e-4


def test_a_long_neighbour_changes_nothing(tmp_path: Path) -> None:
    """The base belongs to the sequence: not to the longest of the batch."""
    make_folder("llama-dynamic", tmp_path)
    config = load_config(tmp_path)
    model = CausalLM(config)
    with torch.no_grad():
        model.load(Weights(tmp_path, config).items(), "tiny")
        rows = [torch.randint(3, 320, (count,)) for count in (20, 150, 60)]
        counts = [len(row) for row in rows]
        lengths = torch.cat([torch.full((count,), config.rope_length(count)) for count in counts])
        attend = model.packed(0, counts)
        together = model(torch.cat(rows), attend.positions, attend, lengths).split(counts)
        for row, found in zip(rows, together, strict=True):
            attend = model.packed(0, [len(row)])
            own = torch.full((len(row),), config.rope_length(len(row)))
            assert torch.allclose(model(row, attend.positions, attend, own), found, atol=1e-5)


def test_what_a_scaling_may_say() -> None:
    yarn = config_of(rope_scaling={"type": "yarn", "factor": 4.0})
    assert yarn.rope_scaling == RopeScaling(rope_type="yarn", factor=4.0, original_max_position_embeddings=256)
    assert yarn.longest == 1024
    assert config_of(rope_scaling={"type": "linear", "factor": 2}).longest == 512
    assert config_of(rope_scaling={"rope_type": "default"}).rope_scaling is None
    with pytest.raises(ConfigError, match=r"rope_scaling of type dynamic needs 'factor', it has \['rope_type'\]"):
        config_of(rope_scaling={"type": "dynamic"})
    with pytest.raises(ConfigError, match="original_max_position_embeddings"):
        config_of(rope_scaling={"type": "llama3", "factor": 8.0})
    with pytest.raises(ConfigError, match="rope_scaling: Input should be greater than or equal to 1"):
        config_of(rope_scaling={"type": "linear", "factor": 0.5})
    with pytest.raises(ConfigError, match="rope_scaling must be an object, it is list"):
        config_of(rope_scaling=[4])
    added = config_of(
        rope_parameters={"rope_type": "default", "rope_theta": 1e4}, rope_scaling={"type": "linear", "factor": 2.0}
    )
    assert added.rope_scaling == RopeScaling(rope_type="linear", factor=2.0), "added by hand to a newer file"
    internlm = {"model_type": "internlm", "rotary": {"base": 10000, "type": "dynamic"}, "num_key_value_heads": None}
    assert config_of(**internlm).rope_scaling == RopeScaling(rope_type="dynamic", factor=1.0)
    assert CASES
