"""The catalogue: cards by name, in `catalog.yaml` (files with a digest) and `cards/*.yaml` (listed from their sources).

A listed card has no digests: its source's listing is written down at the first fetch and holds from then on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from riverrun.base.config import Config, build_config, load_yaml
from riverrun.base.errors import ConfigError, InputError, nearest
from riverrun.hub.card import Card
from riverrun.hub.sources import local_path
from riverrun.hub.spec import SCHEMES, parse_spec

__all__ = ["SCHEMES", "Card", "card_of", "card_text", "get_card", "licences", "load_catalog", "shipped_adapter"]

_HERE = Path(__file__).parent
_ADAPTERS = _HERE / "adapters"


class _Catalog(Config):
    cards: tuple[Card, ...]


class _Licence(Config):
    name: str
    spdx: bool = False
    url: str = ""


class _Licences(Config):
    licences: dict[str, _Licence]


def load_catalog(path: Path | None = None) -> dict[str, Card]:
    """Cards by name, from the built-in catalogue or a YAML file `cards: [...]`; ConfigError names what is wrong."""
    if path is not None:
        return _read(path)
    cards: dict[str, Card] = {}
    for file, found in _built_in():
        if both := cards.keys() & found.keys():
            raise ConfigError(f"{file}: '{min(both)}' is in another file of the catalogue too: rename one")
        cards |= found
    return cards


def _built_in() -> Iterator[tuple[Path, dict[str, Card]]]:
    """The files one by one: the small one first, so that its cards are found without reading all others."""
    for path in (_HERE / "catalog.yaml", *sorted((_HERE / "cards").glob("*.yaml"))):
        yield path, _cached(path)


@cache
def _cached(path: Path) -> dict[str, Card]:
    return _read(path)


def _read(path: Path) -> dict[str, Card]:
    cards: dict[str, Card] = {}
    for card in build_config(_Catalog, load_yaml(path), origin=str(path)).cards:
        if card.name in cards:
            raise ConfigError(f"{path}: two cards are named '{card.name}': rename one")
        cards[card.name] = card
    return cards


def get_card(name: str, path: Path | None = None) -> Card:
    """The card of that name; InputError with the nearest names when there is none."""
    if path is None:
        for _, found in _built_in():
            if name in found:
                return found[name]
    cards = load_catalog(path)
    if name not in cards:
        begun = sorted((known for known in cards if known.startswith(name)), key=lambda known: (len(known), known))
        more = f" Did you mean {' or '.join(map(repr, begun[:5]))}?" if begun and name else nearest(name, cards)
        raise InputError(f"no card is named '{name}'.{more if len(more) < 200 else ' See riverrun hub list.'}")
    return cards[name]


def card_of(source: str) -> Card:
    """A card for a source that is in no catalogue; its licence is not known."""
    spec = parse_spec(source)
    values: dict[str, Any] = {"name": spec.short_name, "licence": "unknown", "sources": (source,)}
    if spec.scheme in ("hf", "modelscope", "opendatalab"):
        values["kind"] = spec.kind
    elif spec.scheme != "file" or not local_path(spec.place).is_dir():
        values["files"] = ({"path": spec.file_name or spec.short_name},)
    return build_config(Card, values, origin=source)


def card_text(card: Card) -> str:
    """A card as YAML, without the fields that hold nothing."""
    data = card.model_dump(mode="json", exclude_defaults=True)
    data["files"] = [{k: v for k, v in entry.items() if v not in ("", None)} for entry in data.get("files", [])]
    ordered = {key: data[key] for key in Card.model_fields if data.get(key)}
    return yaml.safe_dump(ordered, sort_keys=False, allow_unicode=True, width=120)


@cache
def licences() -> Mapping[str, _Licence]:
    """Known licences by the name cards use (lower case): SPDX identifiers and licences with a name of their own."""
    return build_config(_Licences, load_yaml(_HERE / "licences.yaml"), origin="licences.yaml").licences


def shipped_adapter(name: str) -> Path | None:
    """The folder (PEFT layout) of the adapter that the package brings for a model; None where it brings none."""
    folder = _ADAPTERS / name
    return folder if (folder / "adapter_config.json").is_file() else None
