"""Errors as HTTP answers, in the JSON form that OpenAI clients read: {"error": {message, type, param, code}}.

Routes whose clients read another form have a `Dialect`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from riverrun.base.errors import (
    BusyError,
    CapacityError,
    InputError,
    IntegrityError,
    LateError,
    MissingDependency,
    RiverrunError,
    UnsupportedError,
)

__all__ = ["Dialect", "HttpError", "error_body", "json_bytes", "to_http_error"]


RETRY_SECONDS = "1"
"""When a full queue may be asked again."""


class HttpError(InputError):
    """A refusal with its own status. `param` is the field it is about, `code` a stable word for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        kind: str = "invalid_request_error",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param, self.kind, self.headers = status, code, param, kind, dict(headers or {})


def to_http_error(error: Exception, *, request_id: str = "") -> HttpError:
    """The answer to any exception. What is not meant for a person becomes a 500 that shows the request id alone."""
    match error:
        case HttpError():
            return error
        case CapacityError():
            return HttpError(400, str(error), code="context_length_exceeded")
        case UnsupportedError():
            return HttpError(400, str(error), code="unsupported")
        case MissingDependency() | IntegrityError():
            return HttpError(500, str(error), code="not_usable", kind="server_error")
        case BusyError():
            return HttpError(
                429, str(error), code="queue_full", kind="rate_limit_error", headers={"Retry-After": RETRY_SECONDS}
            )
        case LateError():
            return HttpError(408, str(error), code="timeout", kind="timeout_error")
        case InputError():
            return HttpError(400, str(error), code="invalid_request")
        case RiverrunError():
            return HttpError(500, str(error), code="failed", kind="server_error")
    note = f" (request {request_id}; the server's log has the details)" if request_id else ""
    return HttpError(500, f"internal error{note}", code="internal", kind="server_error")


def error_body(error: HttpError) -> dict[str, Any]:
    return {"error": {"message": str(error), "type": error.kind, "param": error.param, "code": error.code}}


@dataclass(frozen=True, slots=True)
class Dialect:
    """How the routes below one path speak: the body of an error (and the request's id), and one more header that
    carries this id in every answer."""

    error_body: Callable[[HttpError, str], dict[str, Any]] = lambda error, request_id: error_body(error)
    id_header: str = ""


_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=str)


def json_bytes(value: Any) -> bytes:
    """UTF-8 JSON of any value: not-finite numbers become null, unknown objects their text, lone surrogates '?'."""
    try:
        text = _ENCODER.encode(value)
    except (ValueError, TypeError):
        text = json.dumps(_plain(value), ensure_ascii=False, default=str)
    return text.encode("utf-8", "replace")


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    return value
