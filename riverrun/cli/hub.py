"""`riverrun hub`: thin lines over the catalogue and the store."""

from __future__ import annotations

from riverrun.base.progress import Progress
from riverrun.hub.catalog import get_card, load_catalog
from riverrun.hub.store import Store

__all__ = ["get_command", "info_command", "list_command", "verify_command"]


def list_command() -> None:
    store = Store()
    for card in load_catalog().values():
        state = "here" if store.find(card) else "not fetched"
        print(f"{card.name:32} {card.licence:14} {card.size_bytes / 1e6:8.1f} MB  {state}")


def info_command(name: str) -> None:
    import yaml

    card = get_card(name)
    print(yaml.safe_dump(card.model_dump(mode="json"), sort_keys=False, allow_unicode=True).rstrip())
    print(f"path: {Store().find(card) or 'not fetched'}")


def get_command(name: str) -> None:
    print(Store().fetch(get_card(name), Progress()))


def verify_command(name: str) -> None:
    store, card = Store(), get_card(name)
    print(f"{store.verify(card)}: sha256 {card.sha256} as its card says")
