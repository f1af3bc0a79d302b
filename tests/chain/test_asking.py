"""`riverrun ask`: unseen questions through a run's server, and files that are no questions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from riverrun.base.errors import InputError
from riverrun.chain.asking import AskedQuestion, ask_run, read_asked
from tests.chain.doubles import PARTS


def test_answers_come_with_their_evidence_in_the_order_asked(finished: Path) -> None:
    texts = ["How much is Salt Road 3?", "Do you gift wrap a present?", "Hello", "How much is Salt Road 77?"]
    asked = [AskedQuestion(str(number), text) for number, text in enumerate(texts)]
    price, page, hello, none = ask_run(finished, asked, parts=PARTS)
    assert price == {
        "id": "0",
        "question": "How much is Salt Road 3?",
        "answer": "I found: price: 26.5",
        "sql": "SELECT price FROM books WHERE title = 'Salt Road 3'",
        "rows": [[26.5]],
        "more": False,
        "page": None,
        "pages": None,
        "error": "",
    }
    assert page["sql"] is None
    assert page["page"] == page["pages"][0]
    assert (hello["sql"], hello["rows"], hello["page"], hello["answer"]) == (None, None, None, "Hello! How can I help?")
    assert none["rows"] == []


def test_a_run_that_is_not_deployed_cannot_be_asked(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no deployed application"):
        list(ask_run(tmp_path, [AskedQuestion("1", "x")], parts=PARTS))


def test_questions_are_read_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "asked.jsonl"
    path.write_text('{"question": "Wie viele?"}\n\n{"id": 7, "question": "多少?"}\n', encoding="utf-8")
    assert read_asked(path) == [AskedQuestion("1", "Wie viele?"), AskedQuestion("7", "多少?")]


def test_what_else_a_line_holds_is_its_own_business(tmp_path: Path) -> None:
    path = tmp_path / "asked.jsonl"
    path.write_text('{"id": "a", "question": "How many?", "sql": "SELECT 1", "kind": "count"}\n')
    assert read_asked(path) == [AskedQuestion("a", "How many?")]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "holds no question"),
        ("what?", "line 1: not a JSON object"),
        ('{"q": "x"}', r'line 1: an object \{"question"'),
        ('{"question": " "}', "line 1: an object"),
    ],
)
def test_a_file_of_no_questions_is_refused(content: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "asked.jsonl"
    path.write_text(content)
    with pytest.raises(InputError, match=sentence):
        read_asked(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_asked(tmp_path / "none.jsonl")


def test_every_answer_is_one_line_of_json(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import riverrun.cli.ask as command

    path = tmp_path / "asked.jsonl"
    path.write_text('{"id": "a", "question": "How much is Salt Road 3?"}\n{"id": "b", "question": "Hello"}\n')
    monkeypatch.setattr(
        command, "ask_run", lambda run, asked, database: ask_run(run, asked, database=database, parts=PARTS)
    )
    command.ask_command(finished, path, True, None)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["id"] for line in lines] == ["a", "b"]
    command.ask_command(finished, path, False, None)
    assert "> Hello\n  Hello! How can I help?" in capsys.readouterr().out
