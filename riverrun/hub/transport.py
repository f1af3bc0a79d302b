"""HTTP for the hub: one file with resume, one JSON answer, both with retries; nothing but https leaves this machine.

`download(url, target, size, task)` leaves exactly the file's bytes in `target` or raises SourceError. After a broken
connection `target` holds what came so far and the next call goes on from there (Range, If-Range with the entity tag
kept beside it); a `target` that cannot become right is removed. Keys travel in `headers`, to the first host only.
"""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urljoin, urlsplit

from riverrun.base.errors import InputError
from riverrun.base.progress import Task

if TYPE_CHECKING:
    import httpx

__all__ = [
    "Patience",
    "SourceError",
    "download",
    "forget",
    "get_bytes",
    "get_json",
    "open_client",
    "require_safe",
    "take",
]

_RETRIED = {408, 425, 429, 500, 502, 503, 504}
_LOOPBACK = {"127.0.0.1", "localhost", "::1"}
_HOPS = 8
_JSON_BYTES = 64 * 1024 * 1024
T = TypeVar("T")


class SourceError(InputError):
    """This source cannot give the file now; another may."""


class Transient(Exception):
    """Worth another attempt."""


@dataclass(frozen=True)
class Patience:
    """How often a broken connection is taken up again, the first pause (doubled each time), the longest silence."""

    attempts: int = 4
    pause_seconds: float = 0.5
    timeout_seconds: float = 30.0


def require_safe(url: str) -> None:
    """SourceError for an address that is neither https nor on this machine."""
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
        raise SourceError(f"{url} is not encrypted: use https:")


@cache
def _trust() -> ssl.SSLContext:
    """The certificates that are trusted, read once: it takes longer than a small file."""
    import httpx

    return httpx.create_ssl_context()


def open_client(url: str, patience: Patience) -> httpx.Client:
    """A client for one address; a redirect may not leave https."""
    import httpx

    plain = url.startswith("http:")

    def check_hop(request: httpx.Request) -> None:
        if request.url.scheme != "https" and not plain:
            raise SourceError(f"{request.url} is not encrypted: use https:")
        require_safe(str(request.url))

    return httpx.Client(
        verify=_trust(),
        follow_redirects=True,
        max_redirects=_HOPS,
        timeout=patience.timeout_seconds,
        event_hooks={"request": [check_hop]},
    )


def _retry(url: str, patience: Patience, once: Callable[[], T], failed: Callable[[str], str]) -> T:
    """What `once` gives; SourceError after the last attempt, its text made by `failed` from the reason."""
    import httpx

    reason = ""
    for attempt in range(1, patience.attempts + 1):
        try:
            return once()
        except Transient as error:
            reason = str(error)
        except httpx.TooManyRedirects:
            raise SourceError(f"{url} redirects more than {_HOPS} times") from None
        except httpx.InvalidURL as error:
            raise SourceError(f"{url} is not an address ({error})") from None
        except httpx.HTTPError as error:
            reason = f"{type(error).__name__}: {error}".rstrip(": ")
        if attempt < patience.attempts:
            time.sleep(patience.pause_seconds * 2 ** (attempt - 1))
    raise SourceError(failed(reason))


# one answer ---------------------------------------------------------------------------------------------------------


def get_bytes(
    url: str,
    patience: Patience,
    *,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
    hint: str = "",
) -> tuple[bytes, str]:
    """A small answer and the address of the next page ("" when there is none).

    `hint` is added to a refusal for want of a key. The next page is on the same host: the key goes there too.
    """
    require_safe(url)
    with open_client(url, patience) as client:

        def once() -> tuple[bytes, str]:
            with client.stream(method, url, headers=headers, content=body) as answer:
                if answer.status_code in _RETRIED:
                    raise Transient(f"HTTP {answer.status_code}")
                content = bytearray()
                for chunk in answer.iter_bytes():
                    content += chunk
                    if len(content) > _JSON_BYTES:
                        raise SourceError(f"{url} answers with more than the {_JSON_BYTES} bytes that were expected")
                if answer.status_code not in (200, 201):
                    raise SourceError(refusal(url, answer, hint, bytes(content)))
                return bytes(content), _next_page(url, answer)

        return _retry(url, patience, once, lambda reason: f"{url} failed {patience.attempts} times ({reason})")


def get_json(
    url: str, patience: Patience, *, headers: Mapping[str, str] | None = None, body: Any = None, hint: str = ""
) -> tuple[Any, str]:
    """The answer to GET (POST with a `body`) and the address of the next page."""
    sent = {"Accept": "application/json", **(headers or {})}
    if body is None:
        content, more = get_bytes(url, patience, headers=sent, hint=hint)
    else:
        sent["Content-Type"] = "application/json"
        content, more = get_bytes(url, patience, method="POST", headers=sent, body=json.dumps(body).encode(), hint=hint)
    try:
        return json.loads(content), more
    except (ValueError, RecursionError):
        what = "a web page" if content.lstrip()[:1] == b"<" else f"{content[:40]!r}"
        raise SourceError(f"{url} answers with {what} where JSON was expected: check the endpoint") from None


