"""Tool tasks on a real SQLite table and a scripted model: what counts as fetched and what does not."""

from __future__ import annotations

import json
import random
import sqlite3
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from riverrun.base.errors import InputError, ToolError
from riverrun.base.fakes import FakeModel
from riverrun.base.protocols import Completion, Request
from riverrun.base.types import Message, ToolCall, ToolResult, ToolSpec, Usage
from riverrun.evaluate.tooltasks import Record, ToolQuestion, compare, is_ordered, run, same_rows, score

BOOKS = [("The Blue Door", "Mara Lind", 12.5, 3), ("O'Hara's Garden", "Mara Lind", 8.0, 0), ("Salt", "Jon Ek", 20.0, 7)]
TOOL = ToolSpec("query_database", "Run SQL.", {"type": "object"})


@pytest.fixture
def execute() -> Callable[[ToolCall], ToolResult]:
    database = sqlite3.connect(":memory:")
    database.execute("CREATE TABLE books (title TEXT, author TEXT, price REAL, stock INTEGER)")
    database.executemany("INSERT INTO books VALUES (?, ?, ?, ?)", BOOKS)
    pages = {"returns": ["returns.html", "faq.html"], "opening hours": ["visit.html"]}

    def carry_out(call: ToolCall) -> ToolResult:
        if call.name == "search_policies":
            return ToolResult(call.id, call.name, "...", data={"pages": pages.get(call.arguments["query"], [])})
        assert call.name == "query_database", "only the tool that a question needs is carried out"
        try:
            cursor = database.execute(call.arguments["sql"])
        except sqlite3.Error as error:
            raise ToolError(f"query failed: {error}") from None
        return ToolResult(call.id, call.name, "", data={"columns": [], "rows": [list(row) for row in cursor]})

    return carry_out


def sql_call(sql: str) -> ToolCall:
    return ToolCall("query_database", {"sql": sql})


def judge(execute: Any, gold: str, reply: Any, kind: str = "lookup", page: str | None = None) -> Record:
    question = ToolQuestion("q1", "What?", "an_intent", kind, "dev", gold or None, page)
    (record,) = run(FakeModel([reply]), [question], execute=execute, system="Be brief.", tools=[TOOL])
    return record


GOLD = "SELECT title, price FROM books WHERE author = 'Mara Lind'"


@pytest.mark.parametrize(
    ("sql", "success"),
    [
        (GOLD, True),
        ("SELECT title, price FROM books WHERE author LIKE 'mara%' ORDER BY price", True),
        ("SELECT ' ' || title || ' ', price + 0.0000001 FROM books WHERE stock < 5", True),
        ("SELECT price, title FROM books WHERE author = 'Mara Lind'", False),
        ("SELECT title FROM books WHERE author = 'Mara Lind'", False),
        ("SELECT title, price FROM books", False),
        ("SELECT title, price FROM books WHERE author = 'Nobody'", False),
        ("SELECT title, price + 0.01 FROM books WHERE author = 'Mara Lind'", False),
        ("SELECT DISTINCT author, price FROM books WHERE author = 'Mara Lind'", False),
        ("SELEC title", False),
        ("", False),
    ],
)
def test_rows_decide_not_words(execute: Any, sql: str, success: bool) -> None:
    assert judge(execute, GOLD, sql_call(sql)).success is success


def test_a_failing_query_keeps_its_error_and_the_gold_rows(execute: Any) -> None:
    record = judge(execute, GOLD, sql_call("SELECT pages FROM books"))
    assert "no such column" in record.error
    assert record.rows is None
    assert sorted(record.expected) == [["O'Hara's Garden", 8.0], ["The Blue Door", 12.5]]
    assert record.sql == "SELECT pages FROM books"


@pytest.mark.parametrize(
    ("gold", "sql", "success"),
    [
        ("SELECT title FROM books ORDER BY price", "SELECT title FROM books ORDER BY price DESC", False),
        ("SELECT title FROM books ORDER BY price", "SELECT title FROM books ORDER BY price ASC", True),
        ("SELECT title FROM books ORDER BY price LIMIT 1", "SELECT title FROM books WHERE price = 8", True),
        ("SELECT title FROM books", "SELECT title FROM books ORDER BY price DESC", True),
    ],
)
def test_order_counts_where_the_gold_query_orders(execute: Any, gold: str, sql: str, success: bool) -> None:
    assert judge(execute, gold, sql_call(sql)).success is success


@pytest.mark.parametrize(
    ("sql", "ordered"),
    [
        ("SELECT a FROM t ORDER BY a LIMIT 5", True),
        ("SELECT a FROM t order  by a limit 1 ;", False),
        ("SELECT a FROM t ORDER BY a LIMIT 10", True),
        ("SELECT a FROM (SELECT a FROM t ORDER BY (b) LIMIT 3)", False),
        ("SELECT a FROM t WHERE title = 'order by a'", False),
        ("SELECT a FROM t WHERE x IN (SELECT x FROM u LIMIT 1) ORDER BY a", True),
    ],
)
def test_is_ordered(sql: str, ordered: bool) -> None:
    assert is_ordered(sql) is ordered


