"""GGUF of every family: written here, read by the gguf package and by us; keys, names, rows, norms; what is refused."""

from __future__ import annotations

import contextlib
import struct
import tracemalloc
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from riverrun.base.errors import ConfigError, InputError, IntegrityError, RiverrunError, UnsupportedError
from riverrun.models.config import ModelConfig, RopeScaling
from riverrun.models.families import FULL, SLIDING
from riverrun.models.io.gguf import GGUFFile
from riverrun.models.io.gguf_layout import architecture_of, rope_factors
from riverrun.models.io.gguf_write import plan_gguf, write_gguf
from tests.models.family_shapes import FAMILIES, config_of, weights_of
from tests.models.tiny import quick

NONE = {"tokenizer.ggml.model": "none"}
EVERY = pytest.mark.parametrize("family", FAMILIES)


def written(folder: Path, family: str, kind: str = "F32", **more: Any) -> Path:
    config, path = config_of(family), folder / "m.gguf"
    write_gguf(path, config, weights_of(config), NONE, "{{ messages }}", kind=kind, **more)
    return path


@EVERY
def test_what_is_written_is_read_back(family: str, tmp_path: Path) -> None:
    config, opened = config_of(family), GGUFFile(written(tmp_path, family, name="tiny"))
    assert opened.config() == config
    assert (opened.metadata["general.name"], opened.metadata["general.file_type"]) == ("tiny", 0)
    own, read = dict(weights_of(config)), dict(opened.weights(config))
    assert read.keys() == own.keys()
    for name, values in own.items():
        if config.norm_plus_one and name.endswith("norm.weight"):  # stored as 1 + w, which is the factor
            assert np.array_equal(read[name] + np.float32(1), values + np.float32(1))
        else:
            assert np.array_equal(read[name], values), name
    again = tmp_path / "again.gguf"
    write_gguf(again, opened.config(), read.items(), NONE, "{{ messages }}", kind="F32", name="tiny")
    assert again.read_bytes() == opened.path.read_bytes()


