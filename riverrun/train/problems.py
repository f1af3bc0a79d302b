"""Problems with a reward, from the sources that rows come from: {"question" | "messages" | "prompt", "answer", ...}.

A question is what a user asks, a prompt is raw text. What a row has beside them is handed to the reward as `data`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from riverrun.base.artifacts import digest_file, digest_json
from riverrun.base.progress import Progress
from riverrun.base.types import Message
from riverrun.data.chunks import BadRecord, excerpt
from riverrun.data.corpus import RowSource, find_sources
from riverrun.data.counts import Counts
from riverrun.data.examples import BadRow
from riverrun.data.loading import SourceReport, bad_line
from riverrun.data.messages import openai_messages, plain, refuse_media, shown
from riverrun.data.records import Record, read_records
from riverrun.train.objectives.rewards import Problem

__all__ = ["LoadedProblems", "load_problems"]

_ASKED = ("question", "messages", "prompt")


@dataclass(frozen=True)
class LoadedProblems:
    """The problems of one source, and what became of its records."""

    problems: list[Problem]
    report: SourceReport


def load_problems(source: RowSource, *, system: str = "", progress: Progress | None = None) -> LoadedProblems:
    """All problems of a source, `system` before those that are questions; what is none is set aside with its reason."""
    counts = Counts()
    problems: list[Problem] = []
    bad: list[dict[str, Any]] = []
    files = find_sources(source, progress or Progress("quiet"))
    for file in files:
        for record in read_records(file):
            counts.records += 1
            try:
                problems.append(_problem(file.label, record, source.columns, system))
                counts.kept += 1
                counts.rows += 1
            except BadRow as error:
                counts.bad[error.reason] += 1
                told = BadRecord(record.number, error.reason, error.detail, excerpt(record.data))
                bad.append(bad_line(file.label, told))
    counts.check()
    digest = digest_json(["problems", *(digest_file(file.path) for file in files)])
    return LoadedProblems(problems, SourceReport(counts, digest, bad))


def _problem(file: str, record: Record, columns: Mapping[str, str], system: str) -> Problem:
    if not record.whole:
        raise BadRow("too_big", f"the record has {len(record.data)} bytes or more")
    try:
        row = json.loads(record.data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadRow("not_utf8", f"byte {error.start} of the record: {error.reason}") from None
    except (ValueError, RecursionError) as error:
        raise BadRow("not_json", str(error)) from None
    if not isinstance(row, dict):
        raise BadRow("not_this_format", f"the row must be an object, it is {type(row).__name__}")
    row |= {ours: row[theirs] for ours, theirs in columns.items() if theirs in row}
    refuse_media(row)
    given = [key for key in _ASKED if row.get(key)]
    if len(given) != 1:
        found = given or shown(sorted(map(str, row)))
        raise BadRow("not_this_format", f"a problem has one of question, messages and prompt, this one has {found}")
    asked = row[given[0]]
    rest = {key: value for key, value in row.items() if key not in ("id", "answer", *_ASKED)}
    own: dict[str, Any] = {"id": str(row.get("id", f"{file}:{record.number}")), "data": rest}
    own["answer"] = str(row.get("answer", ""))
    if given == ["prompt"]:
        return Problem(prompt=str(asked), **own)
    before = (plain("system", system),) if system else ()
    said: tuple[Message, ...] = (plain("user", asked),) if isinstance(asked, str) else openai_messages(asked)[0]
    return Problem(messages=(*before, *said), **own)
