"""The sources of a recipe to what its objective learns from: rows, pairs, judged answers or problems."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from riverrun.base.artifacts import atomic_file
from riverrun.base.errors import InputError
from riverrun.base.progress import Progress
from riverrun.base.types import Message, ToolSpec
from riverrun.data.counts import Counts, check_bad
from riverrun.data.encoding import EncodeConfig
from riverrun.data.examples import Kind
from riverrun.data.loading import SourceReport, load_source, told_first
from riverrun.data.order import Mixture
from riverrun.data.packing import Group
from riverrun.data.preferences import JudgedGroup, judged_of, pairs_of
from riverrun.data.rows import ListRows, Rows
from riverrun.data.tokens import EncodedRows, encode_rows
from riverrun.hub.store import default_root
from riverrun.models.load import Checkpoint
from riverrun.train.config import FinetuneConfig
from riverrun.train.objectives.config import DataKind, PolicyConfig
from riverrun.train.objectives.rewards import Problem
from riverrun.train.objectives.rollout import AnswerRows
from riverrun.train.problems import load_problems
from riverrun.train.recipe import SourceConfig, TrainConfig
from riverrun.wire.codec import get_codec

__all__ = [
    "LoadedRows",
    "check_rows",
    "encode",
    "learned_from",
    "load_rows",
    "longest_row",
    "read_rows",
    "shard_cache",
]

Example = tuple[str, tuple[Message, ...] | str, tuple[ToolSpec, ...]]
UNBOUNDED = 1 << 40
_KINDS: dict[DataKind, tuple[frozenset[Kind], str]] = {
    "rows": (frozenset({"chat", "text"}), "conversations or texts"),
    "pairs": (frozenset({"preference"}), "pairs of answers"),
    "judged": (frozenset({"kto"}), "judged answers"),
}


def read_rows(path: Path) -> Iterator[Example]:
    """(id, messages, tools) of the chain's JSON lines, or (id, text, ()) of lines {"text": ...}; both may be mixed.

    InputError names file and line.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist: give a JSON-lines file of conversations")
    with open(path, "rb") as handle:
        for number, line in enumerate(handle, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8"))
                if isinstance(row.get("text"), str):
                    yield str(row.get("id", number)), row["text"], ()
                    continue
                messages = tuple(Message.from_openai(message) for message in row["messages"])
                tools = tuple(ToolSpec.from_openai(tool) for tool in row.get("tools") or ())
            except InputError as error:
                raise type(error)(f"{path}, line {number}: {error}") from None
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise InputError(f"{path}, line {number}: not a conversation ({error!r})") from None
            yield str(row.get("id", number)), messages, tools


def encode(path: Path, opened: Checkpoint, config: FinetuneConfig) -> EncodedRows:
    """All rows of the chain as tokens; InputError when none is left."""
    encoded = encode_rows(
        read_rows(path),
        tokenizer=opened.tokenizer,
        template=opened.template,
        codec=get_codec(config.codec),
        max_tokens=min(config.max_tokens, opened.config.max_position_embeddings, config.micro_tokens),
    )
    if not encoded.rows:
        reason = encoded.dropped[0][1] if encoded.dropped else "the file is empty"
        raise InputError(f"{path} has no row to learn from: {reason}")
    return encoded


@dataclass(frozen=True, slots=True)
class LoadedRows:
    """What is learned, in the form that the objective takes it, and what became of every record.

    `train` has rows or pairs, mixed by weight; `groups` the judged answers of each source. `reports` are those of the
    train sources, `held_reports` those of the validation sources by name, which stand beside theirs in `validation`,
    `held_groups` or `held_problems`.
    """

    train: Mixture | None = None
    groups: list[list[JudgedGroup]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    validation: dict[str, Rows] = field(default_factory=dict)
    held_groups: dict[str, list[Group]] = field(default_factory=dict)
    held_problems: dict[str, list[Problem]] = field(default_factory=dict)
    reports: list[SourceReport] = field(default_factory=list)
    held_reports: dict[str, SourceReport] = field(default_factory=dict)

    @property
    def in_memory(self) -> bool:
        """Whether the rows that are learned are lists."""
        return self.train is not None and all(isinstance(rows, ListRows) for rows in self.train.sets)

    def sizes(self, config: TrainConfig, opened: Checkpoint) -> tuple[list[int], int, int]:
        """(tokens of every row, tokens and label tokens of an epoch by the sources' weights); answers to problems are
        taken to be as long as they may."""
        if isinstance(config.objective, PolicyConfig):
            asked = config.objective.rollouts
            encode = AnswerRows(opened.tokenizer, opened.template, get_codec(config.data.codec))
            whole = [encode.prompt_tokens(each) + asked.max_tokens for each in self.problems]
            return whole, asked.answers * sum(whole), asked.answers * asked.max_tokens * len(whole)
        if self.train is None:
            rows = [row for groups in self.groups for group in groups for row in group.rows]
            return [len(row.ids) for row in rows], sum(len(r.ids) for r in rows), sum(r.label_tokens for r in rows)
        parts = list(zip(self.train.sets, self.train.weights, strict=True))
        tokens, labels = (
            round(sum(weight * int(each.sum()) for each, weight in some))
            for some in ([(p.lengths, w) for p, w in parts], [(p.labels, w) for p, w in parts])
        )
        return self.train.lengths.tolist(), tokens, labels

    @property
    def counts(self) -> Counts:
        """Of the sources that are learned."""
        return sum((report.counts for report in self.reports), Counts())

    def bad_lines(self) -> Iterator[Mapping[str, Any]]:
        """What was set aside, of all sources."""
        for report in (*self.reports, *self.held_reports.values()):
            yield from report.bad_lines()

    def write_bad(self, file: Path) -> None:
        """`bad_lines` as JSON lines; no file where nothing was set aside."""
        if not any(report.counts.bad for report in (*self.reports, *self.held_reports.values())):
            file.unlink(missing_ok=True)
            return
        with atomic_file(file) as handle:
            for line in self.bad_lines():
                text = json.dumps(line, ensure_ascii=False) + "\n"
                handle.write(text.encode("utf-8", "replace").decode("utf-8"))

    def summary(self) -> dict[str, Any]:
        """Counts for the log and the result."""
        own = self.counts.to_json()
        left_out = own["records"] - own["kept"]
        out = {**own, "left_out": left_out}
        if self.held_reports:
            out["validation"] = {name: report.counts.to_json() for name, report in self.held_reports.items()}
        return out


def longest_row(config: TrainConfig, opened: Checkpoint, micro_tokens: int) -> tuple[int, str]:
    """Tokens of the longest row, and what bounds it: the recipe, the model's context, or a pack."""
    bounds = [
        (config.data.max_tokens, "data.max_tokens"),
        (opened.config.longest or UNBOUNDED, "the model's context"),
        (micro_tokens, "batch.micro_tokens"),
    ]
    return min(bounds, key=lambda bound: bound[0])


def learned_from(config: TrainConfig) -> tuple[frozenset[Kind], str]:
    """Kinds of rows that a recipe's objective learns from, and the same in words; of all but problems."""
    kinds, what = _KINDS[config.objective.data]
    return kinds, f"objective {config.objective.name} learns from {what}"


def shard_cache() -> Path:
    """Where rows that are too many for memory lie as shards; each folder may be deleted when no run uses it."""
    return default_root() / "shards"


def load_rows(
    config: TrainConfig, opened: Checkpoint, *, micro_tokens: int, progress: Progress | None = None
) -> LoadedRows:
    """Everything a recipe reads; whether too much was set aside is asked by `check_rows`.

    InputError for a source without a row to learn from, or with rows that the objective cannot learn from.
    """
    progress = progress or Progress("quiet")
    if isinstance(config.objective, PolicyConfig):
        return _load_problems(config, config.objective.rollouts.system, progress)
    kinds, wanted = learned_from(config)
    encoding = config.data.encoding(config.objective, longest_row(config, opened, micro_tokens)[0])

    def load(source: SourceConfig, encoding: EncodeConfig = encoding) -> tuple[Rows, SourceReport]:
        found = load_source(
            source,
            opened.tokenizer,
            opened.template,
            encoding,
            cache=shard_cache(),
            kinds=kinds,
            wanted=wanted,
            progress=progress,
        )
        _check_source(source, found.report)
        return found.rows, found.report

    learned = [load(source) for source in config.data.train]
    held = {source.title: load(source) for source in config.data.validation}
    out = LoadedRows(
        reports=[report for _, report in learned], held_reports={name: report for name, (_, report) in held.items()}
    )
    if config.objective.data == "judged":
        out.groups.extend(judged_of(rows) for rows, _ in learned)
        out.held_groups.update({name: [*judged_of(rows)] for name, (rows, _) in held.items()})
        return out
    if config.objective.data == "pairs":
        out.held_groups.update({name: pairs_of(rows) for name, (rows, _) in held.items()})
    else:
        out.validation.update({name: rows for name, (rows, _) in held.items()})
    weights = [source.weight for source in config.data.train]
    return replace(out, train=Mixture([rows for rows, _ in learned], weights, seed=config.run.seed))


def _load_problems(config: TrainConfig, system: str, progress: Progress) -> LoadedRows:
    out = LoadedRows()
    for source in config.data.train:
        found = load_problems(source, system=system, progress=progress)
        _check_source(source, found.report)
        out.problems.extend(found.problems)
        out.reports.append(found.report)
    for source in config.data.validation:
        found = load_problems(source, system=system, progress=progress)
        _check_source(source, found.report)
        out.held_problems[source.title] = found.problems
        out.held_reports[source.title] = found.report
    return out


def _check_source(source: SourceConfig, report: SourceReport) -> None:
    """InputError when nothing is left of a source: a mixture would go on without it."""
    if not report.counts.rows:
        first = next(report.bad_lines(), None)
        why = f"line {first['line']}: {first['detail']} ({report.counts.told()})" if first else "it is empty"
        raise InputError(f"{source.path} has no row to learn from: {why}")


def check_rows(rows: LoadedRows, config: TrainConfig, limit: tuple[int, str], bad_file: Path | None) -> None:
    """InputError when more was set aside than `data.bad_rows` allows, or a row is too long for `overlong: refuse`.

    `limit`: see `longest_row`. What was set aside is then written into `bad_file`.
    """
    refuse = ""
    if config.data.overlong == "refuse":
        refuse = f"the limit is {limit[0]} tokens ({limit[1]}): raise it, or say another data.overlong"
    for reports in (rows.reports, list(rows.held_reports.values())):
        total = sum((report.counts for report in reports), Counts())
        lines = islice((line for report in reports for line in report.bad_lines()), 3)
        try:
            if reports:
                check_bad(total, config.data.bad_rows, bad_file or told_first(list(lines)), refuse=refuse)
        except InputError:
            if bad_file is not None:
                rows.write_bad(bad_file)
            raise
