"""SentencePiece vocabularies: a `.model` file or the same pieces out of a GGUF file, as a `tokenizers` backend.

The file is one protobuf message (sentencepiece/src/sentencepiece_model.proto); its few fields are read here by a
bounded reader. Unigram and BPE are read, with byte fallback, user-defined and control pieces, and the precompiled
normalisation; WORD and CHAR models are refused by name. BPE merges follow from the scores: two neighbours merge when
their join is a piece, the highest score first (sentencepiece/src/bpe_model.cc).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from riverrun.base.errors import InputError, IntegrityError, UnsupportedError
from riverrun.base.optional import require

__all__ = ["BYTE", "CONTROL", "NORMAL", "UNKNOWN", "UNUSED", "USER_DEFINED", "PieceModel", "read_model"]

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Types of a piece, the same numbers in sentencepiece_model.proto and in `tokenizer.ggml.token_type`."""
SPACE = "▁"
MAX_BYTES, MAX_PIECES = 256 << 20, 1 << 21
_KINDS = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class PieceModel:
    """A vocabulary of pieces: text, score and type of each id, and how text is prepared for it."""

    pieces: Sequence[str]
    scores: Sequence[float]
    types: Sequence[int]
    kind: str = "bpe"
    unk_id: int = 0
    bos_id: int = -1
    eos_id: int = -1
    byte_fallback: bool = False
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = False
    charsmap: bytes = b""
    prefix_once: bool = False
    """The dummy prefix stands before the whole text only (`legacy: false`), not after each special token. As in
    transformers, a text that begins with a space gets none, and so loses that space when it is decoded."""

    def renamed(self, added: Mapping[int, tuple[str, bool]]) -> PieceModel:
        """With (text, special) of added tokens put at their ids, in place of what stood there or after the end."""
        pieces, scores, types = list(self.pieces), list(self.scores), list(self.types)
        for index in sorted(added):
            if not 0 <= index < MAX_PIECES:
                raise IntegrityError(f"the added token {added[index][0]!r} has the impossible id {index}")
            while len(pieces) <= index:  # ids between two added tokens that nobody names
                pieces.append(f"<unused_{len(pieces)}>")
                scores.append(0.0)
                types.append(CONTROL)
            text, special = added[index]
            if pieces[index] != text or special:
                pieces[index] = text
                types[index] = types[index] if types[index] == UNKNOWN else CONTROL if special else USER_DEFINED
        return replace(self, pieces=pieces, scores=scores, types=types)

    def backend(self) -> Any:
        """A `tokenizers.Tokenizer` with the same ids."""
        package = require("tokenizers", extra="serve")
        self._check()
        vocabulary = {piece: index for index, piece in enumerate(self.pieces)}
        merges = self.merges() if self.kind == "bpe" else []
        try:
            if self.kind == "bpe":
                unknown = self.pieces[self.unk_id] if 0 <= self.unk_id < len(self.pieces) else None
                model = package.models.BPE(
                    vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=self.byte_fallback
                )
            else:
                scored = list(zip(self.pieces, self._unigram_scores(), strict=True))
                model = package.models.Unigram(scored, self.unk_id, self.byte_fallback)
        except Exception as error:  # the package raises bare Exception
            raise IntegrityError(f"the pieces do not make a vocabulary: {error}") from None
        backend = package.Tokenizer(model)
        self._add_text_steps(package, backend)
        added = [
            package.AddedToken(piece, special=kind != USER_DEFINED, normalized=kind == USER_DEFINED)
            for piece, kind in zip(self.pieces, self.types, strict=True)
            if piece and kind in (CONTROL, UNKNOWN, *([USER_DEFINED] if self.kind == "bpe" else []))
        ]
        backend.add_tokens(added)
        return backend

    def merges(self) -> list[tuple[str, str]]:
        """Every way to join two pieces into a third, best score first; equal scores in order of the halves' ids."""
        usable = {p: i for i, (p, kind) in enumerate(zip(self.pieces, self.types, strict=True)) if kind in _MATCHED}
        found: list[tuple[float, int, int, str, str]] = []
        for piece, index in usable.items():
            score = -self.scores[index]
            for cut in range(1, len(piece)):
                left, right = piece[:cut], piece[cut:]
                if left in usable and right in usable:
                    if self.types[index] == UNUSED:
                        raise UnsupportedError(
                            f"the unused piece {piece!r} can be made of {left!r} and {right!r}: such vocabularies "
                            "are not read, take the model's tokenizer.json"
                        )
                    found.append((score, usable[left], usable[right], left, right))
        found.sort()
        return [(left, right) for *_, left, right in found]

    def _check(self) -> None:
        sizes = {len(self.pieces), len(self.scores), len(self.types)}
        if len(sizes) != 1 or not self.pieces:
            raise IntegrityError(
                f"a vocabulary needs as many scores and types as pieces, at least one: "
                f"{len(self.pieces)} pieces, {len(self.scores)} scores, {len(self.types)} types"
            )
        if self.kind not in ("bpe", "unigram"):
            raise UnsupportedError(f"SentencePiece models of type '{self.kind}' are not read, read: bpe, unigram")
        seen: dict[str, int] = {}
        for index, piece in enumerate(self.pieces):
            if (before := seen.setdefault(piece, index)) != index:
                raise IntegrityError(f"the piece {piece!r} stands in the vocabulary twice, as {before} and {index}")
        bytes_here = sum(kind == BYTE for kind in self.types)
        if self.byte_fallback and bytes_here != 256:
            raise IntegrityError(f"byte fallback needs 256 byte pieces, the vocabulary has {bytes_here}")
        if not (0 <= self.unk_id < len(self.pieces)) and (self.kind == "unigram" or not self.byte_fallback):
            raise IntegrityError(f"the unknown piece is {self.unk_id}, the vocabulary has {len(self.pieces)} pieces")

    def _unigram_scores(self) -> list[float]:
        """A user-defined piece nearly costs nothing (unigram_model.cc: length * max_score - 0.1, with a max_score that
        starts at FLT_MIN). One that is never matched in a text has the worst score: it is not it that decides."""
        worst = min((s for s, kind in zip(self.scores, self.types, strict=True) if kind == NORMAL), default=0.0)
        costs = {USER_DEFINED: -0.1, UNKNOWN: worst, CONTROL: worst, UNUSED: worst, BYTE: worst}
        return [costs.get(kind, score) for score, kind in zip(self.scores, self.types, strict=True)]

    def _add_text_steps(self, package: Any, backend: Any) -> None:
        """Normaliser, prefix and decoder."""
        steps: list[Any] = []
        pattern = package.Regex
        rules, decoders = package.normalizers, package.decoders
        if self.charsmap:
            try:
                steps.append(rules.Precompiled(self.charsmap))
            except Exception as error:  # the package raises bare Exception
                raise IntegrityError(f"the normalisation table of the vocabulary cannot be read: {error}") from None
        if self.remove_extra_whitespaces:
            steps += [rules.Replace(pattern(r"\A +| +\z"), ""), rules.Replace(pattern(" {2,}"), " ")]
        steps.append(rules.Replace(" ", SPACE))
        decoding = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
        splits: list[Any] = []
        if self.kind == "unigram" and (wall := self._never_matched()):
            # The package would match "<s>" or "<0x0A>" written in a text; a cut after their "<" keeps it from that.
            splits.append(package.pre_tokenizers.Split(pattern(wall), "merged_with_previous"))
        if self.add_dummy_prefix:
            decoding.append(decoders.Strip(" ", 1, 0))
            users = [re.escape(p) for p, k in zip(self.pieces, self.types, strict=True) if k == USER_DEFINED and p]
            users = users if self.kind == "bpe" else []
            if self.prefix_once:
                splits.insert(0, package.pre_tokenizers.Metaspace(SPACE, prepend_scheme="first", split=False))
            elif users:
                # The package puts added tokens through the normaliser too, and theirs must stay as they are: the prefix
                # is left out before a text that is nothing but one user-defined piece, where sentencepiece has it.
                bare = "|".join(sorted(users, key=len, reverse=True))
                steps.append(rules.Replace(pattern(rf"\A(?!(?:{bare})\z)(?=[\s\S])"), SPACE))
            else:
                steps.insert(len(steps) - 1, rules.Prepend(SPACE))
        backend.normalizer = rules.Sequence(steps)
        if splits:
            backend.pre_tokenizer = package.pre_tokenizers.Sequence(splits) if len(splits) > 1 else splits[0]
        backend.decoder = decoders.Sequence(decoding)

    def _never_matched(self) -> str:
        """A pattern for the first character of pieces that a text must not match."""
        texts = [
            re.escape(piece[1:])
            for piece, kind in zip(self.pieces, self.types, strict=True)
            if kind in (CONTROL, UNKNOWN) and piece.startswith("<") and len(piece) > 1
        ]
        if self.byte_fallback:
            texts.append("0x[0-9A-F]{2}>")
        return f"<(?={'|'.join(texts)})" if texts else ""


