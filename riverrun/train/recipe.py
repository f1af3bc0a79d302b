"""The recipe of a training: one YAML file, every key typed, unknown keys refused with the nearest names. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator

from riverrun.base.config import Config, load_config
from riverrun.data.corpus import RowSource
from riverrun.data.encoding import EncodeConfig
from riverrun.train.duration import Duration, DurationField
from riverrun.train.objectives.config import ObjectiveConfig, SupervisedConfig, read_objective

__all__ = [
    "BatchConfig",
    "DataConfig",
    "MethodConfig",
    "ModelSpec",
    "OptimizerConfig",
    "RunConfig",
    "SourceConfig",
    "TrainConfig",
    "load_recipe",
    "place_sources",
]


def _named(key: str) -> BeforeValidator:
    """A text stands for a mapping with that one key."""
    return BeforeValidator(lambda value: {key: value} if isinstance(value, str) else value)


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str | dict) else value


class ModelSpec(Config):
    """Where the weights come from: a model that there is, or a new one of random weights."""

    path: str = Field(default="", description="folder, file, or a name of the catalogue")
    adapter: str = Field(default="", description="adapter folder (PEFT) that LoRA training goes on from")
    new: dict[str, Any] = Field(
        default_factory=dict,
        description="a model from scratch: vocab (folder with tokenizer.json), like (a name of `riverrun models list`)"
        " and fields of config.json",
    )

    @model_validator(mode="after")
    def _one(self) -> ModelSpec:
        if bool(self.path) == bool(self.new):
            both = "both" if self.path else "neither"
            raise ValueError(f"model needs path or new, {both} is given")
        if self.new and "vocab" not in self.new:
            raise ValueError("model.new needs vocab: a folder with tokenizer.json (riverrun tokenizer train)")
        if self.new and self.adapter:
            raise ValueError("model.adapter needs model.path: a new model has no adapter")
        return self


class SourceConfig(RowSource):
    """One source of examples."""

    name: str = Field(default="", description="what a validation set is called; its file's name unless given")

    @property
    def title(self) -> str:
        return self.name or Path(self.path).stem


Source = Annotated[SourceConfig, _named("path")]
Sources = Annotated[tuple[Source, ...], BeforeValidator(_listed)]


class DataConfig(EncodeConfig):
    """What is read, and how examples become token rows."""

    train: Sources = Field(min_length=1, description="sources that are learned")
    validation: Sources = Field(default=(), description="sources that are only measured")
    bad_rows: float = Field(
        default=0.01, ge=0, description="records that may be set aside: a share of all below 1, a count from 1 on"
    )
    share_prefix: bool | Literal["auto"] = Field(
        default="auto",
        description="compute a beginning that many rows share once per pack; auto: where rows are in memory and that"
        " saves a tenth of their tokens",
    )
    workers: int = Field(default=1, ge=0, le=16, description="threads that prepare the next packs; the order is theirs")

    def encoding(self, objective: ObjectiveConfig, max_tokens: int) -> EncodeConfig:
        """How the rows of an objective are encoded; `max_tokens` as the model and the packs allow."""
        own = {name: getattr(self, name) for name in EncodeConfig.model_fields} | {"max_tokens": max_tokens}
        return EncodeConfig(**own | ({"train_on": "all"} if objective.name == "pretrain" else {}))


class MethodConfig(Config):
    """What is trained."""

    name: Literal["auto", "full", "lora", "qlora"] = Field(
        default="auto",
        description="auto: all weights of a new model; else what fits into the memory and suits the label tokens."
        " qlora: LoRA beside a base in four bits",
    )
    rank: int | Literal["auto"] = Field(default=16, description="rank of the update; auto: by label tokens and memory")
    tables: Literal["int8", "plain"] = Field(
        default="int8", description="qlora: embedding and head in 8-bit rows, or in the type of the model"
    )
    cache: str = Field(
        default="", description="qlora: a folder that keeps the base in four bits, so that the next start maps it"
    )
    alpha: float = Field(default=32.0, gt=0, description="scale of the update is alpha / rank")
    rslora: bool = Field(default=False, description="scale of the update is alpha / sqrt(rank) instead")
    init: Literal["kaiming", "gaussian"] = Field(default="kaiming", description="how the first factor is drawn")
    targets: tuple[str, ...] = Field(default=(), description="projections that get an update; all unless given")
    lora_plus: float = Field(default=1.0, gt=0, description="rate of B over that of A (arXiv:2402.12354); 16 there")

    @model_validator(mode="after")
    def _used(self) -> MethodConfig:
        if isinstance(self.rank, int) and not 1 <= self.rank <= 1024:
            raise ValueError(f"rank must lie between 1 and 1024, it is {self.rank}")
        for name in ("tables", "cache"):
            if self.name in ("full", "lora") and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} has no effect with {self.name}, only with qlora: leave it out")
        return self


class OptimizerConfig(Config):
    """How weights move."""

    name: Literal["adamw", "adamw8bit", "muon"] = Field(
        default="adamw",
        description="adamw8bit keeps its moments in 8 bits; muon orthogonalises the hidden matrices' updates",
    )
    learning_rate: float = Field(
        default=1e-3, gt=0, description="peak learning rate; unsaid where auto takes full: 2e-4"
    )
    schedule: Literal["linear", "cosine", "constant", "wsd"] = Field(
        default="linear", description="how the rate falls after the warm-up; wsd: only in the last part"
    )
    warmup: float = Field(default=0.03, ge=0, le=0.5, description="share of the run in which the rate rises")
    decay: float = Field(default=0.2, gt=0, le=1, description="wsd: share of the run in which the rate falls")
    decay_shape: Literal["sqrt", "linear"] = Field(default="sqrt", description="wsd: 1 - sqrt, or a line")
    final_rate: float = Field(default=0.0, ge=0, lt=1, description="share of the rate that a fall ends at")
    clip_norm: float = Field(default=1.0, gt=0, description="longest gradient; longer ones are scaled down to it")
    betas: tuple[float, float] = Field(default=(0.9, 0.99), description="AdamW's averaging")
    eps: float = Field(default=1e-8, gt=0, description="AdamW's smallest divisor")
    weight_decay: float = Field(
        default=0.0, ge=0, description="decoupled decay of matrices; norms and biases have none"
    )
    momentum: float = Field(default=0.95, ge=0, lt=1, description="muon: averaging of gradients (Nesterov)")
    master: bool = Field(
        default=True,
        description="keep fp32 copies of trained 16-bit weights; false: no copies, each step is rounded at random",
    )

    @model_validator(mode="after")
    def _used(self) -> OptimizerConfig:
        fields = type(self).model_fields
        for names, chosen, wanted in (
            (("momentum",), self.name, "muon"),
            (("decay", "decay_shape"), self.schedule, "wsd"),
        ):
            for name in names:
                if chosen != wanted and getattr(self, name) != fields[name].default:
                    raise ValueError(f"{name} has no effect with {chosen}, only with {wanted}: leave it out")
        if self.final_rate and self.schedule == "constant":
            raise ValueError("final_rate has no effect with a constant schedule: leave it out")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas {self.betas} must lie in [0, 1)")
        return self


MOST = 2048
"""Tokens computed at once that `auto` takes at most."""
Recompute = Literal["none", "full"] | Annotated[float, Field(ge=0, le=1)]


class BatchConfig(Config):
    """Batches are counted in tokens; accumulation is derived."""

    micro_tokens: int | Literal["auto"] = Field(default="auto", description="tokens computed at once; the memory knob")
    global_tokens: int = Field(default=2048, ge=64, description="tokens of one optimizer step, in whole packs")
    recompute: Recompute | Literal["auto"] = Field(
        default="auto",
        description="layers that keep only their input and run again in the backward: none, full, or a share of them;"
        " auto: as few as the memory allows",
    )

    @property
    def recompute_share(self) -> float:
        """Share of the layers, 0 where it was not chosen yet."""
        named = {"none": 0.0, "full": 1.0, "auto": 0.0}
        return named[self.recompute] if isinstance(self.recompute, str) else self.recompute

    @property
    def usual_micro_tokens(self) -> int:
        """Tokens at once where nothing but the recipe is looked at."""
        return self.micro_tokens if isinstance(self.micro_tokens, int) else max(64, min(MOST, self.global_tokens))

    @model_validator(mode="after")
    def _enough(self) -> BatchConfig:
        if isinstance(self.micro_tokens, int) and self.micro_tokens < 64:
            raise ValueError(f"micro_tokens must be at least 64, it is {self.micro_tokens}")
        return self


class RunConfig(Config):
    """How long, in which numbers, what is kept and shown."""

    length: DurationField = Field(
        default=Duration(1, "epochs"), description='"2 epochs", "500 steps", "1.5M tokens" or "600 seconds"'
    )
    dtype: Literal["auto", "bfloat16", "float32", "float16"] = Field(
        default="auto",
        description="numbers that are multiplied in; auto: bfloat16 where the processor multiplies it. float16 scales"
        " its loss",
    )
    seed: int = Field(default=0, description="of the order of rows and of everything drawn")
    save_every: DurationField = Field(default=Duration(100, "steps"), description="how often a checkpoint is written")
    save_async: bool = Field(default=True, description="write it beside training from a copy; false: wait, no copy")
    keep_last: int = Field(default=2, ge=1, description="newest checkpoints that are kept")
    keep_every: int = Field(default=0, ge=0, description="checkpoints at multiples of so many steps are kept too")
    eval_every: DurationField | None = Field(default=None, description="how often validation is measured")
    prompts: tuple[str, ...] = Field(
        default=(), description="beginnings that are continued greedily at each evaluation"
    )
    prompt_tokens: int = Field(default=48, ge=1, le=1024, description="longest continuation")
    time_limit: float = Field(default=0.0, ge=0, description="seconds after which the run saves and ends; 0: none")
    skip_nonfinite: int = Field(default=0, ge=0, description="steps without finite gradient that are left out")
    tensorboard: bool = Field(default=False, description="write event files too")

    @model_validator(mode="after")
    def _used(self) -> RunConfig:
        if self.prompts and self.eval_every is None:
            raise ValueError("prompts has no effect without eval_every: say how often")
        return self


class TrainConfig(Config):
    """A training run."""

    model: Annotated[ModelSpec, _named("path")] = Field(description="where the weights come from")
    data: DataConfig = Field(description="what is read")
    objective: Annotated[SerializeAsAny[ObjectiveConfig], BeforeValidator(read_objective)] = Field(
        default=SupervisedConfig(), description="what is minimised"
    )
    method: Annotated[MethodConfig, _named("name")] = Field(default=MethodConfig(), description="what is trained")
    optimizer: Annotated[OptimizerConfig, _named("name")] = Field(
        default=OptimizerConfig(), description="how weights move"
    )
    batch: BatchConfig = Field(default=BatchConfig(), description="tokens at once")
    run: RunConfig = Field(default=RunConfig(), description="how long, what is kept and shown")

    @model_validator(mode="after")
    def _fits(self) -> TrainConfig:
        defaults = MethodConfig()
        if self.method.name == "full" or (self.method.name == "auto" and self.model.new):
            for name in ("rank", "alpha", "rslora", "init", "targets", "lora_plus"):
                if getattr(self.method, name) != getattr(defaults, name):
                    raise ValueError(f"method.{name} has no effect when all weights are trained: leave it out")
        if self.model.new and self.method.name in ("lora", "qlora"):
            raise ValueError(f"a new model is trained whole, method is {self.method.name}: leave method out")
        if self.method.name == "full" and self.model.adapter:
            raise ValueError("model.adapter has no effect with method full: merge it first (riverrun models merge)")
        if self.run.eval_every is not None and not (self.data.validation or self.run.prompts):
            raise ValueError("run.eval_every has nothing to measure: give data.validation or run.prompts")
        if self.data.validation and self.run.eval_every is None:
            raise ValueError("data.validation is never measured: say run.eval_every")
        self._has_effect()
        if self.run.dtype == "float16" and not self.optimizer.master:
            raise ValueError("optimizer.master false needs bfloat16: float16 is too narrow to be rounded at random")
        return self

    def _has_effect(self) -> None:
        """ValueError for settings of the data that the objective does not look at."""
        kind = "pretrain" if self.objective.name == "pretrain" else self.objective.data
        for name in _IDLE.get(kind, ()):
            section, _, key = name.partition(".")
            own: Config = getattr(self, section)
            if getattr(own, key) != type(own).model_fields[key].default:
                raise ValueError(f"{name} has no effect with {self.objective.name}: leave it out")
        if kind == "problems":
            for source in (*self.data.train, *self.data.validation):
                if source.weight != 1.0 or source.format != "auto":
                    raise ValueError(f"weight and format of {source.path} have no effect on problems: leave them out")
        if len({source.title for source in self.data.validation}) < len(self.data.validation):
            titles = ", ".join(source.title for source in self.data.validation)
            raise ValueError(f"two validation sources are called alike ({titles}): give one a name")


_IDLE = {
    "pretrain": ("data.train_on",),
    "pairs": ("data.train_on", "data.overlong_text", "data.end_texts"),
    "judged": ("data.train_on", "data.overlong_text", "data.end_texts"),
    "problems": (
        *("batch.global_tokens", "data.train_on", "data.max_tokens", "data.overlong", "data.overlong_text"),
        *("data.end_texts", "data.share_prefix"),
    ),
}


def load_recipe(path: Path, overrides: tuple[str, ...] = ()) -> TrainConfig:
    """Read `path` (or `path/recipe.yaml`); paths of files are relative to its folder."""
    file = path / "recipe.yaml" if path.is_dir() else path
    return place_sources(load_config(TrainConfig, file, overrides), file.parent)


def place_sources(config: TrainConfig, here: Path) -> TrainConfig:
    """The same with data paths that are relative to `here`."""

    def beside(name: str) -> str:
        """A path where there is one; names of the catalogue and of repositories stay."""
        return str(here / name) if name and (here / name).exists() else name

    def placed(sources: tuple[SourceConfig, ...]) -> tuple[SourceConfig, ...]:
        paths = [str(here / each.path) if each.is_local else beside(each.path) for each in sources]
        return tuple(each.model_copy(update={"path": path}) for each, path in zip(sources, paths, strict=True))

    own = config.model
    new = own.new | {"vocab": beside(str(own.new["vocab"]))} if own.new else {}
    model = own.model_copy(update={"path": beside(own.path), "adapter": beside(own.adapter), "new": new})
    sources = {"train": placed(config.data.train), "validation": placed(config.data.validation)}
    return config.model_copy(update={"model": model, "data": config.data.model_copy(update=sources)})
