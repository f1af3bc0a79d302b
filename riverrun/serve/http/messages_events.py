"""A message of the Messages API, streamed as its events or whole; and its errors.

Source: Anthropic's API reference, "Streaming messages" and "Errors". The first event cannot know the prompt's tokens:
all counts come with message_delta.
"""

from __future__ import annotations

import json
import uuid
from typing import Any

from riverrun.base.protocols import Completion, Delta
from riverrun.base.types import Usage
from riverrun.serve.http.answer_parts import AnswerParts, Part, deltas_of
from riverrun.serve.http.messages_body import MessagesBody
from riverrun.web.errors import Dialect, HttpError

__all__ = ["DIALECT", "MessageEvents"]

Event = dict[str, Any]
_ERRORS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


class MessageEvents:
    """Deltas as events (`NamedEvents`)."""

    def __init__(self, body: MessagesBody) -> None:
        self._stops, self._most = body.stop_sequences, body.max_tokens
        self._parts = AnswerParts()
        self.message: dict[str, Any] = {
            "id": f"msg_{uuid.uuid4().hex}",
            "type": "message",
            "role": "assistant",
            "model": body.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": _usage(Usage()),
        }

    def whole(self, done: Completion) -> dict[str, Any]:
        """The message of an answer that was not streamed. HttpError for one that was ended by somebody."""
        for delta in deltas_of(done):
            self.delta(delta)
        if done.finish_reason == "abort":
            raise _aborted()
        self.end(None)
        return self.message

    def start(self) -> list[Event]:
        return [{"type": "message_start", "message": {**self.message, "content": []}}]

    def delta(self, delta: Delta, index: int = 0) -> list[Event]:
        return [event for part in self._parts.feed(delta) for event in self._written(part)]

    def end(self, failure: HttpError | None) -> list[Event]:
        if failure is None and self._parts.reason == "abort":
            failure = _aborted()
        if failure is not None:
            return [_error(failure)]
        done = self._parts
        out = [event for part in done.close() for event in self._written(part)]
        last = {"stop_reason": self._reason(), "stop_sequence": done.stopped_by or None}
        self.message |= {**last, "usage": _usage(done.usage)}
        more = {"steps": [dict(step) for step in done.steps]} if done.steps else {}
        self.message |= more
        delta = {"type": "message_delta", "delta": last, "usage": self.message["usage"], **more}
        return [*out, delta, {"type": "message_stop"}]

    def _reason(self) -> str:
        """Why the model stopped, in Anthropic's words."""
        done = self._parts
        if done.reason == "length":
            full = done.usage.completion_tokens < self._most
            return "model_context_window_exceeded" if full else "max_tokens"
        if done.reason == "tool_calls":
            return "tool_use"
        return "stop_sequence" if done.stopped_by else "end_turn"

    def _written(self, part: Part) -> list[Event]:
        where = {"index": part.place}
        if part.call is not None:
            # a codec counts the calls of one answer: such an id would come again in the next
            call_id = f"toolu_{uuid.uuid4().hex[:24]}"
            block = {"type": "tool_use", "id": call_id, "name": part.call.name, "input": dict(part.call.arguments)}
            self.message["content"].append(block)
            text = json.dumps(block["input"], ensure_ascii=False)
            return [
                {"type": "content_block_start", **where, "content_block": {**block, "input": {}}},
                {"type": "content_block_delta", **where, "delta": {"type": "input_json_delta", "partial_json": text}},
                {"type": "content_block_stop", **where},
            ]
        kind = "thinking" if part.kind == "thought" else "text"
        signed = {"signature": ""} if kind == "thinking" else {}
        if part.step == "open":
            return [{"type": "content_block_start", **where, "content_block": {"type": kind, kind: "", **signed}}]
        if part.step == "more":
            return [{"type": "content_block_delta", **where, "delta": {"type": f"{kind}_delta", kind: part.text}}]
        self.message["content"].append({"type": kind, kind: part.text, **signed})
        return [{"type": "content_block_stop", **where}]


def _usage(usage: Usage) -> dict[str, Any]:
    """Tokens read from the cache are none of the input's."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
    }


def _aborted() -> HttpError:
    return HttpError(400, "the answer was ended before it was complete", code="aborted")


def _error(error: HttpError, request_id: str = "") -> dict[str, Any]:
    kind = _ERRORS.get(error.status) or ("api_error" if error.status >= 500 else "invalid_request_error")
    body = {"type": "error", "error": {"type": kind, "message": str(error)}}
    return body | ({"request_id": request_id} if request_id else {})


DIALECT = Dialect(_error, "Request-Id")
"""How the routes of the Messages API speak."""
