"""Repositories elsewhere: what files they hold and where each one's bytes are.

A remote lists (`listing`) and points (`locate`); the bytes themselves go through the store's one downloader. Reading
needs no client package: the protocols are plain HTTP.

    hf           GET /api/{models,datasets}/ID/revision/REV (commit), .../tree/COMMIT (pages), /ID/resolve/COMMIT/PATH
    modelscope   GET /api/v1/models/ID/repo/files, /api/v1/datasets/ID/repo/tree (pages), .../repo?Revision=&FilePath=
    opendatalab  GET /datasets/api/v2/datasets/OWNER,NAME/r/main (pages), /datasets/resolve/DATASET_ID/main/PATH
    hub          blobs/SHA256 below a folder or an address

Environment: HF_ENDPOINT, HF_TOKEN; MODELSCOPE_ENDPOINT (MODELSCOPE_DOMAIN), MODELSCOPE_API_TOKEN; OPENXLAB_AK and
OPENXLAB_SK (OpenDataLab lists to everybody, its files need an account), OPENDATALAB_ENDPOINT.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, urlencode

from riverrun.base.config import build_config
from riverrun.base.errors import ConfigError, InputError
from riverrun.hub.card import FileEntry, Manifest
from riverrun.hub.sources import local_path
from riverrun.hub.spec import Spec, parse_spec
from riverrun.hub.transport import Patience, SourceError, get_json, require_safe

__all__ = ["Locator", "Remote", "endpoint_of", "open_remote", "token_of"]

_PAGES = 10_000
_MODELSCOPE_LIMIT = 3000
"""repo/files of ModelScope names no more entries than this in one answer and has no pages."""


@dataclass(frozen=True)
class Locator:
    """Where one file's bytes are: a source for `sources.fetch`, headers with keys, what to do when it is refused."""

    source: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    hint: str = ""


class Remote(Protocol):
    """One repository. SourceError when it cannot be asked now."""

    def listing(self) -> Manifest:
        """Every file, with the revision it is of."""

    def locate(self, entry: FileEntry, revision: str) -> Locator:
        """Where a file of that revision is ("": the revision of the spec)."""


def open_remote(source: str, patience: Patience) -> Remote:
    """The remote behind a source spec."""
    spec = parse_spec(source)
    makers: dict[str, Callable[[Spec, Patience], Remote]] = {
        "hf": _HuggingFace,
        "modelscope": _ModelScope,
        "opendatalab": _OpenDataLab,
        "hub": _Hub,
        "file": _Local,
    }
    return makers.get(spec.scheme, _OneFile)(spec, patience)


def endpoint_of(scheme: str) -> str:
    """The address a repository scheme talks to, from the environment or its public one; no slash at the end."""
    if scheme == "hf":
        found = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    elif scheme == "modelscope":
        found = os.environ.get("MODELSCOPE_ENDPOINT") or os.environ.get("MODELSCOPE_DOMAIN") or "www.modelscope.cn"
    else:
        found = os.environ.get("OPENDATALAB_ENDPOINT") or "https://openxlab.org.cn"
    address = (found if "://" in found else f"https://{found}").rstrip("/")
    require_safe(address)
    return address


def token_of(scheme: str) -> str:
    """The key of the environment for that scheme; empty when there is none."""
    names = {"hf": "HF_TOKEN", "modelscope": "MODELSCOPE_API_TOKEN", "hub": "RIVERRUN_HUB_TOKEN"}
    token = os.environ.get(names[scheme], "").strip()
    if not token.isascii() or not token.isprintable():
        raise InputError(f"{names[scheme]} holds characters that no key has: set it anew")
    return token


def _pages(first: str, ask: Callable[[str], tuple[Any, str]]) -> Iterator[Any]:
    """Answers along the `next` links; SourceError when they go round in a circle."""
    url, seen = first, set[str]()
    while url:
        if url in seen or len(seen) >= _PAGES:
            raise SourceError(f"{first}: the pages of the listing come round again after {len(seen)}")
        seen.add(url)
        answer, url = ask(url)
        yield answer


