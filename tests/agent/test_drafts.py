"""Several drafts of a call: the result that most of them share is kept."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from riverrun.agent.drafts import Drafts
from riverrun.agent.loop import Agent
from riverrun.agent.tool import FunctionTool, failure
from riverrun.base.errors import InputError
from riverrun.base.fakes import FakeModel
from riverrun.base.protocols import Completion, Delta, ModelInfo, Request, Score
from riverrun.base.types import Message, SamplingParams, ToolResult, ToolSpec, Usage

ROWS: dict[str, list[list[Any]]] = {"a": [[1]], "also a": [[1]], "b": [[2]], "empty": [], "null": [[None]]}


class Query:
    effects = "read"
    spec = ToolSpec("query_database", "Query.", {"type": "object", "properties": {"sql": {"type": "string"}}})

    def __init__(self) -> None:
        self.ran: list[str] = []

    def run(self, arguments: Any) -> ToolResult:
        sql = arguments["sql"]
        self.ran.append(sql)
        key = sql.partition(" =")[0]
        if key == "boom":
            raise RuntimeError("defect")
        if key not in ROWS:
            return failure("query_database", "no such table")
        return ToolResult("", "query_database", json.dumps(ROWS[key]), data={"rows": ROWS[key]})


class Scripted:
    """Answers the drafts of a turn from a list; the closing turn with words."""

    def __init__(self, *calls: str) -> None:
        self.calls, self.asked = calls, []  # type: ignore[var-annotated]

    info = ModelInfo("scripted", "0", 4096, "")

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        self.asked.append([request.params for request in requests])
        if any(message.role == "tool" for message in requests[0].messages):
            return [Completion(Message.of("assistant", "Done."), "stop", Usage(1, 1), "Done.") for _ in requests]
        return [self._answer(call) for call in self.calls[: len(requests)]]

    @staticmethod
    def _answer(call: str) -> Completion:
        body = json.dumps({"name": "query_database", "arguments": {"sql": call}})
        text = call[5:] if call.startswith("say: ") else f"<tool_call>\n{body}\n</tool_call>"
        return Completion(Message.of("assistant", text), "stop", Usage(10, 5), text)

    def stream(self, request: Request) -> Iterator[Delta]:
        (answer,) = self.generate([request])
        yield Delta(text=answer.message.text)
        yield Delta(finish_reason="stop", usage=answer.usage)

    def score(self, prefix: Any, continuations: Any) -> list[Score]:
        raise AssertionError


def ask(model: Scripted, text: str = "How many?", *, stream: bool = False, **params: Any) -> tuple[str, list[str]]:
    """What the agent's calls were, and the text."""
    agent = Agent(model, [Query()], drafts=Drafts(len(model.calls)))
    request = Request((Message.of("user", text),), params=SamplingParams(**params))
    if stream:
        deltas = list(agent.stream(request))
        return "".join(d.text for d in deltas), [d.step["arguments"]["sql"] for d in deltas if d.step]
    (answer,) = agent.generate([request])
    return answer.message.text, [step["arguments"]["sql"] for step in answer.steps]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("drafts", "kept"),
    [
        (["b", "a", "also a"], "a"),
        (["a", "b", "b"], "b"),
        (["a", "b"], "a"),  # a tie: the greedy one
        (["none such", "b", "none such"], "b"),
        (["empty", "empty", "b"], "empty"),  # two halves and a whole: a tie
        (["empty", "null", "b"], "b"),
        (["boom", "b"], "b"),
        (["say: I do not know.", "b", "b"], "b"),
    ],
)
def test_the_result_that_most_share_is_kept(drafts: list[str], kept: str, stream: bool) -> None:
    text, calls = ask(Scripted(*drafts), stream=stream)
    assert calls == [kept]
    assert text == "Done."


def test_words_are_kept_when_most_drafts_are_words() -> None:
    assert ask(Scripted("say: Hello!", "say: Hi!", "a")) == ("Hello!", [])


def test_a_vote_that_forgets_what_the_question_names_counts_less() -> None:
    note = "How many in Bonn?\n(city: 'Bonn')"
    assert ask(Scripted("a", "b = 'Bonn'"), note)[1] == ["b = 'Bonn'"]
    assert ask(Scripted("a", "b = 'Bonn'"), "How many in Bonn?")[1] == ["a"]


def test_only_the_first_is_greedy_and_a_sampled_request_has_one_draft() -> None:
    model = Scripted("a", "a", "b")
    ask(model)
    temperatures = [[params.temperature for params in turn] for turn in model.asked]
    assert temperatures == [[0.0, 0.7, 0.7], [0.0]]
    assert len({params.seed for params in model.asked[0]}) == 3
    sampled = Scripted("a", "b", "b")
    assert ask(sampled, temperature=1.0)[1] == ["a"]
    assert [len(turn) for turn in sampled.asked] == [1, 1]


def test_calls_of_tools_that_write_are_not_carried_out_for_the_vote() -> None:
    sent: list[str] = []
    tool = FunctionTool(lambda to: sent.append(to) or "sent", name="send")  # type: ignore[func-returns-value]
    body = '<tool_call>\n{"name": "send", "arguments": {"to": "Bo"}}\n</tool_call>'
    model = FakeModel([body, body, body, "Done."])
    agent = Agent(model, [tool], drafts=Drafts(3))
    agent.generate([Request((Message.of("user", "Send it."),))])
    assert sent == ["Bo"]


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(InputError, match="count >= 1"):
        Drafts(0)
    with pytest.raises(InputError, match="temperature"):
        Drafts(2, 0.0)
