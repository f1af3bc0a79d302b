"""The way of the documents: nothing is lost, every drop is explained, equal input gives equal bytes."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from riverrun.base.errors import InputError
from riverrun.base.types import Document
from riverrun.data import journal
from riverrun.data.journal import Dropped, Funnel, read_documents, read_dropped, read_funnel, write_journal
from riverrun.data.operators import Drop, Edited
from riverrun.data.pipeline import clean_folder, run
from tests.data.test_rules import POLICY


class ByLetter:
    """Rule: drops texts that start with the letter."""

    def __init__(self, letter: str) -> None:
        self.name, self.letter = f"no_{letter}", letter

    def check(self, document: Document) -> Drop | None:
        return Drop(f"starts_{self.letter}", document.text[:3]) if document.text.startswith(self.letter) else None


class CutOff:
    """Edit: takes the first character off, drops what is then empty."""

    name = "cut"

    def edit(self, document: Document) -> Edited | Drop:
        if len(document.text) < 2:
            return Drop("empty", "one character")
        return Edited(Document(document.id, document.text[1:]), {"cut": 1})


class KeepTwo:
    """Grouped: only the first two stay."""

    name = "two"

    def group(self, documents: Sequence[Document]) -> Mapping[str, Drop]:
        return {document.id: Drop("late", "third or later") for document in documents[2:]}


class Length:
    """Signal."""

    name = "length"

    def measure(self, document: Document) -> Mapping[str, float]:
        return {"length": float(len(document.text))}


@settings(derandomize=True, max_examples=20, deadline=None)
@given(
    st.lists(st.text("abc", max_size=4), min_size=1, max_size=12),
    st.lists(st.sampled_from([ByLetter("a"), ByLetter("b"), CutOff(), KeepTwo(), Length()]), max_size=6),
)
def test_every_document_is_kept_or_dropped_once(texts: list[str], operators: list[ByLetter]) -> None:
    documents = [Document(f"d{number}", text) for number, text in enumerate(texts)]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        try:
            funnel = run(documents, operators, out)
        except InputError:
            funnel = read_funnel(out / "funnel.json")
            assert funnel.kept == 0
        kept, dropped = read_documents(out / "kept.jsonl"), read_dropped(out / "dropped.jsonl")
        assert read_funnel(out / "funnel.json") == funnel
    assert sorted([d.id for d in kept] + [d.id for d in dropped]) == sorted(d.id for d in documents)
    assert (funnel.documents, funnel.kept, funnel.dropped) == (len(documents), len(kept), len(dropped))
    assert [step.operator for step in funnel.steps] == [operator.name for operator in operators]
    assert all(item.reason and item.detail and item.operator for item in dropped)


def test_a_broken_balance_is_an_assertion(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="2 documents went out, 1 were kept"):
        Funnel(2, 1, 0, {}, ()).check()
    with pytest.raises(AssertionError, match="0 documents for a funnel that kept 1"):
        write_journal(tmp_path, [], [], Funnel(1, 1, 0, {}, ()))
    assert list(tmp_path.iterdir()) == []


def test_ids_must_be_unique_and_there_must_be_documents(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the first is 'a'"):
        run([Document("a", "x"), Document("a", "y")], [], tmp_path)
    with pytest.raises(InputError, match="no document"):
        run([], [], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_write_leaves_no_funnel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [Document("a", "x")]
    run(documents, [Length()], tmp_path)

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(journal, "write_documents", fail)
    with pytest.raises(OSError, match="disk full"):
        run(documents, [Length()], tmp_path)
    assert not (tmp_path / "funnel.json").exists()
    assert all(not path.name.endswith(".tmp") for path in tmp_path.iterdir())


def make_site(folder: Path) -> Path:
    page = "<title>{0}</title><body><nav><a href='/'>Home</a></nav><main><p>{1}</p></main></body>"
    pages = {
        "returns.html": POLICY,
        "returns-print.html": POLICY + " Printed page.",
        "copy-of-returns.html": POLICY.upper(),
        "contact.html": "Write to bob@mail.example or call +44 20 7946 0123. "
        + "We answer every letter within two days and like to hear from readers who have an opinion on what we sell. "
        "The shop is open to everyone from nine in the morning.",
        "soon.html": "This page is under construction. " + POLICY[:200],
        "short.html": "Nothing much.",
        "rant.html": "You idiot, you worthless liar, shut up and go to hell, you and your stupid scum friends.",
    }
    folder.mkdir()
    for name, text in pages.items():
        (folder / name).write_text(page.format(name, text), encoding="utf-8")
    (folder / "empty.html").write_text("<html></html>")
    (folder / "notes.md").write_text(
        "# Deliveries\nThe van comes on Tuesdays and on Fridays at ten. Bring the boxes to the yard, check the slip "
        "and sign it. Broken boxes go back with the driver, and the reason has to be written on the slip.\n"
    )
    return folder


def test_a_small_site_from_end_to_end(tmp_path: Path) -> None:
    site = make_site(tmp_path / "site")
    funnel = clean_folder(site, tmp_path / "out")
    reasons = {item.id: item.reason for item in read_dropped(tmp_path / "out" / "dropped.jsonl")}
    assert reasons == {
        "empty.html": "empty",
        "soon.html": "under_construction",
        "short.html": "too_short",
        "rant.html": "abusive",
        "copy-of-returns.html": "duplicate",
        "returns-print.html": "near_duplicate",
    }
    kept = {document.id: document for document in read_documents(tmp_path / "out" / "kept.jsonl")}
    assert sorted(kept) == ["contact.html", "notes.md", "returns.html"]
    assert kept["contact.html"].text.startswith("Write to [email] or call [phone].")
    assert kept["contact.html"].metadata["masked"] == {"email": 1, "phone": 1}
    assert kept["returns.html"].metadata["signals"]["words"] > 60
    assert funnel.reasons == {
        "empty": 1,
        "under_construction": 1,
        "too_short": 1,
        "abusive": 1,
        "duplicate": 1,
        "near_duplicate": 1,
    }
    assert funnel.steps[-1].counts == {"email": 1, "phone": 1}
    clean_folder(site, tmp_path / "again")
    for name in ("kept.jsonl", "dropped.jsonl", "funnel.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_when_nothing_is_left_the_reasons_are_told(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "a.txt").write_text("Too short.")
    with pytest.raises(InputError, match=r"all 1 documents were dropped \(too_short: 1\): see .*dropped\.jsonl"):
        clean_folder(tmp_path / "site", tmp_path / "out")
    assert read_dropped(tmp_path / "out" / "dropped.jsonl")[0].id == "a.txt"


def test_broken_journals_are_named_with_their_line(tmp_path: Path) -> None:
    (tmp_path / "kept.jsonl").write_text('{"id": "a", "text": "x"}\n{"id": 1, "no": 2}\n')
    with pytest.raises(InputError, match=r"kept\.jsonl, line 2"):
        read_documents(tmp_path / "kept.jsonl")
    (tmp_path / "dropped.jsonl").write_text(json.dumps({"id": "a", "reason": "r", "operator": "o", "detail": "d"}))
    assert read_dropped(tmp_path / "dropped.jsonl") == [Dropped("a", "r", "o", "d")]
    with pytest.raises(InputError, match="cannot be read"):
        read_funnel(tmp_path / "funnel.json")
