"""The one app factory of every server: keys, body limit, request ids, uniform errors, security headers, health.

`make_web_app` gives a FastAPI app without interactive docs (they load from a CDN); routes are added by its user.
No CORS headers are sent unless origins are allowed, so browsers keep others out.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import re
import uuid
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from riverrun import __version__
from riverrun.base.optional import require
from riverrun.web.errors import Dialect, HttpError, json_bytes, to_http_error
from riverrun.web.keys import Key, KeyRing

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = ["MAX_BODY_BYTES", "make_web_app", "parse_json"]

MAX_BODY_BYTES = 8 * 1024 * 1024
_MAX_DEPTH = 100
_DRAINED_BYTES = 64 * 1024 * 1024  # read and thrown away, so that a client that sends too much can read why
_REQUEST_ID = re.compile(rb"[A-Za-z0-9_.-]{1,64}")
_LOG = logging.getLogger("riverrun.web")

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]


def make_web_app(
    *,
    title: str,
    api_keys: Sequence[str] | KeyRing = (),
    max_body_bytes: int = MAX_BODY_BYTES,
    open_paths: Sequence[str] = ("/", "/health"),
    allowed_hosts: Sequence[str] = (),
    allowed_origins: Sequence[str] = (),
    health: Callable[[], Mapping[str, Any]] | None = None,
    dialects: Mapping[str, Dialect] | None = None,
) -> FastAPI:
    """A guarded FastAPI app with `GET /health`.

    With `api_keys`, every path but `open_paths` needs `Authorization: Bearer KEY` or `X-Api-Key: KEY`. Without keys, a
    server bound to the loopback interface answers only to local names and `allowed_hosts` (a web page elsewhere cannot
    reach it by a name that points here). Web pages of `allowed_origins` ("*": of any) may read the answers. `health`
    adds fields to the health answer; it must return at once. `dialects`: how the routes at and below a path speak,
    where not as all others.
    """
    require("fastapi", extra="serve")
    from fastapi import FastAPI, Request, Response
    from fastapi.exceptions import RequestValidationError
    from starlette.exceptions import HTTPException

    ring = api_keys if isinstance(api_keys, KeyRing) else KeyRing.of(api_keys)
    app = FastAPI(title=title, version=__version__, docs_url=None, redoc_url=None)

    def answer(request: Request, error: HttpError) -> Response:
        dialect = _dialect(request.url.path, dialects or {})
        body = dialect.error_body(error, str(request.scope.get("riverrun.request_id", "")))
        return Response(json_bytes(body), error.status, error.headers, media_type="application/json")

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == 404:
            message, code = f"there is no {request.url.path}: see /openapi.json for the routes", "not_found"
        elif error.status_code == 405:
            message, code = f"{request.url.path} does not answer to {request.method}", "method_not_allowed"
        else:
            message, code = str(error.detail), "invalid_request"
        return answer(request, HttpError(error.status_code, message, code=code, headers=dict(error.headers or {})))

    async def on_validation(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return answer(request, HttpError(400, f"{where}: {first['msg']}", code="invalid_request", param=where))

    async def get_health() -> Response:
        body = {"status": "ok", "version": __version__, **(health() if health else {})}
        return Response(json_bytes(body), media_type="application/json")

    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_validation)
    app.add_api_route("/health", get_health, methods=["GET"], response_model=None, summary="Whether the server answers")
    app.add_middleware(
        Guard,
        keys=ring,
        max_body_bytes=max_body_bytes,
        open_paths=frozenset(open_paths),
        allowed_hosts=frozenset(host.lower() for host in allowed_hosts),
        dialects=dialects or {},
    )
    if allowed_origins:
        from starlette.middleware.cors import CORSMiddleware

        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(allowed_origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "X-Request-Id", "X-Api-Key", "Anthropic-Version"],
            expose_headers=["X-Request-Id", "Request-Id", "Retry-After"],
        )
    return app


class Guard:
    """ASGI middleware: checks host, key and body size before the app is entered, and turns errors into answers.

    Request bodies are held whole (they are JSON of at most `max_body_bytes`); answers pass through unbuffered.
    """

    def __init__(
        self,
        app: Asgi,
        *,
        keys: KeyRing,
        max_body_bytes: int,
        open_paths: frozenset[str],
        allowed_hosts: frozenset[str],
        dialects: Mapping[str, Dialect],
    ) -> None:
        self.app, self.keys, self.max_body_bytes = app, keys, max_body_bytes
        self.open_paths, self.allowed_hosts, self.dialects = open_paths, allowed_hosts, dialects

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(reversed(scope["headers"]))
        given_id = headers.get(b"x-request-id", b"")
        request_id = given_id.decode() if _REQUEST_ID.fullmatch(given_id) else uuid.uuid4().hex
        scope["riverrun.request_id"] = request_id
        started, dialect = False, _dialect(scope["path"], self.dialects)

        async def send_marked(event: Event) -> None:
            nonlocal started
            if event["type"] == "http.response.start":
                started = True
                event["headers"] = [*event.get("headers", []), *_headers_not_in(event, request_id, dialect)]
            await send(event)

        try:
            self._check_host(scope, headers)
            key = self._check_key(scope, headers)
            with key.used() if key else nullcontext():
                scope["riverrun.key"] = key
                body = await self._read_body(receive, headers)
                if body is not None:
                    await self.app(scope, _replay(body, receive), send_marked)
        except Exception as error:
            if started:
                raise
            failure = to_http_error(error, request_id=request_id)
            if failure.status >= 500:
                _LOG.error("request %s: %s %s failed", request_id, scope["method"], scope["path"], exc_info=error)
            extra = [(name.lower().encode(), value.encode()) for name, value in failure.headers.items()]
            content = json_bytes(dialect.error_body(failure, request_id))
            length = (b"content-length", str(len(content)).encode())
            kind = (b"content-type", b"application/json")
            await send_marked(
                {"type": "http.response.start", "status": failure.status, "headers": [kind, length, *extra]}
            )
            await send_marked({"type": "http.response.body", "body": content})

    def _check_host(self, scope: Scope, headers: Mapping[bytes, bytes]) -> None:
        if self.keys or not _is_loopback(str((scope.get("server") or ("",))[0])):
            return
        host = headers.get(b"host", b"").decode("latin-1").lower()
        name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        if not name or name == "localhost" or name.endswith(".localhost") or _is_loopback(name):
            return
        if name not in self.allowed_hosts:
            raise HttpError(
                403,
                f"host '{name}' is not served: this server listens on the loopback interface without API keys; "
                "set keys or allow the host by name",
                code="host_not_allowed",
            )

    def _check_key(self, scope: Scope, headers: Mapping[bytes, bytes]) -> Key | None:
        if not self.keys or scope["path"] in self.open_paths:
            return None
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        if not scheme:
            scheme, given = b"bearer", headers.get(b"x-api-key", b"")
        found = self.keys.find(given.strip())
        if scheme.lower() != b"bearer" or found is None:
            what = "the API key is wrong" if given else "an API key is needed"
            raise HttpError(
                401,
                f"{what}: send 'Authorization: Bearer KEY' or 'X-Api-Key: KEY'",
                code="invalid_api_key",
                kind="authentication_error",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return found

    async def _read_body(self, receive: Receive, headers: Mapping[bytes, bytes]) -> bytes | None:
        """The whole body, None when the client went away, 413 when it is too long."""
        chunks: list[bytes] = []
        size, more = 0, True
        while more and size <= self.max_body_bytes + _DRAINED_BYTES:
            event = await receive()
            if event["type"] == "http.disconnect":
                return None
            chunk = event.get("body", b"")
            size, more = size + len(chunk), event.get("more_body", False)
            if size <= self.max_body_bytes:
                chunks.append(chunk)
        if size > self.max_body_bytes:
            declared = headers.get(b"content-length", b"")
            length = declared.decode() if declared.isdigit() else (f"more than {size}" if more else str(size))
            raise HttpError(
                413,
                f"the request body has {length} bytes, the limit is {self.max_body_bytes} bytes: send less",
                code="body_too_large",
            )
        return b"".join(chunks)


def _headers_not_in(event: Event, request_id: str, dialect: Dialect) -> list[tuple[bytes, bytes]]:
    """The headers every answer carries, less those that the route set itself."""
    present = {name.lower() for name, _ in event.get("headers", [])}
    wanted = [
        (b"x-request-id", request_id.encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
        (b"cache-control", b"no-store"),
    ]
    if dialect.id_header:
        wanted.append((dialect.id_header.lower().encode(), request_id.encode()))
    return [header for header in wanted if header[0] not in present]


_PLAIN = Dialect()


def _dialect(path: str, dialects: Mapping[str, Dialect]) -> Dialect:
    """Of the first entry that the path is, or stands below."""
    found = (each for top, each in dialects.items() if path == top or path.startswith(f"{top}/"))
    return next(found, _PLAIN)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A receive channel that first hands out the held body, then what follows (the disconnect)."""
    given = False

    async def replayed() -> Event:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def parse_json(body: bytes, content_type: str) -> dict[str, Any]:
    """A request's JSON object, or an HttpError that says what is wrong.

    Only `application/json` is read: browsers send other types to any server without asking it first.
    """
    media = content_type.partition(";")[0].strip().lower()
    if media != "application/json":
        found = f"'{media}'" if media else "none"
        raise HttpError(
            415, f"the content type is {found}: send JSON with 'Content-Type: application/json'", code="content_type"
        )
    try:
        value = json.loads(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise HttpError(400, f"the body is not UTF-8 text (byte {error.start})", code="invalid_json") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise HttpError(400, f"the body is not JSON: {error.msg} at {where}", code="invalid_json") from None
    except (RecursionError, ValueError):
        raise HttpError(
            400,
            f"the body's JSON is nested deeper than {_MAX_DEPTH} levels or holds a number that is too long",
            code="invalid_json",
        ) from None
    if not isinstance(value, dict):
        raise HttpError(400, f"the body must be a JSON object, it is {_kind(value)}", code="invalid_json")
    if body.count(b"{") + body.count(b"[") > _MAX_DEPTH and _depth(value) > _MAX_DEPTH:
        raise HttpError(400, f"the body's JSON is nested deeper than {_MAX_DEPTH} levels", code="invalid_json")
    if rb"\u" in body:
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise HttpError(
                400, "the body's text holds half a surrogate pair (\\ud800 to \\udfff)", code="invalid_json"
            ) from None
    return value


def _kind(value: Any) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level:
        level = [
            inner
            for item in level
            if isinstance(item, (dict, list))
            for inner in (item.values() if isinstance(item, dict) else item)
        ]
        depth += 1
    return depth - 1
