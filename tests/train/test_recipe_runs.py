"""Recipes from end to end on a tiny model: results, resume to the bit, parity with transformers, refusals."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from riverrun.base.artifacts import digest_file
from riverrun.base.config import build_config
from riverrun.base.errors import ConfigError, InputError
from riverrun.base.progress import Progress
from riverrun.cli.main import app
from riverrun.data.order import Mixture
from riverrun.data.packing import Pack
from riverrun.data.sampler import RowSampler
from riverrun.data.tokens import TokenRow
from riverrun.models.load import load_checkpoint, load_model
from riverrun.models.transformer import CausalLM
from riverrun.train import checkpoint
from riverrun.train.duration import Duration
from riverrun.train.loop import LoopConfig, train
from riverrun.train.objectives.supervised import Supervised
from riverrun.train.optim import Optimizer
from riverrun.train.recipe import OptimizerConfig, TrainConfig, load_recipe
from riverrun.train.run import prepare, train_recipe
from riverrun.train.sampler import MixedPackSampler, Prefetch
from tests.tiny_model import tiny_config, tiny_weights, write_rows, write_tiny


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("recipes")
    write_tiny(root / "m")
    write_rows(root / "rows.jsonl", 24)
    write_rows(root / "held.jsonl", 4)
    return root


def recipe(place: Path, **changes: Any) -> TrainConfig:
    """Sections are merged key by key."""
    data: dict[str, Any] = {
        "model": str(place / "m"),
        "data": {"train": str(place / "rows.jsonl"), "max_tokens": 200},
        "optimizer": {"learning_rate": 3e-3},
        "batch": {"micro_tokens": 256, "global_tokens": 512},
        "run": {"length": "13 steps", "dtype": "float32", "save_every": "12 steps", "keep_every": 12},
    }
    for section, values in changes.items():
        old = data.get(section)
        data[section] = old | values if isinstance(old, dict) and isinstance(values, dict) else values
    return build_config(TrainConfig, data)


def state_of(out: Path, step: int) -> dict[str, str]:
    """sha256 of every file of a checkpoint."""
    folder = out / "work" / f"step-{step:06d}"
    return {
        path.relative_to(folder).as_posix(): digest_file(path)
        for path in folder.rglob("*")
        if path.is_file() and path.name != "state.json"
    }


WAYS = [
    *(("full", "adamw", dtype, True) for dtype in ("float32", "bfloat16", "float16")),
    *(("full", name, "bfloat16", master) for name in ("adamw8bit", "muon") for master in (True, False)),
    ("full", "adamw", "bfloat16", False),
    ("full", "adamw8bit", "float32", True),
    ("full", "muon", "float32", True),
    ("lora", "adamw", "float32", True),
    ("lora", "adamw", "bfloat16", True),
    ("lora", "adamw", "float16", True),
    ("lora", "adamw8bit", "bfloat16", True),
    ("lora", "muon", "bfloat16", True),
]


@pytest.mark.parametrize(("method", "name", "dtype", "master"), WAYS)
def test_a_resumed_run_is_that_of_one_never_stopped(
    method: str, name: str, dtype: str, master: bool, place: Path, tmp_path: Path
) -> None:
    """Stopped after 1 and 2 steps, then 10 more: weights and optimizer have the same sha256."""
    own = {"method": method, "optimizer": {"name": name, "master": master}}
    if method == "lora":
        own["method"] = {"name": "lora", "rank": 64}  # large enough for 8-bit moments
    config = recipe(place, run={"dtype": dtype}, **own)
    straight = train_recipe(config, tmp_path / "straight")
    short = config.model_copy(update={"run": config.run.model_copy(update={"time_limit": 1e-9})})
    for steps in (1, 2):
        ended = train_recipe(short, tmp_path / "resumed")
        assert (ended.status, ended.steps, ended.folder) == ("time limit", steps, None)
    resumed = train_recipe(config, tmp_path / "resumed")
    assert (resumed.status, resumed.resumed_from) == ("done", 2)
    assert resumed.losses == straight.losses
    assert straight.losses[-1] < straight.losses[0]
    wanted, got = (state_of(tmp_path / each, 12) for each in ("straight", "resumed"))
    assert got == wanted
    assert "trainer_state/optimizer.safetensors" in wanted
    assert straight.folder
    assert resumed.folder
    for path in straight.folder.glob("*.safetensors"):
        assert digest_file(path) == digest_file(resumed.folder / path.name)


def test_a_checkpoint_of_a_whole_model_loads_as_a_model(place: Path, tmp_path: Path) -> None:
    train_recipe(recipe(place, method="full", run={"dtype": "bfloat16"}), tmp_path / "out")
    opened = load_checkpoint(tmp_path / "out" / "work" / "step-000012")
    assert opened.template.source == load_checkpoint(place / "m").template.source
    model = load_model(opened, torch.bfloat16)
    assert model.embed_tokens.dtype == torch.bfloat16
    assert load_model(load_checkpoint(tmp_path / "out" / "model"), torch.float32).config == opened.config


def test_what_a_run_leaves_and_a_second_call_finds_it_done(place: Path, tmp_path: Path) -> None:
    own = {"eval_every": "5 steps", "prompts": ["How much"], "length": "11 steps", "keep_every": 0, "tensorboard": True}
    held = [{"path": str(place / "held.jsonl"), "name": "held"}]
    config = recipe(place, data={"validation": held, "workers": 2}, run=own)
    out = tmp_path / "out"
    result = train_recipe(config, out)
    assert {path.name for path in out.iterdir()} == {
        "adapter",
        "train.jsonl",
        "resolved.yaml",
        "result.json",
        "tensorboard",
    }
    lines = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["event"] == "step"]
    evals = [line for line in lines if line["event"] == "eval"]
    samples = [line for line in lines if line["event"] == "sample"]
    assert [line["step"] for line in steps] == list(range(1, 12))
    assert [line["step"] for line in evals] == [0, 5, 10, 11]
    assert evals[-1]["loss"] < 0.5 * evals[0]["loss"]
    assert evals[0]["bits_per_byte"] == pytest.approx(
        evals[0]["loss"] * evals[0]["label_tokens"] / math.log(2) / evals[0]["bytes"]
    )
    assert {line["prompt"] for line in samples} == {"How much"}
    assert {"loss", "lr", "grad_norm", "tokens_per_second", "mfu", "padded_share", "resident_bytes"} <= set(steps[0])
    resolved = yaml.safe_load((out / "resolved.yaml").read_text())
    assert resolved["method"]["name"] == "lora"
    assert build_config(TrainConfig, resolved).run.length == Duration(11, "steps")
    before = digest_file(out / "adapter" / "adapter_model.safetensors")
    again = train_recipe(config, out)
    assert again.losses == result.losses
    assert again.seconds == result.seconds, "read, not trained"
    assert digest_file(out / "adapter" / "adapter_model.safetensors") == before
    with pytest.raises(InputError, match="holds the result of another training"):
        train_recipe(recipe(place, run={"seed": 1}), out)


def test_a_checkpoint_of_another_training_is_refused_by_what_differs(place: Path, tmp_path: Path) -> None:
    stop = {"time_limit": 1e-9}
    train_recipe(recipe(place, run=stop), tmp_path / "out")
    text = (
        r"optimizer.learning_rate is 0.003 there and 0.002 here; run.length is 13 steps there and 14 steps here\): give"
    )
    with pytest.raises(InputError, match=text):
        train_recipe(recipe(place, optimizer={"learning_rate": 2e-3}, run={"length": "14 steps"}), tmp_path / "out")
    write_tiny(tmp_path / "other", seed=5)
    with pytest.raises(InputError, match=r"another training \(model is [0-9a-f]{12} there and [0-9a-f]{12} here\)"):
        train_recipe(recipe(place, model=str(tmp_path / "other")), tmp_path / "out")
    assert train_recipe(recipe(place, run={"save_every": "5 steps"}), tmp_path / "out").resumed_from == 1


def test_a_hundred_steps_are_those_of_transformers_and_torch(place: Path) -> None:
    """Full fine-tuning in fp32: the same batches through LlamaForCausalLM, row by row, and torch's AdamW."""
    from transformers import LlamaForCausalLM

    config = recipe(
        place,
        method="full",
        optimizer={"learning_rate": 3e-4, "weight_decay": 0.1, "schedule": "cosine", "warmup": 0.1},
        batch={"micro_tokens": 170, "global_tokens": 170},
        run={"length": "100 steps"},
    )
    ready = prepare(config)
    packs = [ready.sampler.batch(step) for step in range(100)]
    losses = [row["loss"] for row in _steps(config, ready.opened.path, place / "parity")]
    theirs = LlamaForCausalLM.from_pretrained(place / "m", dtype=torch.float32).train()
    groups = [
        {"params": [p for p in theirs.parameters() if (p.dim() == 2) == matrix], "weight_decay": 0.1 if matrix else 0.0}
        for matrix in (True, False)
    ]
    optimizer = torch.optim.AdamW(groups, lr=3e-4, betas=(0.9, 0.99), eps=1e-8)
    worst = 0.0
    for step, micro in enumerate(packs):
        rows = [row for pack in micro for row in pack.rows]
        total, count = torch.zeros(()), sum(row.label_tokens for row in rows)
        for row in rows:
            logits = theirs(torch.tensor([row.ids])).logits[0, :-1]
            wanted = torch.tensor([t if flag else -100 for t, flag in zip(row.ids[1:], row.learned[1:], strict=True)])
            total = total + torch.nn.functional.cross_entropy(logits, wanted, ignore_index=-100, reduction="sum")
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        factor = (step + 1) / 10 if step < 10 else 0.5 * (1 + math.cos(math.pi * (step - 10) / 90))
        for group in optimizer.param_groups:
            group["lr"] = 3e-4 * factor
        optimizer.step()
        optimizer.zero_grad()
        worst = max(worst, abs(float(total.detach()) / count - losses[step]))
    assert worst <= 1e-4
    assert losses[-1] < 0.2 * losses[0]


