"""Conversations: the call, the tool's own words, the reply; what cannot be trained on is refused or left out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from riverrun.base.errors import InputError
from riverrun.base.types import ToolCall, ToolResult
from riverrun.data.conversations import (
    Question,
    build_conversations,
    build_questions,
    load_intents,
    read_conversations,
    write_conversations,
)
from tests.data.small_shop import TOOLS, make_database, make_intents, tool_runner

SYSTEM = "You work in a bookshop."


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return make_database(tmp_path / "shop.sqlite")


@pytest.fixture
def questions(tmp_path: Path, database: Path) -> list[Question]:
    return build_questions(
        load_intents(make_intents(tmp_path / "i.yaml")), database, split="train", per_intent=4, seed=2
    )


def test_each_kind_has_its_turns(questions: list[Question], database: Path, tmp_path: Path) -> None:
    run = tool_runner(database)
    made = build_conversations(questions, system=SYSTEM, tools=TOOLS, run_tool=run)
    assert [conversation.id for conversation in made] == [question.id for question in questions]
    for question, conversation in zip(questions, made, strict=True):
        roles = [message.role for message in conversation.messages]
        assert conversation.messages[0].text == SYSTEM
        assert conversation.messages[-1].text == question.reply
        if question.kind == "chat":
            assert roles == ["system", "user", "assistant"]
            continue
        assert roles == ["system", "user", "assistant", "tool", "assistant"]
        (call,) = conversation.messages[2].tool_calls
        expected = {"query": question.text} if question.kind == "page" else {"sql": question.sql}
        assert call.arguments == expected
        assert conversation.messages[3].text == run(call).content
        assert conversation.messages[3].tool_call_id == call.id
    write_conversations(tmp_path / "train.jsonl", made)
    assert read_conversations(tmp_path / "train.jsonl") == made


def test_a_page_the_search_does_not_find_ends_with_the_call_and_is_told(
    questions: list[Question], database: Path
) -> None:
    told: list[tuple[str, str]] = []
    made = build_conversations(
        questions,
        system="",
        tools=TOOLS,
        run_tool=tool_runner(database, found=("other.html",)),
        on_skip=lambda question, why: told.append((question.id, why)),
    )
    pages = [question.id for question in questions if question.kind == "page"]
    assert pages
    assert [name for name, _ in told] == pages
    assert "other.html instead of 'shipping.html'" in told[0][1]
    assert len(made) == len(questions)
    by_id = {conversation.id: conversation for conversation in made}
    assert all(by_id[name].messages[-1].tool_calls for name in pages)
    assert made[0].messages[0].role == "user"


def test_tools_that_disagree_with_the_gold_rows_are_refused(questions: list[Question], database: Path) -> None:
    def failing(call: ToolCall) -> ToolResult:
        return ToolResult(call.id, call.name, "column email may not be read", is_error=True)

    with pytest.raises(InputError, match=r"failed on .* column email"):
        build_conversations(questions[:1], system="", tools=TOOLS, run_tool=failing)
    wrong = replace(questions[0], rows=[[1.0]])
    with pytest.raises(InputError, match="differ from the 1 gold rows"):
        build_conversations([wrong], system="", tools=TOOLS, run_tool=tool_runner(database))
    with pytest.raises(InputError, match="exactly one tool with an argument 'sql'"):
        build_conversations(questions[:1], system="", tools=TOOLS[1:], run_tool=tool_runner(database))


def test_a_broken_file_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"messages": []}\n{"messages": 3}\n')
    with pytest.raises(InputError, match=r"x\.jsonl, line 2"):
        read_conversations(tmp_path / "x.jsonl")


def test_a_share_of_the_database_questions_is_answered(questions: list[Question], database: Path) -> None:
    def answers(share: float) -> int:
        made = build_conversations(questions, system="", tools=TOOLS, run_tool=tool_runner(database), answered=share)
        return sum(not conversation.messages[-1].tool_calls for conversation in made)

    tooled = sum(question.sql is not None for question in questions)
    assert answers(1.0) == len(questions)
    assert answers(0.0) == len(questions) - tooled
    assert answers(0.0) < answers(0.5) < answers(1.0)
