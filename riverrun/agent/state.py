"""One run of an agent as a fold over its events.

    started   messages (system turn included), params, agent (digest)
    asked     final, text: the model is asked; `final` says why it is asked without tools ("" when it has them),
              and `text` is then said to it first
    answered  text, visible, calls, unread, finish_reason, usage
    called    id, name, arguments, effects: a tool is about to run
    returned  id, name, content, data, is_error, executed: what the model reads about that call
    finished  reason, text, finish_reason

Every event holds `run`, `kind` and `at`, seconds since the run began. `apply` is the only place where a run changes, so
the events in a journal are the run: the same events give the same state. It does no I/O and reads no clock.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, cast

from riverrun.base.types import FinishReason, Guide, Message, SamplingParams, ToolCall, Usage

__all__ = ["Event", "State", "call_key", "params_from_json", "params_to_json"]

Event = Mapping[str, Any]


def call_key(name: str, arguments: Mapping[str, Any]) -> str:
    """Equal for calls of the same tool with the same arguments."""
    return json.dumps([name, arguments], sort_keys=True, ensure_ascii=False, default=str)


def params_to_json(params: SamplingParams) -> dict[str, Any]:
    return asdict(params)


def params_from_json(value: Mapping[str, Any]) -> SamplingParams:
    guide = Guide(**value["guide"]) if value.get("guide") else None
    lists = {name: tuple(value[name]) for name in ("stop", "bad_words", "stop_ids") if name in value}
    bias = {int(token): each for token, each in (value.get("logit_bias") or {}).items()}  # JSON's keys are texts
    return SamplingParams(**{**value, **lists, "guide": guide, "logit_bias": bias})


@dataclass
class State:
    """What is known after some events. `pending` are calls the model asked for that have not returned."""

    run: str = ""
    agent: str = ""
    messages: list[Message] = field(default_factory=list)
    params: SamplingParams = field(default_factory=SamplingParams)
    at: float = 0.0
    turns: int = 0
    tool_calls: int = 0
    pending: list[ToolCall] = field(default_factory=list)
    running: ToolCall | None = None
    running_effects: str = ""
    failed: dict[str, int] = field(default_factory=dict)
    steps: list[dict[str, Any]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    unread: int = 0
    usage: Usage = field(default_factory=Usage)
    answered: bool = False
    final: str = ""
    repeated: bool = False
    last_reason: FinishReason = "stop"
    finished: str = ""
    text: str = ""

    def apply(self, event: Event) -> None:
        self.at = float(event["at"])
        getattr(self, f"_{event['kind']}")(event)

    def failures(self, call: ToolCall) -> int:
        """How often this very call has failed before."""
        return self.failed.get(call_key(call.name, call.arguments), 0)

    def _started(self, event: Event) -> None:
        self.run, self.agent = event["run"], event["agent"]
        self.messages = [Message.from_openai(message) for message in event["messages"]]
        self.params = params_from_json(event["params"])

    def _asked(self, event: Event) -> None:
        if event["final"] and not self.final:
            self.final = event["final"]
            self.messages.append(Message.of("user", event["text"]))

    def _answered(self, event: Event) -> None:
        calls = tuple(ToolCall(call["name"], call["arguments"], call["id"]) for call in event["calls"])
        self.messages.append(Message.of("assistant", event["text"], tool_calls=calls))
        self.turns += 1
        self.usage = self.usage + Usage(*event["usage"])
        self.last_reason = cast(FinishReason, event["finish_reason"])
        self.pending = list(calls)
        if event["visible"]:
            self.texts.append(event["visible"])
        self.unread += len(event["unread"])
        for problem in event["unread"]:
            self.messages.append(Message.of("tool", f"error: {problem}", tool_call_id="unread"))
        self.answered = not calls and (bool(self.final) or not event["unread"])

    def _called(self, event: Event) -> None:
        self.running = ToolCall(event["name"], event["arguments"], event["id"])
        self.running_effects = event["effects"]

    def _returned(self, event: Event) -> None:
        call = next(call for call in self.pending if call.id == event["id"])
        self.pending.remove(call)
        self.running = None
        self.messages.append(Message.of("tool", event["content"], tool_call_id=call.id, name=call.name))
        self.tool_calls += bool(event["executed"])
        if event["is_error"]:
            key = call_key(call.name, call.arguments)
            self.failed[key] = self.failed.get(key, 0) + 1
            self.repeated = self.repeated or self.failed[key] > 2
        self.steps.append(
            {
                "tool": call.name,
                "arguments": dict(call.arguments),
                "content": event["content"],
                "data": event["data"],
                "is_error": event["is_error"],
            }
        )

    def _finished(self, event: Event) -> None:
        self.finished, self.text = event["reason"], event["text"]
        self.last_reason = cast(FinishReason, event["finish_reason"])
