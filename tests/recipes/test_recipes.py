"""Every recipe: short, readable, complete, described, and previewed without doing anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from riverrun.chain.check import check_inputs, is_path
from riverrun.chain.run import open_context
from riverrun.chain.spec import load_app
from riverrun.data.choices import load_choices, load_safety
from riverrun.data.intents import load_intents
from riverrun.hub.catalog import get_card

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
FOLDERS = sorted(path.parent for path in RECIPES.glob("*/app.yaml"))


def test_there_are_recipes_and_each_is_listed() -> None:
    assert FOLDERS
    listed = (RECIPES / "README.md").read_text(encoding="utf-8")
    assert all(f"| [{folder.name}]({folder.name}/) |" in listed for folder in FOLDERS)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_spec_is_short_and_says_what_the_folder_holds(folder: Path) -> None:
    assert len((folder / "app.yaml").read_text(encoding="utf-8").splitlines()) <= 40
    spec, found = load_app(folder)
    assert (spec.name, found) == (folder.name, folder)
    check_inputs(open_context(folder))
    for candidate in spec.candidates:
        if not is_path(candidate):
            assert get_card(candidate).licence in spec.licences, "a recipe's own candidate may not be refused"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_what_the_spec_names_can_be_read(folder: Path) -> None:
    spec, _ = load_app(folder)
    intents = load_intents(folder / spec.intents)
    splits = {
        split: sum(bool(intent.phrasings.of(split)) for intent in intents) for split in ("train", "dev", "sealed")
    }
    assert all(splits.values()), f"intents with phrasings: {splits}"
    if spec.choices:
        assert load_choices(folder / spec.choices).sealed
    if spec.safety:
        assert load_safety(folder / spec.safety).sealed
    pages = {path.name for path in (folder / spec.documents.path).rglob("*") if path.is_file()}
    assert {intent.page for intent in intents if intent.page} <= pages
