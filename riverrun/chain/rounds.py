"""Rounds of fine-tuning: train, test on the development questions, change one thing, train again; the best is kept.

`round-N/` holds what was changed and why (change.json), new training rows (more.jsonl), the adapter, its loss and its
answers; round.json is written last. A run that was killed reads the finished rounds and goes on in the half-done one.
The sealed questions are not read here. Drawing new questions makes all splits again in memory, as the data stage did,
so that entities are divided alike and no text of a test can come again.
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from riverrun.base.artifacts import write_json
from riverrun.base.errors import InputError
from riverrun.base.progress import Progress
from riverrun.chain.asked import gather
from riverrun.chain.assistant import Assistant
from riverrun.chain.candidates import base_model
from riverrun.chain.improving import FIRST, Change, Loss, Round, Settings, best, propose, stop_reason, targets
from riverrun.chain.measure import assistant_of, measure_tools, rate_names, write_lines
from riverrun.chain.planning import trainer_settings
from riverrun.chain.spec import AppSpec
from riverrun.chain.stage import Context, StageResult, read_json, read_jsonl
from riverrun.chain.words import word
from riverrun.data.conversations import Question, build_conversations
from riverrun.data.journal import read_documents
from riverrun.evaluate import tooltasks
from riverrun.evaluate.statistics import Rate
from riverrun.evaluate.tooltasks import Record, ToolQuestion
from riverrun.train.config import FinetuneConfig

__all__ = ["ROUNDS_CODE", "development_bar", "run_rounds"]

ROUNDS_CODE = (
    "serve",
    "evaluate",
    "agent",
    "data",
    "chain/rounds.py",
    "chain/improving.py",
    "chain/measure.py",
    "chain/assistant.py",
    "chain/asked.py",
)
"""What decides the outcome of rounds beside the code of one training."""


class Train(Protocol):
    """One training into `out`; returns its figures: steps, seconds, ..."""

    def __call__(
        self, rows: Path, out: Path, settings: FinetuneConfig, *, work: Path, adapter: Path | None
    ) -> dict[str, Any]: ...


def development_bar(spec: AppSpec) -> float | None:
    """The development score that ends the rounds; None lets them go on to their number."""
    return spec.gates.success if spec.rounds.success is None else spec.rounds.success


def run_rounds(ctx: Context, folder: Path, micro_tokens: int, train: Train, progress: Progress) -> StageResult:
    """Rounds until the bar is met, nothing gains or their number is reached; `adapter/` is the best round's."""
    spec = ctx.spec.rounds
    bar = development_bar(ctx.spec)
    job = _Job(ctx, folder, trainer_settings(ctx.spec, micro_tokens), train, progress)
    history: list[Round] = []
    while not (stopped := stop_reason(history, most=spec.most, bar=bar, patience=spec.patience)):
        done = folder / f"round-{len(history) + 1}" / "round.json"
        if not done.is_file():
            change = job.change(history, bar)
            if change is None:
                stopped = "nothing left"
                break
            write_json(done, job.round(history, change).as_dict())
        history.append(Round.from_dict(read_json(done)))
        _say(progress, history)
    top = best(history)
    shutil.copytree(folder / f"round-{top.number}" / "adapter", folder / "adapter", dirs_exist_ok=True)
    shutil.copyfile(folder / f"round-{top.number}" / "loss.jsonl", folder / "loss.jsonl")
    rounds = [each.as_dict() for each in history]
    write_json(folder / "rounds.json", {"bar": bar, "stopped": stopped, "chosen": top.number, "rounds": rounds})
    return _result(job, history, stopped)


def _say(progress: Progress, history: Sequence[Round]) -> None:
    last = history[-1]
    share, count = 100 * last.success.value, last.success.n
    progress.say(word("round", number=last.number, change=last.change.what, share=share, count=count))
    if not last.kept:
        progress.say(word("dropped", best=best(history).number))


def _result(job: _Job, history: Sequence[Round], stopped: str) -> StageResult:
    """Figures of all rounds together, of each, and of the chosen one."""
    top = best(history)
    figures = {each.number: read_json(job.figures(each.number)) for each in history}
    sums = ("steps", "tokens", "computed_tokens", "label_tokens", "seconds")
    measured: dict[str, Any] = {key: sum(each[key] for each in figures.values()) for key in sums}
    measured["peak_bytes"] = max(each["peak_bytes"] for each in figures.values())
    measured["tokens_per_second"] = measured["tokens"] / max(1e-9, measured["seconds"])
    measured |= {"first_loss": figures[1]["first_loss"], "last_loss": figures[top.number]["last_loss"]}
    scores = {f"finetune.{key}": value for key, value in measured.items()}
    scores |= {"rounds.count": len(history), "rounds.chosen": top.number, "rounds.stopped": stopped}
    scores |= rate_names("rounds.development", top.success.as_dict())
    for each in history:
        prefix = f"rounds.by_number.{each.number}"
        scores |= rate_names(prefix, each.success.as_dict())
        scores[f"{prefix}.change"], scores[f"{prefix}.kept"] = each.change.what, each.kept
        scores[f"{prefix}.seconds"] = figures[each.number]["seconds"]
    counts = {"method": "lora", "resumed_from": max(each["resumed_from"] for each in figures.values())}
    return StageResult(counts=counts | {"dropped_rows": figures[top.number]["dropped_rows"]}, scores=scores)


def _taught(steps: Sequence[Mapping[str, Any]]) -> list[float]:
    """The losses of what is to be learned: texts against forgetting have losses of their own height."""
    return [float(row["loss"]) for row in steps if not row.get("plain_text")] or [float(row["loss"]) for row in steps]


