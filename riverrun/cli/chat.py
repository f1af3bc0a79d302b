"""`riverrun chat`: a line in, a streamed answer out; an agent's tool calls are shown as they happen.

A question that fails is reported and the talk goes on. When standard input is a pipe, no prompt is printed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from riverrun.base.errors import CapacityError, InputError, RiverrunError, ToolError
from riverrun.base.protocols import LanguageModel, Request
from riverrun.base.types import Message, SamplingParams
from riverrun.chain.words import word

__all__ = ["chat_command", "converse"]

HELP = "/new forgets the talk so far, /quit ends it"


def chat_command(
    target: str,
    url: str,
    model: str,
    api_key: str,
    system: str,
    max_tokens: int,
    temperature: float,
    database: str = "",
) -> None:
    if bool(target) == bool(url):
        raise InputError("give either a run folder or model, or --url: riverrun chat runs/bookshop")
    if url and database:
        raise InputError("--database needs a run folder, --url is a server: leave one of them out")
    params = SamplingParams(max_tokens=max_tokens, temperature=temperature)
    with ExitStack() as stack:
        if url:
            from riverrun.serve.client import RemoteModel

            chosen: LanguageModel = stack.enter_context(
                RemoteModel(url, model or _first(url, api_key), api_key=api_key)
            )
        else:
            from riverrun.cli.target import open_target

            chosen = stack.enter_context(open_target(target, database=database)).pick(model)
        converse(chosen, params, system)


def _first(url: str, api_key: str) -> str:
    """The id to talk to when none is given: the server's first agent, else its first model."""
    import httpx

    address = url.rstrip("/") if url.rstrip("/").endswith("/v1") else f"{url.rstrip('/')}/v1"
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        answer = httpx.get(f"{address}/models", headers=headers, timeout=30)
        if answer.status_code != 200:
            raise ValueError(f"status {answer.status_code}")
        ids = [str(card["id"]) for card in answer.json()["data"]]
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{address}/models lists no models ({error}): check the address and --api-key, or give --model"
        ) from None
    if not ids:
        raise InputError(f"{address} serves no model: start it with one")
    return next((name for name in ids if name.endswith("-agent")), ids[0])


def converse(model: LanguageModel, params: SamplingParams, system: str = "") -> None:
    """Read questions until the input ends or /quit; answers go to standard output."""
    terminal = sys.stdin.isatty()
    start = (Message.of("system", system),) if system else ()
    talk: tuple[Message, ...] = ()
    if terminal:
        print(f"{model.info.name}: {HELP}")
    while True:
        try:
            line = (input("> ") if terminal else input()).strip()
        except EOFError:
            return
        if not line:
            continue
        if line in ("/quit", "/exit"):
            return
        if line == "/new":
            talk = ()
            continue
        if line.startswith("/"):
            print(f"{line.split()[0]} is no command here: {HELP}", file=sys.stderr)
            continue
        asked = (*talk, Message.of("user", line))
        try:
            answer = _stream(model, Request(messages=(*start, *asked), params=params))
        except (CapacityError, ToolError) as error:
            print(f"\n{word('error')}: {error}", file=sys.stderr)
            talk = ()
            continue
        except RiverrunError:
            print()
            raise
        talk = (*asked, Message.of("assistant", answer))


def _stream(model: LanguageModel, request: Request) -> str:
    """Print the answer as it comes; returns its text."""
    pieces: list[str] = []
    for delta in model.stream(request):
        if delta.step is not None:
            print(_step(delta.step), flush=True)
        for call in delta.tool_calls:
            print(f"  [{call.name} {json.dumps(dict(call.arguments), ensure_ascii=False)}]", flush=True)
        if delta.text:
            pieces.append(delta.text)
            print(delta.text, end="", flush=True)
    print(flush=True)
    return "".join(pieces)


def _step(step: Mapping[str, Any]) -> str:
    """One tool call and what it gave, indented, in a few lines."""
    arguments = ", ".join(f"{key}={value}" for key, value in dict(step.get("arguments") or {}).items())
    content = str(step.get("content", "")).strip().splitlines()
    shown = "\n".join(f"    {line}" for line in content[:4])
    more = f"\n    ... {len(content) - 4} more lines" if len(content) > 4 else ""
    mark = " (error)" if step.get("is_error") else ""
    return f"  [{step.get('tool')}] {arguments}{mark}\n{shown}{more}"
