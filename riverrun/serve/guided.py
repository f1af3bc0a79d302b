"""Answers that a grammar allows and no others: JSON schemas, regular expressions, choices, Lark grammars, tool calls.

The automata are llguidance's (MIT). Here a guide becomes a grammar once, every request walks a copy of its matcher, and
what the grammar leaves no choice about is appended without asking the model (`Guided.forced`).
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from riverrun.base.errors import InputError, RiverrunError
from riverrun.base.optional import require
from riverrun.base.types import Guide

__all__ = ["Grammars", "Guided"]

KEPT = 64
"""Compiled grammars that are kept for the next request of the same guide."""


class Guided:
    """One answer on its way through a grammar."""

    def __init__(self, matcher: Any, vocabulary: int) -> None:
        self.matcher, self._size = matcher, vocabulary
        self._words = np.full((vocabulary + 31) // 32, -1, np.int32)

    def fill(self) -> None:
        """Ask the matcher what may come next; what fails is known to it."""
        self.matcher.unsafe_compute_mask_ptr(self._words.ctypes.data, self._words.nbytes)

    def mask(self) -> NDArray[np.bool_]:
        """[vocabulary] which tokens may come next; the model's end token among them where the grammar may end."""
        self.fill()
        self._check()
        bits = np.unpackbits(self._words.view(np.uint8), bitorder="little")
        return bits[: self._size].view(np.bool_)

    def took(self, token: int) -> None:
        """This token is part of the answer."""
        if not self.matcher.is_stopped():
            self.matcher.consume_token(token)
            self._check()

    def forced(self) -> list[int]:
        """Tokens that must come next whatever the model thinks; they count as taken."""
        if self.matcher.is_stopped():
            return []
        found = list(self.matcher.compute_ff_tokens())
        for token in found:
            self.took(token)
        return found

    @property
    def is_over(self) -> bool:
        """Whether nothing may follow."""
        return bool(self.matcher.is_stopped())

    def _check(self) -> None:
        if self.matcher.is_error():
            raise RiverrunError(f"the guide failed: {self.matcher.get_error()}")


class Grammars:
    """The guides of one vocabulary. `pieces`: the bytes of every token; `size`: the model's vocabulary, no shorter."""

    def __init__(
        self,
        pieces: Sequence[bytes],
        size: int,
        *,
        ends: Sequence[int],
        special: Iterable[int],
        names: Mapping[str, int],
        encode: Any,
    ) -> None:
        """`names`: added tokens by text, which a grammar names as <text>; `encode`: text to ids, nothing special."""
        self._library = require("llguidance", extra="serve")
        if not ends:
            raise InputError("the model has no end token: a guided answer could not end")
        self._names, self._size = dict(names), size
        words = _Words(list(pieces) + [b""] * (size - len(pieces)), list(special), ends[0], encode)
        self._tokenizer = self._library.LLTokenizer(
            self._library.TokenizerWrapper(words), n_vocab=size, eos_token=list(ends)
        )
        self._known: OrderedDict[str, Any] = OrderedDict()

    def guided(self, guide: Guide) -> Guided:
        """A fresh walk; InputError says what is wrong with the guide."""
        key = f"{guide.kind}:{guide.value}"
        matcher = self._known.get(key)
        if matcher is None:
            matcher = self._library.LLMatcher(self._tokenizer, self._grammar(guide), log_level=0)
            if not matcher.is_error():
                Guided(first := matcher.deep_copy(), self._size).fill()  # some fail at their first token alone
                matcher = first if first.is_error() else matcher
            if matcher.is_error():
                raise InputError(f"the {guide.kind} cannot be used: {_first_line(matcher.get_error())}")
            self._known[key] = matcher
            if len(self._known) > KEPT:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return Guided(matcher.deep_copy(), self._size)

    def _grammar(self, guide: Guide) -> str:
        kinds = self._library.LLMatcher
        try:
            if guide.kind == "json_schema":
                return str(
                    kinds.grammar_from_json_schema(
                        guide.value,
                        overrides={"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "},
                    )
                )
            if guide.kind == "regex":
                return str(kinds.grammar_from_regex(guide.value))
            if guide.kind == "choice":
                texts = json.loads(guide.value)
                if not texts:
                    raise InputError("the choice holds no text: give at least one")
                return str(kinds.grammar_from_lark("start: " + " | ".join(map(json.dumps, texts))))
            return str(kinds.grammar_from_lark(self._with_tokens(guide.value)))
        except ValueError as error:
            raise InputError(f"the {guide.kind} cannot be used: {_first_line(str(error))}") from None

    def _with_tokens(self, lark: str) -> str:
        """Quoted texts that are tokens of their own, as the tokens that they are."""
        for text in sorted(self._names, key=len, reverse=True):
            if text.startswith("<") and text.endswith(">"):
                lark = lark.replace(json.dumps(text), text)
        return lark


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0][:300] if lines else "it is no grammar"


class _Words:
    """What llguidance asks of a tokenizer."""

    def __init__(self, tokens: list[bytes], special: list[int], end: int, encode: Any) -> None:
        self.tokens, self.special_token_ids, self.eos_token_id, self.bos_token_id = tokens, special, end, None
        self._encode = encode

    def __call__(self, text: bytes | str) -> list[int]:
        return list(self._encode(text.decode("utf-8", "ignore") if isinstance(text, bytes) else text))
