"""Vocabularies as GGUF files keep them (`tokenizer.ggml.*`), both ways: byte-level BPE and SentencePiece BPE.

How a byte-level vocabulary cuts text into words is one name in the file (`pre`); what each means stands in
pretokenizers.yaml. A name that is not there is refused, never guessed: other words give other ids.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from riverrun.base.errors import IntegrityError, UnsupportedError, nearest
from riverrun.base.optional import require
from riverrun.models.sentencepiece import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, PieceModel

__all__ = ["PreTokenizer", "backend_of", "metadata_of", "pre_tokenizer", "pre_tokenizers"]

_PREFIX = "tokenizer.ggml."
_GPT2 = "gpt2"


@dataclass(frozen=True)
class PreTokenizer:
    """One row of pretokenizers.yaml, patterns filled in."""

    names: tuple[str, ...]
    cuts: tuple[str, ...]
    """Regular expressions, applied one after another."""
    ignore_merges: bool = False
    add_bos: bool = False
    also: tuple[tuple[str, ...], ...] = ()

    def steps(self) -> Any:
        """As a `tokenizers` pre-tokeniser that ends in bytes."""
        package = require("tokenizers", extra="serve")
        table = _table()["patterns"]
        pre = package.pre_tokenizers
        last = self.cuts[-1] == table[_GPT2]
        steps: list[Any] = [
            pre.Digits(individual_digits=True)
            if cut == table["digits"]
            else pre.Split(package.Regex(cut), behavior="isolated")
            for cut in (self.cuts[:-1] if last else self.cuts)
        ]
        steps.append(pre.ByteLevel(add_prefix_space=False, use_regex=last))
        return steps[0] if len(steps) == 1 else pre.Sequence(steps)


@cache
def _table() -> dict[str, Any]:
    import yaml

    text = (Path(__file__).parent / "pretokenizers.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text))


@cache
def pre_tokenizers() -> dict[str, PreTokenizer]:
    """Every known value of `tokenizer.ggml.pre`."""
    table = _table()
    patterns = table["patterns"]
    out: dict[str, PreTokenizer] = {}
    for row in table["pre"]:
        known = PreTokenizer(
            tuple(row["names"]),
            tuple(patterns[cut] for cut in row["cuts"]),
            row.get("ignore_merges", False),
            row.get("add_bos", False),
            tuple(tuple(patterns[cut] for cut in cuts) for cuts in row.get("also", ())),
        )
        out |= dict.fromkeys(known.names, known)
    return out


def pre_tokenizer(name: str) -> PreTokenizer:
    """The row of that name; UnsupportedError with the nearest names when there is none."""
    known = pre_tokenizers()
    if name not in known:
        raise UnsupportedError(f"GGUF pre-tokeniser '{name}' is not read.{nearest(name, known)}")
    return known[name]


def backend_of(metadata: Mapping[str, Any]) -> tuple[Any, bool | None]:
    """(`tokenizers.Tokenizer`, whether a text begins with the begin token) of `tokenizer.ggml.*` keys."""
    kind = metadata.get(f"{_PREFIX}model")
    if kind == _GPT2:
        return _byte_level(metadata)
    if kind == "llama":
        add_bos = metadata.get(f"{_PREFIX}add_bos_token", True)
        return _pieces(metadata).backend(), bool(add_bos)
    raise UnsupportedError(f"GGUF tokenizer '{kind}' is not read, read: gpt2 (byte-level BPE), llama (SentencePiece)")


def _list(metadata: Mapping[str, Any], key: str, kind: type | tuple[type, ...], what: str) -> list[Any]:
    value = metadata.get(_PREFIX + key)
    if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
        raise IntegrityError(f"GGUF key '{_PREFIX}{key}' must be a list of {what}: convert the model again")
    return value


def _byte_level(metadata: Mapping[str, Any]) -> tuple[Any, bool | None]:
    package = require("tokenizers", extra="serve")
    pre = pre_tokenizer(str(metadata.get(f"{_PREFIX}pre", "default")))
    tokens = _list(metadata, "tokens", str, "texts")
    merges = [tuple(merge.split(" ", 1)) for merge in _list(metadata, "merges", str, "texts")]
    if len(set(tokens)) != len(tokens):
        seen: dict[str, int] = {}
        pair = next((seen[t], i, t) for i, t in enumerate(tokens) if seen.setdefault(t, i) != i)
        raise IntegrityError(f"the token {pair[2]!r} stands in the GGUF vocabulary twice, as {pair[0]} and {pair[1]}")
    try:
        vocabulary = {token: index for index, token in enumerate(tokens)}
        bpe = package.models.BPE(vocabulary, merges, ignore_merges=pre.ignore_merges)
    except Exception as error:  # the package raises bare Exception
        raise IntegrityError(f"the GGUF vocabulary and its merges do not fit together: {error}") from None
    backend = package.Tokenizer(bpe)
    backend.pre_tokenizer = pre.steps()
    backend.decoder = package.decoders.ByteLevel()
    types = metadata.get(f"{_PREFIX}token_type") or []
    added = [
        package.AddedToken(token, special=kind != USER_DEFINED, normalized=False)
        for token, kind in zip(tokens, types, strict=False)
        if kind in (CONTROL, USER_DEFINED, UNKNOWN) and token
    ]
    backend.add_tokens(added)
    add_bos = metadata.get(f"{_PREFIX}add_bos_token")
    return backend, pre.add_bos if add_bos is None else bool(add_bos)


def _pieces(metadata: Mapping[str, Any]) -> PieceModel:
    tokens = _list(metadata, "tokens", str, "texts")
    scores = _list(metadata, "scores", (int, float), "numbers")
    types = _list(metadata, "token_type", int, "numbers")
    unknown = metadata.get(f"{_PREFIX}unknown_token_id")
    if unknown is None:
        unknown = next((index for index, kind in enumerate(types) if kind == UNKNOWN), 0)
    return PieceModel(
        tokens,
        scores,
        types,
        unk_id=unknown,
        byte_fallback=sum(kind == BYTE for kind in types) == 256,
        add_dummy_prefix=bool(metadata.get(f"{_PREFIX}add_space_prefix", True)),
        remove_extra_whitespaces=bool(metadata.get(f"{_PREFIX}remove_extra_whitespaces", False)),
    )


def metadata_of(state: Mapping[str, Any], added: Mapping[int, Any]) -> dict[str, Any]:
    """The `tokenizer.ggml.*` keys (model, pre, tokens, scores, token_type, merges, ...) of a tokenizer.json's content.

    `added` maps ids to the added tokens (with .content and .special). UnsupportedError when the vocabulary cannot be
    written so: its way of cutting words has no name, or it is neither byte-level nor SentencePiece BPE.
    """
    model = state["model"]
    if model.get("type") != "BPE":
        raise UnsupportedError(f"a vocabulary of type '{model.get('type')}' cannot be written to GGUF, BPE can")
    tokens: list[str | None] = [None] * (1 + max([*model["vocab"].values(), *added], default=-1))
    for token, index in model["vocab"].items():
        tokens[index] = token
    for index, token in added.items():
        tokens[index] = token.content
    types = [NORMAL] * len(tokens)
    for index, token in added.items():
        types[index] = CONTROL if token.special else USER_DEFINED
    for index, text in enumerate(tokens):
        if text is None:  # an id that the vocabulary leaves out
            tokens[index], types[index] = f"[PAD{index}]", CONTROL
    merges = [" ".join(pair) if not isinstance(pair, str) else pair for pair in model["merges"]]
    out: dict[str, Any] = {f"{_PREFIX}tokens": tokens, f"{_PREFIX}token_type": types}
    if model.get("byte_fallback"):
        return out | _as_pieces(state, [str(token) for token in tokens], types, merges)
    return out | {f"{_PREFIX}model": _GPT2, f"{_PREFIX}pre": _pre_name(state), f"{_PREFIX}merges": merges}


def _as_pieces(state: Mapping[str, Any], tokens: list[str], types: list[int], merges: list[str]) -> dict[str, Any]:
    """SentencePiece form. The scores are minus the rank of the best merge that makes a token: the order is all."""
    normalizer, pre = json.dumps(state.get("normalizer"), ensure_ascii=False), state.get("pre_tokenizer") or {}
    if "Precompiled" in normalizer or (pre and pre.get("type") != "Metaspace"):
        raise UnsupportedError("a SentencePiece vocabulary with its own normalisation cannot be written to GGUF")
    score = dict.fromkeys(tokens, 0.0)
    for rank, merge in reversed(list(enumerate(merges))):
        score["".join(merge.split(" ", 1))] = -1.0 - rank
    places = {token: index for index, token in enumerate(tokens)}
    for byte in range(256):
        if (index := places.get(f"<0x{byte:02X}>")) is not None and types[index] == NORMAL:
            types[index] = BYTE
    extra: dict[str, Any] = {}
    if (unknown := state["model"].get("unk_token")) is not None and unknown in places:
        types[places[unknown]] = UNKNOWN
        extra[f"{_PREFIX}unknown_token_id"] = places[unknown]
    scores = [score[token] for token in tokens]
    made = PieceModel(tokens, scores, [NORMAL if kind == UNKNOWN else kind for kind in types]).merges()
    pairs = [tuple(merge.split(" ", 1)) for merge in merges]
    if {*made} != {*pairs} or [*map("".join, made)] != [*map("".join, pairs)]:
        raise UnsupportedError("the merges of this vocabulary are not in the order of scores: GGUF cannot hold it")
    prefix = "Prepend" in normalizer or r"\\A" in normalizer or pre.get("prepend_scheme", "never") != "never"
    return extra | {
        f"{_PREFIX}model": "llama",
        f"{_PREFIX}pre": "default",
        f"{_PREFIX}scores": scores,
        f"{_PREFIX}add_space_prefix": prefix,
    }


def _pre_name(state: Mapping[str, Any]) -> str:
    """The `pre` that cuts words as this tokenizer.json does; UnsupportedError when none does."""
    if state.get("normalizer"):
        kind = state["normalizer"].get("type")
        if kind != "NFC":  # llama.cpp leaves Qwen's NFC out as well
            raise UnsupportedError(f"a byte-level vocabulary with the normaliser '{kind}' cannot be written to GGUF")
    cuts, merges = _cuts_of(state.get("pre_tokenizer") or {}), bool(state["model"].get("ignore_merges"))
    for row in dict.fromkeys(pre_tokenizers().values()):
        if row.ignore_merges == merges and (cuts == row.cuts or cuts in row.also):
            return row.names[0]
    raise UnsupportedError(
        f"no GGUF pre-tokeniser cuts words as this vocabulary does ({' then '.join(cuts) or 'no pattern'}"
        f"{', words that are tokens are not merged' if merges else ''}): GGUF cannot hold it"
    )


def _cuts_of(step: Mapping[str, Any]) -> tuple[str, ...]:
    """The patterns of a pre-tokeniser that ends in bytes; empty for one that does something else."""
    patterns = _table()["patterns"]
    steps: Sequence[Mapping[str, Any]] = step["pretokenizers"] if step.get("type") == "Sequence" else [step]
    cuts: list[str] = []
    for number, part in enumerate(steps):
        kind = part.get("type")
        if kind == "Digits" and part.get("individual_digits"):
            cuts.append(patterns["digits"])
        elif kind == "Split" and part.get("behavior") == "Isolated" and not part.get("invert"):
            pattern = part["pattern"]
            cuts.append(pattern["Regex"] if "Regex" in pattern else pattern["String"])
        elif kind == "ByteLevel" and number == len(steps) - 1 and not part.get("add_prefix_space"):
            if part.get("use_regex", True):
                cuts.append(patterns[_GPT2])
            return tuple(cuts)
        else:
            return ()
    return ()
