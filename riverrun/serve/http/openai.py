"""The OpenAI-style routes: chat, completions, models, and our `score`; documents what they answer in /openapi.json.

Extensions beside OpenAI's fields: `steps` (what an agent did) next to `message`, `step` in streamed choices, and
digest, context_length, template_sha256, modalities in the list of models.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel

from riverrun.base.protocols import Completion, Delta, LanguageModel
from riverrun.base.types import ToolCall, Usage
from riverrun.serve.http.schema import (
    ChatBody,
    CompletionBody,
    ScoreBody,
    chat_request,
    completion_requests,
    read_body,
    score_prefix,
)
from riverrun.serve.http.streaming import EventStream, run_in_thread
from riverrun.web.app import parse_json
from riverrun.web.errors import HttpError, json_bytes

__all__ = ["add_routes"]

M = TypeVar("M", bound=BaseModel)


def add_routes(app: FastAPI, models: Mapping[str, LanguageModel], *, keep_alive_seconds: float) -> None:
    """Mount the routes over `models`, which may change while the server runs."""
    routes = _Routes(models, keep_alive_seconds)
    add: Callable[..., None] = app.add_api_route
    add("/v1/models", routes.list_models, methods=["GET"], summary="The models served")
    add("/v1/models/{model:path}", routes.get_model, methods=["GET"], summary="One model")
    for path, endpoint, body, summary in (
        ("/v1/chat/completions", routes.chat, ChatBody, "Answer a conversation"),
        ("/v1/completions", routes.complete, CompletionBody, "Continue a text"),
        ("/v1/score", routes.score, ScoreBody, "Log-probabilities of continuations"),
    ):
        schema = body.model_json_schema(ref_template="#/components/schemas/{model}")
        app_schemas = schema.pop("$defs", {})
        content = {"application/json": {"schema": _inline(schema, app_schemas)}}
        extra = {"requestBody": {"required": True, "content": content}}
        add(path, endpoint, methods=["POST"], summary=summary, openapi_extra=extra)


def _inline(schema: Any, definitions: Mapping[str, Any]) -> Any:
    """The schema with its references written out (the bodies are not FastAPI models, so nothing else defines them)."""
    if isinstance(schema, dict):
        if "$ref" in schema:
            return _inline(definitions[schema["$ref"].rpartition("/")[2]], definitions)
        return {key: _inline(value, definitions) for key, value in schema.items()}
    return [_inline(item, definitions) for item in schema] if isinstance(schema, list) else schema


class _Routes:
    def __init__(self, models: Mapping[str, LanguageModel], keep_alive_seconds: float) -> None:
        self.models, self.keep_alive_seconds = models, keep_alive_seconds
        self.created = int(time.time())

    async def list_models(self) -> Response:
        data = [await self._card(name) for name in list(self.models)]
        return _json({"object": "list", "data": data})

    async def get_model(self, model: str) -> Response:
        self._find(model)
        return _json(await self._card(model))

    async def chat(self, request: Request) -> Response:
        body = await _read(request, ChatBody)
        model, asked = self._find(body.model), chat_request(body)
        if body.stream:
            usage = body.stream_options is not None and body.stream_options.include_usage
            head = _head("chatcmpl", "chat.completion.chunk", body.model)
            return EventStream(
                lambda: model.stream(asked), ChatChunks(head, usage), keep_alive_seconds=self.keep_alive_seconds
            )
        [completion] = await run_in_thread(lambda: model.generate([asked]))
        choice: dict[str, Any] = {
            "index": 0,
            "message": _message(completion),
            "logprobs": None,
            "finish_reason": completion.finish_reason,
        }
        if completion.steps:
            choice["steps"] = list(completion.steps)
        head = _head("chatcmpl", "chat.completion", body.model)
        return _json({**head, "choices": [choice], "usage": _usage(completion.usage)})

    async def complete(self, request: Request) -> Response:
        body = await _read(request, CompletionBody)
        model, asked = self._find(body.model), completion_requests(body)
        head = _head("cmpl", "text_completion", body.model)
        if body.stream:
            usage = body.stream_options is not None and body.stream_options.include_usage
            return EventStream(
                lambda: model.stream(asked[0]), TextChunks(head, usage), keep_alive_seconds=self.keep_alive_seconds
            )
        completions = await run_in_thread(lambda: model.generate(asked))
        choices = [_text_choice(c.message.text, c.finish_reason, i) for i, c in enumerate(completions)]
        return _json({**head, "choices": choices, "usage": _usage(Usage.total(c.usage for c in completions))})

    async def score(self, request: Request) -> Response:
        body = await _read(request, ScoreBody)
        model, prefix = self._find(body.model), score_prefix(body)
        scores = await run_in_thread(lambda: model.score(prefix, body.continuations))
        data = [
            {"index": i, "logprobs": list(s.logprobs), "is_greedy": s.is_greedy, "total": s.total}
            for i, s in enumerate(scores)
        ]
        return _json({"object": "list", "model": body.model, "data": data})

    def _find(self, name: str) -> LanguageModel:
        model = self.models.get(name)
        if model is None:
            known = ", ".join(self.models) or "none"
            raise HttpError(
                404, f"there is no model '{name}': this server has {known}", code="model_not_found", param="model"
            )
        return model

    async def _card(self, name: str) -> dict[str, Any]:
        model = self._find(name)
        info = await run_in_thread(lambda: model.info)
        return {
            "id": name,
            "object": "model",
            "created": self.created,
            "owned_by": "riverrun",
            "digest": info.digest,
            "context_length": info.context_length,
            "template_sha256": info.template_sha256,
            "modalities": list(info.modalities),
        }


async def _read(request: Request, model: type[M]) -> M:
    data = parse_json(await request.body(), request.headers.get("content-type", ""))
    return read_body(model, data)  # type: ignore[type-var]


def _json(value: Any) -> Response:
    return Response(json_bytes(value), media_type="application/json")


def _head(prefix: str, kind: str, model: str) -> dict[str, Any]:
    return {"id": f"{prefix}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def _call(call: ToolCall) -> dict[str, Any]:
    """A tool call in OpenAI's form; a model that names no id gets one here."""
    return {**call.to_openai(), "id": call.id or f"call_{uuid.uuid4().hex[:24]}"}


