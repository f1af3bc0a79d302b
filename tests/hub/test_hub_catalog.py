"""The built-in catalogue and what a card may not be."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from riverrun.base.errors import ConfigError, InputError
from riverrun.hub.catalog import get_card, licences, load_catalog
from riverrun.hub.search import search
from riverrun.hub.spec import parse_spec

CARD = {
    "name": "tiny",
    "licence": "mit",
    "file_name": "tiny.gguf",
    "size_bytes": 3,
    "sha256": "0" * 64,
    "sources": ["https://example.org/tiny.gguf"],
}


def write(folder: Path, *cards: dict) -> Path:
    path = folder / "catalog.yaml"
    path.write_text(yaml.safe_dump({"cards": list(cards)}))
    return path


def test_the_built_in_card() -> None:
    card = get_card("smollm2-135m-instruct")
    assert card.licence == "apache-2.0"
    assert card.languages == ("en",)
    assert card.sha256 == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    # Llama family: embeddings (tied), per layer q, o, k, v, gate, up, down and two norms, and the last norm.
    h, f, kv, layers, vocabulary = 576, 1536, 192, 30, 49152
    assert card.parameters == vocabulary * h + layers * (2 * h * h + 2 * h * kv + 3 * h * f + 2 * h) + h
    # Q4_1 spends 20 bytes on 32 weights, so a file of that many weights cannot be smaller.
    assert card.size_bytes > card.parameters * 20 / 32
    assert load_catalog()["smollm2-135m-instruct"] == card


def test_unknown_name_names_the_nearest() -> None:
    with pytest.raises(InputError, match="Did you mean 'smollm2-135m-instruct'"):
        get_card("smollm2-135m-i")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sha256": "abc"}, "sha256"),
        ({"size_bytes": 0}, "size_bytes"),
        ({"sources": []}, "sources"),
        ({"sources": ["ftp://x/y"]}, "source 'ftp://x/y' must start with one of pypi:, https:"),
        ({"file_name": "../up.gguf"}, "file_name"),
        ({"file_name": ".hidden"}, "file_name"),
        ({"license": "mit"}, "unknown key 'cards.0.license'"),
    ],
)
def test_a_wrong_card_is_refused(tmp_path: Path, change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_catalog(write(tmp_path, CARD | change))


def test_a_catalogue_of_ones_own(tmp_path: Path) -> None:
    path = write(tmp_path, CARD, CARD | {"name": "other"})
    assert sorted(load_catalog(path)) == ["other", "tiny"]
    assert get_card("other", path).sources == ("https://example.org/tiny.gguf",)
    with pytest.raises(ConfigError, match="two cards are named 'tiny'"):
        load_catalog(write(tmp_path, CARD, CARD))


# every card of the built-in catalogue -------------------------------------------------------------------------------

CARDS_OF_MODELS, CARDS_OF_DATA = 40, 120


def test_how_much_there_is() -> None:
    cards = load_catalog().values()
    assert sum(card.kind == "model" for card in cards) >= CARDS_OF_MODELS
    assert sum(card.kind != "model" for card in cards) >= CARDS_OF_DATA
    assert sum("zh" in card.languages for card in cards) >= 60
    families = ("internlm-", "internlm2-", "internlm2_5-", "internlm3-", "llama-2", "llama-3", "mistral", "qwen2-")
    for family in (*families, "qwen2.5", "qwen3", "gemma-3", "smollm2", "smollm3"):
        assert any(card.name.startswith(family) for card in cards), family


def test_every_card_says_what_a_card_should() -> None:
    wrong, sources = [], {}
    for card in load_catalog().values():
        known = licences().get(card.licence)
        if known is None:
            wrong.append(f"{card.name}: licence '{card.licence}' is not in licences.yaml")
        if not card.languages or not all(re.fullmatch(r"[a-z]{2,3}|code|multi", code) for code in card.languages):
            wrong.append(f"{card.name}: languages {card.languages}")
        if not card.citation and not card.url:
            wrong.append(f"{card.name}: neither citation nor url")
        if not card.description:
            wrong.append(f"{card.name}: no description")
        if card.sha256 == "" and (card.size_bytes or any(entry.sha256 for entry in card.files)):
            wrong.append(f"{card.name}: a size without a digest was not read from a file")
        for source in card.sources:
            spec = parse_spec(source)
            if spec.scheme in ("hf", "modelscope") and (spec.kind == "model") != (card.kind == "model"):
                wrong.append(f"{card.name}: {source} is a repository of another kind")
            if source in sources:
                wrong.append(f"{card.name} and {sources[source]} have the source {source}")
            sources[source] = card.name
    assert not wrong, "\n".join(wrong)


def test_every_licence_is_named_and_used() -> None:
    used = {card.licence for card in load_catalog().values()}
    assert set(licences()) == used
    for name, licence in licences().items():
        assert licence.name
        assert licence.spdx or licence.url or name in ("mixed", "not-stated", "research-only", "public-domain")


def test_the_small_file_is_read_first() -> None:
    """A name with a digest is found without parsing two hundred cards."""
    code = (
        "from riverrun.hub import catalog\n"
        "catalog.get_card('smollm2-135m-instruct')\n"
        "print(catalog._cached.cache_info().currsize)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


@pytest.mark.parametrize(
    ("words", "filters", "first"),
    [
        (["internlm2", "chat", "7b"], {}, "internlm2-chat-7b"),
        (["中文", "数学"], {"kind": "benchmark"}, "cmath"),
        (["中文网页语料"], {}, "chinesewebtext"),
        (["网页的语料"], {"language": "中文"}, "chinesewebtext"),
        (["对话模型"], {"licence": "apache"}, "qwen3-0.6b"),
        (["WANJUAN"], {"language": "Chinese"}, "wanjuan-1.0"),
        (["long", "context"], {"licence": "mit"}, "longbench"),
        (["tool"], {"kind": "dataset"}, "toolbench"),
        ([], {"kind": "model", "licence": "gemma"}, "gemma-3-12b-it"),
    ],
)
def test_search(words: list[str], filters: dict, first: str) -> None:
    found = search(load_catalog().values(), words, **filters)
    assert found[0].name == first, [card.name for card in found[:5]]


def test_what_a_search_cannot_be() -> None:
    cards = load_catalog().values()
    assert search(cards, ["zzzz"]) == []
    with pytest.raises(InputError, match="--kind modell is none of model, dataset, benchmark"):
        search(cards, kind="modell")
    with pytest.raises(InputError, match=r"language 'chinesse' is not known\. Did you mean 'chinese'"):
        search(cards, language="chinesse")
    with pytest.raises(InputError, match=r"no card has the licence 'apache-3'. Did you mean 'apache-2\.0'"):
        search(cards, licence="apache-3")


@given(st.lists(st.text(max_size=5), max_size=3))
@settings(max_examples=50, deadline=None)
def test_any_words_can_be_searched_for(words: list[str]) -> None:
    found = search(SOME, words)
    assert len(found) <= len(SOME)


SOME = list(load_catalog().values())[:20]
