"""Small first, large where the small one does badly, and the small one's answer where the large one is down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from riverrun.agent.cascade import Cascade, did_badly
from riverrun.agent.loop import Agent
from riverrun.base.errors import InputError
from riverrun.base.fakes import FakeModel
from riverrun.base.protocols import Completion, Request
from riverrun.base.types import Message, ToolSpec, Usage


def ask(text: str) -> Request:
    return Request((Message.of("user", text),))


def steps(*found: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    return tuple(
        {"tool": "q", "arguments": {"sql": "SELECT 1 WHERE a = 'x'"}, "content": "", "data": None, "is_error": False}
        | item
        for item in found
    )


def answered(text: str = "fine", *found: Mapping[str, Any], unread: int = 0) -> Completion:
    return Completion(Message.of("assistant", text), "stop", Usage(3, 2), text, steps(*found), unread)


@pytest.mark.parametrize(
    ("completion", "badly"),
    [
        (answered(), False),
        (answered(""), True),
        (answered(unread=1), True),
        (answered("fine", {"data": {"rows": [[1]]}}, unread=1), False),
        (answered("fine", {"is_error": True}), True),
        (answered("fine", {"is_error": True}, {"data": {"rows": [[1]]}}), False),
        (answered("fine", {"data": {"rows": []}}), True),
        (answered("fine", {"data": {"rows": [[0]]}}), True),
        (answered("fine", {"data": {"rows": []}, "arguments": {"sql": "SELECT a FROM t"}}), False),
        (answered("fine", {"data": {"pages": []}, "arguments": {"query": "ship"}}), True),
        (answered("fine", {"data": {"pages": ["a"]}, "arguments": {"query": "ship"}}), False),
    ],
)
def test_what_did_badly(completion: Completion, badly: bool) -> None:
    assert did_badly(completion) is badly


class Down(FakeModel):
    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        raise InputError("cannot be reached")

    def stream(self, request: Request) -> Any:
        raise InputError("cannot be reached")
        yield


def small(request: Request) -> str:
    return "" if "hard" in request.messages[-1].text else "small"


def joined(cascade: Cascade, text: str) -> str:
    return "".join(delta.text for delta in cascade.stream(ask(text)))


def test_easy_stays_and_hard_goes_on() -> None:
    large = FakeModel(["large"])
    cascade = Cascade([FakeModel(small), large], name="both")
    first, second = cascade.generate([ask("easy"), ask("hard one")])
    assert (first.message.text, second.message.text) == ("small", "large")
    assert [request.messages[-1].text for request in large.requests] == ["hard one"]
    assert second.usage.prompt_tokens == 4, "both models read its two words"
    assert cascade.asked == [2, 1]
    assert (joined(cascade, "easy"), joined(cascade, "hard")) == ("small", "large")
    assert cascade.asked == [4, 2]
    assert cascade.info.name == "both"


def test_the_small_answer_stands_where_the_large_model_is_down() -> None:
    cascade = Cascade([FakeModel(["I am not sure."]), Down()], unsure=lambda completion: True)
    assert [answer.message.text for answer in cascade.generate([ask("a"), ask("b")])] == ["I am not sure."] * 2
    assert joined(cascade, "a") == "I am not sure."


def test_the_large_model_answers_where_the_small_one_fails() -> None:
    cascade = Cascade([Down(), FakeModel(["large"])])
    assert cascade.generate([ask("a")])[0].message.text == joined(cascade, "a") == "large"
    down = Cascade([Down(), Down()])
    with pytest.raises(InputError, match="cannot be reached"):
        down.generate([ask("a")])
    with pytest.raises(InputError, match="cannot be reached"):
        joined(down, "a")


def test_three_models_and_a_rule_of_ones_own() -> None:
    models = [FakeModel([text]) for text in ("one", "two", "three")]
    cascade = Cascade(models, unsure=lambda completion: completion.message.text == "one")
    assert cascade.generate([ask("a")])[0].message.text == joined(cascade, "a") == "two"
    assert cascade.asked == [2, 2, 0]


def test_an_agent_counts_calls_it_cannot_read() -> None:
    replies = ['<tool_call>\n{"name": "q", "argum', "Never mind."]

    class Tool:
        spec = ToolSpec("q", "", {"type": "object"})

        def run(self, arguments: Mapping[str, Any]) -> Any:
            raise AssertionError("never called")

    agent = Agent(FakeModel(replies), [Tool()])
    (answer,) = agent.generate([ask("a")])
    assert answer.unread == 1
    assert did_badly(answer)
    assert Agent(FakeModel(["ok"]), [Tool()]).generate([ask("a")])[0].unread == 0
