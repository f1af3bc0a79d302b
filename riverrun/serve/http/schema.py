"""What a request may hold: every accepted field has an effect, every other one is refused by name.

A field that is null, or has the value that OpenAI documents as its default, says nothing and is accepted. Defaults of
sampling are those of `SamplingParams` (greedy, 256 tokens), not OpenAI's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from riverrun.base.errors import InputError, nearest
from riverrun.base.protocols import Request
from riverrun.base.types import Guide, Message, SamplingParams, ToolSpec
from riverrun.web.errors import HttpError

__all__ = [
    "REFUSED",
    "SCHEMA_NAME",
    "ChatBody",
    "CompletionBody",
    "Count",
    "ScoreBody",
    "StrictBody",
    "chat_requests",
    "completion_requests",
    "read_body",
    "read_chat_messages",
    "read_tools",
    "score_prefix",
]

_INT64 = 2**63
MOST_ANSWERS = 128
Count = Annotated[int, Field(ge=0, lt=2**31)]


class StrictBody(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    refused: ClassVar[Mapping[str, tuple[tuple[Any, ...], str]]] = {}
    """Known fields that are not offered, where they are others than those of chat completions."""

    model: str = Field(description="one of the ids that GET /v1/models lists")


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    include_usage: bool = Field(False, description="send the token counts in a last chunk without choices")


SCHEMA_NAME = r"^[A-Za-z0-9_-]{0,64}$"
"""OpenAI's rule for the name of a schema."""


class JsonSchema(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, populate_by_name=True)

    name: str = Field("", pattern=SCHEMA_NAME, description="a label for programs: the model does not see it")
    description: str = Field("", description="refused: the model sees the messages alone")
    strict: bool | None = Field(None, description="answers always follow the schema: false is refused")
    schema_: dict[str, Any] = Field(alias="schema")