def _next_page(url: str, answer: httpx.Response) -> str:
    found = answer.links.get("next", {}).get("url", "")
    if not found:
        return ""
    target = urljoin(url, found)
    if urlsplit(target)[:2] != urlsplit(url)[:2]:
        raise SourceError(f"{url} names a next page on another host ({urlsplit(target).netloc}): not followed")
    return target


def refusal(url: str, answer: httpx.Response, hint: str = "", content: bytes = b"") -> str:
    """One sentence for a status that is no success. `hint` says where a key comes from."""
    said = answer.headers.get("x-error-message", "") or _message_in(content)
    text = f"{url} answers HTTP {answer.status_code} {answer.reason_phrase}".rstrip()
    if said:
        text += f" ({said[:200]})"
    return f"{text}: {hint}" if hint and answer.status_code in (401, 403, 404) else text


def _message_in(content: bytes) -> str:
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        return ""
    found = (body.get("error") or body.get("Message") or body.get("msg")) if isinstance(body, dict) else None
    if isinstance(found, dict):
        found = found.get("message")
    return " ".join(str(found).split()) if found else ""


# one file -----------------------------------------------------------------------------------------------------------


def take(chunks: Iterator[bytes], target: Path, size: int | None, task: Task, name: str, *, append: bool) -> None:
    """Write chunks unbuffered, so that what was counted is on disk; more than `size` bytes are refused."""
    with open(target, "ab" if append else "wb", buffering=0) as handle:
        written = handle.tell()
        task.done = written
        for chunk in chunks:
            written += len(chunk)
            if size is not None and written > size:
                break
            handle.write(chunk)
            task.advance(len(chunk))
    if size is not None and written > size:
        target.unlink()
        raise SourceError(f"{name} is longer than the {size} bytes of its card")


def _tag(target: Path) -> Path:
    return target.with_name(target.name + ".etag")


def forget(target: Path) -> None:
    """Remove what came and its tag."""
    target.unlink(missing_ok=True)
    _tag(target).unlink(missing_ok=True)


def download(
    url: str,
    target: Path,
    size: int | None,
    task: Task,
    patience: Patience,
    *,
    headers: Mapping[str, str] | None = None,
    hint: str = "",
) -> None:
    """Bring `url` to `target`. `size` None takes what there is; a web page is then taken only for .html names."""
    shown = url.partition("?")[0] if headers else url

    def failed(reason: str) -> str:
        have = target.stat().st_size if target.exists() else 0
        if not have:
            forget(target)
        of = f"{have} of {size}" if size is not None else f"{have}"
        return f"{shown} failed {patience.attempts} times, {of} bytes are here ({reason})"

    with open_client(url, patience) as client:
        _retry(url, patience, lambda: _once(client, url, target, size, task, headers or {}, hint), failed)
    _tag(target).unlink(missing_ok=True)


def _once(
    client: httpx.Client,
    url: str,
    target: Path,
    size: int | None,
    task: Task,
    headers: Mapping[str, str],
    hint: str,
) -> None:
    have = target.stat().st_size if target.exists() else 0
    if have == size and target.exists():
        return  # a killed run had brought the last byte
    tag = _tag(target)
    asked = {"Accept-Encoding": "identity", **headers}
    if have:
        asked["Range"] = f"bytes={have}-"
        if tag.exists():
            asked["If-Range"] = tag.read_text()
    with client.stream("GET", url, headers=asked) as answer:
        status = answer.status_code
        if status in _RETRIED:
            raise Transient(f"HTTP {status}")
        if status == 416:
            forget(target)
            raise Transient("the part at hand does not fit the file on the server, starting anew")
        if status not in (200, 206):
            forget(target)
            raise SourceError(refusal(url, answer, hint))
        if status == 206 and not answer.headers.get("content-range", "").startswith(f"bytes {have}-"):
            forget(target)
            raise Transient("the server sent another range than asked for, starting anew")
        begun = have if status == 206 else 0
        _refuse_another_file(url, answer, begun, target, size)
        entity = answer.headers.get("etag", "")
        if entity and not entity.startswith("W/"):
            tag.write_text(entity)
        else:
            tag.unlink(missing_ok=True)
        take(answer.iter_bytes(), target, size, task, url, append=status == 206)
    have = target.stat().st_size
    if size is not None and have < size:
        raise Transient(f"the connection ended after {have} of {size} bytes")


def _refuse_another_file(url: str, answer: httpx.Response, begun: int, target: Path, size: int | None) -> None:
    """What the headers already show: a shorter file than the card's, a page where a file was asked for."""
    length = "" if "content-encoding" in answer.headers else answer.headers.get("content-length", "")
    if size is not None and length.isdigit() and begun + int(length) < size:
        forget(target)
        raise SourceError(f"{url} has {begun + int(length)} bytes, its card says {size}")
    kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
    if size is None and kind == "text/html" and not urlsplit(url).path.lower().endswith((".html", ".htm")):
        forget(target)
        raise SourceError(f"{url} answers with a web page, not with a file: give the address of the file itself")
