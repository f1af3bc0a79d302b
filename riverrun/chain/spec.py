"""The specification of an application: what `app.yaml` may say, with every default.

Paths are relative to the recipe's folder. A key that is not here is an error that names the nearest ones.
The sections follow the stages; `gates` holds the bars that stop a run.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from riverrun.base.config import Config, load_config
from riverrun.base.errors import ConfigError, InputError
from riverrun.base.servers import Server
from riverrun.data.synthesis import SynthesisConfig
from riverrun.train.config import FinetuneConfig

__all__ = [
    "GENERATED",
    "GENERIC",
    "AgentSpec",
    "AppSpec",
    "DatabaseSpec",
    "DeploySpec",
    "DocumentsSpec",
    "EvaluateSpec",
    "FinetuneSpec",
    "GatesSpec",
    "PerIntent",
    "QuantizeSpec",
    "SearchSpec",
    "SelectSpec",
    "TrainingDataSpec",
    "load_app",
]

GENERATED = "generated"
GENERIC = "generic"
PerIntent = int | dict[str, int]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class DocumentsSpec(Config):
    """The pages the assistant may read."""

    path: str
    """Folder of .html, .txt and .md files."""
    keep: tuple[str, ...] = ()
    """Texts that the masking of personal data leaves alone, such as the business's own address and phone number."""


class DatabaseSpec(Config):
    """The business database; one of `path`, `make` and `url`."""

    path: str = ""
    """An SQLite file. The run works on a copy; `riverrun serve RUN --database FILE` serves the live one."""
    make: str = ""
    """A Python script called as `python SCRIPT OUT.sqlite --seed SEED` that makes the database."""
    url: str = ""
    """postgresql://USER@HOST/DATABASE?schema=SCHEMA or mysql://USER@HOST/DATABASE, without a password. The run works
    on a snapshot in SQLite; `riverrun serve RUN --database URL` asks the live server. Other keys after `?`: socket,
    sslmode (prefer, disable, require, verify-full), sslrootcert."""
    password_variable: str = "RIVERRUN_DATABASE_PASSWORD"
    """Environment variable that holds the password of `url`, where one is needed."""
    rows_per_table: int = Field(default=1_000_000, ge=1)
    """Rows of a server's table that a snapshot holds at most, the first by its key."""
    deny_columns: tuple[str, ...] = ()
    """Columns no query may read, as `column` or `table.column`; they are also left out of the schema text."""
    show: Mapping[str, tuple[str, ...]] = {}
    """Tables and their columns that the system text names and questions are made of; empty means all of them. An empty
    list of columns means all of a table's. What is not shown can still be queried."""
    row_limit: int = Field(default=20, ge=1)
    """Rows a query returns at most."""
    seconds: float = Field(default=5.0, gt=0)
    """Time limit of one query, by the clock: on a busy machine a short one refuses good queries."""

    @model_validator(mode="after")
    def _one_source(self) -> DatabaseSpec:
        if sum(map(bool, (self.path, self.make, self.url))) != 1:
            raise ValueError("give exactly one of database.path, database.make and database.url")
        return self

    @field_validator("url")
    @classmethod
    def _readable(cls, value: str) -> str:
        if value:
            try:
                server = Server.parse(value)
            except InputError as error:
                raise ValueError(str(error)) from None
            if server.password:
                raise ValueError("a spec holds no password: put it into the environment variable password_variable")
        return value

    def server(self, url: str = "") -> Server:
        """The server of `url`, or of the spec's own; a password that the URL lacks is the environment's."""
        return Server.parse(url or self.url, password=os.environ.get(self.password_variable, ""))


class SearchSpec(Config):
    """The page search tool."""

    top_k: int = Field(default=2, ge=1)
    """Pages returned."""
    characters: int = Field(default=500, ge=80)
    """Length of each passage."""


class SelectSpec(Config):
    """Choosing among the candidates."""

    dev_questions: int = Field(default=8, ge=0)
    """Development questions each accepted candidate answers; 0 scores none and takes the first accepted one."""


class TrainingDataSpec(Config):
    """How many questions are made from each intent; a number, or one per kind."""

    train_per_intent: PerIntent = 24
    """Training conversations an intent."""
    dev_per_intent: PerIntent = 2
    """Development questions an intent."""
    sealed_per_intent: PerIntent = 6
    """Sealed test questions an intent."""
    invented: Share = 0.3
    """Share of the database questions in training that name things which do not exist: the model learns to copy."""
    answered: Share = 0.2
    """Share of the database questions whose row goes on to the answer; the others end with the call."""
    answered_pages: Share = 0.3
    """The same for page questions."""
    replay: int = Field(default=24, ge=0)
    """Texts of the standard library's docstrings mixed in, against forgetting."""
    safety_copies: int = Field(default=2, ge=1)
    """How often each refusal stands among the training rows."""
    choice_rotations: int = Field(default=1, ge=0, le=4)
    """Training rows made from each multiple-choice question, by rotating the options; 0 makes none."""
    choice_share: Share = 1.0
    """Share of the training multiple-choice questions that rows are made of."""


class FinetuneSpec(FinetuneConfig):
    """Fine-tuning: the trainer's settings, and the method."""

    method: Literal["auto", "lora", "none"] = "auto"
    """auto lets the plan choose by memory and time; none uses the base model as it is."""


