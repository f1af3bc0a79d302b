"""What a stage is: its inputs, its config, its code, and a run that fills one folder.

A stage's outputs hold nothing that differs between two runs of the same thing: no clock, no absolute path. Times,
memory and everything measured about the machine go into `StageResult.counts` and from there into the lineage record.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import riverrun
from riverrun.base.artifacts import code_version, digest_file, digest_json, digest_tree, read_lineage
from riverrun.base.errors import InputError
from riverrun.base.progress import Progress
from riverrun.base.protocols import LanguageModel
from riverrun.chain.spec import AppSpec

__all__ = [
    "STAGES",
    "Context",
    "Gate",
    "Parts",
    "Stage",
    "StageResult",
    "code_digest",
    "read_json",
    "read_jsonl",
    "source_digest",
]

STAGES = ("select", "data", "plan", "finetune", "evaluate", "quantize", "deploy", "agent", "report")
PACKAGE = Path(riverrun.__file__).parent


@dataclass(frozen=True)
class Gate:
    """A measured figure and its bar. `name` is the field of `gates` that holds the bar, or `targets.<field>`."""

    name: str
    value: float
    higher_is_better: bool
    advice: str

    def bar(self, spec: AppSpec) -> float | None:
        section, _, key = self.name.rpartition(".")
        value = getattr(getattr(spec, section or "gates"), key)
        return None if value is None else float(value)

    def passes(self, spec: AppSpec) -> bool:
        bar = self.bar(spec)
        return bar is None or (self.value >= bar if self.higher_is_better else self.value <= bar)


@dataclass
class StageResult:
    """What a stage says beside its files.

    `scores` are dotted names of summary.json with their figures; `counts` is anything else worth keeping (also
    measured times, tokens a second, bytes), stored under `stages.<stage>.counts`.
    """

    counts: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)
    gates: list[Gate] = field(default_factory=list)


@dataclass(frozen=True)
class Parts:
    """The parts that tests replace, as "module:attribute" so that a stage's own process can load them."""

    model: str = "riverrun.serve.llm:LLM"
    finetune: str = "riverrun.train.finetune:finetune"
    quantize: str = "riverrun.chain.quantizing:quantize"
    load_config: str = "riverrun.models.load:load_config"
    count_rows: str = "riverrun.chain.planning:count_rows"

    def load(self, name: str) -> Any:
        module, _, attribute = str(getattr(self, name)).partition(":")
        return getattr(importlib.import_module(module), attribute)


@dataclass(frozen=True)
class Context:
    """Everything a stage may look at. It travels to the stage's own process as JSON."""

    spec: AppSpec
    recipe: Path
    out: Path
    parts: Parts = Parts()

    def folder(self, stage: str) -> Path:
        return self.out / stage

    def file(self, name: str) -> Path:
        """A path of the spec, relative to the recipe's folder."""
        return (self.recipe / name).resolve()

    def upstream(self, stage: str, *names: str) -> dict[str, str]:
        """Digests of a finished stage's outputs: {"stage/name": sha256}. A name that is a folder takes all in it."""
        lineage = read_lineage(self.folder(stage), verify=False)
        if lineage is None:
            raise InputError(f"stage '{stage}' of {self.out} is not finished: run it first (--until {stage})")
        found = {}
        for name in names:
            hits = {k: v for k, v in lineage.outputs.items() if k == name or k.startswith(name + "/")}
            found[f"{stage}/{name}"] = hits[name] if set(hits) == {name} else digest_json(hits)
        return found

    def file_input(self, name: str) -> dict[str, str]:
        """Digest of a file or folder of the recipe."""
        return {name: digest_tree(self.file(name))}

    @contextmanager
    def model(self, path: Path, *, adapter: Path | None = None, name: str = "") -> Iterator[LanguageModel]:
        """The model at a path, closed at the end (its memory is given back)."""
        factory = self.parts.load("model")
        model = factory(path, adapter=adapter, name=name or self.spec.name, threads=self.spec.threads)
        try:
            yield model
        finally:
            model.close()

    def to_json(self) -> dict[str, Any]:
        return {
            "spec": self.spec.model_dump(mode="json"),
            "recipe": str(self.recipe),
            "out": str(self.out),
            "parts": self.parts.__dict__,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Context:
        spec = AppSpec.model_validate(value["spec"])
        return cls(spec, Path(value["recipe"]), Path(value["out"]), Parts(**value["parts"]))


class Stage(Protocol):
    """One step of the chain; its output folder carries its name."""

    name: ClassVar[str]
    code: ClassVar[tuple[str, ...]]
    """Rooms or files of the package, relative to it, whose source decides whether an old result still stands."""
    resumable: ClassVar[bool]
    """Whether a half-done folder of the same key may be continued; otherwise it is emptied first."""
    isolated: ClassVar[bool]
    """Whether it runs in a process of its own, which gives its memory back and lets its peak be measured."""

    def inputs(self, ctx: Context) -> dict[str, str]: ...

    def config(self, ctx: Context) -> dict[str, Any]: ...

    def run(self, ctx: Context, folder: Path, progress: Progress) -> StageResult: ...


def code_digest(stage: Stage) -> str:
    """sha256 over the stage's own file and the rooms and files it names."""
    return source_digest(stage.code, Path(str(importlib.import_module(type(stage).__module__).__file__)))


def source_digest(names: Sequence[str], *own: Path) -> str:
    """sha256 over files, and rooms and files of the package by their names."""
    files = [*own, *(PACKAGE / name for name in names if name.endswith(".py"))]
    rooms = tuple(name for name in names if not name.endswith(".py"))
    return digest_json([[digest_file(path) for path in files], code_version(PACKAGE, rooms) if rooms else ""])


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def read_jsonl(path: Path) -> list[Any]:
    """One value a line; blank lines are passed over."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
