"""Answers kept to what the tools returned: listings, quotations, texts that may stay, nothing shown unchecked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from riverrun.agent.ground import Extract, Found, Grounding, list_rows, said, say_column
from riverrun.agent.guard import MaskContacts
from riverrun.agent.loop import Agent
from riverrun.agent.tool import Tool
from riverrun.agent.tools.search import SearchTool
from riverrun.base.errors import InputError
from riverrun.base.fakes import FakeModel, Reply
from riverrun.base.protocols import Completion, Request
from riverrun.base.types import Document, Message, SamplingParams, ToolCall, ToolResult, ToolSpec

PAGES = [
    Document("returns.html", "Returns\n\nBooks can be sent back within 30 days. The postage is £2.80."),
    Document("hours.html", "Opening hours\n\nDay From To\nMonday 9:00 18:00\nSunday 11:00 16:00"),
]
SEARCH = SearchTool(PAGES)
QUERY = ToolCall("query_database", {"sql": "SELECT 1"})
LOOK = ToolCall("search_policies", {"query": "How long can I send books back?"})


class Rows:
    """A query tool that returns what it is given."""

    effects = "read"

    def __init__(self, columns: Sequence[str], rows: Sequence[Sequence[Any]], more: bool = False) -> None:
        self.spec = ToolSpec("query_database", "", {"type": "object", "properties": {}})
        self.data = {"columns": list(columns), "rows": [list(row) for row in rows], "more": more}

    def run(self, arguments: Any) -> ToolResult:
        if "fail" in arguments.get("sql", ""):
            return ToolResult("", "query_database", "error: no such table 99", True)
        return ToolResult("", "query_database", str(self.data["rows"]), data=self.data)


PRICE = Rows(["title", "price"], [["Salt Road", 12.5]])


def ask(
    script: Sequence[Reply], tool: Tool = PRICE, text: str = "How much is Salt Road?", **given: Any
) -> tuple[str, FakeModel]:
    """The agent's answer, the same streamed as whole."""
    answers = []
    for streamed in (False, True):
        model = FakeModel(script)
        grounding = Grounding(Extract(SEARCH.extract), **given)
        agent = Agent(model, [tool, SEARCH], grounding=grounding, guards=[MaskContacts()])
        request = Request(messages=(Message.of("user", text),))
        if streamed:
            answers.append("".join(delta.text for delta in agent.stream(request)))
        else:
            answers.append(agent.generate([request])[0].message.text)
    assert answers[0] == answers[1]
    return answers[0], model


@pytest.mark.parametrize(
    "text", ["Salt Road costs 12.50.", "It is £12.50 for Salt Road.", "12.5 (Salt Road)", "SALT ROAD: 12.500"]
)
def test_a_text_that_says_the_rows_stays(text: str) -> None:
    assert ask([QUERY, text])[0] == text


@pytest.mark.parametrize(
    "text", ["Salt Road costs 13.50.", "It costs a lot.", "", "Salt Road costs 12.50 and has 300 pages.", "12.5"]
)
def test_a_text_that_does_not_is_replaced(text: str) -> None:
    assert ask([QUERY, text])[0] == "title: Salt Road, price: 12.5"


def test_listings() -> None:
    assert list_rows(["COUNT(*)"], [[5]], False, "en") == "count: 5"
    assert list_rows(["AVG(unitPrice)"], [[10 / 3]], False, "en") == "average unit price: 3.33"
    assert list_rows(["a * 2"], [[7]], False, "en") == "7"
    assert list_rows(["name"], [["Ann"], ["Bo"]], False, "en") == "name: Ann, Bo"
    assert list_rows(["菜名", "价格"], [["鱼", 38.0], ["汤", None]], False, "zh") == "菜名、价格:\n- 鱼、38\n- 汤、无"
    assert list_rows(["n"], [[i] for i in range(12)], False, "en").endswith("8, 9\n(There are more rows.)")
    assert list_rows(["n"], [[1]], True, "zh") == "n:1\n(还有更多记录。)"
    assert (
        list_rows(["n"], [], False, "en") == list_rows(["n"], [[None]], False, "en") == "No matching rows were found."
    )
    assert list_rows(["x"], [[0.001234]], False, "en") == "x: 0.001234"
    names = ["ROUND(SUM(orders.total_amount), 2)", "InvoiceDate", "order_id", "COUNT(DISTINCT x)", "max(a+b)", "1"]
    assert [say_column(name, "en") for name in names] == [
        *("total total amount", "invoice date", "order id", "count", "highest", "")
    ]


def test_no_rows_and_more_rows() -> None:
    none = Rows(["title"], [])
    assert ask([QUERY, "There is no such book."], none)[0] == "There is no such book."
    assert ask([QUERY, "It is by Ann Lee."], none)[0] == "No matching rows were found."
    assert ask([QUERY, "Nothing, but 12 others."], none)[0] == "No matching rows were found."
    assert ask([QUERY, "很多。"], none, "有多少书?")[0] == "没有找到符合条件的记录。"
    many = Rows(["n"], [[1], [2]], more=True)
    assert ask([QUERY, "1 and 2"], many)[0] == "n: 1, 2\n(There are more rows.)"


def test_rows_without_a_closing_turn() -> None:
    text, model = ask([QUERY, "never asked"], closing="rows")
    assert text == "title: Salt Road, price: 12.5"
    assert len(model.requests) == 1
    failing = ToolCall("query_database", {"sql": "fail"})
    text, model = ask([failing, QUERY], closing="rows")
    assert text == "title: Salt Road, price: 12.5"
    assert len(model.requests) == 2


