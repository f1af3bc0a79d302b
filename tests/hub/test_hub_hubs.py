"""Hubs: published to a folder and over HTTP, read by everybody, compared and searched."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from riverrun.base.errors import InputError, IntegrityError, RiverrunError
from riverrun.hub import hubs
from riverrun.hub.compare import compare, folder_entries
from riverrun.hub.hubs import open_hub
from riverrun.hub.publish import publish, read_folder
from riverrun.hub.server import make_hub_app
from riverrun.hub.store import Store
from riverrun.hub.transport import Patience
from riverrun.serve.http.server import BackgroundServer

TOKEN = "publisher-1"
BIG = random.Random(9).randbytes(50_000)
CARD = {
    "name": "greetings",
    "kind": "dataset",
    "licence": "cc-by-4.0",
    "languages": ["en", "zh"],
    "description": "Greetings in two languages",
    "description_zh": "双语问候语料",
}
FILES = {"train/a.jsonl": b'{"text": "hello"}\n', "data.bin": BIG, "名字.txt": "你好".encode(), "empty": b""}


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RIVERRUN_HUB_TOKEN", raising=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "given", CARD, FILES)


def write(root: Path, card: dict, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    root.mkdir(exist_ok=True)
    (root / "card.yaml").write_text(yaml.safe_dump(card, allow_unicode=True), encoding="utf-8")
    return root


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "hub").mkdir()
    with BackgroundServer(make_hub_app(tmp_path / "hub", [TOKEN], max_file_bytes=1_000_000)) as server:
        yield server.url


def contents(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_published_to_a_folder_and_read_from_it(folder: Path, tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    said = publish(folder, str(hub))
    card = open_hub(str(hub)).card("greetings")
    assert said == f"greetings@{card.version} in {hub}"
    assert card.sources == (f"hub:{hub}",)
    store = Store(tmp_path / "home")
    assert contents(store.fetch(card)) == FILES
    listed = open_hub(str(hub)).cards()["greetings"]
    assert (listed.files, listed.total_bytes, listed.description_zh) == ((), card.total_bytes, "双语问候语料")
    before = contents(hub)
    assert publish(folder, str(hub)) == said
    assert contents(hub) == before, "publishing the same again changes nothing"


def test_a_new_version_stands_beside_the_old(folder: Path, tmp_path: Path) -> None:
    hub = open_hub(str(tmp_path / "hub"))
    publish(folder, hub.place)
    first = hub.card("greetings")
    (folder / "data.bin").write_bytes(BIG[:-1])
    (folder / "empty").unlink()
    (folder / "more.txt").write_bytes(b"more")
    publish(folder, hub.place)
    second = hub.card("greetings")
    assert second.version != first.version
    assert hub.card(f"greetings@{first.version}") == first
    found = compare(first.files, second.files)
    assert (found.added, found.removed, found.changed, found.same) == (("more.txt",), ("empty",), ("data.bin",), 2)
    assert found.lines()[-1] == "1 added, 1 removed, 1 changed, 2 equal"
    with pytest.raises(InputError, match=r"has no card 'greeting'. Did you mean 'greetings"):
        hub.card("greeting")


def test_a_named_version_is_not_written_over(folder: Path, tmp_path: Path) -> None:
    write(folder, CARD | {"version": "1.0"}, {})
    publish(folder, str(tmp_path / "hub"))
    (folder / "data.bin").write_bytes(b"other")
    with pytest.raises(InputError, match=r"version 1\.0 of 'greetings' is published with other contents"):
        publish(folder, str(tmp_path / "hub"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"licence": ""}, "names no licence: add a line such as 'licence: apache-2.0'"),
        ({"licence": "unknown"}, "names no licence"),
        ({"languages": None}, "names no languages"),
        ({"kind": None}, "names no kind"),
        ({"name": "Big Name"}, "'name' = 'Big Name'"),
        ({"files": []}, "'files' is found out from the folder"),
        ({"lisence": "mit"}, "unknown key 'lisence'. Did you mean 'licence'"),
        ({"sources": ["ftp://x"]}, "must start with one of"),
    ],
)
def test_a_folder_that_is_not_published(folder: Path, tmp_path: Path, change: dict, message: str) -> None:
    write(folder, {k: v for k, v in (CARD | change).items() if v is not None}, {})
    with pytest.raises(InputError, match=message):
        publish(folder, str(tmp_path / "hub"))
    assert not (tmp_path / "hub").exists()


def test_empty_linked_and_missing_folders(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(InputError, match=r"holds no file beside card\.yaml"):
        publish(write(tmp_path / "none", CARD, {".hidden": b"x"}), str(tmp_path / "hub"))
    with pytest.raises(InputError, match="does not exist"):
        publish(tmp_path / "nowhere", str(tmp_path / "hub"))
    (folder / "link").symlink_to("/etc/hostname")
    with pytest.raises(InputError, match="is a link or a device"):
        publish(folder, str(tmp_path / "hub"))
    (folder / "link").unlink()
    (folder / "back\\slash").write_bytes(b"x")
    with pytest.raises(InputError, match="rename it"):
        publish(folder, str(tmp_path / "hub"))


def test_published_over_http_and_read_without_a_token(
    folder: Path, site: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hubs, "_PIECE", 20_000)
    publish(folder, site, token=TOKEN)
    assert contents(tmp_path / "hub")[f"blobs/{hashlib.sha256(BIG).hexdigest()}"] == BIG
    hub = open_hub(site)
    card = hub.card("greetings")
    assert set(hub.cards()) == {"greetings"}
    assert contents(Store(tmp_path / "home").fetch(card)) == FILES
    assert not list((tmp_path / "hub" / ".uploads").iterdir())


def test_a_broken_upload_goes_on_where_it_was(
    folder: Path, site: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = next(entry for entry in folder_entries(folder) if entry.path == "data.bin")
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Range": "bytes 0-9999/50000"}
    url = f"{site}/blobs/{entry.sha256}"
    assert httpx.put(url, content=BIG[:10_000], headers=headers).json() == {"received": 10_000, "complete": False}
    assert httpx.put(url, content=BIG[:10_000], headers=headers).json()["received"] == 10_000, "sent twice, kept once"
    assert httpx.get(url).status_code == 404
    publish(folder, site, token=TOKEN)
    assert httpx.get(url).content == BIG


def test_wrong_bytes_are_not_taken(site: str, tmp_path: Path) -> None:
    url = f"{site}/blobs/{hashlib.sha256(b'right').hexdigest()}"
    headers = {"Authorization": f"Bearer {TOKEN}"}

    def put(content: bytes, span: str) -> httpx.Response:
        return httpx.put(url, content=content, headers=headers | {"Content-Range": span})

    answer = put(b"wrong", "bytes 0-4/5")
    assert answer.status_code == 422
    assert "send it again" in answer.json()["error"]["message"]
    assert put(b"right", "bytes 0-9/10").status_code == 400
    assert put(b"right", "0-5").status_code == 400
    assert put(b"r", "bytes 0-0/2000000").status_code == 413
    assert [p for p in (tmp_path / "hub").rglob("*") if p.is_file()] == []
    assert put(b"right", "bytes 0-4/5").json()["complete"]


def test_who_may_publish(folder: Path, site: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"HTTP 401 .*a token is needed to publish.*set RIVERRUN_HUB_TOKEN"):
        publish(folder, site)
    with pytest.raises(InputError, match="the token is wrong"):
        publish(folder, site, token="publisher-2")
    with BackgroundServer(make_hub_app(tmp_path / "hub")) as closed, pytest.raises(InputError, match="takes nothing"):
        publish(folder, closed.url, token=TOKEN)
    with pytest.raises(InputError, match="at least 8 printable"):
        make_hub_app(tmp_path, ["short"])
    monkeypatch.setenv("RIVERRUN_HUB_TOKEN", TOKEN)
    publish(folder, site)


def test_a_card_without_its_files_is_refused(folder: Path, site: str) -> None:
    card = read_folder(folder)
    with pytest.raises(InputError, match="names 4 files that are not in the hub"):
        open_hub(site, token=TOKEN).put(card)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    assert httpx.put(f"{site}/cards/other.yaml", content=b"name: x", headers=headers).status_code == 400
    assert httpx.put(f"{site}/cards/other.yaml", content=b"\xff{", headers=headers).status_code == 400
    assert httpx.get(f"{site}/index.json").status_code == 404


@pytest.mark.parametrize(
    "path",
    ["/../secret", "/blobs/../secret", "/blobs/..%2fsecret", "/cards/..%2f..%2fsecret.yaml", "/secret", "/.lock",
     "/blobs/" + "A" * 64, "/cards/%00.yaml", "/%2e%2e/secret", "/cards/.yaml", "//etc/passwd", "/uploads/x"],
)  # fmt: skip
def test_nothing_outside_can_be_asked_for(site: str, tmp_path: Path, path: str) -> None:
    (tmp_path / "secret").write_text("s")
    (tmp_path / "hub" / "secret").write_text("s")
    (tmp_path / "secret.yaml").write_text("s")
    import socket

    host, port = site.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: raw.recv(65536), b""))
    assert answer.split()[1] in (b"404", b"400", b"405", b"422"), answer


def test_ranges_and_entity_tags(folder: Path, site: str) -> None:
    publish(folder, site, token=TOKEN)
    digest = hashlib.sha256(BIG).hexdigest()
    answer = httpx.get(f"{site}/blobs/{digest}", headers={"Range": "bytes=49990-", "If-Range": f'"{digest}"'})
    assert (answer.status_code, answer.content, answer.headers["etag"]) == (206, BIG[-10:], f'"{digest}"')
    assert httpx.head(f"{site}/blobs/{digest}").headers["content-length"] == "50000"
    assert httpx.get(f"{site}/blobs/{digest}", headers={"Range": "bytes=60000-"}).status_code == 416
    assert httpx.delete(f"{site}/blobs/{digest}").status_code == 405


def test_any_static_server_is_a_readable_hub(folder: Path, tmp_path: Path) -> None:
    publish(folder, str(tmp_path / "hub"))

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(tmp_path / "hub"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert contents(Store(tmp_path / "home").fetch(open_hub(url).card("greetings"))) == FILES
        with pytest.raises(InputError, match="has no card 'nothing'"):
            open_hub(url).card("nothing")
        with pytest.raises(RiverrunError, match="a static server takes nothing"):
            publish(folder, url, token=TOKEN)
        server.shutdown()


def test_hubs_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no hub"):
        open_hub(str(tmp_path)).cards()
    (tmp_path / "index.json").write_text(json.dumps({"cards": []}))
    with pytest.raises(InputError, match="is no index of a hub"):
        open_hub(str(tmp_path)).cards()
    with pytest.raises(InputError, match="is not encrypted"):
        open_hub("http://example.org")
    with pytest.raises(InputError, match=r"is no card's name"):
        open_hub(str(tmp_path)).card("../../etc/passwd")
    with pytest.raises(InputError, match="failed 1 times"):
        open_hub("http://127.0.0.1:1", Patience(1, 0.0, 1.0)).cards()


def test_a_hubs_card_names_no_file_of_the_reader(folder: Path, tmp_path: Path) -> None:
    write(folder, CARD | {"sources": ["file:/etc", "hf:team/greetings"]}, {})
    hub = open_hub(str(tmp_path / "hub"))
    publish(folder, hub.place)
    assert hub.card("greetings").sources == (f"hub:{hub.place}", "hf:team/greetings")
    path = tmp_path / "hub" / "cards" / "greetings.yaml"
    path.rename(path.with_name("other.yaml"))
    with pytest.raises(IntegrityError, match="holds the card of greetings"):
        hub.card("other")


def test_a_card_of_aliases_of_aliases_is_refused_at_once(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    (tmp_path / "cards").mkdir()
    (tmp_path / "cards" / "bomb.yaml").write_text("\n".join(lines))
    with pytest.raises(InputError, match="holds a YAML alias"):
        open_hub(str(tmp_path)).card("bomb")


def test_a_damaged_blob_is_found_out(folder: Path, tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    publish(folder, str(hub))
    (hub / "blobs" / hashlib.sha256(BIG).hexdigest()).write_bytes(BIG[:-1] + b"?")
    store = Store(tmp_path / "home", attempts=1)
    with pytest.raises(InputError, match="gave wrong bytes"):
        store.fetch(open_hub(str(hub)).card("greetings"))
    assert not list((store.root / ".partial").iterdir())
