"""Everything an application is asked, whether its recipe wrote it down or it is made from its database and pages."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

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

__all__ = ["Asked", "choices_of", "gather", "safety_of", "topics_of"]

TOPICS = 4
"""Tables that the assistant names when it is asked what it can do."""


@dataclass
class Asked:
    """Questions by split; `intents` where a recipe wrote some down; `left_out` says what could not be made."""

    questions: dict[str, list[Question]]
    intents: list[Intent] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    held_out: frozenset[str] = frozenset()


def gather(
    ctx: Context, database: Path, documents: Sequence[Document], assistant: Assistant, *, reword: bool = True
) -> Asked:
    """The questions of the recipe's intents, or questions synthesised from the database and the kept pages.

    Without `reword` no larger model is asked: only the training questions would change.
    """
    spec = ctx.spec
    if spec.synthesis is not None:
        config = spec.synthesis if reword else spec.synthesis.model_copy(update={"paraphrase": None})
        return _synthesise(spec, config, database, documents, assistant)
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
    return Asked(questions, intents)


def _synthesise(
    spec: AppSpec, config: SynthesisConfig, database: Path, documents: Sequence[Document], assistant: Assistant
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
    )
    made.left_out += [f"schema: {note}" for note in schema.notes]
    topics = find_topics(documents, lambda text: _pages(assistant, text)) if documents else []
    if documents and not topics:
        made.left_out.append("no page question: no title or heading brings its page up in the search")
    named = {"language": spec.language, "seed": spec.seed}
    for split in SPLITS:
        count, questions = config.count(split), made.questions[split]
        if topics:
            both = add_pages(questions, topics, split, round(count * config.both),
                             find=lambda text: _pages(assistant, text), **named)  # type: ignore[arg-type]  # fmt: skip
            questions += page_questions(topics, split, round(count * config.pages), **named)  # type: ignore[arg-type]
            questions += both
        talk = round(count * config.talk)
        questions += talk_questions(spec.language, split, talk, name=spec.name, topics=topics_of(schema, spec.language),
                                    seed=spec.seed)  # fmt: skip
    if config.paraphrase is not None:
        made.left_out += _reword(spec, config.paraphrase, made.questions)
    return Asked(made.questions, [], made.left_out, made.held_out)


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
