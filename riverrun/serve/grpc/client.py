"""A gRPC client in plain records; the server's sentences come back as the errors they were."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from riverrun.base.errors import BusyError, InputError, LateError, RiverrunError, UnsupportedError
from riverrun.base.optional import require
from riverrun.base.protocols import Delta, ModelInfo, Score
from riverrun.base.types import Message, SamplingParams, TokenLogprob, ToolCall, ToolSpec, Usage
from riverrun.serve.grpc.messages import SERVICE, descriptor, message

__all__ = ["GrpcClient"]


class GrpcClient:
    """`with GrpcClient("localhost:8001") as client: for delta in client.chat([Message.of("user", "Hello")]): ...`"""

    def __init__(self, address: str, *, api_key: str = "", root_certificates: bytes | None = None) -> None:
        """`root_certificates` (PEM) makes the connection a TLS one."""
        self._grpc = require("grpc", extra="grpc")
        if root_certificates is None:
            self._channel = self._grpc.insecure_channel(address)
        else:
            credentials = self._grpc.ssl_channel_credentials(root_certificates)
            self._channel = self._grpc.secure_channel(address, credentials)
        self._metadata = (("authorization", f"Bearer {api_key}"),) if api_key else ()

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> GrpcClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- calls

    def generate(
        self, prompt: str | Sequence[int], params: SamplingParams | None = None, *, model: str = "",
        request_id: str = "", timeout_seconds: float = 0.0,
    ) -> Iterator[Delta]:  # fmt: skip
        """Continue a text or ids. Closing the iterator aborts the answer."""
        given: dict[str, Any] = {"prompt": prompt} if isinstance(prompt, str) else {"ids": {"ids": list(prompt)}}
        return self._stream(
            "Generate", model=model, sampling=_sampling(params), request_id=request_id,
            timeout_seconds=timeout_seconds, **given,
        )  # fmt: skip

    def chat(
        self, messages: Sequence[Message], params: SamplingParams | None = None, *, model: str = "",
        tools: Sequence[ToolSpec] = (), session: str = "", forced_tools: Sequence[str] = (),
        parallel_tool_calls: bool = True, template_variables: Mapping[str, Any] | None = None, request_id: str = "",
        timeout_seconds: float = 0.0,
    ) -> Iterator[Delta]:  # fmt: skip
        """Answer a conversation, or with `session` its new turn. Closing the iterator aborts the answer.

        `template_variables` reach the chat template by name.
        """
        return self._stream(
            "Chat", model=model, messages=[_message(each) for each in messages], tools=[_tool(each) for each in tools],
            sampling=_sampling(params), session_id=session, forced_tools=list(forced_tools),
            parallel_tool_calls=parallel_tool_calls, request_id=request_id, timeout_seconds=timeout_seconds,
            template_variables=json.dumps(dict(template_variables)) if template_variables else "",
        )  # fmt: skip

    def tokenize(self, prompt: str = "", *, messages: Sequence[Message] = (), model: str = "") -> list[int]:
        given = [_message(each) for each in messages]
        return list(self._call("Tokenize", model=model, prompt=prompt, messages=given).ids)

    def detokenize(self, ids: Sequence[int], *, model: str = "") -> str:
        return str(self._call("Detokenize", model=model, ids=list(ids)).text)

    def embed(self, texts: Sequence[str], *, pooling: str = "", model: str = "") -> list[list[float]]:
        found = self._call("Embed", model=model, texts=list(texts), pooling=pooling)
        return [list(vector.values) for vector in found.vectors]

    def score(self, prefix: str | Sequence[Message], continuations: Sequence[str], *, model: str = "") -> list[Score]:
        text = {"prefix": prefix} if isinstance(prefix, str) else {"messages": [_message(each) for each in prefix]}
        found = self._call("Score", model=model, continuations=list(continuations), **text)
        return [Score(tuple(each.logprobs), each.is_greedy) for each in found.scores]

    def open_session(self, name: str = "", messages: Sequence[Message] = (), *, model: str = "") -> str:
        """The id to give to `chat`."""
        given = [_message(each) for each in messages]
        return str(self._call("OpenSession", model=model, session_id=name, messages=given).session_id)

    def close_session(self, name: str, *, model: str = "") -> None:
        self._call("CloseSession", model=model, session_id=name)

    def abort(self, request_id: str) -> bool:
        """End the call that was given this id; whether one ran."""
        return bool(self._call("Abort", request_id=request_id).aborted)

    def info(self, model: str = "") -> ModelInfo:
        found = self._call("ModelInfo", model=model)
        return ModelInfo(found.name, found.digest, found.context_length, found.template_sha256, tuple(found.modalities))

    # ---- below

    def _method(self, name: str) -> Any:
        method = descriptor().services_by_name["Riverrun"].methods_by_name[name]
        make = self._channel.unary_stream if method.server_streaming else self._channel.unary_unary
        return make(
            f"/{SERVICE}/{name}",
            request_serializer=message(method.input_type.name).SerializeToString,
            response_deserializer=message(method.output_type.name).FromString,
        ), message(method.input_type.name)

    def _call(self, name: str, **fields: Any) -> Any:
        call, kind = self._method(name)
        with self._errors():
            return call(kind(**fields), metadata=self._metadata)

    def _stream(self, name: str, **fields: Any) -> Iterator[Delta]:
        call, kind = self._method(name)
        running = call(kind(**fields), metadata=self._metadata)
        try:
            with self._errors():
                for chunk in running:
                    yield _delta(chunk)
        finally:
            running.cancel()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except self._grpc.RpcError as error:
            code, text = error.code().name, error.details()
            kinds: dict[str, type[RiverrunError]] = {
                "INVALID_ARGUMENT": InputError,
                "NOT_FOUND": InputError,
                "UNAUTHENTICATED": InputError,
                "UNIMPLEMENTED": UnsupportedError,
                "RESOURCE_EXHAUSTED": BusyError,
                "DEADLINE_EXCEEDED": LateError,
            }
            raise kinds.get(code, RiverrunError)(text or code) from None


def _sampling(params: SamplingParams | None) -> Any:
    """Only what differs from the default is sent."""
    kind, given, plain = message("Sampling"), params or SamplingParams(), SamplingParams()
    out = kind()
    for field in kind.DESCRIPTOR.fields:
        name = field.name
        if not hasattr(given, name) or getattr(given, name) == getattr(plain, name):
            continue
        value = getattr(given, name)
        if name == "logit_bias":
            out.logit_bias.update(value)
        elif isinstance(value, tuple):
            getattr(out, name).extend(value)
        else:
            setattr(out, name, value)
    if given.guide is not None:
        if given.guide.kind == "choice":
            out.choice.texts.extend(json.loads(given.guide.value))
        else:
            setattr(out, given.guide.kind, given.guide.value)
    return out


def _message(each: Message) -> Any:
    calls = [
        {"id": call.id, "name": call.name, "arguments": json.dumps(dict(call.arguments), ensure_ascii=False)}
        for call in each.tool_calls
    ]
    return message("ChatMessage")(
        role=each.role,
        content=each.require_text("gRPC"),
        tool_calls=calls,
        tool_call_id=each.tool_call_id,
        name=each.name,
        reasoning=each.reasoning,
    )


def _tool(tool: ToolSpec) -> Any:
    parameters = json.dumps(dict(tool.parameters), ensure_ascii=False)
    return message("Tool")(name=tool.name, description=tool.description, parameters=parameters)


_COUNTS = ("prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens")


def _delta(chunk: Any) -> Delta:
    calls = tuple(ToolCall(call.name, json.loads(call.arguments), call.id) for call in chunk.tool_calls)
    usage = None
    if chunk.HasField("usage"):
        usage = Usage(**{name: getattr(chunk.usage, name) for name in _COUNTS})
    return Delta(
        text=chunk.text,
        tool_calls=calls,
        finish_reason=chunk.finish_reason or None,
        usage=usage,
        logprobs=tuple(map(_logprob, chunk.logprobs)),
        reasoning=chunk.reasoning,
        stopped_by=chunk.stopped_by,
    )


def _logprob(token: Any) -> TokenLogprob:
    return TokenLogprob(token.id, token.piece, token.logprob, tuple(map(_logprob, token.top)))