class ResponseFormat(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class _Sampling(StrictBody):
    max_tokens: Count = Field(SamplingParams().max_tokens, description="most tokens to generate")
    temperature: float = Field(SamplingParams().temperature, description="0 (greedy) to 2")
    top_p: float = Field(SamplingParams().top_p, description="above 0, at most 1 (off)")
    top_k: Count = Field(SamplingParams().top_k, description="0 is off")
    min_p: float = Field(
        SamplingParams().min_p, description="least share of the likeliest token's probability; 0 is off"
    )
    presence_penalty: float = Field(0.0, description="-2 to 2: off every token that the answer holds already")
    frequency_penalty: float = Field(0.0, description="-2 to 2: off a token for each time that the answer holds it")
    repetition_penalty: float = Field(1.0, description="above 0: divides what prompt and answer hold already; 1 is off")
    no_repeat_ngram_size: Count = Field(0, description="no run of so many tokens comes twice; 0 is off")
    logit_bias: dict[str, float] = Field(default={}, description="token id: added to its logit, -100 forbids it")
    bad_words: list[str] = Field(default=[], description="texts that never come")
    stop: str | list[str] = Field(default=[], description="texts that end the answer and are left out of it")
    stop_token_ids: list[Count] = Field(default=[], description="tokens that end the answer and are left out of it")
    min_tokens: Count = Field(0, description="no end before so many tokens")
    ignore_eos: bool = Field(False, description="the model's own end token does not end the answer")
    seed: int | None = Field(None, ge=-_INT64, lt=_INT64, description="the same seed gives the same answer")
    n: int = Field(
        1, ge=1, le=MOST_ANSWERS, description="so many answers to the same prompt; seeds count up from `seed`"
    )
    response_format: ResponseFormat | None = Field(None, description="text, json_object or json_schema")
    guided_json: dict[str, Any] | str | None = Field(None, description="a JSON schema that the answer follows")
    guided_regex: str | None = Field(None, description="a regular expression that the whole answer matches")
    guided_choice: list[str] | None = Field(None, min_length=1, description="texts of which the answer is one")
    guided_grammar: str | None = Field(None, description="a grammar in Lark's notation")
    prompt_logprobs: int | None = Field(
        None, ge=0, le=20, description="so many likely tokens beside each of the prompt"
    )
    timeout: float = Field(0.0, ge=0, description="seconds after which the request is given up; 0 is never")
    stream: bool = Field(False, description="answer in server-sent events")
    stream_options: StreamOptions | None = None
    user: str = Field("", description="a label of whom the answer is for: the request log shows it")


class ChatBody(_Sampling):
    """POST /v1/chat/completions"""

    messages: list[Any] = Field(description="OpenAI chat messages", min_length=1)
    max_completion_tokens: Count | None = Field(None, description="the newer name of max_tokens")
    logprobs: bool = Field(False, description="the log-probability of every token of the answer")
    top_logprobs: int = Field(0, ge=0, le=20, description="so many likely tokens beside each; needs `logprobs`")
    tools: list[Any] = Field(default=[], description="OpenAI function tools")
    tool_choice: str | dict[str, Any] = Field(
        "auto", description="auto, none (hides the tools), required, or {type: function, function: {name}}"
    )
    parallel_tool_calls: bool = Field(True, description="false: a forced call is one call")
    chat_template_kwargs: dict[str, Any] = Field(
        default={}, description="variables that the model's chat template asks for, as enable_thinking"
    )


class CompletionBody(_Sampling):
    """POST /v1/completions"""

    prompt: str | list[str] | list[int] | list[list[int]] = Field(description="a text or token ids, or several of them")
    logprobs: int | None = Field(None, ge=0, le=20, description="so many likely tokens beside each of the answer")
    echo: bool = Field(False, description="the prompt stands before the answer; with `logprobs` its tokens' as well")


class ScoreBody(StrictBody):
    """POST /v1/score: log-probabilities of continuations after a text or after messages"""

    prefix: str | None = None
    messages: list[Any] | None = None
    continuations: list[str] = Field(min_length=1)


# Known fields that are not offered -> (values that ask for nothing, what to do instead).
REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "best_of": ((1,), "best_of=1 is supported: ask for `n` answers and choose"),
    "suffix": (("",), "a suffix cannot be filled up to"),
    "functions": (([],), "send 'tools' instead"),
    "function_call": ((), "send 'tool_choice' instead"),
    "modalities": ((["text"],), "['text'] is supported"),
    "audio": ((), "only text is generated"),
    "prediction": ((), "leave it out"),
    "reasoning_effort": ((), "leave it out"),
    "verbosity": (("medium",), "leave it out"),
    "service_tier": (("auto", "default"), "'auto' is supported"),
    "store": ((False,), "false is supported: nothing is stored"),
    "metadata": (({},), "nothing is stored, so nothing can be labelled: use 'user'"),
    "prompt_cache_key": ((), "leave it out: beginnings are shared by their content"),
    "safety_identifier": ((), "use 'user'"),
    "web_search_options": ((), "offer a tool instead"),
    "use_beam_search": ((False,), "false is supported: ask for `n` answers"),
    "length_penalty": ((1, 1.0), "1 is supported: there is no beam search"),
    "skip_special_tokens": ((True,), "true is supported: special tokens are no text"),
    "spaces_between_special_tokens": ((True,), "true is supported"),
    "include_stop_str_in_output": ((False,), "false is supported: a stop text is never shown"),
    "truncate_prompt_tokens": ((), "nothing is cut off silently: shorten the prompt"),
    "allowed_token_ids": ((), "use 'guided_grammar' or 'logit_bias'"),
    "chat_template": ((), "the model's own template is used"),
    "add_generation_prompt": ((True,), "true is supported"),
    "continue_final_message": ((False,), "false is supported"),
    "priority": ((0,), "0 is supported: keys take turns"),
    "request_id": ((), "send the header X-Request-Id"),
    "return_token_ids": ((False,), "false is supported: POST /tokenize gives ids"),
    "structured_outputs": ((), "use 'response_format' or the 'guided_...' fields"),
    "guided_whitespace_pattern": ((), "JSON is written as json.dumps does"),
    "guided_decoding_backend": ((), "there is one backend: leave it out"),
    "dimensions": ((), "vectors have the model's own size"),
}

