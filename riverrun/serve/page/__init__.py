"""The chat page: one self-contained document over /v1/models and /v1/chat/completions, without a build step."""

from __future__ import annotations

from pathlib import Path

from riverrun.web.page import Both, Markup, page

__all__ = ["chat_page"]


def chat_page(title: str = "riverrun") -> str:
    """The whole page as HTML; serve it with `riverrun.web.page.page_headers`."""
    parts = {
        kind: Path(__file__).with_name(f"chat.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js")
    }
    return page(
        title,
        Markup(parts["html"]),
        subtitle=Both("Chat with a model or an agent of this server", "与本服务器上的模型或智能体对话"),
        style=parts["css"],
        script=parts["js"],
        layout="app",
    )
