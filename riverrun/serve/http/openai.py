"""The OpenAI-style routes: chat, completions, models, and our `score`; documents what they answer in /openapi.json.

Extensions beside OpenAI's fields: `steps` (what an agent did) next to `message`, `step` in streamed choices, and
digest, context_length, template_sha256, modalities in the list of models.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel

from riverrun.base.protocols import Completion, Delta
from riverrun.base.protocols import Request as Asked
from riverrun.base.types import TokenLogprob, ToolCall, Usage
from riverrun.serve.aside import run_in_thread
from riverrun.serve.desk import Place
from riverrun.serve.http.desk import HttpDesk, charge, key_of, read_request
from riverrun.serve.http.schema import (
    ChatBody,
    CompletionBody,
    ScoreBody,
    chat_requests,
    completion_requests,
    score_prefix,
)
from riverrun.web.errors import HttpError, json_bytes

__all__ = ["add_post", "add_routes", "usage_body"]


def add_routes(app: FastAPI, desk: HttpDesk) -> None:
    """Mount the routes over the desk's models, which may change while the server runs."""
    routes = _Routes(desk)
    add: Callable[..., None] = app.add_api_route
    add("/v1/models", routes.list_models, methods=["GET"], summary="The models served")
    add("/v1/models/{model:path}", routes.get_model, methods=["GET"], summary="One model")
    add_post(app, "/v1/chat/completions", routes.chat, ChatBody, "Answer a conversation")
    add_post(app, "/v1/completions", routes.complete, CompletionBody, "Continue a text")
    add_post(app, "/v1/score", routes.score, ScoreBody, "Log-probabilities of continuations")


def add_post(app: FastAPI, path: str, endpoint: Callable[..., Any], body: type[BaseModel], summary: str) -> None:
    """A route whose body is documented in /openapi.json."""
    schema = body.model_json_schema(ref_template="#/components/schemas/{model}")
    definitions = schema.pop("$defs", {})
    content = {"application/json": {"schema": _inline(schema, definitions)}}
    extra = {"requestBody": {"required": True, "content": content}}
    add: Callable[..., None] = app.add_api_route
    add(path, endpoint, methods=["POST"], summary=summary, openapi_extra=extra)


def _inline(schema: Any, definitions: Mapping[str, Any]) -> Any:
    """The schema with its references written out (the bodies are not FastAPI models, so nothing else defines them)."""
    if isinstance(schema, dict):
        if "$ref" in schema:
            return _inline(definitions[schema["$ref"].rpartition("/")[2]], definitions)
        return {key: _inline(value, definitions) for key, value in schema.items()}
    return [_inline(item, definitions) for item in schema] if isinstance(schema, list) else schema


