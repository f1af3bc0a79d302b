"""A folder read as documents: formats, encodings, order, and no way out of the folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from riverrun.base.errors import InputError
from riverrun.data.sources import MAX_BYTES, decode, read_folder


def test_files_of_known_kinds_are_read_in_order(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / ".git").mkdir()
    for name in ("b/page.HTML", "a.txt", "c.md", "image.png", ".hidden.txt", ".git/x.txt"):
        (tmp_path / name).write_text("hello")
    documents = read_folder(tmp_path)
    assert [document.id for document in documents] == ["a.txt", "b/page.HTML", "c.md"]
    assert [document.metadata["format"] for document in documents] == ["text", "html", "markdown"]
    assert documents[0].metadata["encoding"] == "utf-8"


def test_an_empty_or_missing_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(b"x")
    with pytest.raises(InputError, match=r"holds no \.html, \.txt or \.md file"):
        read_folder(tmp_path)
    with pytest.raises(InputError, match="is not a folder"):
        read_folder(tmp_path / "nothing")
    with pytest.raises(InputError, match="is not a folder"):
        read_folder(tmp_path / "image.png")


@pytest.mark.parametrize("target", ["secret.txt", "outside"])
def test_a_link_out_of_the_folder_is_refused(target: str, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "outside").mkdir()
    site = tmp_path / "site"
    site.mkdir()
    (site / "a.txt").write_text("hello")
    (site / "link.txt").symlink_to(tmp_path / target)
    with pytest.raises(InputError, match=r"link\.txt is a link to .* outside of"):
        read_folder(site)


def test_a_link_inside_the_folder_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello")
    (tmp_path / "b.txt").symlink_to(tmp_path / "a.txt")
    assert [document.text for document in read_folder(tmp_path)] == ["hello", "hello"]


def test_a_folder_that_is_itself_a_link_is_read(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.txt").write_text("hello")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert [document.id for document in read_folder(tmp_path / "link")] == ["a.txt"]


def test_a_huge_file_is_a_document_with_a_problem(tmp_path: Path) -> None:
    with open(tmp_path / "big.txt", "wb") as handle:
        handle.truncate(MAX_BYTES + 1)
    (document,) = read_folder(tmp_path)
    assert document.text == ""
    assert "the limit is" in document.metadata["problem"]


SENTENCE = "港口旁边的书店每天九点开门，读者可以在这里看书、喝咖啡，也可以参加晚上的朗读会。" * 4


@pytest.mark.parametrize(
    ("raw", "text", "encoding"),
    [
        ("café".encode(), "café", "utf-8"),
        (b"\xef\xbb\xbfhello", "hello", "utf-8"),
        ("hello ü".encode("utf-16"), "hello ü", "utf-16-le"),
        (SENTENCE.encode("gb18030"), SENTENCE, "gb18030"),
        (b'<meta charset="gbk">' + SENTENCE.encode("gbk"), '<meta charset="gbk">' + SENTENCE, "gbk"),
        (b'<meta charset="gbk">' + SENTENCE.encode(), '<meta charset="gbk">' + SENTENCE, "utf-8"),
        ("prix: 5 € à l'été où".encode("cp1252"), "prix: 5 € à l'été où", "cp1252"),
        (b"", "", "utf-8"),
    ],
)
def test_encodings(raw: bytes, text: str, encoding: str) -> None:
    found, name = decode(raw)
    assert found == text
    assert {"gbk": "gb18030", "windows-1252": "cp1252"}.get(name, name) == {"gbk": "gb18030"}.get(encoding, encoding)


def test_bytes_that_fit_nothing_are_replaced() -> None:
    text, _ = decode(b"<html>hello \xff\xfe\x80 there, this is a page" * 3)
    assert "hello" in text
    text.encode("utf-8")
