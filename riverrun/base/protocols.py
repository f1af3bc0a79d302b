"""What the rooms ask of one another. A model, an agent, a remote endpoint and a fake all are a `LanguageModel`.

The context/continuation token rule lives inside `score`: spaces at the end of the prefix move to the continuation,
prefix + continuation are tokenised as one text, and the continuation's tokens are those after the tokens of the prefix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Protocol, runtime_checkable

from riverrun.base.errors import UnsupportedError
from riverrun.base.types import FinishReason, Message, SamplingParams, TokenLogprob, ToolCall, ToolSpec, Usage

__all__ = [
    "Abort",
    "Completion",
    "Delta",
    "Embedder",
    "ExecutionResult",
    "LanguageModel",
    "ModelInfo",
    "Request",
    "Sandbox",
    "Score",
    "refuse",
]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Identity of a model: enough to know whether two runs saw the same one."""

    name: str
    digest: str
    context_length: int
    template_sha256: str
    modalities: tuple[str, ...] = ("text",)


class Abort:
    """Ends the requests that carry it: `set` may be called from any thread, and more than once.

    `left`: counts of those whose stream was left before the last piece, which would have told them.
    """

    def __init__(self) -> None:
        self._lock, self._calls, self.is_set = Lock(), list[Callable[[], None]](), False
        self.left: list[Usage] = []

    def set(self) -> None:
        with self._lock:
            self.is_set, calls, self._calls = True, self._calls, []
        for call in calls:
            call()

    def when_set(self, call: Callable[[], None]) -> None:
        """Call it then; at once if that was before."""
        with self._lock:
            if not self.is_set:
                self._calls.append(call)
                return
        call()


@dataclass(frozen=True, slots=True)
class Request:
    """One generation. Either `messages` (rendered by the model's template, with `tools`) or a raw `prompt`.

    For an agent, `tools` must be empty: it brings its own. `key`: whose request it is (requests of one key wait for one
    another, keys take turns); `adapter`: the adapter it wants, of those that are loaded; `timeout_seconds`: after so
    long it is given up (0: never). `template_variables` reach the chat template by name (`enable_thinking`, ...).
    """

    messages: tuple[Message, ...] = ()
    prompt: str = ""
    tools: tuple[ToolSpec, ...] = ()
    params: SamplingParams = field(default_factory=SamplingParams)
    key: str = ""
    adapter: str = ""
    timeout_seconds: float = 0.0
    prompt_ids: tuple[int, ...] = ()
    forced_tools: tuple[str, ...] = ()
    parallel_tool_calls: bool = True
    template_variables: Mapping[str, Any] = field(default_factory=dict)
    abort: Abort | None = field(default=None, compare=False)


def refuse(request: Request, who: str, *names: str) -> None:
    """UnsupportedError for the first of these fields, of the request or its parameters, that asks for something."""
    for name in names:
        holder, plain = (request, Request()) if hasattr(request, name) else (request.params, SamplingParams())
        value = getattr(holder, name)
        if value != getattr(plain, name):
            raise UnsupportedError(f"'{name}' = {str(value)[:80]} is not supported by {who}: leave it out")


@dataclass(frozen=True, slots=True)
class Completion:
    """The finished answer. `raw` is the text as generated, tool-call marks included.

    `steps` is what an agent did on the way, one mapping per tool call:
    {"tool", "arguments", "content", "data", "is_error"}; empty for a plain model. `unread` counts the tool calls of an
    agent's model that could not be read. `logprobs`: of every token of the answer, `prompt_logprobs`: of every token of
    the prompt but its first, where the parameters asked for them. `stopped_by`: which of the asked stop strings ended
    it, "" for none or a model that does not tell.
    """

    message: Message
    finish_reason: FinishReason
    usage: Usage
    raw: str = ""
    steps: tuple[Mapping[str, Any], ...] = ()
    unread: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    stopped_by: str = ""


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of a streamed answer. Tool calls come whole; the last delta alone has `finish_reason`, `usage` and
    `stopped_by`.

    `step` reports a finished tool call of an agent, in the form of `Completion.steps`. `reasoning` is a piece of what
    the model thinks before its answer.
    """

    text: str = ""
    step: Mapping[str, Any] | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    reasoning: str = ""
    stopped_by: str = ""


@dataclass(frozen=True, slots=True)
class Score:
    """Natural-log probabilities of a continuation's tokens, and whether greedy decoding would have produced it."""

    logprobs: tuple[float, ...]
    is_greedy: bool

    @property
    def total(self) -> float:
        return sum(self.logprobs)

    @property
    def mean(self) -> float:
        return self.total / max(1, len(self.logprobs))


@runtime_checkable
class LanguageModel(Protocol):
    """Text in, text out. Implementations are thread-safe: `stream` may be called while another call runs."""

    @property
    def info(self) -> ModelInfo: ...

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Answer every request, in order. Requests are batched by the model as it sees fit."""
        ...

    def stream(self, request: Request) -> Iterator[Delta]:
        """Answer one request piece by piece. Closing the iterator aborts the request."""
        ...

    def score(self, prefix: str | Sequence[Message], continuations: Sequence[str]) -> list[Score]:
        """Log-probabilities of each continuation after the prefix: a text, or messages with the answer turn opened."""
        ...


@runtime_checkable
class Embedder(Protocol):
    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """One unit-length vector per text."""
        ...


@dataclass(frozen=True, slots=True)
class ExecutionResult:
    """What a sandboxed run did. `timed_out` and `exit_code` are independent of what it printed."""

    stdout: str
    stderr: str
    exit_code: int
    timed_out: bool
    seconds: float
    files: Mapping[str, bytes] = field(default_factory=dict)


@runtime_checkable
class Sandbox(Protocol):
    def run(
        self, code: str, *, files: Mapping[str, bytes] | None = None, timeout_seconds: float = 10.0
    ) -> ExecutionResult:
        """Run Python code in isolation; never raises for what the code does."""
        ...
