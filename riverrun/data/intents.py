"""What customers ask, as a file: intents with slots, SQL or a page, answers and phrasings; read and checked here.

A `{slot}` stands for a value in phrasings, SQL and answers. In SQL a slot becomes a literal, so it stands bare, never
inside quotes. Sampling of questions is in `questions`, the making of training rows in `conversations`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import field_validator

from riverrun.base.config import Config, build_config, load_yaml
from riverrun.base.errors import ConfigError, InputError, nearest

__all__ = [
    "SPLITS",
    "SQL_KINDS",
    "Intent",
    "Kind",
    "Phrasings",
    "Slot",
    "Split",
    "fill",
    "load_intents",
    "placeholders",
]

Kind = Literal["lookup", "filter", "count", "aggregate", "join", "none_found", "page", "chat"]
Split = Literal["train", "dev", "sealed"]
KINDS: tuple[str, ...] = get_args(Kind)
SPLITS: tuple[Split, ...] = get_args(Split)
SQL_KINDS = frozenset(KINDS) - {"page", "chat"}
_PLACEHOLDER = re.compile(r"\{([A-Za-z_]\w*)\}")


class Slot(Config):
    """Where a slot's values come from: exactly one of a one-column query, a list, or an inclusive range of integers.

    `split: false` lets every split use all values (a limit of 3, 4 or 5 is no entity).
    """

    query: str | None = None
    values: tuple[int | float | str, ...] | None = None
    range: tuple[int, int] | None = None
    split: bool = True

    @field_validator("values", mode="before")
    @classmethod
    def _as_written(cls, values: Any) -> Any:
        """YAML reads 2024-05-01 as a date and `yes` as true; the database holds neither."""
        if not isinstance(values, list):
            return values
        if any(isinstance(value, bool) for value in values):
            raise ValueError("a yes/no value must stand in quotes")
        return [value.isoformat() if isinstance(value, date) else value for value in values]


class Phrasings(Config):
    train: tuple[str, ...] = ()
    dev: tuple[str, ...] = ()
    sealed: tuple[str, ...] = ()

    def of(self, split: Split) -> tuple[str, ...]:
        return {"train": self.train, "dev": self.dev, "sealed": self.sealed}[split]


class Intent(Config):
    """One thing that is asked: answered from the database (`sql`), a document (`page`) or by itself (`answers`)."""

    name: str
    kind: Kind
    phrasings: Phrasings
    slots: Mapping[str, Slot] = {}
    sql: str | None = None
    page: str | None = None
    answer: str = ""
    answer_many: str = ""
    answer_none: str = ""
    answers: tuple[str, ...] = ()


def placeholders(template: str) -> list[str]:
    """Names of the `{slot}` marks, in order of appearance."""
    return _PLACEHOLDER.findall(template)


def fill(template: str, values: Mapping[str, str], *, where: str) -> str:
    """Put values for `{names}` in one pass: what a value holds is never read as a mark.

    ConfigError naming `where` on a name without a value.
    """

    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in values:
            raise ConfigError(f"{where}: '{{{name}}}' stands for nothing known.{nearest(name, values)}")
        return values[name]

    return _PLACEHOLDER.sub(value, template)


def load_intents(path: Path) -> list[Intent]:
    """Read and check an intents file. ConfigError names the file, the intent and the key."""
    data = load_yaml(Path(path))
    if unknown := sorted(set(data) - {"intents"}):
        raise ConfigError(f"{path}: unknown key '{unknown[0]}'.{nearest(unknown[0], ['intents'])}")
    items = data.get("intents")
    if not isinstance(items, list) or not items:
        raise ConfigError(f"{path}: key 'intents' must be a list with at least one intent")
    intents: list[Intent] = []
    for index, item in enumerate(items):
        if not isinstance(item, dict):
            raise ConfigError(f"{path}: intent {index + 1} must be a mapping, it is {type(item).__name__}")
        origin = f"{path}: intent '{item.get('name', index + 1)}'"
        intent = build_config(Intent, item, origin=origin)
        if any(intent.name == other.name for other in intents):
            raise ConfigError(f"{origin}: key 'name' is used by another intent, rename one of the two")
        _check(intent, origin)
        intents.append(intent)
    _check_phrasings_apart(intents, path)
    return intents


def _check(intent: Intent, origin: str) -> None:
    """Everything about one intent that types do not say."""
    if not any(intent.phrasings.of(split) for split in SPLITS):
        raise ConfigError(f"{origin}: key 'phrasings' holds no sentence")
    for key, text in _templates(intent):
        if "{" in (rest := _PLACEHOLDER.sub("", text)) or "}" in rest:
            raise ConfigError(f"{origin}: '{key}' = {text!r} holds a brace that is no {{slot}}")
    if intent.kind in SQL_KINDS:
        _check_sql_kind(intent, origin)
        return
    if intent.sql is not None or intent.slots:
        key = "sql" if intent.sql is not None else "slots"
        raise ConfigError(f"{origin}: key '{key}' has no use with kind '{intent.kind}', remove it")
    if intent.kind == "page" and not (intent.page and intent.answer):
        raise ConfigError(f"{origin}: key '{'answer' if intent.page else 'page'}' is required for kind 'page'")
    if intent.kind == "chat" and not intent.answers:
        raise ConfigError(f"{origin}: key 'answers' is required for kind 'chat'")


def _check_sql_kind(intent: Intent, origin: str) -> None:
    if not intent.sql:
        raise ConfigError(f"{origin}: key 'sql' is required for kind '{intent.kind}'")
    answer_key = "answer_none" if intent.kind == "none_found" else "answer"
    if not (intent.answer_none if intent.kind == "none_found" else intent.answer):
        raise ConfigError(f"{origin}: key '{answer_key}' is required for kind '{intent.kind}'")
    for name, slot in intent.slots.items():
        _check_slot(slot, f"{origin}: slot '{name}'")
    needed = set(placeholders(intent.sql))
    if unknown := sorted(needed - set(intent.slots)):
        raise ConfigError(f"{origin}: 'sql' uses unknown slot '{unknown[0]}'.{nearest(unknown[0], intent.slots)}")
    if unused := sorted(set(intent.slots) - needed):
        raise ConfigError(f"{origin}: slot '{unused[0]}' is not used in 'sql', use it or remove it")
    for match in _PLACEHOLDER.finditer(intent.sql):
        before = intent.sql[: match.start()]
        if before.count("'") % 2 or before.count('"') % 2:
            raise ConfigError(
                f"{origin}: slot '{match.group(1)}' stands inside quotes in 'sql'; a slot becomes a quoted literal, "
                f"so write '%' || {match.group()} || '%' instead of '%{match.group()}%'"
            )
    for split in SPLITS:
        for text in intent.phrasings.of(split):
            if set(placeholders(text)) != needed:
                odd = sorted(set(placeholders(text)) ^ needed)[0]
                wrong = "does not name" if odd in needed else "uses unknown"
                raise ConfigError(f"{origin}: 'phrasings.{split}' = {text!r} {wrong} slot '{odd}'")


def _check_slot(slot: Slot, origin: str) -> None:
    given = [key for key in ("query", "values", "range") if getattr(slot, key) is not None]
    if len(given) != 1:
        raise ConfigError(f"{origin}: give exactly one of query, values, range; given: {', '.join(given) or 'none'}")
    if slot.values is not None and not slot.values:
        raise ConfigError(f"{origin}: 'values' is empty")
    if slot.range is not None and slot.range[0] > slot.range[1]:
        raise ConfigError(f"{origin}: 'range' = {list(slot.range)} starts above its end")


def _templates(intent: Intent) -> Iterator[tuple[str, str]]:
    yield from ((f"phrasings.{split}", text) for split in SPLITS for text in intent.phrasings.of(split))
    for key in ("sql", "answer", "answer_many", "answer_none"):
        yield key, getattr(intent, key) or ""


def _check_phrasings_apart(intents: list[Intent], path: Path) -> None:
    """A sentence that stands in two splits, in whatever intent, would put a test question into training."""
    seen: dict[str, tuple[Split, str]] = {}
    for intent in intents:
        for split in SPLITS:
            for text in intent.phrasings.of(split):
                key = re.sub(r"\W+", " ", _PLACEHOLDER.sub(r"\1", text)).strip().casefold()
                first = seen.setdefault(key, (split, intent.name))
                if first[0] != split:
                    raise InputError(
                        f"{path}: intent '{intent.name}': phrasing {text!r} stands in '{split}' and, for intent "
                        f"'{first[1]}', in '{first[0]}': reword one of the two"
                    )
