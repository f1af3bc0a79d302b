"""Matrices kept in a file's own few bits give what the matrices laid out give; nothing whole is formed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from riverrun.base.errors import UnsupportedError
from riverrun.base.protocols import Request
from riverrun.base.types import SamplingParams
from riverrun.models.attention import PackedCausal
from riverrun.models.chat import ChatTemplate
from riverrun.models.config import ModelConfig
from riverrun.models.few_bits import BlockMatrix, GroupMatrix, load_few_bits
from riverrun.models.io.gguf import GGUFFile
from riverrun.models.io.gguf_write import write_gguf
from riverrun.models.io.groups import write_groups
from riverrun.models.load import Checkpoint, load_checkpoint, load_model
from riverrun.models.quantized import GroupQuantized, dequantize_groups, pack_codes, quantize_groups
from riverrun.models.transformer import CausalLM
from riverrun.serve.llm import LLM
from tests.models.family_shapes import FAMILIES, config_of, weights_of
from tests.tiny_model import write_tiny


def logits(model: CausalLM) -> torch.Tensor:
    ids = torch.arange(3, 40)
    with torch.no_grad():
        attend = PackedCausal(0, [len(ids)], dtype=model.dtype, windows=model.config.windows)
        return model.logits(model(ids, attend.positions, attend))


def checkpoint(path: Path, config: ModelConfig, **more: Any) -> Checkpoint:
    return Checkpoint(path, config, None, ChatTemplate("{{ messages }}"), **more)  # type: ignore[arg-type]


def compared(opened: Checkpoint) -> CausalLM:
    """The model in few bits, once its logits were found to be those of the other."""
    few, full = load_few_bits(opened, torch.float32), load_model(opened, torch.float32)
    wanted = logits(full)
    assert torch.allclose(logits(few), wanted, rtol=1e-5, atol=2e-6 * float(wanted.abs().max()))
    return few


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "F16"])
def test_blocks_of_every_family(family: str, kind: str, tmp_path: Path) -> None:
    config, path = config_of(family), tmp_path / "m.gguf"
    write_gguf(path, config, weights_of(config), {"tokenizer.ggml.model": "none"}, "{{ messages }}", kind=kind)
    few = compared(checkpoint(path, config, gguf=GGUFFile(path)))
    kept = [each for _, matrix in few.linears() for each in matrix.stored().values()]
    assert all(isinstance(each, BlockMatrix) for each in kept)
    assert bool(kept) == (kind != "F16")


@pytest.mark.parametrize("method", ["awq", "gptq", "gptq_v2"])
@pytest.mark.parametrize("family", ["llama", "internlm2", "qwen2"])
def test_groups(method: Any, family: str, tmp_path: Path) -> None:
    config = config_of(family)
    matrices, plain = {}, {}
    for name, values in weights_of(config):
        if values.ndim == 2 and "layers" in name and "down_proj" not in name:
            matrices[name] = quantize_groups(values, 32, shrink_steps=1)
        else:
            plain[name] = values.astype(np.float32)
    write_groups(tmp_path, config.to_hf(), matrices, plain, method)
    quantization = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    few = compared(checkpoint(tmp_path, config, quantization=quantization))
    stored = [each for _, matrix in few.linears() for each in matrix.stored().values()]
    assert stored
    assert all(isinstance(each, GroupMatrix) for each in stored)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("scattered", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tiles_are_the_values(bits: int, scattered: bool, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(bits)
    codes = rng.integers(0, 1 << bits, (300, 96), dtype=np.uint8)
    scale = rng.random((300, 3)).astype(np.float16)
    zero = rng.integers(0, 1 << bits, scale.shape, dtype=np.uint8)
    order = rng.permutation(np.arange(96, dtype=np.int32) // 32) if scattered else None
    value = GroupQuantized(pack_codes(codes, bits), scale, zero, 32, bits, order)
    matrix, whole = GroupMatrix(value), torch.from_numpy(dequantize_groups(value)).to(dtype)
    assert torch.equal(matrix.whole(dtype), whole)
    out = torch.empty(17, 40, dtype=dtype)
    assert torch.equal(matrix.tile(slice(11, 28), slice(5, 45), out), whole[11:28, 5:45])
    rows = torch.tensor([299, 0, 7])
    assert torch.equal(matrix.picked(rows).whole(dtype), whole[rows])
    assert matrix.nbytes < 300 * 96 * bits / 8 + 300 * 3 * 4 + 8 * 96


def test_serving_from_stored_weights_says_the_same(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "plain")
    opened = load_checkpoint(folder)
    path = tmp_path / "m.gguf"
    values = ((name, view.numpy()) for name, view in load_model(opened, torch.float32).views().items())
    write_gguf(path, opened.config, values, opened.tokenizer.to_gguf(), opened.template.source, kind="Q8_0")
    asked = [Request(prompt=f"How much is book {n}?", params=SamplingParams(max_tokens=24)) for n in range(4)]
    found = {}
    for weights in ("full", "stored"):
        with LLM(path, dtype="float32", weights=weights, slots=2) as model:  # type: ignore[arg-type]
            found[weights] = [done.raw for done in model.generate(asked)]
            assert model.score("How much", [" is it?"])[0].total < 0
    assert found["full"] == found["stored"]


def test_weights_that_are_plain_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="holds no matrix in few bits"):
        load_few_bits(load_checkpoint(write_tiny(tmp_path)), torch.float32)
