"""A sandbox made of what Linux gives an ordinary process: `ProcessSandbox`, a base.protocols.Sandbox.

Levels, the strongest that the machine permits is found by trying (`ProcessSandbox.level`):

    limits      own session, empty environment, private working folder, isolated interpreter without site packages,
                limits on processor time, address space, file size, open files and processes; killed with its group
    user        also another user id, when started as root: the caller's private files cannot be read or written
    namespaces  also no network but its own empty one, and process ids of its own: nothing of it survives the run
                (as root together with the other user id)

What it does NOT protect from: reading files that are readable by everyone (and, below "user", by the caller; writing
them, too); filling the disk with many files; other users' processes being seen in /proc; at "limits" and "user" the
network, and processes that leave their session; defects of the kernel, whose system calls are not filtered. As root
at "limits" the process limit has no effect. For code that may be hostile demand `require="namespaces"` and run the
whole service in a container or virtual machine.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Literal

from riverrun.agent.sandbox import launcher
from riverrun.base.errors import InputError, UnsupportedError
from riverrun.base.protocols import ExecutionResult

__all__ = ["Level", "Limits", "ProcessSandbox"]

Level = Literal["limits", "user", "namespaces"]
LEVELS: tuple[Level, ...] = ("limits", "user", "namespaces")
NOBODY = 65534


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes and counts a run may use. `output_bytes`: how much of each output is kept."""

    memory_bytes: int = 1 << 30
    file_bytes: int = 16 << 20
    open_files: int = 64
    processes: int = 16
    output_bytes: int = 64 << 10
    returned_files: int = 100
    returned_bytes: int = 32 << 20


