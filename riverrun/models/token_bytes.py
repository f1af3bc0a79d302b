"""The bytes that every token of a vocabulary stands for: what guided decoding and log-probabilities show."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

__all__ = ["token_bytes"]

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
SPACE = "\u2581"


@cache
def _byte_of() -> dict[str, int]:
    """Characters that byte-level vocabularies write for bytes (GPT-2's table)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    table = {chr(byte): byte for byte in shown}
    return table | {chr(256 + place): byte for place, byte in enumerate(hidden)}


def token_bytes(settings: Mapping[str, Any], size: int) -> list[bytes]:
    """By id, from the content of a tokenizer.json; ids without a token have no bytes.

    Byte-level vocabularies are read back by their table; others write a space as U+2581 and may have tokens such as
    <0x0A>. Added tokens are their own text.
    """
    model = settings["model"]
    vocabulary = model.get("vocab", {})
    pairs = enumerate(word for word, _ in vocabulary) if isinstance(vocabulary, list) else (
        (index, word) for word, index in vocabulary.items()
    )  # fmt: skip
    read = _from_byte_level if _is_byte_level(settings) else _from_text
    out = [b""] * size
    for index, word in pairs:
        if index < size:
            out[index] = read(word)
    for added in settings.get("added_tokens", ()):
        if added["id"] < size:
            out[added["id"]] = added["content"].encode()
    return out


def _is_byte_level(settings: Mapping[str, Any]) -> bool:
    parts = [settings.get(name) for name in ("decoder", "pre_tokenizer")]
    return any('"ByteLevel"' in json.dumps(part) for part in parts)


def _from_byte_level(word: str) -> bytes:
    table = _byte_of()
    return bytes(table[char] for char in word) if all(char in table for char in word) else word.encode()


def _from_text(word: str) -> bytes:
    found = _BYTE.fullmatch(word)
    return bytes([int(found[1], 16)]) if found else word.replace(SPACE, " ").encode()
