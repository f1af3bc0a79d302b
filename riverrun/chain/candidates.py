"""From a candidate of the spec to a model: a card of the catalogue, a path beside the recipe, or an endpoint."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from riverrun.base.artifacts import digest_json, digest_tree
from riverrun.base.errors import InputError
from riverrun.base.progress import Progress
from riverrun.base.protocols import LanguageModel
from riverrun.chain.check import is_path
from riverrun.chain.spec import CandidateSpec
from riverrun.chain.stage import Context, read_json

if TYPE_CHECKING:
    from riverrun.serve.client import RemoteModel

__all__ = [
    "Candidate",
    "all_candidates",
    "base_endpoint",
    "base_model",
    "find_candidate",
    "kept_models",
    "model_digest",
    "open_base",
    "open_endpoint",
]


@dataclass(frozen=True)
class Candidate:
    """A model that may be used. `licence`, `languages` and `context_length` are empty when nobody states them; `path`
    is None while it is not fetched; `endpoint` is there when it runs elsewhere."""

    name: str
    sha256: str
    licence: str
    path: Path | None
    size_bytes: int
    languages: tuple[str, ...] = ()
    context_length: int = 0
    endpoint: CandidateSpec | None = None

    def here(self) -> bool:
        """Whether using it needs no download."""
        if self.path is not None or self.endpoint is not None:
            return True
        from riverrun.hub.catalog import get_card
        from riverrun.hub.store import Store

        return Store().find(get_card(self.name)) is not None

    def fetch(self, progress: Progress | None = None) -> Path:
        """The model's files, downloaded first when they are not here."""
        assert self.endpoint is None, "an endpoint has no files"
        if self.path is not None:
            return self.path
        from riverrun.hub.catalog import get_card
        from riverrun.hub.store import Store

        return Path(Store().fetch(get_card(self.name), progress or Progress("quiet")))


def find_candidate(ctx: Context, name: str) -> Candidate:
    """Look a candidate up; InputError with the nearest names when neither spec, catalogue nor recipe has it."""
    for entry in ctx.spec.candidates:
        if isinstance(entry, CandidateSpec) and entry.name == name:
            digest = digest_json(entry.model_dump(mode="json", exclude={"key_variable"}))
            return Candidate(name, digest, entry.licence, None, 0, entry.languages, endpoint=entry)
    if is_path(name):
        path = ctx.file(name)
        size = sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())
        return Candidate(name, digest_tree(path), "", path, size)
    from riverrun.hub.catalog import get_card

    card = get_card(name)
    return Candidate(name, card.identity, card.licence, None, card.total_bytes, card.languages, card.context_length)


def all_candidates(ctx: Context) -> list[Candidate]:
    """Those of the spec, in its order."""
    names = (entry if isinstance(entry, str) else entry.name for entry in ctx.spec.candidates)
    return [find_candidate(ctx, name) for name in names]


def open_endpoint(entry: CandidateSpec, *, seconds: float = 120.0) -> RemoteModel:
    """A client that waits `seconds` for a silent endpoint; it connects at the first request.

    InputError when the environment lacks the key.
    """
    from riverrun.serve.client import RemoteModel

    key = os.environ.get(entry.key_variable, "") if entry.key_variable else ""
    if entry.key_variable and not key:
        raise InputError(f"candidate {entry.name}: the environment holds no {entry.key_variable}: set it")
    return RemoteModel(entry.endpoint, entry.model, api_key=key, timeout_seconds=seconds, concurrency=8, attempts=2)


def kept_models(ctx: Context) -> list[Candidate]:
    """What `select` kept, in the order in which they are asked; the first is the one that is tuned."""
    return [find_candidate(ctx, row["name"]) for row in read_json(ctx.folder("select") / "kept.json")]


def base_endpoint(ctx: Context) -> CandidateSpec | None:
    """The endpoint that `select` chose where no model of this machine was left, else None."""
    chosen = read_json(ctx.folder("select") / "model.json")["name"]
    return find_candidate(ctx, chosen).endpoint


def base_model(ctx: Context) -> Path:
    """Where the model that `select` chose is."""
    chosen = read_json(ctx.folder("select") / "model.json")["name"]
    return find_candidate(ctx, chosen).fetch()


@contextmanager
def open_base(ctx: Context, *, name: str) -> Iterator[LanguageModel]:
    """The chosen model as it is, on this machine or at its endpoint."""
    endpoint = base_endpoint(ctx)
    if endpoint is None:
        with ctx.model(base_model(ctx), name=name) as model:
            yield model
    else:
        with open_endpoint(endpoint) as remote:
            yield remote


def model_digest(ctx: Context) -> dict[str, Any]:
    """The chosen model as an input of a later stage."""
    model = read_json(ctx.folder("select") / "model.json")
    return {f"model {model['name']}": model["sha256"]}
