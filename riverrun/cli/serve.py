"""`riverrun serve`: a model, or a run's model and agent, behind the OpenAI-compatible API until Ctrl-C."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from riverrun.base.errors import InputError
from riverrun.base.memory import keep_freed_memory
from riverrun.chain.stage import read_json
from riverrun.cli.target import open_target

__all__ = ["serve_command"]

LOOPBACK = {"127.0.0.1", "localhost", "::1"}


def server_settings(target: Path) -> dict[str, Any]:
    """Host and port that a run's spec asks for; empty for a plain model."""
    file = target / "deploy" / "server.json"
    return dict(read_json(file)) if file.is_file() else {}


def serve_command(target: str, host: str | None, port: int | None, api_keys: Sequence[str], database: str) -> None:
    from riverrun.serve.http.app import make_app
    from riverrun.serve.http.server import open_socket, serve_app

    settings = server_settings(Path(target))
    address = host or str(settings.get("host") or "127.0.0.1")
    number = port if port is not None else int(settings.get("port", 8000))
    if address not in LOOPBACK and not api_keys:
        raise InputError(f"--host {address} is reachable from other machines: give at least one --api-key")
    # Asked before a model is loaded for nothing.
    open_socket(address, number).close()
    keep_freed_memory()
    with open_target(target, database=database) as opened:
        app = make_app(opened.models, api_keys=api_keys, title=opened.default)

        def announce(url: str) -> None:
            print(f"{url} ({', '.join(opened.models)})", file=sys.stderr, flush=True)

        serve_app(app, host=address, port=number, on_ready=announce)
