"""Many conversations at once: a chat template is run once for each shape of conversation, not once for each.

Most templates write contents out and look at roles alone. For such a template a shape (the sequence of roles) has one
text with holes (`opaque`), and the places where an assistant's turn begins and ends are found in it once. Filling in,
and tokenising all texts of a batch together, gives the ids and turns of `ChatTemplate.encode_turns`, which takes every
conversation that this does not cover: names, calls, contents with special tokens or of white space alone, templates
that look into contents, special tokens that swallow the white space of a content.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from riverrun.base.errors import InputError
from riverrun.base.types import Message, Role, Text
from riverrun.models.chat import ChatTemplate, Talk
from riverrun.models.jinja import TemplateCode
from riverrun.models.opaque import Hole, Opaque, read_holes
from riverrun.models.tokenizer import Tokenizer
from riverrun.models.words import Words

__all__ = ["BulkEncoder", "Turns"]

Turns = tuple[list[int], list[tuple[int, int]]]
"""Token ids, and the tokens [first, last) of each assistant turn."""

MAX_SHAPES = 4096
MAX_BEGUN, LONGEST_BEGUN = 1 << 14, 64
"""First words of turns that are kept, and their characters with what the template writes before them."""
_TRIM: dict[str, Callable[[str], str]] = {"n": str, "t": str.strip, "l": str.lstrip, "r": str.rstrip}


@dataclass(frozen=True)
class _Piece:
    """A stretch of text between special tokens: literals and holes, or where it is always the same its ids (a special
    token is a piece of one id). Turn `begins` starts in it, `place` characters into part `part`, or at token `place` of
    fixed ids; -1 for none. Turn `ends` ends behind it."""

    parts: tuple[str | Hole, ...] = ()
    ids: tuple[int, ...] = ()
    begins: int = -1
    part: int = 0
    place: int = 0
    ends: int = -1


@dataclass(frozen=True)
class _Shape:
    pieces: tuple[_Piece, ...]
    turns: int
    bare: tuple[int, ...]
    """Contents that are filled in only where they do not begin with white space."""


class _Unfit(Exception):
    """The shape's tokens depend on what its contents are."""