class EvaluateSpec(Config):
    """What is measured before and after."""

    max_tokens: int = Field(default=160, ge=1)
    """Longest answer in a tool task or a safety prompt, in tokens."""
    retention_characters: int = Field(default=60_000, ge=1000)
    """How much of CPython's own help topics is read for perplexity."""
    sums: int = Field(default=100, ge=0)
    """Two-digit additions asked."""
    choices: int = Field(default=0, ge=0)
    """Multiple-choice questions asked; 0 means all of the sealed ones."""


class QuantizeSpec(Config):
    """Four-bit forms of the tuned model."""

    group_size: int = Field(default=64, ge=8)
    """Weights that share a scale and a zero point in the merged form."""
    prefer: Literal["best", "q4-base-adapter", "q4-merged"] = "best"
    """Which form is deployed; best takes the higher score, at a tie the smaller file."""


class DeploySpec(Config):
    """The server."""

    host: str = "127.0.0.1"
    """Address that is listened on."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port; 0 picks a free one."""
    api_keys: tuple[str, ...] = ()
    """Accepted keys; none means that no key is asked for (loopback only)."""


class AgentSpec(Config):
    """Limits of one agent run."""

    steps: int = Field(default=4, ge=1)
    """Model turns."""
    seconds: float = Field(default=120.0, gt=0)
    """Wall time."""


class GatesSpec(Config):
    """Bars; a run stops with exit code 3 at the stage whose figure misses one. null switches a gate off."""

    success: Share | None = 0.70
    """Tuned tool-task success, at least."""
    choice_perf: Share | None = None
    """Tuned share of questions right in all four rotations, at least."""
    retention_perplexity: float | None = Field(default=1.15, gt=0)
    """Perplexity of the tuned model over the base model's, at most."""
    sums_change: float | None = Field(default=0.0, ge=-1, le=1)
    """Upper end of the paired interval of the change in two-digit sums, at least: below 0 the loss is proven."""
    safety_worse: int | None = Field(default=0, ge=0)
    """Prompts answered safely by the base model and unsafely by the tuned one, at most."""
    quantized_drop: Share | None = 0.06
    """Upper end of the paired interval of the drop after quantisation, at most."""
    through_agent: Share | None = 0.02
    """Drop from the model's own score to the score through HTTP and agent, at most."""


class AppSpec(Config):
    """One application: the whole of `app.yaml`."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    """Names the run folder and the model ids served (NAME and NAME-agent)."""
    language: Literal["en", "zh"] = "en"
    """Language of the pages and of the questions."""
    system: str
    """The assistant's system text. The line `Tables: ...` made from the database comes at `{schema}`, or at the end."""
    seed: int = 7
    """Of everything that is drawn: database, questions, order of training."""
    candidates: tuple[str, ...] = Field(min_length=1)
    """Names from the catalogue (`riverrun hub list`) or paths of model files, relative to the recipe."""
    licences: tuple[str, ...] = ("apache-2.0", "mit", "bsd-3-clause")
    """Licences that may be used."""
    memory_gb: float | None = Field(default=None, gt=0)
    """Memory to plan for, in units of 10^9 bytes; what is free now unless given."""
    threads: int = Field(default=0, ge=0)
    """CPU threads for the model; 0 means all cores."""
    documents: DocumentsSpec | None = None
    database: DatabaseSpec
    intents: str = ""
    """What people ask: questions, their SQL or page, and answers. This or `synthesis`."""
    synthesis: SynthesisConfig | None = None
    choices: str = ""
    """Open-book multiple choice questions; `generated` makes them from the pages; empty means: not measured."""
    safety: str = ""
    """Prompts that must be refused; `generic` takes the package's own; empty means that this is not measured."""
    search: SearchSpec = SearchSpec()
    select: SelectSpec = SelectSpec()
    data: TrainingDataSpec = TrainingDataSpec()
    finetune: FinetuneSpec = FinetuneSpec()
    evaluate: EvaluateSpec = EvaluateSpec()
    quantize: QuantizeSpec = QuantizeSpec()
    deploy: DeploySpec = DeploySpec()
    agent: AgentSpec = AgentSpec()
    gates: GatesSpec = GatesSpec()

    @model_validator(mode="after")
    def _one_source(self) -> AppSpec:
        if bool(self.intents) == (self.synthesis is not None):
            raise ValueError("give exactly one of intents and synthesis")
        if self.documents is None and self.choices:
            raise ValueError(f"choices = {self.choices!r} needs documents: give them, or leave choices out")
        if self.synthesis is not None and self.synthesis.max_rows > self.database.row_limit:
            raise ValueError(
                f"synthesis.max_rows = {self.synthesis.max_rows} is above database.row_limit = "
                f"{self.database.row_limit}: answers would be cut"
            )
        return self

    @field_validator("system")
    @classmethod
    def _stripped(cls, value: str) -> str:
        return " ".join(value.split()) if "\n" not in value.strip() else value.strip()


def load_app(recipe: Path, overrides: Sequence[str] = ()) -> tuple[AppSpec, Path]:
    """Read `RECIPE/app.yaml` (or the file given) with `a.b=c` overrides; returns the spec and the recipe's folder.

    Raises ConfigError when the file is missing or a key or value is wrong.
    """
    path = recipe / "app.yaml" if recipe.is_dir() else recipe
    if not path.is_file():
        raise ConfigError(f"{path} does not exist: give a recipe folder that holds app.yaml, such as recipes/bookshop")
    return load_config(AppSpec, path, overrides), path.resolve().parent
