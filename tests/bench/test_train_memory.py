"""The memory bench: a child that trains and measures itself, the limit, what is predicted of each setting."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench import train_memory
from bench.common import ROOT
from bench.parts import memory_cgroup
from bench.parts.memory_cgroup import limited
from bench.parts.memory_settings import SETTINGS, predicted
from bench.parts.train_memory_child import shape_of
from riverrun.models.presets import load_preset

TINY = {
    "preset": "smollm2-135m",
    "changes": {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_hidden_layers": 2}
    | {"num_key_value_heads": 2, "vocab_size": 512},
    "rank": 2,
    "micro_tokens": 128,
    "steps": 2,
}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="not run here: /proc")
@pytest.mark.parametrize("method", ["full", "qlora"])
def test_a_child_trains_and_measures_itself(method: str, tmp_path: Path) -> None:
    job, answer = tmp_path / "job.json", tmp_path / "answer.json"
    job.write_text(json.dumps(TINY | {"method": method, "recompute": 1.0, "optimizer": "adamw8bit"}), encoding="utf-8")
    program = [sys.executable, "-m", "bench.parts.train_memory_child", str(job), str(answer)]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(answer.read_text(encoding="utf-8"))
    assert len(found["losses"]) == len(found["seconds"]) == len(found["step_peaks"]) == 2
    assert found["vmhwm_bytes"] >= found["baseline_bytes"] > 50e6
    assert 0 < found["grown_bytes"] == found["step_peaks"][-1] < 500e6
    assert found["losses"][0] == pytest.approx(6.24, abs=0.3)  # ln 512: random weights


def test_shapes_of_jobs() -> None:
    assert shape_of({"preset": "llama2-7b"}) == load_preset("llama2-7b")
    assert shape_of({"preset": "llama2-7b", "changes": {"num_hidden_layers": 4}}).num_hidden_layers == 4
    assert shape_of(TINY).head_dim == 16


def test_twelve_settings_with_every_method_and_optimizer() -> None:
    assert len(SETTINGS) == 12
    assert {job["method"] for job in SETTINGS.values()} == {"full", "lora", "qlora"}
    assert {job.get("optimizer", "adamw") for job in SETTINGS.values()} == {"adamw", "adamw8bit", "muon"}
    sizes = [shape_of(job).num_parameters() for job in SETTINGS.values()]
    assert min(sizes) < 50e6
    assert max(sizes) > 1e9
    for job in SETTINGS.values():
        assert predicted(job).total < 6.5e9
    for preset, limit in train_memory.SEVEN.values():
        estimate = predicted(train_memory.seven_job(preset))
        assert estimate.total + 255e6 < limit  # the bare process


def test_a_limit_is_a_group_of_its_own_that_goes_away() -> None:
    with limited(1 << 30) as group:
        if group is not None:  # where the system lets us make one
            assert group.folder.is_dir()
            held = (group.folder / ("memory.limit_in_bytes" if group.version == 1 else "memory.max")).read_text()
            assert int(held) == 1 << 30
            assert group.refused is not None
    own = memory_cgroup._own()
    assert own is None or not list(own[0].glob("riverrun-*"))
