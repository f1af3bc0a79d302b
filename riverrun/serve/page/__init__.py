"""The pages of a server, each one self-contained document without a build step: the chat over /v1/models and
/v1/chat/completions, and how the server does, over /status."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from riverrun.web.page import Both, Markup, page

__all__ = ["chat_page", "monitor_page"]


def chat_page(title: str = "riverrun") -> str:
    """The whole page as HTML; serve it with `riverrun.web.page.page_headers`."""
    return _page("chat", title, Both("Chat with a model or an agent of this server", "与本服务器上的模型或智能体对话"))


def monitor_page(title: str = "riverrun") -> str:
    """Queue, cache and throughput of each model that keeps counts."""
    return _page("monitor", title, Both("How this server does", "服务器状态"))


def _page(name: str, title: str, subtitle: Both) -> str:
    files = (f"{name}.html", f"{name}.css", "dom.js", f"{name}.js")
    html, css, *scripts = (Path(__file__).with_name(each).read_text(encoding="utf-8") for each in files)
    layout: Literal["app", "document"] = "app" if name == "chat" else "document"
    return page(title, Markup(html), subtitle=subtitle, style=css, script="\n".join(scripts), layout=layout)
