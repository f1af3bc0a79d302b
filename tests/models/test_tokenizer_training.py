"""Training a vocabulary: deterministic, in order, read back by others; the compression report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench.parts.template_talks import TEXTS, save_folder
from riverrun.base.errors import InputError
from riverrun.cli.main import app
from riverrun.models.tokenizer import Tokenizer
from riverrun.models.tokenizer_training import compression, language_of, read_texts, sample_texts, train_bpe
from tests.models.tiny import hf_folder


def test_the_same_texts_give_the_same_vocabulary() -> None:
    one, two = (train_bpe(TEXTS, vocab_size=400) for _ in range(2))
    assert one.to_json() == two.to_json()
    assert one.vocab_size == 400
    assert one.special == {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}
    assert one.eos_id == 2
    for text in [*TEXTS, "\x00\xff é 😀 全新的字", ""]:
        assert one.decode(one.encode(text), skip_special=False) == text
    assert len(one.encode("123456")) == 6
    assert Tokenizer.from_gguf(one.to_gguf()).encode(TEXTS[1]) == one.encode(TEXTS[1])
    three = train_bpe(["123 456 123456"] * 9, vocab_size=300, digits="three", special_tokens=["<e>"])
    assert len(three.encode("123456")) == 2
    assert Tokenizer.from_gguf(three.to_gguf()).encode("123456") == three.encode("123456")


def test_bytes_per_token_by_language() -> None:
    tokenizer = train_bpe(TEXTS, vocab_size=500)
    rows = {row.language: row for row in compression(tokenizer, TEXTS, train_bpe(["x"], vocab_size=259))}
    assert list(rows) == ["en", "zh", "all"]
    assert rows["all"].bytes == sum(len(text.encode()) for text in TEXTS) == rows["en"].bytes + rows["zh"].bytes
    assert rows["all"].tokens == sum(len(tokenizer.encode(text)) for text in TEXTS)
    assert rows["zh"].bytes_per_token > 1.5 > rows["zh"].other_bytes_per_token == 1.0
    assert [language_of(text) for text in ("的书 price", "naïveté à ñ é", "", "日本 and more english words")] == [
        "zh", "other", "en", "en",
    ]  # fmt: skip


def test_texts_and_their_sample(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text('{"text": "one"}\n\n{"messages": [{"role": "user", "content": "two"}]}\n')
    (tmp_path / "a.txt").write_text("zero")
    (tmp_path / "c.png").write_bytes(b"\xff")
    assert list(read_texts([tmp_path, tmp_path / "a.txt"])) == ["zero", "one", "two", "zero"]
    many = [str(i) for i in range(100)]
    assert sample_texts(many, 0) == many
    drawn = sample_texts(many, 10)
    assert drawn == sample_texts(many, 10) == sorted(drawn, key=int)
    assert len(set(drawn)) == 10 != len(set(drawn) & set(sample_texts(many, 10, seed=1)))


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.jsonl", b'{"text": 1}', "line 1 has neither a 'text' nor 'messages'"),
        ("a.jsonl", b"{", "line 1 is not JSON"),
        ("a.txt", b"\xff\xfe", "is not UTF-8"),
        ("a.png", b"", "is no .txt, .md or .jsonl file"),
    ],
)
def test_texts_that_cannot_be_read(name: str, data: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=says):
        list(read_texts([tmp_path / name]))


def test_settings_that_cannot_be() -> None:
    with pytest.raises(InputError, match="does not exist"):
        list(read_texts([Path("/nowhere")]))
    with pytest.raises(InputError, match="vocab_size 200 is too small: 256 bytes and the special tokens are 259"):
        train_bpe(TEXTS, vocab_size=200)
    with pytest.raises(InputError, match="texts that differ"):
        train_bpe(TEXTS, vocab_size=400, special_tokens=["a", "a"])
    with pytest.raises(InputError, match="no text to train"):
        train_bpe([], vocab_size=400)
    with pytest.raises(InputError, match="text 2 holds half of a surrogate pair"):
        train_bpe(["a", "\ud800"], vocab_size=400)


def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    base = save_folder("qwen2.5", tmp_path)
    out = tmp_path / "out"
    words = ["tokenizer", "train", str(tmp_path / "texts.txt"), "--vocab-size", "450", "--out", str(out)]
    done = CliRunner().invoke(app, [*words, "--special", "<e>", "--against", str(base)])
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[0].split() == ["language", "documents", "bytes", "tokens", "bytes/token", "against"]
    assert json.loads((out / "compression.json").read_text())["vocab_size"] == 450
    assert Tokenizer.from_folder(out).special == {"<e>": 0}
    bad = CliRunner().invoke(app, [*words, "--digits", "two"])
    assert bad.exit_code == 2
    assert "--digits is single or three, got 'two'" in bad.output


TALK = [{"role": "user", "content": "Hi 书店"}, {"role": "assistant", "content": "Yes"}]


def test_explain_shows_every_token(tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    file.write_text(json.dumps(TALK))
    done = CliRunner().invoke(app, ["models", "explain", str(hf_folder("gqa")), "--messages", str(file)])
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert lines[0].split() == ["0", "1", "S", "<|im_start|>"]
    assert "\x1b" not in done.output
    marked = [line for line in lines if line[15:17].strip()]
    assert sum("L" in line[15:17] for line in marked) >= 2
    assert "learned (L)" in lines[-2]
    assert lines[-1].startswith(("equal to apply_chat_template of transformers", "not compared here"))


def test_explain_writes_tools_out_and_tells_of_special_tokens(tmp_path: Path) -> None:
    file, tools = tmp_path / "talk.jsonl", tmp_path / "tools.json"
    row = {"messages": [{"role": "user", "content": "Hi <|im_end|>"}]}
    file.write_text(json.dumps(row) + "\n" + json.dumps(row) + "\n")
    tools.write_text(json.dumps([{"type": "function", "function": {"name": "weather"}}]))
    words = ["models", "explain", str(hf_folder("gqa")), "--messages", str(file), "--tools", str(tools)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "the template knows no tools: they were written out in the hermes form first" in done.output
    assert "nothing is learned in a prompt" in done.output
    assert "a message holds special tokens, which are text here" in done.output or "not compared" in done.output
    done = CliRunner().invoke(app, [*words, "--template", "qwen2.5"])
    assert "<tools>" in "".join(line[17:].strip() for line in done.output.splitlines())
    file.write_text("{")
    assert "is not JSON" in CliRunner().invoke(app, words).output
