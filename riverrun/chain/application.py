"""A finished run as a running application: the model and the agent as two model ids, as `chat` and `serve` use them.

Only the run folder is needed: the recipe may have moved. `deploy/server.json` says which files make the application.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from riverrun.agent.cascade import Cascade
from riverrun.base.artifacts import digest_json
from riverrun.base.errors import InputError
from riverrun.base.protocols import LanguageModel, ModelInfo
from riverrun.base.servers import Server, is_url
from riverrun.chain.assistant import Assistant, make_assistant
from riverrun.chain.candidates import open_endpoint
from riverrun.chain.check import check_database
from riverrun.chain.pages import BASE_MODES, base_beside, grounding_of, served_mode
from riverrun.chain.spec import AppSpec, CandidateSpec
from riverrun.chain.stage import Context, Parts, read_json
from riverrun.data.journal import read_documents

__all__ = ["SERVER_FILE", "Application", "Source", "describe", "open_application", "open_models", "pages_of"]

SERVER_FILE = "server.json"
Source = Path | CandidateSpec
"""Where a served model is: its files, or its endpoint."""


def describe(ctx: Context, models: Sequence[str | CandidateSpec]) -> dict[str, Any]:
    """What server.json holds: the files of the application relative to the run folder, how it answers from pages, and
    its spec.

    `models` are asked in this order; a text is a path in the run folder. `base` is the model before its tuning, where
    it words the answers from pages.
    """
    name = ctx.spec.name
    mode = served_mode(ctx.out)
    base = base_beside(ctx.folder("quantize")) if mode in BASE_MODES else None
    return {
        "name": name,
        "models": [{"path": m} if isinstance(m, str) else m.model_dump(mode="json") for m in models],
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
    sources: Sequence[Source],
    database: Path | Server,
    documents: Path,
    parts: Parts,
    *,
    pages: str = "tuned",
    base_path: Path | None = None,
    snapshot: Path | None = None,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> Iterator[Application]:
    """Load the models, make the agent: of one model, or a cascade where there are more. All are closed at the end.

    `pages` is how the agent answers from pages, `base_path` a further model that words those answers, `snapshot` the
    run's copy of a database that is a live server.
    """
    kept = read_documents(documents)
    assistant = make_assistant(spec, database, kept, snapshot=snapshot)
    name = f"{spec.name}-agent"
    with ExitStack() as stack:

        def load(source: Source, called: str) -> Any:
            model = _open(source, called, spec, parts, options)
            stack.callback(model.close)
            return model

        models = [
            load(source, f"{spec.name}-larger-{number}" if number else spec.name)
            for number, source in enumerate(sources)
        ]
        base = load(base_path, f"{spec.name}-base") if base_path is not None else None
        agents = []
        for model in models:
            grounding = grounding_of(spec, assistant, pages, kept, model, base)
            agents.append(assistant.agent(model, name=name, limits=spec.agent, grounding=grounding))
        agent = agents[0] if len(agents) == 1 else Cascade(agents, name=name)
        yield Application(spec.name, {spec.name: models[0], name: agent}, assistant)


def pages_of(run: Path, server: Mapping[str, Any]) -> dict[str, Any]:
    """How a run's server.json says that pages are answered, as arguments of `open_models`."""
    base = server.get("base")
    return {"pages": server.get("pages", "tuned"), "base_path": run / base if base else None}


class _Elsewhere:
    """A model at an endpoint that need not be up when the application starts: nothing is asked of it before a question.

    Its `info` is therefore the spec's, with context length 0 (unknown).
    """

    def __init__(self, entry: CandidateSpec, seconds: float) -> None:
        digest = digest_json(entry.model_dump(mode="json", exclude={"key_variable"}))
        self.info = ModelInfo(entry.name, digest, 0, "")
        self._remote = open_endpoint(entry, seconds=seconds)
        self.generate, self.stream, self.score = self._remote.generate, self._remote.stream, self._remote.score
        self.close = self._remote.close


def _open(source: Source, name: str, spec: AppSpec, parts: Parts, options: Mapping[str, Any]) -> Any:
    if isinstance(source, CandidateSpec):
        return _Elsewhere(source, spec.agent.seconds)
    given: dict[str, Any] = {"adapter": None, "name": name, "threads": spec.threads, "slots": spec.deploy.slots}
    return parts.load("model")(source, **{**given, **options})


@contextmanager
def open_application(
    run: Path,
    *,
    database: Path | str = "",
    parts: Parts | None = None,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> Iterator[Application]:
    """The application of a run folder; `database`, a path or URL, takes the place of the run's copy (the live one).
    `options` are arguments of `LLM` for the models whose files are here."""
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
    sources, documents = [_source(run, model) for model in server["models"]], run / server["documents"]
    more = {**pages_of(run, server), "snapshot": run / server["database"], "options": options}
    with open_models(spec, sources, source, documents, parts or Parts(), **more) as application:
        yield application


def _source(run: Path, model: Mapping[str, Any]) -> Source:
    return run / model["path"] if "path" in model else CandidateSpec.model_validate(model)
