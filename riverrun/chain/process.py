"""A stage in a process of its own: memory measured and given back, no survivor when the parent is killed.

The job goes in on standard input and the outcome comes back on a pipe, both JSON; progress goes straight to standard
error. On Linux the kernel kills the child with its parent (PR_SET_PDEATHSIG); elsewhere the child watches its parent.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from riverrun.base import errors
from riverrun.base.errors import RiverrunError
from riverrun.chain.stage import Context

__all__ = [
    "die_with_parent",
    "peak_memory",
    "raise_ended",
    "raise_error",
    "reset_peak_memory",
    "run_isolated",
    "run_module",
    "show_error",
]

PR_SET_PDEATHSIG = 1
_STATUS = Path("/proc/self/status")


def die_with_parent(parent: int) -> None:
    """Arrange that this process ends when process `parent`, which started it, does."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        return

    def watch() -> None:
        while os.getppid() == parent:
            threading.Event().wait(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def peak_memory() -> int:
    """Peak resident memory of this process in bytes.

    VmHWM where there is /proc: ru_maxrss starts, after fork and exec, at the parent's figure.
    """
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reset_peak_memory() -> None:
    """Start the peak of this process anew where the system allows it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def show_error(error: BaseException) -> dict[str, Any]:
    """An error as JSON, for the process that started this one."""
    return {"kind": type(error).__name__, "text": str(error)}


def raise_error(value: dict[str, Any]) -> None:
    """Raise what `show_error` described; a class this project does not know becomes a RiverrunError."""
    kind = getattr(errors, str(value["kind"]), None)
    if isinstance(kind, type) and issubclass(kind, RiverrunError) and kind is not errors.GateError:
        raise kind(value["text"])
    raise RiverrunError(f"{value['kind']}: {value['text']}")


def run_module(module: str, job: dict[str, Any], *, keep_open: Sequence[int] = ()) -> tuple[bytes, int]:
    """(what it wrote, exit code) of `python -m MODULE`, given `job` as JSON; it ends where this one is stopped."""
    path = os.pathsep.join([part or os.getcwd() for part in sys.path])
    child = subprocess.Popen(
        [sys.executable, "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
        pass_fds=keep_open,
    )
    try:
        out, _ = child.communicate(json.dumps(job).encode())
    except BaseException:
        child.send_signal(signal.SIGINT)
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        raise
    return out, child.returncode


def raise_ended(what: str, code: int, hint: str = "") -> NoReturn:
    """Say how the process of `what` ended; its interruption is ours."""
    if code in (-signal.SIGINT, 130):
        raise KeyboardInterrupt
    cause = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
    raise RiverrunError(f"the process of {what} {cause}{hint}: run again to continue")


def run_isolated(ctx: Context, stage: str, mode: str, *, keep_open: int) -> dict[str, Any]:
    """Run one stage in a child; returns its packed result. `keep_open` (the lock) stays held while the child lives."""
    job = {"context": ctx.to_json(), "stage": stage, "mode": mode, "parent": os.getpid()}
    out, code = run_module("riverrun.chain.worker", job, keep_open=(keep_open,))
    if not out:
        hint = " (out of memory? give memory_gb and smaller finetune.micro_tokens)" if code == -signal.SIGKILL else ""
        raise_ended(f"stage '{stage}'", code, hint)
    outcome: dict[str, Any] = json.loads(out)
    if "error" in outcome:
        if "trace" in outcome and os.environ.get("RIVERRUN_DEBUG"):
            print(outcome["trace"], file=sys.stderr)
        raise_error(outcome["error"])
    result: dict[str, Any] = outcome["result"]
    return result
