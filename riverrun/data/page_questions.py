"""Questions that need a page, and gaps to fill, made from the pages themselves: titles, headings, their own questions.

A topic is asked about only if the search brings up its page for it. Pages are divided among the splits where there are
enough of them, else topics are. Gaps are numbers taken out of sentences; the wrong options are numbers of other pages.
Not covered: questions in words that a page does not use.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from riverrun.base.types import Document
from riverrun.data.choices import Choice, Choices, cut_passage
from riverrun.data.intents import SPLITS, Split
from riverrun.data.phrasing import wording
from riverrun.data.questions import Question, divide

__all__ = ["Topic", "add_pages", "find_topics", "gap_choices", "page_questions"]

Find = Callable[[str], Sequence[str]]
"""Page ids that the search brings up for a text, best first."""
LEAST_PAGES = 6
"""With fewer pages than this the topics are divided, not the pages: every split needs something to ask."""
MOST_TOPICS = 8
MOST_FACTS = 4
"""Sentences of a page each of which answers a question about a topic."""
_SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n+")
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_STOP_WORDS = """
a about above across after against along among around inside outside again all also am an and any are as at be because
been before being below between both but by can could did do does done down each either else ever every few first for
from get got had has have he her here hers him his how i if in into is it its just last like made make many may me
might more most much must my near never no nor not now of off on once one only or other our out over own per same she
should since so some such take than that the their them then there these they this those through to too two under
until up us use used using very via was we were what when where which while who whom whose why will with within
without would yes yet you your three please see via
"""
_STOP = frozenset(_STOP_WORDS.split())
_NUMBER = re.compile(r"(?<![\w.,:/-])\d{1,6}(?:[.,]\d{1,3})?(?![\w:/-]|[.,]\d)")


TopicForm = Literal["topics", "questions", "claims"]


@dataclass(frozen=True)
class Topic:
    """Something a page is about: a topic, a question of the page's own, or a claim it makes."""

    page: str
    text: str
    form: TopicForm = "topics"
    fact: str = ""
    """The sentences of the page that answer, one a line; "" for a topic that is the whole page's."""


def find_topics(documents: Sequence[Document], find: Find | None = None) -> list[Topic]:
    """At most MOST_TOPICS topics a page, each one page's only, in the pages' order."""
    spread = Counter(word for document in documents for word in set(_terms(document.text)))
    found: list[Topic] = []
    for document in documents:
        mine: dict[str, Topic] = {}
        for text, form, fact in _candidates(document, spread, len(documents)):
            if text.casefold() not in mine and (find is None or document.id in find(text)):
                mine[text.casefold()] = Topic(document.id, text, form, fact)
        found += list(mine.values())[:MOST_TOPICS]
    owners = Counter(topic.text.casefold() for topic in found)
    return [topic for topic in found if owners[topic.text.casefold()] == 1]


def _terms(text: str) -> list[str]:
    return [word.casefold() for word in _WORD.findall(text)]


