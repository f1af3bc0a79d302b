"""The built-in catalogue and what a card may not be."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from riverrun.base.errors import ConfigError, InputError
from riverrun.hub.catalog import get_card, load_catalog

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
        get_card("smollm2-135m")


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
