"""The bench of training speed: what is tried, how a best is found, what is judged; our side and the fp32 reference."""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench import train_speed
from bench.common import PEERS, ROOT, Options
from bench.parts import gemm, material, peer_settings, train_rows
from bench.parts.contest import Search, fair_problems, search, turns
from bench.train_speed import LITGPT, OURS, PLAIN, TRL, Speed, best_against, chosen_parts
from riverrun.base.errors import InputError, RiverrunError
from riverrun.models.io.adapter import add_adapters
from riverrun.models.transformer import CausalLM
from tests.tiny_model import tiny_config, write_tiny

Answer = dict[str, Any]


def answer(tokens: int, seconds: float, *, loss: float = 1.9, labels: int = 100, **more: Any) -> Answer:
    found = {"row_tokens": tokens, "label_tokens": labels, "seconds": seconds, "first_loss": loss, "peak_bytes": 2e9}
    return found | more


def speed(*, quick: bool = False, peers: tuple[str, ...] = ("trl", "litgpt")) -> Speed:
    return Speed(Options(quick, peers, None, Namespace(search="new")), train_speed.FULL_BUDGET)


# --- what is tried


def test_every_point_of_the_issues_grid_is_tried() -> None:
    points = {name: setting for line in peer_settings.trl_lines().values() for name, setting in line}
    for how in ("eager", "compiled"):
        for layout in ("padded", "grouped", "packed"):
            for size in (4, 8, 16):
                setting = points[f"TRL {layout} {how}, batch {size}"]
                assert setting["per_device_train_batch_size"] == size
                assert setting["gradient_checkpointing"] is False
                assert setting.get("torch_compile", False) is (how == "compiled")
                assert setting.get("packing", False) is (layout == "packed")
                assert ("train_sampling_strategy" in setting) is (layout == "grouped")
    assert "gradient_checkpointing" not in peer_settings.TRL_DEFAULT, "the default is TRL's own"


def test_quick_takes_points_that_are_there() -> None:
    lines = peer_settings.quick(peer_settings.trl_lines(), "TRL grouped eager, batch 4")
    assert [name for line in lines.values() for name, _ in line] == ["TRL grouped eager, batch 4"]


def test_a_line_ends_where_bigger_batches_are_slower() -> None:
    rates = {1: 100.0, 2: 90.0, 4: 80.0, 8: 1000.0}
    tried: list[int] = []

    def contest(setting: Any) -> Answer:
        tried.append(setting["size"])
        return answer(int(rates[setting["size"]]), 1.0)

    found = search({"line": [(f"batch {size}", {"size": size}) for size in rates]}, contest)
    assert tried == [1, 2, 4]
    assert found.best == "batch 1"
    assert found.failed == {"batch 8": "not tried: slower and slower, batch 4 80"}


def test_a_setting_that_fails_is_told_and_the_others_go_on() -> None:
    def contest(setting: Any) -> Answer:
        if setting["size"] == 4:
            raise RiverrunError("no compiler")
        return answer(100, 1.0)

    lines = {"one": [("a", {"size": 4}), ("c", {"size": 8})], "two": [("b", {"size": 8})]}
    found = search(lines, contest)
    assert found.failed == {"a": "no compiler", "c": "not tried: a failed"}
    assert found.best == "b"
    with pytest.raises(RiverrunError, match="no setting of the peer ran: a: no compiler; c: not tried"):
        assert Search(failed=found.failed).best


def test_a_peer_that_fails_in_a_round_is_left_out_and_ours_is_not() -> None:
    def broken() -> Answer:
        raise RiverrunError("gone")

    results, failed = turns({OURS: lambda: answer(1, 1.0), TRL: broken}, 2, OURS)
    assert list(results) == [OURS]
    assert len(results[OURS]) == 2
    assert failed == {TRL: "gone"}
    with pytest.raises(RiverrunError, match="gone"):
        turns({PLAIN: broken}, 1, OURS)