@EVERY
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0"])
def test_the_gguf_package_reads_the_same(family: str, kind: str, tmp_path: Path) -> None:
    opened = GGUFFile(written(tmp_path, family, kind))
    theirs = gguf.GGUFReader(opened.path)
    assert {field for field in theirs.fields if not field.startswith("GGUF.")} == opened.metadata.keys()
    assert opened.metadata["general.file_type"] == {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "BF16": 32}[kind]
    assert [tensor.name for tensor in theirs.tensors] == list(opened.tensors)
    for tensor in theirs.tensors:
        values = np.asarray(gguf.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        mine = opened.read(tensor.name)
        assert np.array_equal(mine.view(np.uint32), values.reshape(mine.shape).view(np.uint32))
        assert tensor.data_offset % 32 == 0
        assert tensor.tensor_type.name == ("F32" if mine.ndim == 1 else kind)


def test_each_family_has_its_architecture_and_order_of_rows(tmp_path: Path) -> None:
    """The table of gguf_layout, which comes from llama.cpp's converter."""
    told = {family: architecture_of(config_of(family)) for family in FAMILIES}
    names = {family: kind.name for family, kind in told.items()}
    assert {names[family] for family in FAMILIES if family.startswith(("llama", "mistral"))} == {"llama"}
    assert (names["internlm"], names["internlm2"], names["internlm3"]) == ("llama", "internlm2", "llama")
    assert names["internlm2, biases"] == "llama", "llama.cpp's internlm2 has no output bias, its llama has"
    assert (names["qwen2"], names["qwen3"], names["gemma3"]) == ("qwen2", "qwen3", "gemma3")
    for family, kind in told.items():
        config = config_of(family)
        order = kind.row_order("model.layers.0.self_attn.q_proj.weight", config)
        assert (order is not None) == (kind.name in ("llama", "internlm2")), family
        if order is not None:
            head, half = config.head_dim, config.head_dim // 2
            assert order[: 2 * head : 2].tolist() == [*range(half), *range(head, head + half)]
            assert order[1:head:2].tolist() == list(range(half, head))
        assert kind.row_order("model.layers.0.self_attn.v_proj.weight", config) is None
    q_bias = dict(weights_of(config_of("internlm")))["model.layers.1.self_attn.q_proj.bias"]
    stored = GGUFFile(written(tmp_path, "internlm")).read("blk.1.attn_q.bias")
    assert stored[:4].tolist() == q_bias[[0, 8, 1, 9]].tolist()


def test_gemma_keys_and_norms(tmp_path: Path) -> None:
    opened = GGUFFile(written(tmp_path, "gemma3"))
    meta, config = opened.metadata, config_of("gemma3")
    assert meta["gemma3.attention.sliding_window"] == 8
    assert meta["gemma3.attention.sliding_window_pattern"] == [True] * 5 + [False, True]
    assert (meta["gemma3.rope.freq_base"], meta["gemma3.rope.freq_base_swa"]) == (1e6, 1e4)
    weights = dict(weights_of(config))
    norms = {"attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm"}
    norms |= {"ffn_norm": "pre_feedforward_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
    for theirs, ours in (norms | {"attn_q_norm": "self_attn.q_norm"}).items():
        factor = weights[f"model.layers.3.{ours}.weight"] + np.float32(1)
        assert np.array_equal(opened.read(f"blk.3.{theirs}.weight"), factor)
    del meta["gemma3.attention.sliding_window_pattern"]  # llama.cpp's default: every sixth layer sees all
    assert opened.config() == config
    meta["gemma3.attention.sliding_window_pattern"] = 2
    assert opened.config().layer_types[:4] == (SLIDING, FULL, SLIDING, FULL)
    meta["gemma3.attention.sliding_window_pattern"] = [True]
    with pytest.raises(IntegrityError, match=r"must be a number or 7 flags, it is \[True\]"):
        opened.config()


@pytest.mark.parametrize("family", ["llama, llama3", "llama, linear", "llama, yarn", "qwen2, yarn", "gemma3, linear"])
def test_rotary_scaling_is_told_from_the_keys_of_llama_cpp_alone(family: str, tmp_path: Path) -> None:
    opened = GGUFFile(written(tmp_path, family))
    del opened.metadata["riverrun.rope_scaling"]
    assert opened.config().rope_scaling == config_of(family).rope_scaling


@quick(25)
@given(
    factor=st.sampled_from([2.0, 8.0, 32.0]),
    high=st.sampled_from([4.0, 2.0, 8.0]),
    original=st.sampled_from([8192, 4096, 1000]),
    theta=st.sampled_from([1e4, 5e5]),
)
def test_llama3_factors_give_their_scaling_back(factor: float, high: float, original: int, theta: float) -> None:
    from riverrun.models.io.gguf_layout import _llama3

    scaling = RopeScaling(
        rope_type="llama3", factor=factor, high_freq_factor=high, original_max_position_embeddings=original
    )
    update = {"rope_scaling": scaling, "rope_theta": theta, "head_dim": 128}
    factors = rope_factors(config_of("llama").model_copy(update=update))
    assert factors is not None
    found = _llama3(factors, {"rope.freq_base": theta}, "m.gguf")
    assert found is not None
    again = rope_factors(config_of("llama").model_copy(update=update | {"rope_scaling": found}))
    assert np.allclose(again, factors, rtol=1e-4)
    assert (found.factor, found.high_freq_factor) == (factor, pytest.approx(high, rel=1e-2))


def test_factors_of_another_form_are_refused() -> None:
    from riverrun.models.io.gguf_layout import _llama3

    assert _llama3(np.ones(16, dtype=np.float32), {}, "m.gguf") is None
    with pytest.raises(UnsupportedError, match="not of the llama3 form"):
        _llama3(np.linspace(1, 8, 16, dtype=np.float32) ** 2, {}, "m.gguf")


def test_embedding_output_and_narrow_matrices_have_types_of_their_own(tmp_path: Path) -> None:
    config = ModelConfig.of(config_of("llama").model_dump() | {"intermediate_size": 80}, "narrow")
    path = tmp_path / "m.gguf"
    write_gguf(path, config, weights_of(config), NONE, kind="Q4_0", embedding="Q8_0", output="F16")
    kinds = {name: info.kind.name for name, info in GGUFFile(path).tensors.items()}
    assert (kinds["token_embd.weight"], kinds["output.weight"]) == ("Q8_0", "F16")
    assert (kinds["blk.0.ffn_up.weight"], kinds["blk.0.ffn_down.weight"]) == ("Q4_0", "F16")
    assert GGUFFile(path).config() == config


def test_tensors_come_in_any_order_and_in_half_precision(tmp_path: Path) -> None:
    config = config_of("llama, llama3")
    halves = {name: values.astype(np.float16) for name, values in weights_of(config)}
    for path, items in ((tmp_path / "a", halves.items()), (tmp_path / "b", reversed(halves.items()))):
        write_gguf(path, config, items, NONE, kind="F16")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").stat().st_size == plan_gguf(config, NONE, kind="F16").nbytes


def test_the_vocabulary_is_filled_up_to_the_embedding(tmp_path: Path) -> None:
    config, path = config_of("llama").model_copy(update={"bos_token_id": 1, "eos_token_id": (2, 7)}), tmp_path / "m"
    words = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [f"t{i}" for i in range(90)],
        "tokenizer.ggml.scores": [-float(i) for i in range(90)],
        "tokenizer.ggml.token_type": [1] * 90,
        "tokenizer.ggml.add_bos_token": True,
    }
    write_gguf(path, config, weights_of(config), words, kind="Q8_0")
    meta = GGUFFile(path).metadata
    assert meta["tokenizer.ggml.tokens"][88:] == ["t88", "t89", *(f"[PAD{i}]" for i in range(90, 96))]
    assert meta["tokenizer.ggml.token_type"][88:] == [1, 1, 5, 5, 5, 5, 5, 5]
    assert len(meta["tokenizer.ggml.scores"]) == 96
    assert (meta["tokenizer.ggml.bos_token_id"], meta["tokenizer.ggml.eos_token_id"]) == (1, 2)
    assert meta["tokenizer.ggml.add_bos_token"] is True
    with pytest.raises(ConfigError, match="the tokenizer has 97 tokens, the embedding 96 rows"):
        write_gguf(path, config, [], {"tokenizer.ggml.tokens": ["x"] * 97})
    for bad in ({"general.name": "x"}, {"tokenizer.ggml.x": {}}, {"tokenizer.ggml.eos_token_id": -1}):
        with pytest.raises(ConfigError, match=r"start with 'tokenizer\.'|cannot hold"):
            write_gguf(path, config, [], bad)


def test_memory_is_a_slice_beside_the_tensor_in_hand(tmp_path: Path) -> None:
    config = config_of("llama").model_copy(update={"vocab_size": 60_000})
    largest = 4 * config.vocab_size * config.hidden_size

    def tensors():
        for name, shape in config.shapes().items():
            yield name, np.full(shape, 0.5, dtype=np.float32)

    tracemalloc.start()
    write_gguf(tmp_path / "m.gguf", config, tensors(), NONE, kind="Q8_0")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= largest + 50_000_000


def change(name: str, values: np.ndarray | None):
    """The weights of `llama` with one tensor left out or replaced."""
    for key, own in weights_of(config_of("llama")):
        if key != name or values is not None:
            yield key, values if key == name else own


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("tensors", "kind", "error", "text"),
    [
        (
            lambda: change(NORM, None),
            "F16",
            IntegrityError,
            "1 tensors were not given, the first is 'model.norm.weight'",
        ),
        (
            lambda: change(NORM, np.ones(65)),
            "F16",
            IntegrityError,
            r"'model.norm.weight' has shape \[65\].* needs \[64\]",
        ),
        (lambda: [("x", np.ones(1))], "F16", IntegrityError, "tensor 'x' has no place in a llama model"),
        (lambda: [(NORM, np.ones(64))] * 2, "F16", IntegrityError, "'model.norm.weight' is given twice"),
        (
            lambda: change(NORM, np.full(64, np.nan)),
            "F32",
            InputError,
            "output_norm.weight has values that are not finite",
        ),
        (
            lambda: change("lm_head.weight", np.full((96, 64), 7e4)),
            "F16",
            InputError,
            r"output.weight has a magnitude of 70000, which F16 does not hold: write BF16",
        ),
        (lambda: change(NORM, None), "Q4_K", UnsupportedError, "'Q4_K' is not written here"),
    ],
)
def test_a_file_is_whole_or_absent(tensors, kind: str, error: type, text: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=text):
        write_gguf(tmp_path / "m.gguf", config_of("llama"), tensors(), NONE, kind=kind)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("family", "update", "text"),
    [
        ("qwen3", {"o_bias": True}, "architecture 'qwen3' has no output bias"),
        ("gemma3", {"query_pre_attn_scalar": 99.0}, "has no query_pre_attn_scalar 99.0"),
        ("gemma3", {"hidden_act": "silu"}, "has no activation silu"),
        (
            "llama, yarn",
            {"rope_scaling": RopeScaling(rope_type="yarn", beta_fast=16.0)},
            "has no yarn with its own beta",
        ),
        ("qwen3", {"rope_scaling": config_of("llama, llama3").rope_scaling}, "has no llama3 rotary scaling"),
    ],
)
def test_what_llama_cpp_does_not_compute_is_not_written(family: str, update: dict, text: str) -> None:
    with pytest.raises(UnsupportedError, match=text):
        plan_gguf(config_of(family).model_copy(update=update), NONE)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"general.architecture": "mamba"},
            "'mamba' is not supported, supported: llama, internlm2, qwen2, qwen3, gemma3",
        ),
        ({"llama.expert_count": 8}, r"llama.expert_count is 8, supported: 0"),
        ({"llama.logit_scale": 0.5}, r"llama.logit_scale is 0.5, supported: 0 or 1"),
        ({"llama.embedding_length": None}, "has no key 'llama.embedding_length'"),
        ({"llama.embedding_length": 128}, r"has shape \[96, 64\], its keys need \[96, 128\]"),
        ({"llama.attention.head_count": [4, 2]}, "does not describe a llama model: num_attention_heads"),
        ({"llama.block_count": 3}, "has no tensor 'blk.2.attn_q.weight'"),
        ({"llama.block_count": 1}, r"tensor 'blk.1.\w+.weight' has no place in a llama model"),
        ({"llama.rope.dimension_count": 8}, r"rope.dimension_count is 8, supported: head_dim \(16\)"),
        (
            {"llama.rope.scaling.type": "longrope", "llama.rope.scaling.factor": 2.0},
            "'longrope' is not read, read: none",
        ),
        ({"riverrun.model_type": "qwen3"}, "riverrun.model_type 'qwen3' is not a family of architecture 'llama'"),
        ({"riverrun.rope_scaling": "{"}, "keys of rotary scaling do not fit together"),
        ({"riverrun.rope_scaling": '{"rope_type": "su"}'}, "keys of rotary scaling do not fit together"),
        ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 0.5}, "keys of rotary scaling do not"),
        ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": "four"}, "keys of rotary scaling do not"),
        ({"llama.rope.freq_base": "x"}, "rope_theta: Input should be a valid number"),
        ({"llama.block_count": 2**31}, "llama.block_count is 2147483648, the file has 21 tensors"),
        ({"llama.block_count": "two"}, "num_hidden_layers: Input should be a valid integer"),
        (
            {"llama.attention.sliding_window": 4, "llama.attention.sliding_window_pattern": "ab"},
            "must be a number or 2",
        ),
    ],
)
def test_files_that_do_not_fit_together_are_refused(changes: dict[str, Any], text: str, tmp_path: Path) -> None:
    opened = GGUFFile(written(tmp_path, "llama"))
    opened.metadata.update(changes)
    opened.metadata = {key: value for key, value in opened.metadata.items() if value is not None}
    with pytest.raises(RiverrunError, match=text):
        opened.config()


