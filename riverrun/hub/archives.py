"""Archives unpacked inside one folder and within limits: .zip .tar .tar.gz .tgz .tar.bz2 .tar.xz.

Refused before anything stands under the target's name: paths that climb out or are absolute, links, devices, two
members of one name, more members or bytes than the limits allow (counted while unpacking: a header may lie), data that
grows too much. A folder appears under its name when all of it is there.

Not covered: .zst, .7z, .rar, passwords.
"""

from __future__ import annotations

import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from lzma import LZMAError
from pathlib import Path
from typing import IO

from riverrun.base.errors import CapacityError, InputError, IntegrityError, UnsupportedError
from riverrun.hub.spec import is_safe_path

__all__ = ["Limits", "is_archive", "unpack"]

_TAR = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_CHUNK = 1 << 20
_SPARE = 10 * 1024 * 1024
"""Below this size a high ratio is no bomb: text of one letter packs a thousandfold."""


@dataclass(frozen=True)
class Limits:
    """Members, bytes of all files together, and how many times larger than the archive they may be."""

    members: int = 1_000_000
    total_bytes: int = 1 << 40
    ratio: int = 200


@dataclass(frozen=True)
class _Member:
    name: str
    is_folder: bool
    open: IO[bytes] | None


def is_archive(path: Path) -> bool:
    """By its name."""
    return path.name.lower().endswith((".zip", *_TAR))


def unpack(archive: Path, target: Path, limits: Limits | None = None) -> Path:
    """Unpack into the new folder `target`. UnsupportedError for other kinds, InputError for what is not confined,
    CapacityError beyond the limits, IntegrityError for a damaged archive; nothing is left behind by any of them."""
    limits = limits or Limits()
    if not is_archive(archive):
        raise UnsupportedError(f"{archive} is none of .zip {' '.join(_TAR)}: unpack it with its own program")
    if target.exists():
        raise InputError(f"{target} is there already: name a new folder")
    part = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name[:60]}."))
    try:
        _Unpacking(archive, part, limits).run()
        part.chmod(0o755)
        part.rename(target)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, LZMAError, EOFError, RuntimeError) as error:
        raise IntegrityError(f"{archive} cannot be unpacked ({error}): fetch it again or unpack it by hand") from None
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        raise InputError(f"{archive} has two members of one name: it is not unpacked") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target


class _Unpacking:
    """Counts while it writes."""

    def __init__(self, archive: Path, folder: Path, limits: Limits) -> None:
        self.archive, self.folder, self.limits = archive, folder, limits
        self.members = self.bytes = 0
        self.most = max(_SPARE, archive.stat().st_size * limits.ratio)

    def run(self) -> None:
        with self._members() as members:
            for member in members:
                self._count(member)
                path = self.folder / member.name
                if member.is_folder:
                    path.mkdir(parents=True, exist_ok=True)
                    continue
                path.parent.mkdir(parents=True, exist_ok=True)
                assert member.open is not None
                with member.open as source, open(path, "xb") as handle:
                    while chunk := source.read(_CHUNK):
                        self._add(len(chunk))
                        handle.write(chunk)

    def _count(self, member: _Member) -> None:
        self.members += 1
        if self.members > self.limits.members:
            raise CapacityError(f"{self.archive} has more than {self.limits.members} members: it is not unpacked")
        if not is_safe_path(member.name):
            raise InputError(f"{self.archive} has a member {member.name!r} that leads outside: it is not unpacked")

    def _add(self, count: int) -> None:
        self.bytes += count
        if self.bytes > self.limits.total_bytes:
            raise CapacityError(
                f"{self.archive} unpacks to more than {self.limits.total_bytes} bytes: it is not unpacked"
            )
        if self.bytes > self.most:
            size = self.archive.stat().st_size
            raise CapacityError(
                f"{self.archive} has {size} bytes and unpacks to more than {self.most}, over {self.limits.ratio} times "
                "as much: it is not unpacked"
            )

    @contextmanager
    def _members(self) -> Iterator[Iterator[_Member]]:
        if self.archive.name.lower().endswith(".zip"):
            with zipfile.ZipFile(self.archive) as packed:
                yield self._of_zip(packed)
        else:
            with tarfile.open(self.archive, "r|*") as stream:
                yield self._of_tar(stream)

    def _of_zip(self, packed: zipfile.ZipFile) -> Iterator[_Member]:
        for info in packed.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                self._refuse(info.filename)
            # what the archive itself calls it: the module would cut a name at a zero byte
            name = info.orig_filename
            folder = info.is_dir()
            yield _Member(name.removesuffix("/"), folder, None if folder else packed.open(info))

    def _of_tar(self, stream: tarfile.TarFile) -> Iterator[_Member]:
        for info in stream:
            if not (info.isfile() or info.isdir()) or info.issparse():
                self._refuse(info.name)
            name = info.name.removeprefix("./").rstrip("/")
            if info.isdir() and name in ("", "."):
                continue  # the folder that was packed
            yield _Member(name, info.isdir(), stream.extractfile(info))

    def _refuse(self, name: str) -> None:
        raise InputError(f"{self.archive}: member {name!r} is a link, a device or a sparse file: it is not unpacked")
