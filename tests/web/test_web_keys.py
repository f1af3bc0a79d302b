"""Keys and quotas: hashed at rest, one request too many, one token too many, and back after a while."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from riverrun.base.errors import ConfigError, InputError
from riverrun.web import keys
from riverrun.web.errors import HttpError
from riverrun.web.keys import Key, KeyRing, KeySettings, add_key


def settings(**more: object) -> KeySettings:
    return KeySettings(name="shop", sha256=hashlib.sha256(b"secret").hexdigest(), **more)  # type: ignore[arg-type]


def test_a_key_is_shown_once_and_kept_as_its_hash(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    first = add_key(file, "shop", concurrency=2)
    second = add_key(file, "clinic", tokens_per_minute=100)
    assert first not in file.read_text()
    assert file.stat().st_mode & 0o077 == 0
    ring = KeyRing.of(["plain"], file)
    assert [key.name for key in ring.keys] == ["key-1", "shop", "clinic"]
    for given, name in ((first, "shop"), (second, "clinic"), ("plain", "key-1")):
        found = ring.find(given.encode())
        assert found is not None
        assert found.name == name
    assert ring.find(b"other") is None
    assert ring.find(b"") is None
    with pytest.raises(InputError, match="has a key named 'shop'"):
        add_key(file, "shop")
    with pytest.raises(InputError, match="two keys are named 'shop'"):
        KeyRing([settings(), settings()])
    file.write_text("keys: [{name: a, sha256: nope}]")
    with pytest.raises(ConfigError, match="sha256"):
        KeyRing.of(file=file)


def test_requests_at_once() -> None:
    key = Key(settings(concurrency=2))
    with (
        key.used(),
        key.used(),
        pytest.raises(HttpError, match="2 requests of key 'shop' run, at most 2 may") as caught,
    ):
        key.used().__enter__()
    assert caught.value.status == 429
    with key.used():
        pass
    assert key.running == 0


def test_tokens_in_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(keys.time, "monotonic", lambda: now[0])
    key = Key(settings(tokens_per_minute=60))
    with key.used():
        key.charge(90)
    with pytest.raises(HttpError, match="has used its 60 tokens a minute") as caught:
        key.used().__enter__()
    assert caught.value.headers["Retry-After"] == "30"
    now[0] += 31
    with key.used():
        key.charge(1)
    now[0] += 3600
    with key.used():  # the bucket holds no more than a minute
        key.charge(60)
    with pytest.raises(HttpError):
        key.used().__enter__()
