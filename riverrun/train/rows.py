"""Files of examples to token rows."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from riverrun.base.errors import InputError
from riverrun.base.types import Message, ToolSpec
from riverrun.data.packing import Group
from riverrun.data.tokens import EncodedRows, TokenRow, encode_rows
from riverrun.models.load import Checkpoint
from riverrun.train.config import FinetuneConfig
from riverrun.train.objectives.rewards import Problem
from riverrun.train.recipe import SourceConfig, TrainConfig
from riverrun.wire.codec import get_codec

__all__ = ["LoadedRows", "encode", "load_rows", "read_rows"]

Example = tuple[str, tuple[Message, ...] | str, tuple[ToolSpec, ...]]
UNBOUNDED = 1 << 40


def read_rows(path: Path) -> Iterator[Example]:
    """(id, messages, tools) of a JSON-lines file in the OpenAI form, or (id, text, ()) of lines {"text": ...}.

    InputError names file and line.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist: give a JSON-lines file of conversations")
    with open(path, "rb") as handle:
        for number, line in enumerate(handle, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8"))
                if isinstance(row.get("text"), str):
                    yield str(row.get("id", number)), row["text"], ()
                    continue
                messages = tuple(Message.from_openai(message) for message in row["messages"])
                tools = tuple(ToolSpec.from_openai(tool) for tool in row.get("tools") or ())
            except InputError as error:
                raise type(error)(f"{path}, line {number}: {error}") from None
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise InputError(f"{path}, line {number}: not a conversation ({error!r})") from None
            yield str(row.get("id", number)), messages, tools


def encode(path: Path, opened: Checkpoint, config: FinetuneConfig) -> EncodedRows:
    """All rows as tokens; InputError when none is left."""
    encoded = encode_rows(
        read_rows(path),
        tokenizer=opened.tokenizer,
        template=opened.template,
        codec=get_codec(config.codec),
        max_tokens=min(config.max_tokens, opened.config.max_position_embeddings, config.micro_tokens),
    )
    if not encoded.rows:
        raise InputError(f"{path} has no row to learn from: {_reason(encoded.dropped)}")
    return encoded


def _reason(dropped: list[tuple[str, str]]) -> str:
    return dropped[0][1] if dropped else "the file is empty"


@dataclass(frozen=True, slots=True)
class LoadedRows:
    """`train` as an epoch sees it, `validation` by name, and every row left out with its reason.

    Objectives that learn from groups or problems (`answers`) have those instead of rows.
    """

    train: list[TokenRow]
    validation: dict[str, list[TokenRow]]
    dropped: list[tuple[str, str]]
    groups: list[Group] = field(default_factory=list)
    held_groups: dict[str, list[Group]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    held_problems: dict[str, list[Problem]] = field(default_factory=dict)


def load_rows(config: TrainConfig, opened: Checkpoint, *, micro_tokens: int) -> LoadedRows:
    """All rows of a recipe as tokens; InputError when a source has none."""
    dropped: list[tuple[str, str]] = []
    train: list[TokenRow] = []
    for index, source in enumerate(config.data.train):
        rows = _source(source, config, opened, micro_tokens, dropped)
        train += _weighted(rows, source.weight, f"{config.run.seed}/{index}")
    validation: dict[str, list[TokenRow]] = {}
    for source in config.data.validation:
        if source.title in validation:
            raise InputError(f"two validation sources are called '{source.title}': give one a name")
        validation[source.title] = _source(source, config, opened, micro_tokens, dropped)
    return LoadedRows(train, validation, dropped)


def _source(
    source: SourceConfig, config: TrainConfig, opened: Checkpoint, micro_tokens: int, dropped: list[tuple[str, str]]
) -> list[TokenRow]:
    encoded = encode_rows(
        _of_format(source),
        tokenizer=opened.tokenizer,
        template=opened.template,
        codec=get_codec(config.data.codec),
        max_tokens=UNBOUNDED,
    )
    out, mine = [], list(encoded.dropped)
    limit = min(config.data.max_tokens, opened.config.longest or UNBOUNDED, micro_tokens)
    for row in encoded.rows:
        if len(row.ids) > limit:
            told = f"{len(row.ids)} tokens, the limit is {limit}"
            if config.data.overlong == "refuse":
                raise InputError(
                    f"{source.path}: row '{row.id}' has {told}: raise data.max_tokens or say data.overlong"
                )
            cut = replace(row, ids=row.ids[:limit], learned=row.learned[:limit])
            if config.data.overlong == "drop" or not cut.label_tokens:
                mine.append((row.id, told))
                continue
            row = cut
        out.append(replace(row, learned=(True,) * len(row.ids)) if config.objective.name == "pretrain" else row)
    dropped += [(f"{source.path.name}:{row_id}", reason) for row_id, reason in mine]
    if not out:
        raise InputError(f"{source.path} has no row to learn from: {_reason(mine)}")
    return out


def _of_format(source: SourceConfig) -> Iterable[Example]:
    for row_id, said, tools in read_rows(source.path):
        if source.format == "auto" or (source.format == "text") == isinstance(said, str):
            yield row_id, said, tools
        else:
            found = "text" if isinstance(said, str) else "openai"
            raise InputError(f"{source.path}: row '{row_id}' is of format {found}, the recipe says {source.format}")


def _weighted(rows: list[TokenRow], weight: float, key: str) -> list[TokenRow]:
    """Every row `weight` times; of the broken part a seeded choice."""
    whole, rest = divmod(weight, 1.0)
    chosen = random.Random(key).sample(range(len(rows)), round(rest * len(rows)))
    return rows * int(whole) + [rows[place] for place in sorted(chosen)]
