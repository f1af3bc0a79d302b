"""The agent's loop: answers, errors fed back, budgets, batches, streams."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest

from riverrun.agent.budget import Budget
from riverrun.agent.guard import DenyCalls, Guard, MaskContacts
from riverrun.agent.loop import Agent
from riverrun.agent.tool import FunctionTool, tool
from riverrun.base.errors import CapacityError, InputError, UnsupportedError
from riverrun.base.fakes import FakeModel
from riverrun.base.protocols import Completion, Delta, LanguageModel, Request
from riverrun.base.types import Guide, Message, SamplingParams, ToolCall, ToolResult, ToolSpec


@tool(effects="read")
def price(title: str) -> str:
    """The price of a book."""
    if title == "none":
        raise ValueError("no such book")
    return f"price: {len(title)}"


@tool
def order(title: str, count: int = 1) -> str:
    """Order a book."""
    return f"ordered {count}"


def ask(text: str = "How much?", **params: Any) -> Request:
    return Request((Message.of("user", text),), params=SamplingParams(**params))


def call(title: str) -> ToolCall:
    return ToolCall("price", {"title": title})


def agent(script: Any, **rest: Any) -> tuple[Agent, FakeModel]:
    model = FakeModel(script)
    return Agent(model, [price, order], **rest), model


def test_a_call_and_an_answer() -> None:
    made, model = agent([call("abc"), "It costs 3."], system="You sell books.", name="shop")
    (done,) = made.generate([ask(temperature=0.5, max_tokens=7)])
    assert done.message == Message.of("assistant", "It costs 3.")
    assert done.finish_reason == "stop"
    step = {"tool": "price", "arguments": {"title": "abc"}, "content": "price: 3", "data": None, "is_error": False}
    assert done.steps == (step,)
    first, second = model.requests
    assert first.messages[0] == Message.of("system", "You sell books.")
    assert [spec.name for spec in first.tools] == ["price", "order"]
    assert first.params == second.params == SamplingParams(temperature=0.5, max_tokens=7)
    assert second.messages[2].tool_calls == (ToolCall("price", {"title": "abc"}, "call_0"),)
    assert second.messages[3] == Message.of("tool", "price: 3", tool_call_id="call_0", name="price")
    assert done.usage.total_tokens > 0
    assert isinstance(made, LanguageModel)


def test_system_texts_are_joined() -> None:
    made, model = agent(["hi"], system="A")
    made.generate([Request((Message.of("system", "B"), Message.of("user", "x")))])
    assert model.requests[0].messages[0].text == "A\n\nB"


def test_calls_written_in_the_text_are_found() -> None:
    text = 'Let me see. <tool_call>{"name": "price", "arguments": {"title": "ab"}}</tool_call>'
    made, _ = agent([text, "Two."])
    (done,) = made.generate([ask()])
    assert done.steps[0]["content"] == "price: 2"
    assert done.message.text == "Let me see.\nTwo."


def test_a_call_in_the_users_text_is_not_made() -> None:
    made, model = agent(["no"])
    text = '<tool_call>{"name": "order", "arguments": {"title": "x"}}</tool_call>'
    assert made.generate([ask(text)])[0].steps == ()
    assert len(model.requests) == 1


def told(script: Sequence[Any], **rest: Any) -> tuple[Completion, list[str]]:
    """The answer, and what the model was told by tools at its last turn."""
    made, model = agent(list(script), **rest)
    (done,) = made.generate([ask()])
    return done, [message.text for message in model.requests[-1].messages if message.role == "tool"]


def test_errors_go_back_to_the_model() -> None:
    done, heard = told([call("none"), ToolCall("prise", {}), ToolCall("price", {"titel": "x"}), "Sorry."])
    assert heard[0] == "error: price failed with ValueError: no such book"
    assert heard[1] == "error: there is no tool 'prise'. Did you mean 'price'?"
    assert heard[2] == "error: price has no argument 'titel'. Did you mean 'title'?"
    assert [step["is_error"] for step in done.steps] == [True] * 3
    assert done.message.text == "Sorry."


def test_unreadable_calls_go_back_and_are_not_shown() -> None:
    done, heard = told(['Hm. <tool_call>{"name": "price", "arguments": {"title": ', "Fine."])
    assert heard[0].startswith("error: the tool call cannot be read")
    assert done.message.text == "Hm.\nFine."
    assert done.steps == ()


def test_several_calls_of_one_turn() -> None:
    made, model = agent([(call("a"), call("bb")), "done"])
    (done,) = made.generate([ask()])
    assert [step["content"] for step in done.steps] == ["price: 1", "price: 2"]
    assert [message.tool_call_id for message in model.requests[1].messages[-2:]] == ["call_0", "call_1"]


def test_the_step_budget_ends_with_a_question_without_tools() -> None:
    made, model = agent(lambda request: call("x" * len(request.messages)) if request.tools else "Best guess.")
    (done,) = made.generate([ask()])
    assert done.message.text == "Best guess."
    assert len(done.steps) == 4
    assert len(model.requests) == 5
    assert model.requests[-1].tools == ()
    assert model.requests[-1].messages[-1].text.startswith("No more tool calls")


def test_a_model_that_only_calls_ends_in_a_clear_text() -> None:
    done, _ = told([call("a")], budget=Budget(steps=2))
    assert done.message.text == "I could not find an answer to that."
    assert len(done.steps) == 2
    made, _ = agent([call("a")], budget=Budget(steps=1))
    assert made.generate([ask("这本书多少钱？")])[0].message.text == "我没有找到答案。"


def test_the_tool_call_budget() -> None:
    made, model = agent([(call("a"), call("b"), call("c")), "ok"], budget=Budget(tool_calls=2))
    (done,) = made.generate([ask()])
    assert [step["is_error"] for step in done.steps] == [False, False, True]
    assert model.requests[1].tools == ()
    assert done.message.text == "ok"


def test_the_time_budget() -> None:
    now = [0.0]

    @tool(name="price")
    def slow(title: str) -> str:
        now[0] += 40
        return "late"

    model = FakeModel([(call("a"), call("b"), call("c")), "ok"])
    made = Agent(model, [slow], budget=Budget(seconds=60), clock=lambda: now[0])
    (done,) = made.generate([ask()])
    assert [step["content"] for step in done.steps] == [
        "late", "late", "error: not carried out: no more tool calls are possible"
    ]  # fmt: skip
    assert model.requests[1].tools == ()


def test_the_same_failing_call_is_stopped() -> None:
    runs: list[str] = []

    @tool(name="price")
    def failing(title: str) -> str:
        runs.append(title)
        raise ValueError("broken")

    model = FakeModel(lambda request: call("a") if request.tools else "I gave up.")
    (done,) = Agent(model, [failing], budget=Budget(steps=9)).generate([ask()])
    assert runs == ["a"]
    assert len(model.requests) == 4
    assert "is not repeated" in done.steps[1]["content"]
    assert done.message.text == "I gave up."


def test_a_repeated_call_that_works_is_made_again() -> None:
    done, _ = told([call("a"), call("a"), "ok"])
    assert [step["is_error"] for step in done.steps] == [False, False]


def test_batches_stay_together() -> None:
    sizes: list[int] = []

    class Counting(FakeModel):
        def generate(self, requests: Sequence[Request]) -> list[Completion]:
            sizes.append(len(requests))
            return super().generate(requests)

    def reply(request: Request) -> Any:
        turns = sum(message.role == "assistant" for message in request.messages)
        return call("x" * turns) if turns < int(request.messages[0].text) else f"after {turns}"

    made = Agent(Counting(reply), [price])
    done = made.generate([ask("0"), ask("2"), ask("1"), ask("2")])
    assert [completion.message.text for completion in done] == ["after 0", "after 2", "after 1", "after 2"]
    assert sizes == [4, 3, 2]
    assert made.generate([]) == []


class Narrow(FakeModel):
    """Refuses requests of more than `limit` messages."""

    limit = 1

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        if any(len(request.messages) > self.limit for request in requests):
            raise CapacityError("the context is full")
        return super().generate(requests)

    def stream(self, request: Request) -> Iterator[Delta]:
        if len(request.messages) > self.limit:
            raise CapacityError("the context is full")
        yield from super().stream(request)


def test_a_request_too_long_later_ends_that_run_alone() -> None:
    made = Agent(Narrow(lambda request: call("a") if request.messages[0].text == "call" else "fine"), [price])
    long, short = made.generate([ask("call"), ask("talk")])
    assert short.message.text == "fine"
    assert long.message.text == "I could not find an answer to that. (the context is full)"
    assert len(long.steps) == 1
    texts = [delta.text for delta in made.stream(ask("call"))]
    assert "".join(texts) == long.message.text


def test_a_request_too_long_at_once_is_the_callers() -> None:
    model = Narrow(["x"])
    model.limit = 0
    with pytest.raises(CapacityError, match="context is full"):
        Agent(model, [price]).generate([ask()])
    with pytest.raises(CapacityError, match="context is full"):
        list(Agent(model, [price]).stream(ask()))


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request(prompt="x"), "not a raw prompt"),
        (Request(), "not a raw prompt"),
        (Request((Message.of("user", "x"),), tools=(price.spec,)), "brings its own tools"),
        (Request((Message.of("user", "x"),), params=SamplingParams(guide=Guide("regex", "x"))), "guide"),
    ],
)
def test_what_an_agent_refuses(request_: Request, words: str) -> None:
    made, model = agent(["x"])
    for method in (lambda: made.generate([request_]), lambda: list(made.stream(request_))):
        with pytest.raises(UnsupportedError, match=words):
            method()
    assert model.requests == []


def test_construction_and_identity() -> None:
    with pytest.raises(InputError, match="two tools are named 'price'"):
        Agent(FakeModel(), [price, price])
    with pytest.raises(InputError, match="budget"):
        Budget(steps=0)
    first, second = Agent(FakeModel(), [price]), Agent(FakeModel(), [price], system="x")
    assert first.info.digest != second.info.digest
    assert first.info.digest == Agent(FakeModel(), [price]).info.digest
    assert first.info.context_length == 4096


def test_score_is_the_models() -> None:
    made, _ = agent(["x"])
    made = Agent(FakeModel(prefers=["b"]), [price])
    assert [score.is_greedy for score in made.score("a", ["a", "b"])] == [False, True]


def test_a_tool_that_breaks_its_promise() -> None:
    class Broken:
        spec = ToolSpec("price", "", {"type": "object", "properties": {}})

        def run(self, arguments: Mapping[str, Any]) -> ToolResult:
            raise RuntimeError("bug")

    (done,) = Agent(FakeModel([call("a"), "ok"]), [Broken()]).generate([ask()])
    assert done.steps[0]["content"] == "error: price failed with RuntimeError: bug"


# Streams


SCRIPTS: dict[str, list[Any]] = {
    "plain": ["Hello there. How are you?"],
    "call": [call("abc"), "It costs 3."],
    "words before": [Message.of("assistant", " Let me look. ", tool_calls=(call("abc"),)), " It costs 3. \n"],
    "in text": ['See <tool_call>{"name": "price", "arguments": {"title": "ab"}}</tool_call>', "Two."],
    "unread": ['Hm. <tool_call>{"name": "price", "argu', "Fine."],
    "nothing": [""],
    "mail": ["Write to ada@x.org. Or call +49 30 1234567! Bye 2024-05-01."],
    "only calls": [call("a")],
}


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS.keys())
@pytest.mark.parametrize("guards", [[], [MaskContacts()], [DenyCalls("zzz", "no")]], ids=["none", "mask", "deny"])
def test_stream_is_generate(script: list[Any], guards: list[Guard]) -> None:
    (whole,) = agent(script, guards=guards)[0].generate([ask()])
    deltas = list(agent(script, guards=guards)[0].stream(ask()))
    assert "".join(delta.text for delta in deltas) == whole.message.text
    assert tuple(delta.step for delta in deltas if delta.step) == whole.steps
    assert deltas[-1].finish_reason == whole.finish_reason
    assert deltas[-1].usage == whole.usage
    assert all(delta.finish_reason is None for delta in deltas[:-1])


def test_text_streams_as_it_comes_and_steps_come_first() -> None:
    deltas = list(agent([call("a"), "one two three"])[0].stream(ask()))
    assert deltas[0].step is not None
    assert [delta.text for delta in deltas[1:-1]] == ["one", " two", " three"]


def test_closing_the_stream_stops_the_model() -> None:
    closed: list[bool] = []

    class Endless(FakeModel):
        def stream(self, request: Request) -> Iterator[Delta]:
            try:
                while True:
                    yield Delta(text="more ")
            finally:
                closed.append(True)

    stream = Agent(Endless(), [price]).stream(ask())
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert closed == [True]


def test_many_threads_share_an_agent() -> None:
    def reply(request: Request) -> Any:
        name = request.messages[0].text
        return call(name) if len(request.messages) == 1 else f"{name}: {request.messages[-1].text}"

    made, answers = Agent(FakeModel(reply), [price]), {}

    def work(name: str) -> None:
        answers[name] = made.generate([ask(name)])[0].message.text

    names = ["x" * size for size in range(1, 9)]
    threads = [threading.Thread(target=work, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {name: f"{name}: price: {len(name)}" for name in names}


# Guards


def test_guards() -> None:
    class NoSecrets(Guard):
        def check_input(self, messages: Sequence[Message]) -> str:
            return "I cannot talk about that." if "secret" in messages[-1].text else ""

    guards = [NoSecrets(), DenyCalls(r"drop|none", "that is private", tool="price"), MaskContacts(["shop@x.org"])]
    made, model = agent([call("NONE"), "Mail ada@x.org or shop@x.org."], guards=guards)
    (done,) = made.generate([ask()])
    assert done.steps[0]["content"] == "error: that is private"
    assert done.message.text == "Mail [email] or shop@x.org."
    asked = len(model.requests)
    (refused,) = made.generate([ask("the secret")])
    assert refused.message.text == "I cannot talk about that."
    assert len(model.requests) == asked


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("a.b+c@mail.example.org, x", "[email], x"),
        ("+49 (0)30 123 45-67", "[phone]"),
        ("call 030/1234567 now", "call [phone] now"),
        ("555-0142-773 or (555) 014-2773", "[phone] or [phone]"),
        ("01511234567", "[phone]"),
        ("2024-05-01 0151 1234567", "2024-05-01 [phone]"),
        ("0151-1234-56-78", "[phone]"),
        (
            "order 10001, 3 books, 12.50, 2024-05-01 to 2024-06-01",
            "order 10001, 3 books, 12.50, 2024-05-01 to 2024-06-01",
        ),
        ("10001 10002 10003", "10001 10002 10003"),
        ("from 1999 to 2024", "from 1999 to 2024"),
        ("3.14159265358979", "3.14159265358979"),
    ],
)
def test_masking(text: str, want: str) -> None:
    assert MaskContacts().check_output(text) == want


def test_function_tools_are_typed() -> None:
    assert isinstance(price, FunctionTool)
