"""GGUF truncation, 4-bit forms, tokens against transformers, templates."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from riverrun.base.errors import InputError, IntegrityError, RiverrunError, UnsupportedError
from riverrun.base.types import Message
from riverrun.chain.quantizing import quantize
from riverrun.models.chat import ChatTemplate
from riverrun.models.io.adapter import add_adapters, save_adapter
from riverrun.models.io.gguf import GGUFFile
from riverrun.models.load import load_checkpoint, load_model
from riverrun.models.quantized import (
    block_type,
    dequantize_blocks,
    dequantize_groups,
    dequantize_rows,
    quantize_groups,
    quantize_rows,
)
from riverrun.models.tokenizer import StreamDecoder, Tokenizer
from tests.tiny_model import CHATML, write_tiny

QUICK = settings(max_examples=40, deadline=None, derandomize=True)


def test_the_vector_of_q4_0() -> None:
    block = np.frombuffer(struct.pack("<e", 1.0) + bytes(j | j << 4 for j in range(16)), dtype=np.uint8)
    values = dequantize_blocks(block_type(2), block, (32,))
    assert values.tolist() == [j - 8.0 for j in range(16)] * 2
    with pytest.raises(UnsupportedError, match=r"Q2_K is not read here, readable: F32, F16, Q4_0"):
        block_type(10)


def gguf_bytes() -> bytes:
    """A GGUF file with one string, one array and one F32 tensor."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    pairs = text("general.architecture") + struct.pack("<I", 8) + text("llama")
    pairs += text("list") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("b")
    tensor = text("token_embd.weight") + struct.pack("<IQQIQ", 2, 4, 3, 0, 0)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 2) + pairs + tensor
    return head + bytes(-len(head) % 32) + np.arange(12, dtype=np.float32).tobytes()


def test_a_gguf_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes())
    opened = GGUFFile(path)
    assert opened.metadata["list"] == ["a", "b"]
    assert opened.read("token_embd.weight").tolist() == np.arange(12.0).reshape(3, 4).tolist()


@QUICK
@given(data=st.data())
def test_a_truncated_or_damaged_gguf_file_is_one_clear_error(data: st.DataObject, tmp_path_factory) -> None:
    whole = gguf_bytes()
    cut = data.draw(st.integers(0, len(whole) - 1))
    path = tmp_path_factory.mktemp("g") / "m.gguf"
    path.write_bytes(whole[:cut])
    with pytest.raises(IntegrityError, match=r"truncated|not a GGUF"):
        GGUFFile(path)
    broken = bytearray(whole)
    broken[data.draw(st.integers(0, len(whole) - 49))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(bytes(broken))
    with contextlib.suppress(RiverrunError):
        GGUFFile(path)


@QUICK
@given(st.integers(0, 1000), st.sampled_from([8, 32, 64]))
def test_the_group_grid_rounds_within_half_a_step(seed: int, group: int) -> None:
    weight = np.random.default_rng(seed).normal(size=(6, 128)).astype(np.float32)
    plain, searched = quantize_groups(weight, group, shrink_steps=1), quantize_groups(weight, group)
    step = np.repeat(plain.scale.astype(np.float32), group, axis=1)
    assert np.all(np.abs(dequantize_groups(plain) - weight) <= step * 1.01)
    error = [np.square(dequantize_groups(q) - weight).sum() for q in (plain, searched)]
    assert error[1] <= error[0] * 1.0001
    codes, scale = quantize_rows(weight)
    assert np.all(np.abs(dequantize_rows(codes, scale) - weight) <= np.repeat(scale.astype(np.float32), 32, 1) * 0.51)


def test_a_light_adapter_is_erased_on_the_old_grid_and_survives_on_another(tmp_path: Path) -> None:
    """The trap: weights that come from a 4-bit grid round back to it, and take a small update with them."""
    weight = np.random.default_rng(0).normal(size=(64, 128)).astype(np.float32)
    on_grid = dequantize_groups(quantize_groups(weight, 32, shrink_steps=1))
    again = quantize_groups(on_grid, 32, shrink_steps=1)
    assert np.abs(dequantize_groups(again) - on_grid).max() <= 2e-3
    update = np.random.default_rng(1).normal(size=weight.shape).astype(np.float32) * 0.02

    def share(rounded: np.ndarray, base: np.ndarray) -> float:
        return float(((rounded - base) * update).sum() / np.square(update).sum())

    old = quantize_groups(on_grid, 32, shrink_steps=1)
    step = np.repeat(old.scale.astype(np.float32), 32, axis=1)
    on_old = np.round((on_grid + update) / step) * step
    assert abs(share(on_old, np.round(on_grid / step) * step)) < 0.05
    new = [dequantize_groups(quantize_groups(values, 64, shrink_steps=1)) for values in (on_grid + update, on_grid)]
    assert share(*new) > 0.4


def test_both_four_bit_forms_load_and_the_bundle_is_exact(tmp_path: Path) -> None:
    opened = load_checkpoint(write_tiny(tmp_path / "base"))
    model = load_model(opened, torch.float32)
    add_adapters(model, 4, 8.0)
    for _, matrix in model.linears():
        for adapter in matrix.adapters.values():
            torch.nn.init.normal_(adapter.lora_B, std=0.1, generator=torch.Generator().manual_seed(1))
    save_adapter(model, tmp_path / "adapter")
    wanted = load_model(load_checkpoint(tmp_path / "base", adapter=tmp_path / "adapter"), torch.float32).views()
    report = quantize(tmp_path / "base", tmp_path / "adapter", tmp_path / "out", group_size=32)
    assert set(report) == {"group_size", "q4-base-adapter", "q4-merged"}
    for form in ("q4-base-adapter", "q4-merged"):
        got = load_model(load_checkpoint(tmp_path / "out" / form), torch.float32).views()
        for name, tensor in wanted.items():
            assert float((got[name] - tensor).abs().max()) <= 0.35, (form, name)
    quantized = load_model(load_checkpoint(tmp_path / "out" / "q4-base-adapter" / "base"), torch.float32)
    again = quantize(
        tmp_path / "out" / "q4-base-adapter" / "base", tmp_path / "adapter", tmp_path / "two", group_size=32
    )
    assert again["q4-base-adapter"]["max_error"] == 0.0
    kept = load_model(load_checkpoint(tmp_path / "two" / "q4-base-adapter" / "base"), torch.float32)
    assert all(torch.equal(kept.views()[name], tensor) for name, tensor in quantized.views().items())


TEXTS = st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from(" \n0123456789你好😀'<|im_end|>")), max_size=60)