B = TypeVar("B", bound=StrictBody)


def read_body(model: type[B], data: Mapping[str, Any]) -> B:
    """The validated body; HttpError 400 names the field, its value and what is supported."""
    given = {key: value for key, value in data.items() if value is not None}
    refused = getattr(model, "refused", {}) or REFUSED
    for name in [name for name in given if name not in model.model_fields and name in refused]:
        allowed, advice = refused[name]
        if not any(_same(given[name], value) for value in allowed):
            raise _unsupported(name, given[name], advice)
        del given[name]
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
    if isinstance(body, _Sampling) and body.prompt_logprobs is not None and body.stream:
        raise _unsupported("prompt_logprobs", body.prompt_logprobs, "with 'stream': ask for it without")
    return body


def _same(value: Any, allowed: Any) -> bool:
    """Equal, where a boolean is not a number (1 == True in Python)."""
    return isinstance(value, bool) == isinstance(allowed, bool) and bool(value == allowed)


def _unsupported(name: str, value: Any, advice: str) -> HttpError:
    return HttpError(400, f"'{name}' = {_shown(value)} is not supported: {advice}", code="unsupported", param=name)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 120 else text[:117] + "..."


def _explain(model: type[StrictBody], error: ValidationError) -> HttpError:
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


def _bias(body: _Sampling) -> dict[int, float]:
    try:
        return {int(token): bias for token, bias in body.logit_bias.items()}
    except ValueError:
        raise HttpError(
            400,
            f"'logit_bias' = {_shown(body.logit_bias)}: keys are token ids",
            code="invalid_request",
            param="logit_bias",
        ) from None


def _guide(body: _Sampling) -> Guide | None:
    """The one guide that was asked for."""
    given: dict[str, Guide] = {}
    wanted = body.response_format
    if wanted is not None and wanted.type != "text":
        schema: dict[str, Any] = {"type": "object"}
        if wanted.type == "json_schema":
            if wanted.json_schema is None:
                raise HttpError(
                    400, "'response_format' of type json_schema needs 'json_schema'", code="invalid_request",
                    param="response_format.json_schema",
                )  # fmt: skip
            if wanted.json_schema.strict is False:
                raise _unsupported("response_format.json_schema.strict", False, "answers always follow the schema")
            if about := wanted.json_schema.description:
                raise _unsupported("response_format.json_schema.description", about, "say it in the messages")
            schema = wanted.json_schema.schema_
        given["response_format"] = Guide("json_schema", json.dumps(schema))
    if body.guided_json is not None:
        text = body.guided_json if isinstance(body.guided_json, str) else json.dumps(body.guided_json)
        given["guided_json"] = Guide("json_schema", text)
    if body.guided_regex is not None:
        given["guided_regex"] = Guide("regex", body.guided_regex)
    if body.guided_choice is not None:
        given["guided_choice"] = Guide("choice", json.dumps(body.guided_choice))
    if body.guided_grammar is not None:
        given["guided_grammar"] = Guide("grammar", body.guided_grammar)
    if len(given) > 1:
        names = "' and '".join(list(given)[:2])
        raise HttpError(
            400, f"'{names}' are given: an answer follows one of them", code="invalid_request", param=list(given)[1]
        )
    return next(iter(given.values()), None)


def _params(body: _Sampling, max_tokens: int, logprobs: int | None) -> SamplingParams:
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        stop=(body.stop,) if isinstance(body.stop, str) else tuple(body.stop),
        seed=body.seed,
        guide=_guide(body),
        min_p=body.min_p,
        repetition_penalty=body.repetition_penalty,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        no_repeat_ngram=body.no_repeat_ngram_size,
        logit_bias=_bias(body),
        bad_words=tuple(body.bad_words),
        stop_ids=tuple(body.stop_token_ids),
        min_tokens=body.min_tokens,
        ignore_end=body.ignore_eos,
        logprobs=logprobs,
        prompt_logprobs=body.prompt_logprobs,
    )


