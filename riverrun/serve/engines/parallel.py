"""One model in several processes (tensor parallel): each holds a part of every layer and of the cache.

The first process runs the loop; what it is about to compute is sent to the others, which compute their parts of it
(`python -m riverrun.serve.engines.parallel`). Partial products are added up by torch.distributed (gloo on CPUs). Hidden
states are whole everywhere, so that logits are the first process's alone. Adapters by name and sessions on disk are not
served so.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from riverrun.base.errors import RiverrunError, UnsupportedError
from riverrun.models.load import Checkpoint, load_checkpoint
from riverrun.models.paged import KVType, bytes_per_token
from riverrun.models.shard import load_shard, shard_config
from riverrun.serve.engine import Work
from riverrun.serve.engines.torch import TorchEngine, default_dtype

__all__ = ["ParallelEngine", "follow"]

T = TypeVar("T", bound=TorchEngine)

SECONDS = 600
"""That a process waits for the others."""
_KINDS = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16}


class ParallelEngine(TorchEngine):
    """The first process's part. `close` ends the others."""

    @classmethod
    def start(
        cls,
        opened: Checkpoint,
        size: int,
        *,
        tokens: Callable[[int, int | None], int],
        threads: int = 0,
        dtype: str = "auto",
        kv: KVType = "model",
    ) -> ParallelEngine:
        """Start `size` - 1 processes on this machine and load a part in each. As `TorchEngine.open` otherwise; `tokens`
        is asked with the bytes that a token takes in one process."""
        chosen = default_dtype() if dtype == "auto" else _KINDS[dtype]
        part = shard_config(opened.config, size)  # says what does not fit before anything is started
        room = tokens(bytes_per_token(part, kv, chosen.itemsize), None)
        threads = threads or max(1, (os.cpu_count() or 1) // size)
        job = {
            "path": str(opened.path.absolute()), "adapter": str(opened.adapter.absolute()) if opened.adapter else "",
            "size": size, "port": _free_port(), "tokens": room, "threads": threads, "kv": kv,
            "dtype": str(chosen).removeprefix("torch."),
        }  # fmt: skip
        path = os.pathsep.join(filter(None, sys.path))
        others = [
            subprocess.Popen(
                [sys.executable, "-m", "riverrun.serve.engines.parallel", json.dumps(job | {"rank": rank})],
                env=os.environ | {"PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
            )
            for rank in range(1, size)
        ]
        try:
            engine, group = _part(cls, opened, job, 0)
        except BaseException:
            for process in others:
                process.kill()
            raise
        engine.group, engine.others = group, others
        return engine

    group: _Group
    others: Sequence[subprocess.Popen[bytes]] = ()

    def forward(self, work: Sequence[Work]) -> Tensor:
        try:
            self.group.send([asdict(each) for each in work])
            return super().forward(work)
        except RuntimeError as error:
            ended = [process.poll() for process in self.others]
            if any(code is not None for code in ended):
                said = f"a process that holds a part of the model ended (codes {ended}): serve again"
                raise RiverrunError(said) from None
            raise RiverrunError(f"the processes that hold the model's parts do not answer: {error}") from None

    def read(self, blocks: Sequence[int]) -> dict[str, NDArray[Any]]:
        raise UnsupportedError("sessions of a model in several processes are not written to disk: serve it in one")

    def write(self, blocks: Sequence[int], stored: Mapping[str, NDArray[Any]]) -> None:
        raise UnsupportedError("sessions are not read into a model in several processes: serve it in one")

    def load_adapter(self, name: str, path: Path) -> None:
        raise UnsupportedError("adapters are not served by name from a model in several processes: serve it in one")

    def unload_adapter(self, name: str) -> None:
        raise UnsupportedError(f"there is no adapter '{name}' in a model of several processes")

    def close(self) -> None:
        """End the other processes."""
        for process in self.others:
            process.kill()
            process.wait()
        self.others = ()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class _Group:
    """The processes of one model: a group of its own, whatever else this process takes part in."""

    def __init__(self, port: int, rank: int, size: int) -> None:
        wait = timedelta(seconds=SECONDS)
        store = dist.TCPStore(  # type: ignore[attr-defined]
            "127.0.0.1", port, size, is_master=rank == 0, timeout=wait
        )
        self._gloo: Any = dist.ProcessGroupGloo(store, rank, size, wait)

    def add_up(self, part: Tensor) -> Tensor:
        """In float32: parts of 16 bits are rounded once, as the whole product would be."""
        whole = part.float()
        self._gloo.allreduce([whole]).wait()
        return whole.to(part.dtype)

    def send(self, work: Sequence[Mapping[str, Any]]) -> None:
        """From the first process to all others."""
        data = torch.frombuffer(bytearray(json.dumps(list(work), default=_plain).encode()), dtype=torch.uint8)
        self._broadcast(torch.tensor([len(data)]))
        self._broadcast(data)

    def receive(self) -> list[Work]:
        size = torch.zeros(1, dtype=torch.int64)
        self._broadcast(size)
        data = torch.empty(int(size), dtype=torch.uint8)
        self._broadcast(data)
        return [Work(**each) for each in json.loads(data.numpy().tobytes())]

    def _broadcast(self, data: Tensor) -> None:
        self._gloo.broadcast(data, 0).wait()


def _part(kind: type[T], opened: Checkpoint, job: Mapping[str, Any], rank: int) -> tuple[T, _Group]:
    torch.set_num_threads(job["threads"])
    group = _Group(job["port"], rank, job["size"])
    model = load_shard(opened, _KINDS[job["dtype"]], rank, job["size"], group.add_up)
    model.pack()
    return kind(model, tokens=job["tokens"], kv=job["kv"]), group


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else list(value)


def follow(job: Mapping[str, Any]) -> None:
    """Compute this process's part of whatever the first one computes, until it is gone."""
    adapter = Path(job["adapter"]) if job["adapter"] else None
    engine, group = _part(TorchEngine, load_checkpoint(Path(job["path"]), adapter=adapter), job, job["rank"])
    while True:
        try:
            work = group.receive()
        except RuntimeError:  # the first process has closed its connections
            return
        engine.forward(work)


if __name__ == "__main__":
    follow(json.loads(sys.argv[1]))
