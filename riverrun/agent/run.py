"""One request on its way through an agent: what is decided, done and recorded between two questions to the model."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from riverrun.agent.answers import Answer
from riverrun.agent.budget import Budget
from riverrun.agent.drafts import Drafts
from riverrun.agent.ground import Grounding
from riverrun.agent.guard import Guard, Outlet
from riverrun.agent.state import Event, State
from riverrun.agent.tool import Tool, clip, effects_of, failure
from riverrun.agent.tools.mentions import without_note
from riverrun.base.errors import RiverrunError, nearest
from riverrun.base.protocols import Completion, Delta, LanguageModel, Request
from riverrun.base.types import Message, ToolCall, ToolResult, ToolSpec
from riverrun.wire.codec import Codec

__all__ = ["Run", "Setup"]

_CLOSING = {
    "en": "No more tool calls are possible. Answer now with what you have.",
    "zh": "不能再调用工具了。请根据已有的信息直接回答。",
}
_NO_ANSWER = {"en": "I could not find an answer to that.", "zh": "我没有找到答案。"}
_CJK = re.compile(r"[\u4e00-\u9fff]")


@dataclass(frozen=True)
class Setup:
    """What all runs of an agent share. `write` stores an event; `clock` gives seconds."""

    model: LanguageModel
    tools: Mapping[str, Tool]
    budget: Budget
    guards: Sequence[Guard]
    codec: Codec | None
    write: Callable[[Event], None]
    clock: Callable[[], float]
    drafts: Drafts
    grounding: Grounding | None = None
    noted: bool = False
    """Whether a user's texts have notes behind them."""

    @property
    def specs(self) -> tuple[ToolSpec, ...]:
        return tuple(tool.spec for tool in self.tools.values())