def _candidates(document: Document, spread: Mapping[str, int], pages: int) -> list[tuple[str, TopicForm, str]]:
    """The title, the page's own questions, its headings, word pairs that few other pages use; each with its fact."""
    title = re.split(r"\s+[|–—·:-]\s+", str(document.metadata.get("title") or ""))[0].strip()
    is_topic = 2 <= len(title) <= 60 and title != document.id
    out: list[tuple[str, TopicForm, str]] = [(title, "topics", "")] if is_topic else []
    lines = [line.strip() for line in document.text.split("\n")]
    sentences = [part.strip() for part in _SENTENCE.split(document.text) if part.strip()]
    asked = [text for text in sentences if text.endswith(("?", "？"))]
    headings = [line for line in lines if 3 <= len(line) <= 50 and not re.search(r"[.!?。！？:：;,，|\d]$", line)]
    ends = {*asked, *headings}
    out += [(text, "questions", _below(text, sentences, ends)) for text in asked if 8 <= len(text) <= 110]
    topics = [line for line in headings if len(line.split()) <= 6]
    out += [(text.lower() if text.istitle() else text, "topics", _below(text, sentences, ends)) for text in topics]
    pairs: Counter[str] = Counter()
    for sentence in sentences:
        words = _WORD.findall(sentence)
        for one, other in pairwise(words):
            telling = min(len(one), len(other)) > 2 and not {one.casefold(), other.casefold()} & _STOP
            if telling and one.isalpha() and other.isalpha() and f"{one} {other}" in sentence:
                pairs[f"{one} {other}"] += 1
    rare = {pair: sum(math.log(1 + pages / spread[word]) for word in _terms(pair)) for pair in pairs}
    best = sorted(pairs, key=lambda pair: (-pairs[pair] * rare[pair], pair))
    for pair in best[:MOST_TOPICS]:
        holding = "\n".join([sentence for sentence in sentences if pair in sentence][:MOST_FACTS])
        out.append((pair if re.search(r"[A-Z]", pair[1:]) else pair.lower(), "topics", holding))
    fitting = [text for text in sentences if 25 <= 3 * len(text) - 2 * text.isascii() * len(text) <= 130]
    claims = {claim: text for text in fitting if (claim := _claim(text))}
    ranked = sorted(claims, key=lambda text: -_telling(text, spread, pages))
    out[3:3] = [(text, "claims", claims[text]) for text in ranked[:2]]
    return [item for item in out if "{" not in item[0] and "}" not in item[0]]


def _below(line: str, sentences: Sequence[str], ends: Container[str]) -> str:
    """What stands below a heading or question, up to the next one."""
    found: list[str] = []
    for text in sentences[sentences.index(line) + 1 :] if line in sentences else ():
        if text in ends or len(found) == MOST_FACTS:
            break
        found.append(text)
    return "\n".join(found)


def _claim(sentence: str) -> str:
    """A plain statement without its end, ready to stand after "is it true that"; empty if it is none."""
    if not re.search(r"[.。]$", sentence) or re.search(r"[\"“”:：;()?|]", sentence):
        return ""
    text = sentence.rstrip(".。")
    first, _, rest = text.partition(" ")
    known = {
        "The",
        "A",
        "An",
        "We",
        "You",
        "Your",
        "Our",
        "Every",
        "All",
        "There",
        "This",
        "These",
        "If",
        "In",
        "On",
        "For",
    }
    return f"{first.lower()} {rest}" if first in known else text


def _telling(text: str, spread: Mapping[str, int], pages: int) -> float:
    """How rare a text's words are among the pages, on average."""
    terms = _terms(text)
    return sum(math.log(1 + pages / spread[term]) for term in terms if spread[term]) / max(1, len(terms))


def page_questions(topics: Sequence[Topic], split: Split, count: int, *, language: str, seed: int) -> list[Question]:
    """Questions of kind page: the page's own ones and topics in the split's sentences; fewer where they run out."""
    mine = _of_split(topics, split)
    rng = random.Random(f"{seed}/{split}/pages")
    words = wording(language)
    asked: dict[str, Topic] = {}
    deck: list[Topic] = []
    for _ in range(count * 4):
        if len(asked) >= count or not mine:
            break
        if not deck:
            deck = rng.sample(mine, len(mine))
        topic = deck.pop()
        text = topic.text
        if topic.form == "topics":
            text = str(rng.choice(words["pages"][split])).replace("{topic}", text)
        elif topic.form == "claims":
            text = str(rng.choice(words["claims"][split])).replace("{s}", text)
        asked.setdefault(text[:1].upper() + text[1:], topic)
    reply = str(words["replies"]["page"])
    return [
        Question(
            f"{split}-page-{number:03d}",
            text,
            f"page.{topic.page}",
            "page",
            split,
            None,
            topic.page,
            None,
            reply,
            topic.fact,
        )
        for number, (text, topic) in enumerate(asked.items())
    ]


