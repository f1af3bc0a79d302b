"""What a request may hold: every accepted field has an effect, every other known one is refused by name.

A field that is null, or has the value that OpenAI documents as its default, says nothing and is accepted. Defaults of
sampling are those of `SamplingParams` (greedy, 256 tokens), not OpenAI's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from riverrun.base.errors import InputError, nearest
from riverrun.base.protocols import Request
from riverrun.base.types import Message, SamplingParams, ToolSpec
from riverrun.web.errors import HttpError

__all__ = [
    "ChatBody",
    "CompletionBody",
    "ScoreBody",
    "chat_request",
    "completion_requests",
    "read_body",
    "score_prefix",
]

_INT64 = 2**63
Count = Annotated[int, Field(ge=0, lt=2**31)]


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    model: str = Field(description="one of the ids that GET /v1/models lists")


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    include_usage: bool = Field(False, description="send the token counts in a last chunk without choices")


class _Sampling(_Body):
    max_tokens: Count = Field(SamplingParams().max_tokens, description="most tokens to generate")
    temperature: float = Field(SamplingParams().temperature, description="0 (greedy) to 2")
    top_p: float = Field(SamplingParams().top_p, description="above 0, at most 1 (off)")
    top_k: Count = Field(SamplingParams().top_k, description="0 is off")
    stop: str | list[str] = Field(default=[], description="texts that end the answer and are left out of it")
    seed: int | None = Field(None, ge=-_INT64, lt=_INT64, description="the same seed gives the same answer")
    stream: bool = Field(False, description="answer in server-sent events")
    stream_options: StreamOptions | None = None
    user: str = Field("", description="a label for the caller's own use; it changes nothing")


class ChatBody(_Sampling):
    """POST /v1/chat/completions"""

    messages: list[Any] = Field(description="OpenAI chat messages", min_length=1)
    max_completion_tokens: Count | None = Field(None, description="the newer name of max_tokens")
    tools: list[Any] = Field(default=[], description="OpenAI function tools")
    tool_choice: Literal["auto", "none"] = Field("auto", description="'none' hides the tools from the model")


class CompletionBody(_Sampling):
    """POST /v1/completions"""

    prompt: str | list[str] = Field(description="one text, or several (not with stream)")


class ScoreBody(_Body):
    """POST /v1/score: log-probabilities of continuations after a text or after messages"""

    prefix: str | None = None
    messages: list[Any] | None = None
    continuations: list[str] = Field(min_length=1)


# Known fields that are not offered -> (values that ask for nothing, what to do instead).
_NO_GUIDE = "ask for the form in the prompt"
_REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "n": ((1,), "n=1 is supported: send the request several times with different seeds"),
    "best_of": ((1,), "best_of=1 is supported"),
    "logprobs": ((False,), "logprobs=false is supported: POST /v1/score gives log-probabilities of given texts"),
    "top_logprobs": ((0,), "top_logprobs=0 is supported"),
    "prompt_logprobs": ((), "POST /v1/score gives log-probabilities of given texts"),
    "echo": ((False,), "echo=false is supported"),
    "suffix": (("",), "a suffix cannot be filled up to"),
    "response_format": (({"type": "text"},), f"{{'type': 'text'}} is supported: {_NO_GUIDE}"),
    "presence_penalty": ((0,), "0 is supported"),
    "frequency_penalty": ((0,), "0 is supported"),
    "repetition_penalty": ((1,), "1 is supported"),
    "logit_bias": (({},), "no bias ({}) is supported"),
    "min_p": ((0,), "0 is supported: use top_p or top_k"),
    "min_tokens": ((0,), "0 is supported"),
    "ignore_eos": ((False,), "false is supported"),
    "parallel_tool_calls": ((True,), "true is supported: the model decides how many tools it calls"),
    "functions": (([],), "send 'tools' instead"),
    "function_call": ((), "send 'tool_choice' ('auto' or 'none') instead"),
    "modalities": ((["text"],), "['text'] is supported"),
    "audio": ((), "only text is generated"),
    "prediction": ((), "leave it out"),
    "reasoning_effort": ((), "leave it out"),
    "verbosity": (("medium",), "leave it out"),
    "service_tier": (("auto", "default"), "'auto' is supported"),
    "store": ((False,), "false is supported: nothing is stored"),
    "metadata": (({},), "nothing is stored, so nothing can be labelled: use 'user'"),
    "prompt_cache_key": ((), "leave it out"),
    "safety_identifier": ((), "use 'user'"),
    "web_search_options": ((), "offer a tool instead"),
    "guided_json": ((), _NO_GUIDE),
    "guided_regex": ((), _NO_GUIDE),
    "guided_choice": ((), "POST /v1/score compares given texts"),
    "guided_grammar": ((), _NO_GUIDE),
}

B = TypeVar("B", bound=_Body)


def read_body(model: type[B], data: Mapping[str, Any]) -> B:
    """The validated body; HttpError 400 names the field, its value and what is supported."""
    given = {key: value for key, value in data.items() if value is not None}
    for name in [name for name in given if name not in model.model_fields and name in _REFUSED]:
        allowed, advice = _REFUSED[name]
        if not any(_same(given[name], value) for value in allowed):
            raise _unsupported(name, given[name], advice)
        del given[name]
    if issubclass(model, ChatBody):
        choice = given.get("tool_choice", "auto")
        if choice == "required" or isinstance(choice, Mapping):
            raise _unsupported("tool_choice", choice, "'auto' and 'none' are supported")
    options = given.get("stream_options")
    if isinstance(options, Mapping):
        given["stream_options"] = {k: v for k, v in options.items() if (k, v) != ("include_obfuscation", False)}
    try:
        body = model.model_validate(given)
    except ValidationError as error:
        raise _explain(model, error) from None
    if isinstance(body, _Sampling) and body.stream_options is not None and not body.stream:
        raise HttpError(
            400, "'stream_options' is given without 'stream': true", code="invalid_request", param="stream_options"
        )
    return body


def _same(value: Any, allowed: Any) -> bool:
    """Equal, where a boolean is not a number (1 == True in Python)."""
    return isinstance(value, bool) == isinstance(allowed, bool) and bool(value == allowed)


def _unsupported(name: str, value: Any, advice: str) -> HttpError:
    return HttpError(400, f"'{name}' = {_shown(value)} is not supported: {advice}", code="unsupported", param=name)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 120 else text[:117] + "..."


def _explain(model: type[_Body], error: ValidationError) -> HttpError:
    # a union reports one error per branch, with the branch's name in the place: the deepest one says most
    problems = error.errors(include_url=False)
    item = max((p for p in problems if p["loc"][0] == problems[0]["loc"][0]), key=lambda p: len(p["loc"]))
    first, *rest = item["loc"]
    places = [str(first), *(str(part) for part in rest if part not in ("str", "list[str]"))]
    place = ".".join(places)
    if item["type"] == "extra_forbidden":
        fields = StreamOptions.model_fields if places[0] == "stream_options" else model.model_fields
        return HttpError(
            400, f"unknown field '{place}'.{nearest(places[-1], fields)}", code="unknown_field", param=place
        )
    if item["type"] == "missing":
        return HttpError(400, f"field '{place}' is required", code="invalid_request", param=place)
    message = item["msg"][:1].lower() + item["msg"][1:]
    return HttpError(400, f"'{place}' = {_shown(item.get('input'))}: {message}", code="invalid_request", param=place)


def _params(body: _Sampling, max_tokens: int) -> SamplingParams:
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        stop=(body.stop,) if isinstance(body.stop, str) else tuple(body.stop),
        seed=body.seed,
    )


def chat_request(body: ChatBody) -> Request:
    """The model's request; InputError names the message or tool that cannot be read."""
    limit = body.max_tokens
    if body.max_completion_tokens is not None:
        if "max_tokens" in body.model_fields_set and body.max_tokens != body.max_completion_tokens:
            raise HttpError(
                400,
                f"'max_tokens' = {body.max_tokens} and 'max_completion_tokens' = {body.max_completion_tokens} differ: "
                "send one of them",
                code="invalid_request",
                param="max_completion_tokens",
            )
        limit = body.max_completion_tokens
    tools = tuple(_tool(value, index) for index, value in enumerate(body.tools))
    if body.tool_choice == "none":
        tools = ()
    return Request(messages=_messages(body.messages), tools=tools, params=_params(body, limit))