@QUICK
@given(turns=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=4))
def test_ids_of_conversations_are_those_of_the_whole_rendered_text(turns, tmp_path_factory) -> None:
    folder = tmp_path_factory.getbasetemp() / "tok"
    if not folder.exists():
        folder.mkdir()
        write_tiny(folder)
    tokenizer, template = Tokenizer.from_file(folder / "tokenizer.json"), ChatTemplate(CHATML)
    messages = [m for user, answer in turns for m in (Message.of("user", user), Message.of("assistant", answer))]
    ids, learned = template.encode_with_labels(tokenizer, messages)
    text = template.render(messages, add_generation_prompt=False)
    assert tokenizer.decode(ids, skip_special=False).replace("\ufffd", "") == text.replace("\ufffd", "")
    specials = [i for i in ids if tokenizer.is_special(i)]
    assert len(specials) == 2 * len(messages), "a special token in a content is plain text"
    if not any(token in user + answer for user, answer in turns for token in tokenizer.special):
        assert ids == tokenizer.encode(text, special=True)
    assert sum(learned) >= len(turns)
    shown = tokenizer.decode([i for i, flag in zip(ids, learned, strict=True) if flag], skip_special=False)
    assert shown.count("<|im_end|>") >= len(turns)
    stream = StreamDecoder(tokenizer)
    assert "".join(stream.feed(ids)) + stream.close() == tokenizer.decode(ids)


def test_token_ids_and_template_are_those_of_transformers(smollm2: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="not run here: transformers")
    from tokenizers import pre_tokenizers

    opened = load_checkpoint(smollm2)
    reference = transformers.AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name)
    # transformers drops the digit splitting of SmolLM2 when it converts a GGUF vocabulary
    digits = pre_tokenizers.Digits(individual_digits=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    reference.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    rng = np.random.default_rng(0)
    pieces = [
        "price of  12.50",
        "订单 10077 在哪里？",
        "😀 ok",
        "def f(x):\n\treturn x",
        "  two  spaces 7",
        "Ü é",
        "SELECT *",
    ]
    for _ in range(60):
        roles = ["system", "user", "assistant", "user"]
        texts = [" ".join(rng.choice(pieces, size=rng.integers(1, 4))) for _ in roles]
        rows = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
        messages = [Message.from_openai(row) for row in rows]
        ids = reference.apply_chat_template(rows, add_generation_prompt=True)["input_ids"]
        assert opened.template.encode(opened.tokenizer, messages) == ids


def test_what_is_wrong_with_a_model_path_is_said(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "m")
    (folder / "chat_template.jinja").write_text("{% if %}")
    with pytest.raises(RiverrunError, match=r"not valid jinja \(line 1: \{% if %\}\)"):
        load_checkpoint(folder)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(InputError, match="has no chat template"):
        load_checkpoint(folder)
    (tmp_path / "x.bin").write_bytes(b"hello")
    with pytest.raises(IntegrityError, match="not a GGUF file"):
        load_checkpoint(tmp_path / "x.bin")
    with pytest.raises(InputError, match="does not exist"):
        load_checkpoint(tmp_path / "none")
    whole = write_tiny(tmp_path / "t")
    file = whole / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(IntegrityError, match="not a whole safetensors file"):
        load_model(load_checkpoint(whole), torch.float32)
