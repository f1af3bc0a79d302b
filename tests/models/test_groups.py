"""AWQ and GPTQ folders: exact both ways, groups of scattered inputs, what was not converted, what is missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from riverrun.base.errors import ConfigError, IntegrityError, RiverrunError, UnsupportedError
from riverrun.models.config import ModelConfig
from riverrun.models.io.groups import grid_of, read_matrix, write_groups
from riverrun.models.io.hf import read_weights
from riverrun.models.load import load_checkpoint, load_model
from riverrun.models.quantized import GroupQuantized, dequantize_groups, pack_codes, quantize_groups
from tests.models.family_shapes import config_of, weights_of
from tests.models.tiny import hf_folder
from tests.models.tiny import tensors as tiny_tensors

METHODS = ("awq", "gptq", "gptq_v2")
UP = "model.layers.0.mlp.up_proj"


def quantised(config: ModelConfig, group: int = 32, keep: tuple[str, ...] = ()) -> tuple[dict, dict]:
    """Matrices on the grid, and everything else."""
    matrices, plain = {}, {}
    for name, values in weights_of(config):
        if values.ndim == 2 and "layers" in name and not any(part in name for part in keep):
            matrices[name] = quantize_groups(values, group, shrink_steps=1)
        else:
            plain[name] = values.astype(np.float16) if values.ndim == 2 else values
    return matrices, plain


def folder_of(path: Path, method: Any, **more: Any) -> tuple[Path, ModelConfig, dict[str, np.ndarray]]:
    """A written folder, its config, and the values that must come out of it."""
    config = config_of("llama")
    matrices, plain = quantised(config, **more)
    write_groups(path, config.to_hf(), matrices, plain, method)
    return path, config, {name: dequantize_groups(matrix) for name, matrix in matrices.items()} | plain


def read(folder: Path, config: ModelConfig) -> dict[str, np.ndarray]:
    quantization = json.loads((folder / "config.json").read_text())["quantization_config"]
    return {name: tensor.numpy() for name, tensor in read_weights(folder, quantization, config)}


@pytest.mark.parametrize("method", METHODS)
def test_a_folder_gives_exactly_what_was_written(method: str, tmp_path: Path) -> None:
    folder, config, wanted = folder_of(tmp_path, method, keep=("down_proj",))
    got = read(folder, config)
    assert got.keys() == wanted.keys() == config.shapes().keys()
    assert all(np.array_equal(got[name], values) for name, values in wanted.items())
    quantization = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert (quantization["quant_method"], quantization["bits"], quantization["group_size"]) == (
        method[:4].rstrip("_"),
        4,
        32,
    )
    kept = quantization["modules_to_not_convert"]
    assert kept == ["lm_head", "model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"]
    stored = load_file(folder / "model.safetensors")
    assert f"{UP}.qweight" in stored
    assert "model.layers.0.mlp.down_proj.weight" in stored
    assert (f"{UP}.g_idx" in stored) == (method != "awq")
    shapes = {part: stored[f"{UP}.{part}"].shape for part in ("qweight", "qzeros", "scales")}
    assert shapes == {"qweight": (64, 12) if method == "awq" else (8, 96), "qzeros": (2, 12), "scales": (2, 96)}


@pytest.mark.parametrize("method", METHODS)
def test_a_model_of_such_a_folder_runs(method: str, tmp_path: Path) -> None:
    folder = shutil.copytree(hf_folder("mha"), tmp_path / "m")
    config, values = load_checkpoint(folder).config, tiny_tensors("mha")
    matrices = {name: quantize_groups(v, 32) for name, v in values.items() if v.ndim == 2 and "layers" in name}
    write_groups(folder, config.to_hf(), matrices, {n: v for n, v in values.items() if n not in matrices}, method)
    model = load_model(load_checkpoint(folder), torch.float32)
    for name, matrix in matrices.items():
        assert np.array_equal(model.views()[name].numpy(), dequantize_groups(matrix))


@pytest.mark.parametrize("bits", [2, 8])
def test_gptq_of_other_widths_and_scattered_groups(bits: int, tmp_path: Path) -> None:
    config, rng = config_of("llama"), np.random.default_rng(bits)
    plain = dict(weights_of(config))
    matrices = {}
    for name in (f"{UP}.weight", "model.layers.0.self_attn.q_proj.weight"):
        rows, columns = plain.pop(name).shape
        codes = rng.integers(0, 1 << bits, (rows, columns), dtype=np.uint8)
        scale = rng.random((rows, columns // 32)).astype(np.float16)
        zero = rng.integers(0, 1 << bits, scale.shape, dtype=np.uint8)
        order = rng.permutation(np.arange(columns, dtype=np.int32) // 32)
        matrices[name] = GroupQuantized(pack_codes(codes, bits), scale, zero, 32, bits, order)
    write_groups(tmp_path, config.to_hf(), matrices, plain, "gptq")
    quantization = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert (quantization["desc_act"], quantization["bits"], quantization["checkpoint_format"]) == (True, bits, "gptq")
    got = read(tmp_path, config)
    assert all(np.array_equal(got[name], dequantize_groups(matrix)) for name, matrix in matrices.items())
    stored = load_file(tmp_path / "model.safetensors")
    back = read_matrix(UP, stored, stored.__getitem__, grid_of(quantization, "m"), "m")
    first = matrices[f"{UP}.weight"]
    for part in ("packed", "scale", "zero", "group_of"):
        assert np.array_equal(getattr(back, part), getattr(first, part))
    del stored[f"{UP}.g_idx"]
    save_file(stored, tmp_path / "model.safetensors")
    with pytest.raises(IntegrityError, match=r"has no tensor 'model.layers.0.mlp.up_proj.g_idx', which desc_act needs"):
        read(tmp_path, config)


@pytest.mark.parametrize("method", METHODS)
def test_one_group_a_row_and_shards(method: Any, tmp_path: Path) -> None:
    """group_size -1; a matrix whose parts stand in two files."""
    config = ModelConfig.of(config_of("llama").model_dump() | {"intermediate_size": 64}, "square")
    matrices, plain = quantised(config, group=64)
    write_groups(tmp_path, config.to_hf(), matrices, plain, method)
    assert json.loads((tmp_path / "config.json").read_text())["quantization_config"]["group_size"] == -1
    stored = load_file(tmp_path / "model.safetensors")
    where = {name: f"part-{index % 2}.safetensors" for index, name in enumerate(sorted(stored))}
    for file in set(where.values()):
        save_file({name: stored[name] for name in stored if where[name] == file}, tmp_path / file)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    got = read(tmp_path, config)
    assert all(np.array_equal(got[name], dequantize_groups(matrix)) for name, matrix in matrices.items())


def test_the_joined_matrix_of_internlm2_is_split_after_it_is_dequantised(tmp_path: Path) -> None:
    config = config_of("internlm2")
    rng = np.random.default_rng(0)
    joined = quantize_groups(rng.standard_normal((128, 64)).astype(np.float32), 32)
    write_groups(tmp_path, config.to_hf(), {"model.layers.0.attention.wqkv.weight": joined}, {}, "awq")
    got, whole = read(tmp_path, config), dequantize_groups(joined).reshape(2, 4, 16, 64)
    assert np.array_equal(got["model.layers.0.self_attn.q_proj.weight"], whole[:, :2].reshape(64, 64))
    assert np.array_equal(got["model.layers.0.self_attn.v_proj.weight"], whole[:, 3].reshape(32, 64))


def test_scales_in_bf16_are_read_as_they_are(tmp_path: Path) -> None:
    from safetensors.torch import save_file as save_torch

    folder, config, _ = folder_of(tmp_path, "awq")
    stored = {name: torch.from_numpy(array) for name, array in load_file(folder / "model.safetensors").items()}
    scales = (stored[f"{UP}.scales"].float() * 1e9).to(torch.bfloat16)
    save_torch(stored | {f"{UP}.scales": scales}, folder / "model.safetensors")
    got = read(folder, config)[f"{UP}.weight"]
    matrix = quantised(config)[0][f"{UP}.weight"]
    wide = GroupQuantized(matrix.packed, scales.float().numpy().T, matrix.zero, 32)
    assert np.array_equal(got, dequantize_groups(wide))
    with pytest.raises(ConfigError, match=r"awq stores fp16 scales, those of x.weight do not fit"):
        write_groups(tmp_path / "out", {}, {"x.weight": wide}, {}, "awq")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("part", ["qweight", "qzeros", "scales"])
def test_a_missing_or_misshaped_tensor_is_named(method: str, part: str, tmp_path: Path) -> None:
    folder, config, _ = folder_of(tmp_path, method)
    stored, name = load_file(folder / "model.safetensors"), f"{UP}.{part}"
    whole = stored.pop(name)
    save_file(stored, folder / "model.safetensors")
    text = "has no '.qweight' beside it" if part == "qweight" else f"has no tensor '{name}': fetch"
    with pytest.raises(IntegrityError, match=text):
        read(folder, config)
    save_file(stored | {name: np.ascontiguousarray(whole[:1])}, folder / "model.safetensors")
    with pytest.raises(IntegrityError, match=r"has shape \[\d+, \d+\], the matrix beside it needs \[\d+, \d+\]"):
        read(folder, config)
    save_file(stored | {name: whole.astype(np.int64)}, folder / "model.safetensors")
    with pytest.raises(IntegrityError, match=rf"'{name}' is int64 .*, it must be (int32|float16) with two axes"):
        read(folder, config)


def test_an_index_beyond_the_groups_is_named(tmp_path: Path) -> None:
    folder, config, _ = folder_of(tmp_path, "gptq")
    stored = load_file(folder / "model.safetensors")
    stored[f"{UP}.g_idx"][5] = 9
    save_file(stored, folder / "model.safetensors")
    with pytest.raises(IntegrityError, match=r"up_proj.g_idx' names a group beyond the 2"):
        read(folder, config)


@pytest.mark.parametrize(
    ("quantization", "text"),
    [
        ({"quant_method": "bitnet"}, "quant_method 'bitnet' is not read, read: awq, gptq, group4"),
        ({"quant_method": "awq", "bits": 8}, "awq of 8 bits is not read, read: 4 bits"),
        ({"quant_method": "gptq", "bits": 3}, "gptq of 3 bits is not read, read: 2, 4, 8 bits"),
        ({"quant_method": "awq", "version": "gemv"}, "awq of version 'gemv' is not read, read: gemm"),
        ({"quant_method": "gptq", "checkpoint_format": "marlin"}, "'marlin' is not read, read: gptq, gptq_v2"),
        ({"quant_method": "gptq", "is_marlin_format": True}, "is_marlin_format = True is not read, read: False"),
        ({"quant_method": "gptq", "dynamic": {"+:.*up.*": {"bits": 8}}}, r"own settings for '\+:\.\*up\.\*'"),
        ({"quant_method": "gptq", "group_size": 0}, "group_size 0 must be a number above 0, or -1"),
        ({"quant_method": "gptq", "group_size": "128"}, "group_size '128' must be a number"),
    ],
)
def test_grids_that_are_not_read_are_named_with_those_that_are(quantization: dict[str, Any], text: str) -> None:
    with pytest.raises(RiverrunError, match=text):
        grid_of(quantization, "m")


def test_what_one_folder_cannot_hold_is_said(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((64, 128)).astype(np.float32)
    two = {"a.weight": quantize_groups(weight, 32), "b.weight": quantize_groups(weight, 64)}
    with pytest.raises(ConfigError, match="a gptq folder has one grid, the matrices have 4 bits in groups of 32 and"):
        write_groups(tmp_path / "m", {}, two, {}, "gptq")
    with pytest.raises(ConfigError, match="tensor 'n' is float64, written beside awq: float16, float32"):
        write_groups(tmp_path / "m", {}, {"a.weight": two["a.weight"]}, {"n": np.ones(2)}, "awq")
    assert not (tmp_path / "m" / "model.safetensors").exists()


def test_group4_parts_are_checked_too(tmp_path: Path) -> None:
    from riverrun.models.io.hf import write_quantized

    config = config_of("llama")
    write_quantized(tmp_path, config, {name: torch.from_numpy(v) for name, v in weights_of(config)}, 32)
    assert read(tmp_path, config).keys() == config.shapes().keys()
    stored = load_file(tmp_path / "model.safetensors")
    del stored[f"{UP}.weight.zero"]
    save_file(stored, tmp_path / "model.safetensors")
    with pytest.raises(IntegrityError, match=r"matrix 'model.layers.0.mlp.up_proj.weight' has no tensor '.*zero'"):
        read(tmp_path, config)
    with pytest.raises(UnsupportedError, match="group4 of 3 bits"):
        grid_of({"quant_method": "group4", "bits": 3}, "m")
