"""Duplicates: precision by exact comparison, recall of the sketch, no dependence on order, the canonical page stays."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from riverrun.base.types import Document
from riverrun.data.dedup import ExactDuplicates, NearDuplicates, canonical_order, jaccard, shingles

WORDS = [f"word{number}" for number in range(400)]


def text(seed: int, length: int = 120, changes: int = 0) -> str:
    """Words drawn by the seed, with some of them replaced afterwards."""
    words = random.Random(seed).choices(WORDS, k=length)
    rng = random.Random(f"{seed}/{changes}")
    for place in rng.sample(range(length), changes):
        words[place] = f"new{rng.randrange(10_000)}"
    return " ".join(words)


def test_exact_ignores_case_spaces_and_punctuation() -> None:
    documents = [
        Document("a.html", "Hello,  World!"),
        Document("b.html", "hello world"),
        Document("c.html", "hello you"),
    ]
    drops = ExactDuplicates().group(documents)
    assert {name: drop.reason for name, drop in drops.items()} == {"b.html": "duplicate"}
    assert "'a.html'" in drops["b.html"].detail


@pytest.mark.parametrize(
    ("stays", "goes"),
    [
        ("shipping.html", "a-print.html"),
        ("shipping.html", "shipping_old.html"),
        ("shipping.html", "shipping-copy.html"),
        ("shipping-and-delivery.html", "x.html?utm_source=mail"),
        ("shipping.html", "archive/shipping.html"),
        ("shipping.html", "shipping2.html"),
    ],
)
def test_the_canonical_page_stays(stays: str, goes: str) -> None:
    for order in ([stays, goes], [goes, stays]):
        documents = [Document(name, text(1)) for name in order]
        assert list(ExactDuplicates().group(documents)) == [goes]
        assert list(NearDuplicates().group(documents)) == [goes]


def test_a_page_that_names_another_as_canonical_loses() -> None:
    a = Document("a.html", "x", metadata={"canonical": "https://shop.example/about-us.html"})
    b = Document("about-us.html", "x", metadata={"canonical": "about-us.html"})
    assert min([a, b], key=canonical_order) is b


def test_near_copies_go_and_others_stay() -> None:
    documents = [Document(f"page{n}.html", text(n)) for n in range(30)]
    documents += [Document(f"page{n}-print.html", text(n, changes=2)) for n in range(30)]
    drops = NearDuplicates().group(documents)
    assert set(drops) == {f"page{n}-print.html" for n in range(30)}
    assert all(f"'page{n}.html'" in drops[f"page{n}-print.html"].detail for n in range(30))


def test_nothing_below_the_threshold_is_dropped() -> None:
    documents = [Document(f"{n}-{c}.html", text(n, changes=c)) for n in range(12) for c in (0, 3, 6, 12)]
    texts = {document.id: document.text for document in documents}
    for threshold in (0.3, 0.7, 0.9):
        drops = NearDuplicates(threshold=threshold).group(documents)
        for name, drop in drops.items():
            other = drop.detail.split("'")[1]
            assert other not in drops
            assert jaccard(shingles(texts[name]), shingles(texts[other])) >= threshold


def test_the_sketch_finds_the_pairs_it_should() -> None:
    pairs = [(text(n, 200), text(n, 200, changes=4)) for n in range(200)]
    similar = [pair for pair in pairs if jaccard(shingles(pair[0]), shingles(pair[1])) >= 0.8]
    assert len(similar) > 100
    found = sum(len(NearDuplicates().group([Document("a", a), Document("b", b)])) for a, b in similar)
    assert found / len(similar) >= 0.99


@settings(derandomize=True, max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 8)), min_size=1, max_size=12), st.randoms())
def test_the_order_of_the_documents_does_not_matter(picks: list[tuple[int, int]], rng: random.Random) -> None:
    documents = [Document(f"{n}.html", text(seed, 60, changes)) for n, (seed, changes) in enumerate(picks)]
    shuffled = list(documents)
    rng.shuffle(shuffled)
    for operator in (ExactDuplicates(), NearDuplicates()):
        assert dict(operator.group(documents)) == dict(operator.group(shuffled))


def test_short_and_chinese_texts() -> None:
    near = NearDuplicates()
    assert list(near.group([Document("a", "one two"), Document("b", "one two"), Document("c", "three")])) == ["b"]
    line = (
        "本店位于港口旁边的老街上，每天上午九点开门，晚上七点关门，周日休息。欢迎读者前来看书、喝咖啡、参加活动。" * 2
    )
    changed = line.replace("九点", "十点", 1)
    assert list(near.group([Document("a", line), Document("b", changed)])) == ["b"]
    assert not near.group([Document("a", line), Document("b", "完全不同的内容，介绍退货的办法和时间，请保留收据。")])
