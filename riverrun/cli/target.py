"""What `chat` and `serve` are pointed at: a run folder, a model's path, or a name of the catalogue."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from riverrun.base.errors import InputError, nearest
from riverrun.base.progress import Progress
from riverrun.base.protocols import LanguageModel
from riverrun.chain.check import is_path
from riverrun.chain.stage import Parts

__all__ = ["Target", "model_path", "open_target"]


@dataclass(frozen=True)
class Target:
    """Models by id, and the one that a person talks to unless another is named."""

    models: dict[str, LanguageModel]
    default: str

    def pick(self, name: str) -> LanguageModel:
        """The model of an id ("" for the default); InputError with the nearest ids."""
        if name and name not in self.models:
            raise InputError(f"--model {name}: no such model here.{nearest(name, self.models)}")
        return self.models[name or self.default]


def model_path(target: str) -> Path:
    """The path of a model, fetched into the store when it is a name of the catalogue."""
    if not target:
        raise InputError("the model has no name: give a model's path or a name of `riverrun hub list`")
    path = Path(target)
    if path.exists():
        return path
    if is_path(target):
        raise InputError(f"{path} does not exist: give a run folder, a model's path or a name of `riverrun hub list`")
    from riverrun.hub.catalog import get_card
    from riverrun.hub.store import Store

    return Path(Store().fetch(get_card(target), Progress()))


@contextmanager
def open_target(
    target: str,
    *,
    database: Path | str = "",
    parts: Parts | None = None,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> Iterator[Target]:
    """Load what the target names, models with `options` (arguments of `LLM`); everything is closed at the end."""
    parts = parts or Parts()
    folder = Path(target)
    if (folder / "run.json").is_file() or (folder / "deploy").is_dir():
        from riverrun.chain.application import open_application

        with open_application(folder, database=database, parts=parts, options=options) as application:
            yield Target(application.models, f"{application.name}-agent")
        return
    if database:
        raise InputError(f"--database needs a run folder, {target} is a model: leave the option out")
    path = model_path(target)
    name = target if not path.exists() else path.stem if path.is_file() else path.resolve().name
    model = parts.load("model")(path, **{"adapter": None, "name": name, "threads": 0, **options})
    try:
        yield Target({name: model}, name)
    finally:
        model.close()
