"""The gRPC server over any `LanguageModel`s: riverrun.proto, health, reflection; loopback by default."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from riverrun.base.errors import InputError, UnsupportedError
from riverrun.base.optional import require
from riverrun.base.protocols import Delta, Embedder, LanguageModel, Request
from riverrun.base.types import Usage
from riverrun.serve.desk import Desk, HasAdapters
from riverrun.serve.grpc.messages import (
    SERVICE,
    chunk_of,
    descriptor,
    generate_request,
    message,
    messages_of,
    params_of,
    read,
    tools_of,
    variables_of,
)
from riverrun.web.errors import HttpError, to_http_error
from riverrun.web.keys import Key, KeyRing

__all__ = ["GrpcServer"]

THREADS = 256
"""Calls that are answered at once; more wait."""
LONGEST_DETAIL = 2000
"""Bytes of a sentence about an error."""
_LOG = logging.getLogger("riverrun.grpc")
_CODES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    429: "RESOURCE_EXHAUSTED",
}


class GrpcServer:
    """`with GrpcServer(models) as server: ... server.port`. Stops at the end: running calls get `drain_seconds`."""

    def __init__(
        self,
        models: Mapping[str, LanguageModel],
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        keys: KeyRing | None = None,
        tls: tuple[Path, Path] | None = None,
        timeout_seconds: float = 0.0,
        drain_seconds: float = 5.0,
    ) -> None:
        self._grpc = require("grpc", extra="grpc")
        from grpc_health.v1 import health, health_pb2, health_pb2_grpc
        from grpc_reflection.v1alpha import reflection

        descriptor()
        self.drain_seconds = drain_seconds
        self._server = self._grpc.server(ThreadPoolExecutor(THREADS, "riverrun-grpc"))
        calls = _Calls(models, keys or KeyRing(), self._grpc, timeout_seconds)
        self._server.add_generic_rpc_handlers((calls.handler(),))
        self._health = health.HealthServicer()
        for name in ("", SERVICE):
            self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if tls is None:
                self.port = self._server.add_insecure_port(address)
            else:
                pair = (tls[1].read_bytes(), tls[0].read_bytes())
                self.port = self._server.add_secure_port(address, self._grpc.ssl_server_credentials([pair]))
        except (RuntimeError, OSError) as error:
            raise InputError(f"gRPC cannot listen on {address} ({error}): choose another port") from None

    def start(self) -> None:
        self._server.start()

    def stop(self) -> None:
        """No new call; those that run may finish."""
        self._health.enter_graceful_shutdown()
        self._server.stop(self.drain_seconds).wait()

    def __enter__(self) -> GrpcServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class _Calls:
    def __init__(
        self, models: Mapping[str, LanguageModel], keys: KeyRing, library: Any, timeout_seconds: float
    ) -> None:
        self.desk, self.keys, self.grpc = Desk(models, timeout_seconds=timeout_seconds), keys, library

    def handler(self) -> Any:
        """All methods of the service by name."""
        found = {}
        for method in descriptor().services_by_name["Riverrun"].methods:
            name, streams = method.name, method.server_streaming
            own = getattr(self, re.sub(r"(?=[A-Z])", "_", name).lower())
            make = self.grpc.unary_stream_rpc_method_handler if streams else self.grpc.unary_unary_rpc_method_handler
            found[name] = make(self._streamed(method, own) if streams else self._single(method, own))
        return self.grpc.method_handlers_generic_handler(SERVICE, found)

    # ---- around every call

    # Messages are read and written here and not by the library, whose own word for a message that cannot be read is
    # INTERNAL.

    def _single(self, method: Any, call: Callable[[Any, Any, Key | None], Any]) -> Callable[[bytes, Any], Any]:
        def answer(payload: bytes, context: Any) -> bytes:
            with self._guarded(context) as key:
                return bytes(call(read(method, payload), context, key).SerializeToString())

        return answer

    def _streamed(
        self, method: Any, call: Callable[[Any, Any, Key | None], Iterator[Delta]]
    ) -> Callable[[bytes, Any], Any]:
        def answer(payload: bytes, context: Any) -> Iterator[bytes]:
            with self._guarded(context) as key:
                for delta in call(read(method, payload), context, key):
                    if delta.usage is not None:
                        _charge(key, delta.usage)
                    yield chunk_of(delta).SerializeToString()

        return answer

    @contextmanager
    def _guarded(self, context: Any) -> Iterator[Key | None]:
        """The key of a call; errors become its status."""
        with ExitStack() as stack:
            try:
                key = self._key(context)
                if key is not None:
                    stack.enter_context(key.used())
                yield key
            except Exception as error:
                if isinstance(error, GeneratorExit) or not context.is_active():
                    raise
                failure = to_http_error(error)
                if failure.status >= 500:
                    _LOG.error("a call failed", exc_info=error)
                code = "UNIMPLEMENTED" if failure.code == "unsupported" else _CODES.get(failure.status, "INTERNAL")
                if "Retry-After" in failure.headers:
                    context.set_trailing_metadata((("retry-after", failure.headers["Retry-After"]),))
                context.abort(getattr(self.grpc.StatusCode, code), _short(str(failure)))

    def _key(self, context: Any) -> Key | None:
        if not self.keys:
            return None
        given = dict(context.invocation_metadata()).get("authorization", "")
        scheme, _, secret = str(given).partition(" ")
        key = self.keys.find(secret.strip().encode()) if scheme.lower() == "bearer" else None
        if key is None:
            raise HttpError(
                401, "an API key is needed: send metadata 'authorization: Bearer KEY'", code="invalid_api_key"
            )
        return key

    def _place(self, name: str) -> Any:
        return self.desk.find(name or next(iter(self.desk.names()), ""))

    @contextmanager
    def _running(self, context: Any, key: Key | None, *names: str) -> Iterator[Any]:
        """Something that ends when its client goes away, or by these names; the key pays for what was left, too."""
        with self.desk.registered(*names) as abort:
            if not context.add_callback(abort.set):
                abort.set()
            try:
                yield abort
            finally:
                _charge(key, Usage.total(abort.left))

    # ---- the methods

    def _generate(self, given: Any, context: Any, key: Key | None) -> Iterator[Delta]:
        place, asked = self._place(given.model), generate_request(given)
        with self._running(context, key, given.request_id) as abort:
            yield from place.model.stream(place.placed([_of(asked, key)], abort)[0])

    def _chat(self, given: Any, context: Any, key: Key | None) -> Iterator[Delta]:
        place, messages, tools = self._place(given.model), messages_of(given.messages), tools_of(given.tools)
        params = params_of(given.sampling)
        rest: dict[str, Any] = {
            "key": key.name if key else "",
            "timeout_seconds": place.seconds(given.timeout_seconds),
            "forced_tools": tuple(given.forced_tools),
            "template_variables": variables_of(given),
            "parallel_tool_calls": given.parallel_tool_calls if given.HasField("parallel_tool_calls") else True,
        }
        with self._running(context, key, given.request_id) as abort:
            if given.session_id:
                session = place.sessions().get(given.session_id)
                yield from session.stream(messages, params, tools=tools, abort=abort, **rest)
            else:
                asked = Request(messages, params=params, tools=tools, **rest)
                yield from place.model.stream(place.placed([asked], abort)[0])

    def _tokenize(self, given: Any, context: Any, key: Key | None) -> Any:
        asked = Request(messages_of(given.messages), given.prompt, tools_of(given.tools))
        return message("TokenizeReply")(ids=self._place(given.model).texts().tokenize(asked))

    def _detokenize(self, given: Any, context: Any, key: Key | None) -> Any:
        return message("DetokenizeReply")(text=self._place(given.model).texts().detokenize(list(given.ids)))

    def _embed(self, given: Any, context: Any, key: Key | None) -> Any:
        place = self._place(given.model)
        if not isinstance(place.model, Embedder):
            raise UnsupportedError(f"model '{place.name}' makes no vectors: choose another model")
        more = {name: value for name, value in (("pooling", given.pooling), ("adapter", place.adapter)) if value}
        vectors = place.model.embed(list(given.texts), **more)
        _charge(key, Usage(place.count(*given.texts)))
        return message("EmbedReply")(vectors=[message("Vector")(values=vector) for vector in vectors])

    def _score(self, given: Any, context: Any, key: Key | None) -> Any:
        prefix = messages_of(given.messages) or given.prefix
        place = self._place(given.model)
        scores = place.score(prefix, list(given.continuations))
        _charge(key, Usage(place.count(prefix) + sum(len(score.logprobs) for score in scores)))
        made = [message("Scored")(logprobs=score.logprobs, is_greedy=score.is_greedy) for score in scores]
        return message("ScoreReply")(scores=made)

    def _open_session(self, given: Any, context: Any, key: Key | None) -> Any:
        place = self._place(given.model)
        session = place.sessions().open(given.session_id, messages_of(given.messages), adapter=place.adapter)
        return message("Session")(model=place.name, session_id=session.name)

    def _close_session(self, given: Any, context: Any, key: Key | None) -> Any:
        self._place(given.model).sessions().close(given.session_id)
        return message("Empty")()

    def _abort(self, given: Any, context: Any, key: Key | None) -> Any:
        return message("AbortReply")(aborted=self.desk.abort(given.request_id))

    def _model_info(self, given: Any, context: Any, key: Key | None) -> Any:
        place = self._place(given.model)
        info, model = place.model.info, place.model
        return message("ModelInfoReply")(
            name=info.name,
            digest=info.digest,
            context_length=info.context_length,
            template_sha256=info.template_sha256,
            modalities=info.modalities,
            adapters=model.adapters if isinstance(model, HasAdapters) else (),
            models=self.desk.names(),
        )


def _short(text: str) -> str:
    """A sentence that fits into the trailers, which hold some 8 KB and write a byte that is not ASCII as three."""
    data = text.encode("utf-8", "replace")
    return text if len(data) <= LONGEST_DETAIL else data[:LONGEST_DETAIL].decode("utf-8", "ignore") + " ..."


def _charge(key: Key | None, usage: Usage) -> None:
    if key is not None:
        key.charge(usage.total_tokens - usage.cached_tokens)


def _of(asked: Request, key: Key | None) -> Request:
    return replace(asked, key=key.name) if key else asked
