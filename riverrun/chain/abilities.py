"""A recipe of several trainings and the ability that they are for: data is made, stages train one after another, and
what each model can do is measured and shown.

out/made/NAME     data and vocabulary (`making`)
out/NAME          each stage: a training run with its model (`train.run`)
out/from/NAME     the model that a stage goes on from, where the recipe changes its config.json first
out/ability.json, and the pages of what is measured

In a stage `made/...` and `stages/NAME` are those folders; `model.change` are fields of config.json that the stage
changes before it trains. Run again, everything that is finished is kept.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from riverrun.base.artifacts import write_json
from riverrun.base.config import Config, apply_overrides, build_config, load_yaml
from riverrun.base.errors import ConfigError, InputError, nearest
from riverrun.base.progress import Progress
from riverrun.chain import arithmetic, needles
from riverrun.chain.making import MakeArithmetic, MakeNeedles, MakeTexts, counter, hay, make
from riverrun.chain.resolving import as_it_began, is_open, resolve_recipe
from riverrun.chain.texts import write_texts
from riverrun.models.config import ModelConfig
from riverrun.models.load import load_checkpoint, load_config
from riverrun.serve.llm import LLM
from riverrun.train.recipe import TrainConfig, place_sources

__all__ = ["AbilityConfig", "changed_model", "is_ability", "load_ability", "run_ability"]


class MeasureArithmetic(Config):
    """Held-out problems of every operation (`chain.arithmetic`)."""

    kind: Literal["arithmetic"]
    problems: int = Field(default=1000, ge=1, description="of each operation within each bound")
    goals: dict[int, float] = Field(
        default={100: 0.99, 1000: 0.8}, description="bound: share that every operation must reach"
    )


class MeasureNeedles(Config):
    """Facts found by length and depth (`chain.needles`)."""

    kind: Literal["needles"]
    lengths: tuple[int, ...] = Field(default=(512, 1024, 2048, 4096, 8192), min_length=1, description="tokens")
    each: int = Field(default=8, ge=1, description="documents of each length and depth")
    goal: float = Field(default=0.95, ge=0, le=1, description="share to find at the last length")


class MeasureTexts(Config):
    """Bits per byte of held-out text, from the stages' own evaluations (`chain.texts`)."""

    kind: Literal["texts"]
    goal: float = Field(default=0.9, gt=0, le=1, description="largest share of the first figure that the last may be")


class AbilityConfig(Config):
    """What is made, trained and measured. The goals are asked of the stage that `of` names."""

    make: dict[str, Annotated[MakeArithmetic | MakeNeedles | MakeTexts, Field(discriminator="kind")]] = Field(
        min_length=1, description="folders of data and vocabulary by name"
    )
    stages: dict[str, dict[str, Any]] = Field(min_length=1, description="trainings by name, in order")
    measure: MeasureArithmetic | MeasureNeedles | MeasureTexts = Field(
        discriminator="kind", description="what every stage's model is asked"
    )
    of: str = Field(default="", description="stage that the goals are for; the last unless given")

    @model_validator(mode="after")
    def _named(self) -> AbilityConfig:
        if self.of and self.of not in self.stages:
            raise ValueError(f"of: no stage is named '{self.of}'.{nearest(self.of, self.stages)}")
        if wrong := [name for name in (*self.make, *self.stages) if not name.replace("_", "").isalnum()]:
            raise ValueError(f"'{wrong[0]}' names a folder: use letters, digits and _")
        if taken := {"made", "from"} & set(self.stages):
            raise ValueError(f"a stage cannot be named '{sorted(taken)[0]}': the folder of that name is taken")
        return self

    @property
    def goal_stage(self) -> str:
        return self.of or list(self.stages)[-1]


def is_ability(path: Path) -> bool:
    """Whether a recipe has stages, and is not one training."""
    return "stages" in load_yaml(_file(path))


