"""Routes beside OpenAI's: tokens, embeddings, perplexity, sessions, adapters, ending requests, readiness.

/v1/chat/interactive and /generate have the fields and defaults of LMDeploy 0.2 (lmdeploy/serve/openai/protocol.py,
GenerateRequest): an interactive client sends the new turn alone and the server remembers the rest.
"""

from __future__ import annotations

import base64
import re
import threading
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from riverrun.base.errors import InputError, UnsupportedError
from riverrun.base.protocols import Abort, Completion, Delta, Embedder
from riverrun.base.protocols import Request as Asked
from riverrun.base.types import SamplingParams, Usage
from riverrun.serve.aside import run_in_thread
from riverrun.serve.http.desk import HttpDesk, charge, key_of, read_request
from riverrun.serve.http.openai import add_post, usage_body
from riverrun.serve.http.schema import Count, StrictBody, read_chat_messages, read_tools
from riverrun.serve.http.streaming import Piece, Ring
from riverrun.serve.sessions import Session
from riverrun.web.errors import HttpError, json_bytes

__all__ = ["add_more"]

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


class TokenizeBody(StrictBody):
    """POST /tokenize"""

    prompt: str = Field("", description="a text")
    messages: list[Any] = Field(default=[], description="or a conversation, as the model's template writes it")
    tools: list[Any] = Field(default=[], description="with the conversation")


class DetokenizeBody(StrictBody):
    """POST /detokenize"""

    tokens: list[Count]


class EmbeddingBody(StrictBody):
    """POST /v1/embeddings"""

    input: str | list[str] | list[int] | list[list[int]] = Field(
        description="a text or token ids, or several of them", min_length=1
    )
    encoding_format: Literal["float", "base64"] = "float"
    pooling: Literal["mean", "last"] = Field("mean", description="of the last hidden states, or the last of them")
    user: str = Field("", description="a label of whom the vectors are for: the request log shows it")


class PerplexityBody(StrictBody):
    """POST /get_ppl"""

    input: str | list[str] = Field(description="one text or several", min_length=1)


class InteractiveBody(BaseModel):
    """POST /v1/chat/interactive and /generate"""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    model: str = Field("", description="the server's first model unless given")
    prompt: str | list[Any] = Field("", description="the new turn, or messages")
    session_id: int | str = Field(-1, description="-1: a new session")
    interactive_mode: bool = Field(
        False, description="remember the conversation; false on a known id ends it afterwards"
    )
    stream: bool = False
    cancel: bool = Field(False, description="end the answer that this session is writing")
    stop: str | list[str] = Field(default=[], description="texts that end the answer")
    request_output_len: int = Field(512, ge=1, lt=2**31, description="most tokens to generate")
    top_p: float = 0.8
    top_k: Count = 40
    temperature: float = 0.8
    repetition_penalty: float = 1.0
    ignore_eos: bool = False
    seed: int | None = None
    timeout: float = Field(0.0, ge=0, description="seconds; 0 is never")


class SessionBody(StrictBody):
    """POST /v1/sessions/close, /save and /load"""

    session_id: str
    file: str = Field("", description="name of the file in the server's folder of sessions; the id unless given")


class AdapterBody(StrictBody):
    """POST /v1/lora/load and /unload"""

    name: str = Field(description="what requests ask for")
    path: str = Field("", description="folder in PEFT's layout, under the server's folder of adapters")


class AbortBody(BaseModel):
    """POST /abort_request"""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    request_id: str = Field(description="the X-Request-Id of a request that runs")


def add_more(app: FastAPI, desk: HttpDesk, *, sessions: Path | None = None, adapters: Path | None = None) -> None:
    """Mount the routes; `sessions` and `adapters` are the folders that clients may name files of."""
    routes = _Routes(desk, sessions, adapters)
    add_post(app, "/tokenize", routes.tokenize, TokenizeBody, "Token ids of a text or conversation")
    add_post(app, "/detokenize", routes.detokenize, DetokenizeBody, "Text of token ids")
    add_post(app, "/v1/embeddings", routes.embeddings, EmbeddingBody, "Vectors of texts")
    add_post(app, "/get_ppl", routes.perplexity, PerplexityBody, "Perplexity of texts")
    add_post(app, "/v1/chat/interactive", routes.interactive, InteractiveBody, "The next turn of a session")
    add_post(app, "/generate", routes.interactive, InteractiveBody, "Continue a text")
    add_post(app, "/v1/sessions/close", routes.close_session, SessionBody, "Forget a session")
    add_post(app, "/v1/sessions/save", routes.save_session, SessionBody, "Write a session to disk")
    add_post(app, "/v1/sessions/load", routes.load_session, SessionBody, "Open a session from disk")
    add_post(app, "/v1/lora/load", routes.load_adapter, AdapterBody, "Load an adapter")
    add_post(app, "/v1/lora/unload", routes.unload_adapter, AdapterBody, "Unload an adapter")
    add_post(app, "/abort_request", routes.abort, AbortBody, "End a request that runs")


