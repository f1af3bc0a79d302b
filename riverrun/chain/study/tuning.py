"""The tuning study: prompt, retrieval, LoRA by rank, QLoRA and full training on the same rows and tokens.

Cells: `data` (database, rows, questions), `base` (no example at all; what the model can before), then each method with
each seed, and retrieval, LoRA and full training with fewer rows. The seed draws the examples of a prompt, the rows of a
smaller number, the order of rows and the first factors. Weights are deleted once they are measured; adapters stay.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator

from riverrun.base.artifacts import digest_tree
from riverrun.base.config import Config
from riverrun.base.progress import Progress
from riverrun.chain.measure import lines_once, write_lines
from riverrun.chain.study.measure import KeptConfig, Times, compare_kept, cost_of, measure_kept, opened_model
from riverrun.chain.study.sqltask import Example, Nearest, SqlTask, chat_rows, write_task
from riverrun.chain.study.study import Base, Cell, Outcome, StudyConfig
from riverrun.chain.study.tuning_page import close_tuning
from riverrun.evaluate.statistics import Rate
from riverrun.evaluate.tooltasks import Record
from riverrun.train.recipe import (
    BatchConfig,
    DataConfig,
    MethodConfig,
    ModelSpec,
    OptimizerConfig,
    RunConfig,
    TrainConfig,
)

if TYPE_CHECKING:
    from riverrun.train.run import TrainResult

__all__ = ["Method", "TuningConfig", "TuningStudy"]

Method = Literal["prompt", "retrieval", "lora", "qlora", "full"]
TRAINED = ("lora", "qlora", "full")
OWN_TOKENS = 40
"""Tokens of a row beside the system text, which a pack computes once; for forecasts."""


class Rates(Config):
    """Peak learning rates: each method has its own best one."""

    lora: float = Field(default=2e-3, gt=0, description="of LoRA, at every rank (alpha is twice the rank)")
    qlora: float = Field(default=2e-3, gt=0, description="of QLoRA")
    full: float = Field(default=2e-4, gt=0, description="of all weights")

    def of(self, method: str) -> float:
        return float(getattr(self, method))


class TuningConfig(StudyConfig):
    """Ways to adapt a model to a task, compared on the same rows."""

    study: Literal["tuning"] = Field(description="kind of the study")
    intents: str = Field(description="intents file, relative to the recipe")
    make: str = Field(description="script that makes the database, relative to the recipe")
    deny_columns: tuple[str, ...] = Field(default=(), description="columns that no query may read")
    train_per_intent: int = Field(default=50, ge=1, description="rows of each intent that is answered by a query")
    dev_per_intent: int = Field(default=3, ge=1, description="questions of each such intent that are asked")
    answer_tokens: int = Field(default=80, ge=1, description="longest query that is written")
    invented: float = Field(default=0.2, ge=0, le=1, description="share of rows that name things which do not exist")
    methods: tuple[Method, ...] = Field(
        default=("prompt", "retrieval", "lora", "qlora", "full"), min_length=1, description="what is compared"
    )
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1, description="repetitions of every cell")
    shots: int = Field(default=8, ge=1, description="examples in a prompt, drawn or retrieved")
    ranks: tuple[int, ...] = Field(default=(1, 4, 16, 64), min_length=1, description="ranks of LoRA")
    rank: int = Field(default=16, ge=1, description="rank of QLoRA, and of LoRA with fewer rows")
    passes: float = Field(default=1.0, gt=0, description="times that all rows are seen")
    fewer: dict[int, float] = Field(
        default={10: 16, 100: 8, 1000: 1}, description="smaller numbers of rows, and the times that those are seen"
    )
    fewer_methods: tuple[Method, ...] = Field(
        default=("retrieval", "lora", "full"), description="methods that are tried with fewer rows"
    )
    rates: Rates = Field(default=Rates(), description="peak learning rates")
    batch: BatchConfig = Field(
        default=BatchConfig(micro_tokens=1024, global_tokens=1024), description="tokens of a step"
    )
    measure: KeptConfig = Field(default=KeptConfig(), description="what must not be lost")

    @field_validator("fewer_methods")
    @classmethod
    def _with_rows(cls, value: tuple[Method, ...]) -> tuple[Method, ...]:
        if set(value) - {"retrieval", "lora", "full"}:
            raise ValueError("fewer rows are tried with retrieval, lora and full")
        return value


class TuningStudy:
    """See the module. Implements `study.Study`."""

    Settings: ClassVar[type[StudyConfig]] = TuningConfig

    def __init__(self, config: TuningConfig, recipe: Path) -> None:
        self.config, self.base = config, Base(config.model, recipe)
        self.intents, self.make = (recipe / config.intents).resolve(), (recipe / config.make).resolve()

    @cached_property
    def _files(self) -> dict[str, str]:
        return {path.name: digest_tree(path) for path in (self.intents, self.make)}

    def inputs(self) -> dict[str, str]:
        return {"model": self.base.digest} | self._files

    # ---- the grid -----------------------------------------------------------------------------------------------

    def cells(self) -> list[Cell]:
        config = self.config
        own = config.model_dump(mode="json")
        keys = ("seed", "train_per_intent", "dev_per_intent", "invented", "deny_columns")
        task = {key: own[key] for key in keys}
        shared = {"task": task, "answer_tokens": config.answer_tokens, "measure": own["measure"]}
        seconds = _Seconds(self)
        cells = [Cell("data", {"task": task}, 5.0), Cell("base", shared, seconds.asking(0) + seconds.kept)]
        for point in self._points():
            more: dict[str, Any] = {"shots": config.shots}
            if point["method"] in TRAINED:
                more = {"rate": config.rates.of(point["method"]), "batch": own["batch"]}
            cells.append(Cell(_cell_name(point), shared | point | more, seconds.of(point)))
        return cells

    def _points(self) -> list[dict[str, Any]]:
        """Method, rank, rows (0: all), passes and seed of every cell but the first two."""
        config = self.config
        out: list[dict[str, Any]] = []

        def add(method: Method, rank: int, rows: int, passes: float, seed: int) -> None:
            out.append(
                {
                    "method": method,
                    "rank": rank,
                    "rows": rows,
                    "passes": passes,
                    "seed": seed,
                }
            )

        for seed in config.seeds:
            for method in config.methods:
                if method == "prompt" or (method == "retrieval" and seed == config.seeds[0]):
                    add(method, 0, 0, 0.0, seed)  # all rows retrieved from: nothing is drawn
                elif method in TRAINED:
                    ranks = config.ranks if method == "lora" else (config.rank if method == "qlora" else 0,)
                    for rank in ranks:
                        add(method, rank, 0, config.passes, seed)
            for method in config.fewer_methods:
                for rows, passes in config.fewer.items() if method in config.methods else ():
                    trained = method in TRAINED
                    add(method, config.rank if method == "lora" else 0, rows, passes if trained else 0.0, seed)
        return out

    # ---- one cell -----------------------------------------------------------------------------------------------

    def run(self, cell: Cell, folder: Path, out: Path, progress: Progress) -> dict[str, Any]:
        config, cells = self.config, out / "cells"
        if cell.name == "data":
            return dict(
                write_task(
                    folder,
                    intents=self.intents,
                    make=self.make,
                    seed=config.seed,
                    train=config.train_per_intent,
                    dev=config.dev_per_intent,
                    invented=config.invented,
                    deny=config.deny_columns,
                )
            )
        task = SqlTask(cells / "data", deny=config.deny_columns)
        if cell.name == "base":
            with opened_model(self.base.path) as model:
                kept = measure_kept(model, folder, config.measure, config.seed)
                return {"success": _success(folder, lambda: task.run(model, None, config.answer_tokens)), "kept": kept}
        point = cell.settings
        rows = _chosen(task.examples, point)
        if point["method"] not in TRAINED:
            return {"success": self._prompted(task, rows, point, folder)}
        four_bits = out / "nf4" if point["method"] == "qlora" else None
        done = self._train(task, rows, point, folder, four_bits, progress)
        assert done.folder is not None, f"training ended as {done.status}"
        full = done.folder.name == "model"
        base = four_bits or self.base.path  # QLoRA's adapter belongs to the base in four bits
        with opened_model(done.folder if full else base, None if full else done.folder) as model:
            success = _success(folder, lambda: task.run(model, None, config.answer_tokens))
            kept = measure_kept(model, folder, config.measure, config.seed)
        if full:
            shutil.rmtree(done.folder)
        against = compare_kept(cells / "base", folder)
        return {"success": success, "kept": kept, "against_base": against, "training": cost_of(done)}

    def _prompted(
        self, task: SqlTask, rows: Sequence[Example], point: Mapping[str, Any], folder: Path
    ) -> dict[str, float]:
        count = self.config.shots
        if point["method"] == "retrieval":
            shots = Nearest(rows, count)
        else:
            drawn = random.Random(f"{self.config.seed}/shots/{point['seed']}").sample(rows, min(count, len(rows)))

            def shots(question: str) -> Sequence[Example]:  # type: ignore[misc]
                return drawn

        with opened_model(self.base.path) as model:
            return _success(folder, lambda: task.run(model, shots, self.config.answer_tokens))

    def _train(
        self,
        task: SqlTask,
        rows: Sequence[Example],
        point: Mapping[str, Any],
        folder: Path,
        four_bits: Path | None,
        progress: Progress,
    ) -> TrainResult:
        """Train on the rows; `four_bits` is where the base in four bits is kept for all cells."""
        from riverrun.train.run import train_recipe

        file = folder / "rows.jsonl"
        if not file.is_file():
            write_lines(file, chat_rows(task.system, rows))
        method: dict[str, Any] = {"name": point["method"]}
        if point["rank"]:
            method |= {"rank": point["rank"], "alpha": 2.0 * point["rank"]}
        if four_bits:
            method["cache"] = str(four_bits)
        recipe = TrainConfig.model_validate(
            {
                "model": ModelSpec(path=str(self.base.path)),
                "data": DataConfig.model_validate({"train": [{"path": file}]}),
                "method": MethodConfig.model_validate(method),
                "optimizer": OptimizerConfig(learning_rate=point["rate"], warmup=0.05),
                "batch": BatchConfig.model_validate(point["batch"]),
                "run": RunConfig.model_validate({"length": f"{point['passes']} epochs", "seed": point["seed"]}),
            }
        )
        return train_recipe(recipe, folder / "train", progress=progress)

    def close(self, outcomes: Mapping[str, Outcome], out: Path) -> dict[str, Any]:
        return close_tuning(self.config, outcomes, out)


def _cell_name(point: Mapping[str, Any]) -> str:
    rank = f"-r{point['rank']}" if point["rank"] else ""
    rows = f"-{point['rows']}" if point["rows"] else ""
    return f"{point['method']}{rank}{rows}-s{point['seed']}"


def _chosen(examples: Sequence[Example], point: Mapping[str, Any]) -> list[Example]:
    """The rows of a point: all, or as many as it says, drawn by its seed."""
    count = point["rows"]
    if not count or count >= len(examples):
        return list(examples)
    return random.Random(f"rows/{point['seed']}").sample(list(examples), count)


def _success(folder: Path, ask: Any) -> dict[str, float]:
    """The development questions answered rightly; the records are a file of the folder."""
    rows = lines_once(folder / "records.jsonl", lambda: [record.as_dict() for record in ask()])
    return Rate.of([Record.from_dict(row).success for row in rows]).as_dict()


class _Seconds:
    """A guess for each point."""

    def __init__(self, study: TuningStudy) -> None:
        self.config, self.times = study.config, Times(study.base.opened)
        self.kept = self.times.kept(study.config.measure)

    def asking(self, shots: int) -> float:
        questions = 34 * self.config.dev_per_intent
        return 5.0 + self.times.reading(questions * (25 + shots * OWN_TOKENS)) + self.times.writing(questions, 30)

    def of(self, point: Mapping[str, Any]) -> float:
        method = point["method"]
        if method == "prompt":
            return self.asking(0)
        if method == "retrieval":
            return self.asking(self.config.shots)
        rows = point["rows"] or 34 * self.config.train_per_intent
        step = self.config.batch.global_tokens
        training = self.times.training(
            method, 1.15 * OWN_TOKENS * rows * point["passes"], rank=point["rank"] or 1, step_tokens=step
        )
        return 5.0 + training + self.asking(0) + self.kept
