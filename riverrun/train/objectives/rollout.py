"""Batches that the policy writes itself: prompts, sampled answers, their rewards, and packs to learn from.

`Rollouts.batch(step)` asks a `LanguageModel` for several answers to each of some problems, has them judged, and gives
the rows to the objective, which puts what it needs beside them (`RolloutPack`). Which problems, and the seed of every
answer, are functions of (seed, rollout, problem, number of the answer): a resumed run asks for the same.

An answer's tokens are read again from its text, as the template writes them after the prompt; log-probabilities come
from the policy itself. So any LanguageModel may write the rollouts, also one that knows no tokens.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from riverrun.base.artifacts import write_json
from riverrun.base.errors import CapacityError, InputError, RiverrunError
from riverrun.base.protocols import Completion, LanguageModel, Request
from riverrun.base.types import Message, SamplingParams
from riverrun.data.packing import Group, Pack
from riverrun.data.preferences import cut_groups
from riverrun.data.tokens import TokenRow
from riverrun.models.chat import ChatTemplate
from riverrun.models.tokenizer import Tokenizer
from riverrun.train.objectives.config import RolloutConfig
from riverrun.train.objectives.rewards import Problem, Reward, judge
from riverrun.wire.codec import Codec

__all__ = ["AnswerRows", "Learner", "ProblemOrder", "RolloutPack", "Rollouts", "pack_groups", "seed_of"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class RolloutPack(Pack):
    """A pack of answers. Arrays have one number for each label token, row after row, but `rewards`: one a row.

    `old` and `reference` are log-probabilities when the answers were written, and of the model of the start. `idle_*`
    count the answers (and their tokens) of this batch that no pack holds: they are divided by, their loss is 0.
    """

    rewards: Floats = field(default_factory=lambda: np.zeros(0))
    advantages: Floats = field(default_factory=lambda: np.zeros(0))
    old: Floats | None = None
    reference: Floats | None = None
    values: Floats | None = None
    returns: Floats | None = None
    idle_rows: int = 0
    idle_tokens: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        groups = [
            {
                "prefix": group.prefix,
                "rows": [
                    {"id": row.id, "ids": [int(i) for i in row.ids], "learned": [int(flag) for flag in row.learned]}
                    for row in group.rows
                ],
            }
            for group in self.groups
        ]
        arrays = {name: None if (a := getattr(self, name)) is None else a.tolist() for name in _ARRAYS}
        counts = {"idle_rows": self.idle_rows, "idle_tokens": self.idle_tokens, "metrics": dict(self.metrics)}
        return {"groups": groups, **arrays, **counts}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> RolloutPack:
        groups = tuple(
            Group(
                tuple(
                    TokenRow(row["id"], tuple(row["ids"]), tuple(bool(flag) for flag in row["learned"]))
                    for row in group["rows"]
                ),
                group["prefix"],
            )
            for group in value["groups"]
        )
        arrays: dict[str, Any] = {
            name: None if value[name] is None else np.asarray(value[name], dtype=np.float64) for name in _ARRAYS
        }
        rest = {name: value[name] for name in ("idle_rows", "idle_tokens", "metrics")}
        return cls(groups, **arrays, **rest)


_ARRAYS = ("rewards", "advantages", "old", "reference", "values", "returns")


class Learner(Protocol):
    """What an objective does with answers before it learns from them."""

    def prepare(self, groups: Sequence[Group], rewards: Floats, micro_tokens: int) -> list[RolloutPack]:
        """`groups[p]` holds the answers to problem p, `rewards` [problems, answers] what they earned."""
        ...


def seed_of(seed: int, rollout: int, problem: str, answer: int) -> int:
    """The seed of one answer: 63 bits of a hash of where it stands."""
    text = f"{seed}/{rollout}/{problem}/{answer}".encode()
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "big") >> 1


class AnswerRows:
    """Problems and finished answers to rows, of which the answer is learned."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate, codec: Codec) -> None:
        self._tokenizer, self._template, self._codec = tokenizer, template, codec
        self._turn_end = _turn_end(tokenizer, template)

    def __call__(self, problem: Problem, completion: Completion, stop: str, row_id: str) -> TokenRow:
        """The end token follows an answer that ended by itself; so does the stop text where that ended it."""
        if completion.finish_reason == "abort":
            raise RiverrunError(f"the answer to problem '{problem.id}' was aborted: run again")
        text = completion.raw or completion.message.text
        ended = completion.finish_reason != "length"
        if ended and stop:
            text += stop
        before, whole = self._ids(problem, text)
        # a merge over the border would change the prompt's tokens, which the answer did not see so
        after = whole[len(before) :] if whole[: len(before)] == before else self._tokenizer.encode(text)
        if ended and not stop:
            after = [*after, *self._end(problem)]
        learned = (False,) * len(before) + (True,) * len(after)
        return TokenRow(row_id, (*before, *after), learned)

    def prompt_tokens(self, problem: Problem) -> int:
        """Tokens of a problem's prompt."""
        return len(self._ids(problem, "")[0])

    def _ids(self, problem: Problem, text: str) -> tuple[list[int], list[int]]:
        if problem.prompt:
            return self._tokenizer.encode(problem.prompt), self._tokenizer.encode(problem.prompt + text)
        messages = self._codec.lower(problem.messages, ())
        before = self._template.encode(self._tokenizer, messages)
        return before, self._template.encode_answer(self._tokenizer, messages, text, model="policy")

    def _end(self, problem: Problem) -> list[int]:
        end = self._tokenizer.eos_id if problem.prompt else self._turn_end
        return [] if end is None else [end]