@pytest.mark.parametrize(
    ("sql", "success"),
    [
        ("SELECT stock FROM books WHERE title = 'The Glass Harbour'", True),
        ("SELECT title FROM books WHERE title LIKE '%glass harbour%'", True),
        ("SELECT price FROM books WHERE title = 'Something Else'", False),
        ("SELECT price FROM books WHERE 0", False),
        ("SELECT price FROM books WHERE title = 'Salt'", False),
    ],
)
def test_nothing_found_counts_only_when_the_right_thing_was_looked_for(execute: Any, sql: str, success: bool) -> None:
    gold = "SELECT price FROM books WHERE title = 'The Glass Harbour'"
    assert judge(execute, gold, sql_call(sql), "none_found").success is success


def test_nothing_found_with_a_number(execute: Any) -> None:
    gold = "SELECT title FROM books WHERE stock = 99 LIMIT 5"
    assert judge(execute, gold, sql_call("SELECT title FROM books WHERE stock = 99"), "none_found").success
    assert not judge(execute, gold, sql_call("SELECT title FROM books WHERE stock = 999"), "none_found").success


def test_pages_and_chat(execute: Any) -> None:
    search = ToolCall("search_policies", {"query": "returns"})
    assert judge(execute, "", search, "page", "faq.html").success
    missed = judge(execute, "", search, "page", "visit.html")
    assert not missed.success
    assert (missed.rows, missed.expected) == (["returns.html", "faq.html"], "visit.html")
    wrong = judge(execute, "", sql_call("SELECT 1"), "page", "faq.html")
    assert not wrong.success
    assert wrong.error == "called query_database, needed search_policies"
    assert not judge(execute, "", "It is 30 days.", "page", "faq.html").success
    assert judge(execute, "", "Hello!", "chat").success
    assert not judge(execute, "", search, "chat").success
    assert not judge(execute, "", "  ", "chat").success


def test_the_first_call_of_a_plain_model_counts(execute: Any) -> None:
    assert judge(execute, GOLD, (sql_call(GOLD), sql_call("SELECT 1"))).success
    assert not judge(execute, GOLD, (sql_call("SELECT 1"), sql_call(GOLD))).success
    assert judge(execute, GOLD, "The price is 12.5").error == "no call of query_database"


class ScriptedAgent(FakeModel):
    """A model that reports steps, as an agent does."""

    def __init__(self, steps: list[dict[str, Any]], text: str = "Done.") -> None:
        super().__init__([text])
        self.steps = steps

    def generate(self, requests: Any) -> list[Completion]:
        assert all(not request.tools for request in requests)
        return [
            Completion(Message.of("assistant", "Done."), "stop", Usage(), steps=tuple(self.steps)) for _ in requests
        ]


def step(sql: str, rows: Any, error: bool = False) -> dict[str, Any]:
    data = None if rows is None else {"rows": rows}
    return {"tool": "query_database", "arguments": {"sql": sql}, "content": "text", "data": data, "is_error": error}


@pytest.mark.parametrize(
    ("steps", "success"),
    [
        ([step("x", None, True), step("y", [["The Blue Door", 12.5], ["O'Hara's Garden", 8]])], True),
        ([step("y", [["The Blue Door", 12.5], ["O'Hara's Garden", 8]]), step("x", None, True)], False),
        ([step(GOLD, None)], True),
        ([step("y", [["Salt", 20.0]])], False),
        ([], False),
    ],
)
def test_an_agent_is_judged_by_its_last_fitting_step(execute: Any, steps: Any, success: bool) -> None:
    question = ToolQuestion("q1", "What?", "an_intent", "lookup", "dev", GOLD)
    (record,) = run(ScriptedAgent(steps), [question], execute=execute)
    assert record.success is success


def test_all_questions_are_handed_over_at_once(execute: Any) -> None:
    batches = []

    class Model(FakeModel):
        def generate(self, requests: Any) -> list[Completion]:
            batches.append(list(requests))
            return super().generate(requests)

    questions = [ToolQuestion(f"q{n}", f"text {n}", "hello", "chat") for n in range(5)]
    run(Model(["Hello."]), questions, execute=execute, system="You are a clerk.", tools=[TOOL])
    (batch,) = batches
    assert [request.messages[-1].text for request in batch] == [f"text {n}" for n in range(5)]
    assert all(request.messages[0].text == "You are a clerk." and request.tools == (TOOL,) for request in batch)


def make_records(outcomes: list[bool]) -> list[Record]:
    return [
        Record(f"q{n}", "?", f"intent {n % 2}", "lookup" if n % 3 else "page", [], None, None, None, ok, "", "", "")
        for n, ok in enumerate(outcomes)
    ]