def _manifest(spec: Spec, revision: str, rows: list[dict[str, Any]]) -> Manifest:
    """A manifest from what a server said; one file when the spec names one. SourceError names what cannot be."""
    if spec.member:
        rows = [row for row in rows if row["path"] == spec.member]
        if not rows:
            raise SourceError(f"{spec.text.partition('#')[0]} has no file '{spec.member}'")
    if not rows:
        raise SourceError(f"{spec.text} holds no file")
    values = {"name": spec.place, "source": spec.text, "revision": revision, "files": tuple(rows)}
    try:
        return build_config(Manifest, values, origin=f"listing of {spec.text}")
    except ConfigError as error:
        raise SourceError(str(error)) from None


def _rows(spec: Spec, answer: Any, *keys: str) -> list[dict[str, Any]]:
    """The list of objects below `keys` of an answer."""
    found = answer
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise SourceError(f"the listing of {spec.text} has an unknown form: check the endpoint")
    return found


def _size(row: Mapping[str, Any], key: str) -> int | None:
    found = row.get(key)
    return found if isinstance(found, int) and not isinstance(found, bool) and found >= 0 else None


def _hex(value: Any, length: int) -> str:
    text = str(value or "").lower()
    return text if len(text) == length and set(text) <= set("0123456789abcdef") else ""


class _HuggingFace:
    def __init__(self, spec: Spec, patience: Patience) -> None:
        self.spec, self.patience, self.endpoint = spec, patience, endpoint_of("hf")
        token = token_of("hf")
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}
        page = f"{self.endpoint}/{'datasets/' if spec.kind == 'dataset' else ''}{spec.place}"
        self.page = page
        what = "the token of HF_TOKEN has no access" if token else "it is private, gated or not there without a token"
        self.hint = f"{what}; check the name, accept the terms on {page} and set HF_TOKEN"

    def _ask(self, url: str) -> tuple[Any, str]:
        return get_json(url, self.patience, headers=self.headers, hint=self.hint)

    def listing(self) -> Manifest:
        api = f"{self.endpoint}/api/{self.spec.kind}s/{self.spec.place}"
        info, _ = self._ask(f"{api}/revision/{quote(self.spec.revision or 'main', safe='')}")
        commit = str(info.get("sha", "")) if isinstance(info, dict) else ""
        if not commit.isalnum():
            raise SourceError(f"{self.spec.text}: the answer of {self.endpoint} names no commit: check HF_ENDPOINT")
        rows = []
        for page in _pages(f"{api}/tree/{commit}?recursive=true", self._ask):
            for row in _rows(self.spec, page):
                if row.get("type") != "file":
                    continue
                large: Mapping[str, Any] = row["lfs"] if isinstance(row.get("lfs"), dict) else {}
                rows.append(
                    {
                        "path": str(row.get("path", "")),
                        "size_bytes": _size(large or row, "size"),
                        "sha256": _hex(large.get("oid"), 64),
                        "git_sha1": "" if large else _hex(row.get("oid"), 40),
                    }
                )
        return _manifest(self.spec, commit, rows)

    def locate(self, entry: FileEntry, revision: str) -> Locator:
        which = quote(revision or self.spec.revision or "main", safe="")
        return Locator(f"{self.page}/resolve/{which}/{quote(entry.path)}", self.headers, self.hint)