def _steps(config: TrainConfig, model: Path, out: Path) -> list[dict[str, Any]]:
    train_recipe(config, out)
    lines = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == "step"]


class Cut:
    """The same rows in so many micro-batches."""

    def __init__(self, rows: list[TokenRow], count: int) -> None:
        self.packs = [Pack.of(rows[i::count]) for i in range(count)]

    def batch(self, step: int) -> list[Pack]:
        return self.packs


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_accumulation_changes_nothing(dtype: torch.dtype, bound: float, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = []
    for number in range(16):
        ids = tuple(torch.randint(3, 320, (9 + 3 * number,), generator=generator).tolist())
        rows.append(TokenRow(str(number), ids, tuple(place % 3 > 0 for place in range(len(ids)))))
    settings = OptimizerConfig(learning_rate=1e-3, schedule="constant", warmup=0.0, clip_norm=1e9)
    found = {}
    for count in (1, 2, 4, 8):
        model = CausalLM(tiny_config(), dtype)
        calm = {name: w * 0.4 if w.dim() == 2 else w for name, w in tiny_weights(tiny_config()).items()}
        with torch.no_grad():
            model.load(calm.items(), "tiny")
        model.train_all()
        weights: dict[str, torch.Tensor] = dict(model.named_parameters())
        work = tmp_path / f"{dtype}-{count}"
        every = Duration(1, "steps")
        config = LoopConfig(Duration(2, "steps"), settings, {"run": "cut"}, save_every=every)
        result = train(
            weights, Cut(rows, count), Supervised(model), lambda: None, config, work=work, progress=Progress("quiet")
        )
        optimizer = Optimizer(weights, settings)
        saved = checkpoint.latest(work, identity={"run": "cut"})
        assert saved is not None
        checkpoint.restore(saved, weights, optimizer)
        moments = torch.cat([t.flatten().double() for n, t in optimizer.tensors().items() if n.startswith("exp_avg/")])
        found[count] = (result.losses[0]["loss"], moments)
    loss, moments = found[1]
    for count in (2, 4, 8):
        assert found[count][0] == pytest.approx(loss, rel=bound)
        assert float((found[count][1] - moments).norm() / moments.norm()) <= bound


def test_order_does_not_depend_on_workers(place: Path) -> None:
    ready = prepare(recipe(place, run={"length": "3 epochs"}))
    plain = [ready.sampler.batch(step) for step in range(12)]
    for workers in (0, 1, 4):
        ahead = Prefetch(prepare(recipe(place)).sampler, workers)
        assert [ahead.batch(step) for step in range(12)] == plain
        assert ahead.batch(3) == plain[3], "seeking back"
        assert ahead.batch(11) == plain[11]
        ahead.close()


NEW = {"like": "internlm2-1.8b", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
NEW |= {"num_key_value_heads": 2, "intermediate_size": 96}


def test_a_new_model_is_seeded_shaped_and_loads_alone(place: Path, tmp_path: Path) -> None:
    own = {"new": NEW | {"vocab": str(place / "m")}}
    text = tmp_path / "text.jsonl"
    text.write_text(
        "".join(json.dumps({"text": f"River {n} runs to the sea and book {n} is sold. " * 3}) + "\n" for n in range(30))
    )
    config = recipe(
        place,
        model=own,
        objective="pretrain",
        data={"train": str(text)},
        optimizer={"name": "muon", "learning_rate": 1e-2, "schedule": "wsd", "weight_decay": 0.1},
        run={"length": "3k tokens", "keep_every": 0},
    )
    result = train_recipe(config, tmp_path / "out")
    assert result.row_tokens >= 3000
    assert result.losses[0] == pytest.approx(math.log(320), abs=0.3), "a new model knows nothing"
    assert result.losses[-1] < 0.8 * result.losses[0]
    opened = load_checkpoint(tmp_path / "out" / "model")
    assert opened.config.model_type == "internlm2"
    assert opened.config.head_dim == 16
    assert opened.config.vocab_size == opened.tokenizer.vocab_size


def test_new_weights_have_the_said_deviation(place: Path) -> None:
    from riverrun.train.build import new_model, open_model

    config = recipe(place, model={"new": NEW | {"vocab": str(place / "m")}}, method="full").model
    shape = open_model(config).config
    one, other = (new_model(shape, torch.float32, seed).views() for seed in (1, 1))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert float(one["model.layers.0.self_attn.q_proj.weight"].std()) == pytest.approx(0.02, rel=0.05)
    assert float(one["model.layers.1.mlp.down_proj.weight"].std()) == pytest.approx(0.02 / 2, rel=0.05)
    assert bool((one["model.norm.weight"] == 1).all())


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"optimizer": {"learning_rat": 1.0}}, r"unknown key 'optimizer.learning_rat'. Did you mean 'learning_rate'"),
    ({"objective": "stf"}, r"objective 'stf' does not exist. Did you mean 'sft'"),
    ({"objective": {"name": "sft", "beta": 1}}, "unknown key 'beta'"),
    ({"run": {"length": "5"}}, "'5' is not a duration above 0"),
    ({"optimizer": {"momentum": 0.5}}, "momentum has no effect with adamw, only with muon"),
    ({"optimizer": {"decay": 0.5}}, "decay has no effect with linear, only with wsd"),
    ({"method": {"name": "full", "rank": 4}}, "method.rank has no effect when all weights are trained"),
    ({"model": {"path": "m", "new": {"vocab": "v"}}}, "model needs path or new, both is given"),
    ({"model": {"new": {"like": "llama2-7b"}}}, "model.new needs vocab"),
    ({"run": {"eval_every": "5 steps"}}, "run.eval_every has nothing to measure"),
    ({"data": {"validation": "held.jsonl"}}, "data.validation is never measured"),
    ({"run": {"dtype": "float16"}, "optimizer": {"master": False}}, "float16 is too narrow"),
    ({"batch": {"micro_tokens": 5}}, "micro_tokens must be at least 64, it is 5"),
]


