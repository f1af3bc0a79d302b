"""A few runs of the soak under faults, one of them with a killed process."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.soak.hub_faults import rows_of, run_one, servers

SEEDS = (1000, 1001, 1002, 1005, 1013)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_run_ends_right(tmp_path: Path, seed: int) -> None:
    with servers(1) as server:
        outcome = run_one(server, tmp_path, seed)
    assert (outcome.corrupted, outcome.leftovers, outcome.wrong) == ([], [], [])
    rows = {row.name: row.passed for row in rows_of([outcome])}
    assert all(rows[name] for name in ("corrupted files", "leftovers", "fetches that did not end right"))