@cache
def whole_file(family: str) -> bytes:
    with TemporaryDirectory() as folder:
        return written(Path(folder), family).read_bytes()


@quick(30)
@given(data=st.data())
def test_damage_is_an_error_or_harmless(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("g")
    whole = whole_file(data.draw(st.sampled_from(["gemma3", "llama, llama3"])))
    (folder / "m.gguf").write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(IntegrityError, match=r"truncated|not a GGUF"):
        GGUFFile(folder / "m.gguf")
    broken = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        broken[data.draw(st.integers(4, 6000))] = data.draw(st.integers(0, 255))
    (folder / "m.gguf").write_bytes(bytes(broken))
    with contextlib.suppress(RiverrunError):
        GGUFFile(folder / "m.gguf").config()


def test_a_list_of_texts_that_is_cut_is_truncated(tmp_path: Path) -> None:
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"k"
    for count, rest in ((2**60, b""), (2, struct.pack("<Q", 1) + b"a" + struct.pack("<Q", 2**63))):
        (tmp_path / "m.gguf").write_bytes(head + struct.pack("<IIQ", 9, 8, count) + rest)
        with pytest.raises(IntegrityError, match="truncated"):
            GGUFFile(tmp_path / "m.gguf")


def test_opening_a_large_file_reads_its_header_alone(tmp_path: Path) -> None:
    """InternLM2-7B in BF16: 15 GB of nothing behind a real header."""
    values = {"model_type": "internlm2", "vocab_size": 92544, "hidden_size": 4096, "intermediate_size": 14336}
    values |= {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8}
    config = ModelConfig.of(values, "internlm2-7b")
    plan = plan_gguf(config, NONE, kind="BF16")
    with open(tmp_path / "m.gguf", "wb") as handle:
        handle.write(plan.head)
        handle.truncate(plan.nbytes)
    tracemalloc.start()
    opened = GGUFFile(tmp_path / "m.gguf")
    assert opened.config() == config
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()
    assert plan.nbytes == pytest.approx(2 * config.num_parameters(), rel=0.01)
    assert not opened.read("blk.31.attn_k.weight").any()
