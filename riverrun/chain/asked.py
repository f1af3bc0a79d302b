"""Everything an application is asked, whether its recipe wrote it down or it is made from its database and pages."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from riverrun.base.errors import InputError
from riverrun.base.types import Document, ToolCall
from riverrun.chain.assistant import Assistant
from riverrun.chain.spec import GENERATED, GENERIC, AppSpec, PerIntent
from riverrun.chain.stage import Context
from riverrun.data.choices import Choices, SafetyPrompts, generic_safety, load_choices, load_safety
from riverrun.data.conversations import Question, build_questions, load_intents
from riverrun.data.intents import SPLITS, Intent, Split
from riverrun.data.names import plural, say_table
from riverrun.data.page_questions import add_pages, find_topics, gap_choices, page_questions
from riverrun.data.paraphrase import ParaphraseConfig, paraphrase
from riverrun.data.schema import Schema, read_schema
from riverrun.data.synthesis import SynthesisConfig, synthesise, talk_questions

__all__ = ["Asked", "Draws", "choices_of", "gather", "safety_of", "topics_of"]

Draws = Mapping[str, Mapping[str, int]]
TOPICS = 4
"""Tables that the assistant names when it is asked what it can do."""


@dataclass
class Asked:
    """Questions by split; `intents` where a recipe wrote some down; `left_out` says what could not be made.

    `more`: further training questions by the name of their draw.
    """

    questions: dict[str, list[Question]]
    intents: list[Intent] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    held_out: frozenset[str] = frozenset()
    more: dict[str, list[Question]] = field(default_factory=dict)


def gather(
    ctx: Context,
    database: Path,
    documents: Sequence[Document],
    assistant: Assistant,
    *,
    reword: bool = True,
    more: Mapping[str, Mapping[str, int]] = {},
) -> Asked:
    """The questions of the recipe's intents, or questions synthesised from the database and the kept pages.

    Without `reword` no larger model is asked: only the training questions would change. `more` names draws of further
    training questions, each with a number by intent, or by kind where they are synthesised; they repeat no other text
    and use the words and entities of the training split only.
    """
    spec = ctx.spec
    if spec.synthesis is not None:
        config = spec.synthesis if reword else spec.synthesis.model_copy(update={"paraphrase": None})
        return _synthesise(spec, config, database, documents, assistant, more)
    intents = load_intents(ctx.file(spec.intents))
    per_intent: dict[Split, PerIntent] = {
        "train": spec.data.train_per_intent,
        "dev": spec.data.dev_per_intent,
        "sealed": spec.data.sealed_per_intent,
    }
    questions = {
        str(split): build_questions(
            intents,
            database,
            split=split,
            per_intent=count,
            seed=spec.seed,
            invented=spec.data.invented if split == "train" else 0.0,
        )
        for split, count in per_intent.items()
    }
    return Asked(questions, intents, more=_further(ctx, database, intents, questions["train"], more) if more else {})


def _further(
    ctx: Context, database: Path, intents: Sequence[Intent], train: Sequence[Question], more: Draws
) -> dict[str, list[Question]]:
    """Training questions beyond those of the data stage: the same seed gives these again first, what follows is new."""
    base = ctx.spec.data.train_per_intent
    extra = [(intent.kind, sum(counts.get(intent.name, 0) for counts in more.values())) for intent in intents]
    most: dict[str, int] = {
        kind: max(count for other, count in extra if other == kind) for kind, count in extra if count
    }
    raised = {kind: (base if isinstance(base, int) else base.get(kind, 0)) + count for kind, count in most.items()}
    found = build_questions(
        intents, database, split="train", per_intent=raised, seed=ctx.spec.seed, invented=ctx.spec.data.invented
    )
    known = {question.text for question in train}
    pool = [question for question in found if question.text not in known]
    return _named({name: _take(pool, counts, lambda question: question.intent) for name, counts in more.items()})


def _take(pool: list[Question], counts: Mapping[str, int], group: Callable[[Question], str]) -> list[Question]:
    """The first questions of each group, removed from the pool."""
    left = Counter(counts)
    taken: list[Question] = []
    rest: list[Question] = []
    for question in pool:
        (taken if left[group(question)] > 0 else rest).append(question)
        left[group(question)] -= 1
    pool[:] = rest
    return taken


def _named(more: Mapping[str, Sequence[Question]]) -> dict[str, list[Question]]:
    """Every question with an id of its draw and number."""
    return {
        name: [replace(question, id=f"{name}-{number:04d}") for number, question in enumerate(questions)]
        for name, questions in more.items()
    }


def _synthesise(
    spec: AppSpec,
    config: SynthesisConfig,
    database: Path,
    documents: Sequence[Document],
    assistant: Assistant,
    more: Draws,
) -> Asked:
    schema = read_schema(database).narrowed(spec.database.show, spec.database.deny_columns)
    extra = config.talk + (config.pages + config.both if documents else 0.0)
    rest = {f"{split}": max(1, round(config.count(split) * (1 - extra))) for split in SPLITS if config.count(split)}
    made = synthesise(
        database,
        schema,
        config.model_copy(update=rest),
        joins=not spec.database.complete_joins,
        language=spec.language,
        seed=spec.seed,
        row_limit=spec.database.row_limit,
        more=more,
    )
    made.left_out += [f"schema: {note}" for note in schema.notes]
    topics = find_topics(documents, lambda text: _pages(assistant, text)) if documents else []
    if documents and not topics:
        made.left_out.append("no page question: no title or heading brings its page up in the search")
    named: dict[str, Any] = {"language": spec.language, "seed": spec.seed}

    def beside(split: Split, plain: Sequence[Question], counts: Mapping[str, int]) -> list[Question]:
        """Questions that need a page, both, or nothing."""
        found: list[Question] = []
        if topics:
            found += page_questions(topics, split, counts["page"], **named)
            found += add_pages(plain, topics, split, counts["both"], find=lambda text: _pages(assistant, text), **named)
        said = {"name": spec.name, "topics": topics_of(schema, spec.language), "seed": spec.seed}
        return found + talk_questions(spec.language, split, counts["chat"], **said)  # type: ignore[arg-type]

    shares = {"page": config.pages, "both": config.both, "chat": config.talk}
    for split in SPLITS:
        plain = list(made.questions[split])
        counts = {kind: round(config.count(split) * share) for kind, share in shares.items()}
        made.questions[split] += beside(split, plain, counts)
        if split == "train" and more:
            raised = {kind: count + sum(draw.get(kind, 0) for draw in more.values()) for kind, count in counts.items()}
            texts = {question.text for question in made.questions[split]}
            pool = [question for question in beside(split, plain, raised) if question.text not in texts]
            for name, draw in more.items():
                made.more[name] += _take(pool, draw, lambda question: question.kind)
    if config.paraphrase is not None:
        made.left_out += _reword(spec, config.paraphrase, made.questions)
    return Asked(made.questions, [], made.left_out, made.held_out, _named(made.more))


def _reword(spec: AppSpec, config: ParaphraseConfig, questions: dict[str, list[Question]]) -> list[str]:
    """Training questions in a larger model's words; says how many were not taken, and why it ended early."""
    from riverrun.serve.client import RemoteModel

    key = os.environ.get(config.key_variable, "") if config.key_variable else ""
    if config.key_variable and not key:
        raise InputError(f"synthesis.paraphrase.key_variable: the environment holds no {config.key_variable}: set it")
    avoid = [question.text for split in ("dev", "sealed") for question in questions[split]]
    with RemoteModel(config.url, config.model, api_key=key) as model:
        done = paraphrase(model, questions["train"], share=config.share, language=spec.language, seed=spec.seed,
                          avoid=avoid)  # fmt: skip
    questions["train"] = done.questions
    lost = f"{done.asked - done.changed} of {done.asked} paraphrases that lost a name or a number, or said nothing new"
    return [lost, f"further paraphrases: {done.error}"] if done.error else [lost]