class Run:
    """`work` does all that needs no model; then the run is finished, or `ask` gives the next request."""

    def __init__(self, setup: Setup, state: State) -> None:
        self.setup, self.state = setup, state
        self._origin = setup.clock() - state.at
        asked = (message.text for message in state.messages if message.role == "user")
        texts = [text for text in asked if text not in _CLOSING.values()]
        last = texts[-1] if texts else ""
        self._question = without_note(last) if setup.noted else last
        self._language = "zh" if texts and _CJK.search(texts[-1]) else "en"
        self._unchecked = not state.turns

    @property
    def seconds(self) -> float:
        """Since the run began; time between a crash and its resumption does not count."""
        return self.setup.clock() - self._origin

    def record(self, kind: str, **rest: Any) -> None:
        event = {"run": self.state.run, "kind": kind, "at": round(self.seconds, 6), **rest}
        self.setup.write(event)
        self.state.apply(event)

    def completion(self) -> Completion:
        state = self.state
        message = Message.of("assistant", state.text)
        return Completion(message, state.last_reason, state.usage, state.text, tuple(state.steps), state.unread)

    def work(self) -> Iterator[Mapping[str, Any]]:
        """Carry out pending calls; finish when there is nothing left to ask. Yields the steps done."""
        state = self.state
        if state.finished or self._refused():
            return
        while state.pending:
            call = state.pending[0]
            result, executed = self._interrupted(call) or self._call(call)
            self.record(
                "returned",
                id=call.id,
                name=call.name,
                content=result.content,
                data=result.data,
                is_error=result.is_error,
                executed=executed,
            )
            yield state.steps[-1]
        self._close()
        if state.answered:
            self._finish(state.final or "answered")

    def _close(self) -> None:
        """Answer from what the tools returned, where no closing turn of the model is wanted."""
        state, grounding = self.state, self.setup.grounding
        last = state.messages[-1]
        if grounding is None or state.answered or last.role != "tool" or last.tool_call_id == "unread":
            return
        asked = next(message for message in reversed(state.messages) if message.role == "assistant")
        done = grounding.close(self._question, state.steps, len(asked.tool_calls), self._language, state.params)
        if done is not None:
            answer = Answer(None, (), done.message.text, done.message.text)
            answer.finish_reason, answer.usage = done.finish_reason, done.usage
            self.answered(answer)

    def _texts(self) -> list[str]:
        """What is said in the end: the texts of all turns, or the last one kept to what the tools returned."""
        state, grounding = self.state, self.setup.grounding
        if grounding is not None and grounding.checked and state.steps:
            text = state.texts[-1] if state.texts else ""
            return [grounding.check(text, self._question, state.steps, self._language)]
        return state.texts

    def _refused(self) -> bool:
        for guard in self.setup.guards if self._unchecked else ():
            if reply := guard.check_input(self.state.messages):
                self.record("finished", reason="refused", text=reply, finish_reason="stop")
                return True
        self._unchecked = False
        return False

    def _interrupted(self, call: ToolCall) -> tuple[ToolResult, bool] | None:
        """The result of a call during which the process died, unless it may simply be made again."""
        if self.state.running is None or self.state.running_effects == "read":
            return None
        text = f"{call.name} was interrupted, it is not known whether it was carried out, and it is not repeated"
        return failure(call.name, text), True

    def _call(self, call: ToolCall) -> tuple[ToolResult, bool]:
        """The result of a call, and whether the tool was really run."""
        tool = self.setup.tools.get(call.name)
        if self._spent() in ("seconds", "tool_calls") or self.state.repeated:
            return failure(call.name, "not carried out: no more tool calls are possible"), False
        if self.state.failures(call):
            text = "this same call failed before and is not repeated: change its arguments or answer without it"
            return failure(call.name, text), False
        if tool is None:
            return failure(call.name, f"there is no tool '{call.name}'.{nearest(call.name, self.setup.tools)}"), False
        for guard in self.setup.guards:
            if reason := guard.check_call(call):
                return failure(call.name, reason), False
        self.record("called", id=call.id, name=call.name, arguments=dict(call.arguments), effects=effects_of(tool))
        try:
            return tool.run(call.arguments), True
        except Exception as error:  # a tool's defect is told to the model, the run goes on
            text = f"{call.name} failed with {type(error).__name__}: {clip(str(error), 200)}"
            return failure(call.name, text), True

    def _spent(self) -> str:
        state = self.state
        return self.setup.budget.spent(steps=state.turns, seconds=self.seconds, tool_calls=state.tool_calls)

    def _finish(self, reason: str) -> None:
        text = "\n".join(part for part in map(self._shown, self._texts()) if part)
        last = "length" if self.state.last_reason == "length" else "stop"
        self.record("finished", reason=reason, text=text or _NO_ANSWER[self._language], finish_reason=last)

    def _shown(self, text: str) -> str:
        outlet = Outlet(self.setup.guards)
        return outlet.feed(text) + outlet.close()

    def fail(self, error: RiverrunError) -> None:
        """The model refused the request: the caller's affair at the first turn, later the end of the run."""
        if not self.state.turns:
            self.record("finished", reason="refused by the model", text="", finish_reason="abort")
            raise error
        text = "\n".join([*map(self._shown, self._texts()), f"{_NO_ANSWER[self._language]} ({error})"])
        self.record("finished", reason="model error", text=text, finish_reason="stop")

    def ask(self) -> Request:
        """The next request to the model; past the budget the last one, without tools."""
        state = self.state
        final = state.final or ("repeated_call" if state.repeated else self._spent())
        self.record("asked", final=final, text=_CLOSING[self._language] if final else "")
        return Request(tuple(state.messages), tools=() if final else self.setup.specs, params=state.params)

    def drafts(self, request: Request) -> list[Request]:
        """The request, in several drafts until a call has brought something."""
        done = any(not step["is_error"] for step in self.state.steps)
        return [request] if done else self.setup.drafts.requests(request)

    def keep(self, drafts: Sequence[Completion]) -> Completion:
        """The draft that goes on."""
        asked = next((m.text for m in reversed(self.state.messages) if m.role == "user"), "")
        return self.setup.drafts.choose(drafts, asked, self.opened, self.setup.tools)

    def opened(self) -> Answer:
        """An empty answer to the request asked last."""
        specs = self.setup.specs
        return Answer(self.setup.codec if specs else None, specs)

    def take(self, completion: Completion) -> None:
        """The model's answer, whole."""
        answer = self.opened()
        answer.calls.extend(completion.message.tool_calls)
        answer.feed(completion.message.text)
        answer.close()
        answer.finish_reason, answer.usage = completion.finish_reason, completion.usage
        self.answered(answer)

    def answered(self, answer: Answer) -> None:
        first = len(self.state.steps)
        calls = [] if self.state.final else answer.calls
        usage = answer.usage
        self.record(
            "answered",
            text=answer.text,
            visible=answer.visible.strip(),
            calls=[
                {"id": f"call_{first + index}", "name": call.name, "arguments": dict(call.arguments)}
                for index, call in enumerate(calls)
            ],
            unread=answer.unread,
            finish_reason=answer.finish_reason,
            usage=[usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens],
        )

    def stream(self) -> Iterator[Delta]:
        """The run from here to its end, with text as it is written."""
        sent = ""
        while True:
            for step in self.work():
                yield Delta(step=step)
            if self.state.finished:
                break
            for text in self._turn("\n" if sent else ""):
                sent += text
                yield Delta(text=text)
        text = self.state.text
        if rest := text[len(sent) :] if text.startswith(sent) else f"\n{text.splitlines()[-1]}":
            yield Delta(text=rest)
        yield Delta(finish_reason=self.state.last_reason, usage=self.state.usage)

    def _turn(self, lead: str) -> Iterator[str]:
        """One turn of the model; its text as it may be shown, `lead` before it; nothing where it is checked first."""
        held = self.setup.grounding is not None and self.setup.grounding.checked
        request, outlet, answer = self.ask(), Outlet(self.setup.guards), self.opened()
        drafts = self.drafts(request)
        try:
            if len(drafts) > 1:
                kept = self.keep(self.setup.model.generate(drafts))
                self.take(kept)
                if self.state.texts and not self.state.pending and (shown := self._shown(self.state.texts[-1])):
                    yield lead + shown
                return
            with closing(_iterate(self.setup.model.stream(request))) as deltas:
                for delta in deltas:
                    answer.calls.extend(delta.tool_calls)
                    answer.finish_reason = delta.finish_reason or answer.finish_reason
                    answer.usage = delta.usage or answer.usage
                    if (text := outlet.feed(answer.feed(delta.text))) and not held:
                        yield lead + text
                        lead = ""
        except RiverrunError as error:
            self.fail(error)
            return
        if (text := outlet.feed(answer.close()) + outlet.close()) and not held:
            yield lead + text
        self.answered(answer)


def _iterate(deltas: Iterator[Delta]) -> Generator[Delta, None, None]:
    yield from deltas