class BulkEncoder:
    """Encodes conversations of text. Keeps what it learned of shapes; belongs to one thread."""

    def __init__(self, template: ChatTemplate, tokenizer: Tokenizer) -> None:
        self.template, self.tokenizer = template, tokenizer
        self._shapes: dict[tuple[Role, ...], _Shape | None] = {}
        self.words = Words(tokenizer)
        self._begun: dict[tuple[str, int], tuple[list[int], int]] = {}
        texts = sorted(tokenizer.special, key=len, reverse=True)
        self._special = re.compile("|".join([*map(re.escape, texts), "[\ufdd0-\ufdef]"]))
        self._firsts = {text[0] for text in texts}
        self._heads = {text[:size] for text in texts for size in range(1, len(text))}
        self._tails = {text[size:] for text in texts for size in range(1, len(text))}
        code = TemplateCode(template.source, opaque=True)
        marked = re.search("[\ufdd0-\ufdef]", template.source) is not None
        self._code = None if code.captures or code.tracks or marked else code

    def encode(self, talks: Sequence[Sequence[Message]]) -> list[Turns | InputError]:
        """Ids and turns of each conversation without tools, or why it has none."""
        out: list[Turns | InputError | None] = [None] * len(talks)
        plans: list[tuple[int, _Shape, list[tuple[str, int, str]]]] = []
        plain: dict[str, list[int]] = {}
        by_word: dict[str, list[int]] = {}
        heads: dict[tuple[str, int], tuple[list[int], int]] = {}
        for number, talk in enumerate(talks):
            if (plan := self._plan(talk)) is None:
                out[number] = self._alone(talk)
                continue
            shape, contents = plan
            filled: list[tuple[str, int, str]] = []
            for piece in shape.pieces:
                if piece.parts:
                    text = "".join(p if isinstance(p, str) else _TRIM[p[1]](contents[p[0]]) for p in piece.parts)
                    takes, place, head = self.words.takes(text), 0, ""
                    if piece.begins >= 0:
                        place = _offset(piece, contents)
                        head, text = _cut(text, place, takes)
                        heads[head, place] = ([], 0)
                    filled.append((head, place, text))
                    (by_word if takes else plain)[text] = []
            plans.append((number, shape, filled))
        try:
            self._encode(plain, by_word, heads)
        except InputError:  # one of them is no text: each for itself, and that one is told
            return [self._alone(talk) for talk in talks]
        texts = plain | by_word
        for number, shape, filled in plans:
            out[number] = _fill(shape, filled, texts, heads)
        return [each for each in out if each is not None]

    def _encode(
        self,
        plain: dict[str, list[int]],
        by_word: dict[str, list[int]],
        heads: dict[tuple[str, int], tuple[list[int], int]],
    ) -> None:
        """Fill in ids of texts, and ids and token of a place of heads."""
        plain |= zip(plain, [each.ids for each in self.tokenizer.encode_many(list(plain))], strict=True)
        by_word |= zip(by_word, self.words.encode(list(by_word)), strict=True)
        if len(self._begun) > MAX_BEGUN:
            self._begun.clear()
        new = [key for key in heads if key not in self._begun]
        found = self.tokenizer.encode_many([text for text, _ in new], places=True)
        for key, encoding in zip(new, found, strict=True):
            heads[key] = (encoding.ids, _token_at(encoding, key[1]))
            if len(key[0]) <= LONGEST_BEGUN:
                self._begun[key] = heads[key]
        heads |= {key: self._begun[key] for key in heads.keys() - new}

    def _alone(self, talk: Sequence[Message]) -> Turns | InputError:
        try:
            return self.template.encode_turns(self.tokenizer, talk)
        except InputError as error:
            return error

    def _plan(self, talk: Sequence[Message]) -> tuple[_Shape, list[str]] | None:
        """The shape of a conversation and its contents; None when it has to be rendered by itself."""
        if self._code is None:
            return None
        contents: list[str] = []
        for message in talk:
            if len(message.content) != 1 or message.tool_calls or message.tool_call_id or message.name:
                return None
            part = message.content[0]
            if not isinstance(part, Text) or not part.text or part.text.isspace() or self._has_special(part.text):
                return None
            contents.append(part.text)
        roles = tuple(message.role for message in talk)
        if roles not in self._shapes:
            if len(self._shapes) >= MAX_SHAPES:
                self._shapes.pop(next(iter(self._shapes)))
            try:
                self._shapes[roles] = self._shape(roles)
            except (_Unfit, InputError):
                self._shapes[roles] = None
        shape = self._shapes[roles]
        if shape is None or any(contents[i][0].isspace() for i in shape.bare):
            return None
        return shape, contents

    def _has_special(self, text: str) -> bool:
        if text.isascii() and not any(first in text for first in self._firsts):
            return False
        return self._special.search(text) is not None

    # ---- a shape ----------------------------------------------------------------------------------------------------

    def _shape(self, roles: Sequence[Role]) -> _Shape:
        """Render the shape with holes, find the turns in a conversation of its form, and put both together."""
        assert self._code is not None
        rows: list[dict[str, Any]] = [{"role": role, "content": Opaque((i, "n"))} for i, role in enumerate(roles)]
        parts = read_holes(self._code.render(self.template.values(Talk(rows, [], {}), False)))
        turns = [i for i, role in enumerate(roles) if role == "assistant"]
        holes = [part[0] for part in parts if not isinstance(part, str)]
        if len(set(holes)) < len(holes) or not set(turns) <= set(holes):
            raise _Unfit
        example = [f"riverrun{i}text" for i in range(len(roles))]
        talk = [Message.of(role, text) for role, text in zip(roles, example, strict=True)]
        text, spans, opens = self.template.find_turns(self.tokenizer, talk)
        if text != "".join(part if isinstance(part, str) else example[part[0]] for part in parts):
            raise _Unfit
        self._check_edges(parts)
        starts, place = [], 0  # of parts, in the example's text
        for part in parts:
            starts.append(place)
            place += len(part if isinstance(part, str) else example[part[0]])
        return self._pieces(parts, starts, text, spans, opens)

    def _check_edges(self, parts: Sequence[str | Hole]) -> None:
        """No special token can be made of a literal and a content beside it."""
        for one, other in pairwise(parts):
            if isinstance(one, tuple) and isinstance(other, tuple):
                raise _Unfit
            if isinstance(one, str) and any(one.endswith(head) for head in self._heads):
                raise _Unfit
            if isinstance(other, str) and any(other.startswith(tail) for tail in self._tails):
                raise _Unfit

    def _pieces(
        self,
        parts: list[str | Hole],
        starts: list[int],
        text: str,
        spans: list[tuple[int, int]],
        opens: bool,
    ) -> _Shape:
        edges = [*starts[1:], len(text)]
        begin_at = {begin: turn for turn, (begin, _) in enumerate(spans)}
        end_at = {end: turn for turn, (_, end) in enumerate(spans)}
        pieces: list[_Piece] = []
        bare: list[int] = []
        for token, first, last, _ in self.tokenizer.segments(text):
            begins = [place for place in begin_at if first <= place < last]
            if len(begins) > 1:
                raise _Unfit
            turn, place = (begin_at[begins[0]], begins[0]) if begins else (-1, first)
            ends = end_at.pop(last, -1)
            if token is not None:
                self._check_token(token, first, last, parts, starts, edges)
                if place != first:
                    raise _Unfit
                pieces.append(_Piece(ids=(token,), begins=turn, ends=ends))
                continue
            inside = [k for k in range(len(parts)) if starts[k] < last and edges[k] > first]
            own: list[str | Hole] = []
            for k in inside:
                part = parts[k]
                own.append(part if isinstance(part, tuple) else text[max(first, starts[k]) : min(last, edges[k])])
            if ends >= 0 or (first == 0 and self.tokenizer.first_has_space):
                raise _Unfit  # a turn must end with a special token
            if all(isinstance(part, str) for part in own):
                encoding = self.tokenizer.encode_many([text[first:last]], places=True)[0]
                at = _token_at(encoding, place - first) if turn >= 0 else 0
                pieces.append(_Piece(ids=tuple(encoding.ids), begins=turn, place=at))
                continue
            k = next(k for k in inside if starts[k] <= place < edges[k])
            if isinstance(part := parts[k], tuple) and turn >= 0:
                if place != starts[k]:
                    raise _Unfit
                if not opens and part[1] not in "tl":
                    bare.append(part[0])
            into = place - max(first, starts[k])
            pieces.append(_Piece(parts=tuple(own), begins=turn, part=inside.index(k), place=into))
        if end_at:
            raise _Unfit
        return _Shape(tuple(pieces), len(spans), tuple(bare))

    def _check_token(
        self, token: int, first: int, last: int, parts: list[str | Hole], starts: list[int], edges: list[int]
    ) -> None:
        """A special token that takes white space, or looks at a character, must not touch a content there."""
        left, right = self.tokenizer.looks_around(token)
        for part, start, end in zip(parts, starts, edges, strict=True):
            if isinstance(part, tuple) and ((left and end == first) or (right and start == last)):
                raise _Unfit


