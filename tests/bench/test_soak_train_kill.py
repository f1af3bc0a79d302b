"""A seeded sample of the long run, and that it would see what goes wrong."""

from __future__ import annotations

from pathlib import Path

from bench.soak.train_kill import Kill, complete, damage, different, rows_of, soak


def test_three_kills_lose_nothing_and_the_bytes_are_the_same(tmp_path: Path) -> None:
    kills, differing = soak(tmp_path / "soak", 3, seed=1)
    assert len(kills) == 3
    assert all(not kill.problem for kill in kills)
    assert not differing
    assert all(row.passed for row in rows_of(kills, differing))
    calm, killed = tmp_path / "soak" / "calm", tmp_path / "soak" / "killed-0"
    assert not different(calm, killed)
    (killed / "model" / "config.json").write_text("{}")
    assert different(calm, killed) == ["killed-0/config.json"]


def test_damage_and_losses_are_seen(tmp_path: Path) -> None:
    folder = tmp_path / "step-000003" / "trainer_state"
    folder.mkdir(parents=True)
    assert "step 3 has no state" in damage(tmp_path)
    (folder.parent / "w").write_text("x")
    (folder / "state.json").write_text('{"files": {"w": "0"}}')
    assert damage(tmp_path) == "step 3: w is damaged"
    (tmp_path / "step-000004.incomplete").mkdir()
    assert complete(tmp_path) == [3]
    rows = rows_of([Kill(3, 0, True, "a complete checkpoint was lost")], ["killed-0/model.safetensors"])
    assert not any(row.passed for row in rows)
