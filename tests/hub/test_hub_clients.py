"""The real huggingface_hub client against the loopback server, both ways, so that what we read is what it reads."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from riverrun.base.errors import InputError
from riverrun.hub.catalog import card_of
from riverrun.hub.publish import publish
from riverrun.hub.store import Store

from .protocols import COMMIT, ProtocolServer, Repository
from .test_hub_hubs import CARD, contents, write

FILES = {"config.json": b"{}", "nested/weights.bin": random.Random(4).randbytes(20_000), "中文.txt": "字".encode()}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ProtocolServer]:
    import huggingface_hub.constants as constants

    with ProtocolServer() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # large files travel by LFS here
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield running


def test_the_client_reads_what_we_read(server: ProtocolServer, tmp_path: Path) -> None:
    from huggingface_hub import HfApi, snapshot_download

    server.repositories["team/tiny"] = Repository(dict(FILES))
    api = HfApi(endpoint=server.url)
    theirs = {
        f.path: (f.size, f.lfs and f.lfs.sha256, f.blob_id)
        for f in api.list_repo_tree("team/tiny", recursive=True)
        if hasattr(f, "size")
    }
    store = Store(tmp_path / "home")
    card = card_of("hf:team/tiny")
    ours = contents(store.fetch(card))
    manifest = store.manifest(card)
    assert manifest is not None
    assert manifest.revision == api.model_info("team/tiny").sha == COMMIT
    assert {e.path for e in manifest.files} == set(theirs) == set(FILES)
    for entry in manifest.files:
        size, sha256, oid = theirs[entry.path]
        assert entry.size_bytes == size
        assert sha256 in (None, entry.sha256)
        assert entry.git_sha1 in ("", oid)
    folder = snapshot_download("team/tiny", local_dir=tmp_path / "theirs", endpoint=server.url)
    read = {path: content for path, content in contents(Path(folder)).items() if not path.startswith(".cache")}
    assert read == ours == FILES


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_published_through_the_client_and_read_back(server: ProtocolServer, tmp_path: Path, kind: str) -> None:
    folder = write(tmp_path / "given", CARD | {"kind": kind}, FILES | {".hidden": b"stays here"})
    with pytest.raises(InputError, match="needs a token with the right to write: set HF_TOKEN"):
        publish(folder, "hf:team/new")
    said = publish(folder, "hf:team/new", token=server.token)
    assert said == f"{server.url}/{'datasets/' if kind == 'dataset' else ''}team/new"
    source = f"hf:{'datasets/' if kind == 'dataset' else ''}team/new"
    assert contents(Store(tmp_path / "home").fetch(card_of(source))) == FILES | {
        "card.yaml": (folder / "card.yaml").read_bytes()
    }
    assert list(server.objects) == [hashlib.sha256(FILES["nested/weights.bin"]).hexdigest()]


def test_what_the_client_says_is_one_sentence(server: ProtocolServer, tmp_path: Path) -> None:
    folder = write(tmp_path / "given", CARD, FILES)
    with pytest.raises(InputError, match=r"huggingface_hub could not publish to hf:team/new \(.*401"):
        publish(folder, "hf:team/new", token="wrong")
    with pytest.raises(InputError, match="names a file"):
        publish(folder, "hf:team/new#x", token="t")
