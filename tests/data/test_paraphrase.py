"""Paraphrases by a larger model: taken only when they name what the question names, and of no other split."""

from __future__ import annotations

import pytest

from riverrun.base.errors import CapacityError
from riverrun.base.fakes import FakeModel
from riverrun.base.protocols import Completion, Request
from riverrun.data.paraphrase import keeps, paraphrase
from riverrun.data.questions import Question

SQL = "SELECT Name FROM Track WHERE Name = 'It''s' AND Milliseconds > 120000"


def asked(text: str, sql: str | None = SQL, kind: str = "range") -> Question:
    return Question("q", text, "i", kind, "train", sql, None, [[1]], "1")


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Tell me about It's, beyond 2 minutes", True),
        ("Tell me about Its, beyond 2 minutes", False),
        ("It's over two minutes?", False),
        ("", False),
        ("It's 2 " + "x" * 200, False),
        ("It's 2 {x}", False),
    ],
)
def test_names_and_numbers_stay(text: str, kept: bool) -> None:
    assert keeps(asked("Which tracks like It's are over 2 minutes?"), text) is kept


def test_a_share_is_reworded_and_the_rest_stays() -> None:
    questions = [asked(f"How many tracks cost {n}?", f"SELECT {n}") for n in range(40)] + [asked("Hello", None, "chat")]

    def reply(request: Request) -> str:
        number = "".join(filter(str.isdigit, request.messages[-1].text.rpartition("\n")[2]))
        return f'1. "Count the tracks at {number}, please"' if int(number) % 2 else "I cannot say."

    done = paraphrase(
        FakeModel(reply), questions, share=0.5, language="en", seed=1, avoid=["count the tracks at 7, please"]
    )
    assert done.asked == 20
    changed = [q for q, old in zip(done.questions, questions, strict=True) if q.text != old.text]
    assert len(changed) == done.changed > 0
    assert all(q.text == f"Count the tracks at {(q.sql or '')[7:]}, please" and q.sql != "SELECT 7" for q in changed)
    assert done.questions[-1].text == "Hello"


def test_an_endpoint_that_fails_keeps_what_there_is() -> None:
    class Failing(FakeModel):
        def generate(self, requests: object) -> list[Completion]:
            raise CapacityError("the endpoint is gone")

    questions = [asked("How many?", "SELECT 1")]
    done = paraphrase(Failing("x"), questions, share=1, language="zh", seed=1, avoid=[])
    assert done.questions == questions
    assert done.error == "the endpoint is gone"