def test_a_stored_search_is_taken_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RIVERRUN_BENCH", str(tmp_path))
    lines = {"line": [("a", {"size": 1}), ("b", {"size": 2})]}
    first = speed()._search("lora: TRL", lines, lambda setting: answer(100 * setting["size"], 1.0))
    again = speed()
    again.options.rest.search = "stored"

    def never(setting: Any) -> Answer:
        raise AssertionError("tried again")

    assert again._search("lora: TRL", lines, never) == first
    assert again.searches["lora: TRL"].best == "b"


# --- what is judged


def test_the_limits_are_against_the_right_peers() -> None:
    rates = {PLAIN: 500.0, TRL: 150.0, "TRL packed eager, batch 2": 200.0, LITGPT: 90.0, "litgpt bf16-true": 120.0}
    assert best_against(TRL, rates) == TRL
    assert best_against("TRL", rates) == "TRL packed eager, batch 2"
    assert best_against("litgpt", rates) == "litgpt bf16-true"
    assert best_against("Trainer", rates) == ""


def test_ratios_are_judged_and_unequal_work_is_not_passed() -> None:
    results = {
        OURS: [answer(1000, 1.0)],
        TRL: [answer(1000, 4.0)],
        "TRL grouped": [answer(1000, 2.0)],
        LITGPT: [answer(1000, 3.5)],
    }
    rows = speed()._rows("x", results, {TRL: 3.5, "TRL": 2.2, "litgpt": 3.0})
    assert [row.name for row in rows[1:4]] == [
        f"x: ratio to {name}" for name in (TRL, "the best of TRL", "the best of litgpt")
    ]
    assert [row.value for row in rows[1:4]] == pytest.approx([4.0, 2.0, 3.5])
    assert [row.passed for row in rows[1:4]] == [True, False, True]
    other = results | {TRL: [answer(999, 4.0)]}
    assert "TRL default has 999 row tokens, ours 1000" in speed()._rows("x", other, {TRL: 3.5})[0].note
    assert speed()._rows("x", other, {TRL: 3.5})[1].passed is False
    assert speed(quick=True)._rows("x", results, {TRL: 5.0})[1].passed is None


def test_shares_are_of_the_run_in_which_nothing_is_shared() -> None:
    measured = {"limit_seconds": 0.6, "product_seconds": 0.75, "product_rate": 7e11}
    results = {OURS: [answer(1000, 0.1)], PLAIN: [answer(1000, 1.0, **measured)]}
    [limit], [share] = speed()._flop_limit(results), speed()._share(results)
    assert (limit.value, limit.limit, limit.passed) == (pytest.approx(60), 50, True)
    assert (share.value, share.limit, share.passed) == (pytest.approx(75), 70, True)


def test_fair_problems_of_labels_and_loss() -> None:
    results = {OURS: [answer(10, 1.0)], "a": [answer(10, 1.0, labels=9)], "b": [answer(10, 1.0, loss=2.5)]}
    assert fair_problems(results, OURS) == ["a has 9 label tokens, ours 100", "b starts at loss 2.5000, ours at 1.9000"]
    assert fair_problems(results, OURS, labels=False) == ["b starts at loss 2.5000, ours at 1.9000"]
    results["c"] = [answer(10, 1.0) | {"first_loss": None}]  # litgpt draws its own first weights
    assert len(fair_problems(results, OURS)) == 2


def test_absent_material_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RIVERRUN_SHARED", raising=False)
    rows = speed().measure(train_speed.PARTS)
    assert [row.name for row in rows] == [
        train_speed.LORA,
        train_speed.FULL,
        train_speed.PRETRAIN,
        train_speed.START,
        train_speed.LOSS,
    ]
    assert all(row.value is None and row.note.startswith("not run here: needs corpora/") for row in rows)