class _ModelScope:
    def __init__(self, spec: Spec, patience: Patience) -> None:
        self.spec, self.patience, self.endpoint = spec, patience, endpoint_of("modelscope")
        token = token_of("modelscope")
        # older routes read the cookie, newer ones the header
        self.headers = {"Authorization": f"Bearer {token}", "Cookie": f"m_session_id={token}"} if token else {}
        self.repo = f"{self.endpoint}/api/v1/{spec.kind}s/{spec.place}/repo"
        what = "the token has no access" if token else "it is private or not there without a token"
        self.hint = f"{what}; check the name or set MODELSCOPE_API_TOKEN"

    def _ask(self, path: str, **query: str | int) -> list[dict[str, Any]]:
        answer, _ = get_json(
            f"{self.repo}/{path}?{urlencode(query)}", self.patience, headers=self.headers, hint=self.hint
        )
        if isinstance(answer, dict) and answer.get("Success") is False:
            raise SourceError(f"{self.spec.text}: {answer.get('Message') or 'refused'}: {self.hint}")
        return _rows(self.spec, answer, "Data", "Files")

    def listing(self) -> Manifest:
        revision = self.spec.revision or "master"
        if self.spec.kind == "model":
            found = self._below("", revision)
        else:
            found, page, size = [], 1, 200
            while len(more := self._ask("tree", Revision=revision, Recursive="True", PageNumber=page, PageSize=size)):
                found += more
                if len(more) < size or page >= _PAGES:
                    break
                page += 1
        rows = [
            {
                "path": str(row.get("Path") or row.get("Name") or ""),
                "size_bytes": _size(row, "Size"),
                "sha256": _hex(row.get("Sha256"), 64),
            }
            for row in found
            if row.get("Type") != "tree"
        ]
        return _manifest(self.spec, revision, rows)

    def _below(self, root: str, revision: str) -> list[dict[str, Any]]:
        """Everything below a folder; folder by folder where one answer would be cut off."""
        where = {"Revision": revision, **({"Root": root} if root else {})}
        found = self._ask("files", Recursive="True", **where)
        if len(found) < _MODELSCOPE_LIMIT:
            return found
        level = self._ask("files", Recursive="False", **where)
        if len(level) >= _MODELSCOPE_LIMIT:
            raise SourceError(
                f"{self.spec.text}: folder '{root or '/'}' holds at least {len(level)} entries and ModelScope lists no "
                "more: write a card that names the files you want"
            )
        folders = [str(row.get("Path", "")) for row in level if row.get("Type") == "tree"]
        inside = [row for folder in folders if folder.startswith(root) for row in self._below(folder, revision)]
        return [*(row for row in level if row.get("Type") != "tree"), *inside]

    def locate(self, entry: FileEntry, revision: str) -> Locator:
        query = urlencode({"Revision": revision or self.spec.revision or "master", "FilePath": entry.path})
        return Locator(f"{self.repo}?{query}", self.headers, self.hint)


class _OpenDataLab:
    def __init__(self, spec: Spec, patience: Patience) -> None:
        self.spec, self.patience, self.endpoint = spec, patience, endpoint_of("opendatalab")
        self.key = ""

    def listing(self) -> Manifest:
        base = f"{self.endpoint}/datasets/api/v2/datasets/{quote(self.spec.place.replace('/', ','), safe=',')}/r/main"
        query = {"recursive": "true", "needContent": "true", "limit": "500"}
        rows: list[dict[str, Any]] = []
        dataset = ""

        def ask(url: str) -> tuple[Any, str]:
            answer, _ = get_json(url, self.patience)
            data = answer.get("data") if isinstance(answer, dict) else None
            more = data.get("after") if isinstance(data, dict) and data.get("hasNext") else None
            return answer, f"{base}?{urlencode(query | {'after': str(more)})}" if more else ""

        for page in _pages(f"{base}?{urlencode(query)}", ask):
            for row in _rows(self.spec, page, "data", "list"):
                dataset = dataset or str(row.get("dataset_id", ""))
                found = {"size_bytes": _size(row, "size"), "sha256": _hex(row.get("sha256"), 64)}
                rows.append({"path": str(row.get("path", "")).removeprefix("/"), **found})
        if rows and not dataset.isalnum():
            raise SourceError(f"the listing of {self.spec.text} names no data set id: check OPENDATALAB_ENDPOINT")
        return _manifest(self.spec, f"{dataset}/main", rows)

    def locate(self, entry: FileEntry, revision: str) -> Locator:
        revision = revision or self.listing().revision
        self.key = self.key or self._log_in()
        hint = f"fill in the form or accept the terms on https://opendatalab.com/{self.spec.place} first"
        source = f"{self.endpoint}/datasets/resolve/{revision}/{quote(entry.path)}"
        return Locator(source, {"Authorization": self.key}, hint)

    def _log_in(self) -> str:
        """A short-lived key for OPENXLAB_AK: the server's nonce, signed with OPENXLAB_SK."""
        name, secret = os.environ.get("OPENXLAB_AK", ""), os.environ.get("OPENXLAB_SK", "")
        if not name or not secret:
            raise SourceError(
                f"{self.spec.text} lists its files to everybody but gives them to accounts only: make one on "
                "https://sso.openxlab.org.cn and set OPENXLAB_AK and OPENXLAB_SK, or choose another source"
            )
        own = os.environ.get("OPENDATALAB_ENDPOINT")
        base = f"{self.endpoint if own else 'https://openapi.openxlab.org.cn'}/api/v1/sso-be/api/v1/open"
        first = self._signed(f"{base}/auth", {"ak": name})
        algorithm = str(first.get("algorithm", "")).removeprefix("Hmac").lower()
        if algorithm not in hashlib.algorithms_guaranteed or not first.get("nonce"):
            raise SourceError(f"{base}/auth wants a signature by '{algorithm}', which is not known here")
        mark = hmac.new(secret.encode(), str(first["nonce"]).encode(), algorithm).digest()
        second = self._signed(f"{base}/getJwt", {"ak": name, "d": base64.b64encode(mark).decode()})
        return str(second.get("jwt", ""))

    def _signed(self, url: str, body: Mapping[str, str]) -> Mapping[str, Any]:
        answer, _ = get_json(url, self.patience, body=dict(body))
        inner = answer.get("data") if isinstance(answer, dict) else None
        data = inner.get("data") if isinstance(inner, dict) and str(inner.get("msgCode")) == "10000" else None
        if not isinstance(data, dict):
            said = (inner or answer or {}).get("msg") if isinstance(inner or answer, dict) else ""
            raise SourceError(
                f"OpenDataLab refuses OPENXLAB_AK ({said or 'no reason given'}): check it and OPENXLAB_SK"
            )
        return data


