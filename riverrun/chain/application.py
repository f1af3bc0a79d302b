"""A finished run as a running application: the model and the agent as two model ids, as `chat` and `serve` use them.

Only the run folder is needed: the recipe may have moved. `deploy/server.json` says which files make the application.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from riverrun.base.errors import InputError
from riverrun.base.protocols import LanguageModel
from riverrun.chain.assistant import Assistant, make_assistant
from riverrun.chain.check import check_database
from riverrun.chain.pages import BASE_MODES, base_beside, grounding_of, served_mode
from riverrun.chain.spec import AppSpec
from riverrun.chain.stage import Context, Parts, read_json
from riverrun.data.journal import read_documents

__all__ = ["Application", "describe", "open_application", "open_models", "pages_of"]

SERVER_FILE = "server.json"


def describe(ctx: Context, variant: str) -> dict[str, Any]:
    """What server.json holds: the files of the application relative to the run folder, how it answers from pages, and
    its spec. `base` is the model before its tuning, where it words those answers."""
    name = ctx.spec.name
    mode = served_mode(ctx.out)
    base = base_beside(ctx.folder("quantize")) if mode in BASE_MODES else None
    return {
        "name": name,
        "model": variant,
        "database": "data/shop.sqlite",
        "documents": "data/kept.jsonl",
        "pages": mode,
        "base": base.relative_to(ctx.out).as_posix() if base else "",
        "ids": [name, f"{name}-agent"],
        "command": f"riverrun serve runs/{name}",
        "host": ctx.spec.deploy.host,
        "port": ctx.spec.deploy.port,
        "spec": ctx.spec.model_dump(mode="json", exclude={"deploy": {"api_keys"}, "memory_gb": True}),
    }


@dataclass(frozen=True)
class Application:
    """Model ids in the order they are shown, and the assistant behind the agent."""

    name: str
    models: dict[str, LanguageModel]
    assistant: Assistant

    @property
    def agent(self) -> LanguageModel:
        return self.models[f"{self.name}-agent"]


@contextmanager
def open_models(
    spec: AppSpec,
    model_path: Path,
    database: Path,
    documents: Path,
    parts: Parts,
    *,
    pages: str = "tuned",
    base_path: Path | None = None,
) -> Iterator[Application]:
    """Load the model, make the agent; the model is closed at the end. `pages` is how the agent answers from pages,
    `base_path` a second model that words those answers."""
    kept = read_documents(documents)
    assistant = make_assistant(spec, database, kept)
    with ExitStack() as stack:

        def load(path: Path) -> LanguageModel:
            model = parts.load("model")(path, adapter=None, name=spec.name, threads=spec.threads)
            stack.callback(model.close)
            return cast(LanguageModel, model)

        model = load(model_path)
        base = load(base_path) if base_path is not None else None
        name = f"{spec.name}-agent"
        grounding = grounding_of(spec, assistant, pages, kept, model, base)
        agent = assistant.agent(model, name=name, limits=spec.agent, grounding=grounding)
        yield Application(spec.name, {spec.name: model, name: agent}, assistant)


def pages_of(run: Path, server: Mapping[str, Any]) -> dict[str, Any]:
    """How a run's server.json says that pages are answered, as arguments of `open_models`."""
    base = server.get("base")
    return {"pages": server.get("pages", "tuned"), "base_path": run / base if base else None}


@contextmanager
def open_application(run: Path, *, database: Path | None = None, parts: Parts | None = None) -> Iterator[Application]:
    """The application of a run folder; `database` takes the place of the run's copy (the live one, say)."""
    file = run / "deploy" / SERVER_FILE
    if not file.is_file():
        raise InputError(f"{run} holds no deployed application: run its recipe with --out {run} --until deploy first")
    if database is not None:
        check_database(database)
    server = read_json(file)
    spec = AppSpec.model_validate(server["spec"])
    files = run / server["model"], database or run / server["database"], run / server["documents"]
    with open_models(spec, *files, parts or Parts(), **pages_of(run, server)) as application:
        yield application
