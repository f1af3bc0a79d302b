"""`riverrun hub`: thin lines over the catalogue, the store and the hubs."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from riverrun.base.config import load_yaml
from riverrun.base.errors import InputError
from riverrun.base.progress import Progress
from riverrun.hub.card import Card, FileEntry
from riverrun.hub.catalog import card_of, card_text, get_card, licences, load_catalog
from riverrun.hub.compare import CARD_FILE, compare, folder_entries
from riverrun.hub.hubs import open_hub, parse_card
from riverrun.hub.search import search
from riverrun.hub.spec import SCHEMES
from riverrun.hub.store import Store

__all__ = [
    "diff_command",
    "get_command",
    "info_command",
    "list_command",
    "publish_command",
    "resolve",
    "search_command",
    "serve_command",
    "verify_command",
]


def resolve(target: str, hub: str = "") -> Card:
    """A card from a name (of --hub, else of the catalogue, else of $RIVERRUN_HUB), a source spec or a card's file."""
    if hub:
        return open_hub(hub).card(target)
    if target.partition(":")[0] in SCHEMES and ":" in target:
        return card_of(target)
    path = Path(target)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return parse_card(path.read_text(encoding="utf-8"), str(path))
    own = os.environ.get("RIVERRUN_HUB", "")
    if own and target not in load_catalog() and target.partition("@")[0] in (place := open_hub(own)).cards():
        return place.card(target)
    return get_card(target)


def _cards(hub: str) -> dict[str, Card]:
    if hub:
        return open_hub(hub).cards()
    own = os.environ.get("RIVERRUN_HUB", "")
    return (open_hub(own).cards() if own else {}) | load_catalog()


def _size(count: int) -> str:
    power = min(3, (len(str(count)) - 1) // 3)
    return f"{count / 1000**power:.1f} {('B', 'kB', 'MB', 'GB')[power]}"


def _state(store: Store, card: Card) -> str:
    if card.sources[0] == "hub:":
        return "in the hub"
    if store.find(card):
        return "here"
    return "partly here" if store.manifest(card) else "not fetched"


def _print_cards(cards: Sequence[Card], *, describe: bool) -> None:
    store = Store()
    for card in cards:
        size = _size(card.total_bytes) if card.total_bytes else "-"
        languages = ",".join(card.languages[:3]) + (",..." if len(card.languages) > 3 else "")
        print(f"{card.name:34} {card.kind:9} {card.licence:22} {languages or '-':12} {size:>9}  {_state(store, card)}")
        if describe and (text := card.description or card.title):
            print(f"    {text}")


def list_command(hub: str) -> None:
    _print_cards(list(_cards(hub).values()), describe=False)


def search_command(words: Sequence[str], kind: str, language: str, licence: str, hub: str) -> None:
    found = search(_cards(hub).values(), words, kind=kind, language=language, licence=licence)
    if not found:
        raise InputError(f"nothing fits {' '.join(words)!r}: use fewer words, or see riverrun hub list")
    _print_cards(found, describe=True)


def info_command(name: str, hub: str) -> None:
    card, store = resolve(name, hub), Store()
    print(card_text(card).rstrip())
    if known := licences().get(card.licence):
        print(f"licence in full: {known.name}{f', {known.url}' if known.url else ''}")
    if manifest := store.manifest(card):
        lacking = store.missing(card)
        print(f"manifest: {len(manifest.files)} files of {manifest.source} at {manifest.revision or '-'}")
        if lacking:
            print(f"not fetched: {len(lacking)} of them")
    print(f"path: {store.find(card) or (store.path(card) if manifest else 'not fetched')}")


def get_command(name: str, only: Sequence[str], to: Path | None, unpack: bool, again: bool, hub: str) -> None:
    card, store = resolve(name, hub), Store()
    path = store.fetch(card, Progress(), again=again, only=only)
    if unpack:
        archives = store.archives(card)
        if not archives:
            raise InputError(f"{path} holds no archive that can be unpacked: leave out --unpack")
        for archive in archives:
            folder = store.unpack(archive)
            print(_copy(folder, to / archive.name.partition(".")[0]) if to else folder)
        return
    print(_copy(path, to, only=store.chosen(card, only)) if to else path)


def _copy(source: Path, to: Path, *, only: Sequence[str] | None = None) -> Path:
    """Copy a file into a folder, or the files of a folder; nothing that is there already is written over."""
    pairs = [(source, to / source.name)]
    if source.is_dir():
        inside = (
            only if only is not None else [p.relative_to(source).as_posix() for p in source.rglob("*") if p.is_file()]
        )
        pairs = [(source / path, to / path) for path in inside]
    for one, other in pairs:
        if other.exists():
            if compare([_entry(one)], [_entry(other)]).none:
                continue
            raise InputError(f"{other} is there with other contents: give another --to, or remove it")
        other.parent.mkdir(parents=True, exist_ok=True)
        part = other.with_name(f".{other.name}.tmp")
        shutil.copyfile(one, part)
        part.replace(other)
    return pairs[0][1] if source.is_file() else to


def _entry(path: Path) -> FileEntry:
    from riverrun.base.artifacts import digest_file

    return FileEntry(path="file", size_bytes=path.stat().st_size, sha256=digest_file(path))


def verify_command(name: str, hub: str) -> None:
    store, card = Store(), resolve(name, hub)
    path = store.verify(card)
    if card.sha256:
        print(f"{path}: sha256 {card.sha256} as its card says")
        return
    lacking = store.missing(card)
    print(f"{path}: every file as its manifest says{f', {len(lacking)} not fetched' if lacking else ''}")


def _entries(target: str, hub: str) -> tuple[FileEntry, ...]:
    """What a side of a diff holds: a folder's files, a card's, the stored manifest's or what the source lists."""
    if Path(target).is_dir():
        return folder_entries(Path(target))
    card, store = resolve(target, hub), Store()
    return store.entries(card)


def diff_command(old: str, new: str, hub: str) -> None:
    if Path(old).is_dir() and not new:
        file = Path(old) / CARD_FILE
        told = load_yaml(file)
        if told.get("files") or told.get("sha256"):  # a copy of what was published
            entries = parse_card(file.read_text(encoding="utf-8"), str(file)).entries
        else:  # what publishing it would change
            entries = _entries(str(told.get("name", "")), hub)
        found = compare(entries, folder_entries(Path(old)))
    elif not new:
        raise InputError(f"diff {old} needs a second card, source or folder")
    else:
        found = compare(_entries(old, hub), _entries(new, hub))
    print("\n".join(found.lines()))


def publish_command(folder: Path, target: str, token: str) -> None:
    from riverrun.hub.publish import publish

    place = target or os.environ.get("RIVERRUN_HUB", "")
    if not place:
        raise InputError("publish needs a place: a hub's folder or address, hf:OWNER/NAME or modelscope:OWNER/NAME")
    print(publish(folder, place, Progress(), token=token))


def serve_command(folder: Path, host: str, port: int, tokens: Sequence[str]) -> None:
    from riverrun.hub.server import make_hub_app
    from riverrun.serve.http.server import serve_app

    if not folder.is_dir():
        raise InputError(f"{folder} is no folder: publish something into it first, or make it")
    given = [*tokens, *filter(None, [os.environ.get("RIVERRUN_HUB_TOKEN", "")])]

    def announce(url: str) -> None:
        print(f"{url} ({folder}, {'publishing with a token' if given else 'read only'})", file=sys.stderr, flush=True)

    serve_app(make_hub_app(folder, given), host=host, port=port, on_ready=announce)
