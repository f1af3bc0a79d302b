"""What objectives other than next-token loss learn from: pairs of answers, judged answers, problems with a reward.

    pairs      {"prompt", "chosen", "rejected"}; without a prompt, two conversations that begin alike
    judged     {"prompt", "completion", "label": true | false}
    problems   {"question" | "messages" | "prompt", "answer", ...}; a question is what a user asks, a prompt is raw text

Prompts and answers are texts, messages of the OpenAI form, or lists of them. JSON lines; errors name file and line.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from riverrun.base.errors import InputError
from riverrun.base.types import Message, ToolSpec
from riverrun.data.packing import Group
from riverrun.data.preferences import completion_row, judged_groups, pair_group, pair_rows, split_prompt
from riverrun.data.tokens import TokenRow
from riverrun.models.load import Checkpoint
from riverrun.train.objectives.rewards import Problem
from riverrun.train.recipe import SourceConfig, TrainConfig
from riverrun.train.rows import UNBOUNDED, LoadedRows
from riverrun.wire.codec import get_codec

__all__ = ["load_answers", "read_problems"]

T = TypeVar("T")


class _Refused(InputError):
    """A row for which the whole run is refused."""


Row = Mapping[str, Any]


def load_answers(config: TrainConfig, opened: Checkpoint, *, micro_tokens: int) -> LoadedRows:
    """The groups or problems of a recipe; InputError when a source has none to learn from."""
    kind = config.objective.data
    dropped: list[tuple[str, str]] = []
    if kind == "problems":
        system = config.objective.rollouts.system  # type: ignore[attr-defined]
        problems = [problem for source in config.data.train for problem in read_problems(source.path, system=system)]
        held = {source.title: list(read_problems(source.path, system=system)) for source in config.data.validation}
        return LoadedRows([], {}, [], problems=problems, held_problems=held)

    def groups_of(source: SourceConfig) -> list[Group]:
        made = _Maker(config, opened, micro_tokens, source)
        groups: list[Group] = made.pairs() if kind == "pairs" else made.judged()
        dropped.extend((f"{source.path.name}:{row_id}", reason) for row_id, reason in made.dropped)
        if not groups:
            reason = made.dropped[0][1] if made.dropped else "the file is empty"
            raise InputError(f"{source.path} has no row to learn from: {reason}")
        return groups

    train = [group for source in config.data.train for group in groups_of(source)]
    held_groups = {source.title: groups_of(source) for source in config.data.validation}
    return LoadedRows([], {}, dropped, groups=train, held_groups=held_groups)


class _Maker:
    """Groups of one source; rows that cannot be learned from are dropped with their reason."""

    def __init__(self, config: TrainConfig, opened: Checkpoint, micro_tokens: int, source: SourceConfig) -> None:
        self._config, self._micro, self._path = config.data, micro_tokens, source.path
        self._limit = min(config.data.max_tokens, opened.config.longest or UNBOUNDED, micro_tokens)
        self._parts = (opened.tokenizer, opened.template, get_codec(config.data.codec))
        self.dropped: list[tuple[str, str]] = []

    def pairs(self) -> list[Group]:
        return list(self._kept(self._pair))

    def judged(self) -> list[Group]:
        kept = list(self._kept(self._answer))
        if not kept:
            return []
        groups = judged_groups([row for row, _ in kept], [good for _, good in kept])
        return [group for group in groups if self._fits(group)]

    def _kept(self, make: Callable[[Row, str], T]) -> Iterator[T]:
        for number, row in _lines(self._path):
            row_id = str(row.get("id", number))
            try:
                yield make(row, row_id)
            except _Refused:
                raise
            except InputError as error:
                self.dropped.append((row_id, str(error)))

    def _pair(self, row: Row, row_id: str) -> Group:
        chosen, rejected = (_messages(row, name, "assistant") for name in ("chosen", "rejected"))
        if "prompt" in row:
            prompt = _messages(row, "prompt", "user")
        else:
            prompt, chosen, rejected = split_prompt(chosen, rejected, row_id=row_id)
        rows = pair_rows(prompt, chosen, rejected, *self._parts, tools=_tools(row), row_id=row_id)
        group = pair_group(*(self._cut(each, row_id) for each in rows))
        if not self._config.share_prefix:
            group = replace(group, prefix=0)
        if group.computed_tokens > self._micro:
            raise InputError(f"the pair has {group.computed_tokens} tokens, a pack holds {self._micro}")
        return group

    def _answer(self, row: Row, row_id: str) -> tuple[TokenRow, bool]:
        if not isinstance(row.get("label"), bool):
            raise InputError(f"label must be true or false, it is {row.get('label')!r}")
        prompt, answer = _messages(row, "prompt", "user"), _messages(row, "completion", "assistant")
        made = completion_row(prompt, answer, *self._parts, tools=_tools(row), row_id=row_id)
        return self._cut(made, row_id), row["label"]

    def _fits(self, group: Group) -> bool:
        """An answer and an unrelated one may be longer together than either with its own prompt."""
        if group.computed_tokens <= self._micro:
            return True
        self.dropped.append(
            (group.rows[0].id, f"with an unrelated answer {group.computed_tokens} tokens, a pack holds {self._micro}")
        )
        return False

    def _cut(self, row: TokenRow, row_id: str) -> TokenRow:
        if len(row.ids) <= self._limit:
            return row
        told = f"{len(row.ids)} tokens, the limit is {self._limit}"
        if self._config.overlong == "refuse":
            raise _Refused(f"{self._path}: row '{row_id}' has {told}: raise data.max_tokens or say data.overlong")
        cut = replace(row, ids=row.ids[: self._limit], learned=row.learned[: self._limit])
        if self._config.overlong == "drop" or not cut.label_tokens:
            raise InputError(told)
        return cut


def read_problems(path: Path, *, system: str = "") -> Iterator[Problem]:
    """Problems of a JSON-lines file; what a row has beside question and answer is handed to the reward as `data`."""
    for number, row in _lines(path):
        try:
            given = [key for key in ("question", "messages", "prompt") if key in row]
            if len(given) != 1:
                raise InputError(f"a problem has one of question, messages and prompt, this one has {given or 'none'}")
            rest = {key: value for key, value in row.items() if key not in ("id", "answer", *given)}
            own: dict[str, Any] = {"id": str(row.get("id", number)), "answer": str(row.get("answer", "")), "data": rest}
            if given == ["prompt"]:
                yield Problem(prompt=str(row["prompt"]), **own)
                continue
            before = [Message.of("system", system)] if system else []
            yield Problem(messages=(*before, *_messages(row, given[0], "user")), **own)
        except InputError as error:
            raise type(error)(f"{path}, line {number}: {error}") from None


def _lines(path: Path) -> Iterator[tuple[int, Row]]:
    if not path.is_file():
        raise InputError(f"{path} does not exist: give a JSON-lines file")
    with open(path, "rb") as handle:
        for number, line in enumerate(handle, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8"))
            except ValueError as error:
                raise InputError(f"{path}, line {number}: not JSON ({error})") from None
            if not isinstance(row, dict):
                raise InputError(f"{path}, line {number}: must be an object, it is {type(row).__name__}")
            yield number, row


def _messages(row: Row, name: str, role: Any) -> tuple[Message, ...]:
    """A text, a message or a list of messages."""
    value = row.get(name)
    if isinstance(value, str):
        return (Message.of(role, value),)
    if isinstance(value, Mapping):
        return (Message.from_openai(value),)
    if not isinstance(value, Sequence) or not value:
        raise InputError(f"{name} must be a text or messages, it is {value!r}")
    return tuple(Message.from_openai(each) for each in value)


def _tools(row: Row) -> tuple[ToolSpec, ...]:
    return tuple(ToolSpec.from_openai(tool) for tool in row.get("tools") or ())
