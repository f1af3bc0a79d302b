"""The agent: a model and tools in one event-sourced loop, itself a language model.

Each request is a run, a fold over events (see state, run): `generate` moves many runs in lock-step so that the model
gets full batches, `stream` moves one. Errors (of a tool, of a call that cannot be read, of a tool that does not exist)
go back to the model as tool results. With a journal each event is on disk before the next step: `resume` continues a
run after a crash, and a call that was under way is repeated only if its tool declares that it merely reads. The calls
of one turn run one after the other in the caller's thread; a call that hangs is not interrupted: tools bound their own
time.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from riverrun.agent.budget import Budget
from riverrun.agent.drafts import Drafts
from riverrun.agent.ground import Grounding
from riverrun.agent.guard import Guard
from riverrun.agent.journal import Journal
from riverrun.agent.run import Run, Setup
from riverrun.agent.state import Event, State, params_to_json
from riverrun.agent.tool import Tool
from riverrun.base.artifacts import digest_json
from riverrun.base.errors import InputError, RiverrunError, UnsupportedError, nearest
from riverrun.base.protocols import Completion, Delta, LanguageModel, ModelInfo, Request, Score, refuse
from riverrun.base.types import Message, Text
from riverrun.wire.codec import get_codec

__all__ = ["Agent"]


class Agent:
    """model: any LanguageModel. tools: with different names. system: put before a request's own system text.

    A request's params go to the model at every turn, its stop strings included; `tools`, `prompt` and `guide` are
    refused by name. prepare: what is done to a user's text before the model sees it. drafts: how many drafts of a call
    are voted on. codec: the form in which calls are looked for in the model's text, besides those it reports.
    grounding: how answers are kept to what the tools returned; with checks, a streamed answer comes in one piece.
    clock: seconds, for tests. The answer is the text of all turns, without calls; `Completion.steps` are the calls.
    """

    def __init__(
        self,
        model: LanguageModel,
        tools: Sequence[Tool],
        *,
        system: str = "",
        budget: Budget | None = None,
        name: str = "agent",
        prepare: Callable[[str], str] | None = None,
        drafts: Drafts | None = None,
        guards: Sequence[Guard] = (),
        journal: Journal | None = None,
        codec: str = "hermes",
        grounding: Grounding | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        names = [tool.spec.name for tool in tools]
        if len(set(names)) < len(names):
            raise InputError(f"agent '{name}': two tools are named '{max(names, key=names.count)}', rename one")
        self.system, self.journal, self.prepare = system, journal, prepare
        by_name = dict(zip(names, tools, strict=True))
        limits, drafted = budget or Budget(), drafts or Drafts()
        self._setup = Setup(
            model,
            by_name,
            limits,
            tuple(guards),
            get_codec(codec),
            self._write,
            clock,
            drafted,
            grounding,
            bool(prepare),
        )
        below = model.info
        specs = [spec.to_openai() for spec in self._setup.specs]
        identity = [below.digest, system, specs, limits.steps, limits.seconds, limits.tool_calls, codec]
        identity += [drafted.count, drafted.temperature] if drafted.count > 1 else []
        if grounding is not None:
            identity += [grounding.checked, grounding.closing, grounding.name]
        self._info = ModelInfo(
            name, digest_json(identity), below.context_length, below.template_sha256, below.modalities
        )

    @property
    def info(self) -> ModelInfo:
        return self._info

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Answer all requests; what the model is asked at one time goes to it as one batch."""
        runs = [self._begin(request) for request in requests]
        self._drive(runs)
        return [run.completion() for run in runs]

    def stream(self, request: Request) -> Iterator[Delta]:
        """Steps as they are done, text as it is written; the texts joined are the answer `generate` gives."""
        run = self._begin(request)
        try:
            yield from run.stream()
        finally:
            if not run.state.finished:
                run.record("finished", reason="aborted", text="", finish_reason="abort")

    def score(self, prefix: str | Sequence[Message], continuations: Sequence[str]) -> list[Score]:
        """The model's own scores; tools and the agent's system text play no part."""
        return self._setup.model.score(prefix, continuations)

    def unfinished(self) -> list[str]:
        """Runs in the journal that have not come to an end."""
        return [run for run, state in self._states().items() if not state.finished]

    def resume(self, run: str) -> Completion:
        """Continue a run of the journal where it stands; a finished one gives its answer again."""
        states = self._states()
        if run not in states:
            raise InputError(f"the journal has no run '{run}'.{nearest(run, states)}")
        if states[run].agent != self._info.digest:
            raise InputError(f"run '{run}' was begun by an agent with another model, tools, system text or budget")
        resumed = Run(self._setup, states[run])
        self._drive([resumed])
        return resumed.completion()

    def _states(self) -> dict[str, State]:
        if self.journal is None:
            raise InputError(f"agent '{self._info.name}' has no journal: construct it with journal=Journal(path)")
        return self.journal.states()

    def _write(self, event: Event) -> None:
        if self.journal is not None:
            self.journal.append(event)

    def _begin(self, request: Request) -> Run:
        name = self._info.name
        if request.tools:
            raise UnsupportedError(f"agent '{name}' brings its own tools: leave 'tools' out or ask the model itself")
        if request.prompt or not request.messages:
            raise UnsupportedError(f"agent '{name}' answers messages, not a raw prompt: send messages")
        if request.params.guide:
            raise UnsupportedError(f"agent '{name}' calls tools and cannot keep to a guide: leave 'guide' out")
        unknown = ("adapter", "forced_tools", "prompt_ids", "logprobs", "prompt_logprobs", "template_variables")
        refuse(request, f"agent '{name}'", *unknown)
        messages = list(request.messages)
        own = messages.pop(0).require_text(name) if messages[0].role == "system" else ""
        if system := "\n\n".join(text for text in (self.system, own) if text):
            messages.insert(0, Message.of("system", system))
        if self.prepare is not None:
            messages = [_prepared(message, self.prepare) for message in messages]
        event = {
            "run": uuid.uuid4().hex,
            "kind": "started",
            "at": 0.0,
            "agent": self._info.digest,
            "messages": [message.to_openai() for message in messages],
            "params": params_to_json(request.params),
        }
        self._write(event)
        state = State()
        state.apply(event)
        state.messages = messages  # as they were given: the event does not hold the bytes of every part
        return Run(self._setup, state)

    def _drive(self, runs: Sequence[Run]) -> None:
        while True:
            for run in runs:
                for _ in run.work():
                    pass
            asking = [run for run in runs if not run.state.finished]
            if not asking:
                return
            for run, answer in zip(asking, self._ask(asking), strict=True):
                if isinstance(answer, RiverrunError):
                    run.fail(answer)
                else:
                    run.take(answer)

    def _ask(self, runs: Sequence[Run]) -> list[Completion | RiverrunError]:
        """One batch; when the model refuses it, each alone, so that one request too long does not end the others."""
        asked = [run.drafts(run.ask()) for run in runs]
        try:
            answers = iter(self._setup.model.generate([request for drafts in asked for request in drafts]))
            return [run.keep([next(answers) for _ in drafts]) for run, drafts in zip(runs, asked, strict=True)]
        except RiverrunError as error:
            if len(runs) == 1:
                return [error]
        out: list[Completion | RiverrunError] = []
        for run, drafts in zip(runs, asked, strict=True):
            try:
                out.append(run.keep(self._setup.model.generate(drafts)))
            except RiverrunError as error:
                out.append(error)
        return out


def _prepared(message: Message, prepare: Callable[[str], str]) -> Message:
    """A user's message with its text prepared; one with other parts stays as it is."""
    plain = message.role == "user" and all(isinstance(part, Text) for part in message.content)
    return replace(message, content=(Text(prepare(message.text)),)) if plain and message.text else message
