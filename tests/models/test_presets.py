"""Presets have the parameters that their cards state, in the config, in the model and in the plan."""

from __future__ import annotations

import pytest
import torch

from riverrun.base.errors import InputError
from riverrun.models.families import families
from riverrun.models.presets import load_preset, preset_names, published_parameters
from riverrun.models.transformer import CausalLM
from riverrun.plan.shape import parameters


@pytest.mark.parametrize("name", preset_names())
def test_parameters_are_those_published(name: str) -> None:
    config = load_preset(name)
    count, exact = published_parameters(name)
    assert config.num_parameters() == (count if exact else pytest.approx(count, rel=0.02))
    assert parameters(config) == config.num_parameters()
    with torch.device("meta"):
        model = CausalLM(config, torch.bfloat16)
    assert sum(p.numel() for p in model.parameters()) == config.num_parameters()


def test_every_family_has_a_published_size() -> None:
    assert {load_preset(name).model_type for name in preset_names()} == set(families())
    with pytest.raises(InputError, match=r"no preset is named 'intern'\."):
        load_preset("intern")
