"""What a row of any foreign format becomes before it is tokens, and what a row that cannot become one is called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from riverrun.base.errors import InputError
from riverrun.base.types import Message, ToolSpec

__all__ = ["REASONS", "BadRow", "Example", "Kind"]

Kind = Literal["chat", "text", "preference", "kto"]

REASONS: dict[str, str] = {
    "not_json": "the line or item is not JSON",
    "not_utf8": "the bytes are not UTF-8",
    "too_big": "the line or item is larger than a reader takes",
    "not_this_format": "a field that the file's format needs is missing or of another type",
    "unknown_role": "a message's role is none that the format has",
    "no_assistant": "no assistant turn to learn from",
    "nothing_learned": "every token is masked: nothing counts in the loss",
    "empty": "there is no text",
    "image": "an image in text data",
    "audio": "sound in text data",
    "video": "a video in text data",
    "tool_call": "a tool or a call of a tool cannot be read",
    "weight": "a message's weight is neither 0 nor 1, or asks for another role's turn",
    "template": "the chat template refuses the conversation",
    "begin_token": "another count of begin tokens than the template writes",
    "too_long": "longer than max_tokens, and the policy is to drop",
    "same_answers": "chosen and rejected are the same",
}
"""Every reason a row can be set aside for, with what it says."""


class BadRow(InputError):
    """A row that cannot be learned from; `reason` is a key of REASONS."""

    def __init__(self, reason: str, detail: str) -> None:
        assert reason in REASONS, reason
        super().__init__(detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True, slots=True)
class Example:
    """One thing to learn from: a conversation, a text, a pair of answers, or a judged answer.

    `messages` is a whole conversation; where `chosen` and `rejected` are given it is the prompt they answer. `learn`
    says for each message whether it counts, () leaves that to `train_on`. `good` is what a judged (KTO) answer got.
    """

    messages: tuple[Message, ...] = ()
    tools: tuple[ToolSpec, ...] = ()
    text: str = ""
    learn: tuple[bool, ...] = ()
    chosen: tuple[Message, ...] = ()
    rejected: tuple[Message, ...] = ()
    good: bool | None = None

    @property
    def kind(self) -> Kind:
        if self.chosen:
            return "preference"
        if self.good is not None:
            return "kto"
        return "chat" if self.messages else "text"
