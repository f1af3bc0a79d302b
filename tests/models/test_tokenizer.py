"""Text to ids and back: against `tokenizers` and transformers, special tokens in user text, streamed decoding."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import decoders, models

from riverrun.base.errors import InputError, IntegrityError, UnsupportedError
from riverrun.models.io.gguf import GGUFFile
from riverrun.models.tokenizer import StreamDecoder, Tokenizer
from tests.models.tiny import SPECIAL, VOCABULARY, backend, gguf_file, hf_folder, quick

TEXTS = st.lists(
    st.characters(codec="utf-8") | st.sampled_from(["  ", "\n\n", "42", "书店", "价格", "e\u0301", "😀", *SPECIAL]),
    max_size=40,
).map("".join)


@cache
def of_folder() -> Tokenizer:
    return Tokenizer.from_file(hf_folder("gqa") / "tokenizer.json", bos_id=1, end_ids=[2])


@cache
def of_gguf() -> Tokenizer:
    return Tokenizer.from_gguf(GGUFFile(gguf_file("gqa")).metadata)


@quick(150)
@given(TEXTS)
@example("1999 and 12.50: each digit alone")
def test_ids_are_the_same_from_both_formats_and_decode_to_the_text(text: str) -> None:
    ids = of_folder().encode(text)
    assert ids == of_gguf().encode(text)
    assert of_folder().decode(ids) == of_gguf().decode(ids) == text
    assert not any(of_folder().is_special(i) for i in ids), "what a user writes is never a special token"
    assert ids == [i for i, _ in of_folder().encode_with_offsets(text)]
    reference = backend().encode(text, add_special_tokens=False).ids
    assert of_folder().encode(text, special=True) == reference
    if not any(token in text for token in SPECIAL):
        assert ids == reference


@quick(80)
@given(TEXTS)
def test_offsets_cover_the_text(text: str) -> None:
    reached = 0
    for _, (start, end) in of_folder().encode_with_offsets(text):
        assert start <= reached <= end or (start, end) == (reached - 1, reached)
        reached = end
    assert reached == len(text)


def test_what_a_vocabulary_knows_of_itself() -> None:
    for tokenizer in (of_folder(), of_gguf()):
        assert tokenizer.special == {token: index for index, token in enumerate(SPECIAL)}
        assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.end_ids) == (1, 2, (2,))
        assert tokenizer.vocab_size == VOCABULARY
        assert tokenizer.token(2) == "<|im_end|>"
        assert tokenizer.token(None) == tokenizer.token(10**6) == ""
        assert tokenizer.decode([1, 2]) == ""
        assert tokenizer.decode([1, 2], skip_special=False) == "<|im_start|><|im_end|>"


def test_a_saved_tokenizer_is_the_same(tmp_path: Path) -> None:
    of_gguf().save(tmp_path / "tokenizer.json")
    again = Tokenizer.from_file(tmp_path / "tokenizer.json", end_ids=[2, 0, 2], eos_token="<|im_start|>")
    text = "Which books 订单 1999?"
    assert again.encode(text) == of_gguf().encode(text)
    assert again.end_ids == (1, 2, 0), "the named end is the tokenizer's own"


def test_files_that_are_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a model folder needs tokenizer\.json"):
        Tokenizer.from_file(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(IntegrityError, match=r"is not a tokenizer\.json"):
        Tokenizer.from_file(tmp_path / "tokenizer.json")
    with pytest.raises(UnsupportedError, match="GGUF tokenizer 'bert' is not read, read: gpt2"):
        Tokenizer.from_gguf({"tokenizer.ggml.model": "bert"})
    with pytest.raises(UnsupportedError, match=r"pre-tokeniser 'qwen3' is not read\. Did you mean 'qwen35'"):
        Tokenizer.from_gguf({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen3"})
    with pytest.raises(IntegrityError, match="vocabulary and its merges do not fit together"):
        Tokenizer.from_gguf(
            {
                "tokenizer.ggml.model": "gpt2",
                "tokenizer.ggml.pre": "gpt-2",
                "tokenizer.ggml.tokens": ["a"],
                "tokenizer.ggml.merges": ["b c"],
            }
        )


def streamed(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    decoder = StreamDecoder(tokenizer)
    return [*(decoder.push(i) for i in ids), decoder.close()]


@quick(200)
@given(st.lists(st.integers(0, VOCABULARY - 1), max_size=40))
def test_any_ids_streamed_are_the_ids_decoded(ids: list[int]) -> None:
    pieces = streamed(of_folder(), ids)
    assert "".join(pieces) == of_folder().decode(ids)
    assert not any(piece.endswith("\ufffd") for piece in pieces[:-1]), "half a character waits"


@quick(100)
@given(TEXTS.filter(lambda text: "\ufffd" not in text))
def test_no_piece_of_a_text_is_broken(text: str) -> None:
    ids = of_folder().encode(text)
    pieces = streamed(of_folder(), ids)
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    decoder = StreamDecoder(of_folder())
    assert "".join([*decoder.feed(ids), decoder.close()]) == text


@cache
def sentencepiece() -> Tokenizer:
    """A vocabulary as Llama 2's: spaces as ▁, unknown characters as bytes, a leading space cut off when decoding."""
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁hi", "▁there", "a", "b"]
    made = tokenizers.Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], byte_fallback=True))
    steps: list[Any] = [
        decoders.Replace("▁", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ]
    made.decoder = decoders.Sequence(steps)
    return Tokenizer(made)


@quick(100)
@given(st.text(st.sampled_from("ab 你好书店😀é"), max_size=20))
def test_bytes_of_one_character_after_another_stream_whole(text: str) -> None:
    ids = []
    for char in text:
        ids += [257] if char == " " else [260 + "ab".index(char)] if char in "ab" else [1 + b for b in char.encode()]
    assert "".join(streamed(sentencepiece(), ids)) == sentencepiece().decode(ids) == text.removeprefix(" ")


def test_spaces_between_words_survive_streaming() -> None:
    assert "".join(streamed(sentencepiece(), [258, 259] * 10)) == "hi there" + " hi there" * 9


@pytest.fixture(scope="module")
def reference(smollm2: Path) -> Any:
    """transformers' own conversion of the GGUF vocabulary.

    It drops SmolLM2's splitting of digits (llama.cpp: LLAMA_VOCAB_PRE_TYPE_SMOLLM, each digit alone, then the GPT-2
    pattern), so the pre-tokeniser of SmolLM2's own tokenizer.json is put back.
    """
    transformers = pytest.importorskip("transformers", reason="not run here: transformers is not installed")
    from tokenizers import pre_tokenizers

    out = transformers.AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name)
    digits = pre_tokenizers.Digits(individual_digits=True)
    out.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return out


