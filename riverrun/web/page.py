"""A self-contained HTML page: inline CSS and script, two languages, dark and light, readable without JavaScript.

Text is escaped unless it is `Markup`. `Both(en, zh)` holds a text in two languages, of which the reader sees one.
Not covered: templates, routing, and any page that needs a file beside it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from markupsafe import Markup, escape

__all__ = [
    "Both",
    "Content",
    "Markup",
    "Turn",
    "badge",
    "code_block",
    "details",
    "escape",
    "join",
    "number",
    "page",
    "page_headers",
    "paragraph",
    "plain",
    "section",
    "table",
    "tiles",
    "transcript",
]

_SCRIPT = re.compile(r"<script>(.*?)</script>", re.S)


@dataclass(frozen=True, slots=True)
class Both:
    """One text in English and in Chinese."""

    en: str
    zh: str

    def __html__(self) -> Markup:
        return Markup('<span lang="en">{}</span><span lang="zh">{}</span>').format(self.en, self.zh)


Content = str | Both | Markup


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a shown conversation; `steps` are tool calls in the form of `Completion.steps`."""

    role: str
    text: str
    steps: Sequence[Mapping[str, Any]] = ()


_ROLES = {
    "system": Both("System", "系统"),
    "user": Both("User", "用户"),
    "assistant": Both("Assistant", "助手"),
    "tool": Both("Tool", "工具"),
}


def plain(content: Content, lang: str = "en") -> str:
    """The text without tags, in one language: for titles and attributes."""
    if isinstance(content, Both):
        return content.zh if lang == "zh" else content.en
    return content.striptags() if isinstance(content, Markup) else content


def join(*parts: Content, sep: str = "") -> Markup:
    """All parts in a row, each escaped unless it is Markup."""
    return Markup(escape(sep)).join(escape(part) for part in parts)


def number(value: float | int | None) -> str:
    """A figure for people: 12,345 · 0.1234 (4 significant digits) · – for None."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if value != value or value in (float("inf"), float("-inf")):
        return str(value)
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def paragraph(*parts: Content) -> Markup:
    return Markup("<p>{}</p>").format(join(*parts))


def section(title: Content, *parts: Content, anchor: str = "") -> Markup:
    """A titled part of the page; `anchor` is the target of a navigation entry."""
    identity = Markup(' id="{}"').format(anchor) if anchor else Markup("")
    return Markup("<section{}><h2>{}</h2>{}</section>").format(identity, title, join(*parts))


def table(
    columns: Sequence[Content],
    rows: Iterable[Sequence[Content | int | float | None]],
    *,
    numeric: Collection[int] = (),
    caption: Content = "",
) -> Markup:
    """A table; the columns in `numeric` are right-aligned, figures are written by `number`."""
    kinds = [Markup(' class="number"') if index in numeric else Markup("") for index in range(len(columns))]
    head = Markup("").join(
        Markup('<th scope="col"{}>{}</th>').format(k, c) for k, c in zip(kinds, columns, strict=True)
    )
    body = Markup("")
    for row in rows:
        cells = [_cell(value) for value in row]
        body += Markup("<tr>{}</tr>").format(
            Markup("").join(Markup("<td{}>{}</td>").format(k, c) for k, c in zip(kinds, cells, strict=True))
        )
    top = Markup("<caption>{}</caption>").format(caption) if caption else Markup("")
    return Markup('<div class="scroll"><table>{}<thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>').format(
        top, head, body
    )


def _cell(value: Content | int | float | None) -> Content:
    return value if isinstance(value, (str, Both)) else number(value)


def tiles(items: Iterable[tuple[Content, Content] | tuple[Content, Content, Content]]) -> Markup:
    """Key figures side by side: (label, value) or (label, value, note)."""
    out = Markup("")
    for label, value, *note in items:
        below = Markup("<small>{}</small>").format(note[0]) if note else Markup("")
        out += Markup("<div><dt>{}</dt><dd>{}{}</dd></div>").format(label, value, below)
    return Markup('<dl class="tiles">{}</dl>').format(out)


def details(summary: Content, *parts: Content, open: bool = False) -> Markup:
    """A folded part, opened by a click (it works without JavaScript)."""
    state = Markup(" open") if open else Markup("")
    return Markup("<details{}><summary>{}</summary>{}</details>").format(state, summary, join(*parts))


def code_block(text: str, *, language: str = "") -> Markup:
    """Preformatted text: a command, SQL, JSON."""
    return Markup('<pre class="code" data-language="{}"><code>{}</code></pre>').format(language, text)


def badge(text: Content, *, kind: Literal["good", "bad", "warn", "plain"] = "plain") -> Markup:
    """A short status word."""
    return Markup('<span class="badge {}">{}</span>').format(kind, text)


def transcript(turns: Iterable[Turn]) -> Markup:
    """A conversation as bubbles; the tool calls of a turn are folded above its text."""
    out = Markup("")
    for turn in turns:
        steps = Markup("").join(_step(step) for step in turn.steps)
        text = Markup('<div class="text">{}</div>').format(turn.text) if turn.text else Markup("")
        label = _ROLES.get(turn.role, turn.role)
        out += Markup('<div class="turn {}"><div class="role">{}</div>{}{}</div>').format(turn.role, label, steps, text)
    return Markup('<div class="transcript">{}</div>').format(out)


def _step(step: Mapping[str, Any]) -> Markup:
    arguments = step.get("arguments") or {}
    if isinstance(arguments, Mapping) and len(arguments) == 1 and isinstance(next(iter(arguments.values())), str):
        shown, language = next(iter(arguments.values())), next(iter(arguments))
    else:
        shown, language = json.dumps(arguments, ensure_ascii=False, default=str), "json"
    failed = badge(Both("error", "出错"), kind="bad") if step.get("is_error") else Markup("")
    summary = join(Markup("<code>{}</code> ").format(str(step.get("tool", ""))), failed)
    return Markup('<div class="step">{}</div>').format(
        details(summary, code_block(str(shown), language=language), code_block(str(step.get("content", ""))))
    )


@cache
def _asset(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


_DOCUMENT = Markup(
    """<!doctype html>
