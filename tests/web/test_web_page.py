"""The page shell: escaping, two languages, no outside file, headers that fit the page."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from riverrun.web.page import (
    Both,
    Markup,
    Turn,
    badge,
    code_block,
    details,
    join,
    number,
    page,
    page_headers,
    paragraph,
    plain,
    section,
    table,
    tiles,
    transcript,
)

EVIL = "<script>alert('x')</script>&\"'"


class _Tags(HTMLParser):
    """Collects tags and checks that they nest."""

    void = frozenset({"meta", "link", "br", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def read(html: str) -> _Tags:
    tags = _Tags()
    tags.feed(html)
    tags.close()
    assert tags.open == []
    return tags


def every_part(text: str) -> Markup:
    both = Both(text, text)
    step = {"tool": text, "arguments": {"sql": text}, "content": text, "is_error": True}
    return join(
        section(text, paragraph(text, both), anchor=text),
        table([text, both], [[text, 1], [both, None]], numeric={1}, caption=text),
        tiles([(text, both, text), (text, text)]),
        details(both, text, open=True),
        code_block(text, language=text),
        badge(both, kind="bad"),
        transcript([Turn("user", text), Turn("assistant", text, [step, {**step, "arguments": {"a": text, "b": 1}}])]),
    )


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.text(alphabet=st.sampled_from("<>&\"'/a b{}\n中\x00%"), min_size=1))
def test_text_never_becomes_markup(text: str) -> None:
    plain_page, other = read(page("t", every_part("x"))), read(page("t", every_part(text)))
    assert other.seen == plain_page.seen


def test_title_subtitle_and_navigation_are_escaped() -> None:
    html = page(EVIL, subtitle=EVIL, navigation=[(EVIL, EVIL)])
    assert "<script>alert" not in html
    assert read(html).seen.count("script") == 1


def test_markup_passes_and_both_languages_are_there() -> None:
    html = page(Both("Report", "报告"), paragraph(Markup("<b>bold</b>"), Both("yes & no", "是")))
    assert "<b>bold</b>" in html
    assert '<span lang="en">yes &amp; no</span><span lang="zh">是</span>' in html
    assert '<title data-en="Report" data-zh="报告">Report</title>' in html
    assert '<html lang="zh" data-lang="zh" data-pick="zh">' in page("t", lang="zh")


def test_page_needs_no_other_file() -> None:
    tags = read(page("t", every_part("x"), style="p{}", script="1;"))
    targets = [value for _, name, value in tags.attributes if name in {"src", "href", "action", "srcset"}]
    assert set(targets) <= {"data:,"}
    assert "@import" not in page("t")
    assert "url(" not in page("t")


def test_headers_allow_exactly_the_scripts_of_the_page() -> None:
    html = page("t", script="console.log(1 < 2);")
    policy = page_headers(html)["Content-Security-Policy"]
    allowed = re.findall(r"'sha256-([^']+)'", policy)
    scripts = [part.partition("</script>")[0] for part in html.split("<script>")[1:]]
    assert len(scripts) == 2
    assert allowed == [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    assert policy.startswith("default-src 'none'")
    assert "'none'" in page_headers("<p>no script</p>")["Content-Security-Policy"].split("script-src ")[1][:7]


def test_a_script_that_would_end_the_element_is_a_programmers_error() -> None:
    with pytest.raises(AssertionError):
        page("t", script="'</script>'")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (12345, "12,345"),
        (0.123456, "0.1235"),
        (1234.5, "1,234"),
        (-3, "-3"),
        (True, "yes"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
    ],
)
def test_number(value: float | None, text: str) -> None:
    assert number(value) == text


def test_plain_text_of_every_kind_of_content() -> None:
    assert plain(Both("a", "b")) == "a"
    assert plain(Both("a", "b"), "zh") == "b"
    assert plain(Markup("<i>x &amp; y</i>")) == "x & y"
    assert plain("<i>") == "<i>"


def test_a_table_row_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        table(["a", "b"], [["only one"]])


def test_lone_surrogates_do_not_break_writing() -> None:
    page("t", paragraph("half \ud800 pair")).encode("utf-8")