def _answers(body: _Sampling, request: Request) -> list[Request]:
    """The request as often as answers are wanted; seeds count up, so that each can be had again alone."""
    if body.n == 1:
        return [request]
    params, seed = request.params, request.params.seed
    seeds = [None if seed is None else seed + number for number in range(body.n)]
    return [replace(request, params=replace(params, seed=each)) for each in seeds]


def chat_requests(body: ChatBody, *, key: str = "") -> list[Request]:
    """One request per answer; InputError names the message or tool that cannot be read."""
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
    if body.top_logprobs and not body.logprobs:
        raise HttpError(
            400,
            f"'top_logprobs' = {body.top_logprobs} needs 'logprobs': true",
            code="invalid_request",
            param="top_logprobs",
        )
    tools = read_tools(body.tools)
    forced = _forced(body, tools)
    request = Request(
        messages=read_chat_messages(body.messages),
        tools=() if body.tool_choice == "none" else tools,
        params=_params(body, limit, body.top_logprobs if body.logprobs else None),
        key=key,
        timeout_seconds=body.timeout,
        forced_tools=forced,
        parallel_tool_calls=body.parallel_tool_calls,
        template_variables=body.chat_template_kwargs,
    )
    return _answers(body, request)


def _forced(body: ChatBody, tools: Sequence[ToolSpec]) -> tuple[str, ...]:
    """Names of the tools of which one must be called."""
    choice, known = body.tool_choice, [tool.name for tool in tools]
    if choice in ("auto", "none"):
        if not body.parallel_tool_calls and choice == "auto" and known:
            raise _unsupported(
                "parallel_tool_calls", False, "with 'tool_choice': 'auto' the model decides; use 'required' or a name"
            )
        return ()
    if not known:
        raise HttpError(
            400, f"'tool_choice' = {_shown(choice)} needs 'tools'", code="invalid_request", param="tool_choice"
        )
    if choice == "required":
        return tuple(known)
    function = choice.get("function") if isinstance(choice, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if name not in known:
        raise HttpError(
            400,
            f"'tool_choice' = {_shown(choice)}: give auto, none, required or "
            f"{{type: function, function: {{name}}}} with one of {', '.join(known)}",
            code="invalid_request",
            param="tool_choice",
        )
    return (str(name),)


def completion_requests(body: CompletionBody, *, key: str = "") -> list[Request]:
    """One request per prompt and answer: all answers to the first prompt, then those to the second."""
    prompts = _prompts(body.prompt)
    limit = body.max_tokens
    if not limit and body.echo:
        limit = 1  # only the prompt is looked at; what is generated is left out again
    params = _params(body, limit, body.logprobs)
    if body.echo and body.logprobs is not None and params.prompt_logprobs is None:
        params = replace(params, prompt_logprobs=body.logprobs)
    out: list[Request] = []
    for prompt in prompts:
        given: dict[str, Any] = {"prompt": prompt} if isinstance(prompt, str) else {"prompt_ids": tuple(prompt)}
        out += _answers(body, Request(params=params, key=key, timeout_seconds=body.timeout, **given))
    return out


def _prompts(given: Any) -> list[str | list[int]]:
    """Each prompt as text or ids."""
    if isinstance(given, str) or (given and isinstance(given[0], int)):
        given = [given]
    if not given or any(not prompt for prompt in given):
        raise HttpError(
            400, "'prompt' must hold at least one text, none of them empty", code="invalid_request", param="prompt"
        )
    return list(given)


def score_prefix(body: ScoreBody) -> str | tuple[Message, ...]:
    if (body.prefix is None) == (body.messages is None):
        raise HttpError(400, "give either 'prefix' (a text) or 'messages'", code="invalid_request", param="prefix")
    return read_chat_messages(body.messages) if body.messages is not None else (body.prefix or "")


def read_chat_messages(values: Sequence[Any]) -> tuple[Message, ...]:
    """OpenAI chat messages; InputError names the one that cannot be read."""
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


def read_tools(values: Sequence[Any]) -> tuple[ToolSpec, ...]:
    """OpenAI function tools; InputError names the one that cannot be read."""
    return tuple(_tool(value, index) for index, value in enumerate(values))


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
