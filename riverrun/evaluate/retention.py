"""What a fine-tune must not unlearn: plain text (perplexity) and small arithmetic (two-digit sums).

The text ships with CPython (`pydoc_data.topics`: the language reference as plain text), so that nothing is downloaded.
Perplexity is token-weighted: exp(all nats / all tokens). Bits per byte compare models with different tokenizers.
Windows are scored without context from each other; the first token of a window counts if the model scores it.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any

import numpy as np

from riverrun.base.errors import InputError
from riverrun.base.protocols import LanguageModel, Request
from riverrun.base.types import Message, SamplingParams, ToolSpec
from riverrun.evaluate.statistics import Rate, compare_outcomes, weighted_bootstrap

__all__ = [
    "Sum",
    "SumRecord",
    "WindowRecord",
    "compare_perplexity",
    "compare_sums",
    "cpython_topics",
    "held_out",
    "read_sum",
    "run_perplexity",
    "run_sums",
    "score_perplexity",
    "score_sums",
    "two_digit_sums",
    "windows",
]

_HASH_RANGE = 2**64


def cpython_topics() -> Iterator[tuple[str, str]]:
    """(name, text) of every topic of the language reference that ships with the running CPython, sorted by name."""
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield name, topics[name]


def held_out(
    texts: Iterable[tuple[str, str]], *, share: float = 0.25, characters: int = 60_000, salt: str = "retention"
) -> list[tuple[str, str]]:
    """The texts kept for testing: a hash of the name decides, so adding a text moves no other.

    At most `characters` are taken, in hash order; the text that crosses the limit is cut.
    """
    if not 0 < share <= 1 or characters < 1:
        raise InputError(f"need 0 < share <= 1 and characters >= 1, got {share} and {characters}")
    ranked = sorted((int(sha256(f"{salt}:{name}".encode()).hexdigest()[:16], 16), name, text) for name, text in texts)
    out, left = [], characters
    for place, name, text in ranked:
        if place >= share * _HASH_RANGE or left <= 0:
            break
        out.append((name, text[:left]))
        left -= len(text)
    return out


def windows(text: str, characters: int = 1500) -> list[str]:
    """Cut a text into pieces of at most so many characters, at a line's end or else a space where there is one.

    Joined they are the text again, but for pieces that hold only white space, which are left out.
    """
    if characters < 1:
        raise InputError(f"a window needs at least 1 character, got {characters}")
    out, start = [], 0
    while start < len(text):
        end = min(len(text), start + characters)
        if end < len(text):
            cut = max(text.rfind("\n", start, end), 0) or max(text.rfind(" ", start, end), 0)
            end = cut + 1 if cut > start else end
        if text[start:end].strip():
            out.append(text[start:end])
        start = end
    return out


@dataclass(frozen=True, slots=True)
class WindowRecord:
    """One scored window: `nats` is the negative log-probability of its tokens."""

    id: str
    bytes: int
    tokens: int
    nats: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> WindowRecord:
        return cls(**value)


def run_perplexity(
    model: LanguageModel, texts: Iterable[tuple[str, str]], *, characters: int = 1500
) -> list[WindowRecord]:
    """Score every window of every (name, text) after an empty prefix."""
    records = []
    for name, text in texts:
        for number, window in enumerate(windows(text, characters)):
            (result,) = model.score("", [window])
            size = len(window.encode())
            records.append(WindowRecord(f"{name}#{number}", size, len(result.logprobs), -result.total))
    if not records:
        raise InputError("perplexity needs at least one window of text, got 0")
    return records


def score_perplexity(records: Sequence[WindowRecord]) -> dict[str, float]:
    """perplexity, nats per token, bits per byte, and how much was read."""
    nats = sum(record.nats for record in records)
    tokens, size = sum(record.tokens for record in records), sum(record.bytes for record in records)
    return {
        "perplexity": math.exp(nats / tokens),
        "nats_per_token": nats / tokens,
        "bits_per_byte": nats / math.log(2) / size,
        "tokens": tokens,
        "bytes": size,
        "windows": len(records),
    }


def compare_perplexity(
    before: Sequence[WindowRecord], after: Sequence[WindowRecord], *, confidence: float = 0.95, seed: int = 0
) -> dict[str, float]:
    """`ratio` = perplexity after / before with its interval (windows resampled in pairs, BCa).

    InputError when windows or token counts differ: perplexities per token of two tokenizers cannot be divided
    (compare their bits per byte).
    """
    second = {record.id: record for record in after}
    if {record.id for record in before} != set(second) or len(second) < len(after):
        raise InputError(f"the two runs hold different windows ({len(before)} and {len(after)}): score the same texts")
    for record in before:
        if record.tokens != (found := second[record.id].tokens):
            raise InputError(
                f"window '{record.id}' has {record.tokens} and {found} tokens: the tokenizers differ, "
                "compare bits per byte instead"
            )
    change = np.array([second[record.id].nats - record.nats for record in before])
    tokens = np.array([record.tokens for record in before], dtype=np.float64)
    ratio, low, high = weighted_bootstrap(
        lambda counts: np.exp((counts @ change) / np.maximum(counts @ tokens, 1.0)),
        len(before),
        confidence=confidence,
        seed=seed,
    )
    return {"ratio": ratio, "low": low, "high": high, "windows": len(before)}


@dataclass(frozen=True, slots=True)
class Sum:
    a: int
    b: int

    @property
    def question(self) -> str:
        return f"What is {self.a} + {self.b}?"

    @property
    def total(self) -> int:
        return self.a + self.b


def two_digit_sums(n: int, seed: int = 0) -> list[Sum]:
    """n different ordered pairs of numbers from 10 to 99."""
    if not 1 <= n <= 90 * 90:
        raise InputError(f"there are 8100 two-digit sums, asked for {n}")
    pairs = random.Random(seed).sample(range(90 * 90), n)
    return [Sum(10 + pair // 90, 10 + pair % 90) for pair in pairs]


_BETWEEN = r"\s*(?:\+|plus|and|added\s+to|with|to)\s*"


def read_sum(text: str, a: int, b: int) -> int | None:
    """The number an answer gives for a + b: the first integer once every restatement of the two numbers is taken out.

    "82", "47 + 35 = 82.", "The sum of 47 and 35 is 82, since 40 + 30 = 70" all read 82. None without an integer.
    """
    restated = rf"(?<!\d)(?:{a}{_BETWEEN}{b}|{b}{_BETWEEN}{a})(?!\d)"
    rest = re.sub(restated, " ", text, flags=re.IGNORECASE)
    found = re.search(r"(?<![\d.,])-?\d+(?!\d|[.,]\d)", rest)
    return int(found.group()) if found else None


@dataclass(frozen=True, slots=True)
class SumRecord:
    id: str
    expected: int
    read: int | None
    answer: str

    @property
    def success(self) -> bool:
        return self.read == self.expected

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> SumRecord:
        return cls(**value)


def run_sums(
    model: LanguageModel,
    sums: Sequence[Sum],
    *,
    system: str = "",
    tools: Sequence[ToolSpec] = (),
    max_tokens: int = 16,
) -> list[SumRecord]:
    """Ask every sum as a chat turn, greedy, in one batch. A tool call instead of a number is a wrong answer."""
    opening = (Message.of("system", system),) if system else ()
    params = SamplingParams(max_tokens=max_tokens)
    requests = [Request((*opening, Message.of("user", each.question)), "", tuple(tools), params) for each in sums]
    return [
        SumRecord(f"{each.a}+{each.b}", each.total, read_sum(text, each.a, each.b), text)
        for each, text in zip(sums, (done.message.text for done in model.generate(requests)), strict=True)
    ]


def score_sums(records: Sequence[SumRecord]) -> dict[str, Any]:
    """Share of right sums with Wilson's interval."""
    return Rate.of([record.success for record in records]).as_dict()


def compare_sums(before: Sequence[SumRecord], after: Sequence[SumRecord]) -> dict[str, Any]:
    """Paired difference of the share of right sums (Tango, McNemar)."""
    second = {record.id: record.success for record in after}
    if {record.id for record in before} != set(second):
        raise InputError(f"the two runs hold different sums ({len(before)} and {len(after)}): ask the same ones")
    return compare_outcomes([r.success for r in before], [second[r.id] for r in before]).as_dict()