_MATCHED = (NORMAL, USER_DEFINED, UNUSED)


def read_model(path: Path) -> PieceModel:
    """Read a SentencePiece `.model`; IntegrityError says what is wrong with the file."""
    if not path.is_file():
        raise InputError(f"{path} does not exist: a model folder needs tokenizer.json or tokenizer.model")
    if (size := path.stat().st_size) > MAX_BYTES:
        raise IntegrityError(f"{path} has {size} bytes, a SentencePiece model has at most {MAX_BYTES}")
    try:
        return _parse(path.read_bytes())
    except IntegrityError as error:
        raise IntegrityError(f"{path} is not a SentencePiece model: {error}") from None
    except UnsupportedError as error:
        raise UnsupportedError(f"{path}: {error}") from None


def _parse(data: bytes) -> PieceModel:
    pieces: list[str] = []
    scores: list[float] = []
    types: list[int] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    for number, value in _fields(data):
        if number == 1:
            entry = dict(_fields(_bytes(value)))
            pieces.append(_text(entry.get(1, b"")))
            scores.append(_float(entry.get(2, 0)))
            types.append(_number(entry.get(3, NORMAL)))
            if len(pieces) > MAX_PIECES:
                raise IntegrityError(f"it has more than {MAX_PIECES} pieces")
        elif number == 2:
            trainer = dict(_fields(_bytes(value)))
        elif number == 3:
            normalizer = dict(_fields(_bytes(value)))
    if not pieces:
        raise IntegrityError("it holds no piece")
    if bad := next((kind for kind in types if not NORMAL <= kind <= BYTE), None):
        raise IntegrityError(f"a piece has the unknown type {bad}")
    kind = _KINDS.get(_number(trainer.get(3, 1)), "unknown")
    if kind not in ("bpe", "unigram"):
        raise UnsupportedError(f"SentencePiece models of type '{kind}' are not read, read: bpe, unigram")
    if _number(trainer.get(24, 0)):
        raise UnsupportedError("a SentencePiece model with treat_whitespace_as_suffix is not read")
    if not _number(normalizer.get(5, 1)):
        raise UnsupportedError("a SentencePiece model with escape_whitespaces off is not read")
    return PieceModel(
        pieces,
        scores,
        types,
        kind=kind,
        unk_id=_signed(trainer.get(40, 0)),
        bos_id=_signed(trainer.get(41, 1)),
        eos_id=_signed(trainer.get(42, 2)),
        byte_fallback=bool(_number(trainer.get(35, 0))),
        add_dummy_prefix=bool(_number(normalizer.get(3, 1))),
        remove_extra_whitespaces=bool(_number(normalizer.get(4, 1))),
        charsmap=_bytes(normalizer.get(2, b"")),
    )


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of a protobuf message: an integer, or the bytes of a fixed-width or length-given field.

    Nothing is read beyond the message's end; groups (deprecated, in no SentencePiece file) are refused.
    """
    place, end = 0, len(data)
    while place < end:
        key, place = _varint(data, place)
        number, wire = key >> 3, key & 7
        if number == 0:
            raise IntegrityError(f"field number 0 at byte {place}")
        if wire == _VARINT:
            value, place = _varint(data, place)
            yield number, value
            continue
        if wire == _BYTES:
            size, place = _varint(data, place)
        elif wire in (_FIXED32, _FIXED64):
            size = 4 if wire == _FIXED32 else 8
        else:
            raise IntegrityError(f"wire type {wire} at byte {place}")
        if size > end - place:
            raise IntegrityError(f"a field of {size} bytes at byte {place}, {end - place} are left")
        yield number, data[place : place + size]
        place += size


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(data):
            raise IntegrityError(f"it ends within a number, after {len(data)} bytes")
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (1 << 64) - 1, place
    raise IntegrityError(f"a number of more than 10 bytes ends at byte {place}")


def _bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise IntegrityError(f"a number ({value}) where a text or a message belongs")
    return value


def _text(value: int | bytes) -> str:
    try:
        return _bytes(value).decode("utf-8")
    except UnicodeDecodeError as error:
        raise IntegrityError(f"a piece is not UTF-8: {error}") from None


def _number(value: int | bytes) -> int:
    if isinstance(value, bytes):
        raise IntegrityError("bytes where a number belongs")
    return value


def _signed(value: int | bytes) -> int:
    number = _number(value)
    return number - (1 << 64) if number >> 63 else number


def _float(value: int | bytes) -> float:
    if value == 0:
        return 0.0
    if not isinstance(value, bytes) or len(value) != 4:
        raise IntegrityError("a score that is not a 32-bit number")
    score = struct.unpack("<f", value)[0]
    if score != score:
        raise IntegrityError("a score that is not a number")
    return float(score)
