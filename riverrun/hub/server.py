"""A hub over HTTP: everybody reads (ranges, entity tags), publishers with a token write in pieces.

    GET  /index.json, /cards/NAME.yaml, /cards/NAME@VERSION.yaml, /blobs/SHA256
    GET  /uploads/SHA256?size=N   with token: {"received": bytes so far, "complete": whether it is a blob}
    PUT  /blobs/SHA256            with token; Content-Range: bytes A-B/N, in order; the last piece is checked against
                                  the digest before the blob gets its name
    PUT  /cards/NAME.yaml         with token; the card's files have to be there

Nothing outside these names can be asked for. Not covered: TLS, deleting, users with rights of their own.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from riverrun.base.artifacts import digest_file
from riverrun.base.errors import InputError
from riverrun.hub.hubs import CARD_NAME, HubFolder, parse_card
from riverrun.web.app import make_web_app
from riverrun.web.errors import HttpError, json_bytes

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = ["make_hub_app"]

_DIGEST = re.compile(r"[0-9a-f]{64}")
_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+)")


def make_hub_app(root: Path, tokens: Sequence[str] = (), *, max_file_bytes: int = 1 << 40) -> FastAPI:
    """The app over a hub's folder; without tokens nothing can be published. `max_file_bytes` bounds one file."""
    if any(len(token) < 8 or not token.isascii() or not token.isprintable() or " " in token for token in tokens):
        raise InputError("a hub's token must be at least 8 printable ASCII characters without spaces")
    app = make_web_app(title="riverrun hub")
    from fastapi import Request, Response
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import FileResponse

    hub = HubFolder(root)
    uploads = _Uploads(hub, max_file_bytes)
    known = [hashlib.sha256(token.encode()).digest() for token in tokens]

    def require_token(request: Request) -> None:
        if not known:
            raise HttpError(403, "this hub takes nothing: it was started without a token", code="read_only")
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        digest = hashlib.sha256(given.strip().encode()).digest()
        matches = [hmac.compare_digest(digest, one) for one in known]  # all of them, in constant time
        if not any(matches) or scheme.lower() != "bearer":
            what = "the token is wrong" if given else "a token is needed"
            raise HttpError(401, f"{what} to publish", code="invalid_token", headers={"WWW-Authenticate": "Bearer"})

    def file(path: Path, media: str, entity: str = "") -> Response:
        if not path.is_file():
            raise HttpError(404, f"this hub has no {path.relative_to(hub.root).as_posix()}", code="not_found")
        headers = {"Cache-Control": "no-cache"} | ({"ETag": f'"{entity}"'} if entity else {})
        return FileResponse(path, headers=headers, media_type=media)

    async def get_index() -> Response:
        return file(hub.root / "index.json", "application/json")

    async def get_card(name: str) -> Response:
        return file(hub.root / "cards" / f"{_card_name(name)}.yaml", "application/yaml")

    async def get_blob(sha256: str) -> Response:
        return file(hub.blob(_digest(sha256)), "application/octet-stream", sha256)

    def answer(value: Any) -> Response:
        return Response(json_bytes(value), media_type="application/json")

    async def get_upload(request: Request, sha256: str, size: int) -> Response:
        require_token(request)
        return answer(await run_in_threadpool(uploads.state, _digest(sha256), size))

    async def put_blob(request: Request, sha256: str) -> Response:
        require_token(request)
        body, span = await request.body(), request.headers.get("content-range", "")
        return answer(await run_in_threadpool(uploads.take, _digest(sha256), span, body))

    async def put_card(request: Request, name: str) -> Response:
        require_token(request)
        card = parse_card((await request.body()).decode("utf-8", "replace"), "the card")
        if card.name != _card_name(name):
            raise InputError(f"the card is of '{card.name}', the address names '{name}': use the card's name")
        await run_in_threadpool(hub.put, card)
        return answer({"name": card.name, "version": card.version})

    for path, endpoint, methods in (
        ("/index.json", get_index, ["GET", "HEAD"]),
        ("/cards/{name}.yaml", get_card, ["GET", "HEAD"]),
        ("/blobs/{sha256}", get_blob, ["GET", "HEAD"]),
        ("/uploads/{sha256}", get_upload, ["GET"]),
        ("/blobs/{sha256}", put_blob, ["PUT"]),
        ("/cards/{name}.yaml", put_card, ["PUT"]),
    ):
        endpoint.__annotations__.update({"request": Request, "return": None})
        app.add_api_route(path, endpoint, methods=methods, response_model=None)
    return app


