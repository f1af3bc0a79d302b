"""Continued pre-training on text that no model knows: what is learned, what is lost, and whether it can be asked for.

Cells, in this order:
  data        the invented country as text, replay, cloze items, questions
  base        the model as it is
  pretrained  trained on the text, with replay
  tuned       that one, instruction-tuned on questions about one half of the country, asked about the other half
  control     the base tuned in the same way: what the tuning alone brings
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BeforeValidator, Field

from riverrun.base.config import Config
from riverrun.base.progress import Progress
from riverrun.base.protocols import LanguageModel, Request
from riverrun.base.types import Message, SamplingParams
from riverrun.chain.measure import lines_once, write_lines
from riverrun.chain.stage import read_jsonl
from riverrun.chain.study.measure import KeptConfig, Times, compare_kept, cost_of, measure_kept, opened_model
from riverrun.chain.study.pretraining_page import close_pretraining
from riverrun.chain.study.study import Base, Cell, Outcome, StudyConfig
from riverrun.data.invented import Fact, World, make_world
from riverrun.data.replay import WIDER, replay_texts
from riverrun.evaluate import cloze, retention
from riverrun.evaluate.cloze import Cloze, ClozeRecord
from riverrun.evaluate.instructions import replay_prompts
from riverrun.evaluate.retention import WindowRecord
from riverrun.evaluate.statistics import Rate
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

__all__ = ["PretrainingConfig", "PretrainingStudy", "says_value"]

T = TypeVar("T")
OPTIONS = 4
ANSWER_TOKENS = 32


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class WorldConfig(Config):
    """The text to learn."""

    scale: float = Field(default=1.0, gt=0, le=3, description="size of the country: 156 facts at 1")
    articles: int = Field(default=12, ge=1, description="articles on each thing, in changing order and wording")
    passes: float = Field(default=6.0, gt=0, description="times that articles and book are seen")


class ReplayConfig(Config):
    """General text that is learned beside it, seen once."""

    texts: int = Field(default=450, ge=0, description="docstrings of the standard library")
    characters: int = Field(default=1200, ge=300, description="longest of them")
    chats: int = Field(default=50, ge=0, description="plain instructions with the base model's own answers")
    chat_passes: float = Field(default=3.0, gt=0, description="times that those are seen beside the text")


class TrainingConfig(Config):
    """How one of the two trainings is done."""

    method: Annotated[MethodConfig, BeforeValidator(_named)] = Field(
        default=MethodConfig(name="full"), description="what is trained"
    )
    optimizer: Annotated[OptimizerConfig, BeforeValidator(_named)] = Field(
        default=OptimizerConfig(), description="how weights move"
    )
    batch: BatchConfig = Field(default=BatchConfig(), description="tokens at once")
    run: RunConfig = Field(
        default=RunConfig(), description="how long; epochs of rows that stand there as often as said"
    )


class Bars(Config):
    """What must be reached."""

    cloze: float = Field(default=3.0, description="right endings, times those of the base, at least")
    domain: float = Field(default=0.85, description="bits per byte of held-out text, times those of the base, at most")
    general: float = Field(default=1.05, description="bits per byte of general text, times those of the base, at most")
    answers: float = Field(default=0.5, description="share of unseen questions answered after tuning, at least")
    instructions: float = Field(default=-0.1, description="change of plain instructions followed, at least")


class PretrainingConfig(StudyConfig):
    """Continued pre-training on an invented country."""

    study: Literal["continued_pretraining"] = Field(description="kind of the study")
    world: WorldConfig = Field(default=WorldConfig(), description="the text to learn")
    replay: ReplayConfig = Field(default=ReplayConfig(), description="general text beside it")
    pretrain: TrainingConfig = Field(default=TrainingConfig(), description="training on text")
    tune: TrainingConfig = Field(default=TrainingConfig(), description="training on questions")
    measure: KeptConfig = Field(default=KeptConfig(), description="what must not be lost")
    items: int = Field(default=0, ge=0, description="cloze items that are asked; 0 asks all")
    questions: int = Field(default=0, ge=0, description="unseen questions that are asked; 0 asks all")
    bars: Bars = Field(default=Bars(), description="what must be reached")


class PretrainingStudy:
    """See the module. Implements `study.Study`."""

    Settings: ClassVar[type[StudyConfig]] = PretrainingConfig

    def __init__(self, config: PretrainingConfig, recipe: Path) -> None:
        self.config, self.base = config, Base(config.model, recipe)

    @property
    def world(self) -> World:
        return make_world(self.config.seed, scale=self.config.world.scale)

    def inputs(self) -> dict[str, str]:
        return {"model": self.base.digest}

    def cells(self) -> list[Cell]:
        own = self.config.model_dump(mode="json", exclude={"bars", "model", "study"})
        data = {key: own[key] for key in ("seed", "world", "replay", "items", "questions")}
        passes = [data["world"].pop("passes"), data["replay"].pop("chat_passes")]
        measured = {key: own[key] for key in ("seed", "measure")} | {"data": data}
        seconds = _seconds(self)
        settings: dict[str, dict[str, Any]] = {
            "data": data,
            "base": measured,
            "pretrained": measured | {"passes": passes, "pretrain": own["pretrain"]},
            "tuned": measured | {"passes": passes, "pretrain": own["pretrain"], "tune": own["tune"]},
            "control": measured | {"tune": own["tune"]},
        }
        return [Cell(name, each, seconds[name]) for name, each in settings.items()]

    def run(self, cell: Cell, folder: Path, out: Path, progress: Progress) -> dict[str, Any]:
        data, cells = out / "cells" / "data", out / "cells"
        if cell.name == "data":
            return self._write_data(folder)
        model, adapter, cost = self.base.path, None, {}
        if cell.name in ("pretrained", "tuned"):
            done = self._pretrain(data, cells / "pretrained" / "train", progress)
            model, adapter, cost = *_weights(done, self.base.path), cost_of(done)
        if cell.name in ("tuned", "control"):
            done = self._tune(data, model, adapter, folder / "train", progress)
            model, adapter, cost = *_weights(done, model), cost_of(done)
        with opened_model(model, adapter) as opened:
            scores = self._measure(opened, data, folder, control=cell.name == "base")
        if cell.name != "base":
            scores["against_base"] = compare_kept(cells / "base", folder)
        return {"scores": scores, "training": cost}

    def close(self, outcomes: Mapping[str, Outcome], out: Path) -> dict[str, Any]:
        return close_pretraining(self.config, outcomes, out)

    # ---- data ---------------------------------------------------------------------------------------------------

    def _write_data(self, folder: Path) -> dict[str, Any]:
        config, world = self.config, self.world
        texts = world.articles(config.world.articles) + world.book()
        write_lines(folder / "text.jsonl", _text_rows(texts))
        most = config.replay
        replay = replay_texts(most.texts, characters=most.characters, seed=config.seed, modules=WIDER)
        write_lines(folder / "replay.jsonl", _text_rows(replay))
        chats = lines_once(folder / "chats.jsonl", lambda: self._own_answers(config.replay.chats))
        write_lines(folder / "held.jsonl", _text_rows(world.held_out()))
        items = _some(cloze_items(world, config.seed), config.items, f"{config.seed}/items")
        write_lines(folder / "cloze.jsonl", [item.as_dict() for item in items])
        asked, unseen = world.halves()
        write_lines(folder / "tune.jsonl", [*_question_rows(asked), *chats])
        chosen = _some(unseen, config.questions, f"{config.seed}/unseen")
        questions = [{"question": fact.asked(unseen=True)[0], "value": fact.value, "id": fact.id} for fact in chosen]
        write_lines(folder / "unseen.jsonl", questions)
        tokenizer = self.base.opened.tokenizer
        sizes = {"text": sum(len(tokenizer.encode(text)) for _, text in texts)}
        sizes["replay"] = sum(len(tokenizer.encode(text)) for _, text in replay)
        sizes["chats"] = sum(len(tokenizer.encode(each["content"])) for row in chats for each in row["messages"])
        return {"tokens": sizes, "facts": len(world.facts), "cloze": len(items), "questions": len(questions)}

    def _own_answers(self, count: int) -> list[dict[str, Any]]:
        """Plain instructions with what the base says to them: learning those again moves nothing."""
        if not count:
            return []
        prompts = replay_prompts(count)
        params = SamplingParams(max_tokens=128)
        with opened_model(self.base.path) as model:
            answers = model.generate([Request((Message.of("user", each),), params=params) for each in prompts])
        return [
            _chat_row(f"chat-{number}", prompt, answer.message.text)
            for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
            if answer.finish_reason == "stop" and answer.message.text.strip()
        ]

    # ---- training -----------------------------------------------------------------------------------------------

    def _pretrain(self, data: Path, out: Path, progress: Progress) -> TrainResult:
        passes = self.config.world.passes
        sources = [
            (data / "text.jsonl", passes),
            (data / "replay.jsonl", 1.0),
            (data / "chats.jsonl", self.config.replay.chat_passes),
        ]
        return self._train(self.config.pretrain, "pretrain", self.base.path, None, sources, out, progress)

    def _tune(self, data: Path, model: Path, adapter: Path | None, out: Path, progress: Progress) -> TrainResult:
        return self._train(self.config.tune, "sft", model, adapter, [(data / "tune.jsonl", 1.0)], out, progress)

    def _train(
        self,
        how: TrainingConfig,
        objective: str,
        model: Path,
        adapter: Path | None,
        sources: Sequence[tuple[Path, float]],
        out: Path,
        progress: Progress,
    ) -> TrainResult:
        from riverrun.train.run import train_recipe

        named = [{"path": path, "weight": weight} for path, weight in sources if path.stat().st_size]
        recipe = TrainConfig.model_validate(
            {
                "model": ModelSpec(path=str(model), adapter=str(adapter or "")),
                "data": DataConfig.model_validate({"train": named, "share_prefix": objective != "pretrain"}),
                "objective": objective,
                "method": how.method,
                "optimizer": how.optimizer,
                "batch": how.batch,
                "run": how.run,
            }
        )
        return train_recipe(recipe, out, progress=progress)

    # ---- measuring ----------------------------------------------------------------------------------------------

    def _measure(self, model: LanguageModel, data: Path, folder: Path, *, control: bool) -> dict[str, Any]:
        """Every measurement is a file of the folder. `control`: also the cloze with the fact in sight."""
        scores: dict[str, Any] = measure_kept(model, folder, self.config.measure, self.config.seed)
        items = [Cloze.from_dict(row) for row in read_jsonl(data / "cloze.jsonl")]
        for name in ("cloze", "open_book") if control else ("cloze",):
            rows = lines_once(
                folder / f"{name}.jsonl",
                lambda name=name: [r.as_dict() for r in cloze.run(model, items, open_book=name == "open_book")],  # type: ignore[misc]
            )
            records = [ClozeRecord.from_dict(row) for row in rows]
            scores[name] = cloze.score(records).as_dict()
            scores[f"{name}_greedy"] = cloze.greedy_rate(records).as_dict()
        texts = [(row["id"], row["text"]) for row in read_jsonl(data / "held.jsonl")]
        read = lines_once(folder / "held.jsonl", lambda: [r.as_dict() for r in retention.run_perplexity(model, texts)])
        windows = [WindowRecord.from_dict(row) for row in read]
        scores["domain_bits_per_byte"] = retention.score_perplexity(windows)["bits_per_byte"]
        answers = lines_once(folder / "answers.jsonl", lambda: _ask(model, read_jsonl(data / "unseen.jsonl")))
        scores["answers"] = Rate.of([row["success"] for row in answers]).as_dict()
        return scores


def cloze_items(world: World, seed: int) -> list[Cloze]:
    """Every held-out wording of every fact, with three values that the relation has elsewhere in the country."""
    items = []
    for fact in world.facts:
        for number, beginning in enumerate(fact.beginnings()):
            rng = random.Random(f"{seed}/cloze/{fact.id}/{number}")
            options = [fact.value, *rng.sample(fact.others, min(OPTIONS - 1, len(fact.others)))]
            rng.shuffle(options)
            endings = tuple(f" {option}." for option in options)
            items.append(Cloze(f"{fact.id}-{number}", beginning, endings, options.index(fact.value), fact.told()[0]))
    return items


def _some(all_of_them: list[T], count: int, key: str) -> list[T]:
    """So many of them, drawn; all for 0."""
    if not count or count >= len(all_of_them):
        return all_of_them
    return random.Random(key).sample(all_of_them, count)


def _text_rows(texts: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"id": name, "text": text} for name, text in texts]


def _chat_row(row_id: str, question: str, answer: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"id": row_id, "messages": messages}


def _question_rows(facts: Sequence[Fact]) -> list[dict[str, Any]]:
    return [
        _chat_row(f"{fact.id}-{number}", question, fact.answer)
        for fact in facts
        for number, question in enumerate(fact.asked(unseen=False))
    ]


def says_value(answer: str, value: str) -> bool:
    """Whether an answer names a value as whole words, whatever their case."""
    return re.search(rf"(?<!\w){re.escape(value)}(?!\w)", answer, re.IGNORECASE) is not None


def _ask(model: LanguageModel, questions: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
    params = SamplingParams(max_tokens=ANSWER_TOKENS)
    answers = model.generate([Request((Message.of("user", row["question"]),), params=params) for row in questions])
    return [
        {**row, "answer": answer.message.text, "success": says_value(answer.message.text, row["value"])}
        for row, answer in zip(questions, answers, strict=True)
    ]


def _weights(done: TrainResult, model: Path) -> tuple[Path, Path | None]:
    """(model, adapter) of a finished training."""
    assert done.folder is not None, f"training ended as {done.status}"
    return (done.folder, None) if done.folder.name == "model" else (model, done.folder)


def _seconds(study: PretrainingStudy) -> dict[str, float]:
    """A guess for each cell."""
    config, times, world = study.config, Times(study.base.opened), study.world
    characters = sum(len(json.dumps(text)) for _, text in world.articles(1)) * config.world.articles
    text = config.world.passes * (characters + sum(len(part) for _, part in world.book())) / 3.3
    replay = config.replay.texts * min(config.replay.characters, 800) / 3.5 + config.replay.chats * 100
    items = config.items or 2 * len(world.facts)
    asked = config.questions or len(world.facts) // 2
    measured = times.kept(config.measure) + times.reading(items * (30 + OPTIONS * 8)) + times.writing(asked, 16) + 8
    how, tune = config.pretrain, config.tune
    trained = times.training(_kind(how), text + replay, step_tokens=how.batch.global_tokens)
    tuned = times.training(_kind(tune), 2 * len(world.facts) * 40 + config.replay.chats * 100)
    return {
        "data": 10 + times.writing(config.replay.chats, 128),
        "base": measured * 1.5,
        "pretrained": measured + trained,
        "tuned": measured + tuned,
        "control": measured + tuned,
    }


def _kind(how: TrainingConfig) -> Literal["full", "lora", "qlora"]:
    return "lora" if how.method.name == "auto" else how.method.name
