"""data: pages cleaned, the database, and everything asked: training conversations and sealed tests.

Training conversations run the very tools that serving runs, so a model learns from what it will see.
"""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from riverrun.base.artifacts import digest_json
from riverrun.base.errors import InputError
from riverrun.base.progress import Progress
from riverrun.base.sql import has_log, read_only_uri
from riverrun.base.types import Document, ToolCall
from riverrun.chain.asked import choices_of, gather, safety_of
from riverrun.chain.assistant import Assistant, make_assistant
from riverrun.chain.check import check_database
from riverrun.chain.measure import write_lines
from riverrun.chain.spec import GENERATED, GENERIC
from riverrun.chain.stage import Context, StageResult
from riverrun.data.choices import Choice, build_choice_rows, build_safety_rows
from riverrun.data.conversations import (
    Conversation,
    Intent,
    Question,
    build_conversations,
    write_questions,
)
from riverrun.data.journal import Funnel, read_documents, write_journal
from riverrun.data.pipeline import clean_folder
from riverrun.data.replay import replay_texts
from riverrun.data.servers import snapshot
from riverrun.evaluate.retention import cpython_topics, held_out

__all__ = ["Data", "files_of", "make_database", "make_pages"]


def make_database(ctx: Context, out: Path, progress: Progress | None = None, *, keep: bool = False) -> None:
    """Copy the database of the spec, make it with the spec's script, or take a snapshot of its server.

    With `keep` a snapshot is left for the next call without: the questions that select asks and those that are trained
    on are of the same moment. InputError when the script fails or the server cannot be read.
    """
    spec = ctx.spec.database
    out.unlink(missing_ok=True)
    if spec.url:
        kept = ctx.out / f".snapshot-{digest_json([spec.url, spec.rows_per_table])[:16]}.sqlite"
        if keep or not kept.is_file():
            for note in snapshot(spec.server(), kept, rows_per_table=spec.rows_per_table).notes:
                (progress or Progress("quiet")).say(f"  {note}")
        if keep:
            shutil.copyfile(kept, out)
        else:
            kept.replace(out)
        return
    if spec.path:
        check_database(ctx.file(spec.path))
        _copy_database(ctx.file(spec.path), out)
        return
    half = out.with_name(f".{out.name}.{os.getpid()}")
    half.unlink(missing_ok=True)
    command = [sys.executable, str(ctx.file(spec.make)), str(half), "--seed", str(ctx.spec.seed)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode or not half.is_file():
        said = (done.stderr.strip() or "it wrote no file").splitlines()[-1]
        raise InputError(f"{spec.make} made no database (exit code {done.returncode}): {said}")
    check_database(half)
    half.replace(out)


def _copy_database(source: Path, out: Path) -> None:
    """Copy an SQLite file, with what its log holds where a program has it open; the copy has no log.

    InputError when it cannot be read.
    """
    if not has_log(source) and not _beside(source, "journal").exists():
        shutil.copyfile(source, out)
        return
    try:
        with closing(sqlite3.connect(read_only_uri(source), uri=True)) as live, closing(sqlite3.connect(out)) as copy:
            live.backup(copy)
            copy.execute("PRAGMA journal_mode = DELETE")
    except sqlite3.Error as error:
        raise InputError(
            f"{source}, which another program may have open, cannot be copied ({error}): close it or give a copy"
        ) from None


def _beside(database: Path, kind: str) -> Path:
    """The journal or log of an SQLite file."""
    return database.with_name(f"{database.name}-{kind}")


def make_pages(ctx: Context, out: Path, progress: Progress | None = None) -> Funnel:
    """Clean the documents of the spec into `out`; where there are none, the journal is empty."""
    spec = ctx.spec.documents
    if spec is not None:
        return clean_folder(ctx.file(spec.path), out, keep=spec.keep, progress=progress)
    funnel = Funnel(0, 0, 0, {}, ())
    write_journal(out, [], [], funnel)
    return funnel


def files_of(ctx: Context, *more: str) -> dict[str, str]:
    """Digests of the recipe's files that questions are made of, and of `more` where they are files; a server's URL."""
    spec = ctx.spec
    pages = spec.documents.path if spec.documents is not None else ""
    found = {spec.database.url: digest_json(spec.database.url)} if spec.database.url else {}
    named = (pages, spec.database.path, spec.database.make, spec.intents, *more)
    for name in named:
        found |= ctx.file_input(name) if name and name not in (GENERATED, GENERIC) else {}
    log = _beside(ctx.file(spec.database.path), "wal") if spec.database.path else None
    if log is not None and log.is_file() and log.stat().st_size:
        found |= ctx.file_input(f"{spec.database.path}-wal")
    return found


class Data:
    name: ClassVar[str] = "data"
    code: ClassVar[tuple[str, ...]] = (
        "base",
        "data",
        "agent",
        "chain/asked.py",
        "chain/assistant.py",
        "evaluate/retention.py",
    )
    resumable: ClassVar[bool] = False
    isolated: ClassVar[bool] = True

    def inputs(self, ctx: Context) -> dict[str, str]:
        spec = ctx.spec
        return files_of(ctx, spec.choices, spec.safety)

    def config(self, ctx: Context) -> dict[str, Any]:
        keys = {
            "system",
            "documents",
            "database",
            "intents",
            "choices",
            "safety",
            "search",
            "data",
            "synthesis",
            "language",
        }
        return ctx.spec.model_dump(mode="json", include=keys) | {"retention": ctx.spec.evaluate.retention_characters}

    def run(self, ctx: Context, folder: Path, progress: Progress) -> StageResult:
        spec = ctx.spec
        funnel = make_pages(ctx, folder, progress)
        database = folder / "shop.sqlite"
        make_database(ctx, database, progress)
        documents = read_documents(folder / "kept.jsonl")
        pages = {document.id: document.text for document in documents}
        assistant = make_assistant(spec, database, documents)
        asked = gather(ctx, database, documents, assistant)
        _check_pages(asked.intents, pages, folder)
        questions = asked.questions
        write_questions(folder / "questions_dev.jsonl", questions["dev"])
        write_questions(folder / "questions_sealed.jsonl", questions["sealed"])
        skipped: list[tuple[Question, str]] = []
        rows = build_conversations(
            questions["train"],
            system=assistant.system,
            tools=assistant.specs,
            run_tool=assistant.execute,
            prepare=assistant.prepare,
            on_skip=lambda question, why: skipped.append((question, why)),
            answered=spec.data.answered,
            answered_pages=spec.data.answered_pages,
        )
        rows += _choice_rows(ctx, assistant, documents, folder) + _safety_rows(ctx, assistant, folder)
        replay = replay_texts(spec.data.replay, characters=1500, seed=spec.seed)
        lines = [row.to_openai() for row in rows] + [{"id": f"replay-{name}", "text": text} for name, text in replay]
        write_lines(folder / "train.jsonl", lines)
        topics = held_out(cpython_topics(), characters=spec.evaluate.retention_characters)
        write_lines(folder / "retention.jsonl", [{"id": name, "text": text} for name, text in topics])
        for what in asked.left_out:
            progress.say(f"  left out: {what}")
        for question, why in skipped:
            progress.say(f"  call only: {question.text} ({why})")
        scores = {
            "data.documents": funnel.documents,
            "data.kept": funnel.kept,
            "data.dropped": funnel.dropped,
            **{f"data.dropped_by.{reason}": count for reason, count in funnel.reasons.items()},
            "data.train_rows": len(lines),
            "data.questions_dev": len(questions["dev"]),
            "data.questions_sealed": len(questions["sealed"]),
        }
        counts = {
            "without_answer": [question.text for question, _ in skipped],
            "train_by_kind": _by_kind(questions["train"]),
            "sealed_by_kind": _by_kind(questions["sealed"]),
            "left_out": asked.left_out,
            "sealed_held_out": sum(question.intent in asked.held_out for question in questions["sealed"]),
        }
        return StageResult(counts=counts, scores=scores)


def _by_kind(questions: Sequence[Question]) -> dict[str, int]:
    return dict(sorted(Counter(question.kind for question in questions).items()))


def _check_pages(intents: Sequence[Intent], pages: dict[str, str], folder: Path) -> None:
    """Every page that an intent names must have been kept."""
    for intent in intents:
        if intent.page and intent.page not in pages:
            raise InputError(
                f"intent '{intent.name}' needs page '{intent.page}', which is not among the {len(pages)} kept pages: "
                f"{folder / 'dropped.jsonl'} says why if it was dropped"
            )


def _choice_rows(ctx: Context, assistant: Assistant, documents: Sequence[Document], folder: Path) -> list[Conversation]:
    """Writes the sealed questions; returns training rows in the same form."""
    spec = ctx.spec
    choices = choices_of(ctx, documents)
    pages = {document.id: document.text for document in documents}
    sealed = [choice.model_dump(mode="json") | {"id": f"choice-{n:03d}"} for n, choice in enumerate(choices.sealed)]
    write_lines(folder / "choices_sealed.jsonl", sealed)
    rotations = spec.data.choice_rotations
    if not rotations:
        return []

    def find(choice: Choice) -> str | None:
        found = assistant.execute(ToolCall("search_policies", {"query": choice.question}, "open_book"))
        return found.content if choice.page in (found.data or {}).get("pages", ()) else None

    count = round(spec.data.choice_share * len(choices.train))
    chosen = random.Random(f"{spec.seed}/choices").sample(choices.train, count)
    return build_choice_rows(chosen, pages, rotations=rotations, seed=spec.seed, system=assistant.system, find=find)


def _safety_rows(ctx: Context, assistant: Assistant, folder: Path) -> list[Conversation]:
    """Writes the sealed prompts; returns training rows with their refusals."""
    prompts = safety_of(ctx)
    sealed = [prompt.model_dump(mode="json") | {"id": f"safety-{n:03d}"} for n, prompt in enumerate(prompts.sealed)]
    write_lines(folder / "safety_sealed.jsonl", sealed)
    rows = build_safety_rows(prompts.train, system=assistant.system, tools=assistant.specs, prepare=assistant.prepare)
    return [replace(row, id=f"{row.id}-{copy}") for copy in range(ctx.spec.data.safety_copies) for row in rows]
