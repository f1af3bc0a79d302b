"""Text to token ids and back, on the `tokenizers` package. No torch.

Read from `tokenizer.json`, SentencePiece `.model` files and the vocabularies of GGUF files; written as `tokenizer.json`
and as the `tokenizer.ggml.*` keys of a GGUF file. User text is never tokenised as a special token: `encode(text)`
splits nothing special unless `special=True`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from riverrun.base.artifacts import write_text
from riverrun.base.errors import InputError, IntegrityError
from riverrun.base.optional import require
from riverrun.models.ggml_tokens import backend_of, metadata_of
from riverrun.models.sentencepiece import read_model

__all__ = ["StreamDecoder", "Token", "Tokenizer"]

Token = tuple[int, int, int]
"""id, and the characters [start, end) of the text it stands for."""

ENDS = "riverrun.end_token_ids"
"""Our own GGUF key: every token that ends an answer; llama.cpp knows three."""


class Tokenizer:
    """One vocabulary. `special` maps the text of special tokens to their ids, `added` that of the other added tokens.

    Each of `end_ids` ends an answer; `eos_id` is the first of them, None when there is none. `add_bos` says whether
    the vocabulary's own post-processing begins a text with the begin token; `encode` never does.
    The backend belongs to this object: how it treats special tokens and the first word is changed here.
    """

    def __init__(self, backend: Any, *, bos_id: int | None = None, end_ids: Sequence[int] = ()) -> None:
        self._backend = backend
        self.bos_id, self.end_ids = bos_id, tuple(dict.fromkeys(end_ids))
        self.eos_id = self.end_ids[0] if self.end_ids else None
        self._added = {token.content: token for token in backend.get_added_tokens_decoder().values()}
        ids = {token.content: index for index, token in backend.get_added_tokens_decoder().items()}
        self.special: dict[str, int] = {text: ids[text] for text, token in self._added.items() if token.special}
        self.added: dict[str, int] = {text: ids[text] for text, token in self._added.items() if not token.special}
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True  # special tokens are split off here: a switch would be shared by threads
        self._first_prefix = _take_first_prefix(backend)
        self._patterns: dict[frozenset[str], re.Pattern[str]] = {}
        self._deaf: dict[frozenset[str], Any] = {}

    @property
    def add_bos(self) -> bool:
        return "SpecialToken" in _state(self._backend.post_processor)

    @classmethod
    def from_folder(
        cls, folder: Path, *, bos_id: int | None = None, end_ids: Sequence[int] = (), eos_token: str = ""
    ) -> Tokenizer:
        """The tokenizer of a model folder: `tokenizer.json`, else `tokenizer.model` with the added tokens of
        `tokenizer_config.json`."""
        if (file := folder / "tokenizer.json").is_file() or not (folder / "tokenizer.model").is_file():
            return cls.from_file(file, bos_id=bos_id, end_ids=end_ids, eos_token=eos_token)
        return cls.from_sentencepiece(
            folder / "tokenizer.model",
            _settings(folder / "tokenizer_config.json"),
            bos_id=bos_id,
            end_ids=end_ids,
            eos_token=eos_token,
        )

    @classmethod
    def from_file(
        cls, path: Path, *, bos_id: int | None = None, end_ids: Sequence[int] = (), eos_token: str = ""
    ) -> Tokenizer:
        """Read a `tokenizer.json`; `eos_token` is the text of one more end, where the vocabulary has it."""
        if not path.is_file():
            raise InputError(f"{path} does not exist: a model folder needs tokenizer.json or tokenizer.model")
        try:
            backend = require("tokenizers", extra="serve").Tokenizer.from_file(str(path))
        except Exception as error:  # the package raises bare Exception for a malformed file
            raise IntegrityError(f"{path} is not a tokenizer.json: {error}") from None
        named = [index for index, token in backend.get_added_tokens_decoder().items() if token.content == eos_token]
        return cls(backend, bos_id=bos_id, end_ids=[*named, *end_ids])

    @classmethod
    def from_sentencepiece(
        cls,
        path: Path,
        settings: Mapping[str, Any] | None = None,
        *,
        bos_id: int | None = None,
        end_ids: Sequence[int] = (),
        eos_token: str = "",
    ) -> Tokenizer:
        """Read a SentencePiece `.model`. `settings` is what tokenizer_config.json holds: `added_tokens_decoder` (ids
        and texts of added tokens, also in place of pieces), `legacy`, `add_bos_token`."""
        settings = settings or {}
        model = read_model(path)
        added: dict[int, tuple[str, bool]] = {}
        for index, token in (settings.get("added_tokens_decoder") or {}).items():
            try:
                added[int(index)] = (str(token["content"]), bool(token.get("special", False)))
            except (ValueError, TypeError, KeyError, AttributeError):
                raise IntegrityError(f"added_tokens_decoder has no text for id {index!r}: {token!r}") from None
        bos_id = model.bos_id if bos_id is None and model.bos_id >= 0 else bos_id
        if settings.get("legacy") is False:
            model = replace(model, prefix_once=True)
        backend = model.renamed(added).backend()
        if settings.get("add_bos_token", True) and bos_id is not None:
            _begin_with(backend, bos_id)
        named = [index for index, token in backend.get_added_tokens_decoder().items() if token.content == eos_token]
        ends = [*named, *end_ids] or ([model.eos_id] if model.eos_id >= 0 else [])
        return cls(backend, bos_id=bos_id, end_ids=ends)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """Build from the `tokenizer.ggml.*` keys; UnsupportedError names a vocabulary that is not read."""
        backend, add_bos = backend_of(metadata)
        own = metadata.get(ENDS)  # all of them, where we wrote the file
        named = [metadata.get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot", "eom")]
        ends = [*(own if isinstance(own, list) else []), *named]
        bos_id = metadata.get("tokenizer.ggml.bos_token_id")
        if add_bos and bos_id is not None:
            _begin_with(backend, bos_id)
        known = [end for end in ends if isinstance(end, int) and 0 <= end < backend.get_vocab_size()]
        return cls(backend, bos_id=bos_id, end_ids=known)

    def to_gguf(self) -> dict[str, Any]:
        """The `tokenizer.ggml.*` keys and values (lists of texts and numbers, numbers, booleans) for a GGUF file;
        `from_gguf` of them gives the same ids. UnsupportedError says what cannot be written."""
        out = metadata_of(json.loads(self.to_json()), self._backend.get_added_tokens_decoder())
        for key, value in (("bos", self.bos_id), ("eos", self.eos_id)):
            if value is not None:
                out[f"tokenizer.ggml.{key}_token_id"] = value
        for key, end in zip(("eot", "eom"), self.end_ids[1:], strict=False):
            out[f"tokenizer.ggml.{key}_token_id"] = end
        if len(self.end_ids) > 3:
            out[ENDS] = list(self.end_ids)
        return out | {"tokenizer.ggml.add_bos_token": self.add_bos}

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids. With `special`, special tokens written in the text become their ids (rendered templates only)."""
        if special:
            return [token for token, _, _ in self.split(text)]
        return [token for token, _, _ in self._segment(text, 0, len(text), frozenset())]

    def encode_with_offsets(self, text: str) -> list[tuple[int, tuple[int, int]]]:
        """(id, character span) of each token; special tokens in the text are plain text."""
        return [(token, (start, end)) for token, start, end in self._segment(text, 0, len(text), frozenset())]

    def split(
        self,
        text: str,
        *,
        literal: Callable[[int, int], bool] = lambda start, end: False,
        marks: frozenset[str] = frozenset(),
    ) -> Iterator[Token]:
        """Tokens of a text in which special tokens are special, except where `literal(start, end)` says that one was
        written by a user. `marks` are added tokens that are not special and obey `literal` as well."""
        for token, start, end, plain in self.segments(text, literal=literal, marks=marks):
            if token is None:
                yield from self._segment(text, start, end, plain)
            else:
                yield token, start, end

    def segments(
        self,
        text: str,
        *,
        literal: Callable[[int, int], bool] = lambda start, end: False,
        marks: frozenset[str] = frozenset(),
    ) -> Iterator[tuple[int | None, int, int, frozenset[str]]]:
        """What `split` goes through: (id, start, end, ()) of special tokens, and (None, start, end, marks that are
        text there) of the stretches between, each of which is tokenised by itself."""
        pattern = self._pattern(marks)
        place = reached = 0
        plain: set[str] = set()  # marks that stand in the segment as text
        while found := pattern.search(text, place):
            start, end = found.span()
            token = self._added[found.group()]
            if literal(start, end) or (token.single_word and _in_word(text, start, end)):
                plain.add(found.group())
                place = start + 1
                continue
            while token.lstrip and start > reached and text[start - 1].isspace():
                start -= 1
            while token.rstrip and end < len(text) and text[end].isspace():
                end += 1
            if start > reached:
                yield None, reached, start, marks & plain
            yield self._id(found.group()), start, end, frozenset()
            place = reached = end
            plain.clear()
        if len(text) > reached:
            yield None, reached, len(text), marks & plain

    def looks_around(self, token_id: int) -> tuple[bool, bool]:
        """Whether a special token is read with the white space, or depending on the characters, before and after."""
        added = self._added.get(self.token(token_id))
        assert added is not None, f"{token_id} is no added token"
        return bool(added.lstrip or added.single_word), bool(added.rstrip or added.single_word)

    @property
    def first_has_space(self) -> bool:
        """Whether the first word of a text is read as if a space stood before it, and only there."""
        return self._first_prefix

    def parts(self, text: str) -> list[tuple[str, tuple[int, int]]]:
        """The parts that a text is cut into before each is tokenised by itself, with their characters [start, end)."""
        return list(self._backend.pre_tokenizer.pre_tokenize_str(text))

    def encode_many(self, texts: Sequence[str], *, places: bool = False) -> list[Any]:
        """Encodings (of the `tokenizers` package: `ids`, and with `places` `char_to_token` and `offsets`) of stretches
        of text as `segments` gives them, together. InputError when one holds half of a surrogate pair."""
        run = self._backend.encode_batch if places else self._backend.encode_batch_fast
        try:
            return list(run(list(texts), add_special_tokens=False))
        except TypeError:
            raise InputError("a text holds half of a surrogate pair, which UTF-8 cannot hold: replace it") from None

    def special_places(self, text: str) -> Iterator[tuple[str, int, int]]:
        """(text, start, end) of each special token written in a text."""
        return ((found.group(), *found.span()) for found in self._pattern(frozenset()).finditer(text))

    def _segment(self, text: str, start: int, end: int, plain: frozenset[str]) -> Iterator[Token]:
        """Tokens of text[start:end], which holds no special token; the added tokens in `plain` are text too."""
        if start == end:
            return
        part = text[start:end] if start or end < len(text) else text
        shift = start
        if self._first_prefix and start == 0 and not part.startswith((" ", "▁")):
            part, shift = " " + part, -1
        try:
            encoding = self._without(plain).encode(part, add_special_tokens=False)
        except TypeError:  # what the package says of a text that has no UTF-8
            place = next(i for i, char in enumerate(text) if "\ud800" <= char <= "\udfff")
            raise InputError(
                f"character {place} of the text is half of a surrogate pair (U+{ord(text[place]):04X}), "
                "which UTF-8 cannot hold: replace it"
            ) from None
        for token, (first, last) in zip(encoding.ids, encoding.offsets, strict=True):
            yield token, max(start, first + shift), max(start, last + shift)

    def _id(self, added: str) -> int:
        return self.special[added] if added in self.special else self.added[added]

    def _pattern(self, marks: frozenset[str]) -> re.Pattern[str]:
        if marks not in self._patterns:
            texts = sorted({*self.special, *(marks & self.added.keys())}, key=len, reverse=True)
            self._patterns[marks] = re.compile("|".join(map(re.escape, texts)) or "(?!)")
        return self._patterns[marks]

    def _without(self, plain: frozenset[str]) -> Any:
        """The backend, or a copy of it that takes the added tokens in `plain` for text."""
        if not plain:
            return self._backend
        if plain not in self._deaf:
            state = json.loads(self._backend.to_str())
            for token in state["added_tokens"]:
                token["special"] = token["special"] or token["content"] in plain
            copy = require("tokenizers", extra="serve").Tokenizer.from_str(json.dumps(state))
            copy.encode_special_tokens = True
            if len(self._deaf) >= 4:
                self._deaf.pop(next(iter(self._deaf)))
            self._deaf[plain] = copy
        return self._deaf[plain]

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Text of the ids; broken UTF-8 becomes U+FFFD."""
        return str(self._backend.decode(list(ids), skip_special_tokens=skip_special))

    def is_special(self, token_id: int) -> bool:
        return self.token(token_id) in self.special

    def token(self, token_id: int | None) -> str:
        """The token as the vocabulary writes it; "" for None and for an id that does not exist."""
        return "" if token_id is None else self._backend.id_to_token(token_id) or ""

    def to_json(self) -> str:
        """The content of a tokenizer.json."""
        if not self._first_prefix:
            return str(self._backend.to_str())
        state = json.loads(self._backend.to_str())
        for step in _steps(state["pre_tokenizer"]):
            if step["type"] == "Metaspace":
                step["prepend_scheme"] = "first"
        return json.dumps(state, ensure_ascii=False)

    def save(self, path: Path) -> None:
        """Write `tokenizer.json`."""
        write_text(path, self.to_json())


def _state(part: Any) -> str:
    """A part of a backend as its JSON text."""
    return part.__getstate__().decode() if part is not None else ""


def _steps(part: Mapping[str, Any]) -> list[Any]:
    return list(part["pretokenizers"]) if part["type"] == "Sequence" else [part]


def _take_first_prefix(backend: Any) -> bool:
    """Whether the backend puts a space before the first word of a text alone; that is switched off here, because a
    text is encoded in the parts between its special tokens, of which only the first can have it."""
    pre = backend.pre_tokenizer
    if "Metaspace" not in _state(pre):
        return False
    parts = [pre] if hasattr(pre, "prepend_scheme") else [pre[i] for i in range(len(_steps(json.loads(_state(pre)))))]
    found = False
    for part in parts:
        if getattr(part, "prepend_scheme", "") == "first":
            part.prepend_scheme, found = "never", True
    return found


def _begin_with(backend: Any, bos_id: int) -> None:
    """Post-processing that begins a text with the begin token, as the model's publisher has it."""
    token = backend.id_to_token(bos_id)
    if token is not None:
        template = require("tokenizers", extra="serve").processors.TemplateProcessing
        pair = f"{token}:0 $A:0 {token}:1 $B:1"
        backend.post_processor = template(single=f"{token}:0 $A:0", pair=pair, special_tokens=[(token, bos_id)])


def _in_word(text: str, start: int, end: int) -> bool:
    around = (text[start - 1 : start], text[end : end + 1])
    return any(char.isalnum() or char == "_" for char in around)


def _settings(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise IntegrityError(f"{path} is not JSON: {error}") from None
    if not isinstance(settings, dict):
        raise IntegrityError(f"{path} must hold an object, it holds {type(settings).__name__}")
    return settings


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
