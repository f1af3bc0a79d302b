"""The search tool: the right page first, sentences that answer, content that stays short."""

from __future__ import annotations

import re
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from riverrun.agent.tools.passages import split_page
from riverrun.agent.tools.search import SearchTool
from riverrun.base.errors import InputError, MissingDependency
from riverrun.base.types import Document
from riverrun.base.words import sentences, stem, words

PAGES = [
    Document(
        "returns.html",
        "Returns\n\nWe are glad you are here. Books can be sent back within 30 days. The book must be unread. "
        "We pay the postage.\n\nGift cards cannot be returned.\n\n" + "Filler about nothing at all. " * 30,
        metadata={"title": "Returning a book"},
    ),
    Document("shipping.html", "Shipping times\nStandard delivery takes 3 to 5 working days.\nExpress takes one day."),
    Document("events.html", "Events\n\nReadings are held on Fridays at 7 pm in the back room."),
    Document("zh.html", "退货政策\n\n图书可在三十天内退货。运费由本店承担。"),
]


def test_finds_pages_and_answers() -> None:
    tool = SearchTool(PAGES, name="search_policies", description="Search the shop's pages.")
    assert tool.spec.parameters == {
        "type": "object",
        "properties": {"query": {"type": "string"}},
        "required": ["query"],
    }
    result = tool.run({"query": "How long do I have for sending back a book?"})
    assert result.data["pages"][0] == "returns.html"
    assert result.content.startswith("[returns.html] Returning a book: ")
    assert "within 30 days" in result.content
    assert len(result.content) <= 500
    assert tool.run({"query": "express deliveries"}).data["pages"] == ["shipping.html"]
    assert tool.run({"query": "when is the next reading"}).data["pages"][0] == "events.html"
    assert tool.run({"query": "退货要多少天"}).data["pages"][0] == "zh.html"


def test_the_title_counts() -> None:
    pages = [
        Document("a", "One word on parking. Much else."),
        Document("b", "Much else.", metadata={"title": "Parking"}),
    ]
    assert SearchTool(pages).run({"query": "parking"}).data["pages"] == ["b", "a"]


def test_a_page_is_listed_once() -> None:
    pages = [Document("long", "\n\n".join(["parking " * 60] * 5)), Document("short", "No parking here.")]
    found = SearchTool(pages, top_k=3).run({"query": "parking"})
    assert sorted(found.data["pages"]) == ["long", "short"]
    assert found.content.count("[long]") == 1


def test_nothing_found_and_bad_arguments() -> None:
    tool = SearchTool(PAGES)
    assert tool.run({"query": "xylophone"}).content == "(no page found: try other words)"
    assert tool.run({"query": "xylophone"}).data == {"pages": [], "scores": []}
    assert not tool.run({"query": "xylophone"}).is_error
    assert tool.run({"query": " ?! "}).is_error
    assert "no argument 'text'" in tool.run({"text": "x"}).content
    assert tool.run({"query": "the of and"}).data["pages"] == []


def test_construction(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="without any"):
        SearchTool([Document("a", " \n")])
    with pytest.raises(InputError, match="top_k"):
        SearchTool(PAGES, top_k=0)
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(MissingDependency, match=r"riverrun\[agent\]"):
        SearchTool(PAGES)


@pytest.mark.parametrize(
    "group",
    [
        "return returns returned returning",
        "delivery deliveries",
        "price prices priced pricing",
        "ship ships shipped shipping",
        "box boxes boxed",
        "order's orders order",
    ],
)
def test_forms_of_a_word_meet(group: str) -> None:
    assert len({words(word)[0] for word in group.split()}) == 1


def test_words() -> None:
    assert words("The Café's 3rd re-opening (2024)") == ["café", "3rd", "re", "open", "2024"]
    assert words("买书") == ["买书"]
    assert words("我要退货 now") == ["我要", "要退", "退货", "now"]
    assert words("what is this") == ["what", "is", "this"]
    assert stem("bus") == "bus"
    assert stem("bed") == "bed"
    assert sentences('One. Two! "Three?" 四。五\nsix') == ["One.", "Two!", '"Three?"', "四。", "五", "six"]


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.text(max_size=80), st.integers(80, 300))
def test_any_query_is_answered_within_the_limit(query: str, characters: int) -> None:
    result = SearchTool(PAGES, characters=characters, top_k=3).run({"query": query})
    assert result.is_error or len(result.content) <= characters


HOURS = """Opening hours

Home › Opening hours

We are open all week.

Reception

Day From To
Monday 8:00 18:00
Sunday 10:00 12:00

What to bring

Please have these with you:
• Your card
• A list of medicines

Parking

Parking costs 2 euros an hour. The first 30 minutes are free.

How do I cancel?
Ring us a day before.
What does it cost?
Nothing until noon."""


def test_passages_keep_rows_under_their_headings() -> None:
    passages = split_page(0, HOURS, "Opening hours", skip={"We are open all week."})
    assert [(passage.heading, passage.parts, passage.rows) for passage in passages] == [
        ("Reception – Day From To", ("Monday 8:00 18:00", "Sunday 10:00 12:00"), True),
        ("What to bring", ("Please have these with you:", "Your card", "A list of medicines"), True),
        ("Parking", ("Parking costs 2 euros an hour.", "The first 30 minutes are free."), False),
        ("Parking – How do I cancel?", ("Ring us a day before.",), False),
        ("Parking – What does it cost?", ("Nothing until noon.",), False),
    ]
    assert split_page(0, "Opening hours", "Opening hours")[0].parts == ("Opening hours",)
    long = split_page(0, "One sentence of words. " * 100, "")
    assert len(long) > 4
    assert all(len(passage.text) <= 360 for passage in long)


def test_a_row_is_found_by_its_heading_and_page() -> None:
    clinic = SearchTool([Document("hours.html", HOURS), *PAGES])
    result = clinic.run({"query": "What are the opening hours on Sunday?"})
    assert result.content.startswith("[hours.html] Opening hours: ")
    assert "Reception – Day From To: Monday 8:00 18:00; Sunday 10:00 12:00" in result.content
    assert clinic.extract("What are the opening hours on Sunday?").endswith("Sunday 10:00 12:00")
    assert clinic.extract("what is the cost of parking").startswith("Parking: Parking costs 2 euros an hour.")
    assert clinic.extract("xylophone") == ""
    assert len(clinic.extract("parking", characters=20)) <= 20


def test_what_stands_on_all_pages_is_not_quoted() -> None:
    pages = [Document(f"{n}", f"The page {n}\n\nBook a table now\n\nTable {n} is by the window.") for n in "abcde"]
    tool = SearchTool(pages)
    assert tool.extract("table d") == "Table d is by the window."
    assert "Book a table now" in SearchTool(pages[:2]).extract("book")


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.text(alphabet="ab. ?\n#-•|:9›。", max_size=120), st.text(alphabet="ab 9", max_size=6))
def test_any_page_is_split(text: str, title: str) -> None:
    """No word is lost but those of headings, which stand over a passage, and of the title."""
    passages = split_page(0, text, title)
    kept = " ".join(f"{passage.heading} {passage.text}" for passage in passages) + " " + title
    assert set(re.findall("[ab9]+", text)) <= set(re.findall("[ab9]+", kept))
