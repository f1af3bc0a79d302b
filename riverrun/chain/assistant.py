"""The application's assistant: its system text, its two tools, and the agent made of them and a model.

One home for what training, evaluation, serving and chatting must share word for word.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from riverrun.agent.budget import Budget
from riverrun.agent.drafts import Drafts
from riverrun.agent.ground import Grounding
from riverrun.agent.loop import Agent
from riverrun.agent.tool import Tool
from riverrun.agent.tools.mentions import Mentions
from riverrun.agent.tools.search import SearchTool
from riverrun.agent.tools.sql import DatabaseTool
from riverrun.agent.tools.sql_server import ServerTool
from riverrun.agent.tools.values import mend_values
from riverrun.base.errors import nearest
from riverrun.base.protocols import LanguageModel
from riverrun.base.servers import Server
from riverrun.base.types import Document, ToolCall, ToolResult, ToolSpec
from riverrun.chain.spec import AgentSpec, AppSpec
from riverrun.data.names import chinese_words, other_words, split_name
from riverrun.data.schema import Schema, make_joiner, read_schema
from riverrun.data.shown import without_keys

__all__ = ["Assistant", "make_assistant", "system_text"]


def system_text(words: str, schema: str) -> str:
    """The spec's words and one line `Tables: books(id, title); orders(id, ordered)`.

    `schema` is one line a table. It stands at `{schema}`, or at the end when the words do not name any tables. Types
    and keys are left out: they would cost tokens in every request.
    """
    line = f"Tables: {'; '.join(schema.splitlines())}"
    if "{schema}" in words:
        return words.replace("{schema}", line)
    return words if "Tables:" in words else f"{words.rstrip()}\n{line}"


@dataclass(frozen=True)
class Assistant:
    """What the model is told and what it may do."""

    system: str
    tools: Mapping[str, Tool]
    prepare: Callable[[str], str] | None = None
    """What is done to a question before the model sees it: the values that it names are put behind it."""

    @property
    def specs(self) -> tuple[ToolSpec, ...]:
        return tuple(tool.spec for tool in self.tools.values())

    def execute(self, call: ToolCall) -> ToolResult:
        """Carry out one call; an unknown tool comes back as an error result, as refusals do."""
        tool = self.tools.get(call.name)
        if tool is None:
            text = f"there is no tool '{call.name}'.{nearest(call.name, self.tools)}"
            return ToolResult(call.id, call.name, text, True)
        result = tool.run(call.arguments)
        return ToolResult(call.id, call.name, result.content, result.is_error, result.data)

    def agent(self, model: LanguageModel, *, name: str, limits: AgentSpec, grounding: Grounding | None = None) -> Agent:
        return Agent(
            model,
            tuple(self.tools.values()),
            system=self.system,
            prepare=self.prepare,
            budget=Budget(steps=limits.steps, seconds=limits.seconds),
            drafts=Drafts(limits.drafts, limits.temperature),
            name=name,
            grounding=grounding,
        )


def make_assistant(
    spec: AppSpec, database: Path | Server, documents: list[Document], *, snapshot: Path | None = None
) -> Assistant:
    """The assistant over an SQLite file or a live server and the kept pages; without pages it has no search.

    Beside a server, keys and names are read from `snapshot`, its copy in the run.
    """
    limits = spec.database
    known = snapshot if isinstance(database, Server) else database
    schema = read_schema(known) if known is not None and (limits.complete_joins or limits.mentions) else None
    shown = schema.narrowed(limits.show, limits.deny_columns) if schema is not None else None
    mentions = make_mentions(known, shown) if known is not None and shown is not None and limits.mentions else None
    settings: dict[str, Any] = {
        "deny_columns": limits.deny_columns,
        "show": limits.show,
        "hide": _keys(shown) if shown is not None and limits.complete_joins else {},
        "rewrite": _rewrite(schema, shown, mentions) if schema and shown and limits.complete_joins else None,
        "row_limit": limits.row_limit,
        "seconds": limits.seconds,
    }
    shop = ServerTool(database, **settings) if isinstance(database, Server) else DatabaseTool(database, **settings)
    tools: list[Tool] = [shop]
    if documents:
        tools.append(SearchTool(documents, top_k=spec.search.top_k, characters=spec.search.characters))
    prepare = mentions.note if mentions is not None else None
    return Assistant(system_text(spec.system, shop.schema_text()), {tool.spec.name: tool for tool in tools}, prepare)


def _rewrite(schema: Schema, shown: Schema, mentions: Mentions | None) -> Callable[[str], str]:
    """What is done to a query: joins completed along keys that the prompt does not name, values as they are kept."""
    complete = make_joiner(schema, told=without_keys(shown)).complete
    if mentions is None:
        return complete
    return lambda sql: mend_values(complete(sql), mentions)


def _keys(schema: Schema) -> dict[str, list[str]]:
    """The columns that a prompt does not name because joins are completed along them."""
    kept = without_keys(schema)
    return {table.name: [c for c in table.by_name if c not in kept.get(table.name, ())] for table in schema.tables}


def make_mentions(database: Path, schema: Schema) -> Mentions:
    """The finder of what a question names, over the columns that are shown: names of rows first."""
    texts = {
        table.name: [
            column.name
            for column in sorted(table.columns, key=lambda column, table=table: column.name not in table.label)  # type: ignore[misc]
            if column.kind in ("text", "flag")
        ]
        for table in schema.tables
        if not table.view
    }
    pairs = [(table.name, *table.label) for table in schema.tables if len(table.label) == 2]
    numbers = [(t.name, c.name) for t in schema.tables for c in t.columns if c.is_number]
    nouns = [" ".join(split_name(name)) for t in schema.tables for name in (t.name, *t.by_name)]
    named = [(t.name, list(t.by_name)) for t in schema.tables]
    tables = [each for each, table in zip(named, schema.tables, strict=True) if not table.view]
    spoken = {(t.name, c.name): c.spoken for t in schema.tables for c in t.columns if c.spoken}
    codes = [(t.name, c.name, value, said) for t in schema.tables for c in t.columns for value, said in c.codes]
    return Mentions(
        database,
        texts,
        pairs=pairs,  # type: ignore[arg-type]
        numbers=numbers,
        nouns=nouns,
        synonyms=other_words(named),
        phrases=chinese_words(tables, spoken),
        codes=codes,
    )
