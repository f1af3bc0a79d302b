"""Facts hidden in long texts and questions about them, for models that learn to use their whole context.

A document is running text with sentences such as `The key is Alder4271.` at chosen depths; behind it stand questions,
`The key is Alder`, that only those sentences answer. The text around is any that is handed in; names are drawn anew for
every document and codes are random digits, so nothing but the context knows an answer. A code stands directly behind
its name: a small model learns to copy what followed a token in a tenth of the steps that two tokens between would take.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from riverrun.base.errors import InputError

__all__ = ["NAMES", "Needle", "Retrieval", "make", "rows", "sentences"]

NAMES: tuple[str, ...] = (
    *("Alder", "Ash", "Aspen", "Beech", "Birch", "Cedar", "Cherry", "Chestnut", "Cypress", "Elder", "Elm", "Fir"),
    *("Ginkgo", "Hazel", "Hemlock", "Hickory", "Holly", "Hornbeam", "Juniper", "Larch", "Laurel", "Lime", "Linden"),
    *("Magnolia", "Maple", "Myrtle", "Oak", "Olive", "Osier", "Palm", "Pear", "Pine", "Plane", "Plum", "Poplar"),
    *("Quince", "Rowan", "Sallow", "Spruce", "Sumac", "Sycamore", "Tamarack", "Teak", "Tulip", "Walnut", "Willow"),
    *("Yew", "Zelkova"),
)
DIGITS = 4
NEEDLE_TOKENS = 28
"""About what a needle and its question take: a document of so many tokens has one at most."""
Count = Callable[[str], int]
"""Tokens of a text."""


@dataclass(frozen=True, slots=True)
class Needle:
    """A fact and where it stands: `depth` 0 is the beginning of the document, 1 its end."""

    name: str
    code: str
    depth: float

    @property
    def question(self) -> str:
        return f"The key is {self.name}"

    @property
    def answer(self) -> str:
        return f"{self.code}."

    @property
    def sentence(self) -> str:
        return self.question + self.answer


@dataclass(frozen=True, slots=True)
class Retrieval:
    """A document with its needles; the questions are asked one after another behind it."""

    text: str
    needles: tuple[Needle, ...]

    def messages(self) -> list[dict[str, str]]:
        """A conversation in which the document and each question is the user's, each answer the assistant's."""
        out = []
        for number, needle in enumerate(self.needles):
            before = f"{self.text}\n" if not number else "\n"
            out.append({"role": "user", "content": before + needle.question})
            out.append({"role": "assistant", "content": needle.answer})
        return out


def sentences(texts: Sequence[str]) -> list[str]:
    """The sentences of texts, each on one line and of 20 to 300 characters; InputError when there are under ten."""
    found = []
    for text in texts:
        for part in re.split(r"(?<=[.!?])\s+|\n{2,}", text):
            line = " ".join(part.split())
            if 20 <= len(line) <= 300:
                found.append(line)
    if len(found) < 10:
        raise InputError(f"the text to hide needles in has {len(found)} sentences, at least 10 are needed")
    return found


def make(
    tokens: int, depths: Sequence[float], hay: Sequence[str], count: Count, rng: random.Random, *, ask: int = 0
) -> Retrieval:
    """A document of about `tokens` tokens (seldom more) with a needle at each depth, all asked in an order of chance.

    `hay` are the sentences around; with `ask` only the first so many are asked for, in order. InputError when so many
    needles do not fit.
    """
    names = rng.sample(NAMES, len(depths))
    needles = [
        Needle(name, "".join(rng.choice("0123456789") for _ in range(DIGITS)), depth)
        for name, depth in zip(names, depths, strict=True)
    ]
    asked = needles[:ask] if ask else rng.sample(needles, len(needles))
    own = [count(f" {needle.sentence}") for needle in needles]
    room = tokens - sum(own) - sum(count(f"\n{needle.sentence}") + 1 for needle in asked) - 1
    if room < 0:
        raise InputError(f"{len(needles)} needles and {len(asked)} questions do not fit {tokens} tokens: {-room} over")
    parts, ends, used = list[str](), list[int](), 0
    while True:
        line = rng.choice(hay)
        if used + (size := count(f" {line}")) > room:
            break
        parts.append(line)
        used += size
        ends.append(used)
    text, waiting = list[str](), sorted(needles, key=lambda needle: needle.depth)
    for line, end in zip(parts, ends, strict=True):
        while waiting and waiting[0].depth * used < end:
            text.append(waiting.pop(0).sentence)
        text.append(line)
    return Retrieval(" ".join([*text, *(needle.sentence for needle in waiting)]), tuple(asked))


def rows(
    documents: int,
    hay: Sequence[str],
    count: Count,
    *,
    shortest: int,
    longest: int,
    needles: int,
    seed: int = 0,
) -> Iterator[dict[str, object]]:
    """`documents` rows {"id", "messages"} to learn from. Lengths are equally likely on a logarithmic scale, depths
    random; a document has up to `needles` of them, fewer where it is short."""
    rng = random.Random(f"needles/{seed}")
    for number in range(documents):
        tokens = round(shortest * (longest / shortest) ** rng.random())
        most = max(1, min(needles, tokens // NEEDLE_TOKENS, len(NAMES)))
        found = make(tokens, [rng.random() for _ in range(most)], hay, count, rng)
        yield {"id": str(number), "messages": found.messages()}
