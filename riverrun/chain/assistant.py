"""The application's assistant: its system text, its two tools, and the agent made of them and a model.

One home for what training, evaluation, serving and chatting must share word for word.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from riverrun.agent.loop import Agent
from riverrun.agent.budget import Budget
from riverrun.agent.tool import Tool
from riverrun.agent.tools.search import SearchTool
from riverrun.agent.tools.sql import DatabaseTool
from riverrun.base.errors import ToolError, nearest
from riverrun.base.protocols import LanguageModel
from riverrun.base.types import Document, ToolCall, ToolResult, ToolSpec
from riverrun.chain.schema_text import system_text
from riverrun.chain.spec import AppSpec
from riverrun.chain.stage import read_jsonl

__all__ = ["Assistant", "make_assistant", "read_documents"]


def read_documents(path: Path) -> list[Document]:
    """The kept pages of the data stage."""
    return [
        Document(row["id"], row["text"], row.get("source", ""), row.get("metadata") or {}) for row in read_jsonl(path)
    ]


@dataclass(frozen=True)
class Assistant:
    """What the model is told and what it may do."""

    system: str
    tools: Mapping[str, Tool]

    @property
    def specs(self) -> tuple[ToolSpec, ...]:
        return tuple(tool.spec for tool in self.tools.values())

    def execute(self, call: ToolCall) -> ToolResult:
        """Carry out one call; an unknown tool or a refusal comes back as an error result."""
        tool = self.tools.get(call.name)
        if tool is None:
            text = f"there is no tool '{call.name}'.{nearest(call.name, self.tools)}"
            return ToolResult(call.id, call.name, text, True)
        try:
            result = tool.run(call.arguments)
        except ToolError as error:
            return ToolResult(call.id, call.name, str(error), True)
        return ToolResult(call.id, call.name, result.content, result.is_error, result.data)

    def agent(self, model: LanguageModel, *, name: str, steps: int, seconds: float) -> Agent:
        return Agent(
            model, tuple(self.tools.values()), system=self.system, budget=Budget(steps=steps, seconds=seconds), name=name
        )


def make_assistant(spec: AppSpec, database: Path, documents: list[Document]) -> Assistant:
    """The assistant over a database and the kept pages."""
    shop: Any = spec.database
    tools: tuple[Tool, ...] = (
        DatabaseTool(database, deny_columns=shop.deny_columns, row_limit=shop.row_limit, seconds=shop.seconds),
        SearchTool(documents, top_k=spec.search.top_k, characters=spec.search.characters),
    )
    return Assistant(
        system_text(spec.system, database, shop.deny_columns), {tool.spec.name: tool for tool in tools}
    )