def test_what_stands_before_a_call_is_not_said() -> None:
    early = Message("assistant", Message.of("assistant", "It is 99.").content, tool_calls=(QUERY,))
    assert ask([early, "Salt Road is 12.50."])[0] == "Salt Road is 12.50."
    assert "99" not in ask([early], closing="rows")[0]


def test_a_failed_query_leaves_no_invention() -> None:
    failing = ToolCall("query_database", {"sql": "fail"})
    assert ask([failing, "It costs 15."])[0] == "I could not find an answer to that."
    assert ask([failing, "I cannot look that up."])[0] == "I cannot look that up."
    assert ask(["Hello! I have 3 hands."])[0] == "Hello! I have 3 hands."  # nothing was looked up


def test_pages_are_quoted() -> None:
    question = "How long can I send books back?"
    right = "Books can be sent back within 30 days."
    assert ask([LOOK, right], text=question)[0] == right
    assert ask([LOOK, "You have 30 days."], text=question)[0] == "You have 30 days."
    for wrong in ("You have 60 days.", "As long as you like.", "You have 30 days, or 45."):
        assert "within 30 days" in ask([LOOK, wrong], text=question)[0]
    nowhere = ToolCall("search_policies", {"query": "xylophone"})
    assert ask([nowhere, "We sell them."], text="xylophone?")[0] == "I found nothing about that on the pages."
    assert ask([nowhere, "I do not know."], text="xylophone?")[0] == "I do not know."


def test_both() -> None:
    question = "How much is Salt Road, and how long can I send books back?"
    calls = (QUERY, LOOK)
    good = "Salt Road is 12.50. Books can be sent back within 30 days."
    assert ask([calls, good], text=question)[0] == good
    text = ask([calls, "Salt Road is 12.50. Ask us."], text=question)[0]
    assert text == "Salt Road is 12.50. Ask us.\nBooks can be sent back within 30 days. The postage is £2.80."
    half = ask([calls, "You have 30 days."], text=question)[0]
    assert half == "title: Salt Road, price: 12.5\nYou have 30 days."
    none, model = ask([calls, "never asked"], text=question, closing="rows", writer=Extract(SEARCH.extract))
    assert none.startswith("title: Salt Road, price: 12.5\nBooks can be sent back within 30 days.")
    assert len(model.requests) == 1


def test_a_writer_words_page_answers() -> None:
    seen = []

    def writer(question: str, found: Found, params: SamplingParams) -> Completion:
        seen.append((question, found.query, found.pages[0]))
        return said("Within 30 days.")

    text, model = ask([LOOK, "never asked"], text="How long?", writer=writer)
    assert text == "Within 30 days."
    assert len(model.requests) == 1
    assert seen[0] == ("How long?", LOOK.arguments["query"], "returns.html")

    def inventing(question: str, found: Found, params: SamplingParams) -> Completion:
        return said("Within 90 days.")

    assert "within 30 days" in ask([LOOK], text="How long?", writer=inventing)[0]
    assert ask([LOOK], text="How long?", writer=inventing, checked=False)[0] == "Within 90 days."

    def refusing(question: str, found: Found, params: SamplingParams) -> Completion:
        raise InputError("the prompt is too long")

    assert "within 30 days" in ask([LOOK], text="How long?", writer=refusing)[0]


def test_the_right_row_of_a_table_is_quoted() -> None:
    look = ToolCall("search_policies", {"query": "When do you open on Sunday?"})
    text, _ = ask([look], text="When do you open on Sunday?", writer=Extract(SEARCH.extract))
    assert text == "Day From To: Sunday 11:00 16:00"


def test_guards_come_last_and_unchecked_answers_are_streamed() -> None:
    mail = Rows(["email"], [["ann@example.org"]])
    assert ask([QUERY], mail, closing="rows")[0] == "email: [email]"
    agent = Agent(
        FakeModel([QUERY, "It costs 13."]), [PRICE], grounding=Grounding(Extract(SEARCH.extract), checked=False)
    )
    deltas = list(agent.stream(Request(messages=(Message.of("user", "?"),))))
    assert len([delta for delta in deltas if delta.text]) > 1


def test_another_grounding_is_another_agent() -> None:
    model, extract = FakeModel(["x"]), Extract(SEARCH.extract)
    digests = {
        Agent(model, [PRICE], grounding=grounding).info.digest
        for grounding in (
            None,
            Grounding(extract),
            Grounding(extract, closing="rows"),
            Grounding(extract, name="other"),
        )
    }
    assert len(digests) == 4


CELLS = st.one_of(
    st.none(), st.integers(-(10**9), 10**9), st.floats(-1e9, 1e9, allow_nan=False), st.text(max_size=12),
    st.sampled_from(["2024-05-03", "Ann Lee", "14:30", "三十天", "1,200"]),
)  # fmt: skip


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.lists(st.lists(CELLS, min_size=2, max_size=2), max_size=12), st.booleans(), st.sampled_from(["en", "zh"]))
def test_a_listing_passes_its_own_check(rows: list[list[Any]], more: bool, language: str) -> None:
    columns = ["a_1", "b"]
    data = {"columns": columns, "rows": rows, "more": more}
    step = {"tool": "q", "arguments": {}, "content": "", "data": data, "is_error": False}
    listing = list_rows(columns, rows, more, language)
    assert Grounding(Extract(SEARCH.extract)).check(listing, "?", [step], language) == listing
