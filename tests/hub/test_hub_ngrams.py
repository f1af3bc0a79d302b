"""The n-gram index against sets of tuples, and what it does with real text."""

from __future__ import annotations

import json
import tempfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from riverrun.base.errors import InputError, IntegrityError
from riverrun.hub.ngrams import Builder, NgramIndex, Span, fingerprints, merge, units_of

WORD = st.sampled_from(
    ["a", "B", "cc", "é", "日", "本语", "x1", "，", "!", "_", "ﬁ", "ß", "①", " ", "\n", "한", "\ud800"]
)
TEXT = st.lists(WORD, max_size=14).map(" ".join) | st.lists(WORD, max_size=14).map("".join)
PACKS = st.dictionaries(st.sampled_from(["one", "two", "three"]), st.lists(TEXT, max_size=3), max_size=3)


def naive_grams(text: str, n: int, short: bool) -> list[tuple[str, ...]]:
    words = [unit.text for unit in units_of(text)]
    if short and 0 < len(words) < n:
        n = len(words)
    return [tuple(words[place : place + n]) for place in range(len(words) - n + 1)]


def build(folder: Path, packs: dict[str, list[str]], n: int, short: bool, run: int) -> NgramIndex:
    builder = Builder(folder, n=n, short=short, run_pairs=run)
    for name, texts in packs.items():
        builder.add(name, texts)
    return builder.finish()


def naive_spans(text: str, packs: dict[str, list[str]], n: int, short: bool) -> list[Span]:
    units, grams = units_of(text), naive_grams(text, n, short)
    length = len(grams[0]) if grams else n
    out = []
    for name in sorted(packs):
        known = {gram for given in packs[name] for gram in naive_grams(given, n, short)}
        hits = [gram in known for gram in grams]
        place = 0
        while place < len(hits):
            end = place
            while end < len(hits) and hits[end]:
                end += 1
            if end > place:
                out.append(Span(units[place].start, units[end - 1 + length - 1].end, name, end - place))
            place = end + 1
    return sorted(out, key=lambda span: (span.pack, span.start))


@settings(max_examples=40, deadline=None)
@given(packs=PACKS, text=TEXT, n=st.integers(1, 4), short=st.booleans(), run=st.integers(4, 12))
def test_the_index_is_a_set_of_tuples(packs: dict[str, list[str]], text: str, n: int, short: bool, run: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        index = build(Path(folder) / "i", packs, n, short, run)
        known = {name: {g for t in texts for g in naive_grams(t, n, short)} for name, texts in packs.items()}
        assert len(index) == sum(map(len, known.values()))
        assert list(index.grams) == sorted(index.grams)
        assert index.lookup(text) == naive_spans(text, packs, n, short)
        grams = naive_grams(text, n, short)
        expected = {name: sum(g in found for g in grams) / len(grams) for name, found in known.items()} if grams else {}
        assert index.coverage(text) == {name: share for name, share in expected.items() if share}
        for name, texts in packs.items():
            for own in texts:
                assert not naive_grams(own, n, short) or index.coverage(own)[name] == 1.0


@settings(max_examples=12, deadline=None)
@given(one=PACKS, two=PACKS, n=st.integers(1, 3), run=st.integers(4, 12))
def test_merging_is_building_from_both(one: dict, two: dict, n: int, run: int) -> None:
    with tempfile.TemporaryDirectory() as given:
        folder = Path(given)
        both = {name: one.get(name, []) + two.get(name, []) for name in [*one, *(k for k in two if k not in one)]}
        parts = [build(folder / "a", one, n, False, run), build(folder / "b", two, n, False, run)]
        merged, whole = merge(parts, folder / "m", run_pairs=run), build(folder / "w", both, n, False, 1000)
        for name in ("grams.npy", "packs.npy", "index.json"):
            assert (merged.folder / name).read_bytes() == (whole.folder / name).read_bytes()
        assert sorted(path.name for path in folder.iterdir()) == ["a", "b", "m", "w"]


@pytest.mark.parametrize(
    ("text", "units"),
    [
        ("Hello, WORLD!", ["hello", "world"]),
        ("ＡＢＣ　１２", ["abc", "12"]),
        ("今天 3km 很好。", ["今", "天", "3km", "很", "好"]),
        ("snake_case", ["snake", "case"]),
        ("ﬁne", ["fine"]),
        ("Straße", ["strasse"]),
        ("", []),
        ("…—", []),
    ],
)
def test_units(text: str, units: list[str]) -> None:
    assert [unit.text for unit in units_of(text)] == units


def test_spans_are_places_in_the_text_as_given(tmp_path: Path) -> None:
    index = build(
        tmp_path / "i", {"exam": ["The quick brown fox jumps."], "诗": ["床前明月光疑是地上霜"]}, 4, False, 100
    )
    text = "He said: the QUICK, brown-fox   jumps! 又:床前明月光。"
    spans = index.lookup(text)
    assert [(text[s.start : s.end], s.pack, s.grams) for s in spans] == [
        ("the QUICK, brown-fox   jumps", "exam", 2),
        ("床前明月光", "诗", 2),
    ]
    assert index.lookup(text, min_grams=3) == []


def test_order_and_length_matter() -> None:
    def prints(text: str, n: int) -> list[int]:
        return fingerprints(units_of(text), n).tolist()

    assert prints("a b", 2) != prints("b a", 2)
    assert prints("a a a", 2) == prints("a a", 2) * 2
    assert prints("ab c", 2) != prints("a bc", 2)
    assert prints("a", 2) == []


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    """60,000 distinct 4-grams in runs of 2,000 pairs: merging them holds a few runs, not the 720 kB of all."""
    builder = Builder(tmp_path / "i", n=4, run_pairs=2_000)
    builder.add("p", (" ".join(f"{number:x}" for number in range(i * 1000, i * 1000 + 1003)) for i in range(60)))
    assert builder._count < 2_000
    tracemalloc.start()
    index = builder.finish()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(index) == 60_000
    assert peak < 400_000


def test_indexes_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="between 1 and 1000"):
        Builder(tmp_path / "x", n=0)
    index = build(tmp_path / "i", {"a": ["one two three"]}, 2, False, 10)
    with pytest.raises(InputError, match="is not empty"):
        Builder(tmp_path / "i")
    with pytest.raises(InputError, match="different n"):
        merge([index, build(tmp_path / "j", {}, 3, False, 10)], tmp_path / "m")
    with pytest.raises(InputError, match="nothing to merge"):
        merge([], tmp_path / "m")
    with pytest.raises(IntegrityError, match="is no n-gram index"):
        NgramIndex(tmp_path)
    head = json.loads((tmp_path / "i" / "index.json").read_text())
    (tmp_path / "i" / "index.json").write_text(json.dumps(head | {"pairs": 7}))
    with pytest.raises(IntegrityError, match="is not whole"):
        NgramIndex(tmp_path / "i")
    (tmp_path / "i" / "grams.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(IntegrityError, match="is no n-gram index"):
        NgramIndex(tmp_path / "i")
