"""Open-book multiple choice and safety prompts: read, checked, and made into training rows.

`choice_prompt` is the one form of a choice question: training rows are made with it and evaluation is given it.
Which passage a sealed question gets is the evaluator's matter; here the passage is cut around the known answer.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict

from riverrun.base.config import Config, build_config, load_yaml
from riverrun.base.errors import ConfigError, InputError, nearest
from riverrun.base.types import Message, ToolSpec
from riverrun.data.conversations import Conversation

__all__ = [
    "Choice",
    "Choices",
    "SafetyCheck",
    "SafetyPrompt",
    "SafetyPrompts",
    "build_choice_rows",
    "build_safety_rows",
    "choice_answer",
    "choice_prompt",
    "cut_passage",
    "generic_safety",
    "letter",
    "load_choices",
    "load_safety",
]

_FOLDER = Path(__file__).parent / "wording"
PASSAGE_CHARACTERS = 600
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n+")
_WORD = re.compile(r"[0-9A-Za-z]+(?:['’.,][0-9A-Za-z]+)*|[\u4e00-\u9fff]")


class Choice(Config):
    """A question on a page; `answer` is the index of the right option."""

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)

    page: str
    question: str
    options: tuple[str, ...]
    answer: int


class Choices(Config):
    train: tuple[Choice, ...] = ()
    sealed: tuple[Choice, ...] = ()


class SafetyCheck(Config):
    """`forbid`: regular expressions that must not match, case-insensitive.

    One with the prefix `sql:` is searched in the SQL sent, one with `text:` in the visible answer, others in both.
    """

    forbid: tuple[str, ...]


class SafetyPrompt(Config):
    prompt: str
    kind: Literal["abuse", "privacy", "injection"]
    reply: str = ""
    check: SafetyCheck | None = None


class SafetyPrompts(Config):
    train: tuple[SafetyPrompt, ...] = ()
    sealed: tuple[SafetyPrompt, ...] = ()


def load_choices(path: Path) -> Choices:
    """Read and check a choices file; the pages of train and sealed must be apart. ConfigError names the place."""
    choices = build_config(Choices, load_yaml(Path(path)), origin=str(path))
    for name, items in (("train", choices.train), ("sealed", choices.sealed)):
        for index, item in enumerate(items):
            origin = f"{path}: {name}.{index} ({item.question!r})"
            if len(item.options) < 2 or len(set(item.options)) < len(item.options):
                raise ConfigError(f"{origin}: 'options' must be two or more different texts, got {list(item.options)}")
            if not 0 <= item.answer < len(item.options):
                raise ConfigError(f"{origin}: 'answer' = {item.answer} is no index of its {len(item.options)} options")
    if shared := sorted({c.page for c in choices.train} & {c.page for c in choices.sealed}):
        raise ConfigError(f"{path}: page '{shared[0]}' stands in train and in sealed: move its questions to one side")
    return choices


def load_safety(path: Path) -> SafetyPrompts:
    """Read and check a safety file: train rows have a reply, sealed rows a check. ConfigError names the place."""
    prompts = build_config(SafetyPrompts, load_yaml(Path(path)), origin=str(path))
    for index, item in enumerate(prompts.train):
        if not item.reply:
            raise ConfigError(f"{path}: train.{index} ({item.prompt!r}): key 'reply' is required")
    for index, item in enumerate(prompts.sealed):
        origin = f"{path}: sealed.{index} ({item.prompt!r})"
        if item.check is None or not item.check.forbid:
            raise ConfigError(f"{origin}: key 'check.forbid' is required")
        for pattern in item.check.forbid:
            try:
                re.compile(pattern.removeprefix("sql:").removeprefix("text:"), re.IGNORECASE)
            except re.error as error:
                raise ConfigError(f"{origin}: 'check.forbid' = {pattern!r} is no regular expression: {error}") from None
    if shared := sorted({p.prompt for p in prompts.train} & {p.prompt for p in prompts.sealed}):
        raise ConfigError(f"{path}: prompt {shared[0]!r} stands in train and in sealed: remove one")
    return prompts


def generic_safety(language: str) -> SafetyPrompts:
    """The package's own prompts, which fit any business."""
    return load_safety(_FOLDER / f"safety_{language}.yaml")


def letter(index: int) -> str:
    """0 -> A, 1 -> B, ..."""
    return chr(ord("A") + index)


def choice_prompt(passage: str, question: str, options: Sequence[str]) -> str:
    """The user turn of a choice question; the answer to it is the text of one option (`choice_answer`)."""
    lettered = "\n".join(f"{letter(index)}. {option}" for index, option in enumerate(options))
    return f"{passage}\n\n{question}\n{lettered}\nAnswer with one of the options."


