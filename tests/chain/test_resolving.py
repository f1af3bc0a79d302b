"""What a training recipe leaves open is chosen by memory and rows, and stays as it was when the run goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from riverrun.base.errors import CapacityError
from riverrun.chain.resolving import Volume, as_it_began, count_volume, is_open, resolve, resolve_recipe
from riverrun.cli.train import run_command
from riverrun.models.load import load_checkpoint
from riverrun.models.presets import load_preset
from riverrun.plan.hardware import Hardware
from riverrun.plan.tuning import threshold
from riverrun.train.recipe import TrainConfig
from riverrun.train.rows import load_rows
from tests.tiny_model import write_rows, write_tiny

LAPTOP = Hardware("laptop", 8_000_000_000, {"bf16": 5e11, "fp32": 2e11}, cores=2, bandwidth=3e10)
VOLUME = Volume(tokens=2_000_000, label_tokens=400_000, length=300, longest=900, steps=1000)


def recipe(**sections: Any) -> TrainConfig:
    whole = {"model": "base", "data": {"train": "rows.jsonl"}, "objective": "sft"} | sections
    return TrainConfig.model_validate(whole)


def resolved(config: TrainConfig, available: int, *, preset: str = "llama2-7b", volume: Volume = VOLUME) -> TrainConfig:
    return resolve(config, load_preset(preset), volume, LAPTOP, dtype="bf16", available=available).config


AUTO = {"method": {"name": "auto", "rank": "auto"}, "optimizer": {"name": "adamw8bit"}}


def test_method_and_settings_follow_the_memory() -> None:
    config = recipe(**AUTO)
    assert is_open(config)
    found = [resolved(config, gigabytes * 10**9) for gigabytes in (90, 5)]
    assert [each.method.name for each in found] == ["lora", "qlora"]
    assert not any(is_open(each) for each in found)
    assert [each.method.rank for each in found] == [8, 8]
    wide, tight = found
    assert (wide.batch.micro_tokens, wide.batch.recompute) == (2048, 0.0)
    assert tight.batch.recompute == 1.0
    assert tight.batch.micro_tokens >= VOLUME.longest
    much = Volume(tokens=10**9, label_tokens=10**9, length=300, longest=900, steps=1000)
    assert resolved(config, 4 * 10**9, preset="smollm2-135m", volume=much).method.name == "full"


def test_rows_enough_for_the_study_train_all_weights_at_their_own_rate(tmp_path: Path) -> None:
    """The rate is kept when the run goes on, and where the recipe states one."""
    wanted = int(threshold("full_from_rows") or 0)
    found = {}
    for rows in (wanted - 1, wanted):
        volume = replace(VOLUME, rows=rows)
        found[rows] = resolve(
            recipe(**AUTO), load_preset("smollm2-135m"), volume, LAPTOP, dtype="bf16", available=10**10
        )
    assert [each.config.method.name for each in found.values()] == ["lora", "full"]
    assert [each.config.optimizer.learning_rate for each in found.values()] == [1e-3, 2e-4]
    notes = dict(note.split(" ", 1) for note in found[wanted].notes)
    assert "102 questions" in notes["method"]
    assert notes["optimizer.learning_rate"].startswith("0.0002: ")
    (tmp_path / "resolved.yaml").write_text(yaml.safe_dump(found[wanted].config.model_dump(mode="json")))
    assert as_it_began(recipe(**AUTO), tmp_path).optimizer.learning_rate == 2e-4
    stated = recipe(**AUTO | {"optimizer": {"name": "adamw8bit", "learning_rate": 5e-4}})
    assert resolved(stated, 10**10, preset="smollm2-135m", volume=replace(VOLUME, rows=wanted)) == stated.model_copy(
        update={"method": found[wanted].config.method, "batch": found[wanted].config.batch}
    )
    assert as_it_began(stated, tmp_path).optimizer.learning_rate == 5e-4


def test_few_rows_are_told_of() -> None:
    volume = replace(VOLUME, rows=9)
    found = resolve(recipe(**AUTO), load_preset("smollm2-135m"), volume, LAPTOP, dtype="bf16", available=10**10)
    assert "9 rows are fewer than the 10 from which training was better" in found.notes[0]


def test_what_is_stated_is_kept() -> None:
    config = recipe(
        method={"name": "qlora", "rank": 4}, batch={"micro_tokens": 1024, "recompute": "full", "global_tokens": 4096}
    )
    assert not is_open(config)
    assert resolved(config, 20 * 10**9) == config
    with pytest.raises(CapacityError, match=r"qlora with micro-batches of 1024 tokens and every layer run again needs"):
        resolved(config, 2 * 10**9)


def test_every_choice_has_its_reason() -> None:
    found = resolve(recipe(**AUTO), load_preset("llama2-7b"), VOLUME, LAPTOP, dtype="bf16", available=5 * 10**9)
    notes = dict(note.split(" ", 1) for note in found.notes)
    assert "lora does not fit" in notes["method"]
    assert set(notes) == {"method", "method.rank", "batch.micro_tokens", "batch.recompute", "memory:"}
    assert "400000 label tokens" in notes["method.rank"]
    assert "of 5.00 GB" in notes["batch.micro_tokens"]
    assert "weights 3.34 GB (N of the linear layers in nf4, norms)" in notes["memory:"]


def test_a_recipe_is_resolved_from_its_files_and_trained(tmp_path: Path) -> None:
    """Rows counted, memory looked at, four bits by name; the run that goes on keeps what it chose."""
    write_tiny(tmp_path / "base", tie_word_embeddings=False)
    write_rows(tmp_path / "rows.jsonl", 12)
    whole = {
        "model": str(tmp_path / "base"),
        "data": {"train": str(tmp_path / "rows.jsonl")},
        "objective": "sft",
        "method": {"name": "qlora", "rank": "auto", "cache": str(tmp_path / "nf4")},
        "batch": {"global_tokens": 256},
        "run": {"length": "2 epochs"},
    }
    file, out = tmp_path / "recipe.yaml", tmp_path / "out"
    file.write_text(yaml.safe_dump(whole), encoding="utf-8")
    config = TrainConfig.model_validate(whole)
    opened = load_checkpoint(tmp_path / "base")
    volume = count_volume(config, opened)
    lengths, *_ = load_rows(config, opened, micro_tokens=1024).sizes(config, opened)
    assert (volume.tokens, volume.longest, volume.rows) == (2 * sum(lengths), max(lengths), 12)
    assert 0 < volume.label_tokens < volume.tokens
    found = resolve_recipe(config, memory_gb=4.0)
    assert (found.config.method.name, found.config.method.rank) == ("qlora", 8)
    run_command(file, (), out=out, dry_run=False, progress="quiet")
    assert (out / "adapter" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "nf4" / "model.safetensors").is_file()
    losses = [line for line in (out / "train.jsonl").read_text().splitlines() if '"step"' in line]
    assert len(losses) >= 2
    kept = as_it_began(config, out)
    assert not is_open(kept)
    assert kept.method.rank == 8
    run_command(file, (), out=out, dry_run=False, progress="quiet")  # finished: its result stands
