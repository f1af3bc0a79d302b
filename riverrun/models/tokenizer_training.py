"""Train a byte-level BPE vocabulary on one's own texts, and say what it saves: bytes per token, by language.

The words are cut as llama.cpp's `qwen2` (every digit alone) or `llama-bpe` (digits by three) do, so the vocabulary
can be written to GGUF. The same texts in the same order give the same vocabulary.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from riverrun.base.errors import InputError
from riverrun.base.optional import require
from riverrun.models.ggml_tokens import pre_tokenizer
from riverrun.models.tokenizer import Tokenizer

__all__ = ["SPECIAL_TOKENS", "Compression", "compression", "language_of", "read_texts", "sample_texts", "train_bpe"]

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_PRE = {"single": "qwen2", "three": "llama-bpe"}
_BYTES = 256


def read_texts(paths: Sequence[Path]) -> Iterator[str]:
    """The texts of files and folders, in order: .txt and .md whole, each line of .jsonl by its `text` or `messages`.

    InputError names a path that is missing, holds nothing readable, or has a line that cannot be read.
    """
    for path in paths:
        if not path.exists():
            raise InputError(f"{path} does not exist: give a .txt, .md or .jsonl file, or a folder of them")
        files = sorted(p for p in path.rglob("*") if p.suffix in _READERS and p.is_file()) if path.is_dir() else [path]
        if not files or files[0].suffix not in _READERS:
            raise InputError(f"{path} is no .txt, .md or .jsonl file and holds none: give one, or a folder of them")
        for file in files:
            try:
                yield from _READERS[file.suffix](file)
            except UnicodeDecodeError as error:
                raise InputError(f"{file} is not UTF-8 ({error}): convert it first") from None


def _whole(path: Path) -> Iterator[str]:
    yield path.read_text(encoding="utf-8")


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as handle:
        for number, line in enumerate(handle, 1):
            if line.strip():
                yield _row_text(line, f"{path}, line {number}")


def _row_text(line: str, place: str) -> str:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(f"{place} is not JSON: {error}") from None
    if isinstance(row, Mapping) and isinstance(row.get("text"), str):
        return str(row["text"])
    if isinstance(row, Mapping) and isinstance(row.get("messages"), list):
        contents = (m.get("content") for m in row["messages"] if isinstance(m, Mapping))
        return "\n".join(text for text in contents if isinstance(text, str))
    raise InputError(f"{place} has neither a 'text' nor 'messages'")


_READERS = {".txt": _whole, ".md": _whole, ".jsonl": _lines}


def sample_texts(texts: Iterable[str], count: int, seed: int = 0) -> list[str]:
    """`count` texts drawn evenly (all for 0), in their order; the same for the same seed."""
    if not count:
        return list(texts)
    rng, kept = random.Random(seed), []
    for number, text in enumerate(texts):
        if number < count:
            kept.append((number, text))
        elif (place := rng.randint(0, number)) < count:
            kept[place] = (number, text)
    return [text for _, text in sorted(kept)]


def train_bpe(
    texts: Iterable[str],
    *,
    vocab_size: int,
    special_tokens: Sequence[str] = SPECIAL_TOKENS,
    digits: Literal["single", "three"] = "single",
) -> Tokenizer:
    """A vocabulary of `vocab_size` tokens (fewer where the texts have no more pairs): special tokens first, then the
    256 bytes, then what merges give. The last special token ends an answer."""
    package = require("tokenizers", extra="train")
    least = _BYTES + len(special_tokens)
    if vocab_size < least:
        raise InputError(f"vocab_size {vocab_size} is too small: {_BYTES} bytes and the special tokens are {least}")
    if len(set(special_tokens)) != len(special_tokens) or not all(special_tokens):
        raise InputError(f"the special tokens must be texts that differ, got {list(special_tokens)}")
    row = pre_tokenizer(_PRE[digits])
    backend = package.Tokenizer(package.models.BPE(ignore_merges=row.ignore_merges))
    backend.pre_tokenizer = row.steps()
    backend.decoder = package.decoders.ByteLevel()
    trainer = package.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[package.AddedToken(text, special=True, normalized=False) for text in special_tokens],
        initial_alphabet=sorted(package.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    counted = _Counted(texts)
    try:
        backend.train_from_iterator(counted, trainer)
    except UnicodeEncodeError:
        raise InputError(f"text {counted.count} holds half of a surrogate pair, which UTF-8 cannot hold") from None
    if not counted.characters:
        raise InputError("there is no text to train a vocabulary on: give files with text in them")
    return Tokenizer(backend, end_ids=[len(special_tokens) - 1] if special_tokens else [])


class _Counted:
    """Texts on their way to the trainer."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts, self.count, self.characters = texts, 0, 0

    def __iter__(self) -> Iterator[str]:
        for text in self._texts:
            self.count += 1
            self.characters += len(text)
            yield text


@dataclass(frozen=True)
class Compression:
    """Of the texts of one language: how many, their UTF-8 bytes, and the tokens they take."""

    language: str
    documents: int
    bytes: int
    tokens: int
    other_tokens: int | None = None

    @property
    def bytes_per_token(self) -> float:
        return self.bytes / max(1, self.tokens)

    @property
    def other_bytes_per_token(self) -> float | None:
        return None if self.other_tokens is None else self.bytes / max(1, self.other_tokens)

    def to_json(self) -> dict[str, Any]:
        return {
            "language": self.language,
            "documents": self.documents,
            "bytes": self.bytes,
            "tokens": self.tokens,
            "bytes_per_token": round(self.bytes_per_token, 4),
            "other_tokens": self.other_tokens,
            "other_bytes_per_token": self.other_bytes_per_token and round(self.other_bytes_per_token, 4),
        }


def language_of(text: str) -> str:
    """zh where a fifth of the letters or more are Han, en where they are nearly all ASCII, else other."""
    letters = [char for char in text[:20_000] if char.isalpha()]
    han = sum("\u4e00" <= char <= "\u9fff" for char in letters)
    if letters and han * 5 >= len(letters):
        return "zh"
    return "en" if sum(char.isascii() for char in letters) * 10 >= len(letters) * 9 else "other"


def compression(tokenizer: Tokenizer, texts: Iterable[str], other: Tokenizer | None = None) -> list[Compression]:
    """One row a language and one for all, with the tokens that `other` takes for the same texts."""
    sums: dict[str, list[int]] = {}
    for text in texts:
        row = [1, len(text.encode("utf-8", "surrogatepass")), len(tokenizer.encode(text))]
        row.append(len(other.encode(text)) if other else 0)
        for language in (language_of(text), "all"):
            sums[language] = [a + b for a, b in zip(sums.get(language, [0, 0, 0, 0]), row, strict=True)]
    order = sorted(sums, key=lambda language: (language == "all", language))
    out = []
    for name in order:
        documents, size, tokens, others = sums[name]
        out.append(Compression(name, documents, size, tokens, others if other else None))
    return out