NEEDED = {
    "trl_train.py": {"model", "subset", "setting", "rank", "alpha", "learning_rate", "clip_norm", "seed", "first_rows"},
    "hf_train.py": {"model", "subset", "setting", "learning_rate", "clip_norm", "seed", "first_rows", "global_rows"},
    "litgpt_train.py": {"method", "subset", "setting", "learning_rate", "clip_norm", "seed", "first_rows", "untimed"},
    "trl_start.py": {"model", "rows", "rank", "alpha", "began"},
    "bench.parts.train_rows": {"task", "model", "rank", "alpha"},
}


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """Every process that a part would start, with its job; each answers with the same figures, the peers' slower."""
    started: list[tuple[str, dict[str, Any]]] = []

    def child(python: Any, program: Any, job: dict[str, Any], name: str) -> Answer:
        script = Path(program[-1]).name
        assert NEEDED[script] <= set(job), f"{script} lacks {NEEDED[script] - set(job)}"
        json.dumps(job)
        started.append((script, dict(job)))
        measured = {"limit_seconds": 0.6, "product_seconds": 0.8, "product_rate": 7e11} if job.get("products") else {}
        return answer(1000, 1.0 if script == "bench.parts.train_rows" else 5.0, **measured)

    rows = tmp_path / "rows.jsonl"
    counts = {"rows": 9, "row_tokens": 1000, "label_tokens": 100}
    monkeypatch.setenv("RIVERRUN_BENCH", str(tmp_path))
    monkeypatch.setattr(train_speed, "child", child)
    monkeypatch.setattr(train_speed, "peer_python", Path)
    monkeypatch.setattr(material, "shared", lambda *parts: tmp_path)
    monkeypatch.setattr(material, "base_folder", lambda: tmp_path)
    monkeypatch.setattr(material, "shape_folder", lambda name: tmp_path / name)
    monkeypatch.setattr(material, "litgpt_shape", lambda name: {"n_layer": 1})
    monkeypatch.setattr(material, "instruction_rows", lambda tokens, name: (rows, rows, counts))
    monkeypatch.setattr(material, "text_rows", lambda count, name: (rows, counts))
    return started


def test_tuning_gives_every_row_of_the_issue(jobs: list[tuple[str, dict[str, Any]]]) -> None:
    bench = speed()
    rows = {row.name: row for row in bench.measure(("lora", "full"))}
    lora, full = train_speed.LORA, train_speed.FULL
    to = {TRL: 3.5, "the best of TRL": 2.2, "the best of litgpt": 3.0}
    limits = {f"{lora}: ratio to {who}": limit for who, limit in to.items()}
    limits |= {f"{full}: ratio to {TRL}": 2.5, f"{full}: ratio to the best of TRL": 1.4, train_speed.SHARE: 70.0}
    limits[f"{lora}: share of the FLOP limit 4N + 6 N_trainable + head on label rows"] = 50.0
    assert {name: row.limit for name, row in rows.items() if row.limit is not None} == limits
    assert all(rows[name].passed for name in limits)
    assert set(bench.searches) == {"lora: TRL", "lora: litgpt", "full: TRL"}
    ours = [job for script, job in jobs if script == "bench.parts.train_rows"]
    assert len(ours) == 2 * 2 * bench.budget.rounds
    assert {(job["method"], job["share"], job["products"]) for job in ours} == {
        (method, share, not share) for method in ("lora", "full") for share in (True, False)
    }
    timed = [job for script, job in jobs if script == "trl_train.py" and "limit" not in job]
    assert len(timed) == 2 * 2 * bench.budget.rounds, "default and best of each method, without a limit of time"


def test_pretraining_gives_every_row_of_the_issue(jobs: list[tuple[str, dict[str, Any]]]) -> None:
    rows = [row for row in speed().measure(("pretrain",)) if row.limit is not None]
    assert [row.limit for row in rows] == [1.5, 1.3] * 2
    assert all(row.passed and "ratio to" in row.name for row in rows)
    assert {job["model"][-4:] for script, job in jobs if script == "hf_train.py"} == {"/30M", "125M"}
    ours = [job for script, job in jobs if script == "bench.parts.train_rows"]
    assert {job["global_tokens"] for job in ours} == {8 * 1024}


def test_start_is_at_most_half(jobs: list[tuple[str, dict[str, Any]]]) -> None:
    [row] = speed().measure(("start",))
    assert (row.value, row.limit, row.passed) == (1.0, 2.5, True)
    assert [script for script, _ in jobs] == ["bench.parts.train_rows", "trl_start.py"] * 4


