"""The app that serves any `LanguageModel`s by id: a model, an agent, a remote endpoint or a fake."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from riverrun.base.optional import require
from riverrun.base.protocols import LanguageModel
from riverrun.web.app import MAX_BODY_BYTES, make_web_app
from riverrun.web.page import page_headers

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = ["make_app"]


def make_app(
    models: Mapping[str, LanguageModel],
    *,
    api_keys: Sequence[str] = (),
    page: bool = True,
    title: str = "riverrun",
    max_body_bytes: int = MAX_BODY_BYTES,
    allowed_hosts: Sequence[str] = (),
    keep_alive_seconds: float = 15.0,
) -> FastAPI:
    """Routes /v1/chat/completions, /v1/completions, /v1/score, /v1/models, /health; with `page` the chat page at /.

    `models` is read at each request, so it may gain and lose models while serving. See `make_web_app` for keys, body
    limit and hosts. A silent stream gets a comment every `keep_alive_seconds`.
    """
    require("fastapi", extra="serve")
    from fastapi import Response

    from riverrun.serve.http.desk import Desk
    from riverrun.serve.http.more import add_more
    from riverrun.serve.http.openai import add_routes

    app = make_web_app(
        title=title,
        api_keys=api_keys,
        max_body_bytes=max_body_bytes,
        allowed_hosts=allowed_hosts,
        open_paths=("/", "/health") if page else ("/health",),
    )
    desk = Desk(models, keep_alive_seconds=keep_alive_seconds)
    add_routes(app, desk)
    add_more(app, desk)
    if page:
        from riverrun.serve.page import chat_page

        html = chat_page(title)
        headers = page_headers(html)

        async def get_page() -> Response:
            return Response(html, media_type="text/html", headers=headers)

        app.add_api_route("/", get_page, methods=["GET"], response_model=None, include_in_schema=False)
    return app
