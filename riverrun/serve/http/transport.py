"""Sending requests to an OpenAI-style endpoint: tried again where that helps, refusals as one clear sentence.

429, 5xx (but 501) and broken connections are tried again after 0.5, 1, 2 ... seconds (with some chance in it, so that
many clients do not return together), or after what Retry-After says. Unreachable addresses and timeouts are not.
"""

from __future__ import annotations

import email.utils
import json
import math
import random
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx

from riverrun.base.errors import CapacityError, InputError, UnsupportedError
from riverrun.serve.http.sse import EventParser

__all__ = ["Transport"]

_LONGEST_WAIT_SECONDS = 60.0


class Transport:
    """HTTP to one endpoint. Thread-safe. `base_url` without a path gets "/v1"."""

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str,
        timeout_seconds: float,
        connections: int,
        attempts: int,
        sleep: Callable[[float], None],
    ) -> None:
        try:
            parts = urlsplit(base_url)
            host = httpx.URL(base_url).host if parts.port != 0 else ""
        except (ValueError, httpx.InvalidURL):
            host = ""
        if not host or parts.scheme not in ("http", "https"):
            raise InputError(f"'{base_url}' is not an http address: give one such as http://127.0.0.1:8000/v1")
        if not api_key.isascii() or (api_key and not api_key.isprintable()):
            raise InputError("the API key must be printable ASCII text: check it for line breaks")
        self.base_url = base_url.rstrip("/") + ("" if parts.path.strip("/") else "/v1")
        self.attempts, self.timeout_seconds, self._sleep = attempts, timeout_seconds, sleep
        is_local = host in ("localhost", "::1") or host.startswith("127.")
        self._http = httpx.Client(
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(timeout_seconds, connect=min(10.0, timeout_seconds)),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=connections),
            trust_env=not is_local,  # a proxy of the environment cannot reach this machine's own servers
        )

    def close(self) -> None:
        self._http.close()

    def ask(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, allow: Collection[int] = ()
    ) -> tuple[int, dict[str, Any]]:
        """Status and JSON object of the answer; statuses of `allow` are handed back instead of raised."""
        response = self._send(method, path, body, allow=allow, stream=False)
        value = _json_object(response.content)
        if value is None and response.status_code == 200:
            raise InputError(
                f"{self.base_url}{path} answered with something else than a JSON object: check the address"
            )
        return response.status_code, value or {}

    @contextmanager
    def events(self, path: str, body: Mapping[str, Any]) -> Iterator[Iterator[dict[str, Any]]]:
        """The JSON objects of a streamed answer up to [DONE]. Leaving the block closes the connection."""
        response = self._send("POST", path, body, allow=(), stream=True)
        try:
            yield self._read_events(response, path)
        finally:
            response.close()

    def _read_events(self, response: httpx.Response, path: str) -> Iterator[dict[str, Any]]:
        parser = EventParser()
        try:
            for chunk in response.iter_bytes():
                for data in parser.feed(chunk):
                    if data.strip() == "[DONE]":
                        return
                    value = _json_object(data.encode())
                    if value is None:
                        raise InputError(f"{self.base_url}{path} sent an event that is not a JSON object: {data[:120]}")
                    if value.get("error"):
                        raise _refusal(f"{self.base_url}{path}", "in the stream", value)
                    yield value
        except httpx.TimeoutException:
            raise self._too_slow(path) from None
        except httpx.TransportError as error:
            raise InputError(f"the stream of {self.base_url}{path} broke off ({_words(error)}): ask again") from None

    def _send(
        self, method: str, path: str, body: Mapping[str, Any] | None, *, allow: Collection[int], stream: bool
    ) -> httpx.Response:
        url = f"{self.base_url}{path}"
        content = None if body is None else json.dumps(body).encode()
        headers = {} if body is None else {"Content-Type": "application/json"}
        for attempt in range(1, self.attempts + 1):
            last = attempt == self.attempts
            try:
                request = self._http.build_request(method, url, content=content, headers=headers)
                response = self._http.send(request, stream=stream)
                if response.status_code == 200 or response.status_code in allow:
                    return response
                response.read()
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                raise InputError(
                    f"{self.base_url} cannot be reached ({_words(error)}): check the address and that the server runs"
                ) from None
            except httpx.TimeoutException:
                raise self._too_slow(path) from None
            except httpx.TransportError as error:
                if last:
                    raise InputError(f"{url} broke off {attempt} times ({_words(error)}): try again later") from None
                wait = _backoff(attempt)
            else:
                again = response.status_code == 429 or (response.status_code >= 500 and response.status_code != 501)
                wait = _retry_after(response.headers.get("retry-after", ""), _backoff(attempt))
                if not again or last or wait > _LONGEST_WAIT_SECONDS:
                    tried = f"with {response.status_code}" + (f", {attempt} times" if again and attempt > 1 else "")
                    raise _refusal(url, tried, _json_object(response.content) or {}, response.text)
            self._sleep(wait)
        raise AssertionError("attempts is at least 1")

    def _too_slow(self, path: str) -> InputError:
        return InputError(
            f"{self.base_url}{path} sent nothing for {self.timeout_seconds:g} s: raise timeout_seconds or ask for less"
        )


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__


def _json_object(content: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _refusal(url: str, how: str, value: Mapping[str, Any], text: str = "") -> InputError:
    """The server's own words, as the error class that our server would have raised."""
    inner = value.get("error")
    fields: Mapping[str, Any] = inner if isinstance(inner, Mapping) else {}
    message = fields.get("message") or inner or value.get("message") or value.get("detail") or text.strip()[:300]
    kinds = {"context_length_exceeded": CapacityError, "unsupported": UnsupportedError}
    return kinds.get(str(fields.get("code")), InputError)(f"{url} refused {how}: {message or 'no reason given'}")


def _backoff(attempt: int) -> float:
    return float(0.5 * 2 ** (attempt - 1) * random.uniform(0.75, 1.25))


def _retry_after(value: str, otherwise: float) -> float:
    """Seconds of a Retry-After header: a number or an HTTP date."""
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return otherwise
    return max(0.0, seconds) if math.isfinite(seconds) else otherwise