class _Job:
    """What all rounds of a run share."""

    def __init__(self, ctx: Context, folder: Path, settings: FinetuneConfig, train: Train, progress: Progress) -> None:
        self.ctx, self.folder, self.settings, self.train, self.progress = ctx, folder, settings, train, progress
        self.assistant: Assistant = assistant_of(ctx)
        data = ctx.folder("data")
        self.questions = [ToolQuestion.from_dict(row) for row in read_jsonl(data / "questions_dev.jsonl")]
        if not self.questions:
            raise InputError(
                f"rounds.most = {ctx.spec.rounds.most} needs development questions and there are none: "
                f"raise synthesis.dev or data.dev_per_intent, or say rounds.most=1"
            )

    def place(self, number: int) -> Path:
        return self.folder / f"round-{number}"

    def figures(self, number: int) -> Path:
        """Times and memory, which differ from run to run: kept beside the outputs until the stage ends."""
        return self.folder / ".work" / f"round-{number}.json"

    def group(self, record: Record | Question) -> str:
        """Synthesised questions have hundreds of intents with one question each: there the kind is what fails."""
        return record.kind if self.ctx.spec.synthesis is not None else record.intent

    def change(self, history: Sequence[Round], bar: float | None) -> Change | None:
        """The next round's change; what was decided before an interruption stands."""
        number = len(history) + 1
        file = self.place(number) / "change.json"
        if file.is_file():
            value = read_json(file)
            return Change(**{**value, "settings": Settings(**value["settings"])})
        if not history:
            own = self.settings
            settings = Settings(own.rank, own.alpha, own.learning_rate, own.epochs)
            change: Change | None = Change(FIRST, "the spec's own settings", settings, own.epochs)
        else:
            drawn = self._draw(history, number, bar)
            change = propose(history, bar=bar, drawn=Counter(map(self.group, drawn)))
            if change is not None and change.more:
                write_lines(self.place(number) / "more.jsonl", self._rows(drawn))
        if change is not None:
            write_json(file, asdict(change))
        return change

    def _draw(self, history: Sequence[Round], number: int, bar: float | None) -> list[Question]:
        """New training questions for the groups that fail, beyond those that were trained on."""
        data = self.ctx.folder("data")
        what = (self.ctx, data / "shop.sqlite", read_documents(data / "kept.jsonl"), self.assistant)
        trained = Counter(map(self.group, gather(*what, reword=False).questions["train"]))
        draws: dict[str, Mapping[str, int]] = {}
        for each in history:
            if each.kept and each.change.more:
                draws[f"more-{each.number}"] = each.change.more
                trained.update(each.change.more)
        name = f"more-{number}"
        return gather(*what, reword=False, more={**draws, name: targets(history, trained, bar)}).more[name]

    def _rows(self, questions: Sequence[Question]) -> list[dict[str, Any]]:
        """Conversations as the data stage makes them."""
        spec = self.ctx.spec.data
        made = build_conversations(
            questions,
            system=self.assistant.system,
            tools=self.assistant.specs,
            run_tool=self.assistant.execute,
            prepare=self.assistant.prepare,
            answered=spec.answered,
            answered_pages=spec.answered_pages,
        )
        return [conversation.to_openai() for conversation in made]

    def round(self, history: Sequence[Round], change: Change) -> Round:
        """Train as the change says and ask the development questions; each is skipped when it is done."""
        number = len(history) + 1
        place, work = self.place(number), self.folder / ".work" / f"round-{number}"
        if not self.figures(number).is_file():
            write_lines(work / "rows.jsonl", self._training_rows(history, change))
            values = asdict(change.settings) | {"epochs": change.passes, "seed": self.settings.seed + number - 1}
            adapter = self.place(change.start) / "adapter" if change.start else None
            settings = self.settings.model_copy(update=values)
            found = self.train(work / "rows.jsonl", place, settings, work=work / "train", adapter=adapter)
            write_json(self.figures(number), found)
        if not (place / "dev_records.jsonl").is_file():
            with self.ctx.model(base_model(self.ctx), adapter=place / "adapter", name=f"round {number}") as model:
                path = place / "dev_records.jsonl"
                measure_tools(self.ctx, model, self.assistant, path, self.questions, self.progress)
        records = self._records(number)
        success, groups = tooltasks.score(records).overall, self._groups(records)
        steps = read_jsonl(place / "loss.jsonl")
        loss = Loss.of(_taught(steps), history[change.start - 1].loss.start if change.start else None)
        gain: dict[str, float] = {}
        if history:
            compared = tooltasks.compare(self._records(best(history).number), records).as_dict()
            gain = {key: compared[key] for key in ("difference", "low", "high", "p")}
        return Round(number, change, success, groups, loss, len(steps), gain)

    def _records(self, number: int) -> list[Record]:
        return [Record.from_dict(row) for row in read_jsonl(self.place(number) / "dev_records.jsonl")]

    def _groups(self, records: Sequence[Record]) -> dict[str, Rate]:
        names = sorted({self.group(record) for record in records})
        return {name: Rate.of([each.success for each in records if self.group(each) == name]) for name in names}

    def _training_rows(self, history: Sequence[Round], change: Change) -> list[dict[str, Any]]:
        """New rows beside as many old ones where only data is added, else all rows that the best round has seen."""
        number = len(history) + 1
        rows = read_jsonl(self.ctx.folder("data") / "train.jsonl")
        for each in history:
            if each.kept and each.change.more:
                rows += read_jsonl(self.place(each.number) / "more.jsonl")
        if not change.more:
            return rows
        new = read_jsonl(self.place(number) / "more.jsonl")
        old = random.Random(f"{self.ctx.spec.seed}/round-{number}").sample(rows, min(len(rows), len(new)))
        return old + new