<html lang="{lang}" data-lang="{lang}" data-pick="{pick}">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title data-en="{title_en}" data-zh="{title_zh}">{title}</title>
<link rel="icon" href="data:,">
<style>
{style}</style>
</head>
<body class="{layout}">
<header><div class="heading"><h1>{heading}</h1>{subtitle}</div>{navigation}<div class="switches" hidden>\
<button type="button" id="switch-language"></button>\
<button type="button" id="switch-theme">◐</button></div></header>
<main>
{body}
</main>
{scripts}</body>
</html>
"""
)


def page(
    title: Content,
    *parts: Content,
    lang: Literal["auto", "en", "zh"] = "auto",
    subtitle: Content = "",
    navigation: Sequence[tuple[str, Content]] = (),
    style: str = "",
    script: str = "",
    layout: Literal["document", "app"] = "document",
) -> str:
    """A whole document without any outside file.

    `lang="auto"` starts in the browser's language (English without JavaScript). `navigation` lists (anchor, text).
    `style` and `script` are added after the shell's own. `layout="app"` fills the window instead of flowing.
    """
    styles, scripts = _asset("page.css") + style, [_asset("page.js"), *([script] if script else [])]
    assert "</style" not in styles
    assert all("</script" not in item for item in scripts)
    links = Markup("").join(Markup('<a href="#{}">{}</a>').format(anchor, text) for anchor, text in navigation)
    html = _DOCUMENT.format(
        lang="zh" if lang == "zh" else "en",
        pick=lang,
        title=plain(title, "zh" if lang == "zh" else "en"),
        title_en=plain(title, "en"),
        title_zh=plain(title, "zh"),
        style=Markup(styles),
        layout=layout,
        heading=title,
        subtitle=Markup("<p>{}</p>").format(subtitle) if subtitle else "",
        navigation=Markup("<nav>{}</nav>").format(links) if links else "",
        body=join(*parts, sep="\n"),
        scripts=Markup("".join(f"<script>{item}</script>\n" for item in scripts)),
    )
    return str(html).encode("utf-8", "replace").decode("utf-8")


def page_headers(html: str) -> dict[str, str]:
    """Headers to serve a page with: only its own inline scripts may run, and it talks to its own server alone."""
    digests = (hashlib.sha256(text.encode()).digest() for text in _SCRIPT.findall(html))
    scripts = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests) or "'none'"
    return {
        "Content-Security-Policy": f"default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; "
        "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }
