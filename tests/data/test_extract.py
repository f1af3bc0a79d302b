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
    assert document.metadata["title"] == "Returns"  # the title is "Returns | Shop"
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
    assert marked.text == "Intro\n\nOur shop\n\nText"
    assert marked.metadata["title"] == "Our shop"


def test_markdown_is_read_as_a_reader_sees_it() -> None:
    """Short pages with headings and tables were dropped for their marks."""
    page = read(
        "# The *price* list\n[Home](/) | [Shop](/shop) | [Help](/help)\n> Ask at the **desk**, or see [terms](t.md).\n"
        "## Fees\n| Service | Price |\n|:---|---:|\n| X-ray | 2 * 40 |\n- snake_case stays\n---\n"
        "```\n# no heading\n```",
        "markdown",
    )
    assert page.metadata["title"] == "The price list"
    assert page.text.split("\n") == [
        "The price list",
        "",
        "Ask at the desk, or see terms.",
        "",
        "Fees",
        "",
        "Service | Price",
        "X-ray | 2 * 40",
        "• snake_case stays",
        "",
        "# no heading",
    ]


LISTS = [
    ("<main><ul><li>One thing<li>Another <a href=x>thing</a></ul></main>", "• One thing\n• Another thing"),
    ("<p>We sell:<ul><li>maps<ul><li>old ones</ul><li>books</ul>", "• maps\n• old ones\n• books"),
    (
        "<p>We sell:</p><ul class='x'>\n<li>maps</li>\n</ul><h2>And</h2><ul><li>books</li></ul>",
        "• maps\n\nAnd\n\n• books",
    ),
    ("<script>var a = '<ul><li>no' + '<main>';</script><p>We sell:</p><ul><li>maps</li></ul>", "• maps"),
    ("<main><p>First:</p><ol><li>open</li><li>read</li></ol></main>", "1. open\n2. read"),
]


@pytest.mark.parametrize(("html", "text"), LISTS)
def test_lists_that_are_content_stay(html: str, text: str) -> None:
    assert read(f"<body><h1>Shop</h1>{html}<p>Come and see us.</p></body>").text.endswith(f"{text}\n\nCome and see us.")


@pytest.mark.parametrize(
    "html",
    [
        "<main><p>Text.</p><ul><li><a href=a>Menu</a></li><li><a href=b>Menu</a></li></ul></main>",
        "<p>Text.</p><nav><p>Go to</p><ul><li>Menu</li></ul></nav>",
        "<p>Text.</p><footer><p>x</p><ul><li>Menu</li></ul></footer>",
        "<div><ul><li>Menu</li></ul></div><p>Text.</p>",
    ],
)
def test_lists_that_are_menus_go(html: str) -> None:
    assert "Menu" not in read(f"<body>{html}</body>").text


@pytest.mark.parametrize(
    "unit", ["<div>", "<ul><li>", "<main><ul><li>a</li></ul>", "<ul", "<script>", "<p><a>", "</ul>"]
)
def test_hostile_markup_is_read_in_one_pass(unit: str) -> None:
    result = Extract().edit(Document("x", "<p>hello</p>" + unit * 20_000))
    assert isinstance(result, Drop | Edited)


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.text(max_size=200))
def test_any_text_is_read_or_dropped(html: str) -> None:
    for kind in ("html", "text", "markdown"):
        result = Extract().edit(Document("x", html, metadata={"format": kind}))
        assert isinstance(result, Drop) or (result.document.text.strip() and result.document.metadata["title"])