def test_smollm2_ids_are_those_of_transformers(reference: Any, smollm2: Path) -> None:
    """200 random conversations: the rendered text and the ids of the whole, and streaming them gives the text back."""
    import random

    from riverrun.base.types import Message
    from riverrun.models.load import load_checkpoint

    opened = load_checkpoint(smollm2)
    rng = random.Random(7)
    words = [
        *(
            "price",
            "of  12.50",
            "  two  spaces",
            "\n\n",
            "\t",
            "😀👍🏽",
            "Ünïcödé",
            "e\u0301",
            "don't",
            "I'll",
            "...",
            "#!?",
        ),
        *(
            "订单 10077 在哪里？",
            "书店",
            "日本語",
            "한국어",
            "def f(x):\n\treturn x ** 2",
            "SELECT * FROM t;",
            "0",
            "1234567890",
        ),
    ]
    for _ in range(200):
        roles = ["system", "user", "assistant", "user", "assistant", "user"][rng.randint(0, 1) :][: rng.randint(1, 6)]
        texts = ["".join(rng.choice(words) + rng.choice(["", " "]) for _ in range(rng.randint(0, 12))) for _ in roles]
        rows = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
        messages = [Message.from_openai(row) for row in rows]
        ids = reference.apply_chat_template(rows, add_generation_prompt=True, return_dict=False)
        assert opened.template.encode(opened.tokenizer, messages) == ids
        text = reference.apply_chat_template(rows, tokenize=False, add_generation_prompt=True)
        assert opened.template.render(messages, add_generation_prompt=True) == text
        assert "".join(streamed(opened.tokenizer, ids)) == opened.tokenizer.decode(ids)
