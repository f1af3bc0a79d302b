"""Agents in a row, smallest first, as one language model: a question that the smaller one does badly at goes on.

Whether it did badly is only known when it has ended, so its answer is held until then; the largest one's is streamed.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

from riverrun.base.artifacts import digest_json
from riverrun.base.errors import RiverrunError
from riverrun.base.protocols import Completion, Delta, LanguageModel, ModelInfo, Request, Score
from riverrun.base.types import Message, Usage

__all__ = ["Cascade", "did_badly"]

_VALUE = re.compile(r"'[^']+'|\"[^\"]+\"|\d")
Outcome = Completion | RiverrunError


def did_badly(completion: Completion) -> bool:
    """No text, no readable call, a last call that failed, or one that names a value and found nothing."""
    if not completion.message.text.strip():
        return True
    if not completion.steps:
        return completion.unread > 0
    last = completion.steps[-1]
    return bool(last.get("is_error")) or _found_nothing(last)


def _found_nothing(step: Mapping[str, Any]) -> bool:
    data = step.get("data")
    if not isinstance(data, Mapping):
        return False
    if "pages" in data:
        return not data["pages"]
    named = any(_VALUE.search(str(value)) for value in (step.get("arguments") or {}).values())
    return named and "rows" in data and not any(value for row in data["rows"] or () for value in row)


class Cascade:
    """models: from the smallest to the largest. unsure: whether an answer is not to be trusted.

    The answer, its steps included, is that of the last model asked; usage is the sum. Where a larger model fails, the
    smaller one's answer stands. `asked` counts the questions each model was asked.
    """

    def __init__(
        self,
        models: Sequence[LanguageModel],
        *,
        name: str = "cascade",
        unsure: Callable[[Completion], bool] = did_badly,
    ) -> None:
        assert len(models) > 1, "one model needs no cascade"
        self.models, self.unsure = tuple(models), unsure
        self.asked = [0] * len(models)
        self._lock = threading.Lock()
        first = models[0].info
        digest = digest_json([model.info.digest for model in models])
        self._info = ModelInfo(name, digest, first.context_length, first.template_sha256, first.modalities)

    @property
    def info(self) -> ModelInfo:
        return self._info

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Answer all requests; each model gets what the one before it did badly at as one batch."""
        answers = []
        for outcome in self._climb(len(self.models), requests):
            if isinstance(outcome, RiverrunError):
                raise outcome
            answers.append(outcome)
        return answers

    def stream(self, request: Request) -> Iterator[Delta]:
        """As `generate`: a smaller model's answer comes whole, the largest one's piece by piece."""
        (held,) = self._climb(len(self.models) - 1, [request])
        if not self._open(held):
            assert isinstance(held, Completion)
            yield from _deltas(held)
            return
        self._count(len(self.models) - 1, 1)
        begun = False
        try:
            with closing(_iterate(self.models[-1].stream(request))) as deltas:
                for delta in deltas:
                    begun = True
                    yield _with_usage(delta, held)
            return
        except RiverrunError:
            if begun:
                raise
        if isinstance(held, RiverrunError):
            raise held
        yield from _deltas(held)

    def score(self, prefix: str | Sequence[Message], continuations: Sequence[str]) -> list[Score]:
        """The smallest model's own scores."""
        return self.models[0].score(prefix, continuations)

    def _climb(self, levels: int, requests: Sequence[Request]) -> list[Outcome]:
        """The outcome of each request after the first `levels` models; an error when every model asked failed."""
        outcomes = self._ask(0, requests)
        for level in range(1, levels):
            going_on = [index for index, outcome in enumerate(outcomes) if self._open(outcome)]
            further = self._ask(level, [requests[index] for index in going_on])
            for index, new in zip(going_on, further, strict=True):
                old = outcomes[index]
                if isinstance(new, Completion):
                    spent = old.usage if isinstance(old, Completion) else Usage()
                    outcomes[index] = replace(new, usage=spent + new.usage)
        return outcomes

    def _open(self, outcome: Outcome) -> bool:
        return isinstance(outcome, RiverrunError) or self.unsure(outcome)

    def _count(self, level: int, questions: int) -> None:
        with self._lock:
            self.asked[level] += questions

    def _ask(self, level: int, requests: Sequence[Request]) -> list[Outcome]:
        """One batch; when it fails, each request alone."""
        self._count(level, len(requests))
        if not requests:
            return []
        try:
            return list(self.models[level].generate(requests))
        except RiverrunError as error:
            if len(requests) == 1:
                return [error]
        outcomes: list[Outcome] = []
        for request in requests:
            try:
                outcomes += self.models[level].generate([request])
            except RiverrunError as error:
                outcomes.append(error)
        return outcomes


def _with_usage(delta: Delta, held: Outcome) -> Delta:
    if delta.usage is None or isinstance(held, RiverrunError):
        return delta
    return replace(delta, usage=held.usage + delta.usage)


def _deltas(answer: Completion) -> Iterator[Delta]:
    for step in answer.steps:
        yield Delta(step=step)
    if answer.message.text:
        yield Delta(text=answer.message.text)
    yield Delta(finish_reason=answer.finish_reason, usage=answer.usage)


def _iterate(deltas: Iterator[Delta]) -> Generator[Delta, None, None]:
    yield from deltas