class _Hub:
    def __init__(self, spec: Spec, patience: Patience) -> None:
        self.spec = spec

    def listing(self) -> Manifest:
        raise SourceError(f"{self.spec.text} is a hub: its cards name their files, this one names none")

    def locate(self, entry: FileEntry, revision: str) -> Locator:
        if not self.spec.place:
            raise SourceError("source 'hub:' means the hub a card was read from: read the card with --hub")
        if not entry.sha256:
            raise SourceError(f"'{entry.path}' has no sha256 in its card: a hub finds files by it")
        place = self.spec.place.rstrip("/")
        tail = f"blobs/{entry.sha256}"
        return Locator(f"{place}/{tail}" if "://" in place else f"file:{Path(place).absolute() / tail}")


class _Local:
    def __init__(self, spec: Spec, patience: Patience) -> None:
        self.spec, self.root = spec, local_path(spec.place).absolute()

    def listing(self) -> Manifest:
        if not self.root.exists():
            raise SourceError(f"{self.root} cannot be read (No such file or directory)")
        rows = []
        for path in sorted(self.root.rglob("*")) if self.root.is_dir() else [self.root]:
            if path.is_symlink() and not path.resolve().is_relative_to(self.root.resolve()):
                raise SourceError(f"{path} is a link that leads out of {self.root}: replace it by the file it means")
            if path.is_file():
                inside = path.relative_to(self.root).as_posix() if path != self.root else path.name
                rows.append({"path": inside, "size_bytes": path.stat().st_size})
        return _manifest(self.spec, "", rows)

    def locate(self, entry: FileEntry, revision: str) -> Locator:
        return Locator(f"file:{self.root / entry.path if self.root.is_dir() else self.root}")


class _OneFile:
    """pypi: and https: name exactly one file."""

    def __init__(self, spec: Spec, patience: Patience) -> None:
        self.spec = spec

    def listing(self) -> Manifest:
        entry = FileEntry(path=self.spec.file_name or self.spec.short_name)
        return Manifest(name=self.spec.place, source=self.spec.text, files=(entry,))

    def locate(self, entry: FileEntry, revision: str) -> Locator:
        return Locator(self.spec.text)
