"""Writes the pages that are made from the code: cli, app-yaml, serve-fields, summary-json. `make docs` runs it.

tests/test_docs.py compares what stands there with what the code says now.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import typer
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

import riverrun.chain.summary
from riverrun.chain.spec import AppSpec
from riverrun.cli.main import app
from riverrun.serve.http.more import EmbeddingBody
from riverrun.serve.http.schema import REFUSED, ChatBody, CompletionBody, StrictBody

__all__ = ["PAGES", "ROUTES", "field_rows", "main"]

HERE = Path(__file__).parent
NOTE = "<!-- Made from the code by docs/generate.py (`make docs`): change the code, not this page. -->"


def cli_page() -> str:
    """Every command with its arguments and options, as its own help says."""
    lines = ["# The command line", NOTE, "", inspect.cleandoc(_help_of_main())]
    lines += ["", "`--help` after any command prints this."]
    for path, command in _commands(typer.main.get_command(app), "riverrun"):
        usage = [path, *(_usage(item) for item in command.params if item.name != "help")]
        lines += ["", f"## {path}", "", str(command.help), "", "```text", " ".join(usage), "```"]
        rows = [_parameter(item) for item in command.params if item.name != "help"]
        if rows:
            lines += ["", "| | | default |", "|---|---|---|", *rows]
    return "\n".join(lines) + "\n"


def _help_of_main() -> str:
    """The module's own words on exit codes and settings."""
    import riverrun.cli.main as module

    return str(module.__doc__).partition("\n")[2]


def _commands(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    if not hasattr(command, "commands"):
        yield path, command
        return
    for name, child in command.commands.items():
        yield from _commands(child, f"{path} {name}")


def _usage(item: Any) -> str:
    name = item.name.upper() + (" ..." if item.nargs == -1 else "")
    text = (
        name
        if item.param_type_name == "argument"
        else item.opts[0] + ("" if item.is_flag else f" {str(item.metavar or item.name).upper()}")
    )
    return text if item.required else f"[{text}]"


def _parameter(item: Any) -> str:
    name = item.name.upper() if item.param_type_name == "argument" else ", ".join(f"`{name}`" for name in item.opts)
    bare = item.required or item.default is None or item.default is False or item.default in ("", ())
    shown = "" if bare else f"`{item.default}`"
    return f"| {name} | {item.help or ''} | {shown} |"


def spec_page() -> str:
    """Every key that app.yaml may hold, from the models that read it."""
    lines = ["# Every key of app.yaml", NOTE, "", "Any key can be changed for one run without editing the file:"]
    lines += ["", "```sh", "riverrun run recipes/bookshop finetune.epochs=1 gates.success=0.6", "```"]
    lines += ["", "An unknown key is an error that names the nearest ones. Paths are relative to the recipe's folder."]
    lines += _section(AppSpec, "")
    return "\n".join(lines) + "\n"


def _section(model: type[BaseModel], prefix: str) -> list[str]:
    lines = ["", f"## {prefix or 'the top'}", "", _first_line(model), "", "| key | meaning | default |"]
    lines.append("|---|---|---|")
    texts = {name: text for base in reversed(model.__mro__) for name, text in _attribute_texts(base).items()}
    sections = []
    for name, field in model.model_fields.items():
        if (inner := _inner(field.annotation)) is not None:
            sections += _section(inner, f"{prefix}.{name}".strip("."))
            continue
        if (entry := _entry(field.annotation)) is not None:
            sections += _section(entry, f"{prefix}.{name}, one entry".strip("."))
        meaning = field.description or texts.get(name, "")
        choices = [f"`{value}`" for value in getattr(field.annotation, "__args__", ()) if isinstance(value, str)]
        words = ". ".join(part for part in (" or ".join(choices), " ".join(meaning.split())) if part)
        lines.append(f"| `{name}` | {words} | {_default(field)} |")
    return lines + sections


def _inner(annotation: Any) -> type[BaseModel] | None:
    """The model of a section, also of one that may be left out."""
    for part in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part
    return None


def _entry(annotation: Any) -> type[BaseModel] | None:
    """The model that an entry of a list may be."""
    found = (_inner(part) for part in getattr(annotation, "__args__", ()))
    return next((model for model in found if model is not None), None)


def _first_line(model: type[BaseModel]) -> str:
    return str(inspect.getdoc(model)).splitlines()[0]


def _attribute_texts(model: type) -> dict[str, str]:
    """The strings that stand below a class's attributes."""
    if not issubclass(model, BaseModel) or model is BaseModel:
        return {}
    body = ast.parse(textwrap.dedent(inspect.getsource(model))).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for before, after in zip(body.body, body.body[1:], strict=False):
        if isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name) and isinstance(after, ast.Expr):
            found[before.target.id] = str(ast.literal_eval(after.value))
    return found


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "required" if field.is_required() else ""
    if field.default is None:
        return "none"
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    value = str(value).lower() if isinstance(value, bool) else value
    return "" if value in ("", []) else f"`{value}`".replace("'", "")


def summary_page() -> str:
    """The names of summary.json, from the module that writes it."""
    title, _, rest = inspect.cleandoc(str(riverrun.chain.summary.__doc__)).partition("\n")
    rest = rest.replace("<", "&lt;").replace(">", "&gt;")
    return f"# summary.json\n{NOTE}\n\n{title.partition(': ')[2].capitalize()}\n{rest}\n"


