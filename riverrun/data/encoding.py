"""Examples to token rows, many at once: what counts in the loss, what is done with the long ones, what is set aside.

The template is asked once at the start whether training on it can work at all: each assistant turn must end with a
token that ends an answer for the model, and that token must be learned, else the model would never stop.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

from pydantic import Field

from riverrun.base.config import Config
from riverrun.base.errors import ConfigError, InputError
from riverrun.base.types import Message
from riverrun.data.examples import BadRow, Example
from riverrun.models.bulk import BulkEncoder, Turns
from riverrun.models.chat import ChatTemplate
from riverrun.models.tokenizer import Tokenizer
from riverrun.models.words import Words
from riverrun.wire.codec import get_codec

__all__ = ["GOOD", "PLAIN", "REJECTED", "EncodeConfig", "Encoded", "RowEncoder", "TokenLists", "check_template"]

PLAIN, GOOD, REJECTED = 0, 1, 2
"""Tags of rows: neither, chosen or desirable, rejected or undesirable."""
Ranges = list[tuple[int, int]]
STRETCH = 1 << 18
"""Characters that are tokenised at once."""
_BETWEEN = re.compile(r"(?<=[^\W\d_]) (?=[^\W\d_])")


class EncodeConfig(Config):
    """How examples become token rows."""

    train_on: Literal["assistant", "last", "all"] = Field(
        default="assistant",
        description="what counts in the loss: all that assistants say, their last turn, or every token",
    )
    max_tokens: int = Field(default=1024, ge=16, description="tokens of the longest row")
    overlong: Literal["drop", "cut_right", "cut_left_turns", "refuse"] = Field(
        default="drop",
        description="a longer conversation is dropped and counted, loses its end, loses its first turns behind the"
        " system text, or ends the run",
    )
    overlong_text: Literal["split", "drop", "cut_right"] = Field(
        default="split", description="a longer plain text becomes several rows, is dropped, or loses its end"
    )
    end_texts: bool = Field(
        default=True, description="plain texts end with the model's end token where it has one, and it is learned"
    )
    codec: str = Field(default="hermes", description="tool-call format of the rows")


@dataclass(frozen=True, slots=True)
class TokenLists:
    """One token row: ids, the ranges [first, last) of them that are learned, its tag."""

    ids: list[int]
    learned: Ranges
    tag: int = PLAIN

    @property
    def labels(self) -> int:
        """Tokens that count: the first of a row has nothing to be predicted from."""
        return sum(last - max(first, 1) for first, last in self.learned if last > 1)


@dataclass(frozen=True, slots=True)
class Encoded:
    """The rows of one example: one; several of a split text; chosen and rejected of a pair, `shared` of whose first
    tokens are the same and not learned."""

    rows: list[TokenLists]
    shared: int = 0


@dataclass(frozen=True, slots=True)
class TemplateFacts:
    """What a template does at the edges of a conversation."""

    begin_tokens: int
    end_token: str


def check_template(tokenizer: Tokenizer, template: ChatTemplate) -> TemplateFacts:
    """ConfigError when a model trained on this template would not learn to stop, or would see two begin tokens."""
    talk = [Message.of("user", "one"), Message.of("assistant", "two")] * 2
    try:
        ids, turns = template.encode_turns(tokenizer, talk)
    except InputError:
        ids, turns = template.encode_turns(tokenizer, [Message.of("system", "zero"), *talk])
    if not tokenizer.end_ids:
        raise ConfigError("the model names no token that ends an answer: give eos_token_id in its config.json")
    for first, last in turns or [(0, 0)]:
        if last <= first or ids[last - 1] not in tokenizer.end_ids:
            found = tokenizer.token(ids[last - 1]) if last > first else "nothing"
            ends = ", ".join(repr(tokenizer.token(end)) for end in tokenizer.end_ids)
            raise ConfigError(
                f"the chat template ends what an assistant says with {found!r}, which is no end token of the model "
                f"({ends}): a model trained so would never stop; give another template, or the right eos_token"
            )
    begin = _leading(ids, tokenizer.bos_id)
    if begin > 1:
        raise ConfigError(
            f"the chat template begins a conversation with {begin} begin tokens "
            f"({tokenizer.token(tokenizer.bos_id)!r}): one at most is right, mend the template"
        )
    return TemplateFacts(begin, tokenizer.token(ids[turns[-1][1] - 1]))


def _leading(ids: Sequence[int], token: int | None) -> int:
    count = 0
    while token is not None and count < len(ids) and ids[count] == token:
        count += 1
    return count


@dataclass
class _Talk:
    """One conversation to encode: which example it is of, and which of its turns count (None: by `train_on`)."""

    example: int
    messages: list[Message]
    keep: list[bool] | None
    tag: int = PLAIN
    turns: Turns | InputError | None = field(default=None)


class RowEncoder:
    """Examples to rows by a model's tokenizer and template. Without a template only plain texts are taken."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate | None, config: EncodeConfig) -> None:
        self.tokenizer, self.config = tokenizer, config
        self.codec = get_codec(config.codec)
        self.bulk = BulkEncoder(template, tokenizer) if template is not None else None
        self.words = self.bulk.words if self.bulk is not None else Words(tokenizer)
        self.facts = check_template(tokenizer, template) if template is not None else None
        self._start = tokenizer.bos_id if tokenizer.bos_id is not None else tokenizer.eos_id

    def encode(self, examples: Sequence[Example]) -> list[Encoded | BadRow]:
        """The rows of each example, or why it has none; in order."""
        out: list[Encoded | BadRow | None] = [None] * len(examples)
        talks: list[_Talk] = []
        texts: list[int] = []
        for number, example in enumerate(examples):
            if example.kind == "text":
                texts.append(number)
                continue
            try:
                talks += self._talks(number, example)
            except InputError as error:
                out[number] = error if isinstance(error, BadRow) else BadRow("template", str(error))
        for number, encoded in zip(texts, self._texts([examples[i].text for i in texts]), strict=True):
            out[number] = encoded
        if talks:
            assert self.bulk is not None
            for talk, turns in zip(talks, self.bulk.encode([talk.messages for talk in talks]), strict=True):
                talk.turns = turns
            groups: dict[int, list[_Talk]] = {}
            for talk in talks:
                groups.setdefault(talk.example, []).append(talk)
            for number, group in groups.items():
                try:
                    rows = [self._row(talk) for talk in group]
                    out[number] = Encoded(rows, _shared(rows) if len(rows) == 2 else 0)
                except BadRow as error:
                    out[number] = error
        assert all(each is not None for each in out)
        return [each for each in out if each is not None]

    # ---- conversations ----------------------------------------------------------------------------------------------

    def _talks(self, number: int, example: Example) -> list[_Talk]:
        if self.bulk is None:
            raise BadRow("not_this_format", "this is a conversation, and only plain texts are read here (no template)")
        if example.kind == "preference":
            before = sum(message.role == "assistant" for message in example.messages)
            out = []
            for answer, tag in ((example.chosen, GOOD), (example.rejected, REJECTED)):
                messages = (*example.messages, *answer)
                turns = sum(message.role == "assistant" for message in messages)
                keep = [turn >= before for turn in range(turns)]
                out.append(_Talk(number, self.codec.lower(messages, example.tools), keep, tag))
            return out
        talk = _Talk(number, self.codec.lower(example.messages, example.tools), None)
        turns = sum(message.role == "assistant" for message in talk.messages)
        if example.good is not None:
            talk.keep = [turn == turns - 1 for turn in range(turns)]
            talk.tag = GOOD if example.good else REJECTED
        elif example.learn:
            roles = zip(example.messages, example.learn, strict=True)
            talk.keep = [learn for message, learn in roles if message.role == "assistant"]
        return [talk]

    def _row(self, talk: _Talk) -> TokenLists:
        turns = talk.turns
        assert turns is not None
        if isinstance(turns, InputError):
            surrogate = "surrogate" in str(turns)
            raise BadRow("not_utf8" if surrogate else "template", str(turns))
        row = self._learned(talk, turns)
        if len(row.ids) > self.config.max_tokens:
            row = self._shorter(talk, row)
        assert self.facts is not None
        if (found := _leading(row.ids, self.tokenizer.bos_id)) != self.facts.begin_tokens:
            raise BadRow("begin_token", f"{found} begin tokens, the template writes {self.facts.begin_tokens}")
        if not row.labels:
            raise BadRow("nothing_learned", f"none of {len(row.ids)} tokens counts in the loss")
        return row

    def _learned(self, talk: _Talk, turns: Turns) -> TokenLists:
        ids, ranges = turns
        if self.config.train_on == "all" and talk.tag == PLAIN:
            return TokenLists(ids, [(0, len(ids))])
        keep = talk.keep
        if keep is not None:
            if len(keep) != len(ranges):
                raise BadRow("template", f"the template marks {len(ranges)} stretches, there are {len(keep)} turns")
            ranges = [each for each, kept in zip(ranges, keep, strict=True) if kept]
        if self.config.train_on == "last" and talk.tag == PLAIN:
            ranges = ranges[-1:]
        return TokenLists(ids, ranges, talk.tag)

    def _shorter(self, talk: _Talk, row: TokenLists) -> TokenLists:
        limit, policy = self.config.max_tokens, self.config.overlong
        if policy == "cut_right":
            ranges = [(first, min(last, limit)) for first, last in row.learned if first < limit]
            return TokenLists(row.ids[:limit], ranges, row.tag)
        messages, keep = talk.messages, talk.keep
        while policy == "cut_left_turns":
            start = 1 if messages[0].role == "system" else 0
            users = [i for i, message in enumerate(messages) if message.role == "user" and i > start]
            if not users:
                break
            dropped = sum(message.role == "assistant" for message in messages[start : users[0]])
            messages = [*messages[:start], *messages[users[0] :]]
            keep = keep[dropped:] if keep is not None else None
            assert self.bulk is not None
            turns = self.bulk.encode([messages])[0]
            if isinstance(turns, InputError):
                raise BadRow("template", str(turns))
            shorter = self._learned(_Talk(talk.example, messages, keep, talk.tag), turns)
            if len(shorter.ids) <= limit:
                return shorter
        raise BadRow("too_long", f"{len(row.ids)} tokens, the limit is {limit}")

    # ---- texts ------------------------------------------------------------------------------------------------------

    def _texts(self, texts: Sequence[str]) -> list[Encoded | BadRow]:
        out: list[Encoded | BadRow] = []
        for text, ids in zip(texts, self._text_ids(texts), strict=True):
            if isinstance(ids, BadRow):
                out.append(ids)
            elif not ids or not text.strip():
                out.append(BadRow("empty", "the text is empty"))
            else:
                out.append(self._text(ids))
        return out

    def _text_ids(self, texts: Sequence[str]) -> list[list[int] | BadRow]:
        """Ids as `Tokenizer.encode` gives them, without its work on offsets."""
        first = self.tokenizer.first_has_space
        given = [" " + text if first and text and not text.startswith((" ", "▁")) else text for text in texts]
        out: list[list[int] | BadRow] = []
        start = size = 0
        for number, text in enumerate([*given, ""]):
            if number == len(given) or (size + len(text) > STRETCH and number > start):
                out += self._group_ids(given[start:number])
                start, size = number, 0
            size += len(text)
        return out

    def _many(self, texts: Sequence[str]) -> list[list[int]]:
        takes = [self.words.takes(text) for text in texts]
        worded = iter(self.words.encode([text for text, taken in zip(texts, takes, strict=True) if taken]))
        others = iter(self.tokenizer.encode_many([t for t, taken in zip(texts, takes, strict=True) if not taken]))
        return [next(worded) if taken else next(others).ids for taken in takes]

    def _group_ids(self, texts: Sequence[str]) -> list[list[int] | BadRow]:
        try:
            if len(texts) == 1:
                ids: list[int] = []
                for stretch in _stretches(texts[0]):
                    ids += self._many([stretch])[0]
                return [ids]
            return [*self._many(texts)]
        except InputError as error:
            if len(texts) == 1:
                return [BadRow("not_utf8", str(error))]
            return [each for text in texts for each in self._group_ids([text])]

    def _text(self, ids: list[int]) -> Encoded | BadRow:
        limit = self.config.max_tokens
        begin = [] if self._start is None else [self._start]
        ended = self.config.end_texts and self.tokenizer.eos_id is not None
        if ended:
            ids = [*ids, cast(int, self.tokenizer.eos_id)]
        room = limit - len(begin)
        if len(ids) > room:
            if self.config.overlong_text == "drop":
                return BadRow("too_long", f"{len(ids) + len(begin)} tokens, the limit is {limit}")
            if self.config.overlong_text == "cut_right":
                ids = ids[:room]
        if (ended or not begin) and self.config.overlong_text == "split" and len(ids) % room == 1 < len(ids):
            room -= 1  # a last piece of one token would have nothing to be predicted from, or be an end of nothing
        pieces = [[*begin, *ids[at : at + room]] for at in range(0, len(ids), room)]
        rows = [TokenLists(piece, [(0, len(piece))]) for piece in pieces if len(piece) > 1]
        return Encoded(rows) if rows else BadRow("nothing_learned", "one token has nothing to be predicted from")


def _stretches(text: str) -> Iterator[str]:
    """A long text in stretches that are tokenised by themselves, so that memory stays bounded.

    Cut before a space between two words, where tokenizers part them anyway; in text without spaces behind a line.
    """
    start = 0
    while len(text) - start > STRETCH:
        window = text[start + STRETCH - 4096 : start + STRETCH]
        found = max((m.start() for m in _BETWEEN.finditer(window)), default=window.rfind("\n") + 1)
        end = start + STRETCH - 4096 + found if found else start + STRETCH
        yield text[start:end]
        start = end
    yield text[start:]


def _shared(rows: Sequence[TokenLists]) -> int:
    """Tokens that two rows begin with and neither learns; both keep one of their own before what they learn."""
    one, other = rows
    most = min(len(one.ids), len(other.ids), *(row.learned[0][0] for row in rows)) - 1
    count = 0
    while count < most and one.ids[count] == other.ids[count]:
        count += 1
    return count
