"""Hubs: a folder, or the same folder behind HTTP, that cards and their files are published in and read from.

    index.json            every card without its list of files: one request is enough to search
    cards/NAME.yaml       the newest card of a name, cards/NAME@VERSION.yaml every version
    blobs/SHA256          the files

Any static HTTP server over the folder is a readable hub. Publishing adds files first and the card last, each by a
rename: a reader never sees a card whose files are not there.
"""

from __future__ import annotations

import fcntl
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import yaml

from riverrun.base.artifacts import atomic_file, digest_file, write_json, write_text
from riverrun.base.config import build_config
from riverrun.base.errors import ConfigError, InputError, IntegrityError, nearest
from riverrun.base.progress import Task
from riverrun.hub.card import Card, FileEntry
from riverrun.hub.catalog import card_text
from riverrun.hub.remotes import token_of
from riverrun.hub.transport import Patience, SourceError, get_bytes, get_json, require_safe

__all__ = ["CARD_NAME", "Hub", "HubFolder", "HubSite", "open_hub", "parse_card"]

FORMAT = "riverrun-hub-1"
CARD_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*(@[A-Za-z0-9][A-Za-z0-9._-]*)?")
_PIECE = 4 * 1024 * 1024
_FOREIGN = ("hub:", "hf:", "modelscope:", "opendatalab:", "pypi:", "https:")


class Hub(Protocol):
    """What a hub can do. InputError says what is wrong with it."""

    place: str

    def cards(self) -> dict[str, Card]:
        """The newest cards by name, without their files."""

    def card(self, name: str) -> Card:
        """A whole card by NAME or NAME@VERSION; its first source is this hub."""

    def add(self, path: Path, entry: FileEntry, task: Task) -> None:
        """Bring one file in, if it is not there."""

    def put(self, card: Card) -> None:
        """Publish a card whose files are all there."""


def open_hub(place: str, patience: Patience | None = None, token: str = "") -> Hub:
    """The hub of a folder or an address."""
    if "://" in place:
        return HubSite(place, patience or Patience(), token)
    return HubFolder(Path(place).expanduser())


def parse_card(text: str, origin: str) -> Card:
    """A card from YAML; ConfigError names what is wrong."""
    try:
        # a few aliases of aliases stand for more text than any machine can hold
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
            raise ConfigError(f"{origin} holds a YAML alias (*name): write it out")
        data = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{origin}: not valid YAML ({getattr(error, 'problem', None) or error})") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{origin} must hold a card, it holds {type(data).__name__}")
    return build_config(Card, data, origin=origin)


def _of_hub(card: Card, place: str) -> Card:
    """The card as read from a hub: `hub:` means that hub, and a stranger's card names no file of this machine."""
    named = [f"hub:{place}" if source == "hub:" else source for source in card.sources]
    return card.model_copy(update={"sources": tuple(source for source in named if source.startswith(_FOREIGN))})


def _index_of(data: Any, origin: str) -> dict[str, Card]:
    if not isinstance(data, dict) or data.get("format") != FORMAT or not isinstance(data.get("cards"), list):
        raise InputError(f"{origin} is no index of a hub (format {FORMAT}): give a hub's folder or address")
    cards = [build_config(Card, item, origin=origin) for item in data["cards"]]
    return {card.name: card for card in cards}


def _check_name(name: str) -> None:
    if not CARD_NAME.fullmatch(name):
        raise InputError(f"'{name}' is no card's name: write NAME or NAME@VERSION in lower case")