def completion_requests(body: CompletionBody) -> list[Request]:
    """One request per prompt."""
    prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    if any(not prompt for prompt in prompts) or not prompts:
        raise HttpError(
            400, "'prompt' must hold at least one text, none of them empty", code="invalid_request", param="prompt"
        )
    if body.stream and len(prompts) > 1:
        raise HttpError(
            400,
            f"'prompt' has {len(prompts)} texts: with 'stream' one is supported",
            code="unsupported",
            param="prompt",
        )
    return [Request(prompt=prompt, params=_params(body, body.max_tokens)) for prompt in prompts]


def score_prefix(body: ScoreBody) -> str | tuple[Message, ...]:
    if (body.prefix is None) == (body.messages is None):
        raise HttpError(400, "give either 'prefix' (a text) or 'messages'", code="invalid_request", param="prefix")
    return _messages(body.messages) if body.messages is not None else (body.prefix or "")


def _messages(values: Sequence[Any]) -> tuple[Message, ...]:
    return tuple(_message(value, index) for index, value in enumerate(values))


def _message(value: Any, index: int) -> Message:
    try:
        message = Message.from_openai(value)
        for call in message.tool_calls:  # their arguments are JSON inside JSON: half a surrogate pair can hide there
            json.dumps(call.arguments, ensure_ascii=False).encode("utf-8")
    except InputError as error:
        raise type(error)(f"messages.{index}: {error}") from None
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise HttpError(
            400, f"messages.{index} is not an OpenAI chat message: {error}", code="invalid_request", param="messages"
        ) from None
    return message


def _tool(value: Any, index: int) -> ToolSpec:
    if not isinstance(value, Mapping):
        raise HttpError(
            400, f"tools.{index} must be an object, it is {_shown(value)}", code="invalid_request", param="tools"
        )
    function = value.get("function")
    known: tuple[tuple[Any, set[str]], ...] = (
        (value, {"type", "function"}),
        (function, {"name", "description", "parameters", "strict"}),
    )
    for part, names in known:
        for name in part if isinstance(part, Mapping) else ():
            if name not in names or (name == "strict" and part[name]):
                raise _unsupported(
                    f"tools.{index}.{name}", part[name], f"known: {', '.join(sorted(names - {'strict'}))}"
                )
    try:
        return ToolSpec.from_openai(value)
    except InputError as error:
        raise type(error)(f"tools.{index}: {error}") from None
    except (ValueError, TypeError) as error:
        raise HttpError(
            400, f"tools.{index} is not an OpenAI tool: {error}", code="invalid_request", param="tools"
        ) from None