ROUTES: dict[str, tuple[str, type[StrictBody]]] = {
    "chat": ("/v1/chat/completions", ChatBody),
    "completions": ("/v1/completions", CompletionBody),
    "embeddings": ("/v1/embeddings", EmbeddingBody),
}


@dataclass(frozen=True)
class FieldRow:
    """What becomes of one field of a request: here, and at each peer with the number of its source."""

    name: str
    openai: bool
    ours: str
    instead: str
    peers: tuple[tuple[str, int], ...]


@cache
def _field_data() -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load((HERE / "data" / "serve_fields.yaml").read_text(encoding="utf-8"))
    return data


def _groups(peer: dict[str, Any], route: str) -> list[dict[str, Any]]:
    """The groups of a peer's fields; a route that it does not offer is one group without fields."""
    known = peer[route]
    return [{"status": "no route", "source": known["absent"]}] if isinstance(known, dict) else [*known, peer["unknown"]]


@cache
def _sources() -> dict[tuple[str, str], int]:
    """Each place that the peers' columns rest on, with its note -> its number on the page."""
    places = (
        _place(peer, group) for route in ROUTES for peer in _field_data()["peers"] for group in _groups(peer, route)
    )
    return {place: number for number, place in enumerate(dict.fromkeys(places), 1)}


def _place(peer: dict[str, Any], group: dict[str, Any]) -> tuple[str, str]:
    where = f"{peer['repository']}@{str(group.get('commit', peer['commit']))[:10]} {group['source']}"
    return where, group.get("note", "")


def field_rows(route: str) -> list[FieldRow]:
    """Every field that OpenAI's reference, we or a peer name for a route."""
    data, fields = _field_data(), ROUTES[route][1].model_fields
    named = {name for peer in data["peers"] for group in _groups(peer, route) for name in group.get("fields", ())}
    names = named | set(fields) | set(data["openai"][route]) | (set() if route == "embeddings" else set(REFUSED))
    rows = []
    for name in sorted(names - ({"dimensions"} if route != "embeddings" else set())):
        found = [
            next((g for g in _groups(p, route) if name in g.get("fields", ())), _groups(p, route)[-1])
            for p in data["peers"]
        ]
        peers = tuple((g["status"], _sources()[_place(p, g)]) for p, g in zip(data["peers"], found, strict=True))
        ours = "honoured" if name in fields else "refused"
        instead = "" if name in fields else REFUSED.get(name, ((), ""))[1]
        rows.append(FieldRow(name, name in data["openai"][route], ours, instead, peers))
    return rows


def _count(rows: Sequence[FieldRow], column: Sequence[str], status: str) -> str:
    """How many fields have this status, and how many of OpenAI's."""
    found = [row.openai for row, each in zip(rows, column, strict=True) if each == status]
    return f"{len(found)} ({sum(found)})"


def fields_page() -> str:
    """What this server and others do with every field that one of them knows."""
    data = _field_data()
    names = ["riverrun", *(peer["name"] for peer in data["peers"])]
    lines = ["# Every field of a request, here and elsewhere", NOTE, ""]
    lines += [
        "`honoured`: it does what it says. `refused`: status 400, and the message names the field. `ignored`: it is",
        "accepted and changes nothing. `no route`: the route answers 400 to everything.",
        "",
        "Our column is computed from the models that read a request, and `tests/serve/http/test_http_field_table.py`",
        "sends each of its cells to a server; a refused field is accepted where it is null or has the value that asks",
        "for nothing. The other columns were read in the sources, as `docs/data/serve_fields.yaml` says; their numbers",
        "lead to the list below. Files of vLLM and of the llama.cpp server are single stored versions: they may be a",
        "little ahead of or beside a release.",
    ]
    for route, (path, _) in ROUTES.items():
        rows = field_rows(route)
        lines += ["", f"## POST {path}", "", f"| | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
        columns = [[row.ours for row in rows]]
        columns += [[row.peers[number][0] for row in rows] for number in range(len(data["peers"]))]
        for status in ("honoured", "refused", "ignored", "no route"):
            cells = [_count(rows, column, status) for column in columns]
            if any(cell != "0 (0)" for cell in cells):
                lines.append(f"| {status} | {' | '.join(cells)} |")
        lines += ["", "In brackets: of OpenAI's fields alone.", ""]
        lines += [f"| field | OpenAI | {' | '.join(names)} | instead, here |", "|---|---|" + "---|" * (len(names) + 1)]
        for row in rows:
            cells = [row.ours, *(f"{'**ignored**' if s == 'ignored' else s} {n}" for s, n in row.peers)]
            lines.append(f"| `{row.name}` | {'yes' if row.openai else ''} | {' | '.join(cells)} | {row.instead} |")
    lines += [
        "",
        "## Sources",
        "",
        f"OpenAI: {data['openai']['source']}.",
        "",
        "| | file and symbol | note |",
        "|---|---|---|",
    ]
    lines += [f"| {number} | {where} | {note} |" for (where, note), number in _sources().items()]
    return "\n".join(lines) + "\n"


PAGES = {"cli.md": cli_page, "app-yaml.md": spec_page, "serve-fields.md": fields_page, "summary-json.md": summary_page}


def main() -> None:
    """Write the pages anew."""
    for name, make in PAGES.items():
        (HERE / name).write_text(make(), encoding="utf-8")


if __name__ == "__main__":
    main()
