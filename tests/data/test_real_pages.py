"""Pages as they are found: 35 news articles with their true text, and Debian's manuals with Chinese encodings."""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from riverrun.base.types import Document
from riverrun.data.extract import Extract
from riverrun.data.operators import Drop, Edited
from riverrun.data.pipeline import default_operators, run
from riverrun.data.sources import decode
from tests.shared_data import shared_path


def test_articles_are_extracted_well() -> None:
    """Token F1 against the true article body; resiliparse's heuristics alone have 0.885 on this kind of set."""
    folder = shared_path("corpora", "html_article_benchmark")
    truth = json.loads(gzip.decompress((folder / "ground-truth.json.gz").read_bytes()))
    scores = []
    for path in sorted((folder / "html").glob("*.html.gz")):
        html, _ = decode(gzip.decompress(path.read_bytes()))
        edited = Extract().edit(Document(path.name, html))
        assert isinstance(edited, Edited)
        found = Counter(re.findall(r"\w+", edited.document.text))
        wanted = Counter(re.findall(r"\w+", truth[path.name.split(".")[0]]["articleBody"]))
        scores.append(2 * (found & wanted).total() / (found.total() + wanted.total()))
    assert len(scores) == 35
    assert sum(scores) / len(scores) >= 0.89


def responses(path: Path) -> Iterator[tuple[str, bytes]]:
    """URL and body of each response of a WARC file, read without a WARC library."""
    data, at = gzip.decompress(path.read_bytes()), 0
    while (start := data.find(b"WARC/1", at)) >= 0:
        end = data.index(b"\r\n\r\n", start)
        lines = data[start:end].decode("utf-8", "replace").split("\r\n")[1:]
        head = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        at = end + 4 + int(head["content-length"])
        if head["warc-type"] == "response":
            yield head["warc-target-uri"].strip("<>"), data[end + 4 : at].partition(b"\r\n\r\n")[2]


def test_manuals_in_two_languages_and_encodings(tmp_path: Path) -> None:
    folder = shared_path("corpora", "html_debian_docs")
    charsets = {item["url"]: item["charset"] for item in json.loads((folder / "manifest.json").read_text())}
    documents: list[Document] = []
    gb18030 = 0
    for number, (url, body) in enumerate(responses(folder / "debian_docs.warc.gz")):
        text, encoding = decode(body)
        if url in charsets:
            assert encoding == charsets[url], url
            gb18030 += encoding == "gb18030"
        if url in charsets and len(body) < 40_000 and (encoding == "gb18030" or number % 5 == 0):
            documents.append(Document(url, text))
    assert gb18030 == 37
    assert len(documents) > 90
    assert not any(isinstance(Extract().edit(document), Drop) for document in documents)
    funnel = run(documents, default_operators(), tmp_path)
    assert funnel.kept >= 0.8 * funnel.documents, funnel.reasons
    assert not {"abusive", "spam", "broken_text", "empty", "unreadable"} & set(funnel.reasons)