def _message(completion: Completion) -> dict[str, Any]:
    message = completion.message
    out: dict[str, Any] = {"role": "assistant", "content": message.text if message.content else None, "refusal": None}
    if message.tool_calls:
        out["tool_calls"] = [_call(call) for call in message.tool_calls]
    elif out["content"] is None:
        out["content"] = ""
    return out


def _text_choice(text: str, reason: str | None, index: int = 0) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": reason}


class ChatChunks:
    """Deltas of a chat as OpenAI chunks: role first, then text, steps and tool calls, the finish, the usage."""

    def __init__(self, head: Mapping[str, Any], include_usage: bool) -> None:
        self.head, self.include_usage, self.calls = head, include_usage, 0

    def start(self) -> list[dict[str, Any]]:
        return [self._chunk({"role": "assistant", "content": ""})]

    def delta(self, delta: Delta) -> list[dict[str, Any]]:
        out = []
        if delta.text:
            out.append(self._chunk({"content": delta.text}))
        if delta.step is not None:
            out.append(self._chunk({}, step=dict(delta.step)))
        for call in delta.tool_calls:
            out.append(self._chunk({"tool_calls": [{"index": self.calls, **_call(call)}]}))
            self.calls += 1
        if delta.finish_reason is not None:
            out.append(self._chunk({}, reason=delta.finish_reason))
            if self.include_usage:
                out.append({**self.head, "choices": [], "usage": _usage(delta.usage or Usage())})
        return out

    def _chunk(self, delta: dict[str, Any], *, reason: str | None = None, **rest: Any) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, **rest, "logprobs": None, "finish_reason": reason}
        return {**self.head, "choices": [choice], **({"usage": None} if self.include_usage else {})}


class TextChunks:
    """Deltas of a continued text as chunks of /v1/completions."""

    def __init__(self, head: Mapping[str, Any], include_usage: bool) -> None:
        self.head, self.include_usage = head, include_usage

    def start(self) -> list[dict[str, Any]]:
        return []

    def delta(self, delta: Delta) -> list[dict[str, Any]]:
        out = []
        if delta.text or delta.finish_reason is not None:
            out.append({**self.head, "choices": [_text_choice(delta.text, delta.finish_reason)]})
            if self.include_usage:
                out[-1]["usage"] = None
        if delta.finish_reason is not None and self.include_usage:
            out.append({**self.head, "choices": [], "usage": _usage(delta.usage or Usage())})
        return out
