"""Where a model's chat templates come from: its folder, its GGUF file, or those that come with riverrun.

Built-in templates are the files beside this module in templates/; templates/sources.yaml says where each is published.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from riverrun.base.errors import InputError, IntegrityError, nearest

__all__ = ["ADDITIONAL", "builtin_template", "choose", "folder_templates", "gguf_templates", "names", "sources"]

ADDITIONAL = "additional_chat_templates"
"""Folder of the templates besides the default one (transformers, CHAT_TEMPLATE_DIR)."""
_FOLDER = Path(__file__).parent / "templates"
_NAME = re.compile(r"[\w.-]+")


@cache
def sources() -> dict[str, dict[str, Any]]:
    """What sources.yaml says of each built-in template: source, tokens, families."""
    import yaml

    return dict(yaml.safe_load((_FOLDER / "sources.yaml").read_text(encoding="utf-8")))


def names() -> list[str]:
    """The built-in templates."""
    return sorted(sources())


def builtin_template(name: str) -> str:
    """The source of a built-in template; InputError with the nearest names when there is none."""
    if name not in sources():
        raise InputError(f"there is no built-in chat template '{name}'.{nearest(name, names())}")
    return (_FOLDER / f"{name}.jinja").read_text(encoding="utf-8")


def choose(own: Mapping[str, str], wanted: str, family: Any, place: Path) -> dict[str, str]:
    """The wanted built-in template, else the model's own, else that of its family; InputError when there is none."""
    if wanted:
        return {"default": builtin_template(wanted)}
    if own:
        return dict(own)
    if found := next((name for name, card in sources().items() if family in card.get("families", ())), None):
        return {"default": builtin_template(found)}
    raise InputError(
        f"{place} has no chat template: use an instruction-tuned model, or name one of the built-in templates: "
        f"{', '.join(names())}"
    )


def folder_templates(folder: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """The templates of a model folder by name; `settings` is what tokenizer_config.json holds."""
    found: dict[str, str] = {}
    given = settings.get("chat_template")
    if isinstance(given, str):
        found["default"] = given
    elif isinstance(given, list):
        for item in given:
            if not isinstance(item, Mapping) or not all(isinstance(item.get(k), str) for k in ("name", "template")):
                raise IntegrityError(f"{folder / 'tokenizer_config.json'}: a chat template needs a name and a template")
            found[item["name"]] = item["template"]
    file = folder / "chat_template.jinja"
    if file.is_file():
        found["default"] = _read(file)
    for path in sorted((folder / ADDITIONAL).glob("*.jinja")):
        found[path.stem] = _read(path)
    return found


def gguf_templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    """The templates of a GGUF file by name: `tokenizer.chat_template` and `tokenizer.chat_template.NAME`."""
    key = "tokenizer.chat_template"
    found = {"default": metadata[key]} if metadata.get(key) else {}
    found |= {name[len(key) + 1 :]: text for name, text in metadata.items() if name.startswith(f"{key}.")}
    for name, text in found.items():
        if not isinstance(text, str) or not _NAME.fullmatch(name):
            raise IntegrityError(f"GGUF key '{key}' ({name}) is not a text: convert the model again")
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise IntegrityError(f"{path} is not UTF-8: {error}") from None
