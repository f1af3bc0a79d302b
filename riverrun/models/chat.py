"""Chat templates: the model's own jinja is the truth, run in a sandbox; spans of the assistant's tokens for the loss.

User text that contains special tokens is never tokenised as special: such text is broken up by a noncharacter before
rendering and put together again afterwards, as plain text. Everything between two special tokens is tokenised as one
piece, so the ids are those of the whole rendered text.
"""

from __future__ import annotations

import datetime
import hashlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from riverrun.base.errors import ConfigError, InputError
from riverrun.base.types import Message
from riverrun.models.tokenizer import Tokenizer

__all__ = ["ChatTemplate"]

# Unicode noncharacters: never in exchanged text, so they can mark places in it.
_BREAK, _OPEN, _CLOSE = "\ufdd0", "\ufdd1", "\ufdd2"
_MARKS = re.compile(f"[{_BREAK}{_OPEN}{_CLOSE}]")


class ChatTemplate:
    """Messages to token ids. Text messages without tool calls: `wire` writes those out before.

    `bos_token` and `eos_token` are the texts that templates write by these names.
    """

    def __init__(self, source: str, *, bos_token: str = "", eos_token: str = "") -> None:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        self.source, self.bos_token, self.eos_token = source, bos_token, eos_token
        self.sha256 = hashlib.sha256(source.encode()).hexdigest()
        loops = ["jinja2.ext.loopcontrols"]
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=loops)
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            line = getattr(error, "lineno", "?")
            raise ConfigError(f"the chat template is not valid jinja (line {line}): {error}") from None

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool, model: str = "model") -> str:
        """The text as the template writes it (the form to compare with `apply_chat_template`)."""
        return self._run([(m.role, m.require_text(model)) for m in messages], add_generation_prompt)

    def encode(self, tokenizer: Tokenizer, messages: Sequence[Message], *, model: str = "model") -> list[int]:
        """Prompt ids with the assistant's turn opened."""
        turns = [(m.role, _neutral(m.require_text(model), tokenizer)) for m in messages]
        return [token for token, _ in self._pieces(tokenizer, self._run(turns, True))]

    def encode_answer(self, tokenizer: Tokenizer, messages: Sequence[Message], answer: str, *, model: str) -> list[int]:
        """Ids of the prompt with the beginning of the assistant's answer, tokenised as one text."""
        turns = [(m.role, _neutral(m.require_text(model), tokenizer)) for m in messages]
        return [token for token, _ in self._pieces(tokenizer, self._run(turns, True) + _neutral(answer, tokenizer))]

    def encode_with_labels(self, tokenizer: Tokenizer, messages: Sequence[Message]) -> tuple[list[int], list[bool]]:
        """Ids of a whole conversation, and for each whether it is to be learned.

        Learned are the assistant's contents and the special token that ends each of them; nothing else.
        """
        turns = [(m.role, _neutral(m.require_text("model"), tokenizer)) for m in messages]
        plain = self._run(turns, False)
        for trim in (False, True):
            marked = [
                (role, _mark(text.strip() if trim else text) if role == "assistant" else text) for role, text in turns
            ]
            text = self._run(marked, False)
            if text.replace(_OPEN, "").replace(_CLOSE, "") == plain:
                pieces = list(self._pieces(tokenizer, text))
                return [token for token, _ in pieces], [learned for _, learned in pieces]
        raise ConfigError(
            "the chat template rewrites the assistant's text, so its tokens cannot be told from the template's"
        )

    def _run(self, turns: Sequence[tuple[str, str]], add_generation_prompt: bool) -> str:
        from jinja2 import TemplateError

        values = {
            "messages": [{"role": role, "content": content} for role, content in turns],
            "add_generation_prompt": add_generation_prompt,
            "bos_token": self.bos_token,
            "eos_token": self.eos_token,
            "tools": None,  # templates ask "tools is not none"
            "documents": None,
        }
        try:
            return str(self._template.render(values))
        except TemplateError as error:
            raise InputError(f"the chat template refused these messages: {error}") from None

    @staticmethod
    def _pieces(tokenizer: Tokenizer, text: str) -> Iterator[tuple[int, bool]]:
        """(token id, learned) of a rendered text whose assistant contents stand between marks."""
        inside = False  # between _OPEN and _CLOSE
        ends_turn = False  # a content was closed and its end token has not come yet
        for piece in re.split(f"({_special_pattern(tokenizer)})", text):
            if piece in tokenizer.special:
                yield tokenizer.special[piece], inside or ends_turn
                ends_turn = False
                continue
            spans: list[bool] = []  # one flag per character of the clean text
            clean: list[str] = []
            for char in piece:
                if char == _OPEN:
                    inside, ends_turn = True, False
                elif char == _CLOSE:
                    inside, ends_turn = False, True
                elif char != _BREAK:
                    clean.append(char)
                    spans.append(inside)
                    ends_turn = ends_turn and char.isspace()  # an end token follows its content at once
            reached = 0  # a tokenizer may leave spaces out of its offsets: a token covers all since the one before
            for token, (start, end) in tokenizer.encode_with_offsets("".join(clean)) if clean else ():
                yield token, any(spans[min(start, reached) : end])
                reached = end


def _raise(message: str) -> Any:
    raise InputError(f"the chat template refused these messages: {message}")


def _special_pattern(tokenizer: Tokenizer) -> str:
    return "|".join(re.escape(token) for token in sorted(tokenizer.special, key=len, reverse=True)) or "(?!)"


def _neutral(text: str, tokenizer: Tokenizer) -> str:
    """Break up special tokens written in a content, so that only the template's own are special."""
    text = _MARKS.sub("\ufffd", text)
    return re.sub(_special_pattern(tokenizer), lambda found: _BREAK.join(found.group()), text)


def _mark(text: str) -> str:
    return _OPEN + text + _CLOSE
