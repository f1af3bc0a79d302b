"""One finished run of the tiny shop for the whole session; tests that change it take a copy."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from riverrun.base.progress import Progress
from riverrun.chain.run import run_app
from tests.chain.doubles import PARTS

APP = Path(__file__).parent / "app"
QUIET = Progress("quiet")


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny shop's recipe, at a path of its own."""
    folder = tmp_path_factory.mktemp("recipe") / "tiny-shop"
    shutil.copytree(APP, folder)
    return folder


@pytest.fixture(scope="session")
def finished(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with every stage done, in this process."""
    out = tmp_path_factory.mktemp("finished") / "run"
    run_app(recipe, out=out, progress=QUIET, parts=PARTS, isolate=False)
    return out


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to be changed."""
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    return out