def _digest(text: str) -> str:
    if not _DIGEST.fullmatch(text):
        raise HttpError(404, "a blob is named by the 64 hex digits of its sha256", code="not_found")
    return text


def _card_name(text: str) -> str:
    if not CARD_NAME.fullmatch(text):
        raise HttpError(404, "a card is named NAME or NAME@VERSION", code="not_found")
    return text


class _Uploads:
    """Files on their way in, `<root>/.uploads/<sha256>`; they survive a restart of the server."""

    def __init__(self, hub: HubFolder, max_file_bytes: int) -> None:
        self.hub, self.max_file_bytes = hub, max_file_bytes
        self.busy: set[str] = set()
        self.mutex = threading.Lock()

    def _part(self, sha256: str) -> Path:
        return self.hub.root / ".uploads" / sha256

    def state(self, sha256: str, size: int) -> dict[str, Any]:
        blob, part = self.hub.blob(sha256), self._part(sha256)
        if blob.is_file() and blob.stat().st_size == size:
            return {"received": size, "complete": True}
        have = part.stat().st_size if part.is_file() else 0
        if have > size:
            part.unlink()
            have = 0
        return {"received": have, "complete": False}

    def take(self, sha256: str, span: str, body: bytes) -> dict[str, Any]:
        """Append one piece; the answer says how far the file is, whatever piece came."""
        match = _RANGE.fullmatch(span)
        if match is None:
            raise InputError(f"the header Content-Range is '{span}': send bytes FIRST-LAST/SIZE")
        first, last = int(match[1] or 0), int(match[2]) if match[2] else -1
        size = int(match[3])
        if size > self.max_file_bytes:
            raise HttpError(413, f"the file has {size} bytes, this hub takes {self.max_file_bytes}", code="too_large")
        if last - first + 1 != len(body) or last >= size:
            raise InputError(f"the piece {first}-{last} of {size} bytes has {len(body)} bytes")
        with self._alone(sha256), self.hub.writable():
            state = self.state(sha256, size)
            if state["complete"] or state["received"] != first:
                return state
            self._require_space(size - first)
            part = self._part(sha256)
            part.parent.mkdir(parents=True, exist_ok=True)
            with open(part, "ab") as handle:
                handle.write(body)
            if first + len(body) < size:
                return {"received": first + len(body), "complete": False}
            return self._finish(part, sha256, size)

    def _finish(self, part: Path, sha256: str, size: int) -> dict[str, Any]:
        if (digest := digest_file(part)) != sha256:
            part.unlink()
            raise HttpError(
                422, f"the file's sha256 is {digest[:12]}, not {sha256[:12]}: send it again", code="wrong_bytes"
            )
        with open(part, "rb") as handle:
            os.fsync(handle.fileno())
        blob = self.hub.blob(sha256)
        blob.parent.mkdir(parents=True, exist_ok=True)
        os.replace(part, blob)
        return {"received": size, "complete": True}

    def _require_space(self, needed: int) -> None:
        free = shutil.disk_usage(self.hub.root).free
        if free < needed:
            raise HttpError(507, f"the file needs {needed} bytes more, the hub has {free} free", code="no_room")

    @contextmanager
    def _alone(self, sha256: str) -> Iterator[None]:
        """Two publishers of one file: the second is told to come again."""
        with self.mutex:
            if sha256 in self.busy:
                raise HttpError(503, "another publisher sends this file just now: try again", code="busy")
            self.busy.add(sha256)
        try:
            yield
        finally:
            with self.mutex:
                self.busy.discard(sha256)
