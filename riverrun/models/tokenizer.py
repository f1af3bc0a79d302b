"""Text to token ids and back, on the `tokenizers` package. No torch.

Reads `tokenizer.json` and the byte-level BPE vocabularies of GGUF files (pre-tokenisers `smollm` and `gpt-2`).
User text is never tokenised as a special token: `encode(text)` splits nothing special unless `special=True`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from riverrun.base.artifacts import write_text
from riverrun.base.errors import InputError, IntegrityError, UnsupportedError
from riverrun.base.optional import require

__all__ = ["StreamDecoder", "Tokenizer"]

_CONTROL, _USER_DEFINED = 3, 4  # tokenizer.ggml.token_type


class Tokenizer:
    """One vocabulary. `special` maps the text of special tokens to their ids; `eos_id` ends a turn."""

    def __init__(self, backend: Any, *, bos_id: int | None = None, eos_id: int | None = None) -> None:
        self._backend = backend
        self.bos_id, self.eos_id = bos_id, eos_id
        added = backend.get_added_tokens_decoder()
        self.special: dict[str, int] = {token.content: index for index, token in added.items() if token.special}
        self._special_ids = frozenset(self.special.values())
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)

    @classmethod
    def from_file(cls, path: Path, *, bos_id: int | None = None, eos_id: int | None = None) -> Tokenizer:
        """Read a `tokenizer.json`."""
        if not path.is_file():
            raise InputError(f"{path} does not exist: a model folder needs tokenizer.json")
        try:
            backend = require("tokenizers", extra="serve").Tokenizer.from_file(str(path))
        except Exception as error:  # the package raises bare Exception for a malformed file
            raise IntegrityError(f"{path} is not a tokenizer.json: {error}") from None
        return cls(backend, bos_id=bos_id, eos_id=eos_id)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """Build from the `tokenizer.ggml.*` keys."""
        package = require("tokenizers", extra="serve")
        kind, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre", "default")
        if kind != "gpt2" or pre not in ("smollm", "gpt-2"):
            raise UnsupportedError(
                f"GGUF tokenizer '{kind}' with pre-tokeniser '{pre}' is not read, read: gpt2 with smollm, gpt-2"
            )
        tokens: list[str] = metadata["tokenizer.ggml.tokens"]
        merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
        backend = package.Tokenizer(package.models.BPE({token: i for i, token in enumerate(tokens)}, merges))
        byte_level = package.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        if pre == "smollm":  # llama.cpp LLAMA_VOCAB_PRE_TYPE_SMOLLM: each digit alone, then the GPT-2 pattern
            digits = package.pre_tokenizers.Digits(individual_digits=True)
            byte_level = package.pre_tokenizers.Sequence([digits, byte_level])
        backend.pre_tokenizer = byte_level
        backend.decoder = package.decoders.ByteLevel()
        types = metadata.get("tokenizer.ggml.token_type") or []
        special = [tokens[i] for i, kind in enumerate(types) if kind in (_CONTROL, _USER_DEFINED)]
        backend.add_special_tokens([package.AddedToken(token, special=True, normalized=False) for token in special])
        ends = metadata.get("tokenizer.ggml.eos_token_id")
        return cls(backend, bos_id=metadata.get("tokenizer.ggml.bos_token_id"), eos_id=ends)

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids. With `special`, special tokens written in the text become their ids (rendered templates only)."""
        self._backend.encode_special_tokens = not special
        return list(self._backend.encode(text, add_special_tokens=False).ids)

    def encode_with_offsets(self, text: str) -> list[tuple[int, tuple[int, int]]]:
        """(id, character span) of each token; special tokens in the text are plain text."""
        self._backend.encode_special_tokens = True
        encoding = self._backend.encode(text, add_special_tokens=False)
        return list(zip(encoding.ids, encoding.offsets, strict=True))

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Text of the ids; broken UTF-8 becomes U+FFFD."""
        return str(self._backend.decode(list(ids), skip_special_tokens=skip_special))

    def is_special(self, token_id: int) -> bool:
        return token_id in self._special_ids

    def to_json(self) -> str:
        return str(self._backend.to_str())

    def save(self, path: Path) -> None:
        """Write `tokenizer.json`."""
        write_text(path, self.to_json())


class StreamDecoder:
    """Ids in, text out, never half a character: bytes that are not yet whole UTF-8 wait for the next id."""

    _WINDOW = 6  # tokens kept for context; a character has at most four bytes

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._given = 0  # characters of the window's text already given out

    def push(self, token_id: int) -> str:
        """The text that became final with this token."""
        self._ids.append(token_id)
        text = self._tokenizer.decode(self._ids)
        if text.endswith("\ufffd"):
            return ""
        out = text[self._given :]
        self._given = len(text)
        if len(self._ids) > self._WINDOW:
            self._ids = self._ids[-1:]
            self._given = len(self._tokenizer.decode(self._ids))
        return out

    def close(self) -> str:
        """What is left, with broken bytes shown as U+FFFD."""
        out = self._tokenizer.decode(self._ids)[self._given :]
        self._ids, self._given = [], 0
        return out

    def feed(self, ids: Sequence[int]) -> Iterator[str]:
        for token_id in ids:
            if piece := self.push(token_id):
                yield piece
