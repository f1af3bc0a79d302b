"""The recipe that learns to add by reward alone: its problems, and a step of it on a tiny model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from shutil import copytree

from riverrun.chain.rollouts import PolicyModel
from riverrun.data.corpus import RowSource
from riverrun.train.objectives.rewards import judge, make_reward
from riverrun.train.problems import load_problems
from riverrun.train.recipe import load_recipe
from riverrun.train.run import train_recipe
from tests.tiny_model import write_tiny

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "arithmetic_rl"


def test_unseen_sums_are_unseen_and_every_answer_is_right(tmp_path: Path) -> None:
    copytree(RECIPE, tmp_path / "again")
    subprocess.run([sys.executable, str(tmp_path / "again" / "make_problems.py")], check=True)
    seen: dict[str, set[frozenset[int]]] = {}
    for name in ("problems", "held_out"):
        made, kept = ((folder / f"{name}.jsonl").read_bytes() for folder in (tmp_path / "again", RECIPE))
        assert made == kept
        problems = load_problems(RowSource(path=str(RECIPE / f"{name}.jsonl"))).problems
        sums = [[int(number) for number in problem.id.split("+")] for problem in problems]
        assert [sum(pair) for pair in sums] == [int(problem.answer) for problem in problems]
        assert all(judge(make_reward("exact_number"), p, f" {p.answer}") == 1.0 for p in problems)
        assert all(problem.prompt.endswith(f"\n{a} + {b} =") for problem, (a, b) in zip(problems, sums, strict=True))
        seen[name] = {frozenset(pair) for pair in sums}
    assert not seen["problems"] & seen["held_out"]


def test_it_runs_on_a_tiny_model(tmp_path: Path) -> None:
    write_tiny(tmp_path / "m")
    config = load_recipe(RECIPE, (f"model={tmp_path / 'm'}", "run.length=2 steps", "run.eval_every=1 steps"))

    def digits(problem: object, text: str) -> float:
        """The tiny model knows no number; some of its answers are long."""
        return float(len(text) % 2)

    result = train_recipe(config, tmp_path / "out", serve=PolicyModel, reward=digits)
    assert result.status == "done"
    lines = [json.loads(line) for line in (tmp_path / "out" / "train.jsonl").read_text().splitlines()]
    assert [line["units"] for line in lines if line["event"] == "eval"] == [100] * 3