def _pages(assistant: Assistant, text: str) -> Sequence[str]:
    """The pages that the assistant's own search brings up."""
    found = assistant.execute(ToolCall("search_policies", {"query": text}, "topic"))
    return tuple((found.data or {}).get("pages", ()))


def topics_of(schema: Schema, language: str) -> str:
    """The largest named tables, as a list in words."""
    named = [table for table in schema.tables if table.label] or list(schema.tables)
    named.sort(key=lambda table: -table.rows)
    nouns = [say_table(table.name, language) for table in named[:TOPICS]]
    return ("、" if language == "zh" else ", ").join(nouns if language == "zh" else map(plural, nouns))


def choices_of(ctx: Context, documents: Sequence[Document]) -> Choices:
    """Multiple choice of the recipe, or gaps made from the pages; empty where there are none."""
    spec = ctx.spec
    if spec.choices == GENERATED:
        return gap_choices(documents, language=spec.language, seed=spec.seed)
    return load_choices(ctx.file(spec.choices)) if spec.choices else Choices()


def safety_of(ctx: Context) -> SafetyPrompts:
    """The recipe's prompts, or the package's own."""
    name = ctx.spec.safety
    if name == GENERIC:
        return generic_safety(ctx.spec.language)
    return load_safety(ctx.file(name)) if name else SafetyPrompts()
