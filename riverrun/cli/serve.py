"""`riverrun serve`: a model, or a run's model and agent, behind the OpenAI-compatible API until Ctrl-C."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from riverrun.base.errors import InputError, nearest
from riverrun.base.memory import keep_freed_memory
from riverrun.chain.stage import Parts, read_json
from riverrun.cli.target import open_target
from riverrun.web.keys import KeyRing

__all__ = ["Serving", "model_options", "serve_command"]

LOOPBACK = {"127.0.0.1", "localhost", "::1"}


@dataclass(frozen=True)
class Serving:
    """How a server is reached and guarded, and what it offers beside the API."""

    host: str | None = None
    port: int | None = None
    database: str = ""
    api_keys: tuple[str, ...] = ()
    keys: Path | None = None
    tls: tuple[Path | None, Path | None] = (None, None)
    origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    max_body_mb: float = 8.0
    timeout: float = 0.0
    adapters: Path | None = None
    sessions: Path | None = None
    grpc_port: int | None = None
    page: bool = True
    log: Path | None = None
    log_texts: bool = False
    drain: float = 30.0
    replicas: int = 1
    cluster: str = ""

    def __post_init__(self) -> None:
        if (self.tls[0] is None) != (self.tls[1] is None):
            raise InputError("a certificate and its key belong together: give both --tls-cert and --tls-key")
        for name, value in (("timeout", self.timeout), ("drain", self.drain)):
            if value < 0:
                raise InputError(f"--{name} is {value:g} seconds: give 0 or more")
        if self.max_body_mb <= 0:
            raise InputError(f"--max-body-mb is {self.max_body_mb:g}: give more than 0")
        if self.replicas < 1:
            raise InputError(f"--replicas is {self.replicas}: give 1 or more")
        if self.log_texts and self.log is None:
            raise InputError("--log-texts needs --log FILE")

    @property
    def certificate(self) -> tuple[Path, Path] | None:
        cert, key = self.tls
        return (cert, key) if cert is not None and key is not None else None


def model_options(
    *,
    context: int = 0,
    slots: int | None = None,
    cache_gb: float = 0.0,
    kv: str = "model",
    dtype: str = "auto",
    weights: str = "auto",
    device: str = "cpu",
    threads: int = 0,
    step_ms: float = 100.0,
    lookup: int = 0,
    parallel: int = 1,
    waiting: int = 1024,
    adapters: Sequence[str] = (),
) -> dict[str, Any]:
    """Arguments of `LLM` from those of the command line; InputError names the one that cannot be."""
    for name, value, known in (
        ("kv", kv, ("model", "int8", "int4")),
        ("dtype", dtype, ("auto", "bfloat16", "float16", "float32")),
        ("weights", weights, ("auto", "full", "stored")),
    ):
        if value not in known:
            raise InputError(f"--{name} {value} is not one of {', '.join(known)}.{nearest(value, known)}")
    least: tuple[tuple[str, float, float], ...] = (
        ("context", context, 0),
        ("slots", 1 if slots is None else slots, 1),
        ("cache-gb", cache_gb, 0),
        ("threads", threads, 0),
        ("step-ms", step_ms, 1),
        ("lookup", lookup, 0),
        ("parallel", parallel, 1),
        ("waiting", waiting, 0),
    )
    for name, number, bound in least:
        if number < bound:
            raise InputError(f"--{name} is {number:g}: give {bound:g} or more")
    named: dict[str, Path] = {}
    for text in adapters:
        name, equals, folder = text.partition("=")
        if not (name and equals and folder) or name in named:
            raise InputError(f"--adapter {text}: give NAME=FOLDER, each name once")
        named[name] = Path(folder)
    options: dict[str, Any] = {
        "context": context,
        "cache_gb": cache_gb,
        "kv": kv,
        "dtype": dtype,
        "weights": weights,
        "device": device,
        "step_seconds": step_ms / 1000,
        "lookup": lookup,
        "parallel": parallel,
        "waiting": waiting,
        "adapters": named,
    }
    given = {"slots": slots, "threads": threads or None}  # else a run's own
    return options | {name: value for name, value in given.items() if value is not None}


def server_settings(target: Path) -> dict[str, Any]:
    """Host and port that a run's spec asks for; empty for a plain model."""
    file = target / "deploy" / "server.json"
    return dict(read_json(file)) if file.is_file() else {}


def serve_command(target: str, serving: Serving, options: dict[str, Any]) -> None:
    from riverrun.serve.http.app import make_app
    from riverrun.serve.http.server import check_tls, open_socket, serve_app

    settings = server_settings(Path(target))
    address = serving.host or str(settings.get("host") or "127.0.0.1")
    number = serving.port if serving.port is not None else int(settings.get("port", 8000))
    keys = KeyRing.of(serving.api_keys, serving.keys)
    if address not in LOOPBACK and not keys:
        raise InputError(f"--host {address} is reachable from other machines: give at least one --api-key, or --keys")
    tls = serving.certificate
    check_tls(tls)
    # Asked before a model is loaded for nothing.
    for each in (number, serving.grpc_port):
        if each is not None:
            open_socket(address, each).close()
    keep_freed_memory(arenas=2)
    parts = Parts()
    if serving.replicas > 1 or serving.cluster:
        parts = Parts(model="riverrun.serve.cluster:Fleet")
        options = options | {"replicas": serving.replicas, "address": serving.cluster}
    with ExitStack() as stack:
        opened = stack.enter_context(open_target(target, database=serving.database, parts=parts, options=options))
        app = make_app(
            opened.models,
            api_keys=keys,
            page=serving.page,
            title=opened.default,
            max_body_bytes=round(serving.max_body_mb * 2**20),
            allowed_hosts=serving.hosts,
            allowed_origins=serving.origins,
            sessions=serving.sessions,
            adapters=serving.adapters,
            timeout_seconds=serving.timeout,
            log=serving.log,
            log_texts=serving.log_texts,
        )
        also = ""
        if serving.grpc_port is not None:
            from riverrun.serve.grpc.server import GrpcServer

            server = GrpcServer(
                opened.models,
                address,
                serving.grpc_port,
                keys=keys,
                tls=tls,
                timeout_seconds=serving.timeout,
                drain_seconds=serving.drain,
            )
            also = f", gRPC on {address}:{stack.enter_context(server).port}"

        def announce(url: str) -> None:
            print(f"{url} ({', '.join(opened.models)}){also}", file=sys.stderr, flush=True)

        serve_app(app, host=address, port=number, on_ready=announce, drain_seconds=serving.drain, tls=tls)
