"""Every objective as a recipe through the one loop: what it reads, what it writes, what it refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from riverrun.base.config import build_config
from riverrun.base.errors import ConfigError, InputError, UnsupportedError
from riverrun.chain.rollouts import PolicyModel
from riverrun.data.corpus import RowSource
from riverrun.train.objectives.reward import load_head
from riverrun.train.problems import load_problems
from riverrun.train.recipe import TrainConfig
from riverrun.train.run import TrainResult, prepare, train_recipe
from tests.tiny_model import write_tiny

SYSTEM = {"role": "system", "content": "You are the assistant of a bookshop. Tables: books(id, title, price)."}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = Path(tmp_path_factory.mktemp("recipes"))
    write_tiny(root / "m")
    write_tiny(root / "teacher", seed=5)
    write_tiny(root / "stranger", vocab_size=330)

    def rows(name: str, made: list[dict[str, Any]]) -> None:
        (root / name).write_text("".join(json.dumps(row) + "\n" for row in made))

    asked = [[SYSTEM, {"role": "user", "content": f"How much is book {n}?"}] for n in range(12)]
    pairs = [
        {"id": str(n), "prompt": prompt, "chosen": f"It costs {n}.50.", "rejected": "No idea" + "!" * (n % 3)}
        for n, prompt in enumerate(asked)
    ]
    rows("pairs.jsonl", pairs)
    rows("more.jsonl", [pairs[0] | {"id": "equal", "rejected": pairs[0]["chosen"]}, *pairs[:2]])
    judged = [
        {"prompt": prompt, "completion": f"It costs {n}." if n % 2 else "No idea.", "label": bool(n % 2)}
        for n, prompt in enumerate(asked)
    ]
    rows("judged.jsonl", judged)
    talks = [{"messages": [*p, {"role": "assistant", "content": f"It costs {n}."}]} for n, p in enumerate(asked)]
    rows("talks.jsonl", talks)
    rows("problems.jsonl", [{"question": f"Book {n}?", "answer": "[0-9]", "shelf": n} for n in range(6)])
    return root


def config(home: Path, source: str, objective: dict[str, Any], **changes: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "model": str(home / "m"),
        "data": {"train": str(home / source)},
        "objective": objective,
        "method": {"name": "lora", "rank": 4},
        "optimizer": {"learning_rate": 5e-3, "schedule": "constant", "warmup": 0.0},
        "batch": {"micro_tokens": 512},
        "run": {"length": "4 steps", "dtype": "float32"},
    }
    for key, value in changes.items():
        values[key] = value if not isinstance(values.get(key), dict) else values[key] | value
    return build_config(TrainConfig, values, origin="recipe")


def steps(out: Path) -> list[dict[str, Any]]:
    return [
        row for line in (out / "train.jsonl").read_text().splitlines() if (row := json.loads(line))["event"] == "step"
    ]


PLAIN = {"batch": {"micro_tokens": 512, "global_tokens": 512}}


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("name", ["dpo", "ipo", "simpo", "orpo", "reward"])
def test_pairs_are_learned(home: Path, tmp_path: Path, name: str, method: str) -> None:
    own = {"name": "full"} if method == "full" else {"name": "lora", "rank": 4}
    rate = {"learning_rate": 1e-3 if method == "full" else 5e-3}
    recipe = config(home, "pairs.jsonl", {"name": name}, optimizer=rate, run={"length": "6 steps"}, **PLAIN)
    recipe = recipe.model_copy(update={"method": build_config(type(recipe.method), own, origin="method")})
    result = train_recipe(recipe, tmp_path / "out")
    told = steps(tmp_path / "out")
    assert result.status == "done"
    assert told[0]["units"] <= 12 < told[0]["label_tokens"], "pairs are counted, not tokens"
    if name == "dpo":
        assert told[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert told[-1]["margin"] > told[0]["margin"]
    assert {"accuracy", "margin"} <= set(told[-1])
    if name == "reward":
        assert result.folder is not None
        assert load_head(result.folder, 64).any()
        assert told[-1]["accuracy"] == 1.0


def test_judged_answers_are_learned(home: Path, tmp_path: Path) -> None:
    train_recipe(config(home, "judged.jsonl", {"name": "kto"}, **PLAIN), tmp_path / "out")
    told = steps(tmp_path / "out")
    assert told[0]["loss"] == pytest.approx(0.5, abs=1e-6)
    assert told[-1]["signed_reward"] > 0


def test_pairs_are_measured_on_pairs_that_are_not_learned(home: Path, tmp_path: Path) -> None:
    data = {"validation": {"path": str(home / "more.jsonl"), "name": "more"}, "bad_rows": 1}
    recipe = config(home, "pairs.jsonl", {"name": "dpo"}, data=data, run={"eval_every": "2 steps"}, **PLAIN)
    result = train_recipe(recipe, tmp_path / "out")
    assert result.rows["validation"]["more"]["bad"] == {"same_answers": 1}
    (bad,) = (tmp_path / "out" / "bad_rows.jsonl").read_text().splitlines()
    assert json.loads(bad)["detail"] == "chosen and rejected are the same"
    lines = [json.loads(line) for line in (tmp_path / "out" / "train.jsonl").read_text().splitlines()]
    measured = [line for line in lines if line["event"] == "eval"]
    assert measured[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert measured[-1]["margin"] > 0
    assert measured[-1]["units"] == 2


def test_a_student_learns_from_a_teacher(home: Path, tmp_path: Path) -> None:
    objective = {"name": "distill", "teacher": str(home / "teacher"), "hard_weight": 0.1}
    train_recipe(config(home, "talks.jsonl", objective, run={"length": "12 steps"}), tmp_path / "out")
    told = steps(tmp_path / "out")
    assert told[-1]["divergence"] < told[0]["divergence"]
    with pytest.raises(ConfigError, match="the teacher's vocabulary has 330 tokens, the student's 320"):
        train_recipe(config(home, "talks.jsonl", objective | {"teacher": str(home / "stranger")}), tmp_path / "b")
    with pytest.raises(ConfigError, match=r"objective\.teacher is not given"):
        train_recipe(config(home, "talks.jsonl", {"name": "distill"}), tmp_path / "c")


def answering(name: str, **changes: Any) -> dict[str, Any]:
    rollouts = {"problems": 3, "answers": 8, "max_tokens": 6}
    return {"name": name, "rollouts": rollouts, "reward": [{"name": "regex"}], **changes}


def rewarded(home: Path, out: Path, name: str, *, run: dict[str, Any], **changes: Any) -> TrainResult:
    recipe = config(home, "problems.jsonl", answering(name, **changes), optimizer={"learning_rate": 1e-2}, run=run)
    return train_recipe(recipe, out, serve=PolicyModel)


@pytest.mark.parametrize("name", ["grpo", "ppo"])
def test_rewards_are_learned_and_a_stopped_run_ends_the_same(home: Path, tmp_path: Path, name: str) -> None:
    """Stopped between the two steps of a rollout: the numbers of the weights that wrote it are on disk."""
    torch.set_num_threads(1)
    changes = {"iterations": 2, "kl_weight": 0.01}
    rewarded(home, tmp_path / "straight", name, run={"length": "6 steps"}, **changes)
    stopped = tmp_path / "stopped"
    first = rewarded(
        home, stopped, name, run={"length": "6 steps", "save_every": "3 steps", "time_limit": 1e-9}, **changes
    )
    assert (first.status, first.steps) == ("time limit", 1)
    again = rewarded(home, stopped, name, run={"length": "6 steps", "save_every": "3 steps"}, **changes)
    assert (again.status, again.resumed_from) == ("done", 1)
    weights = "adapter/adapter_model.safetensors"
    assert (stopped / weights).read_bytes() == (tmp_path / "straight" / weights).read_bytes()
    told = steps(stopped)
    assert 0.0 < told[0]["reward"] < 1.0
    assert told[0]["reward"] == told[1]["reward"], "two steps of one rollout"
    assert {"answer_tokens", "groups_alike", "kl"} <= set(told[0])
    assert (stopped / "adapter/value_head.safetensors").is_file() == (name == "ppo")


def test_held_out_problems_are_answered_greedily(home: Path, tmp_path: Path) -> None:
    data = {"validation": {"path": str(home / "problems.jsonl"), "name": "held"}}
    recipe = config(
        home, "problems.jsonl", answering("grpo"), data=data, run={"length": "2 steps", "eval_every": "1 steps"}
    )
    train_recipe(recipe, tmp_path / "out", serve=PolicyModel)
    lines = [json.loads(line) for line in (tmp_path / "out" / "train.jsonl").read_text().splitlines()]
    measured = [line for line in lines if line["event"] == "eval"]
    assert [line["step"] for line in measured] == [0, 1, 2]
    assert all(line["name"] == "held" and line["units"] == 6 and 0 <= line["reward"] <= 1 for line in measured)


def test_all_weights_learn_from_rewards(home: Path, tmp_path: Path) -> None:
    recipe = config(home, "problems.jsonl", answering("grpo"), run={"length": "3 steps"})
    whole = build_config(type(recipe.method), {"name": "full"}, origin="method")
    recipe = recipe.model_copy(update={"method": whole})
    result = train_recipe(recipe, tmp_path / "out", serve=PolicyModel)
    assert result.status == "done"
    assert (tmp_path / "out" / "model" / "model.safetensors").is_file()
    changed = recipe.model_copy(update={"objective": recipe.objective.model_copy(update={"kl_weight": 0.1})})
    with pytest.raises(ConfigError, match=r"grpo with kl_weight 0\.1 needs the model of the start"):
        train_recipe(changed, tmp_path / "b", serve=PolicyModel)


def test_a_reward_can_be_handed_in(home: Path, tmp_path: Path) -> None:
    seen = []

    def reward(problem: Any, text: str) -> float:
        seen.append(problem.data["shelf"])
        return float(len(text) % 3)

    recipe = config(home, "problems.jsonl", answering("grpo"), run={"length": "1 steps"})
    train_recipe(recipe, tmp_path / "out", serve=PolicyModel, reward=reward)
    assert len(seen) == 24


def test_what_has_no_effect_is_refused(home: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="objective grpo needs a model that answers"):
        train_recipe(config(home, "problems.jsonl", answering("grpo")), tmp_path / "a")
    with pytest.raises(ConfigError, match=r"batch\.global_tokens has no effect with grpo"):
        config(home, "problems.jsonl", answering("grpo"), **PLAIN)
    with pytest.raises(ConfigError, match=r"objective 'dpoo' does not exist\. Did you mean 'dpo'"):
        config(home, "pairs.jsonl", {"name": "dpoo"})
    with pytest.raises(ConfigError, match="gamma"):
        config(home, "pairs.jsonl", {"name": "dpo", "gamma": 1.0})
    other = r"talks\.jsonl holds rows of format 'openai', objective {0} learns from {1}"
    with pytest.raises(InputError, match=other.format("dpo", "pairs of answers")):
        prepare(config(home, "talks.jsonl", {"name": "dpo"}))
    with pytest.raises(InputError, match=other.format("kto", "judged answers")):
        prepare(config(home, "talks.jsonl", {"name": "kto"}))
    with pytest.raises(ConfigError, match=r"weight and format of .*problems\.jsonl have no effect on problems"):
        config(home, "p", answering("grpo"), data={"train": {"path": str(home / "problems.jsonl"), "weight": 2}})
    with pytest.raises(ConfigError, match=r"data\.train_on has no effect with dpo"):
        config(home, "pairs.jsonl", {"name": "dpo"}, data={"train_on": "last"})


def test_problems_are_read_as_they_are_asked(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "problems.jsonl"
    path.write_text('{"question": "2 + 2?", "answer": 4}\n{"prompt": "2 + 2 =", "answer": "4", "id": "raw"}\n')
    asked, raw = load_problems(RowSource(path=str(path)), system="Be short.").problems
    assert [message.text for message in asked.messages] == ["Be short.", "2 + 2?"]
    assert (asked.id, asked.answer) == ("problems.jsonl:1", "4")
    assert (raw.id, raw.prompt, raw.messages) == ("raw", "2 + 2 =", ())
    path.write_text('[{"q": "a", "answer": 1}, {"question": "a", "prompt": "b"}, 3, {"question": "a", "image": "b"}]')
    found = load_problems(RowSource(path=str(path.rename(tmp_path / "p.json")), columns={"question": "q"}))
    assert [each.id for each in found.problems] == ["p.json:1"]
    assert found.problems[0].data == {"q": "a"}
    told = [(bad["line"], bad["reason"], bad["detail"]) for bad in found.report.bad_lines()]
    assert [each[:2] for each in told] == [(2, "not_this_format"), (3, "not_this_format"), (4, "image")]
    assert told[0][2].startswith("a problem has one of question, messages and prompt, this one has ['question', 'prom")
    with pytest.raises(InputError, match=r"3 rows cannot be used, 1 % of 4 are allowed"):
        prepare(config(home, "p", answering("grpo"), data={"train": {"path": str(tmp_path / "p.json"),
                "columns": {"question": "q"}}}))  # fmt: skip
