"""Requests to token ids and tokens back to messages: template, tool-call codec, stop strings. No engine, no thread."""

from __future__ import annotations

import json
import queue
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import replace
from functools import cached_property

from riverrun.base.errors import CapacityError, InputError
from riverrun.base.protocols import Completion, Delta, Request
from riverrun.base.types import FinishReason, Guide, Message, Text, TokenLogprob, ToolCall, ToolSpec, Usage
from riverrun.models.chat import ChatTemplate
from riverrun.models.token_bytes import token_bytes
from riverrun.models.tokenizer import Tokenizer
from riverrun.serve.request import Sequence
from riverrun.serve.sampler import Chosen
from riverrun.serve.stream import TextStream
from riverrun.wire.codec import Codec, collect
from riverrun.wire.thoughts import Thought, ThoughtParser, opens_thought

__all__ = ["Texts"]

_TAG_TOKENS = 8
"""Tokens at the end of a prompt among which the tag stands that opens a thought."""


class Texts:
    """What one model writes and reads."""

    def __init__(
        self, tokenizer: Tokenizer, template: ChatTemplate, codec: Codec, name: str, context: int, vocabulary: int
    ) -> None:
        """`vocabulary`: ids that the model has, which may be more than the tokenizer's."""
        self.tokenizer, self.template, self.codec, self.name = tokenizer, template, codec, name
        self.context, self.vocabulary = context, vocabulary

    # ---- in

    def prompt(self, request: Request) -> list[int]:
        """Ids of a request; CapacityError when no token is left for the answer."""
        if sum(map(bool, (request.prompt, request.messages, request.prompt_ids))) > 1:
            raise InputError("a request has either messages or a prompt, this one has both")
        if request.template_variables and not request.messages:
            raise InputError("template variables need messages: a raw prompt is not rendered")
        if request.prompt_ids:
            ids = self.existing(request.prompt_ids)
        elif request.prompt:
            ids = self.tokenizer.encode(request.prompt)
        elif request.messages:
            lowered = self._lowered(request.messages, request.tools)
            variables = request.template_variables
            if unknown := next((name for name in variables if name not in self.template.names), None):
                known = ", ".join(sorted(self.template.names)) or "none"
                raise InputError(f"the chat template of '{self.name}' asks for no '{unknown}'; it asks for: {known}")
            ids = self.template.encode(self.tokenizer, lowered, variables=variables, model=self.name)
        else:
            raise InputError("a request needs messages or a prompt, this one has neither")
        if not ids:
            raise InputError("the request renders to no token: give a message or a prompt with text")
        return self.fitting(ids)

    def _lowered(self, messages: Seq[Message], tools: Seq[ToolSpec]) -> list[Message]:
        """Tool calls and results as the codec writes them; a part that is not text is refused by this model's name."""
        for message in messages:
            message.require_text(self.name)
        return list(self.codec.lower(messages, tools))

    def existing(self, ids: Seq[int]) -> list[int]:
        """The ids, if the model has all of them."""
        if wrong := [i for i in ids if not 0 <= i < self.vocabulary]:
            raise InputError(f"token {wrong[0]} does not exist: ids go from 0 to {self.vocabulary - 1}")
        return list(ids)

    def vector_ids(self, text: str | Seq[int]) -> list[int]:
        """Ids of a text that becomes a vector, behind the begin token where there is one; ids are taken as they are."""
        ids = self.tokenizer.encode(text) if isinstance(text, str) else self.existing(text)
        if isinstance(text, str) and self.tokenizer.add_bos and self.tokenizer.bos_id is not None:
            ids = [self.tokenizer.bos_id, *ids]
        if not ids or len(ids) > self.context:
            raise InputError(f"a text has {len(ids)} tokens: 1 to {self.context} can be embedded")
        return ids

    def fitting(self, ids: list[int]) -> list[int]:
        """The ids, if they leave room for an answer."""
        if len(ids) >= self.context:
            raise CapacityError(
                f"the prompt has {len(ids)} tokens, the context is {self.context} and one is needed for the answer: "
                "shorten the conversation"
            )
        return ids

    def guide(self, request: Request) -> Guide | None:
        """What the answer must look like: as asked for, or a call of a tool that must be called."""
        if not request.forced_tools:
            return request.params.guide
        if request.params.guide:
            raise InputError("an answer cannot follow a guide and be a tool call: leave one of them out")
        tools = [tool for tool in request.tools if tool.name in request.forced_tools]
        if unknown := set(request.forced_tools) - {tool.name for tool in tools}:
            raise InputError(f"tool '{min(unknown)}' is to be called and is not among the tools: add it")
        return Guide("grammar", self.codec.grammar(tools, parallel=request.parallel_tool_calls))

    def stops(self, request: Request) -> tuple[str, ...]:
        return request.params.stop + (self.codec.stops if request.tools else ())

    def bad_words(self, words: Seq[str]) -> list[list[int]]:
        """Each word as it stands at the beginning of a text and behind a space."""
        found = [self.tokenizer.encode(text) for word in words for text in (word, f" {word.lstrip()}")]
        bos = self.tokenizer.bos_id
        bare = [ids[1:] if ids[:1] == [bos] else ids for ids in found]
        return [list(ids) for ids in dict.fromkeys(map(tuple, bare)) if ids]

    def split(self, prefix: str | Seq[Message], continuation: str) -> tuple[list[int], list[int]]:
        """(prefix ids, continuation ids) by the rule of `base.protocols`."""
        if isinstance(prefix, str):
            bare = prefix.rstrip()
            continuation = prefix[len(bare) :] + continuation
            before = self.tokenizer.encode(bare)
            whole = self.tokenizer.encode(bare + continuation)
            if not before and whole:
                return [self.start()], whole
        else:
            messages = self._lowered(prefix, ())
            before = self.template.encode(self.tokenizer, messages, model=self.name)
            whole = self.template.encode_answer(self.tokenizer, messages, continuation, model=self.name)
        if len(whole) <= len(before):
            raise InputError(f"the continuation {continuation!r} adds no token to its prefix: give a longer one")
        return whole[: len(before)], whole[len(before) :]

    def start(self) -> int:
        """The token before a text that has nothing before it."""
        start = self.tokenizer.bos_id if self.tokenizer.bos_id is not None else self.tokenizer.eos_id
        if start is None:
            raise InputError(f"model '{self.name}' has no begin token: give a prefix to score after")
        return start

    # ---- out

    def result(self, sequence: Sequence) -> tuple[FinishReason, Usage]:
        """How it ended, and its counts; its error is raised."""
        if sequence.error:
            raise sequence.error
        assert sequence.finish_reason is not None
        return sequence.finish_reason, sequence.usage

    def completion(self, request: Request, sequence: Sequence) -> Completion:
        reason, usage = self.result(sequence)
        text = TextStream(self.tokenizer, self.stops(request))
        shown = sequence.output[:-1] if self._ends(sequence, -1) else sequence.output
        parser = self._parser(request, sequence)
        written = [text.push(i) for i in shown]
        pieces = [piece for part in written for piece in parser.feed(part)]
        written.append(text.close())
        pieces += [*parser.feed_rest(written[-1]), *parser.close()]
        raw = "".join(written)
        parsed = collect([piece for piece in pieces if not isinstance(piece, Thought)])
        thought = "".join(piece.text for piece in pieces if isinstance(piece, Thought))
        content = (Text(parsed.text),) if parsed.text else ()
        message = Message("assistant", content, parsed.calls, reasoning=thought)
        return Completion(
            message,
            "tool_calls" if parsed.calls else reason,
            replace(usage, reasoning_tokens=parser.thought_pieces),
            raw,
            logprobs=tuple(map(self.logprob, sequence.chosen[: len(shown)])),
            prompt_logprobs=self._prompt_logprobs(sequence),
            stopped_by=_asked_stop(request, text),
        )

    def _parser(self, request: Request, sequence: Sequence) -> ThoughtParser:
        """Thoughts and tool calls of an answer to messages; the rest of a plain text is left as it is."""
        inner = self.codec.parser(request.tools) if request.tools else None
        if not request.messages or request.params.guide is not None:
            return ThoughtParser(inner, thinking=None)
        before = b"".join(self.piece(i) for i in sequence.prompt[-_TAG_TOKENS:]).decode("utf-8", "replace")
        return ThoughtParser(inner, thinking=opens_thought(before))

    def _ends(self, sequence: Sequence, place: int) -> bool:
        """Whether that token of the answer only ends it and is no part of its text."""
        if not sequence.output:
            return False
        token, params = sequence.output[place], sequence.params
        return (token in self.tokenizer.end_ids and not params.ignore_end) or token in params.stop_ids

    def deltas(self, request: Request, sequence: Sequence) -> Iterator[Delta | None]:
        """The answer while it is written; the last delta has reason and counts.

        None whenever there is nothing yet, where the sequence rings; else the iterator waits.
        """
        # made at once: the first look at a vocabulary takes its time, and whoever iterates may be an event loop
        return self._deltas(
            request, sequence, TextStream(self.tokenizer, self.stops(request)), self._parser(request, sequence)
        )

    def _deltas(
        self, request: Request, sequence: Sequence, text: TextStream, parser: ThoughtParser
    ) -> Iterator[Delta | None]:
        news, called, place = sequence.news, False, 0
        assert news is not None

        waiting: tuple[TokenLogprob, ...] = ()  # of tokens whose text is held back

        def made(piece: str, *, last: bool = False) -> Iterator[Delta]:
            nonlocal waiting, called
            for item in [*parser.feed_rest(piece), *parser.close()] if last else parser.feed(piece):
                if isinstance(item, str) and item:
                    yield Delta(text=item, logprobs=waiting)
                elif isinstance(item, Thought):
                    yield Delta(reasoning=item.text, logprobs=waiting)
                elif isinstance(item, ToolCall):
                    called = True
                    yield Delta(tool_calls=(item,), logprobs=waiting)
                else:
                    continue
                waiting = ()

        while True:
            try:
                token = news.get(block=sequence.ring is None)
            except queue.Empty:
                yield None
                continue
            if token is None:
                break
            if not self._ends(sequence, place):
                waiting += tuple(map(self.logprob, sequence.chosen[place : place + 1]))
                yield from made(text.push(token))
            place += 1
        reason, usage = self.result(sequence)
        yield from made(text.close(), last=True)
        if waiting:
            yield Delta(logprobs=waiting)
        usage = replace(usage, reasoning_tokens=parser.thought_pieces)
        yield Delta(
            finish_reason="tool_calls" if called else reason, usage=usage, stopped_by=_asked_stop(request, text)
        )

    def logprob(self, chosen: Chosen) -> TokenLogprob:
        near = tuple(TokenLogprob(i, self.piece(i), p) for i, p in chosen.top)
        return TokenLogprob(chosen.token, self.piece(chosen.token), chosen.logprob, near)

    def _prompt_logprobs(self, sequence: Sequence) -> tuple[TokenLogprob, ...]:
        if sequence.params.prompt_logprobs is None:
            return ()
        return tuple(
            self.logprob(Chosen(token, found.logprob, found.top))
            for token, found in zip(sequence.prompt[1:], sequence.judged, strict=True)
        )

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for."""
        return self.token_bytes[token] if token < len(self.token_bytes) else b""

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """The bytes of every token."""
        return token_bytes(json.loads(self.tokenizer.to_json()), self.tokenizer.vocab_size)


def _asked_stop(request: Request, text: TextStream) -> str:
    """The stop string that ended the text, if it is one that was asked for and no mark of the tool-call format."""
    return text.stopped_by if text.stopped_by in request.params.stop else ""
