"""The specification of an application: what `app.yaml` may say, with every default.

Paths are relative to the recipe's folder. A key that is not here is an error that names the nearest ones.
The sections follow the stages; `gates` holds the bars that stop a run.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from riverrun.base.config import Config, build_config, load_config
from riverrun.base.errors import ConfigError, InputError
from riverrun.base.servers import Server
from riverrun.data.synthesis import SynthesisConfig
from riverrun.train.config import FinetuneConfig

__all__ = [
    "GENERATED",
    "GENERIC",
    "SHIPPED",
    "AgentSpec",
    "AppSpec",
    "CandidateSpec",
    "DatabaseSpec",
    "DeploySpec",
    "DocumentsSpec",
    "EvaluateSpec",
    "FinetuneSpec",
    "GatesSpec",
    "PagesSpec",
    "PerIntent",
    "QuantizeSpec",
    "RoundsSpec",
    "SearchSpec",
    "SelectSpec",
    "TargetsSpec",
    "TrainingDataSpec",
    "load_app",
]

GENERATED = "generated"
GENERIC = "generic"
SHIPPED = "shipped"
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
    complete_joins: bool = False
    """Whether joins that a query leaves out are completed along the keys; the prompt then names no keys, and
    synthesised questions have no joins in their SQL."""
    mentions: bool = False
    """Whether values of the database that a question names are put behind it, in training as in serving."""
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


class PagesSpec(Config):
    """How questions about pages are answered."""

    compare: bool = False
    """Answer the development questions about pages in several ways: `extract` quotes the pages, `prompt` asks the model
    alone, `tuned` is the tuned agent, `retrieval` gives the base model the best passages, `prompt_pages` all pages if
    they fit. The cheapest (in this order) that is not proven worse than the best is served; off: `tuned`."""


class CandidateSpec(Config):
    """A candidate behind an OpenAI-compatible endpoint, as an entry of `candidates`. It is never tuned."""

    endpoint: str
    """Address, such as http://127.0.0.1:8001/v1."""
    model: str = Field(min_length=1)
    """The model's id there."""
    key_variable: str = ""
    """Name of the environment variable that holds the API key; the key itself is written nowhere."""
    licence: str = ""
    """The model's licence, held against `licences`; empty: not stated."""
    languages: tuple[str, ...] = ()
    """Languages it knows, such as [en, zh]; empty: not stated."""

    @field_validator("endpoint")
    @classmethod
    def _address(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("an endpoint is an http address such as http://127.0.0.1:8001/v1")
        return value

    @property
    def name(self) -> str:
        return f"{self.model}@{urlsplit(self.endpoint).netloc.rpartition('@')[2]}"


class SelectSpec(Config):
    """Choosing among the candidates."""

    dev_questions: int = Field(default=8, ge=0)
    """Development questions each accepted candidate answers; 0 scores none and keeps the first accepted ones."""
    keep: int = Field(default=1, ge=1)
    """Models kept at most. Of several the smallest one on this machine is tuned and asked first; a question it does
    badly at goes to the next larger one, an endpoint last."""
    languages: Literal["known", "any"] = "known"
    """known refuses a candidate whose card does not list the application's language; any takes it all the same."""


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
    start: str = ""
    """What training goes on from: `shipped` is the package's own adapter for questions over databases, where it has one
    for the chosen model; else the path of an adapter's folder; empty means a fresh one."""


class RoundsSpec(Config):
    """Rounds of training, each tested on the development questions; the sealed test is read after the last."""

    most: int = Field(default=1, ge=1, le=20)
    """Trainings at most; 1 trains once and tests nothing before the sealed test."""
    success: Share | None = None
    """Development success that ends the rounds; null takes gates.success. A changed one trains anew."""
    patience: int = Field(default=2, ge=1)
    """Rounds in a row without gain that end the rounds."""


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
    base_questions: int = Field(default=0, ge=0)
    """Sealed tool tasks that the untrained model is asked, of all kinds; 0 means all. The gain is over these."""


class QuantizeSpec(Config):
    """Four-bit forms of the tuned model."""

    group_size: int = Field(default=64, ge=8)
    """Weights that share a scale and a zero point in the merged form."""
    prefer: Literal["best", "q4-base-adapter", "q4-merged"] = "best"
    """Which form is deployed; best takes the higher score, at a tie the smaller file. Of a named one alone the score is
    measured."""


class DeploySpec(Config):
    """The server."""

    host: str = "127.0.0.1"
    """Address that is listened on."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port; 0 picks a free one."""
    api_keys: tuple[str, ...] = ()
    """Accepted keys; none means that no key is asked for (loopback only)."""
    slots: int = Field(default=32, ge=1)
    """Sequences that are decoded at once; further requests wait. With `targets` other numbers are tried too."""
    load_seconds: float = Field(default=20.0, gt=0)
    """Length of one load test; it goes on until 30 requests were sent. Only with `targets`."""


class AgentSpec(Config):
    """Limits of one agent run, and how it ends."""

    steps: int = Field(default=4, ge=1)
    """Model turns."""
    seconds: float = Field(default=120.0, gt=0)
    """Wall time."""
    drafts: int = Field(default=1, ge=1, le=32)
    """Drafts of a call, of which the one is kept whose result most of them share."""
    temperature: float = Field(default=0.7, gt=0, le=2)
    """Of the drafts after the first, which is greedy."""
    grounded: bool = False
    """Keep answers to what the tools returned: a text that does not say the rows or shares nothing with the pages is
    replaced by a listing or a quotation. Answers are then streamed in one piece."""
    closing: Literal["model", "rows"] = "model"
    """Who words the answer to a query: the model in a turn of its own, or a plain listing of the rows at once (half the
    time of an answer); rows needs grounded."""

    @model_validator(mode="after")
    def _rows_are_grounded(self) -> AgentSpec:
        if self.closing == "rows" and not self.grounded:
            raise ValueError("agent.closing = rows needs agent.grounded: true")
        return self


class TargetsSpec(Config):
    """What the served application must reach; each one stated is a gate.

    With one of the last three the live server is loaded before release.
    """

    success: Share | None = None
    """Sealed tool-task success through HTTP and agent, at least."""
    rps: float | None = Field(default=None, gt=0)
    """Answers a second at the agent's endpoint, at least. A tenth more is offered; without it, one request a second."""
    p95_ttft_ms: float | None = Field(default=None, gt=0)
    """95th percentile of the time to the first piece of an answer's text under that load, in milliseconds, at most."""
    memory_gb: float | None = Field(default=None, gt=0)
    """Peak memory of the serving process under that load, in units of 10^9 bytes, at most."""

    @property
    def under_load(self) -> bool:
        return any(value is not None for value in (self.rps, self.p95_ttft_ms, self.memory_gb))


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
    candidates: tuple[str | CandidateSpec, ...] = Field(min_length=1)
    """Names from the catalogue (`riverrun hub list`), paths of model files relative to the recipe, or endpoints as
    {endpoint: URL, model: ID}."""
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
    pages: PagesSpec = PagesSpec()
    select: SelectSpec = SelectSpec()
    data: TrainingDataSpec = TrainingDataSpec()
    finetune: FinetuneSpec = FinetuneSpec()
    rounds: RoundsSpec = RoundsSpec()
    evaluate: EvaluateSpec = EvaluateSpec()
    quantize: QuantizeSpec = QuantizeSpec()
    deploy: DeploySpec = DeploySpec()
    agent: AgentSpec = AgentSpec()
    gates: GatesSpec = GatesSpec()
    targets: TargetsSpec = TargetsSpec()

    @field_validator("candidates", mode="before")
    @classmethod
    def _endpoints(cls, value: Any) -> Any:
        """Entries that are mappings are endpoints: what is wrong with one is said of it, not of all kinds of entry."""
        if not isinstance(value, list | tuple):
            return value
        entries = []
        for number, item in enumerate(value, 1):
            origin = f"candidates, entry {number}"
            if not isinstance(item, str | dict | CandidateSpec):
                raise ConfigError(f"{origin} is {item!r}: give a name, a path or {{endpoint: URL, model: ID}}")
            entries.append(build_config(CandidateSpec, item, origin=origin) if isinstance(item, dict) else item)
        return tuple(entries)

    @model_validator(mode="after")
    def _kept(self) -> AppSpec:
        names = [entry if isinstance(entry, str) else entry.name for entry in self.candidates]
        if len(set(names)) < len(names):
            raise ValueError(f"candidates names '{max(names, key=names.count)}' twice: leave one out")
        if self.select.keep > len(names):
            raise ValueError(f"select.keep = {self.select.keep} is more than the {len(names)} candidates")
        return self

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