def test_score_and_compare() -> None:
    before = make_records([False] * 8 + [True] * 4)
    after = make_records([True] * 6 + [False] * 2 + [True] * 3 + [False])
    report = score(after).as_dict()
    assert report["success"]["value"] == pytest.approx(9 / 12)
    assert report["success"]["low"] < 0.75 < report["success"]["high"]
    assert sum(rate["n"] for rate in report["by_kind"].values()) == 12
    assert sum(rate["successes"] for rate in report["by_intent"].values()) == 9
    random.Random(3).shuffle(after)
    comparison = compare(before, after)
    assert (comparison.gains, comparison.losses, comparison.n) == (6, 1, 12)
    assert comparison.difference == pytest.approx(5 / 12)
    with pytest.raises(InputError, match="differ in 1 questions, the first is 'q11'"):
        compare(before, after[:-1] if after[-1].id == "q11" else [r for r in after if r.id != "q11"])


def test_records_survive_json(execute: Any) -> None:
    record = judge(execute, GOLD, sql_call(GOLD))
    again = Record.from_dict(json.loads(json.dumps(record.as_dict())))
    assert again == record
    assert score([again]) == score([record])


def test_question_from_dict_and_refusals(execute: Any) -> None:
    line = {"id": "a", "text": "b", "intent": "c", "kind": "count", "split": "dev", "sql": "SELECT 1", "reply": "x"}
    assert ToolQuestion.from_dict(line) == ToolQuestion("a", "b", "c", "count", "dev", "SELECT 1")
    with pytest.raises(InputError, match="lacks the key 'text'"):
        ToolQuestion.from_dict({"id": "a"})
    with pytest.raises(InputError, match="'a' is of kind 'count' and holds no gold query"):
        ToolQuestion.from_dict(line | {"sql": None})
    with pytest.raises(InputError, match="'a' is of kind 'page' and names no page"):
        ToolQuestion.from_dict(line | {"kind": "page"})
    with pytest.raises(InputError, match=r"gold query of question 'q1' fails .*no such table: shelves"):
        judge(execute, "SELECT * FROM shelves", sql_call("SELECT 1"))


CELLS = st.one_of(
    st.integers(-3, 3), st.floats(-2, 2).map(lambda x: round(x, 2)), st.sampled_from(["a", "b"]), st.none()
)
TABLES = st.integers(1, 3).flatmap(lambda width: st.lists(st.lists(CELLS, min_size=width, max_size=width), max_size=8))


@settings(derandomize=True, max_examples=80, deadline=None)
@given(TABLES, st.randoms(use_true_random=False), st.data())
def test_same_rows_ignores_order_and_sees_every_change(rows: list[list[Any]], shuffler: Any, data: Any) -> None:
    near = [[cell + 3e-7 if isinstance(cell, float) else cell for cell in row] for row in rows]
    shuffler.shuffle(near)
    assert same_rows(rows, near)
    assert same_rows(near, rows)
    if rows:
        assert not same_rows(rows, near[1:])
        which = data.draw(st.integers(0, len(rows) - 1))
        column = data.draw(st.integers(0, len(rows[0]) - 1))
        changed = [list(row) for row in near]
        changed[which][column] = "another"
        assert not same_rows(rows, changed)
        assert not same_rows(rows, [*near[1:], [*near[0], 1]])


def test_request_defaults_are_greedy(execute: Any) -> None:
    model = FakeModel(["Hello."])
    run(model, [ToolQuestion("q", "hi", "greet", "chat")], execute=execute)
    request: Request = model.requests[0]
    assert request.params.temperature == 0.0
    assert [message.role for message in request.messages] == ["user"]


def test_a_question_may_need_rows_and_a_page(execute: Any) -> None:
    right, found = sql_call(GOLD), ToolCall("search_policies", {"query": "returns"})

    def both(*calls: ToolCall) -> Record:
        return judge(execute, GOLD, Message("assistant", tool_calls=calls), "both", "returns.html")

    assert both(right, found).success
    assert both(found, right).success
    assert not both(right).success
    assert both(right).error == "no call of search_policies"
    assert not both(found).success
    assert not both(sql_call("SELECT title FROM books"), found).success
    steps = [{"tool": c.name, "arguments": dict(c.arguments), "data": None, "is_error": False} for c in (right, found)]
    question = ToolQuestion("q", "What?", "i", "both", "dev", GOLD, "returns.html")
    (record,) = run(ScriptedAgent(steps), [question], execute=execute)
    assert record.success
    assert [call["name"] for call in record.calls] == ["query_database", "search_policies"]
    with pytest.raises(InputError, match="kind 'both' and names no page"):
        ToolQuestion("q", "What?", "i", "both", "dev", GOLD)
