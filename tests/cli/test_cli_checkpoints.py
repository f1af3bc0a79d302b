"""`riverrun models list | info | convert | merge` as they are typed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from riverrun.cli.main import app
from riverrun.models.io.adapter import adapter_tensors, add_adapters, save_adapter
from riverrun.models.load import load_checkpoint, load_config, load_model
from tests.tiny_model import write_tiny

RUN = CliRunner()


def said(*arguments: object, code: int = 0) -> str:
    done = RUN.invoke(app, ["models", *map(str, arguments)])
    assert done.exit_code == code, done.output
    return done.output


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "m")


def test_what_there_is(model: Path) -> None:
    lines = said("list").splitlines()
    assert any(line.split()[:3] == ["internlm2-7b", "internlm2", "7,737,708,544"] for line in lines)
    text = said("info", "internlm2-20b")
    assert "internlm2, 19,861,149,696 parameters, context 32,768" in text
    assert "48 query and 8 key heads of 128" in text
    text = said("info", model)
    assert "llama, " in text
    assert "in 1 files" in text
    assert "26 layers see" not in text
    assert "22 layers see the last 512 tokens" in said("info", "gemma3-1b")
    assert "nothing-here" in said("info", "nothing-here", code=2)


def test_there_and_back_again(model: Path, tmp_path: Path) -> None:
    assert "internlm2" in said("convert", model, tmp_path / "2", "--family", "internlm2")
    assert load_config(tmp_path / "2").model_type == "internlm2"
    said("convert", tmp_path / "2", tmp_path / "3", "--family", "llama")
    assert (tmp_path / "3" / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
    said("convert", model, tmp_path / "m.gguf", "--to", "gguf", "--kind", "F16")
    assert load_checkpoint(tmp_path / "m.gguf").config.hidden_size == 64
    said("convert", model, tmp_path / "awq", "--to", "awq", "--group-size", "32")
    assert (load_checkpoint(tmp_path / "awq").quantization or {})["quant_method"] == "awq"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--to", "onnx"], "--to onnx is not written, written: hf, gguf, awq"),
        (["--to", "gguf", "--dtype", "float16"], "--dtype has no effect with --to gguf: leave it out"),
        (["--kind", "Q8_0"], "--kind has no effect with --to hf: leave it out"),
        (["--to", "gguf", "--kind", "Q2_K"], "Q2_K"),
        (["--to", "awq", "--group-size", "48"], "48"),
        (["--dtype", "int4"], "dtype 'int4' is not written"),
        (["--family", "gpt2"], "'gpt2' is not supported"),
    ],
)
def test_what_cannot_be_written_is_said_in_one_sentence(
    options: list[str], message: str, model: Path, tmp_path: Path
) -> None:
    out = said("convert", model, tmp_path / "out", *options, code=2)
    assert message in out
    assert "Traceback" not in out
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


def test_merging(model: Path, tmp_path: Path) -> None:
    lm = load_model(load_checkpoint(model), torch.float32)
    add_adapters(lm, 4, 8.0)
    for name, tensor in adapter_tensors(lm).items():
        if "lora_B" in name:
            tensor.fill_(0.01)
    save_adapter(lm, tmp_path / "a")
    probes = tmp_path / "probes.txt"
    probes.write_text("one probe\n\nand another\n")
    text = said("merge", model, tmp_path / "a", tmp_path / "x", "--probes", probes)
    assert "into_dequant" in text
    assert "on 2 probes" in text
    assert load_checkpoint(tmp_path / "x").adapter is None
    assert "modes: into_dequant, into_base, requantize" in said(
        "merge", model, tmp_path / "a", tmp_path / "y", "--mode", "sum", code=2
    )
    assert "needs the unquantised base (--base)" in said(
        "merge", model, tmp_path / "a", tmp_path / "y", "--mode", "into_base", code=2
    )
