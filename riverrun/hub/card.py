"""Cards and manifests: what is known of a model or data set before it is fetched, and what came.

A card describes one file (`file_name`, `size_bytes`, `sha256`), a list of files, or a repository whose files its source
lists. The listing is written down as a manifest; every file gets its sha256 there at the latest when it arrives.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator

from riverrun.base.artifacts import digest_json
from riverrun.base.config import Config
from riverrun.base.errors import InputError
from riverrun.hub.spec import is_safe_path, parse_spec

__all__ = ["KINDS", "Card", "FileEntry", "Manifest", "check_paths"]

KINDS = ("model", "dataset", "benchmark")
Digest = Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{64})?$")]


class FileEntry(Config):
    """One file of a repository: its path, bytes (None: not known), sha256 and git's blob sha1 ("": not known)."""

    path: str
    size_bytes: int | None = Field(default=None, ge=0)
    sha256: Digest = ""
    git_sha1: Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{40})?$")] = ""

    @field_validator("path")
    @classmethod
    def _inside(cls, path: str) -> str:
        if not is_safe_path(path):
            raise ValueError(f"path {path!r} leads outside its folder or cannot be a file's name everywhere")
        return path


def check_paths(files: tuple[FileEntry, ...]) -> None:
    """ValueError when two paths cannot both be files: equal ones, or one that is the other's folder."""
    paths = [entry.path for entry in files]
    known = set(paths)
    if len(known) < len(paths):
        raise ValueError(f"'{next(path for path in paths if paths.count(path) > 1)}' is listed twice")
    for path in paths:
        parts = path.split("/")
        for count in range(1, len(parts)):
            if (parent := "/".join(parts[:count])) in known:
                raise ValueError(f"'{parent}' is a file and the folder of '{path}'")


class Card(Config):
    """What is known of a model, data set or benchmark. `sources` are tried in order; all must give the same bytes.

    For the forms of a source see riverrun/hub/spec.py. `published` holds figures in the publisher's own words,
    `access` says what is asked of those who download: nothing, to accept terms, or an account.
    """

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
    kind: Literal["model", "dataset", "benchmark"] = "model"
    version: Annotated[str, StringConstraints(pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]*)?$")] = ""
    title: str = ""
    description: str = ""
    description_zh: str = ""
    licence: Annotated[str, StringConstraints(min_length=1)]
    languages: tuple[str, ...] = ()
    parameters: int = Field(default=0, ge=0)
    context_length: int = Field(default=0, ge=0)
    published: str = ""
    access: Literal["open", "terms", "account"] = "open"
    file_name: Annotated[str, StringConstraints(pattern=r"^([A-Za-z0-9][A-Za-z0-9._+-]*)?$")] = ""
    size_bytes: int = Field(default=0, ge=0)
    sha256: Digest = ""
    files: tuple[FileEntry, ...] = ()
    sources: tuple[str, ...] = Field(min_length=1)
    citation: str = ""
    url: str = ""

    @field_validator("sources")
    @classmethod
    def _known_schemes(cls, sources: tuple[str, ...]) -> tuple[str, ...]:
        for source in sources:
            try:
                parse_spec(source)
            except InputError as error:
                raise ValueError(str(error)) from None
        return sources

    @model_validator(mode="after")
    def _one_form(self) -> Card:
        if self.file_name and self.files:
            raise ValueError("file_name is for a card of one file and files for several: give one of them")
        if self.sha256 and not self.file_name:
            raise ValueError("sha256 is of one file: give file_name too, or write it under files")
        if self.sha256 and not self.size_bytes:
            raise ValueError("a file with a sha256 needs its size_bytes too")
        check_paths(self.files)
        return self

    @property
    def identity(self) -> str:
        """sha256 of the file, or of everything that says which files are meant."""
        if self.sha256:
            return self.sha256
        files = [entry.model_dump(mode="json") for entry in self.files]
        known = bool(files) and all(entry.sha256 for entry in self.files)
        return digest_json([self.name, self.file_name, files, [] if known else self.sources])

    @property
    def entries(self) -> tuple[FileEntry, ...]:
        """The files as far as the card names them; empty for a repository that has to be asked."""
        if self.file_name:
            return (FileEntry(path=self.file_name, size_bytes=self.size_bytes or None, sha256=self.sha256),)
        return self.files

    @property
    def total_bytes(self) -> int:
        """Bytes of all files the card names; 0 when it does not say."""
        return self.size_bytes or sum(entry.size_bytes or 0 for entry in self.files)


class Manifest(Config):
    """What a source said a repository holds. `revision` is the commit (or what the source has in its place)."""

    name: str
    source: str
    revision: str = ""
    files: tuple[FileEntry, ...]

    @model_validator(mode="after")
    def _distinct(self) -> Manifest:
        check_paths(self.files)
        return self
