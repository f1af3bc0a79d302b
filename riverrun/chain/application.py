"""A finished run as a running application: the model and the agent as two model ids, as `chat` and `serve` use them.

Only the run folder is needed: the recipe may have moved. `deploy/server.json` says which files make the application.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from riverrun.base.errors import InputError
from riverrun.base.protocols import LanguageModel
from riverrun.base.servers import Server, is_url
from riverrun.chain.assistant import Assistant, make_assistant
from riverrun.chain.check import check_database
from riverrun.chain.spec import AppSpec
from riverrun.chain.stage import Context, Parts, read_json
from riverrun.data.journal import read_documents

__all__ = ["Application", "describe", "open_application", "open_models"]

SERVER_FILE = "server.json"


def describe(ctx: Context, variant: str) -> dict[str, Any]:
    """What server.json holds: the files of the application relative to the run folder, and its spec."""
    name = ctx.spec.name
    return {
        "name": name,
        "model": variant,
        "database": "data/shop.sqlite",
        "documents": "data/kept.jsonl",
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
    spec: AppSpec, model_path: Path, database: Path | Server, documents: Path, parts: Parts
) -> Iterator[Application]:
    """Load the model, make the agent; the model is closed at the end."""
    assistant = make_assistant(spec, database, read_documents(documents))
    model = parts.load("model")(model_path, adapter=None, name=spec.name, threads=spec.threads)
    try:
        name = f"{spec.name}-agent"
        agent = assistant.agent(model, name=name, steps=spec.agent.steps, seconds=spec.agent.seconds)
        yield Application(spec.name, {spec.name: model, name: agent}, assistant)
    finally:
        model.close()


@contextmanager
def open_application(run: Path, *, database: Path | str = "", parts: Parts | None = None) -> Iterator[Application]:
    """The application of a run folder; `database`, a path or URL, takes the place of the run's copy (the live one)."""
    file = run / "deploy" / SERVER_FILE
    if not file.is_file():
        raise InputError(f"{run} holds no deployed application: run its recipe with --out {run} --until deploy first")
    server = read_json(file)
    spec = AppSpec.model_validate(server["spec"])
    source: Path | Server = run / server["database"]
    if is_url(str(database)):
        source = spec.database.server(str(database))
    elif database:
        source = Path(database)
        check_database(source)
    with open_models(spec, run / server["model"], source, run / server["documents"], parts or Parts()) as application:
        yield application