@pytest.mark.parametrize(("changes", "text"), REFUSED)
def test_recipes_that_cannot_be_are_refused(changes: dict[str, Any], text: str, place: Path) -> None:
    with pytest.raises(ConfigError, match=text) as caught:
        recipe(place, **changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("policy", ["drop", "cut_right", "refuse"])
def test_rows_that_are_too_long(policy: str, place: Path) -> None:
    limit = rows_of(recipe(place)).lengths.max() - 1
    config = recipe(place, data={"overlong": policy, "max_tokens": int(limit)})
    if policy == "refuse":
        with pytest.raises(InputError, match=rf"5 rows are too long \(.*\); the limit is {limit} tokens \(data.max_t"):
            prepare(config)
        return
    rows, counts = rows_of(config), prepare(config).rows.counts
    assert len(rows) + counts.too_long == 24
    assert bool(counts.too_long) == (policy == "drop")
    assert rows.lengths.max() == limit or policy == "drop"


def rows_of(config: TrainConfig) -> Mixture:
    rows = prepare(config).rows.train
    assert rows is not None
    return rows


@pytest.mark.parametrize("share", [True, False])
def test_weights_of_sources(share: bool, place: Path) -> None:
    """2.5 and 0.5 times an epoch, exactly; over two epochs the same rows as often as the weights say."""
    both = [{"path": str(place / "rows.jsonl"), "weight": 2.5}, {"path": str(place / "held.jsonl"), "weight": 0.5}]
    sampler = prepare(recipe(place, data={"train": both, "share_prefix": share})).sampler
    assert isinstance(sampler, MixedPackSampler if share else RowSampler)
    per_epoch = sampler.steps_in_epoch(0)
    seen = [Counter(row.id for step in steps for pack in sampler.batch(step) for row in pack.rows)
            for steps in (range(per_epoch), range(per_epoch, sampler.total_steps(2)))]  # fmt: skip
    assert [each.total() for each in seen] == [60 + 2, 60 + 2]
    whole = seen[0] + seen[1]
    assert {name: count for name, count in whole.items() if name.startswith("rows")} == {
        f"rows.jsonl:{n}": 5 for n in range(1, 25)
    }
    assert sorted(count for name, count in whole.items() if name.startswith("held")) == [1, 1, 1, 1]


def test_the_command_line(place: Path, tmp_path: Path) -> None:
    (place / "recipe.yaml").write_text(
        "model: m\ndata: {train: rows.jsonl, max_tokens: 200}\nbatch: {global_tokens: 512}\nrun: {dtype: float32}\n"
    )
    assert load_recipe(place).data.train[0].path == str(place / "rows.jsonl")
    shown = CliRunner().invoke(app, ["train", "run", str(place), "run.length=2 steps", "--dry-run"])
    assert shown.exit_code == 0, shown.output
    assert "method lora: " in shown.output
    assert "label tokens for 82240 weights; lora fits" in shown.output
    assert "rows: 24 in" in shown.output
    command = ["train", "run", str(place), "run.length=2 steps", "--out", str(tmp_path / "out"), "--progress", "quiet"]
    assert CliRunner().invoke(app, command).exit_code == 0
    assert (tmp_path / "out" / "adapter" / "adapter_config.json").is_file()
    wrong = CliRunner().invoke(app, ["train", "run", str(place), "run.lenght=2 steps"])
    assert wrong.exit_code == 2
