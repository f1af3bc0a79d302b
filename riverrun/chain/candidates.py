"""From a candidate of the spec to a model on this machine: a card of the catalogue, or a path beside the recipe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from riverrun.base.artifacts import digest_tree
from riverrun.base.progress import Progress
from riverrun.chain.check import is_path
from riverrun.chain.stage import Context, read_json

__all__ = ["Candidate", "base_model", "find_candidate", "model_digest"]


@dataclass(frozen=True)
class Candidate:
    """A model that may be used. `licence` is "" when nobody states it; `path` is None while it is not fetched."""

    name: str
    sha256: str
    licence: str
    path: Path | None
    size_bytes: int

    def here(self) -> bool:
        """Whether using it needs no download."""
        if self.path is not None:
            return True
        from riverrun.hub.catalog import get_card
        from riverrun.hub.store import Store

        return Store().find(get_card(self.name)) is not None

    def fetch(self, progress: Progress | None = None) -> Path:
        """The model's files, downloaded first when they are not here."""
        if self.path is not None:
            return self.path
        from riverrun.hub.catalog import get_card
        from riverrun.hub.store import Store

        return Path(Store().fetch(get_card(self.name), progress or Progress("quiet")))


def find_candidate(ctx: Context, name: str) -> Candidate:
    """Look a candidate up; InputError with the nearest names when neither catalogue nor recipe has it."""
    if is_path(name):
        path = ctx.file(name)
        size = sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())
        return Candidate(name, digest_tree(path), "", path, size)
    from riverrun.hub.catalog import get_card

    card = get_card(name)
    return Candidate(name, card.sha256, card.licence, None, card.size_bytes)


def base_model(ctx: Context) -> Path:
    """Where the model that `select` chose is."""
    chosen = read_json(ctx.folder("select") / "model.json")["name"]
    return find_candidate(ctx, chosen).fetch()


def model_digest(ctx: Context) -> dict[str, str]:
    """The chosen model as an input of a later stage."""
    model = read_json(ctx.folder("select") / "model.json")
    return {f"model {model['name']}": model["sha256"]}
