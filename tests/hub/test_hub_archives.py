"""Archives that stay inside their folder and within their limits, and those that do not."""

from __future__ import annotations

import io
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest

from riverrun.base.errors import CapacityError, InputError, IntegrityError, UnsupportedError
from riverrun.hub.archives import Limits, unpack
from riverrun.hub.catalog import card_of
from riverrun.hub.store import Store

FILES = {"a.txt": b"one", "deep/b.txt": b"two" * 100, "deep/名字.txt": b"", "deep/er/c": b"three"}


def make_tar(path: Path, files: dict[str, bytes], *extra: tarfile.TarInfo) -> Path:
    mode = {".gz": "w:gz", ".tgz": "w:gz", ".bz2": "w:bz2", ".xz": "w:xz"}.get(path.suffix, "w")
    with tarfile.open(path, mode) as packed:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            packed.addfile(info, io.BytesIO(content))
        for info in extra:
            packed.addfile(info)
    return path


def make_zip(path: Path, files: dict[str, bytes], mode: int = 0) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            packed.writestr(info, content)
    return path


def make(path: Path, files: dict[str, bytes]) -> Path:
    return (make_zip if path.suffix == ".zip" else make_tar)(path, files)


def contents(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def only_archive(folder: Path) -> bool:
    return len(list(folder.iterdir())) == 1


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tar.gz", "x.tgz", "x.tar.bz2", "x.tar.xz"])
def test_what_went_in_comes_out(tmp_path: Path, name: str) -> None:
    target = unpack(make(tmp_path / name, FILES), tmp_path / "out")
    assert contents(target) == FILES
    with pytest.raises(InputError, match="is there already"):
        unpack(tmp_path / name, tmp_path / "out")


@pytest.mark.parametrize("name", ["x.zip", "x.tar"])
@pytest.mark.parametrize(
    "member", ["../up", "a/../../up", "/etc/up", "a\\..\\up", "C:\\up", "./../up", "a//b", "a\x01b", "..", "dot./a"]
)
def test_members_that_lead_outside(tmp_path: Path, name: str, member: str) -> None:
    archive = make(tmp_path / name, {"fine": b"x", member: b"bad"})
    with pytest.raises(InputError, match=r"leads outside: it is not unpacked"):
        unpack(archive, tmp_path / "out")
    assert only_archive(tmp_path)


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE],
)
def test_links_and_devices(tmp_path: Path, kind: bytes) -> None:
    info = tarfile.TarInfo("inner")
    info.type, info.linkname = kind, "a.txt"
    archive = make_tar(tmp_path / "x.tar", FILES, info)
    with pytest.raises(InputError, match="'inner' is a link, a device or a sparse file"):
        unpack(archive, tmp_path / "out")
    assert only_archive(tmp_path)


def test_a_link_in_a_zip(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "x.zip", {"link": b"/etc/passwd"}, 0o120777)
    with pytest.raises(InputError, match="'link' is a link"):
        unpack(archive, tmp_path / "out")


@pytest.mark.parametrize("name", ["x.zip", "x.tar.gz"])
def test_bombs(tmp_path: Path, name: str) -> None:
    archive = make(tmp_path / name, {"zeros": bytes(30_000_000)})
    with pytest.raises(CapacityError, match=r"unpacks to more than \d+, over 200 times as much"):
        unpack(archive, tmp_path / "out")
    with pytest.raises(CapacityError, match="unpacks to more than 1000 bytes"):
        unpack(archive, tmp_path / "out", Limits(total_bytes=1000))
    many = make(tmp_path / f"many-{name}", {f"{n}": b"" for n in range(50)})
    with pytest.raises(CapacityError, match="more than 49 members"):
        unpack(many, tmp_path / "out", Limits(members=49))
    assert len(list(tmp_path.iterdir())) == 2


def test_a_header_that_lies_about_its_size(tmp_path: Path) -> None:
    """The bytes that come are counted, not those that were announced."""
    archive = make_zip(tmp_path / "x.zip", {"zeros": bytes(30_000_000)})
    data = bytearray(archive.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<I", data, data.index(mark) + offset, 10)
    archive.write_bytes(data)
    with pytest.raises((IntegrityError, CapacityError)):
        unpack(archive, tmp_path / "out")
    assert only_archive(tmp_path)


@pytest.mark.parametrize("name", ["x.zip", "x.tar"])
@pytest.mark.parametrize("pair", [("a", "a"), ("a", "a/b")])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name(tmp_path: Path, name: str, pair: tuple[str, str]) -> None:
    archive = tmp_path / name
    if name == "x.zip":
        with zipfile.ZipFile(archive, "w") as packed:
            for member in pair:
                packed.writestr(zipfile.ZipInfo(member), b"x")
    else:
        with tarfile.open(archive, "w") as tar:
            for member in pair:
                tar.addfile(tarfile.TarInfo(member))
    with pytest.raises(InputError, match="two members of one name"):
        unpack(archive, tmp_path / "out")
    assert only_archive(tmp_path)


@pytest.mark.parametrize("name", ["x.zip", "x.tar.gz", "x.tar"])
def test_damaged_and_foreign_archives(tmp_path: Path, name: str) -> None:
    archive = make(tmp_path / name, FILES | {"big": bytes(range(256)) * 300})
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    with pytest.raises(IntegrityError, match="cannot be unpacked"):
        unpack(archive, tmp_path / "out")
    assert only_archive(tmp_path)
    with pytest.raises(UnsupportedError, match=r"is none of \.zip \.tar"):
        unpack(tmp_path / "x.7z", tmp_path / "out")


def test_a_password(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "x.zip", {"a": b"secret"})
    data = bytearray(archive.read_bytes())
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(data)
    with pytest.raises(IntegrityError, match="encrypted"):
        unpack(archive, tmp_path / "out")


def test_the_store_unpacks_once(tmp_path: Path) -> None:
    store = Store(tmp_path / "home")
    card = card_of(f"file:{make(tmp_path / 'x.tar.gz', FILES)}")
    path = store.fetch(card)
    assert store.archives(card) == [path]
    folder = store.unpack(path)
    assert contents(folder) == FILES
    assert store.unpack(path) == folder
