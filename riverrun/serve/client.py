"""Any OpenAI-style endpoint as a `LanguageModel`: ours, or another program's or company's.

Requests of one `generate` go out concurrently. Not covered: other APIs than chat completions and completions.
`score` needs our /v1/score; guides other than a JSON schema are refused.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from hashlib import sha256
from typing import Any

from riverrun.base.errors import InputError, UnsupportedError
from riverrun.base.protocols import Completion, Delta, ModelInfo, Request, Score, refuse
from riverrun.base.types import FinishReason, Guide, Message, SamplingParams, TokenLogprob, ToolCall, Usage
from riverrun.serve.http.transport import Transport

__all__ = ["RemoteModel"]

_REASONS: Mapping[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "abort": "abort",
    "content_filter": "abort",
}


class RemoteModel:
    """A model behind `base_url` (".../v1", or just the server's address).

    `attempts` counts the tries of one request (see `Transport` for which failures are tried again), `concurrency` the
    requests under way at once. Without our extension fields in GET /v1/models, `info` has context_length 0 (unknown),
    no template hash, and a digest of base_url and model: a change of the weights behind the name stays unseen.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key: str = "",
        timeout_seconds: float = 600.0,
        concurrency: int = 16,
        attempts: int = 4,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if concurrency < 1 or attempts < 1:
            raise InputError(f"concurrency ({concurrency}) and attempts ({attempts}) must be at least 1")
        self.model, self.concurrency = model, concurrency
        self._transport = Transport(
            base_url,
            api_key=api_key,
            timeout_seconds=timeout_seconds,
            connections=concurrency,
            attempts=attempts,
            sleep=sleep,
        )
        self.base_url = self._transport.base_url
        self._info: ModelInfo | None = None
        self._lock = threading.Lock()

    def close(self) -> None:
        """Give back the connections."""
        self._transport.close()

    def __enter__(self) -> RemoteModel:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def info(self) -> ModelInfo:
        """Asked for once, at first use."""
        with self._lock:
            if self._info is None:
                self._info = self._ask_info()
            return self._info

    def _ask_info(self) -> ModelInfo:
        _, answer = self._transport.ask("GET", "/models", allow=(404, 405))
        cards = answer.get("data") if isinstance(answer.get("data"), list) else []
        known = (card for card in cards or () if isinstance(card, Mapping) and card.get("id") == self.model)
        card: Mapping[str, Any] = next(known, {})
        length = card.get("context_length") or card.get("max_model_len") or 0
        return ModelInfo(
            self.model,
            str(card.get("digest") or sha256(f"{self.base_url}\0{self.model}".encode()).hexdigest()),
            length if isinstance(length, int) else 0,
            str(card.get("template_sha256") or ""),
            tuple(map(str, card.get("modalities") or ("text",))),
        )

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Answer all requests, `concurrency` at a time; the first failure is raised and drops those not yet sent."""
        if len(requests) <= 1:
            return [self._generate(request) for request in requests]
        with ThreadPoolExecutor(min(self.concurrency, len(requests)), "riverrun-client") as pool:
            try:
                return list(pool.map(self._generate, requests))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _generate(self, request: Request) -> Completion:
        path, body = self._body(request)
        _, answer = self._transport.ask("POST", path, body)
        try:
            choice = answer["choices"][0]
            given = {"content": choice["text"]} if path == "/completions" else choice["message"]
            text, thought = given.get("content") or "", given.get("reasoning_content") or ""
            calls = [_Function(part).add(part) for part in given.get("tool_calls") or ()]
            steps, reason = tuple(choice.get("steps") or ()), choice.get("finish_reason")
            usage, tokens = _usage(answer.get("usage")), _tokens(choice)
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            raise self._unreadable(path, error) from None
        text, message = _message(text, calls)
        message = replace(message, reasoning=thought)
        return Completion(message, _reason(reason, message), usage, text, steps, logprobs=tokens)

    def stream(self, request: Request) -> Iterator[Delta]:
        """Pieces as they arrive. Closing the iterator closes the connection, which aborts the request."""
        path, body = self._body(request)
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        calls: dict[int, _Function] = {}
        reason, usage = None, Usage()
        with self._transport.events(path, body) as events:
            for event in events:
                try:
                    usage = _usage(event["usage"]) if event.get("usage") else usage
                    for choice in event.get("choices") or ():
                        delta = choice.get("delta") or {}
                        for part in delta.get("tool_calls") or ():
                            calls.setdefault(part.get("index", len(calls)), _Function(part)).add(part)
                        text, step = choice.get("text") or delta.get("content"), choice.get("step")
                        reason = choice.get("finish_reason") or reason
                        tokens = _tokens(choice)
                        thought = delta.get("reasoning_content") or ""
                        if text or thought or tokens or step is not None:
                            yield Delta(text=text or "", step=step, logprobs=tokens, reasoning=thought)
                except (TypeError, AttributeError, ValueError) as error:
                    raise self._unreadable(path, error) from None
        if reason is None:
            raise InputError(f"the stream of {self.base_url}{path} ended without a finish reason: ask again")
        text, message = _message("", [calls[index] for index in sorted(calls)])
        if text or message.tool_calls:
            yield Delta(text=text, tool_calls=message.tool_calls)
        yield Delta(finish_reason=_reason(reason, message), usage=usage)

    def score(self, prefix: str | Sequence[Message], continuations: Sequence[str]) -> list[Score]:
        """Through POST /v1/score; UnsupportedError when the endpoint has none."""
        given = {"prefix": prefix} if isinstance(prefix, str) else {"messages": [m.to_openai() for m in prefix]}
        body = {"model": self.model, **given, "continuations": list(continuations)}
        status, answer = self._transport.ask("POST", "/score", body, allow=(404, 405))
        if status != 200:
            inner = answer.get("error")
            if isinstance(inner, Mapping) and inner.get("code") == "model_not_found":
                raise InputError(f"{self.base_url}/score refused: {inner.get('message')}")
            raise UnsupportedError(
                f"{self.base_url} has no /score: log-probabilities need a riverrun server, "
                "use one or a measure that generates"
            )
        try:
            scores = [Score(tuple(map(_logprob, item["logprobs"])), bool(item["is_greedy"])) for item in answer["data"]]
        except (KeyError, TypeError, ValueError) as error:
            raise self._unreadable("/score", error) from None
        if len(scores) != len(continuations):
            raise InputError(f"{self.base_url}/score gave {len(scores)} scores for {len(continuations)} continuations")
        return scores

    def _body(self, request: Request) -> tuple[str, dict[str, Any]]:
        """Path and JSON of a request. Sampling fields that are off are left out: not every endpoint knows them."""
        params = request.params
        refuse(request, self.base_url, "adapter", "prompt_logprobs")
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": params.max_tokens,
            "temperature": params.temperature,
            "top_p": params.top_p,
        }
        plain = SamplingParams()
        for name, own in _FIELDS.items():
            value = getattr(params, name)
            if value != getattr(plain, name):
                body[own] = list(value) if isinstance(value, tuple) else value
        if params.logit_bias:
            body["logit_bias"] = {str(token): bias for token, bias in params.logit_bias.items()}
        if params.guide is not None:
            body |= _guided(params.guide)
        if params.logprobs is not None:
            chat = {"logprobs": True, "top_logprobs": params.logprobs}
            body |= chat if request.messages else {"logprobs": params.logprobs}
        if request.timeout_seconds:
            body["timeout"] = request.timeout_seconds
        if request.forced_tools:
            all_of_them = set(request.forced_tools) == {tool.name for tool in request.tools}
            if len(request.forced_tools) > 1 and not all_of_them:
                raise UnsupportedError("one tool can be forced over HTTP, or all: name one, or offer fewer")
            named = {"type": "function", "function": {"name": request.forced_tools[0]}}
            body["tool_choice"] = "required" if all_of_them else named
            body["parallel_tool_calls"] = request.parallel_tool_calls
        if request.template_variables:
            body["chat_template_kwargs"] = dict(request.template_variables)
        if request.messages:
            body["messages"] = [message.to_openai() for message in request.messages]
            if request.tools:
                body["tools"] = [tool.to_openai() for tool in request.tools]
            return "/chat/completions", body
        if request.tools:
            raise UnsupportedError("tools need messages, the request has a raw prompt: send messages")
        return "/completions", body | {"prompt": request.prompt or list(request.prompt_ids)}

    def _unreadable(self, path: str, error: Exception) -> InputError:
        return InputError(f"{self.base_url}{path} gave an answer that is not OpenAI's ({error!r}): check the address")


_FIELDS = {
    "top_k": "top_k",
    "stop": "stop",
    "seed": "seed",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "no_repeat_ngram": "no_repeat_ngram_size",
    "bad_words": "bad_words",
    "stop_ids": "stop_token_ids",
    "min_tokens": "min_tokens",
    "ignore_end": "ignore_eos",
}
"""Fields of SamplingParams by their names over HTTP (OpenAI's, and vLLM's where OpenAI has none)."""


def _guided(guide: Guide) -> dict[str, Any]:
    """A guide as OpenAI's response_format, or vLLM's fields where OpenAI has none."""
    if guide.kind == "json_schema":
        schema = {"name": "answer", "schema": json.loads(guide.value), "strict": True}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
    return {f"guided_{guide.kind}": json.loads(guide.value) if guide.kind == "choice" else guide.value}


def _tokens(choice: Mapping[str, Any]) -> tuple[TokenLogprob, ...]:
    """The chances of an answer's tokens; ids are not told over HTTP, so they are -1."""
    found = choice.get("logprobs") or {}
    if "content" in found:
        return tuple(
            TokenLogprob(-1, bytes(each["bytes"] or ()), float(each["logprob"]), tuple(
                TokenLogprob(-1, bytes(near["bytes"] or ()), float(near["logprob"])) for near in each["top_logprobs"]
            ))
            for each in found["content"] or ()
        )  # fmt: skip
    rows = zip(found.get("tokens", ()), found.get("token_logprobs", ()), found.get("top_logprobs", ()), strict=True)
    return tuple(
        TokenLogprob(-1, text.encode(), float(logprob), tuple(TokenLogprob(-1, t.encode(), p) for t, p in near.items()))
        for text, logprob, near in rows
    )


class _Function:
    """A tool call as it arrives, whole or in pieces."""

    def __init__(self, part: Mapping[str, Any]) -> None:
        self.id, self.name, self.arguments = str(part.get("id") or ""), "", ""

    def add(self, part: Mapping[str, Any]) -> _Function:
        function = part.get("function") or {}
        self.name += str(function.get("name") or "")
        self.arguments += str(function.get("arguments") or "")
        return self

    def call(self) -> ToolCall | None:
        """None when the arguments are not a JSON object (a model may write anything)."""
        try:
            arguments = json.loads(self.arguments or "{}")
        except (ValueError, RecursionError):
            return None
        return ToolCall(self.name, arguments, self.id) if isinstance(arguments, dict) and self.name else None


def _message(text: str, functions: Sequence[_Function]) -> tuple[str, Message]:
    """Text and message of an answer; a call that cannot be read stays visible as text."""
    calls = [function.call() for function in functions]
    for function, call in zip(functions, calls, strict=True):
        if call is None:
            text += f"{function.name}({function.arguments})"
    return text, Message.of("assistant", text, tool_calls=tuple(call for call in calls if call is not None))


def _reason(value: Any, message: Message) -> FinishReason:
    reason = _REASONS.get(str(value), "stop")
    return "stop" if reason == "tool_calls" and not message.tool_calls else reason


def _usage(value: Any) -> Usage:
    if not isinstance(value, Mapping):
        return Usage()
    details = value.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, Mapping) else 0
    details = value.get("completion_tokens_details")
    thought = details.get("reasoning_tokens") if isinstance(details, Mapping) else 0
    prompt, answer = int(value.get("prompt_tokens") or 0), int(value.get("completion_tokens") or 0)
    return Usage(prompt, answer, int(cached or 0), int(thought or 0))


def _logprob(value: Any) -> float:
    """JSON has no infinity: null is a probability of zero."""
    return float("-inf") if value is None else float(value)
