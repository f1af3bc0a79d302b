"""Logits to the next token. In this order: what was generated counts against or for a token, biases, what is forbidden,
temperature, top-k, top-p, min-p, and a draw from the request's own stream.

A request has one `Sampler`; it sees the tokens of its prompt and answer once each, so a step costs what was changed
and not what was said so far.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from riverrun.base.errors import InputError
from riverrun.base.types import SamplingParams

__all__ = ["Chosen", "Sampler", "choose", "generator", "ranked"]

Logits = NDArray[np.float32]
TINY = 1e-30
"""Lower temperatures are this one, which is greedy already and still a number in fp32; lower penalties too."""
HEAD = 512
"""Tokens that top_p looks at first; nearly always they hold its share, and the rest need not be sorted."""
NEVER = np.float32(-np.inf)


@dataclass(frozen=True, slots=True)
class Chosen:
    """A token, its natural-log probability, and the most likely ones (token, log-probability), likeliest first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def ranked(logits: Logits, token: int, count: int) -> Chosen:
    """The log-probability of `token` and of the `count` most likely ones, from logits as the model gave them."""
    top = logits.max()
    whole = float(top) + float(np.log(np.exp(logits - top).sum(dtype=np.float64)))
    best: tuple[tuple[int, float], ...] = ()
    if count:
        ids = np.argpartition(-logits, count)[:count] if count < len(logits) else np.arange(len(logits))
        ids = ids[np.lexsort((ids, -logits[ids]))]
        best = tuple((int(i), float(logits[i]) - whole) for i in ids)
    return Chosen(token, float(logits[token]) - whole, best)


def generator(params: SamplingParams) -> np.random.Generator:
    """The random stream of one request; without a seed it is fresh. A seed below 0 counts back from 2**64."""
    return np.random.default_rng(None if params.seed is None else params.seed % 2**64)


class Sampler:
    """The choices of one request. `ends`: tokens that end an answer, held back for `min_tokens`.

    `bad`: bad_words as token ids; of each its last token is forbidden where the ones before it stand.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt: Sequence[int],
        *,
        ends: Iterable[int] = (),
        bad: Sequence[Sequence[int]] = (),
    ) -> None:
        self.params, self.random = params, generator(params)
        self.plain = params.plain and not params.min_tokens
        self._ends, self._bad = np.fromiter(ends, np.int64), [tuple(word) for word in bad if word]
        self._bias = (
            np.array(list(params.logit_bias), np.int64),
            np.array(list(params.logit_bias.values()), np.float32),
        )
        self._seen: dict[int, None] = {}
        self._said: Counter[int] = Counter()
        self._after: defaultdict[tuple[int, ...], set[int]] = defaultdict(set)
        self._tokens: list[int] = []
        self._answer = 0
        if not self.plain:
            for token in prompt:
                self._note(token)
            self._said.clear()

    def _note(self, token: int) -> None:
        self._seen[token] = None
        self._said[token] += 1
        self._tokens.append(token)
        if (size := self.params.no_repeat_ngram) and len(self._tokens) >= size:
            *before, last = self._tokens[-size:]
            self._after[tuple(before)].add(last)

    def took(self, token: int) -> None:
        """This token is now part of the answer."""
        self._answer += 1
        if not self.plain:
            self._note(token)

    def choose(self, logits: Logits, allowed: NDArray[np.bool_] | None = None) -> int:
        """The next token [vocabulary]; only an `allowed` one where that is given. `logits` is not changed."""
        if not self.plain or allowed is not None:
            logits = self._changed(logits, allowed)
        return choose(logits, self.params, self.random)

    def _changed(self, logits: Logits, allowed: NDArray[np.bool_] | None) -> Logits:
        params, logits = self.params, logits.copy()
        if params.repetition_penalty != 1.0 and self._seen:
            ids = np.fromiter(self._seen, np.int64, len(self._seen))
            values = logits[ids]
            penalty = np.float32(max(params.repetition_penalty, TINY))
            logits[ids] = np.where(values > 0, values / penalty, values * penalty)
        if (params.presence_penalty or params.frequency_penalty) and self._said:
            ids = np.fromiter(self._said, np.int64, len(self._said))
            times = np.fromiter(self._said.values(), np.float32, len(self._said))
            logits[ids] -= np.float32(params.presence_penalty) + np.float32(params.frequency_penalty) * times
        if len(self._bias[0]):
            logits[self._bias[0]] += self._bias[1]
            logits[self._bias[0][self._bias[1] <= -100]] = NEVER
        if forbidden := self._forbidden():
            logits[list(forbidden)] = NEVER
        if self._answer < params.min_tokens:
            logits[self._ends] = NEVER
        if allowed is not None:
            logits[~allowed[: len(logits)]] = NEVER
        if logits.max() == NEVER:
            raise InputError(
                "no token may come next: what the request forbids (logit_bias, bad_words, no_repeat_ngram, min_tokens) "
                f"leaves none{' that its guide allows' if allowed is not None else ''}: forbid less"
            )
        return logits

    def _forbidden(self) -> set[int]:
        """Tokens that would end a bad word or a run of tokens that has been."""
        out = set[int]()
        for *before, last in self._bad:
            if not before or self._tokens[-len(before) :] == before:
                out.add(last)
        if size := self.params.no_repeat_ngram:
            start = len(self._tokens) - size + 1
            if start >= 0:
                out |= self._after.get(tuple(self._tokens[start:]), set())
        return out


def choose(logits: Logits, params: SamplingParams, source: np.random.Generator) -> int:
    """One token id from [vocabulary] logits; temperature 0 is the greedy choice. Of equal logits the lower id is first.

    Sorting a vocabulary of 49,152 takes ten times as long as all the rest, so no more is sorted than has to be.
    """
    if params.temperature == 0.0:
        return int(logits.argmax())
    with np.errstate(over="ignore", invalid="ignore"):  # a tiny temperature makes -inf of what is never drawn
        weights = np.exp((logits - logits.max()) / np.float32(max(params.temperature, TINY)))
    all_of_them = weights.sum(dtype=np.float64)
    sorted_ids = params.top_k or params.top_p < 1.0
    if sorted_ids:
        ids = _first(logits, weights, params, all_of_them)
        weights = weights[ids]
    reached = weights.cumsum(dtype=np.float64)
    if params.top_p < 1.0:
        whole = reached[-1] if params.top_k else all_of_them
        reached = reached[: int(np.searchsorted(reached, params.top_p * whole)) + 1]
    if params.min_p:
        kept = np.where(weights[: len(reached)] >= params.min_p * weights.max(), weights[: len(reached)], 0)
        reached = kept.cumsum(dtype=np.float64)
    place = min(int(np.searchsorted(reached, source.random() * reached[-1], side="right")), len(reached) - 1)
    return int(ids[place]) if sorted_ids else place


def _first(logits: Logits, weights: Logits, params: SamplingParams, whole: float) -> NDArray[np.int64]:
    """Ids in falling order of their logits: the first top_k, and at least so many as make up top_p."""
    wanted = params.top_k or HEAD
    if wanted < len(logits):
        least = np.partition(logits, -wanted)[-wanted]
        ids = np.flatnonzero(logits >= least)
        if params.top_k or weights[ids].sum(dtype=np.float64) >= params.top_p * whole:
            ids = ids[np.argsort(-logits[ids], kind="stable")]
            return ids[: params.top_k or None]
    return np.argsort(-logits, kind="stable")[: params.top_k or None]
