"""Repositories of many files: listed, fetched, resumed and verified over the protocols of each source."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import riverrun
from riverrun.base.errors import ConfigError, InputError, IntegrityError
from riverrun.hub import remotes
from riverrun.hub.catalog import Card, card_of
from riverrun.hub.store import Store

from .loopback import cut, hold, redirect, status
from .protocols import COMMIT, LARGE, ProtocolServer, Repository, git_oid

BIG = random.Random(5).randbytes(60_000)
FILES = {
    "config.json": b'{"layers": 2}',
    "README.md": "说明".encode(),
    "weights/model-00001.safetensors": BIG,
    ".gitattributes": b"*.safetensors filter=lfs\n",
    "empty.txt": b"",
    "tokenizer/词表.txt": "你好".encode(),
}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ProtocolServer]:
    with ProtocolServer() as running:
        for name in ("HF_ENDPOINT", "MODELSCOPE_ENDPOINT", "OPENDATALAB_ENDPOINT"):
            monkeypatch.setenv(name, running.url)
        for name in ("HF_TOKEN", "MODELSCOPE_API_TOKEN", "OPENXLAB_AK", "OPENXLAB_SK"):
            monkeypatch.delenv(name, raising=False)
        running.repositories["team/tiny"] = Repository(dict(FILES))
        running.repositories["team/facts"] = Repository(dict(FILES), dataset=True)
        yield running


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home", attempts=3, pause_seconds=0.0)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def leftovers(store: Store) -> list[str]:
    return sorted(p.name for p in (store.root / ".partial").rglob("*")) + [
        p.name for p in store.root.rglob("*.tmp") if p.is_file()
    ]


@pytest.mark.parametrize(
    "source", ["hf:team/tiny", "hf:datasets/team/facts", "modelscope:team/tiny", "modelscope:datasets/team/facts"]
)
def test_a_repository_comes_whole_and_stays_without_network(server: ProtocolServer, store: Store, source: str) -> None:
    card = card_of(source)
    folder = store.fetch(card)
    assert contents(folder) == FILES
    assert leftovers(store) == []
    manifest = store.manifest(card)
    assert manifest is not None
    assert manifest.revision == (COMMIT if source.startswith("hf") else "master")
    assert {e.path: (e.size_bytes, e.sha256) for e in manifest.files} == {
        name: (len(content), hashlib.sha256(content).hexdigest()) for name, content in FILES.items()
    }
    asked = len(server.asked)
    server.repositories.clear()
    assert store.fetch(card) == store.find(card) == store.verify(card) == folder
    assert len(server.asked) == asked


def test_opendatalab_lists_to_everybody_and_gives_to_accounts(
    server: ProtocolServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = card_of("opendatalab:team/facts")
    with pytest.raises(InputError, match=r"gives them to accounts only: .* set OPENXLAB_AK and OPENXLAB_SK"):
        store.fetch(card)
    monkeypatch.setenv("OPENXLAB_AK", "me")
    monkeypatch.setenv("OPENXLAB_SK", "wrong")
    with pytest.raises(InputError, match=r"refuses OPENXLAB_AK \(wrong signature\)"):
        store.fetch(card)
    monkeypatch.setenv("OPENXLAB_SK", "secret")
    assert contents(store.fetch(card)) == FILES


def test_only_some_files_and_none_outside_the_manifest(server: ProtocolServer, store: Store) -> None:
    card = card_of("hf:team/tiny")
    folder = store.fetch(card, only=("*.json", "tokenizer"))
    assert sorted(contents(folder)) == ["config.json", "tokenizer/词表.txt"]
    assert store.find(card) is None
    assert store.find(card, only=("*.json",)) == folder
    assert store.verify(card) == folder
    assert "README.md" in store.missing(card)
    with pytest.raises(InputError, match=r"no file of .* is '\.\./secret': a file outside its manifest is not fetched"):
        store.fetch(card, only=("../secret",))
    assert contents(store.fetch(card)) == FILES
    assert store.missing(card) == ()
    assert [path for path, _ in server.seen].count(f"/team/tiny/resolve/{COMMIT}/config.json") == 1


def test_one_file_of_a_repository(server: ProtocolServer, store: Store) -> None:
    path = store.fetch(card_of("hf:team/tiny@main#weights/model-00001.safetensors"))
    assert path.read_bytes() == BIG
    assert path.name == "model-00001.safetensors"
    with pytest.raises(InputError, match="has no file 'nothing'"):
        store.fetch(card_of("modelscope:team/tiny#nothing"))


def test_a_card_lists_its_files_and_the_source_is_not_asked(server: ProtocolServer, store: Store) -> None:
    entry = {"path": "config.json", "size_bytes": 13, "git_sha1": git_oid(FILES["config.json"])}
    card = Card(name="part", licence="mit", files=(entry,), sources=("hf:team/tiny",))
    path = store.fetch(card)
    assert path.read_bytes() == FILES["config.json"]
    assert [path for path, _ in server.seen] == ["/team/tiny/resolve/main/config.json"]
    wrong = Card(name="part", licence="mit", files=(entry | {"git_sha1": "0" * 40},), sources=("hf:team/tiny",))
    with pytest.raises(InputError, match=r"gave wrong bytes: its git sha1 is \w{12}, its card says 000000000000"):
        store.fetch(wrong)
    assert leftovers(store) == []


def test_the_second_source_helps_where_the_digest_is_known(server: ProtocolServer, store: Store) -> None:
    big = {"path": "weights/model-00001.safetensors", "sha256": hashlib.sha256(BIG).hexdigest()}
    card = Card(name="two", licence="mit", files=(big,), sources=("hf:team/gone", "modelscope:team/tiny"))
    assert store.fetch(card).read_bytes() == BIG


def test_cut_wrong_and_refused_on_the_way(server: ProtocolServer, store: Store) -> None:
    def spoilt(handler, body: bytes) -> None:
        handler.begin(200, len(body))
        handler.wfile.write(body[:-1] + b"?")

    server.script = [status(503), spoilt, cut(3), redirect("/team/tiny/resolve/main/config.json")]
    assert contents(store.fetch(card_of("hf:team/tiny"))) == FILES
    assert leftovers(store) == []


def test_gated_and_missing_say_what_to_do(
    server: ProtocolServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.repositories["team/tiny"].gated = True
    with pytest.raises(InputError, match=r"HTTP 401 .*restricted.*accept the terms on .*/team/tiny and set HF_TOKEN"):
        store.fetch(card_of("hf:team/tiny"))
    with pytest.raises(InputError, match=r"HTTP 403 .*未登录.*set MODELSCOPE_API_TOKEN"):
        store.fetch(card_of("modelscope:team/tiny"))
    with pytest.raises(InputError, match="HTTP 404"):
        store.fetch(card_of("hf:team/nothing"))
    monkeypatch.setenv("HF_TOKEN", server.token)
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", server.token)
    assert contents(store.fetch(card_of("hf:team/tiny"))) == FILES
    assert contents(store.fetch(card_of("modelscope:team/tiny"))) == FILES


def test_a_key_does_not_travel_to_another_host(
    server: ProtocolServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", server.token)
    with ProtocolServer() as other:
        other.repositories["team/tiny"] = Repository(dict(FILES))
        server.script = [redirect(f"{other.url}/team/tiny/resolve/main/config.json")]
        store.fetch(card_of("hf:team/tiny"), only=("config.json",))
        assert server.seen[-1][1].get("Authorization") == "Bearer tok"
        assert "Authorization" not in other.seen[-1][1]


def test_modelscope_cuts_long_listings_and_we_walk_the_folders(
    server: ProtocolServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.limit = 7  # 6 files and 2 folders are 8 entries; no folder holds 7
    monkeypatch.setattr(remotes, "_MODELSCOPE_LIMIT", 7)
    assert contents(store.fetch(card_of("modelscope:team/tiny"))) == FILES
    server.limit = 2
    monkeypatch.setattr(remotes, "_MODELSCOPE_LIMIT", 2)
    with pytest.raises(InputError, match=r"folder '/' holds at least 2 entries"):
        Store(store.root / "other", attempts=1).fetch(card_of("modelscope:team/tiny"))


@pytest.mark.parametrize("path", ["../up.txt", "a/../../b", "/etc/x", "a\\b", "C:x", "a//b", "x\n", "."])
@pytest.mark.parametrize("source", ["hf:team/tiny", "modelscope:team/tiny"])
def test_a_listing_that_leads_outside_is_refused(server: ProtocolServer, store: Store, path: str, source: str) -> None:
    server.repositories["team/tiny"].files[path] = b"x"
    with pytest.raises(InputError, match=r"could not be listed .*leads outside its folder"):
        store.fetch(card_of(source))
    assert not (store.root / "sha256").exists()


def test_a_listing_that_goes_round_in_circles(server: ProtocolServer, store: Store) -> None:
    files = {f"{n}.txt": b"x" for n in range(10)}
    server.repositories["team/tiny"].files = files
    server.RequestHandlerClass = type("Circle", (server.RequestHandlerClass,), {"_tree": _circle})
    with pytest.raises(InputError, match="come round again"):
        store.fetch(card_of("hf:team/tiny"))


def _circle(self, repository: Repository, path: str, query: dict[str, str]) -> bool:
    return self.send_json([], Link=f'<{self.server.url}{self.path}>; rel="next"')


def test_the_endpoint_is_a_web_page(server: ProtocolServer, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    page = b"<html>welcome to the hotel network</html>"
    server.RequestHandlerClass = type("Page", (server.RequestHandlerClass,), {"do_GET": _page})
    with pytest.raises(InputError, match="answers with a web page where JSON was expected: check the endpoint"):
        store.fetch(card_of("hf:team/tiny"))
    with pytest.raises(InputError, match="answers with a web page, not with a file"):
        store.fetch(card_of(f"{server.url}/model.bin"))
    assert store.fetch(card_of(f"{server.url}/page.html")).read_bytes() == page


def _page(self) -> None:
    body = b"<html>welcome to the hotel network</html>"
    self.begin(200, len(body), Content_Type="text/html; charset=utf-8")
    self.wfile.write(body)


def test_trust_on_first_use(server: ProtocolServer, store: Store) -> None:
    server.files["/a.bin"] = BIG
    server.RequestHandlerClass = type("Files", (server.RequestHandlerClass,), {"do_GET": _plain})
    card = card_of(f"{server.url}/a.bin")
    path = store.fetch(card)
    assert path.read_bytes() == BIG
    manifest = store.manifest(card)
    assert manifest is not None
    assert manifest.files[0].sha256 == hashlib.sha256(BIG).hexdigest()
    server.files["/a.bin"] = b"other bytes"
    assert store.fetch(card).read_bytes() == BIG
    assert store.fetch(card, again=True).read_bytes() == b"other bytes"
    path.write_bytes(b"other bytez")
    with pytest.raises(IntegrityError, match="is damaged"):
        store.verify(card)
    assert store.fetch(card, again=True).read_bytes() == b"other bytes"
    assert store.verify(card) == path


def _plain(self) -> None:
    self.send_file(self.server.files.get(self.path, b""))


def test_damage_in_a_repository_is_named_and_mended(server: ProtocolServer, store: Store) -> None:
    card = card_of("hf:team/tiny")
    folder = store.fetch(card)
    (folder / "config.json").write_bytes(b"{}")
    with pytest.raises(IntegrityError, match=r"config\.json is damaged \(it has 2 bytes, its card says 13\)"):
        store.verify(card)
    with pytest.raises(IntegrityError, match="is damaged"):
        store.find(card)
    assert contents(store.fetch(card, again=True)) == FILES
    assert store.verify(card) == folder
    (folder / "README.md").unlink()
    assert contents(store.fetch(card)) == FILES, "the link is made again from what is stored"
    assert store.remove(card)
    assert not store.remove(card)
    assert store.find(card) is None
    assert not list((store.root / "sha256").iterdir())


def test_equal_files_are_kept_once(server: ProtocolServer, store: Store) -> None:
    server.repositories["team/copy"] = Repository({"other/name.bin": BIG})
    one = store.fetch(card_of("hf:team/tiny")) / "weights/model-00001.safetensors"
    asked = len(server.seen)
    two = store.fetch(card_of("hf:team/copy")) / "other/name.bin"
    assert os.path.samefile(one, two)
    assert len(server.seen) == asked
    assert store.remove(card_of("hf:team/tiny"))
    assert store.fetch(card_of("hf:team/copy")).is_dir()
    assert len(server.seen) == asked, "what another repository shares is kept"


def test_a_new_commit_is_taken_only_on_request(server: ProtocolServer, store: Store) -> None:
    card = card_of("hf:team/tiny")
    folder = store.fetch(card)
    server.repositories["team/tiny"] = Repository({"config.json": b"{}"}, revision="d" * 40)
    assert contents(store.fetch(card)) == FILES
    server.script = [status(404)]
    with pytest.raises(InputError, match="HTTP 404"):
        store.fetch(card, again=True)
    assert contents(store.fetch(card)) == FILES, "a failed renewal keeps what was there"
    assert contents(store.fetch(card, again=True)) == {"config.json": b"{}"}
    manifest = store.manifest(card)
    assert manifest is not None
    assert (manifest.revision, folder) == ("d" * 40, store.path(card))


CHILD = """
import sys
from pathlib import Path
from riverrun.base.progress import Progress
from riverrun.hub.catalog import card_of
from riverrun.hub.store import Store
progress = Progress("json", stream=sys.stdout, every_seconds=0)
print(Store(Path(sys.argv[1])).fetch(card_of(sys.argv[2]), progress), flush=True)
"""


def start(store: Store, source: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(riverrun.__file__).parents[1])}
    command = [sys.executable, "-c", CHILD, str(store.root), source]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def wait_for(child: subprocess.Popen[str], text: str) -> None:
    assert child.stdout is not None
    assert any(text in line for line in child.stdout)


def test_two_processes_share_one_download_and_a_killed_one_is_resumed(server: ProtocolServer, store: Store) -> None:
    server.repositories["team/tiny"].files = {"big.bin": BIG}
    release = threading.Event()
    server.script = [hold(LARGE, release)]
    killed = start(store, "hf:team/tiny")
    wait_for(killed, f'"done": {LARGE}')
    killed.kill()
    killed.communicate()
    release.set()
    again, go = threading.Event(), threading.Event()
    server.script = [lambda handler, body: (again.set(), go.wait(30), handler.begin(503, 0))]
    first = start(store, "hf:team/tiny")
    assert again.wait(30)
    second = start(store, "hf:team/tiny")
    wait_for(second, "another process is fetching tiny")
    go.set()
    outputs = [child.communicate()[0].splitlines()[-1] for child in (first, second)]
    assert outputs == [str(store.path(card_of("hf:team/tiny")))] * 2
    assert contents(Path(outputs[0])) == {"big.bin": BIG}
    assert [headers.get("Range") for _, headers in server.seen] == [None, f"bytes={LARGE}-", f"bytes={LARGE}-"]
    assert leftovers(store) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sources": ("hf:alone",)}, r"'hf:alone' names no repository: write hf:\[datasets/\]OWNER/NAME"),
        ({"sources": ("hf:a/b@../c",)}, "names no repository"),
        ({"sources": ("opendatalab:a/b@v2",)}, "in one version"),
        ({"sources": ("hf:a/b#../c",)}, "outside the repository"),
        ({"sources": ("https:///x",)}, "names no host"),
        ({"files": ({"path": "a"}, {"path": "a"})}, "'a' is listed twice"),
        ({"files": ({"path": "a"}, {"path": "a/b"})}, "'a' is a file and the folder of 'a/b'"),
        ({"files": ({"path": "a"},), "file_name": "b"}, "give one of them"),
        ({"sha256": "0" * 64}, "give file_name too"),
    ],
)
def test_cards_that_cannot_be(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Card(**{"name": "x", "licence": "mit", "sources": ("hf:a/b",), **change})


def test_a_folder_is_a_source(tmp_path: Path, store: Store) -> None:
    folder = tmp_path / "given"
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    assert contents(store.fetch(card_of(f"file:{folder}"))) == FILES
    (folder / "out").symlink_to("/etc/hostname")
    with pytest.raises(InputError, match="is a link that leads out"):
        store.fetch(card_of(f"file:{folder}"), again=True)
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="holds no file"):
        store.fetch(card_of(f"file:{tmp_path / 'none'}"))


def test_an_unknown_source_of_the_command_line() -> None:
    with pytest.raises(InputError, match="must start with one of"):
        card_of("ftp://x/y")
    with pytest.raises((InputError, ConfigError)):
        card_of("hf:")
