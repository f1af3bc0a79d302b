"""`riverrun serve`: a model, or a run's model and agent, behind the OpenAI-compatible API until Ctrl-C."""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from riverrun.base.errors import InputError
from riverrun.chain.stage import read_json
from riverrun.cli.target import open_target

__all__ = ["check_port", "serve_command"]

LOOPBACK = {"127.0.0.1", "localhost", "::1"}


def server_settings(target: Path) -> dict[str, Any]:
    """Host and port that a run's spec asks for; empty for a plain model."""
    file = target / "deploy" / "server.json"
    return dict(read_json(file)) if file.is_file() else {}


def check_port(host: str, port: int) -> None:
    """InputError when the address cannot be had; asked before a model is loaded for nothing."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InputError(
                f"port {port} on {host} cannot be used ({error.strerror}): "
                f"give another with --port, or 0 for a free one"
            ) from None


def serve_command(
    target: str, host: str | None, port: int | None, api_keys: Sequence[str], database: Path | None
) -> None:
    from riverrun.serve.http.app import make_app
    from riverrun.serve.http.server import serve_app

    settings = server_settings(Path(target))
    address = host or str(settings.get("host") or "127.0.0.1")
    number = port if port is not None else int(settings.get("port", 8000))
    if address not in LOOPBACK and not api_keys:
        raise InputError(f"--host {address} is reachable from other machines: give at least one --api-key")
    check_port(address, number)
    with open_target(target, database=database) as opened:
        app = make_app(opened.models, api_keys=api_keys, title=opened.default)
        print(f"models: {', '.join(opened.models)}", file=sys.stderr)
        serve_app(app, host=address, port=number)
