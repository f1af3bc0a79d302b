"""Questions said anew by a larger model; what is named must stand in them still, or the old words are kept.

The model is any LanguageModel; the chain hands in a client of an OpenAI-compatible endpoint. Two runs give equal
questions only if the endpoint gives equal answers.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pydantic import Field

from riverrun.base.config import Config
from riverrun.base.errors import RiverrunError
from riverrun.base.protocols import LanguageModel, Request
from riverrun.base.types import Message, SamplingParams
from riverrun.data.phrasing import wording
from riverrun.data.questions import Question

__all__ = ["ParaphraseConfig", "Paraphrased", "paraphrase"]

BATCH = 32
_TEXTS = re.compile(r"'((?:[^']|'')*)'")


class ParaphraseConfig(Config):
    """A larger model that rewords training questions."""

    url: str
    """Base address of an OpenAI-compatible endpoint, such as http://127.0.0.1:8000/v1."""
    model: str
    """Model id at the endpoint."""
    key_variable: str = ""
    """Environment variable that holds the key; empty sends none."""
    share: float = Field(default=0.3, gt=0, le=1)
    """Share of the training questions that need the database or a page and are reworded."""


@dataclass(frozen=True)
class Paraphrased:
    """The questions in their order, how many were asked for and how many were changed; `error` ended it early."""

    questions: list[Question]
    asked: int
    changed: int
    error: str = ""


def paraphrase(
    model: LanguageModel, questions: Sequence[Question], *, share: float, language: str, seed: int, avoid: Sequence[str]
) -> Paraphrased:
    """Reword a share of the questions. `avoid`: texts of the other splits, which no paraphrase may equal.

    An endpoint that fails ends the rewording; what was reworded before is kept.
    """
    rng = random.Random(f"{seed}/paraphrase")
    able = [number for number, question in enumerate(questions) if question.sql or question.page]
    chosen = sorted(rng.sample(able, round(share * len(able))))
    out = list(questions)
    taken = {text.casefold() for text in avoid} | {question.text.casefold() for question in questions}
    asked = changed = 0
    for start in range(0, len(chosen), BATCH):
        batch = chosen[start : start + BATCH]
        requests = [_request(questions[number], language, seed + number) for number in batch]
        try:
            answers = model.generate(requests)
        except RiverrunError as error:
            return Paraphrased(out, asked, changed, str(error))
        for number, answer in zip(batch, answers, strict=True):
            asked += 1
            text = _clean(answer.message.text)
            if text.casefold() not in taken and keeps(questions[number], text):
                taken.add(text.casefold())
                out[number] = replace(questions[number], text=text)
                changed += 1
    return Paraphrased(out, asked, changed)


def _request(question: Question, language: str, seed: int) -> Request:
    words = str(wording(language)["reword"]).replace("{question}", question.text)
    params = SamplingParams(max_tokens=96, temperature=0.8, seed=seed)
    return Request(messages=(Message.of("user", words),), params=params)


def _clean(text: str) -> str:
    """The first line of an answer, without numbering or quotes around it."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    line = re.sub(r"^(?:\d+[.)]\s*|[-*•]\s+)", "", line)
    return line[1:-1].strip() if len(line) > 2 and line[0] in '"“' and line[-1] in '"”' else line


def keeps(question: Question, text: str) -> bool:
    """Whether a paraphrase names what the question names: texts of the query that stood in it, and its numbers."""
    if not 3 <= len(text) <= 2 * len(question.text) + 40 or "{" in text:
        return False
    named = [found.replace("''", "'").strip("%") for found in _TEXTS.findall(question.sql or "")]
    named = [name for name in named if name and name in question.text]
    numbers = re.findall(r"\d+(?:[.,]\d+)*", question.text)
    return all(name in text for name in named) and all(number in text for number in numbers)
