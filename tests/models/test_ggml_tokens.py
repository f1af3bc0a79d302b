"""GGUF vocabularies: every pre-tokeniser against another regex engine, and what cannot be written."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
import tokenizers

from bench.parts.template_talks import build
from riverrun.base.errors import IntegrityError, UnsupportedError
from riverrun.models.ggml_tokens import PreTokenizer, pre_tokenizer, pre_tokenizers
from riverrun.models.tokenizer import Tokenizer

ROWS = list(dict.fromkeys(pre_tokenizers().values()))
WORDS = [
    *("hello", "It's", "WE'LL", " 'S", "x'd", "  ", "   ", " ", "\n", "\n\n", "\r\n", "\t", "1", "12", "1234567"),
    *("书店", "价格", "😀", "é", "e\u0301", "café", "ñÑ", "HTTPServer", "...", "!?", "$5+<=>", "`~|", "日本語テスト"),
    *("한국어", "ﬁ", "٣٤", "\u3000", "\u00a0", "//", "/\n", "a.b,c", "?X", "Ωω", "ΌΎ", "हिन्दी", "ι", "K"),
]  # fmt: skip


def words_of(row: PreTokenizer, text: str) -> list[str]:
    """By the `regex` package: each pattern isolates its matches within the words so far."""
    regex = pytest.importorskip("regex", reason="not run here: regex is not installed")
    out = [text]
    for cut in row.cuts:
        pattern, parts = regex.compile(cut), []
        for word in out:
            place = 0
            for found in pattern.finditer(word):
                parts += [word[place : found.start()], found.group()]
                place = found.end()
            parts.append(word[place:])
        out = [part for part in parts if part]
    return out


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.names[0])
def test_words_are_cut_as_another_engine_cuts_them(row: PreTokenizer) -> None:
    rng, steps = random.Random(3), row.steps()
    for _ in range(150):
        text = "".join(rng.choice(WORDS) for _ in range(rng.randint(1, 9)))
        assert [text[a:b] for _, (a, b) in steps.pre_tokenize_str(text)] == words_of(row, text)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.names[0])
def test_a_pre_tokeniser_is_known_again(row: PreTokenizer) -> None:
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1}, [], ignore_merges=row.ignore_merges))
    backend.pre_tokenizer = row.steps()
    metadata = Tokenizer(backend).to_gguf()
    assert metadata["tokenizer.ggml.pre"] == row.names[0]
    assert Tokenizer.from_gguf(metadata).to_gguf() == metadata | {"tokenizer.ggml.add_bos_token": False}


def test_names_of_the_issue_are_read() -> None:
    wanted = (
        "default llama-bpe llama3 qwen2 qwen35 smollm gpt-2 deepseek-llm deepseek-coder deepseek-v3 starcoder refact"
    )
    for name in [*wanted.split(), "falcon", "mpt", "command-r", "tekken", "gpt-4o", "llama4", "glm4", "bloom"]:
        assert name in pre_tokenizer(name).names


def change(**parts: Any) -> Tokenizer:
    state = json.loads(build("qwen2.5").to_json()) | parts
    return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(state)))


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"pre_tokenizer": {"type": "Whitespace"}}, "no GGUF pre-tokeniser cuts words as this vocabulary does"),
        ({"normalizer": {"type": "Lowercase"}}, "the normaliser 'Lowercase' cannot be written"),
        ({"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}, "of type 'WordLevel'"),
    ],
)
def test_what_gguf_cannot_hold_is_refused(parts: dict[str, Any], says: str) -> None:
    with pytest.raises(UnsupportedError, match=says):
        change(**parts).to_gguf()


def test_merges_out_of_the_order_of_scores_are_refused() -> None:
    state = json.loads(build("gemma").to_json())
    state["model"]["merges"].pop()
    with pytest.raises(UnsupportedError, match="not in the order of scores"):
        Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(state))).to_gguf()


def test_lists_that_do_not_fit() -> None:
    metadata = build("qwen2.5").to_gguf()
    twice = [*metadata["tokenizer.ggml.tokens"]]
    twice[7] = twice[9]
    with pytest.raises(IntegrityError, match=r"stands in the GGUF vocabulary twice, as 7 and 9"):
        Tokenizer.from_gguf(metadata | {"tokenizer.ggml.tokens": twice})
    pieces = build("gemma").to_gguf()
    with pytest.raises(IntegrityError, match=r"tokenizer\.ggml\.scores' must be a list of numbers"):
        Tokenizer.from_gguf(pieces | {"tokenizer.ggml.scores": "x"})
    with pytest.raises(IntegrityError, match="scores"):
        Tokenizer.from_gguf(pieces | {"tokenizer.ggml.scores": [0.0]})
