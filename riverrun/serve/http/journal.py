"""A line of JSON for each request that a server answered: who, for whom, what, how long, how many tokens; texts on
demand."""

from __future__ import annotations

import json
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from riverrun.base.errors import InputError
from riverrun.base.types import Usage
from riverrun.web.app import Asgi, Event, Receive, Scope, Send
from riverrun.web.keys import Key

__all__ = ["Journal"]


class Journal:
    """ASGI middleware. `texts` writes what was asked, too; without it no word of a prompt is kept."""

    def __init__(self, app: Asgi, *, file: Path, texts: bool = False) -> None:
        """InputError when the file cannot be written."""
        self.app, self.texts = app, texts
        self._lock = threading.Lock()
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(file, "a", encoding="utf-8")  # noqa: SIM115
        except OSError as error:
            raise InputError(f"the request log {file} cannot be written ({error.strerror}): choose another") from None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status, written = time.monotonic(), 0, False

        def write() -> None:
            nonlocal written
            if not written:
                written = True
                self._write(scope, status, time.monotonic() - began)

        async def seen(event: Event) -> None:
            nonlocal status
            if event["type"] == "http.response.start":
                status = event["status"]
            elif not event.get("more_body", False):
                write()  # who has the whole answer finds its line
            await send(event)

        try:
            await self.app(scope, receive, seen)
        finally:
            write()

    def _write(self, scope: Scope, status: int, seconds: float) -> None:
        asked: dict[str, Any] = scope.get("riverrun.asked") or {}
        key, usage = scope.get("riverrun.key"), scope.get("riverrun.usage", Usage())
        user = asked.get("user")
        record = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "request": scope.get("riverrun.request_id", ""),
            "key": key.name if isinstance(key, Key) else "",
            "user": user if isinstance(user, str) else "",
            "method": scope["method"],
            "path": scope["path"],
            "status": status,
            "seconds": round(seconds, 4),
            "model": asked.get("model") or "",
            "stream": bool(asked.get("stream")),
            "prompt_tokens": usage.prompt_tokens,
            "cached_tokens": usage.cached_tokens,
            "completion_tokens": usage.completion_tokens,
        }
        if self.texts:
            record["asked"] = asked
        with self._lock:
            self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
            self._file.flush()