class _Routes:
    def __init__(self, desk: HttpDesk) -> None:
        self.desk = desk
        self.created = int(time.time())

    async def list_models(self) -> Response:
        data = [await self._card(name) for name in self.desk.names()]
        return _json({"object": "list", "data": data})

    async def get_model(self, model: str) -> Response:
        return _json(await self._card(model))

    async def chat(self, request: Request) -> Response:
        body = await read_request(request, ChatBody)
        place, asked = self.desk.find(body.model), chat_requests(body, key=key_of(request))
        head = _head("chatcmpl", "chat.completion.chunk" if body.stream else "chat.completion", body.model)
        if body.stream:
            usage = body.stream_options is not None and body.stream_options.include_usage
            return self.desk.stream(request, place, asked, ChatChunks(head, usage, body.logprobs, answers=body.n))
        completions = await self.desk.run(request, place, asked)
        choices = []
        for index, completion in enumerate(completions):
            choice: dict[str, Any] = {
                "index": index,
                "message": _message(completion),
                "logprobs": _chat_logprobs(completion.logprobs) if body.logprobs else None,
                "finish_reason": completion.finish_reason,
            }
            if completion.steps:
                choice["steps"] = list(completion.steps)
            choices.append(choice)
        more = _prompt_part(completions[0])
        return _json({**head, "choices": choices, "usage": usage_of(completions, body.n), **more})

    async def complete(self, request: Request) -> Response:
        body = await read_request(request, CompletionBody)
        place, asked = self.desk.find(body.model), completion_requests(body, key=key_of(request))
        head = _head("cmpl", "text_completion", body.model)
        if body.stream:
            if body.echo:
                raise HttpError(400, "'echo' = true is not supported with 'stream'", code="unsupported", param="echo")
            usage = body.stream_options is not None and body.stream_options.include_usage
            chunks = TextChunks(head, usage, body.logprobs is not None, prompts=len(asked) // body.n, answers=body.n)
            return self.desk.stream(request, place, asked, chunks)
        completions = await self.desk.run(request, place, asked)
        choices = [
            await self._text_choice(body, place, request, completion, index)
            for index, (request, completion) in enumerate(zip(asked, completions, strict=True))
        ]
        more: dict[str, Any] = {}
        if len(completions) == body.n:
            more = _prompt_part(completions[0])
        elif body.prompt_logprobs is not None:  # several prompts: each answer shows its own
            choices = [each | _prompt_part(done) for each, done in zip(choices, completions, strict=True)]
        return _json({**head, "choices": choices, "usage": usage_of(completions, body.n), **more})

    async def _text_choice(
        self, body: CompletionBody, place: Place, asked: Asked, completion: Completion, index: int
    ) -> dict[str, Any]:
        text, shown = completion.message.text, list(completion.logprobs)
        before: list[TokenLogprob] = []
        if not body.max_tokens:  # the prompt alone was to be looked at
            text, shown = "", []
        if body.echo:
            prompt = asked.prompt or await run_in_thread(lambda: place.texts().detokenize(asked.prompt_ids))
            if body.logprobs is not None:
                first = (await run_in_thread(lambda: place.texts().tokenize(asked)))[0]
                before = [TokenLogprob(first, place.texts().piece(first), float("nan")), *completion.prompt_logprobs]
            text = prompt + text
        logprobs = _text_logprobs([*before, *shown]) if body.logprobs is not None else None
        return _text_choice(text, completion.finish_reason, index, logprobs)

    async def score(self, request: Request) -> Response:
        body = await read_request(request, ScoreBody)
        place, prefix = self.desk.find(body.model), score_prefix(body)
        scores = await run_in_thread(lambda: place.score(prefix, body.continuations))
        read = await run_in_thread(lambda: place.count(prefix))
        charge(request, Usage(read + sum(len(score.logprobs) for score in scores)))
        data = [
            {"index": i, "logprobs": list(s.logprobs), "is_greedy": s.is_greedy, "total": s.total}
            for i, s in enumerate(scores)
        ]
        return _json({"object": "list", "model": body.model, "data": data})

    async def _card(self, name: str) -> dict[str, Any]:
        place = self.desk.find(name)
        info = await run_in_thread(lambda: place.model.info)
        card = {
            "id": name,
            "object": "model",
            "created": self.created,
            "owned_by": "riverrun",
            "digest": info.digest,
            "context_length": info.context_length,
            "template_sha256": info.template_sha256,
            "modalities": list(info.modalities),
        }
        return card | ({"parent": place.name} if place.adapter else {})


def _json(value: Any) -> Response:
    return Response(json_bytes(value), media_type="application/json")


def _head(prefix: str, kind: str, model: str) -> dict[str, Any]:
    return {"id": f"{prefix}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}


def usage_of(completions: Sequence[Completion], answers: int) -> dict[str, Any]:
    """The counts of all; a prompt with several answers counts once."""
    return usage_body(total_of([completion.usage for completion in completions], answers))


def total_of(usages: Sequence[Usage], answers: int) -> Usage:
    first = Usage.total(usages[::answers])
    total = Usage.total(usages)
    return replace(total, prompt_tokens=first.prompt_tokens, cached_tokens=first.cached_tokens)


def usage_body(usage: Usage) -> dict[str, Any]:
    thought = {"completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens}}
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    } | (thought if usage.reasoning_tokens else {})


def _call(call: ToolCall) -> dict[str, Any]:
    """A tool call in OpenAI's form. One whose model gave no id, or a number within the answer, gets an id of its own:
    later turns name it."""
    own = call.id if call.id and not _NUMBER.fullmatch(call.id) else f"call_{uuid.uuid4().hex[:24]}"
    return {**call.to_openai(), "id": own}


_NUMBER = re.compile(r"call_\d+")


def _message(completion: Completion) -> dict[str, Any]:
    message = completion.message
    out: dict[str, Any] = {"role": "assistant", "content": message.text if message.content else None, "refusal": None}
    if message.reasoning:
        out["reasoning_content"] = message.reasoning
    if message.tool_calls:
        out["tool_calls"] = [_call(call) for call in message.tool_calls]
    elif out["content"] is None:
        out["content"] = ""
    return out


def _text_choice(
    text: str, reason: str | None, index: int = 0, logprobs: dict[str, Any] | None = None
) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}


def _prompt_part(completion: Completion) -> dict[str, Any]:
    """The prompt's tokens with their chances, in vLLM's form: one mapping by token id for each, null for the first."""
    if not completion.prompt_logprobs:
        return {}
    rows: list[dict[str, Any] | None] = [None]
    for token in completion.prompt_logprobs:
        near = {each.id: each for each in (*token.top, token)}
        rows.append({
            str(each.id): {"logprob": each.logprob, "decoded_token": _shown(each)} for each in near.values()
        })  # fmt: skip
    return {"prompt_logprobs": rows}


def _shown(token: TokenLogprob) -> str:
    return token.piece.decode("utf-8", "replace")


def _chat_logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    def one(token: TokenLogprob) -> dict[str, Any]:
        return {"token": _shown(token), "logprob": token.logprob, "bytes": list(token.piece)}

    content = [one(token) | {"top_logprobs": [one(each) for each in token.top]} for token in tokens]
    return {"content": content, "refusal": None}


def _text_logprobs(tokens: Sequence[TokenLogprob], offset: int = 0) -> dict[str, Any]:
    """The form of /v1/completions; a first token without a chance has null."""
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(_shown(token))
    known = [None if token.logprob != token.logprob else token.logprob for token in tokens]
    near = [
        None if logprob is None else {_shown(each): each.logprob for each in (token.top or (token,))}
        for token, logprob in zip(tokens, known, strict=True)
    ]
    return {
        "tokens": [_shown(token) for token in tokens],
        "token_logprobs": known,
        "top_logprobs": near,
        "text_offset": offsets,
    }


class _Chunks:
    """Several answers of one request in one stream: choices say by `index` which they belong to."""

    def __init__(
        self,
        head: Mapping[str, Any],
        include_usage: bool,
        logprobs: bool = False,
        *,
        prompts: int = 1,
        answers: int = 1,
    ) -> None:
        self.head, self.include_usage, self.logprobs, self.answers = head, include_usage, logprobs, answers
        self.count = prompts * answers
        self.usages: dict[int, Usage] = {}

    def _end(self, index: int, usage: Usage | None) -> list[dict[str, Any]]:
        """The counts of all, when the last answer is over."""
        self.usages[index] = usage or Usage()
        if not self.include_usage or len(self.usages) < self.count:
            return []
        usages = [self.usages[number] for number in range(self.count)]
        return [{**self.head, "choices": [], "usage": usage_body(total_of(usages, self.answers))}]


class ChatChunks(_Chunks):
    """Deltas of a chat as OpenAI chunks: role first, then text, steps and tool calls, the finish, the usage."""

    def __init__(self, head: Mapping[str, Any], include_usage: bool, logprobs: bool = False, **counts: int) -> None:
        super().__init__(head, include_usage, logprobs, **counts)
        self.calls = [0] * self.count

    def start(self) -> list[dict[str, Any]]:
        return [self._chunk({"role": "assistant", "content": ""}, index) for index in range(self.count)]

    def delta(self, delta: Delta, index: int = 0) -> list[dict[str, Any]]:
        out = []
        known = _chat_logprobs(delta.logprobs) if self.logprobs and delta.logprobs else None
        if delta.reasoning:
            out.append(self._chunk({"reasoning_content": delta.reasoning}, index, logprobs=known))
        elif delta.text or (delta.logprobs and not delta.tool_calls):
            out.append(self._chunk({"content": delta.text}, index, logprobs=known))
        if delta.step is not None:
            out.append(self._chunk({}, index, step=dict(delta.step)))
        for call in delta.tool_calls:
            part = {"index": self.calls[index], **_call(call)}
            out.append(self._chunk({"tool_calls": [part]}, index, logprobs=known))
            known = None
            self.calls[index] += 1
        if delta.finish_reason is not None:
            out.append(self._chunk({}, index, reason=delta.finish_reason))
            out += self._end(index, delta.usage)
        return out

    def _chunk(self, delta: dict[str, Any], index: int, *, reason: str | None = None, **rest: Any) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": None, **rest, "finish_reason": reason}
        return {**self.head, "choices": [choice], **({"usage": None} if self.include_usage else {})}


class TextChunks(_Chunks):
    """Deltas of a continued text as chunks of /v1/completions."""

    def __init__(self, head: Mapping[str, Any], include_usage: bool, logprobs: bool = False, **counts: int) -> None:
        super().__init__(head, include_usage, logprobs, **counts)
        self.offsets = [0] * self.count

    def start(self) -> list[dict[str, Any]]:
        return []

    def delta(self, delta: Delta, index: int = 0) -> list[dict[str, Any]]:
        out = []
        if delta.text or delta.logprobs or delta.finish_reason is not None:
            known = None
            if self.logprobs and delta.logprobs:
                known = _text_logprobs(delta.logprobs, self.offsets[index])
                self.offsets[index] += sum(len(_shown(token)) for token in delta.logprobs)
            out.append({**self.head, "choices": [_text_choice(delta.text, delta.finish_reason, index, known)]})
            if self.include_usage:
                out[-1]["usage"] = None
        if delta.finish_reason is not None:
            out += self._end(index, delta.usage)
        return out