class ProcessSandbox:
    """Runs Python in a process of its own. `require`: UnsupportedError at construction when the machine permits less.
    Thread-safe. An exit code above 128 is 128 + the signal that ended the code."""

    def __init__(self, *, require: Level = "limits", limits: Limits | None = None) -> None:
        if sys.platform != "linux":
            raise UnsupportedError(f"the process sandbox needs Linux, this is {sys.platform}: run it in a container")
        self.limits = limits or Limits()
        self.level: Level = next(level for level in reversed(LEVELS) if self._permits(level))
        if LEVELS.index(self.level) < LEVELS.index(require):
            raise UnsupportedError(
                f"the sandbox needs level '{require}', this machine permits '{self.level}': "
                f"allow unprivileged user namespaces or use a container"
            )

    def run(
        self, code: str, *, files: Mapping[str, bytes] | None = None, timeout_seconds: float = 10.0
    ) -> ExecutionResult:
        """Run code with `files` in its working folder; the result holds the files it made or changed.

        InputError for a file name that leaves the folder; what the code does is never an error here.
        """
        if timeout_seconds <= 0:
            raise InputError(f"timeout_seconds must be above 0, got {timeout_seconds}")
        return self._run(code, files or {}, timeout_seconds, self.level)

    def _permits(self, level: Level) -> bool:
        if level == "limits":
            return True
        if level == "user" and os.geteuid() != 0:
            return False
        try:
            return self._run("print('in')", {}, 10.0, level).stdout == "in\n"
        except (OSError, ValueError):
            return False

    def _run(self, code: str, files: Mapping[str, bytes], timeout: float, level: Level) -> ExecutionResult:
        user = NOBODY if os.geteuid() == 0 and level != "limits" else 0
        base = Path(tempfile.mkdtemp(prefix="riverrun-sandbox-"))
        try:
            work = base / "work"
            work.mkdir(mode=0o700)
            _write_files(work, files, user)
            (base / "code.py").write_bytes(code.encode("utf-8", "surrogatepass"))
            shutil.copyfile(launcher.__file__, base / "launcher.py")
            if user:
                base.chmod(0o711)
                os.chown(work, user, user)
            with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
                started = time.monotonic()
                exit_code, timed_out = self._wait(self._start(base, work, user, level, timeout, out, err), timeout)
                seconds = time.monotonic() - started
                texts = [self._read(stream) for stream in (out, err)]
            made = self._collect(work, files)
            return ExecutionResult(texts[0], texts[1], exit_code, timed_out, seconds, made)
        finally:
            _remove(base)

    def _start(
        self, base: Path, work: Path, user: int, level: Level, timeout: float, out: IO[bytes], err: IO[bytes]
    ) -> subprocess.Popen[bytes]:
        limits = self.limits
        python = Path(os.path.realpath(sys.executable))
        shown = python
        if user and not _open_to_all(python):
            (base / "python").mkdir(mode=0o755)
            shown = base / "python" / python.relative_to(sys.base_prefix)
        settings = {
            "user": user,
            "namespaces": level == "namespaces",
            "show": [] if shown == python else [sys.base_prefix, str(base / "python")],
            "python": str(shown),
            "environment": {} if shown == python else {"LD_LIBRARY_PATH": str(base / "python" / "lib")},
            "code": str(base / "code.py"),
            "limits": {
                "RLIMIT_CORE": 0,
                "RLIMIT_CPU": math.ceil(timeout) + 1,
                "RLIMIT_FSIZE": limits.file_bytes,
                "RLIMIT_NOFILE": limits.open_files,
                "RLIMIT_NPROC": limits.processes,
                "RLIMIT_AS": limits.memory_bytes,
            },
        }
        command = [str(python), "-I", "-S", str(base / "launcher.py"), json.dumps(settings)]
        return subprocess.Popen(
            command, cwd=work, env={}, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
        )

    def _wait(self, process: subprocess.Popen[bytes], timeout: float) -> tuple[int, bool]:
        timed_out = False
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            timed_out = True
        finally:
            with contextlib.suppress(ProcessLookupError):  # also after a proper end: what it left in its group ends
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        code = process.returncode
        return (code if code >= 0 else 128 - code), timed_out

    def _read(self, stream: IO[bytes]) -> str:
        stream.seek(0)
        data = stream.read(self.limits.output_bytes + 1)
        text = data[: self.limits.output_bytes].decode("utf-8", "replace")
        return text + "\n(… output cut)" if len(data) > self.limits.output_bytes else text

    def _collect(self, work: Path, given: Mapping[str, bytes]) -> dict[str, bytes]:
        """Regular files that are new or changed, in name order, up to the limits; links are not followed."""
        out: dict[str, bytes] = {}
        left = self.limits.returned_bytes
        for folder, folders, names in os.walk(work):
            folders.sort()
            for name in sorted(names):
                path = Path(folder, name)
                key = path.relative_to(work).as_posix()
                data = _read_regular(path, left)
                if data is None or len(out) == self.limits.returned_files or given.get(key) == data:
                    continue
                out[key] = data
                left -= len(data)
        return out


def _open_to_all(path: Path) -> bool:
    """Whether every user can reach and read a file."""
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in path.parents) and bool(path.stat().st_mode & 0o4)


def _write_files(work: Path, files: Mapping[str, bytes], user: int) -> None:
    for name, data in files.items():
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts or "\0" in name:
            raise InputError(f"file name '{name}' leaves the sandbox's folder: give a relative name without '..'")
        path = work.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    if user:
        for folder, _, names in os.walk(work):
            for path in [Path(folder), *(Path(folder, name) for name in names)]:
                os.chown(path, user, user)


def _read_regular(path: Path, limit: int) -> bytes | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as handle:
        status = os.fstat(handle.fileno())
        return handle.read() if stat.S_ISREG(status.st_mode) and status.st_size <= limit else None


def _remove(base: Path) -> None:
    """Take the folder away, also when the code took away its own rights to it."""
    shutil.rmtree(base, ignore_errors=True)
    if base.exists():
        for folder, folders, _ in os.walk(base):
            for name in folders:
                path = Path(folder, name)
                if not path.is_symlink():
                    path.chmod(0o700)
        shutil.rmtree(base, ignore_errors=True)
