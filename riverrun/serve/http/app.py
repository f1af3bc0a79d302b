"""The app that serves any `LanguageModel`s by id: a model, an agent, a remote endpoint or a fake."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from riverrun.base.optional import require
from riverrun.base.protocols import LanguageModel
from riverrun.web.app import MAX_BODY_BYTES, make_web_app
from riverrun.web.keys import KeyRing
from riverrun.web.page import page_headers

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = ["make_app"]


def make_app(
    models: Mapping[str, LanguageModel],
    *,
    api_keys: Sequence[str] | KeyRing = (),
    page: bool = True,
    title: str = "riverrun",
    max_body_bytes: int = MAX_BODY_BYTES,
    allowed_hosts: Sequence[str] = (),
    allowed_origins: Sequence[str] = (),
    keep_alive_seconds: float = 15.0,
    sessions: Path | None = None,
    adapters: Path | None = None,
    timeout_seconds: float = 0.0,
    log: Path | None = None,
    log_texts: bool = False,
) -> FastAPI:
    """OpenAI's routes (`openai`, `responses`), Anthropic's (`messages`), those beside them (`more`), /health, /ready,
    /metrics; with `page` a chat page at / and how the server does at /monitor.

    `models` is read at each request, so it may gain and lose models while serving. See `make_web_app` for keys, body
    limit, hosts and origins. A silent stream gets a comment every `keep_alive_seconds`. `sessions` and `adapters` are
    the folders that clients may name files of. A request ends after `timeout_seconds` at the latest (0: never). `log`
    is a file that gets a line for each request, with what was asked only if `log_texts`.
    """
    require("fastapi", extra="serve")
    from riverrun.serve.http.desk import HttpDesk
    from riverrun.serve.http.document import document
    from riverrun.serve.http.messages import add_messages
    from riverrun.serve.http.messages_events import DIALECT
    from riverrun.serve.http.more import add_more
    from riverrun.serve.http.openai import add_routes
    from riverrun.serve.http.responses import add_responses
    from riverrun.serve.http.status import add_status

    app = make_web_app(
        title=title,
        api_keys=api_keys,
        max_body_bytes=max_body_bytes,
        allowed_hosts=allowed_hosts,
        allowed_origins=allowed_origins,
        open_paths=("/health", "/ready", *(("/", "/monitor") if page else ())),
        dialects={"/v1/messages": DIALECT},
    )
    desk = HttpDesk(models, keep_alive_seconds=keep_alive_seconds, timeout_seconds=timeout_seconds)
    add_routes(app, desk)
    add_responses(app, desk)
    add_messages(app, desk)
    add_more(app, desk, sessions=sessions, adapters=adapters)
    add_status(app, desk)
    document(app)
    if log is not None:
        from riverrun.serve.http.journal import Journal

        app.add_middleware(Journal, file=log, texts=log_texts)
    if page:
        from riverrun.serve.page import chat_page, monitor_page

        for path, html in (("/", chat_page(title)), ("/monitor", monitor_page(title))):
            _add_page(app, path, html)
    return app


def _add_page(app: FastAPI, path: str, html: str) -> None:
    from fastapi import Response

    headers = page_headers(html)

    async def get_page() -> Response:
        return Response(html, media_type="text/html", headers=headers)

    app.add_api_route(path, get_page, methods=["GET"], response_model=None, include_in_schema=False)
