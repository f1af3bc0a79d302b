"""Pages to text: what a reader came for, without menus, footers and notices, from broken markup too."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from riverrun.base.types import Document
from riverrun.data.extract import Extract
from riverrun.data.operators import Drop, Edited

BODY = (
    "<h1>Returns</h1><p>You may send a book back within 30 days of delivery.</p><p>The refund goes to your card after "
    "we have looked at the book, which takes about a week.</p><ul>"
    "<li>Signed copies stay sold.</li><li>Maps, too.</li></ul>"
)
PAGE = (
    "<!doctype html><html><head><title>Returns\n | Shop</title><link rel='canonical' href='/returns.html'>"
    "<style>p {{color: red}}</style></head><body><a class='skip-link' href='#m'>Skip to content</a>"
    "<div class='cookie-banner'>We use cookies. <button>Accept all</button></div>"
    "<nav><ul><li><a href='/'>Home</a></li><li><a href='/books'>Books</a></li></ul></nav>"
    "<main id='m'>{body}</main><footer>© 2024 Harbour Shop. All rights reserved.</footer>"
    "<script>var x = 'tracking';</script></body></html>"
)


def read(html: str, kind: str = "html") -> Document:
    edited = Extract().edit(Document("page.html", html, metadata={"format": kind}))
    assert isinstance(edited, Edited)
    return edited.document


def test_the_main_text_and_title() -> None:
    document = read(PAGE.format(body=BODY))
    assert document.metadata["title"] == "Returns | Shop"
    assert document.metadata["canonical"] == "/returns.html"
    assert "within 30 days of delivery" in document.text
    assert document.text.endswith("• Signed copies stay sold.\n• Maps, too.")
    for noise in ("cookies", "Accept", "Home", "Books", "2024", "tracking", "color", "Skip"):
        assert noise not in document.text


@pytest.mark.parametrize(
    "html",
    [
        PAGE.format(body=BODY).replace("</p>", "").replace("</li>", ""),
        PAGE.format(body=BODY).replace("</nav>", ""),
        PAGE.format(body=BODY).replace("Accept all</button></div>", "Accept all</button>"),
        PAGE.format(body=BODY).replace("</main>", "").replace("</body></html>", ""),
        PAGE.format(body=BODY).replace("</title>", "</titel></title>"),
        PAGE.format(body="<b><i>" + BODY + "</b></i>&nbsp;&amp;&bogus; <p"),
        BODY,
    ],
)
def test_broken_markup_keeps_the_text(html: str) -> None:
    text = read(html).text
    assert "within 30 days of delivery" in text
    assert "takes about a week" in text


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (Document("a", "", metadata={"format": "html"}), "empty"),
        (Document("a", "<html><body><script>x</script></body></html>", metadata={"format": "html"}), "empty"),
        (Document("a", " \n", metadata={"format": "text"}), "empty"),
        (Document("a", "", metadata={"format": "html", "problem": "cannot be read"}), "unreadable"),
    ],
)
def test_pages_without_text_are_dropped_with_a_reason(document: Document, reason: str) -> None:
    drop = Extract().edit(document)
    assert isinstance(drop, Drop)
    assert drop.reason == reason


def test_text_and_markdown() -> None:
    plain = read("Opening hours\r\n\r\n\r\n\r\nWe open  at nine.", "text")
    assert plain.text == "Opening hours\n\nWe open at nine."
    assert plain.metadata["title"] == "Opening hours"
    marked = read("---\nlayout: page\n---\nIntro\n# Our shop\nText", "markdown")
    assert marked.text == "Intro\n# Our shop\nText"
    assert marked.metadata["title"] == "Our shop"


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.text(max_size=200))
def test_any_text_is_read_or_dropped(html: str) -> None:
    for kind in ("html", "text", "markdown"):
        result = Extract().edit(Document("x", html, metadata={"format": kind}))
        assert isinstance(result, Drop) or (result.document.text.strip() and result.document.metadata["title"])
