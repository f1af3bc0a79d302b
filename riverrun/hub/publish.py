"""Publishing a folder: to a hub's folder or address, to Hugging Face and to ModelScope through their own clients.

The folder holds card.yaml beside its files: name, kind, licence and languages are asked for, `files` and `version` are
found out here. Files travel first, the card last.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from riverrun.base.artifacts import digest_json
from riverrun.base.config import build_config, load_yaml
from riverrun.base.errors import InputError, RiverrunError
from riverrun.base.optional import require
from riverrun.base.progress import Progress
from riverrun.hub.card import Card, FileEntry
from riverrun.hub.compare import CARD_FILE, folder_entries
from riverrun.hub.hubs import open_hub
from riverrun.hub.remotes import endpoint_of, token_of
from riverrun.hub.spec import Spec, parse_spec

__all__ = ["publish", "read_folder"]


def read_folder(folder: Path) -> Card:
    """The card a folder would be published with. ConfigError or InputError says what it lacks."""
    path = folder / CARD_FILE
    data = load_yaml(path)
    for key, example in (("name", "my-model"), ("kind", "model"), ("licence", "apache-2.0"), ("languages", "[en, zh]")):
        if data.get(key) in (None, "", "unknown"):
            raise InputError(f"{path} names no {key}: add a line such as '{key}: {example}'")
    for key in ("files", "file_name", "sha256", "size_bytes"):
        if key in data:
            raise InputError(f"{path}: '{key}' is found out from the folder: leave it out")
    files = folder_entries(folder)
    if not files:
        raise InputError(f"{folder} holds no file beside {CARD_FILE}: put what is to be published there")
    found: dict[str, Any] = {"files": files, "sources": ("hub:", *(data.get("sources") or ()))}
    card = build_config(Card, data | found, origin=str(path))
    if card.version:
        return card
    rest = card.model_dump(mode="json", exclude={"version"})
    return card.model_copy(update={"version": digest_json(rest)[:12]})


def publish(folder: Path, target: str, progress: Progress | None = None, *, token: str = "") -> str:
    """Publish a folder to `target` (a hub's folder or address, hf:OWNER/NAME, modelscope:OWNER/NAME).

    `token` comes from the environment unless it is given. Returns where it can be found now.
    """
    progress = progress or Progress("quiet")
    card = read_folder(folder)
    scheme = target.partition(":")[0]
    if scheme in ("hf", "modelscope"):
        spec = parse_spec(target)
        if spec.member:
            raise InputError(f"'{target}' names a file: a whole folder is published to {scheme}:OWNER/NAME")
        given = token or token_of(scheme)
        if not given:
            name = "HF_TOKEN" if scheme == "hf" else "MODELSCOPE_API_TOKEN"
            raise InputError(f"publishing to {target} needs a token with the right to write: set {name}")
        return (_push_hf if scheme == "hf" else _push_modelscope)(folder, spec, card, given)
    hub = open_hub(target, token=token)
    sizes = {entry.sha256: entry for entry in card.files}
    total = sum(entry.size_bytes or 0 for entry in sizes.values())
    with progress.task(f"publish {card.name}", total=total, unit="bytes") as task:
        for entry in sizes.values():
            hub.add(folder / entry.path, entry, task)
    hub.put(card)
    return f"{card.name}@{card.version} in {hub.place}"


def _allowed(files: tuple[FileEntry, ...]) -> list[str]:
    """Patterns that fit exactly these files and the card: hidden files stay here."""
    escaped = [entry.path.replace("[", "[[]").replace("*", "[*]").replace("?", "[?]") for entry in files]
    return [*escaped, CARD_FILE]


def _pushed(client: str, target: str, push: Callable[[], object]) -> None:
    """Errors of a client become one sentence."""
    try:
        push()
    except RiverrunError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        raise InputError(f"{client} could not publish to {target} ({type(error).__name__}: {text})") from None


def _push_hf(folder: Path, spec: Spec, card: Card, token: str) -> str:
    module = require("huggingface_hub", extra="hub")
    endpoint, kind = endpoint_of("hf"), "model" if card.kind == "model" else "dataset"
    api = module.HfApi(endpoint=endpoint, token=token)

    def push() -> None:
        api.create_repo(spec.place, repo_type=kind, exist_ok=True)
        api.upload_folder(
            repo_id=spec.place,
            repo_type=kind,
            folder_path=folder,
            revision=spec.revision or None,
            allow_patterns=_allowed(card.files),
            commit_message=f"{card.name} {card.version}",
        )

    _pushed("huggingface_hub", spec.text, push)
    return f"{endpoint}/{'' if kind == 'model' else 'datasets/'}{spec.place}"


def _push_modelscope(folder: Path, spec: Spec, card: Card, token: str) -> str:
    module = require("modelscope_hub", extra="modelscope")
    endpoint, kind = endpoint_of("modelscope"), "model" if card.kind == "model" else "dataset"
    api = module.HubApi(token=token, endpoint=endpoint)

    def push() -> None:
        if not api.repo_exists(spec.place, kind):
            api.create_repo(spec.place, kind, license=card.licence)
        api.upload_folder(
            spec.place,
            kind,
            folder,
            revision=spec.revision or None,
            allow_patterns=_allowed(card.files),
            commit_message=f"{card.name} {card.version}",
            use_cache=False,
            disable_tqdm=True,
        )

    _pushed("modelscope_hub", spec.text, push)
    return f"{endpoint}/{kind}s/{spec.place}"