def _fill(
    shape: _Shape,
    filled: Sequence[tuple[str, int, str]],
    texts: Mapping[str, list[int]],
    heads: Mapping[tuple[str, int], tuple[list[int], int]],
) -> Turns:
    """Put the ids of a conversation's pieces together."""
    ids: list[int] = []
    firsts, lasts = [0] * shape.turns, [0] * shape.turns
    given = iter(filled)
    for piece in shape.pieces:
        if not piece.parts:
            if piece.begins >= 0:
                firsts[piece.begins] = len(ids) + piece.place
            ids += piece.ids
        else:
            head, place, rest = next(given)
            if piece.begins >= 0:
                begun, token = heads[head, place]
                firsts[piece.begins] = len(ids) + token
                ids += begun
            ids += texts[rest]
        if piece.ends >= 0:
            lasts[piece.ends] = len(ids)
    return ids, list(zip(firsts, lasts, strict=True))


def _cut(text: str, place: int, takes: bool) -> tuple[str, str]:
    """The words up to that of a place, and the rest; all of it where words cannot be told."""
    space = text.find(" ", place + 1) if takes else -1
    return (text[:space], text[space:]) if space > 0 else (text, "")


def _offset(piece: _Piece, contents: Sequence[str]) -> int:
    """Characters of a filled piece before the place where its turn begins."""
    before = 0
    for part in piece.parts[: piece.part]:
        before += len(part if isinstance(part, str) else _TRIM[part[1]](contents[part[0]]))
    return before + piece.place


def _token_at(encoding: Any, place: int) -> int:
    """The first token that reaches behind character `place`."""
    token = encoding.char_to_token(place) if place else 0
    if token is None:  # a tokenizer may leave white space out of its offsets
        token = next((i for i, (_, end) in enumerate(encoding.offsets) if end > place), len(encoding.ids))
    return int(token)
