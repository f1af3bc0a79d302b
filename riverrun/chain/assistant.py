"""The application's assistant: its system text, its two tools, and the agent made of them and a model.

One home for what training, evaluation, serving and chatting must share word for word.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from riverrun.agent.budget import Budget
from riverrun.agent.loop import Agent
from riverrun.agent.tool import Tool
from riverrun.agent.tools.search import SearchTool
from riverrun.agent.tools.sql import DatabaseTool
from riverrun.agent.tools.sql_server import ServerTool
from riverrun.base.errors import nearest
from riverrun.base.protocols import LanguageModel
from riverrun.base.servers import Server
from riverrun.base.types import Document, ToolCall, ToolResult, ToolSpec
from riverrun.chain.spec import AppSpec

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

    def agent(self, model: LanguageModel, *, name: str, steps: int, seconds: float) -> Agent:
        return Agent(
            model,
            tuple(self.tools.values()),
            system=self.system,
            budget=Budget(steps=steps, seconds=seconds),
            name=name,
        )


def make_assistant(spec: AppSpec, database: Path | Server, documents: list[Document]) -> Assistant:
    """The assistant over an SQLite file or a live server and the kept pages; without pages it has no search."""
    limits = spec.database
    settings: dict[str, Any] = {
        "deny_columns": limits.deny_columns,
        "show": limits.show,
        "row_limit": limits.row_limit,
        "seconds": limits.seconds,
    }
    shop = ServerTool(database, **settings) if isinstance(database, Server) else DatabaseTool(database, **settings)
    tools: list[Tool] = [shop]
    if documents:
        tools.append(SearchTool(documents, top_k=spec.search.top_k, characters=spec.search.characters))
    return Assistant(system_text(spec.system, shop.schema_text()), {tool.spec.name: tool for tool in tools})