def test_quick_and_no_peers_judge_nothing(jobs: list[tuple[str, dict[str, Any]]]) -> None:
    quick = Speed(Options(True, ("trl", "litgpt"), None, Namespace(search="new")), train_speed.QUICK_BUDGET)
    rows = quick.measure(("lora", "full", "pretrain", "start"))
    assert {row.passed for row in rows} == {None}
    assert len(jobs) < 40
    alone = [row for row in speed(peers=()).measure(("lora", "pretrain", "start")) if "ratio" in row.name]
    assert alone == []


def test_parts() -> None:
    assert chosen_parts("") == train_speed.PARTS
    assert chosen_parts("loss,start") == ("loss", "start")
    with pytest.raises(InputError, match="no part is named 'lor'"):
        chosen_parts("lor")


def test_a_wrong_option_is_one_sentence() -> None:
    command = [sys.executable, "-m", "bench.train_speed", "--peers", "trll"]
    wrong = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: --peers trll: no peer is named 'trll'.")


# --- products


def test_products_are_six_operations_a_weight_and_row() -> None:
    config = tiny_config()
    body = config.num_hidden_layers * sum(out * inner for out, inner in config.linear_shapes().values())
    head = config.vocab_size * config.hidden_size
    full, frozen = (gemm.products(config, weights_learn=learn) for learn in (True, False))
    assert gemm.flops(full, 100, 7) == 6 * (body * 100 + head * 7)
    assert gemm.flops(frozen, 100, 7) == 4 * (body * 100 + head * 7)


def test_lora_parameters_are_those_of_an_adapter() -> None:
    config = tiny_config()
    model = CausalLM(config)
    add_adapters(model, 3, 6.0, seed=0)
    learning = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert gemm.lora_parameters(config, 3) == learning