def _turn_end(tokenizer: Tokenizer, template: ChatTemplate) -> int | None:
    """The token by which the template ends a turn; a vocabulary may have several that end an answer."""
    ids, learned = template.encode_with_labels(tokenizer, [Message.of("user", "x"), Message.of("assistant", "y")])
    last = next((i for i, flag in zip(reversed(ids), reversed(learned), strict=True) if flag), None)
    return last if last in tokenizer.end_ids else tokenizer.eos_id


def pack_groups(groups: Sequence[Group], micro_tokens: int) -> list[Pack]:
    """Groups in order into packs of at most `micro_tokens`; a group that is longer is divided, prompt and all."""
    return cut_groups([part for group in groups for part in _divide(group, micro_tokens)], micro_tokens)


def _divide(group: Group, micro_tokens: int) -> list[Group]:
    out: list[list[TokenRow]] = [[]]
    used = group.prefix
    for row, own in zip(group.rows, group.lengths, strict=True):
        if group.prefix + own > micro_tokens:
            raise CapacityError(
                f"answer '{row.id}' has {len(row.ids)} tokens with its prompt, a pack holds {micro_tokens}: "
                "raise micro_tokens or lower max_tokens"
            )
        if used + own > micro_tokens:
            out.append([])
            used = group.prefix
        out[-1].append(row)
        used += own
    return [Group(tuple(rows), group.prefix) for rows in out]


