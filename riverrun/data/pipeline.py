"""Documents through operators, one after the other: every document ends kept or dropped, with the reason.

This executor holds all documents in memory and runs in one process; it is meant for a business's own pages (thousands),
not for a crawl.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from riverrun.base.errors import InputError
from riverrun.base.progress import Progress
from riverrun.base.types import Document
from riverrun.data.dedup import ExactDuplicates, NearDuplicates
from riverrun.data.extract import Extract
from riverrun.data.journal import Dropped, Funnel, Step, write_journal
from riverrun.data.operators import Drop, Edit, Grouped, Operator, Rule, Signal, with_signals
from riverrun.data.rules import Placeholder, Thresholds
from riverrun.data.safety import Abuse, MaskPersonalData
from riverrun.data.signals import TextSignals
from riverrun.data.sources import read_folder

__all__ = ["clean_folder", "default_operators", "run"]


def default_operators(*, keep: Sequence[str] = ()) -> list[Operator]:
    """Extract, measure, judge, deduplicate, drop abuse, mask personal data.

    `keep` lists texts that masking leaves alone, such as the business's own public address and phone number.
    """
    return [
        Extract(),
        TextSignals(),
        Abuse(),
        Thresholds(),
        Placeholder(),
        ExactDuplicates(),
        NearDuplicates(),
        MaskPersonalData(keep=keep),
    ]


def clean_folder(folder: Path, out_dir: Path, *, keep: Sequence[str] = (), progress: Progress | None = None) -> Funnel:
    """Read a folder of .html, .txt and .md files, run the default operators, write the journal into `out_dir`."""
    return run(read_folder(folder), default_operators(keep=keep), out_dir, progress=progress)


def run(
    documents: Iterable[Document],
    operators: Sequence[Operator],
    out_dir: Path,
    *,
    progress: Progress | None = None,
) -> Funnel:
    """Pass the documents through the operators and write kept.jsonl, dropped.jsonl and funnel.json.

    Kept documents keep their order. InputError if two documents share an id, if there is none, or if none is left
    (the journal is written before, so the reasons can be read).
    """
    kept = list(documents)
    if not kept:
        raise InputError("there is no document to clean: give a source that holds at least one")
    if twice := [name for name, count in Counter(document.id for document in kept).items() if count > 1]:
        raise InputError(f"{len(twice)} document ids occur twice, the first is '{twice[0]}': ids must be unique")
    total = len(kept)
    dropped: list[Dropped] = []
    steps: list[Step] = []
    for operator in operators:
        if progress:
            with progress.task(f"data: {operator.name}", total=len(kept), unit="documents") as task:
                kept, drops, step = _apply(operator, kept)
                task.advance(step.came_in, dropped=len(drops))
        else:
            kept, drops, step = _apply(operator, kept)
        dropped.extend(drops)
        steps.append(step)
    reasons = Counter(item.reason for item in dropped)
    funnel = Funnel(total, len(kept), len(dropped), dict(reasons.most_common()), tuple(steps))
    write_journal(out_dir, kept, dropped, funnel)
    if not kept:
        why = ", ".join(f"{reason}: {count}" for reason, count in reasons.most_common())
        raise InputError(f"all {total} documents were dropped ({why}): see {out_dir / 'dropped.jsonl'}")
    return funnel


def _apply(operator: Operator, documents: list[Document]) -> tuple[list[Document], list[Dropped], Step]:
    """One operator over all documents."""
    kept: list[Document] = []
    drops: list[Dropped] = []
    counts: Counter[str] = Counter()
    edited = 0
    grouped: Mapping[str, Drop] = operator.group(documents) if isinstance(operator, Grouped) else {}
    for document in documents:
        result: Document | Drop = document
        if isinstance(operator, Grouped):
            result = grouped.get(document.id, document)
        elif isinstance(operator, Signal):
            result = with_signals(document, operator.measure(document))
        elif isinstance(operator, Rule):
            result = operator.check(document) or document
        else:
            outcome = operator.edit(document)
            if isinstance(outcome, Drop):
                result = outcome
            else:
                result = outcome.document
                edited += outcome.document != document
                counts.update(outcome.counts)
        if isinstance(result, Drop):
            drops.append(Dropped(document.id, result.reason, operator.name, result.detail))
        else:
            kept.append(result)
    reasons = Counter(item.reason for item in drops)
    kind = next(k.__name__.lower() for k in (Grouped, Signal, Rule, Edit) if isinstance(operator, k))
    step = Step(
        operator.name,
        kind,
        len(documents),
        len(kept),
        dict(sorted(reasons.items())),
        edited,
        dict(sorted(counts.items())),
    )
    return kept, drops, step