def _file(path: Path) -> Path:
    return path / "recipe.yaml" if path.is_dir() else path


def load_ability(path: Path, overrides: Sequence[str] = ()) -> AbilityConfig:
    """Read `path` (or `path/recipe.yaml`); every stage is checked too."""
    file = _file(path)
    config = build_config(AbilityConfig, apply_overrides(load_yaml(file), overrides), origin=str(file))
    for name in config.stages:
        _stage(config, name, file.parent / "runs", file.parent)
    return config


def _placed(value: Any, out: Path) -> Any:
    """`made/...` and `stages/NAME` as the folders they stand for."""
    if isinstance(value, Mapping):
        return {key: _placed(each, out) for key, each in value.items()}
    if isinstance(value, list):
        return [_placed(each, out) for each in value]
    if isinstance(value, str) and value.startswith("made/"):
        return str(out / value)
    if isinstance(value, str) and value.startswith("stages/"):
        return str(out / value.removeprefix("stages/") / "model")
    return value


def _stage(config: AbilityConfig, name: str, out: Path, here: Path) -> tuple[TrainConfig, dict[str, Any]]:
    """(the training, the changes of config.json); ConfigError names the stage and what is wrong in it."""
    values = _placed(config.stages[name], out.absolute())
    model, change = values.get("model"), {}
    if isinstance(model, dict) and "change" in model:
        change = model.pop("change")
        if not isinstance(change, dict) or "path" not in model:
            raise ConfigError(f"stages.{name}: model.change needs model.path and must be a mapping, it is {change!r}")
        model["path"] = str(out.absolute() / "from" / name)
    return place_sources(build_config(TrainConfig, values, origin=f"stages.{name}"), here), change


def changed_model(source: Path, target: Path, change: Mapping[str, Any]) -> Path:
    """A model folder with other fields in config.json and the same weights; ConfigError for an unknown field."""
    config = load_config(source)
    if unknown := [key for key in change if key not in ModelConfig.model_fields]:
        raise ConfigError(f"model.change: unknown key '{unknown[0]}'.{nearest(unknown[0], ModelConfig.model_fields)}")
    made = ModelConfig.of(config.model_dump() | dict(change), "model.change")
    same = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "model_type", "head_dim")
    if config.shapes() != made.shapes() or any(getattr(config, key) != getattr(made, key) for key in same):
        raise ConfigError("model.change: the weights would have other shapes: only what computes with them may change")
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for path in source.iterdir():
        if path.name != "config.json" and path.is_file():
            os.link(path, target / path.name)
    write_json(target / "config.json", made.to_hf())
    return target


def run_ability(
    path: Path, out: Path, *, overrides: Sequence[str] = (), progress: Progress | None = None
) -> dict[str, Any]:
    """Make, train and measure into `out`; the content of ability.json: status, seconds, figures of stages, goals."""
    from riverrun.train.run import train_recipe

    progress = progress or Progress("quiet")
    config, here = load_ability(path, overrides), _file(path).parent
    for name, settings in config.make.items():
        progress.say(f"make {name}: {out / 'made' / name}")
        make(settings, out / "made" / name)
    models: dict[str, Path] = {}
    seconds: dict[str, float] = {}
    for name in config.stages:
        training, change = _stage(config, name, out, here)
        if change:
            source = Path(_placed(config.stages[name]["model"]["path"], out.absolute()))
            if not source.exists():
                raise InputError(f"stages.{name}: {source} does not exist: name a stage that stands before it")
            start = Path(training.model.path)
            if not _is_changed(source, start, change):
                changed_model(source, start, change)
        training = as_it_began(training, out / name)
        if is_open(training):
            found = resolve_recipe(training)
            training = found.config
            for note in found.notes:
                progress.say(f"stage {name}: {note}")
        progress.say(f"stage {name}")
        done = train_recipe(training, out / name, progress=progress)
        if done.folder is None:
            return {"status": done.status, "stage": name}
        models[name], seconds[name] = done.folder, done.seconds
    result = {"status": "done", "seconds": seconds, **_measure(config, models, out, progress)}
    write_json(out / "ability.json", result)
    return result