def choice_answer(_letter: str, option: str) -> str:
    """The assistant's turn: the option's text. A small model copies a text far better than it binds a letter to it."""
    return option


def cut_passage(text: str, question: str, answer: str, *, characters: int = PASSAGE_CHARACTERS) -> str | None:
    """The run of sentences of at most `characters` that holds the answer and most words of the question.

    Spaces are evened out. The answer is found literally (case and spaces aside) or, failing that, where at least half
    of its words are; None when it is nowhere. One sentence longer than `characters` is cut around the answer.
    """
    sentences = [" ".join(part.split()) for part in _SENTENCE_END.split(text)]
    sentences = [sentence for sentence in sentences if sentence]
    literal = " ".join(answer.split()).casefold()
    wanted, asked = _words(answer), _words(question)
    best: tuple[tuple[int, float, int], str] | None = None
    for start in range(len(sentences)):
        passage = ""
        for sentence in sentences[start:]:
            longer = f"{passage} {sentence}" if passage else sentence
            if len(longer) > characters and passage:
                break
            passage = longer
        if len(passage) > characters:
            at = max(0, passage.casefold().find(literal))
            begin = max(0, min(at + len(literal) // 2 - characters // 2, len(passage) - characters))
            passage = passage[begin : begin + characters]
        words = _words(passage)
        exact = re.search(rf"(?<!\w){re.escape(literal)}(?!\w)", passage.casefold()) is not None
        share = len(wanted & words) / len(wanted) if wanted else 0.0
        if not exact and share < 0.5:
            continue
        rank = (int(exact), share, len(asked & words))
        if best is None or rank > best[0]:
            best = (rank, passage)
    return best[1] if best else None


def _words(text: str) -> set[str]:
    return {word.casefold() for word in _WORD.findall(text)}


def build_choice_rows(
    choices: Sequence[Choice],
    pages: Mapping[str, str],
    *,
    rotations: int,
    seed: int,
    characters: int = PASSAGE_CHARACTERS,
    system: str = "",
    tools: Sequence[ToolSpec] = (),
    find: Callable[[Choice], str | None] | None = None,
) -> list[Conversation]:
    """`rotations` rows a question (at most one per option): the right option in another place in each.

    The passage is what `find` brings up for the question, as it will be when the model is asked, or, where that is
    None, the part of the page that holds the answer.

    `pages` maps page id to text. The wrong options are shuffled, the letters of the right ones are evenly spread over
    all rows. InputError if a page is not there or does not hold the answer.
    """
    out = []
    place = random.Random(seed).randrange(4)
    for number, choice in enumerate(choices):
        if choice.page not in pages:
            raise InputError(
                f"choice {choice.question!r}: no page '{choice.page}' was kept.{nearest(choice.page, pages)}"
            )
        gold = choice.options[choice.answer]
        passage = cut_passage(pages[choice.page], choice.question, gold, characters=characters)
        if passage is None:
            raise InputError(f"choice {choice.question!r}: page '{choice.page}' does not hold the answer {gold!r}")
        passage = (find(choice) if find else None) or passage
        rng = random.Random(f"{seed}/{choice.page}/{choice.question}")
        for turn in range(min(rotations, len(choice.options))):
            options = [option for option in choice.options if option != gold]
            rng.shuffle(options)
            at = place % len(choice.options)
            options.insert(at, gold)
            place += 1
            asked = choice_prompt(passage, choice.question, options)
            identity = f"choice-{number:03d}-{turn}"
            out.append(_row(identity, "choice", asked, choice_answer(letter(at), gold), system, tools))
    return out


def build_safety_rows(
    prompts: Sequence[SafetyPrompt],
    *,
    system: str = "",
    tools: Sequence[ToolSpec] = (),
    prepare: Callable[[str], str] | None = None,
) -> list[Conversation]:
    """One row a prompt: the prompt, prepared as serving does, and its reply, no tool called."""
    texts = [prepare(item.prompt) if prepare else item.prompt for item in prompts]
    return [
        _row(f"safety-{number:03d}", f"safety_{item.kind}", text, item.reply, system, tools)
        for number, (item, text) in enumerate(zip(prompts, texts, strict=True))
    ]


def _row(identity: str, intent: str, user: str, reply: str, system: str, tools: Sequence[ToolSpec]) -> Conversation:
    start = (Message.of("system", system),) if system else ()
    messages = (*start, Message.of("user", user), Message.of("assistant", reply))
    return Conversation(identity, messages, tuple(tools), intent)
