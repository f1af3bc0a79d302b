"""API keys: hashed where they are kept, each with what it may use at once and in a minute.

A file of keys is YAML, `keys: [{name, sha256, concurrency, tokens_per_minute}]`; 0 is no limit. A key itself is shown
once, when it is made.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydantic import Field

from riverrun.base.artifacts import write_text
from riverrun.base.config import Config, build_config, load_yaml
from riverrun.base.errors import InputError
from riverrun.web.errors import HttpError

__all__ = ["Key", "KeyFile", "KeyRing", "KeySettings", "add_key"]


class KeySettings(Config):
    """One key of a file."""

    name: str = Field(min_length=1, description="whose it is; requests of one name take turns with those of others")
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="of the key")
    concurrency: int = Field(default=0, ge=0, description="requests at once; 0 is no limit")
    tokens_per_minute: int = Field(default=0, ge=0, description="of prompts and answers; 0 is no limit")


class KeyFile(Config):
    """A file of keys."""

    keys: tuple[KeySettings, ...] = ()


class Key:
    """A key and what is left of its quotas. The bucket of tokens refills steadily and holds a minute's worth."""

    def __init__(self, settings: KeySettings) -> None:
        self.settings, self.running = settings, 0
        self.digest = bytes.fromhex(settings.sha256)
        self._left, self._seen = float(settings.tokens_per_minute), time.monotonic()
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        return self.settings.name

    @contextmanager
    def used(self) -> Iterator[None]:
        """One request; HttpError 429 says which quota is used up, and when to come back."""
        with self._lock:
            most, rate = self.settings.concurrency, self.settings.tokens_per_minute
            if most and self.running >= most:
                raise _too_many(f"{self.running} requests of key '{self.name}' run, at most {most} may", 1)
            self._refill()
            if rate and self._left <= 0:
                wait = math.ceil(-self._left * 60 / rate) or 1
                raise _too_many(f"key '{self.name}' has used its {rate} tokens a minute", wait)
            self.running += 1
        try:
            yield
        finally:
            with self._lock:
                self.running -= 1

    def charge(self, tokens: int) -> None:
        """So many tokens were used; the next request waits until the bucket is above zero again."""
        with self._lock:
            self._refill()
            self._left -= tokens

    def _refill(self) -> None:
        now, rate = time.monotonic(), self.settings.tokens_per_minute
        self._left = min(float(rate), self._left + (now - self._seen) * rate / 60)
        self._seen = now


def _too_many(text: str, seconds: int) -> HttpError:
    return HttpError(
        429,
        f"{text}: try again in {seconds} s",
        code="rate_limit_exceeded",
        kind="rate_limit_error",
        headers={"Retry-After": str(seconds)},
    )


class KeyRing:
    """All keys of a server; without any, everybody may ask."""

    def __init__(self, settings: Sequence[KeySettings] = ()) -> None:
        names = [each.name for each in settings]
        if twice := {name for name in names if names.count(name) > 1}:
            raise InputError(f"two keys are named '{min(twice)}': give each a name of its own")
        self.keys = [Key(each) for each in settings]

    @classmethod
    def of(cls, plain: Sequence[str] = (), file: Path | None = None) -> KeyRing:
        """Keys as they are (key-1, key-2, ...), and those of a file."""
        if any(not key or key != key.strip() or not key.isascii() or not key.isprintable() for key in plain):
            raise InputError("an API key must be printable ASCII text without spaces around it")
        settings = [KeySettings(name=f"key-{n}", sha256=_sha256(key)) for n, key in enumerate(plain, 1)]
        if file is not None:
            settings += build_config(KeyFile, load_yaml(file), origin=str(file)).keys
        return cls(settings)

    def __bool__(self) -> bool:
        return bool(self.keys)

    def find(self, given: bytes) -> Key | None:
        """The key, or None; every one is compared, in constant time, so that the answer's time says nothing."""
        digest = hashlib.sha256(given).digest()
        matches = [key for key in self.keys if hmac.compare_digest(digest, key.digest)]
        return matches[0] if matches else None


def _sha256(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def add_key(file: Path, name: str, *, concurrency: int = 0, tokens_per_minute: int = 0) -> str:
    """Make a key, add its hash to the file, and return it: it cannot be had again. InputError for a name in use."""
    import yaml

    before = build_config(KeyFile, load_yaml(file), origin=str(file)) if file.is_file() else KeyFile()
    if any(each.name == name for each in before.keys):
        raise InputError(f"{file} has a key named '{name}': take it out first or choose another name")
    key = f"rr-{secrets.token_urlsafe(32)}"
    new = build_config(
        KeySettings,
        {"name": name, "sha256": _sha256(key), "concurrency": concurrency, "tokens_per_minute": tokens_per_minute},
        origin="options",
    )
    content = KeyFile(keys=(*before.keys, new)).model_dump(mode="json")
    write_text(file, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    file.chmod(0o600)
    return key
