"""A response of the Responses API, streamed as its typed events or whole.

Source: OpenAI's API reference, "Streaming events" of the Responses API: every event has a `sequence_number`; an item
opens, its part opens, goes on and closes, the item closes; the last event carries the whole response.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from riverrun.base.protocols import Completion, Delta
from riverrun.base.types import Usage
from riverrun.serve.http.answer_parts import AnswerParts, Part, deltas_of
from riverrun.serve.http.responses_body import ResponsesBody
from riverrun.serve.http.responses_items import call_item, new_id
from riverrun.web.errors import HttpError

__all__ = ["ResponseEvents", "response_head"]

Event = dict[str, Any]
_TEXT = {"thought": "reasoning_text", "text": "output_text"}


def response_head(body: ResponsesBody) -> dict[str, Any]:
    """The response before its answer: what was asked for, as it is honoured."""
    wanted = body.text.format
    form = wanted.model_dump(by_alias=True, exclude_none=True) if wanted else {"type": "text"}
    return {
        "id": new_id("resp"),
        "object": "response",
        "created_at": int(time.time()),
        "completed_at": None,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions or None,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata,
        "model": body.model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls,
        "previous_response_id": body.previous_response_id or None,
        "reasoning": {"effort": None, "summary": None},
        "store": body.store,
        "temperature": body.temperature,
        "text": {"format": form},
        "tool_choice": body.tool_choice,
        "tools": body.tools,
        "top_p": body.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": body.user or None,
    }


class ResponseEvents:
    """Deltas as events (`NamedEvents`). `keep` gets the response when it is finished, before the client does."""

    def __init__(self, head: Mapping[str, Any], keep: Callable[[dict[str, Any]], None]) -> None:
        self.response = dict(head)
        self._keep, self._parts = keep, AnswerParts()
        self._output: list[dict[str, Any]] = []
        self._item: dict[str, Any] = {}
        self._number = 0

    def whole(self, done: Completion) -> dict[str, Any]:
        """The response to an answer that was not streamed."""
        for delta in deltas_of(done):
            self.delta(delta)
        self.end(None)
        return self.response

    def start(self) -> list[Event]:
        first = {"response": dict(self.response)}
        return [self._event("response.created", **first), self._event("response.in_progress", **first)]

    def delta(self, delta: Delta, index: int = 0) -> list[Event]:
        return [event for part in self._parts.feed(delta) for event in self._written(part)]

    def end(self, failure: HttpError | None) -> list[Event]:
        if failure is not None:
            error = {"code": _error_code(failure), "message": str(failure)}
            self.response |= {"status": "failed", "error": error, "output": self._output}
            return [self._event("response.failed", response=self.response)]
        done = self._parts
        out = [event for part in done.close() for event in self._written(part)]
        if done.reason not in ("length", "abort") and (not self._output or self._output[-1]["type"] == "reasoning"):
            place = len(self._output)  # an answer without a word is a message all the same
            out += [e for step in ("open", "close") for e in self._text(Part("text", step, place))]  # type: ignore[arg-type]
        status, name = "completed", "response.completed"
        if done.reason == "length":
            status, name = "incomplete", "response.incomplete"
            self.response["incomplete_details"] = {"reason": "max_output_tokens"}
        elif done.reason == "abort":
            status, name = "cancelled", "response.incomplete"
        self.response |= {
            "status": status,
            "completed_at": int(time.time()) if status == "completed" else None,
            "output": self._output,
            "usage": _usage(done.usage),
        }
        if done.steps:
            self.response["steps"] = [dict(step) for step in done.steps]
        self._keep(self.response)
        return [*out, self._event(name, response=self.response)]

    def _written(self, part: Part) -> list[Event]:
        return self._call(part) if part.call else self._text(part)

    def _text(self, part: Part) -> list[Event]:
        """A step of a thought or a text."""
        kind = _TEXT[part.kind]
        where: dict[str, Any] = {"output_index": part.place, "content_index": 0}
        logprobs: dict[str, Any] = {} if part.kind == "thought" else {"logprobs": []}
        if part.step == "open":
            self._item = _open_item(part.kind)
            return [
                self._event("response.output_item.added", output_index=part.place, item=self._item),
                self._event("response.content_part.added", item_id=self._item["id"], **where, part=_content(kind, "")),
            ]
        where["item_id"] = self._item["id"]
        if part.step == "more":
            return [self._event(f"response.{kind}.delta", **where, delta=part.text, **logprobs)]
        cut = part.last and self._parts.reason in ("length", "abort")
        content = _content(kind, part.text)
        item = {**self._item, "status": "incomplete" if cut else "completed", "content": [content]}
        self._output.append(item)
        return [
            self._event(f"response.{kind}.done", **where, text=part.text, **logprobs),
            self._event("response.content_part.done", **where, part=content),
            self._event("response.output_item.done", output_index=part.place, item=item),
        ]

    def _call(self, part: Part) -> list[Event]:
        assert part.call is not None
        item = call_item(part.call.name, part.call.arguments)
        self._output.append(item)
        where = {"item_id": item["id"], "output_index": part.place}
        opened = {**item, "status": "in_progress", "arguments": ""}
        text = item["arguments"]
        return [
            self._event("response.output_item.added", output_index=part.place, item=opened),
            self._event("response.function_call_arguments.delta", **where, delta=text),
            self._event("response.function_call_arguments.done", **where, arguments=text),
            self._event("response.output_item.done", output_index=part.place, item=item),
        ]

    def _event(self, name: str, **rest: Any) -> Event:
        event = {"type": name, "sequence_number": self._number, **rest}
        self._number += 1
        return event


def _open_item(kind: str) -> dict[str, Any]:
    if kind == "thought":
        return {"type": "reasoning", "id": new_id("rs"), "status": "in_progress", "summary": [], "content": []}
    return {"type": "message", "id": new_id("msg"), "status": "in_progress", "role": "assistant", "content": []}


def _content(kind: str, text: str) -> dict[str, Any]:
    more: dict[str, Any] = {"annotations": [], "logprobs": []} if kind == "output_text" else {}
    return {"type": kind, "text": text, **more}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.total_tokens,
    }


def _error_code(failure: HttpError) -> str:
    """OpenAI's words for the errors of a response."""
    if failure.status == 429:
        return "rate_limit_exceeded"
    return "invalid_prompt" if failure.status in (400, 413) else "server_error"
