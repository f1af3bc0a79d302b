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
    """One vocabulary. `special` maps the text of special tokens to their ids.

    Each of `end_ids` ends an answer; `eos_id` is the first of them, None when there is none.
    """

    def __init__(self, backend: Any, *, bos_id: int | None = None, end_ids: Sequence[int] = ()) -> None:
        self._backend = backend
        self.bos_id, self.end_ids = bos_id, tuple(dict.fromkeys(end_ids))
        self.eos_id = self.end_ids[0] if self.end_ids else None
        added = backend.get_added_tokens_decoder()
        self.special: dict[str, int] = {token.content: index for index, token in added.items() if token.special}
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)

    @classmethod
    def from_file(
        cls, path: Path, *, bos_id: int | None = None, end_ids: Sequence[int] = (), eos_token: str = ""
    ) -> Tokenizer:
        """Read a `tokenizer.json`; `eos_token` is the text of one more end, where the vocabulary has it."""
        if not path.is_file():
            raise InputError(f"{path} does not exist: a model folder needs tokenizer.json")
        try:
            backend = require("tokenizers", extra="serve").Tokenizer.from_file(str(path))
        except Exception as error:  # the package raises bare Exception for a malformed file
            raise IntegrityError(f"{path} is not a tokenizer.json: {error}") from None
        named = [index for index, token in backend.get_added_tokens_decoder().items() if token.content == eos_token]
        return cls(backend, bos_id=bos_id, end_ids=[*end_ids, *named])

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """Build from the `tokenizer.ggml.*` keys."""
        package = require("tokenizers", extra="serve")
        kind, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre", "default")
        if kind != "gpt2" or pre not in ("smollm", "gpt-2"):
            raise UnsupportedError(
                f"GGUF tokenizer '{kind}' with pre-tokeniser '{pre}' is not read, read: gpt2 with smollm, gpt-2"
            )
        lists: dict[str, Any] = {key: metadata.get(f"tokenizer.ggml.{key}") for key in ("tokens", "merges")}
        for key, value in lists.items():
            if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
                raise IntegrityError(
                    f"GGUF key 'tokenizer.ggml.{key}' must be a list of texts: convert the model again"
                )
        tokens: list[str] = lists["tokens"]
        merges = [tuple(merge.split(" ", 1)) for merge in lists["merges"]]
        try:
            bpe = package.models.BPE({token: i for i, token in enumerate(tokens)}, merges)
        except Exception as error:  # the package raises bare Exception
            raise IntegrityError(f"the GGUF vocabulary and its merges do not fit together: {error}") from None
        backend = package.Tokenizer(bpe)
        byte_level = package.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        if pre == "smollm":  # llama.cpp LLAMA_VOCAB_PRE_TYPE_SMOLLM: each digit alone, then the GPT-2 pattern
            digits = package.pre_tokenizers.Digits(individual_digits=True)
            byte_level = package.pre_tokenizers.Sequence([digits, byte_level])
        backend.pre_tokenizer = byte_level
        backend.decoder = package.decoders.ByteLevel()
        types = metadata.get("tokenizer.ggml.token_type") or []
        special = [token for token, kind in zip(tokens, types, strict=False) if kind in (_CONTROL, _USER_DEFINED)]
        backend.add_special_tokens([package.AddedToken(token, special=True, normalized=False) for token in special])
        ends = (metadata.get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot"))
        return cls(
            backend,
            bos_id=metadata.get("tokenizer.ggml.bos_token_id"),
            end_ids=[end for end in ends if end is not None],
        )

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
        return self.token(token_id) in self.special

    def token(self, token_id: int | None) -> str:
        """The token as the vocabulary writes it; "" for None and for an id that does not exist."""
        return "" if token_id is None else self._backend.id_to_token(token_id) or ""

    def to_json(self) -> str:
        return str(self._backend.to_str())

    def save(self, path: Path) -> None:
        """Write `tokenizer.json`."""
        write_text(path, self.to_json())


class StreamDecoder:
    """Ids in, text out, never half a character: bytes that are not yet whole UTF-8 wait for the next id.

    Ids are decoded together with those of the piece given out last: every piece begins at a character, so nothing
    before it can change what is read, and decoders that treat the first token differently do not see a first token.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._last: list[int] = []  # ids of the piece given out last
        self._new: list[int] = []  # ids that wait

    def push(self, token_id: int) -> str:
        """The text that became final with this token."""
        self._new.append(token_id)
        out = self._pending()
        if out.endswith("\ufffd") or not out:
            return ""
        self._last, self._new = self._new, []
        return out

    def close(self) -> str:
        """What is left, with broken bytes shown as U+FFFD."""
        out = self._pending()
        self._last, self._new = [], []
        return out

    def _pending(self) -> str:
        before = self._tokenizer.decode(self._last)
        return self._tokenizer.decode(self._last + self._new)[len(before) :]

    def feed(self, ids: Sequence[int]) -> Iterator[str]:
        for token_id in ids:
            if piece := self.push(token_id):
                yield piece