class HubFolder:
    """A hub on this machine; what `riverrun hub serve` shows too."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.place = str(self.root)

    def cards(self) -> dict[str, Card]:
        path = self.root / "index.json"
        try:
            text = path.read_text(encoding="utf-8")
            return _index_of(json.loads(text), str(path))
        except FileNotFoundError:
            raise InputError(f"{self.root} is no hub (no index.json): publish something into it first") from None
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read ({error})") from None

    def card(self, name: str) -> Card:
        _check_name(name)
        path = self.root / "cards" / f"{name}.yaml"
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            known = [p.stem for p in (self.root / "cards").glob("*.yaml")]
            raise InputError(f"{self.root} has no card '{name}'.{nearest(name, known)}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path} cannot be read ({error})") from None
        return _of_hub(_named(parse_card(text, str(path)), name, str(path)), self.place)

    def blob(self, sha256: str) -> Path:
        return self.root / "blobs" / sha256

    def add(self, path: Path, entry: FileEntry, task: Task) -> None:
        target = self.blob(entry.sha256)
        if target.is_file() and target.stat().st_size == entry.size_bytes:
            task.advance(entry.size_bytes or 0)
            return
        with self.writable():
            with atomic_file(target, "wb") as handle, open(path, "rb") as source:
                shutil.copyfileobj(source, handle, _PIECE)
            if digest_file(target) != entry.sha256:
                target.unlink()
                raise IntegrityError(f"{path} changed while it was published: publish again")
        task.advance(entry.size_bytes or 0)

    def missing(self, card: Card) -> list[str]:
        """Paths whose files are not here in the card's size."""

        def there(entry: FileEntry) -> bool:
            blob = self.blob(entry.sha256)
            return bool(entry.sha256) and blob.is_file() and blob.stat().st_size == entry.size_bytes

        return [entry.path for entry in card.files if not there(entry)]

    def put(self, card: Card) -> None:
        if lacking := self.missing(card):
            raise InputError(f"card '{card.name}' names {len(lacking)} files that are not in the hub: {lacking[0]}")
        if not card.files or not card.version:
            raise InputError(f"card '{card.name}' names no {'version' if card.files else 'files'}: publish the folder")
        text = card_text(card)
        path = self.root / "cards" / f"{card.name}@{card.version}.yaml"
        with self.writable(), self._lock():
            if path.is_file() and path.read_text(encoding="utf-8") != text:
                raise InputError(
                    f"version {card.version} of '{card.name}' is published with other contents: give it a new version"
                )
            write_text(path, text)
            write_text(self.root / "cards" / f"{card.name}.yaml", text)
            self._write_index()

    def _write_index(self) -> None:
        found = sorted(p for p in (self.root / "cards").glob("*.yaml") if "@" not in p.name)
        cards = [parse_card(p.read_text(encoding="utf-8"), str(p)) for p in found]
        rows = [
            card.model_dump(mode="json", exclude_defaults=True, exclude={"files"}) | {"size_bytes": card.total_bytes}
            for card in cards
        ]
        write_json(self.root / "index.json", {"format": FORMAT, "cards": rows})

    @contextmanager
    def writable(self) -> Iterator[None]:
        """Turns an error of writing into one sentence."""
        try:
            yield
        except OSError as error:
            raise InputError(f"the hub {self.root} cannot be written ({error.strerror or error})") from None

    @contextmanager
    def _lock(self) -> Iterator[None]:
        self.root.mkdir(parents=True, exist_ok=True)
        with open(self.root / ".lock", "wb") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield


def _named(card: Card, name: str, origin: str) -> Card:
    wanted, _, version = name.partition("@")
    if card.name != wanted or (version and card.version != version):
        raise IntegrityError(f"{origin} holds the card of {card.name}@{card.version}, not of {name}")
    return card


class HubSite:
    """A hub behind HTTP: read by everybody, written with a token (RIVERRUN_HUB_TOKEN) where `hub serve` runs."""

    def __init__(self, place: str, patience: Patience, token: str = "") -> None:
        self.place, self.patience = place.rstrip("/"), patience
        require_safe(self.place)
        self.token = token or token_of("hub")

    def cards(self) -> dict[str, Card]:
        url = f"{self.place}/index.json"
        return _index_of(get_json(url, self.patience)[0], url)

    def card(self, name: str) -> Card:
        _check_name(name)
        url = f"{self.place}/cards/{quote(name)}.yaml"
        try:
            content, _ = get_bytes(url, self.patience)
        except SourceError as error:
            if "HTTP 404" not in str(error):
                raise
            known = self.cards()
            raise InputError(f"{self.place} has no card '{name}'.{nearest(name, known)}") from None
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError:
            raise InputError(f"{url} is not UTF-8 text: check the address of the hub") from None
        return _of_hub(_named(parse_card(text, url), name, url), self.place)

    def add(self, path: Path, entry: FileEntry, task: Task) -> None:
        url, size = f"{self.place}/blobs/{entry.sha256}", entry.size_bytes or 0
        state = self._ask("GET", f"{self.place}/uploads/{entry.sha256}?size={size}")
        have = int(state.get("received", 0))
        task.advance(have)
        with open(path, "rb") as handle:
            while not state.get("complete"):
                handle.seek(have)
                piece = handle.read(min(_PIECE, size - have))
                if len(piece) < min(_PIECE, size - have):
                    raise IntegrityError(f"{path} changed while it was published: publish again")
                end = f"{have}-{have + len(piece) - 1}" if piece else "*"
                state = self._ask("PUT", url, piece, **{"Content-Range": f"bytes {end}/{size}"})
                now = int(state.get("received", 0))
                if now < have or (now == have and piece):
                    raise SourceError(f"{url} takes no more than {now} of {size} bytes: publish again")
                task.advance(now - have)
                have = now

    def put(self, card: Card) -> None:
        url = f"{self.place}/cards/{quote(card.name)}.yaml"
        self._ask("PUT", url, card_text(card).encode(), **{"Content-Type": "application/yaml"})

    def _ask(self, method: str, url: str, body: bytes | None = None, **more: str) -> Mapping[str, Any]:
        headers = {"Authorization": f"Bearer {self.token}", **more} if self.token else more
        hint = "set RIVERRUN_HUB_TOKEN to a token of this hub; a static server takes nothing"
        content, _ = get_bytes(url, self.patience, method=method, headers=headers, body=body, hint=hint)
        try:
            answer = json.loads(content)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise SourceError(f"{self.place} does not answer like a hub that takes files: publish to a riverrun hub")
        return answer
