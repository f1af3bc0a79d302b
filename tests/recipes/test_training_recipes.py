"""The recipes that train from scratch, each carried out on a tiny budget: made, trained, measured, shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from riverrun.chain.abilities import load_ability, run_ability

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
TINY = (
    "hidden_size=32",
    "intermediate_size=48",
    "num_hidden_layers=1",
    "num_attention_heads=2",
    "num_key_value_heads=2",
)


def tiny(name: str, stage: str) -> list[str]:
    """A model of a few thousand parameters and two steps."""
    shape = [f"stages.{stage}.model.new.{change}" for change in TINY] if stage != "extended" else []
    return [*shape, f"stages.{stage}.run.length=2 steps", f"stages.{stage}.run.dtype=float32"]


def ran(name: str, out: Path, changes: list[str]) -> dict[str, object]:
    folder = RECIPES / name
    assert len((folder / "recipe.yaml").read_text(encoding="utf-8").splitlines()) <= 40
    stages = list(load_ability(folder).stages)
    overrides = [change for stage in stages for change in tiny(name, stage)] + changes
    result = run_ability(folder, out, overrides=overrides)
    assert result["status"] == "done"
    assert set(result["stages"]) == set(stages) != set()
    assert json.loads((out / "ability.json").read_text(encoding="utf-8"))["goals"] == result["goals"]
    for stage in stages:
        assert (out / stage / "model" / "model.safetensors").is_file()
    again = run_ability(folder, out, overrides=overrides)
    assert again["goals"] == result["goals"]
    return result


def test_arithmetic(tmp_path: Path) -> None:
    rows = [f"make.{name}.rows=200" for name in ("steps", "answers", "chunks")]
    result = ran("arithmetic", tmp_path, [*rows, "measure.problems=3"])
    assert len(result["goals"]) == 8  # type: ignore[arg-type]
    assert "未见过的题" in (tmp_path / "arithmetic.html").read_text(encoding="utf-8")


def test_long_context(tmp_path: Path) -> None:
    changes = [
        *("make.short.documents=8", "make.short.longest=120", "make.long.documents=2"),
        *("make.long.shortest=200", "make.long.longest=300", "measure.lengths=[128,256]", "measure.each=1"),
        *("stages.base.model.new.max_position_embeddings=128", "stages.base.data.max_tokens=128"),
        "stages.extended.model.change.max_position_embeddings=256",
    ]
    result = ran("long_context", tmp_path, changes)
    assert result["goals"][0]["name"] == "found at 256 tokens"  # type: ignore[index]
    written = json.loads((tmp_path / "extended" / "model" / "config.json").read_text(encoding="utf-8"))
    assert written["max_position_embeddings"] == 256
    assert (tmp_path / "needles.html").is_file()


@pytest.mark.parametrize("name", ["pretrain"])
def test_pretrain(tmp_path: Path, name: str) -> None:
    changes = ["stages.model.run.eval_every=1 steps", "stages.model.run.prompt_tokens=4", "make.texts.vocab_size=400"]
    changes += ["make.texts.measured=4000", "stages.model.batch.global_tokens=2048", "stages.model.run.seed=1"]
    result = ran(name, tmp_path, changes)
    figures = result["stages"]["model"]  # type: ignore[index]
    assert set(figures) == {"en", "zh"}
    assert all(last < first < 8.5 for first, last in figures.values())