def _is_changed(source: Path, target: Path, change: Mapping[str, Any]) -> bool:
    """Whether the folder is already what `changed_model` would write."""
    if not (target / "config.json").is_file():
        return False
    made = ModelConfig.of(load_config(source).model_dump() | dict(change), "model.change")
    written = json.loads((target / "config.json").read_text(encoding="utf-8"))
    files = [path for path in source.iterdir() if path.name != "config.json" and path.is_file()]
    return written == made.to_hf() and all((target / p.name).exists() and p.samefile(target / p.name) for p in files)


def _measure(config: AbilityConfig, models: Mapping[str, Path], out: Path, progress: Progress) -> dict[str, Any]:
    measure = config.measure
    if isinstance(measure, MeasureArithmetic):
        return _arithmetic(measure, models, config.goal_stage, out, progress)
    if isinstance(measure, MeasureNeedles):
        return _needles(measure, models, config.goal_stage, out, progress)
    stages = write_texts(out, {name: out / name for name in models})
    fell = [
        (f"{name}: last of first bits per byte, {key}", last / first)
        for name, each in stages.items()
        for key, (first, last) in each.items()
    ]
    return {"goals": [_goal_below(*each, measure.goal) for each in fell], "stages": stages}


def _arithmetic(
    measure: MeasureArithmetic, models: Mapping[str, Path], of: str, out: Path, progress: Progress
) -> dict[str, Any]:
    asked = arithmetic.problems(measure.problems, tuple(sorted(measure.goals)))
    answers = {}
    for name in (of, *(each for each in models if each != of)):
        with (
            progress.task(f"measure {name}", total=len(asked), unit="problems") as task,
            LLM(models[name], slots=128, context=256) as model,
        ):
            model.on_answer = task.advance
            answers[name] = arithmetic.ask(model, asked)
    summaries = arithmetic.write_arithmetic(out, answers, measure.goals)
    goals = [
        _goal(f"{cell['key']} within {bound}", cell["accuracy"], goal)
        for bound, goal in measure.goals.items()
        for cell in summaries[of]["operations"][str(bound)]
    ]
    return {"goals": goals, "stages": {name: each["operations"] for name, each in summaries.items()}}


def _needles(
    measure: MeasureNeedles, models: Mapping[str, Path], of: str, out: Path, progress: Progress
) -> dict[str, Any]:
    _, around = hay()
    longest = max(measure.lengths)
    maps = {}
    for name, folder in models.items():
        opened = load_checkpoint(folder)
        if (opened.config.longest or longest) < longest:  # asked beyond the length that it was made for
            folder = changed_model(folder, out / "beyond" / name, {"max_position_embeddings": longest})
        cells = len(measure.lengths) * len(needles.DEPTHS)
        with (
            progress.task(f"measure {name}", total=cells, unit="cells") as task,
            LLM(folder, slots=measure.each, context=longest) as model,
        ):
            maps[name] = needles.measure(
                model,
                around,
                counter(opened.tokenizer),
                lengths=sorted(measure.lengths),
                each=measure.each,
                done=task.advance,
            )
    shutil.rmtree(out / "beyond", ignore_errors=True)
    needles.write_maps(out, maps, measure.goal)
    shares = {name: each.to_json()["share"] for name, each in maps.items()}
    last = max(measure.lengths)
    return {"goals": [_goal(f"found at {last} tokens", maps[of].share(last), measure.goal)], "stages": shares}


def _goal_below(name: str, value: float, goal: float) -> dict[str, Any]:
    return {"name": name, "value": value, "goal": goal, "met": value <= goal}


def _goal(name: str, value: float, goal: float) -> dict[str, Any]:
    return {"name": name, "value": value, "goal": goal, "met": value >= goal}
