"""The store under faults: cut connections, wrong bytes, refusals, killed and competing processes, damage at rest."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import riverrun
from riverrun.base.errors import CapacityError, InputError, IntegrityError
from riverrun.base.progress import Progress
from riverrun.hub import store as store_module
from riverrun.hub.catalog import Card
from riverrun.hub.store import Store, default_root

from .loopback import LoopbackServer, cut, hold, redirect, status, whole

BODY = random.Random(7).randbytes(300_000)
HALF = 100_000


@pytest.fixture
def server() -> Iterator[LoopbackServer]:
    with LoopbackServer() as running:
        running.files["/tiny.bin"] = BODY
        yield running


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home", attempts=3, pause_seconds=0.0)


def card(*sources: str, body: bytes = BODY) -> Card:
    return Card(
        name="tiny",
        licence="mit",
        file_name="tiny.bin",
        size_bytes=len(body),
        sha256=hashlib.sha256(body).hexdigest(),
        sources=sources,
    )


def leftovers(store: Store) -> list[str]:
    return sorted(path.name for path in (store.root / ".partial").rglob("*"))


def test_fetched_once_then_offline(server: LoopbackServer, store: Store) -> None:
    one = card(f"{server.url}/tiny.bin")
    assert store.find(one) is None
    path = store.fetch(one)
    assert path == store.root / "sha256" / one.sha256 / "tiny.bin"
    assert path.read_bytes() == BODY
    assert leftovers(store) == []
    server.files.clear()
    assert store.fetch(one) == store.find(one) == store.verify(one) == path
    assert len(server.seen) == 1


def test_a_cut_connection_is_resumed(server: LoopbackServer, store: Store) -> None:
    server.script = [cut(HALF), status(503)]
    assert store.fetch(card(f"{server.url}/tiny.bin")).read_bytes() == BODY
    ranges = [headers.get("Range") for _, headers in server.seen]
    assert ranges == [None, f"bytes={HALF}-", f"bytes={HALF}-"]
    assert server.seen[2][1]["If-Range"] == '"v1"'
    assert leftovers(store) == []


def test_what_came_is_kept_for_the_next_run(server: LoopbackServer, store: Store) -> None:
    server.script = [cut(HALF), status(500), status(500)]
    one = card(f"{server.url}/tiny.bin")
    with pytest.raises(InputError, match=r"failed 3 times, 100000 of 300000 bytes are here \(HTTP 500\).*run again"):
        store.fetch(one)
    assert store.find(one) is None
    assert leftovers(store) == [one.sha256, f"{one.sha256}.etag"]
    assert Store(store.root).fetch(one).read_bytes() == BODY
    assert server.seen[-1][1]["Range"] == f"bytes={HALF}-"
    assert leftovers(store) == []


@pytest.mark.parametrize("behaviour", [whole, status(416)])
def test_a_server_without_ranges_starts_anew(server: LoopbackServer, store: Store, behaviour: Any) -> None:
    server.script = [cut(HALF), behaviour]
    assert store.fetch(card(f"{server.url}/tiny.bin")).read_bytes() == BODY


def test_a_file_that_changed_between_two_parts_starts_anew(server: LoopbackServer, store: Store) -> None:
    def changed(handler: Any, body: bytes) -> None:
        handler.server.etag = '"v2"'
        handler.server.files["/tiny.bin"] = BODY
        handler.begin(503, 0)

    server.files["/tiny.bin"] = b"x" * len(BODY)
    server.script = [cut(HALF), changed]
    assert store.fetch(card(f"{server.url}/tiny.bin")).read_bytes() == BODY


def test_a_spoilt_beginning_without_a_tag_is_fetched_once_more(server: LoopbackServer, store: Store) -> None:
    one = card(f"{server.url}/tiny.bin")
    part = store.root / ".partial" / one.sha256
    part.parent.mkdir(parents=True)
    part.write_bytes(b"not the beginning")
    assert store.fetch(one).read_bytes() == BODY
    assert [headers.get("Range") for _, headers in server.seen] == ["bytes=17-", None]


def test_a_complete_part_needs_no_network(server: LoopbackServer, store: Store) -> None:
    one = card(f"{server.url}/tiny.bin")
    part = store.root / ".partial" / one.sha256
    part.parent.mkdir(parents=True)
    part.write_bytes(BODY)
    assert store.fetch(one).read_bytes() == BODY
    assert server.seen == []


def test_wrong_bytes_never_get_a_name(server: LoopbackServer, store: Store) -> None:
    server.files["/tiny.bin"] = BODY[:-1] + bytes([BODY[-1] ^ 1])
    one = card(f"{server.url}/tiny.bin")
    with pytest.raises(InputError, match=r"gave wrong bytes: its sha256 is \w{12}, its card says \w{12}"):
        store.fetch(one)
    assert not store.path(one).exists()
    assert leftovers(store) == []


def test_a_longer_file_is_cut_off_at_once(server: LoopbackServer, store: Store) -> None:
    server.files["/tiny.bin"] = BODY * 20
    with pytest.raises(InputError, match="longer than the 300000 bytes of its card"):
        store.fetch(card(f"{server.url}/tiny.bin"))
    assert [name for name in leftovers(store) if not name.endswith(".etag")] == []


@pytest.mark.parametrize("code", [404, 403, 410])
def test_a_refusal_is_final(server: LoopbackServer, store: Store, code: int) -> None:
    server.script = [cut(HALF), status(code)]
    with pytest.raises(InputError, match=f"answers HTTP {code}"):
        store.fetch(card(f"{server.url}/tiny.bin"))
    assert len(server.seen) == 2
    assert leftovers(store) == []


def test_the_next_source_is_tried(server: LoopbackServer, store: Store, tmp_path: Path) -> None:
    (tmp_path / "copy.bin").write_bytes(BODY)
    sources = (f"{server.url}/nowhere", f"file:{tmp_path}/absent", (tmp_path / "copy.bin").as_uri())
    assert store.fetch(card(*sources)).read_bytes() == BODY
    with pytest.raises(InputError, match=r"HTTP 404.*; .*absent cannot be read \(No such file or directory\)"):
        Store(tmp_path / "other").fetch(card(*sources[:2]))


def test_nobody_listens(store: Store) -> None:
    with LoopbackServer() as gone:
        url = gone.url
    with pytest.raises(
        InputError, match=r"failed 3 times.*ConnectError.*check the network .*give the path of tiny.bin"
    ):
        store.fetch(card(f"{url}/tiny.bin"))
    assert leftovers(store) == []


def test_redirects_are_followed_but_not_into_the_open(server: LoopbackServer, store: Store) -> None:
    server.script = [redirect("/tiny.bin")]
    assert store.fetch(card(f"{server.url}/old")).read_bytes() == BODY
    server.script = [redirect("http://example.org/tiny.bin")]
    with pytest.raises(InputError, match=r"http://example.org/tiny.bin is not encrypted"):
        store.fetch(card(f"{server.url}/old"), again=True)
    server.script = [redirect("/round")] * 20
    with pytest.raises(InputError, match="redirects more than 8 times"):
        store.fetch(card(f"{server.url}/round"), again=True)
    with pytest.raises(InputError, match=r"http://example.org/x is not encrypted"):
        store.fetch(card("http://example.org/x"), again=True)


def test_damage_at_rest_is_seen_and_mended(server: LoopbackServer, store: Store) -> None:
    one = card(f"{server.url}/tiny.bin")
    path = store.fetch(one)
    path.write_bytes(BODY[:-5])
    with pytest.raises(IntegrityError, match=r"has 299995 bytes, its card says 300000.*delete it"):
        store.find(one)
    path.write_bytes(b"?" + BODY[1:])
    with pytest.raises(IntegrityError, match="its sha256 is"):
        store.fetch(one)
    assert store.fetch(one, again=True).read_bytes() == BODY
    assert store.find(one) == path


def test_verify_sees_what_size_and_time_hide(server: LoopbackServer, store: Store) -> None:
    one = card(f"{server.url}/tiny.bin")
    with pytest.raises(InputError, match="'tiny' is not in the store"):
        store.verify(one)
    path = store.fetch(one)
    before = path.stat()
    path.write_bytes(b"?" + BODY[1:])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert store.find(one) == path
    with pytest.raises(IntegrityError, match="is damaged"):
        store.verify(one)


def test_a_file_put_there_by_hand_is_checked_and_taken(store: Store) -> None:
    one = card("https://example.org/never-asked")
    store.path(one).parent.mkdir(parents=True)
    store.path(one).write_bytes(BODY)
    assert store.fetch(one).read_bytes() == BODY
    assert store.remove(one)
    assert not store.remove(one)
    assert store.find(one) is None


def test_a_failed_renewal_keeps_the_old_file(server: LoopbackServer, store: Store) -> None:
    one = card(f"{server.url}/tiny.bin")
    path = store.fetch(one)
    server.files.clear()
    with pytest.raises(InputError, match="HTTP 404"):
        store.fetch(one, again=True)
    assert path.read_bytes() == BODY
    assert store.find(one) == path


def test_progress_counts_every_byte_once(server: LoopbackServer, store: Store) -> None:
    server.script = [cut(HALF)]
    out = io.StringIO()
    store.fetch(card(f"{server.url}/tiny.bin"), Progress("json", stream=out, every_seconds=0))
    events = [json.loads(line) for line in out.getvalue().splitlines()]
    done = [event["done"] for event in events]
    assert done == sorted(done)
    assert (events[-1]["event"], events[-1]["done"], events[-1]["total"]) == ("done", len(BODY), len(BODY))


def test_no_room(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(store_module.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(CapacityError, match="RIVERRUN_HOME to another disk"):
        store.fetch(card("file:/nowhere"))


def test_a_root_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")
    with pytest.raises(InputError, match=r"home cannot be written .*set RIVERRUN_HOME"):
        Store(tmp_path / "home").fetch(card("file:/nowhere"))


def test_default_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RIVERRUN_HOME", str(tmp_path))
    assert default_root() == Store().root == tmp_path
    monkeypatch.delenv("RIVERRUN_HOME")
    assert default_root() == Path.home() / ".cache" / "riverrun"


# other processes ----------------------------------------------------------------------------------------------------

CHILD = """
import json, sys
from pathlib import Path
from riverrun.base.progress import Progress
from riverrun.hub.catalog import Card
from riverrun.hub.store import Store
root, card = sys.argv[1:]
path = Store(Path(root)).fetch(Card(**json.loads(card)), Progress("json", stream=sys.stdout, every_seconds=0))
print(json.dumps({"event": "path", "path": str(path)}))
"""


def start(store: Store, one: Card) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(riverrun.__file__).parents[1])}
    command = [sys.executable, "-c", CHILD, str(store.root), one.model_dump_json()]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def read_until(child: subprocess.Popen[str], wanted: Any) -> dict[str, Any]:
    assert child.stdout is not None
    for line in child.stdout:
        event = json.loads(line)
        if wanted(event):
            return event
    raise AssertionError("the child ended before the event came")


def test_kill_minus_nine_then_resume(server: LoopbackServer, store: Store) -> None:
    one, release = card(f"{server.url}/tiny.bin"), threading.Event()
    server.script = [hold(HALF, release)]
    child = start(store, one)
    read_until(child, lambda event: event.get("done") == HALF)
    child.kill()
    child.communicate()
    release.set()
    assert store.find(one) is None
    assert (store.root / ".partial" / one.sha256).read_bytes() == BODY[:HALF]
    assert store.fetch(one).read_bytes() == BODY
    assert server.seen[-1][1]["Range"] == f"bytes={HALF}-"
    assert leftovers(store) == []


def test_two_processes_share_one_download(server: LoopbackServer, store: Store) -> None:
    one, release = card(f"{server.url}/tiny.bin"), threading.Event()
    server.script = [hold(HALF, release)]
    first = start(store, one)
    read_until(first, lambda event: event.get("done") == HALF)
    second = start(store, one)
    read_until(second, lambda event: "another process is fetching tiny" in event.get("text", ""))
    release.set()
    paths = [read_until(child, lambda event: event["event"] == "path")["path"] for child in (first, second)]
    for child in (first, second):
        child.communicate()
    assert paths == [str(store.path(one))] * 2
    assert (first.returncode, second.returncode) == (0, 0)
    assert len(server.seen) == 1