class ProblemOrder:
    """Which problems each rollout asks: all of them in an order of each pass's own, before one comes again."""

    def __init__(
        self, problems: Sequence[Problem], config: RolloutConfig, *, seed: int = 0, iterations: int = 1
    ) -> None:
        if not problems:
            raise InputError("there is no problem to learn from: give at least one")
        if len({problem.id for problem in problems}) < len(problems):
            raise InputError("two problems have the same id: seeds are drawn by it, give each its own")
        self.problems, self.config, self.seed, self.iterations = list(problems), config, seed, iterations

    def steps_in_epoch(self, epoch: int) -> int:
        """Optimizer steps in which every problem is asked once, rounded up; the same for every epoch."""
        assert epoch >= 0
        return -(-len(self.problems) // self.config.problems) * self.iterations

    def total_steps(self, epochs: int) -> int:
        return epochs * self.steps_in_epoch(0)

    def chosen(self, rollout: int) -> list[Problem]:
        """The problems of a rollout."""
        count = len(self.problems)
        out = []
        for place in range(rollout * self.config.problems, (rollout + 1) * self.config.problems):
            order = list(range(count))
            random.Random(f"{self.seed}/{place // count}").shuffle(order)
            out.append(self.problems[order[place % count]])
        return out


class Rollouts:
    """Batches for the loop: `iterations` optimizer steps on each rollout, then a new one by the model as it is then."""

    def __init__(
        self,
        model: LanguageModel,
        problems: Sequence[Problem],
        reward: Reward,
        rows: AnswerRows,
        learner: Learner,
        config: RolloutConfig,
        *,
        micro_tokens: int = 2048,
        seed: int = 0,
        iterations: int = 1,
        refresh: Callable[[], None] = lambda: None,
        work: Path | None = None,
        identity: str = "",
    ) -> None:
        """`refresh` is called before the model is asked: it takes over the policy's weights and drops its caches.

        Rollouts are kept in `work` under `identity`: a run that is resumed between the steps of one rollout needs the
        log-probabilities of the weights that wrote it, which are gone.
        """
        self.order = ProblemOrder(problems, config, seed=seed, iterations=iterations)
        self.model, self.reward, self.rows = model, reward, rows
        self.learner, self.config, self.iterations = learner, config, iterations
        self.micro_tokens, self.seed = micro_tokens, seed
        self._refresh, self._work, self._identity = refresh, work, identity
        self._held: tuple[int, list[RolloutPack]] = (-1, [])

    def chosen(self, rollout: int) -> list[Problem]:
        """The problems of a rollout."""
        return self.order.chosen(rollout)

    def batch(self, step: int) -> list[RolloutPack]:
        """The packs of optimizer step `step`."""
        rollout = step // self.iterations
        if self._held[0] != rollout:
            path = self._work / f"rollout-{rollout:06d}.json" if self._work else None
            packs = self._read(path) if path else None
            if packs is None:
                packs = self._write(rollout)
                if path:
                    write_json(path, {"identity": self._identity, "packs": [pack.to_json() for pack in packs]})
            self._held = (rollout, packs)
        return self._held[1]

    def _read(self, path: Path) -> list[RolloutPack] | None:
        if not path.is_file():
            return None
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["identity"] != self._identity:
            return None
        return [RolloutPack.from_json(each) for each in stored["packs"]]

    def _write(self, rollout: int) -> list[RolloutPack]:
        """Ask, judge, prepare."""
        config, problems = self.config, self.chosen(rollout)
        stop = (config.stop,) if config.stop else ()
        requests = [
            Request(
                messages=problem.messages,
                prompt=problem.prompt,
                params=SamplingParams(
                    max_tokens=config.max_tokens,
                    temperature=config.temperature,
                    stop=stop,
                    # the same problem may stand twice in a rollout: each has seeds of its own
                    seed=seed_of(self.seed, rollout, f"{place}/{problem.id}", answer),
                ),
            )
            for place, problem in enumerate(problems)
            for answer in range(config.answers)
        ]
        self._refresh()
        completions = self.model.generate(requests)
        groups, rewards = [], np.zeros((len(problems), config.answers))
        for place, problem in enumerate(problems):
            mine = completions[place * config.answers : (place + 1) * config.answers]
            rows = [self.rows(problem, each, config.stop, f"{problem.id}/{k}") for k, each in enumerate(mine)]
            rewards[place] = [judge(self.reward, problem, each.raw or each.message.text) for each in mine]
            groups.append(Group(tuple(rows), _prompt_tokens(rows)))
        if rollout == 0 and bool((rewards == rewards.flat[0]).all()):
            raise InputError(
                f"all {rewards.size} answers of the first rollout earned {rewards.flat[0]:g}, so there is nothing to "
                "learn from: choose problems that the model solves sometimes, or ask for more answers"
            )
        return self.learner.prepare(groups, rewards, self.micro_tokens)


def _prompt_tokens(rows: Sequence[TokenRow]) -> int:
    """Tokens of the prompt that stand once: all but the last, whose output predicts each answer's first token."""
    first = rows[0]
    size = next((i for i, flag in enumerate(first.learned) if flag), len(first.ids))
    assert all(row.ids[:size] == first.ids[:size] for row in rows), "answers to one problem have one prompt"
    return size - 1