def test_rates_are_measured_in_the_shapes_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gemm, "SECONDS", 0.0)
    shapes: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    own = torch.mm

    def mm(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        shapes.append((tuple(left.shape), tuple(right.shape)))
        return own(left, right)

    monkeypatch.setattr(torch, "mm", mm)
    wanted = gemm.products(tiny_config(), weights_learn=True)
    measured = gemm.rates(wanted, 10, 5, torch.float32)
    assert {((10, 64), (64, 128)), ((10, 128), (128, 64)), ((128, 10), (10, 64))} <= set(shapes)  # qkv
    assert {((5, 64), (64, 320)), ((5, 320), (320, 64)), ((320, 5), (5, 64))} <= set(shapes)  # head
    assert set(measured) == {(product.name, product.kind) for product in wanted}
    even = dict.fromkeys(measured, 2e9)
    assert gemm.seconds_at(even, wanted, 100, 7) == pytest.approx(gemm.flops(wanted, 100, 7) / 2e9)
    assert gemm.rate(even, wanted, 100, 7) == pytest.approx(2e9)


# --- material and our side


def test_an_alpaca_row_as_messages() -> None:
    row = {"instruction": "Add.", "input": "1 2", "output": "3"}
    assert [turn["content"] for turn in material.talk(row)] == ["Add.\n1 2", "3"]
    assert material.talk(row | {"input": ""})[0]["content"] == "Add."


def write_alpaca(path: Path, count: int) -> Path:
    rows = [{"instruction": f"Say {n}.", "input": "", "output": f"It is {n}{' indeed' * n}."} for n in range(count)]
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


@pytest.fixture
def subset(tmp_path: Path) -> dict[str, Any]:
    """A job over eight instruction rows for a tiny model."""
    job = {"make": "instructions", "model": str(write_tiny(tmp_path / "m")), "tokens": 10**6}
    job |= {"source": str(write_alpaca(tmp_path / "alpaca.json", 8))}
    job |= {"rows": str(tmp_path / "rows.jsonl"), "talks": str(tmp_path / "talks.jsonl")}
    counts = material.make(job)
    assert counts["rows"] == 8
    common = train_speed.COMMON | {"model": job["model"], "subset": job["rows"], "learning_rate": 1e-3, "first_rows": 2}
    return {"counts": counts, "talks": job["talks"], "job": common}


def test_rows_are_written_and_read_as_they_are(subset: dict[str, Any]) -> None:
    rows = train_rows.read_rows(Path(subset["job"]["subset"]))
    assert sum(len(row.ids) for row in rows) == subset["counts"]["row_tokens"]
    assert sum(row.label_tokens for row in rows) == subset["counts"]["label_tokens"]
    talks = [json.loads(line) for line in Path(subset["talks"]).read_text(encoding="utf-8").splitlines()]
    assert {talk["messages"][0]["content"] for talk in talks} == {f"Say {n}." for n in range(8)}


@pytest.mark.parametrize("method", ["lora", "full"])
def test_our_side_trains_every_row_once(subset: dict[str, Any], method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gemm, "SECONDS", 0.0)
    own = {"method": method, "micro_tokens": 256, "global_tokens": 256, "share": False, "products": True}
    found = train_rows.measure(subset["job"] | own)
    for key in ("row_tokens", "label_tokens"):
        assert found[key] == subset["counts"][key]
    assert found["computed_tokens"] == found["row_tokens"]
    weights = 2 * sum(out * inner for out, inner in tiny_config().linear_shapes().values())
    times = 4 if method == "lora" else 6
    head = tiny_config().vocab_size * tiny_config().hidden_size * found["label_tokens"]
    assert found["product_flops"] == times * (weights * found["row_tokens"] + head)
    assert ("limit_seconds" in found) is (method == "lora")
    assert found["losses"][-1] < found["losses"][0] or found["steps"] == 1


def test_the_first_step_ends_the_run(subset: dict[str, Any]) -> None:
    import time

    began = time.monotonic()
    job = {"model": subset["job"]["model"], "rows": subset["talks"], "rank": 2, "alpha": 4.0, "began": began}
    assert 0 < train_rows.start(job)["seconds"] <= time.monotonic() - began


def test_losses_equal_those_of_transformers_and_torch(subset: dict[str, Any], tmp_path: Path) -> None:
    """The script of the peer's environment, run here, where transformers is a test tool."""
    more = {"method": "full", "rows_per_step": 2, "betas": list(train_rows.BETAS), "schedule": "constant"}
    job = subset["job"] | more
    (tmp_path / "job.json").write_text(json.dumps(job), encoding="utf-8")
    command = [sys.executable, PEERS / "hf_losses.py", tmp_path / "job.json", tmp_path / "answer.json"]
    subprocess.run(command, check=True, capture_output=True)
    theirs = json.loads((tmp_path / "answer.json").read_text(encoding="utf-8"))["losses"]
    ours = train_rows.losses(job)["losses"]
    assert len(ours) == 4
    assert ours == pytest.approx(theirs, abs=1e-5)
    assert abs(ours[-1] - ours[0]) > 1e-3, "nothing was learned, so nothing was compared"


# --- the meter of the peers' scripts


@pytest.fixture
def meter(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.syspath_prepend(str(PEERS))
    from meter import Meter

    return Meter


def test_the_meter_counts_the_timed_steps_alone(meter: Callable[..., Any]) -> None:
    counted = meter(lambda examples: None, untimed=1, limit=0.0, accumulation=2)
    counted.on_train_begin()
    for size in range(1, 7):
        counted.collator([{"input_ids": [1] * size, "labels": [-100] + [1] * (size - 1)}])
    control = SimpleNamespace(should_training_stop=False)
    for step in (1, 2, 3):
        counted.on_step_end(None, SimpleNamespace(global_step=step), control)
    found = counted.answer()
    assert (found["row_tokens"], found["label_tokens"], found["steps"]) == (3 + 4 + 5 + 6, 2 + 3 + 4 + 5, 2)
    assert found["seconds"] > 0
    assert control.should_training_stop is False


def test_the_meter_ends_a_try_after_its_limit(meter: Callable[..., Any]) -> None:
    counted = meter(lambda examples: None, untimed=0, limit=1e-9)
    counted.on_train_begin()
    counted.collator([{"input_ids": [1, 2], "labels": [-100, 2]}])
    control = SimpleNamespace(should_training_stop=False)
    counted.on_step_end(None, SimpleNamespace(global_step=1), control)
    assert control.should_training_stop is True
    assert counted.answer()["stopped"] is True


def test_a_try_that_takes_too_long_says_so() -> None:
    program = "import time; from meter import give_up_after; give_up_after(1); time.sleep(30)"
    done = subprocess.run([sys.executable, "-c", program], cwd=PEERS, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "not done after 1 s"