def _of_split(topics: Sequence[Topic], split: Split) -> list[Topic]:
    """The topics of a split: by page where there are enough pages, else by topic."""
    pages = {topic.page for topic in topics}
    if len(pages) >= LEAST_PAGES:
        parts = divide([pages])
        return [topic for topic in topics if parts[topic.page] == split]
    parts = divide([[topic.text for topic in topics]])
    return [topic for topic in topics if parts[topic.text] == split]


def add_pages(
    questions: Sequence[Question],
    topics: Sequence[Topic],
    split: Split,
    count: int,
    *,
    language: str,
    seed: int,
    find: Find | None = None,
) -> list[Question]:
    """Questions of kind both: a database question that also asks about a topic whose page is found for the whole."""
    mine = [topic for topic in _of_split(topics, split) if topic.form == "topics"]
    plain = [question for question in questions if question.sql and question.text.endswith(("?", "？", ".", "。"))]
    if not mine or not plain:
        return []
    rng = random.Random(f"{seed}/{split}/both")
    out: list[Question] = []
    for question in rng.sample(plain, min(3 * count, len(plain))):
        if len(out) >= count:
            break
        topic = rng.choice(mine)
        form = str(rng.choice(wording(language)["both"][split]))
        text = form.replace("{q1}", question.text).replace("{topic}", topic.text)
        if find is None or topic.page in find(text):
            identity = f"{split}-both-{len(out):03d}"
            out.append(replace(question, id=identity, text=text, kind="both", page=topic.page))
    return out


def gap_choices(documents: Sequence[Document], *, language: str, seed: int, most: int = 60) -> Choices:
    """Open-book multiple choice: which number belongs in the gap of a sentence. Pages of train and sealed are apart.

    Empty when there are fewer than eight sentences with a number to take out.
    """
    numbers = sorted({found for document in documents for found in _NUMBER.findall(document.text)})
    form = str(wording(language)["gap"])
    parts = divide([[document.id for document in documents]]) if len(documents) >= 2 else {}
    out: dict[str, list[Choice]] = {"train": [], "sealed": []}
    for document in documents:
        rng = random.Random(f"{seed}/gap/{document.id}")
        mine = out["sealed" if parts.get(document.id) == SPLITS[2] else "train"]
        for sentence in _gaps(document.text)[:3]:
            match = rng.choice(list(_NUMBER.finditer(sentence)))
            right = match.group()
            wrong = [n for n in numbers if n not in document.text and abs(len(n) - len(right)) <= 1]
            if len(wrong) < 3:
                wrong = [n for n in _near(right) if n not in document.text]
            gap = sentence[: match.start()] + "___" + sentence[match.end() :]
            asked = form.replace("{sentence}", gap)
            if len(wrong) >= 3 and cut_passage(document.text, asked, right):
                options = (right, *rng.sample(wrong, 3))
                mine.append(Choice(page=document.id, question=asked, options=options, answer=0))
    if not all(out.values()) or sum(map(len, out.values())) < 8:
        return Choices()
    return Choices(train=tuple(out["train"][:most]), sealed=tuple(out["sealed"][:most]))


def _gaps(text: str) -> list[str]:
    """Sentences of a fitting length with exactly one or two numbers, none of which stands elsewhere on the page."""
    found = []
    for part in _SENTENCE.split(text):
        sentence = " ".join(part.split())
        numbers = _NUMBER.findall(sentence)
        least = 12 if re.search(r"[\u3400-\u9fff]", sentence) else 35
        fitting = least <= len(sentence) <= 180 and 1 <= len(numbers) <= 2 and "{" not in sentence
        if fitting and all(len(re.findall(rf"(?<!\d){re.escape(n)}(?!\d)", text)) == 1 for n in numbers):
            found.append(sentence)
    return found


def _near(number: str) -> list[str]:
    """Other numbers of the same form."""
    digits = len(number.rpartition(".")[2]) if "." in number else 0
    if "," in number:
        return []
    value = float(number)
    return [f"{value * factor + 1:.{digits}f}" for factor in (0.5, 1.5, 2, 3)]