class _Routes:
    def __init__(self, desk: HttpDesk, sessions: Path | None, adapters: Path | None) -> None:
        self.desk, self.sessions, self.adapters = desk, sessions, adapters

    async def tokenize(self, request: Request) -> Response:
        body = await read_request(request, TokenizeBody)
        place = self.desk.find(body.model)
        asked = Asked(messages=read_chat_messages(body.messages), prompt=body.prompt, tools=read_tools(body.tools))
        ids = await run_in_thread(lambda: place.texts().tokenize(asked))
        length = (await run_in_thread(lambda: place.model.info)).context_length
        return _json({"tokens": ids, "count": len(ids), "max_model_len": length})

    async def detokenize(self, request: Request) -> Response:
        body = await read_request(request, DetokenizeBody)
        place = self.desk.find(body.model)
        return _json({"prompt": await run_in_thread(lambda: place.texts().detokenize(body.tokens))})

    async def embeddings(self, request: Request) -> Response:
        body = await read_request(request, EmbeddingBody)
        place = self.desk.find(body.model)
        model = place.model
        if not isinstance(model, Embedder):
            raise UnsupportedError(f"model '{body.model}' makes no vectors: choose another model")
        single = isinstance(body.input, str) or isinstance(body.input[0], int)
        texts: Any = [body.input] if single else body.input
        more = {"pooling": body.pooling} | ({"adapter": place.adapter} if place.adapter else {})
        count, to_ids = 0, getattr(model, "vector_ids", None)
        if to_ids is not None:
            texts = await run_in_thread(lambda: [to_ids(text) for text in texts])
            count = sum(map(len, texts))
        elif not all(isinstance(text, str) for text in texts):
            raise UnsupportedError(f"model '{body.model}' takes no token ids: send texts")
        vectors = await run_in_thread(lambda: model.embed(texts, **more))
        charge(request, Usage(count))
        data = [
            {"object": "embedding", "index": index, "embedding": _packed(vector, body.encoding_format)}
            for index, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": count, "total_tokens": count}
        return _json({"object": "list", "model": body.model, "data": data, "usage": usage})

    async def perplexity(self, request: Request) -> Response:
        body = await read_request(request, PerplexityBody)
        place = self.desk.find(body.model)
        model: Any = place.model
        if not hasattr(model, "perplexity"):
            raise UnsupportedError(f"model '{body.model}' gives no perplexity: choose another model")
        texts = [body.input] if isinstance(body.input, str) else body.input
        found = await run_in_thread(lambda: model.perplexity(texts, adapter=place.adapter))
        charge(request, Usage(await run_in_thread(lambda: place.count(*texts))))
        return _json({"model": body.model, "ppl": found, "loss": [float(np.log(value)) for value in found]})

    # ---- sessions

    async def interactive(self, request: Request) -> Response:
        body = await read_request(request, InteractiveBody)
        place = self.desk.find(body.model or next(iter(self.desk.names()), ""))
        table = place.sessions()
        if body.cancel:
            stopped = self.desk.abort(f"session {body.session_id}")
            return _json({"session_id": body.session_id, "cancelled": stopped})
        if not body.prompt:
            raise HttpError(400, "'prompt' must hold a text or messages", code="invalid_request", param="prompt")
        turn = body.prompt if isinstance(body.prompt, str) else read_chat_messages(body.prompt)
        params = SamplingParams(
            max_tokens=body.request_output_len,
            temperature=body.temperature,
            top_p=body.top_p,
            top_k=body.top_k,
            repetition_penalty=body.repetition_penalty,
            ignore_end=body.ignore_eos,
            seed=body.seed,
            stop=(body.stop,) if isinstance(body.stop, str) else tuple(body.stop),
        )
        rest: dict[str, Any] = {"key": key_of(request), "timeout_seconds": place.seconds(body.timeout)}
        name = "" if body.session_id == -1 else str(body.session_id)
        new = not name or name not in {session.name for session in table}
        name = name or uuid.uuid4().hex
        session = await run_in_thread(lambda: table.open(name, adapter=place.adapter) if new else table.get(name))
        running, chunks, failed = f"session {name}", InteractiveChunks(name), threading.Event()

        def pieces(abort: Abort, _: Ring) -> Iterator[Piece]:
            try:
                yield from ((0, delta) for delta in session.stream(turn, params, abort=abort, **rest))
            except Exception:
                failed.set()
                raise

        def ask(abort: Abort) -> Completion:
            try:
                return session.ask(turn, params, abort=abort, **rest)
            except Exception:
                failed.set()
                raise

        def over() -> None:
            # nobody knows of a session whose first turn was refused
            if not body.interactive_mode or (new and failed.is_set()):
                with suppress(InputError):  # it was closed by its name meanwhile
                    table.close(name)

        if body.stream:
            return self.desk.events(request, pieces, chunks, name=running, at_end=over)
        try:
            done = await self.desk.call(request, ask, name=running)
        finally:
            await run_in_thread(over)
        charge(request, done.usage)
        return _json(chunks.body(done.message.text, Delta(finish_reason=done.finish_reason, usage=done.usage)))

    async def close_session(self, request: Request) -> Response:
        body = await read_request(request, SessionBody)
        table = self.desk.find(body.model).sessions()
        await run_in_thread(lambda: table.close(body.session_id))
        return _json({"session_id": body.session_id, "closed": True})

    async def save_session(self, request: Request) -> Response:
        body = await read_request(request, SessionBody)
        table, path = self.desk.find(body.model).sessions(), self._file(body)
        tokens = await run_in_thread(lambda: table.save(body.session_id, path))
        return _json({"session_id": body.session_id, "file": path.name, "cached_tokens": tokens})

    async def load_session(self, request: Request) -> Response:
        body = await read_request(request, SessionBody)
        table, path = self.desk.find(body.model).sessions(), self._file(body)
        session: Session = await run_in_thread(lambda: table.load(path, body.session_id))
        return _json({"session_id": session.name, "cached_tokens": len(session.pins.tokens)})

    def _file(self, body: SessionBody) -> Path:
        """The file of a session, in the one folder that clients may write to."""
        if self.sessions is None:
            raise UnsupportedError("this server has no folder for sessions: start it with --sessions DIR")
        return self.sessions / f"{_plain_name(body.file or body.session_id)}.safetensors"

    # ---- adapters, aborts

    async def load_adapter(self, request: Request) -> Response:
        body = await read_request(request, AdapterBody)
        model: Any = self.desk.find(body.model).model
        if self.adapters is None or not hasattr(model, "load_adapter"):
            raise UnsupportedError("this server loads no adapters: start it with --adapters DIR")
        path = self.adapters / _plain_name(body.path or body.name)
        if not path.is_dir():
            raise InputError(f"there is no adapter '{path.name}' in the server's folder of adapters: choose another")
        await run_in_thread(lambda: model.load_adapter(body.name, path))
        return _json({"model": body.model, "adapters": list(model.adapters)})

    async def unload_adapter(self, request: Request) -> Response:
        body = await read_request(request, AdapterBody)
        model: Any = self.desk.find(body.model).model
        if not hasattr(model, "unload_adapter"):
            raise UnsupportedError(f"model '{body.model}' has no adapters")
        await run_in_thread(lambda: model.unload_adapter(body.name))
        return _json({"model": body.model, "adapters": list(model.adapters)})

    async def abort(self, request: Request) -> Response:
        body = await read_request(request, AbortBody)
        if not self.desk.abort(body.request_id):
            raise HttpError(
                404, f"no request '{body.request_id}' runs here: it is over or was never sent", code="not_found",
                param="request_id",
            )  # fmt: skip
        return _json({"request_id": body.request_id, "aborted": True})


def _plain_name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise InputError(f"the name {text[:80]!r} is not made of 1 to 64 letters, digits, _ and -: choose another")
    return text


def _packed(vector: list[float], form: str) -> Any:
    return vector if form == "float" else base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode()


def _json(value: Any) -> Response:
    return Response(json_bytes(value), media_type="application/json")


class InteractiveChunks:
    """Pieces of a session's answer."""

    def __init__(self, name: str) -> None:
        self.name = name

    def start(self) -> list[dict[str, Any]]:
        return []

    def delta(self, delta: Delta, index: int = 0) -> list[dict[str, Any]]:
        return [self.body(delta.text, delta)] if delta.text or delta.finish_reason is not None else []

    def body(self, text: str, delta: Delta) -> dict[str, Any]:
        """A piece, or the whole answer."""
        out: dict[str, Any] = {"text": text, "session_id": self.name, "finish_reason": delta.finish_reason}
        if delta.usage is not None:
            out |= {
                "tokens": delta.usage.completion_tokens,
                "input_tokens": delta.usage.prompt_tokens - delta.usage.cached_tokens,
                "history_tokens": delta.usage.cached_tokens,
                "usage": usage_body(delta.usage),
            }
        return out
