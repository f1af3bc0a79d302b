"""Shipped doubles: a scripted model and a byte tokenizer let every room be run and tested without weights."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256

from riverrun.base.protocols import Completion, Delta, ModelInfo, Request, Score, refuse
from riverrun.base.types import FinishReason, Message, ToolCall, Usage

__all__ = ["FakeModel", "FakeTokenizer", "Reply"]

Reply = str | ToolCall | tuple[ToolCall, ...] | Message
Script = Sequence[Reply] | Callable[[Request], Reply]


class FakeModel:
    """Answers from a script: a list (used in order, then its last item again) or a function of the request.

    `requests` keeps what was asked. `score` favours the continuations listed in `prefers`.
    """

    def __init__(
        self, script: Script = ("ok",), *, name: str = "fake", context_length: int = 4096, prefers: Sequence[str] = ()
    ) -> None:
        self.script, self.prefers = script, tuple(prefers)
        self.requests: list[Request] = []
        self._used = 0
        self._lock = threading.Lock()
        digest = sha256(name.encode()).hexdigest()
        self._info = ModelInfo(name, digest, context_length, sha256(b"fake template").hexdigest())

    @property
    def info(self) -> ModelInfo:
        return self._info

    def _next(self, request: Request) -> Message:
        refuse(
            request,
            f"model '{self._info.name}'",
            "adapter",
            "forced_tools",
            "prompt_ids",
            "logprobs",
            "prompt_logprobs",
        )
        for message in request.messages:
            message.require_text(self._info.name)
        with self._lock:
            self.requests.append(request)
            if callable(self.script):
                reply = self.script(request)
            else:
                reply = self.script[min(self._used, len(self.script) - 1)]
                self._used += 1
        if isinstance(reply, Message):
            return reply
        if isinstance(reply, str):
            return Message.of("assistant", reply)
        calls = (reply,) if isinstance(reply, ToolCall) else tuple(reply)
        return Message(
            "assistant",
            tool_calls=tuple(ToolCall(c.name, c.arguments, c.id or f"call_{i}") for i, c in enumerate(calls)),
        )

    def _usage(self, request: Request, message: Message) -> Usage:
        prompt = len(request.prompt.split()) + sum(len(m.text.split()) for m in request.messages)
        return Usage(prompt, len(message.text.split()) + 8 * len(message.tool_calls))

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        out = []
        for request in requests:
            message = self._next(request)
            reason: FinishReason = "tool_calls" if message.tool_calls else "stop"
            out.append(Completion(message, reason, self._usage(request, message), message.text))
        return out

    def stream(self, request: Request) -> Iterator[Delta]:
        message = self._next(request)
        words = message.text.split(" ")
        for index, word in enumerate(words):
            if word or index:
                yield Delta(text=word if index == 0 else " " + word)
        if message.tool_calls:
            yield Delta(tool_calls=message.tool_calls)
        yield Delta(finish_reason="tool_calls" if message.tool_calls else "stop", usage=self._usage(request, message))

    def score(self, prefix: str | Sequence[Message], continuations: Sequence[str]) -> list[Score]:
        best = [c for c in continuations if c in self.prefers][:1]
        return [Score(tuple(-0.1 if c in best else -2.0 for _ in c.split()), c in best) for c in continuations]


class FakeTokenizer:
    """UTF-8 bytes as ids 0-255; 256 is the end token. Round trips exactly."""

    eos_id = 256
    vocab_size = 257

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8"))

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i for i in ids if i < 256).decode("utf-8", errors="replace")
