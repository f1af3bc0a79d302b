"""The commands `serve` and `keys`; only typer is imported before one is run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from riverrun.cli.errors import errors

__all__ = ["add_serving"]

keys_app = typer.Typer(help="API keys of a server: hashed where they are kept, with quotas.", no_args_is_help=True)
_GUARD, _MODEL, _MORE = "Who may ask", "The model", "Beside the API"


Target = Annotated[str, typer.Argument(help="Run folder, model path or catalogue name.")]
Host = Annotated[str | None, typer.Option(help="Address; the run's, else 127.0.0.1.")]
Port = Annotated[int | None, typer.Option(help="Port; the run's, else 8000; 0 picks a free one.")]
Database = Annotated[str, typer.Option(help="Serve over this SQLite file or server (URL) instead of the run's copy.")]
ApiKey = Annotated[
    list[str] | None, typer.Option(help="Accepted key; may be given several times.", rich_help_panel=_GUARD)
]
Keys = Annotated[Path | None, typer.Option(help="File of hashed keys (`riverrun keys add`).", rich_help_panel=_GUARD)]
TlsCert = Annotated[Path | None, typer.Option(help="Certificate, PEM.", rich_help_panel=_GUARD)]
TlsKey = Annotated[Path | None, typer.Option(help="Its key, PEM.", rich_help_panel=_GUARD)]
Origin = Annotated[
    list[str] | None, typer.Option(help="Web pages that may ask (CORS); * is any.", rich_help_panel=_GUARD)
]
AllowHost = Annotated[
    list[str] | None,
    typer.Option(help="Name by which a loopback server may be called, beside local ones.", rich_help_panel=_GUARD),
]
MaxBodyMb = Annotated[float, typer.Option(help="Largest request.", rich_help_panel=_GUARD)]
Timeout = Annotated[
    float, typer.Option(help="Seconds after which a request is given up; 0: never.", rich_help_panel=_GUARD)
]
Waiting = Annotated[
    int, typer.Option(help="Requests that may wait; more are told to come back (429).", rich_help_panel=_GUARD)
]
Context = Annotated[int, typer.Option(help="Longest prompt with its answer, tokens; 0: the model's, at most 4096.")]
Slots = Annotated[int | None, typer.Option(help="Requests that run at once.", rich_help_panel=_MODEL)]
CacheGb = Annotated[
    float, typer.Option(help="Memory for keys and values; 0: a quarter of what is free.", rich_help_panel=_MODEL)
]
Kv = Annotated[str, typer.Option(help="Keys and values: model, int8 or int4.", rich_help_panel=_MODEL)]
Dtype = Annotated[str, typer.Option(help="auto, bfloat16, float16 or float32.", rich_help_panel=_MODEL)]
Weights = Annotated[
    str, typer.Option(help="Of few bits: full (laid out), stored (as they are), auto.", rich_help_panel=_MODEL)
]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N.", rich_help_panel=_MODEL)]
Threads = Annotated[int, typer.Option(help="Processor threads; 0: all.", rich_help_panel=_MODEL)]
StepMs = Annotated[
    float, typer.Option(help="Longest wait for a next token while prompts come in.", rich_help_panel=_MODEL)
]
Lookup = Annotated[int, typer.Option(help="Tokens guessed from what was said before; 0: none.", rich_help_panel=_MODEL)]
Adapter = Annotated[
    list[str] | None, typer.Option(help="NAME=FOLDER of a LoRA adapter, asked for by NAME.", rich_help_panel=_MODEL)
]
Adapters = Annotated[
    Path | None, typer.Option(help="Folder from which clients may load adapters.", rich_help_panel=_MORE)
]
Sessions = Annotated[
    Path | None, typer.Option(help="Folder into which clients may save sessions.", rich_help_panel=_MORE)
]
Parallel = Annotated[int, typer.Option(help="Processes that each hold a part of every layer.", rich_help_panel=_MODEL)]
Replicas = Annotated[
    int, typer.Option(help="Processes that each hold the model, kept apart by Ray.", rich_help_panel=_MORE)
]
Cluster = Annotated[
    str, typer.Option(help="Address of a Ray cluster for them; this machine without one.", rich_help_panel=_MORE)
]
GrpcPort = Annotated[
    int | None, typer.Option(help="Speak gRPC too, on this port; 0 picks a free one.", rich_help_panel=_MORE)
]
Page = Annotated[bool, typer.Option(help="The chat page at / and the status page.", rich_help_panel=_MORE)]
Log = Annotated[Path | None, typer.Option(help="File that gets a line for each request.", rich_help_panel=_MORE)]
LogTexts = Annotated[bool, typer.Option(help="Write what was asked there, too.", rich_help_panel=_MORE)]
Drain = Annotated[float, typer.Option(help="Seconds that running requests get after SIGTERM.", rich_help_panel=_MORE)]


def add_serving(app: typer.Typer) -> None:
    """Add `serve` and `keys`."""
    app.command()(serve)
    app.add_typer(keys_app, name="keys")


def serve(
    target: Target,
    host: Host = None,
    port: Port = None,
    database: Database = "",
    api_key: ApiKey = None,
    keys: Keys = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    origin: Origin = None,
    allow_host: AllowHost = None,
    max_body_mb: MaxBodyMb = 8.0,
    timeout: Timeout = 0.0,
    waiting: Waiting = 1024,
    context: Context = 0,
    slots: Slots = None,
    cache_gb: CacheGb = 0.0,
    kv: Kv = "model",
    dtype: Dtype = "auto",
    weights: Weights = "auto",
    device: Device = "cpu",
    threads: Threads = 0,
    step_ms: StepMs = 100.0,
    lookup: Lookup = 0,
    adapter: Adapter = None,
    adapters: Adapters = None,
    sessions: Sessions = None,
    parallel: Parallel = 1,
    replicas: Replicas = 1,
    cluster: Cluster = "",
    grpc_port: GrpcPort = None,
    page: Page = True,
    log: Log = None,
    log_texts: LogTexts = False,
    drain: Drain = 30.0,
) -> None:
    """Serve a model, or a run's model and agent, over an OpenAI-compatible API with a chat page."""
    with errors():
        from riverrun.cli.serve import Serving, model_options, serve_command

        serving = Serving(
            host=host,
            port=port,
            database=database,
            api_keys=tuple(api_key or ()),
            keys=keys,
            tls=(tls_cert, tls_key),
            origins=tuple(origin or ()),
            hosts=tuple(allow_host or ()),
            max_body_mb=max_body_mb,
            timeout=timeout,
            adapters=adapters,
            sessions=sessions,
            grpc_port=grpc_port,
            page=page,
            log=log,
            log_texts=log_texts,
            drain=drain,
            replicas=replicas,
            cluster=cluster,
        )
        options = model_options(
            context=context,
            slots=slots,
            cache_gb=cache_gb,
            kv=kv,
            dtype=dtype,
            weights=weights,
            device=device,
            threads=threads,
            step_ms=step_ms,
            lookup=lookup,
            parallel=parallel,
            waiting=waiting,
            adapters=adapter or [],
        )
        serve_command(target, serving, options)


@keys_app.command("add")
def keys_add(
    file: Annotated[Path, typer.Argument(help="File of keys; made where there is none.")],
    name: Annotated[str, typer.Argument(help="Whose key it is.")],
    concurrency: Annotated[int, typer.Option(help="Requests at once; 0: any number.")] = 0,
    tokens_per_minute: Annotated[int, typer.Option(help="Of prompts and answers; 0: any number.")] = 0,
) -> None:
    """Make a key, keep its hash, and show the key: this once."""
    with errors():
        from riverrun.web.keys import add_key

        print(add_key(file, name, concurrency=concurrency, tokens_per_minute=tokens_per_minute))
