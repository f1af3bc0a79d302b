"""Rounds with stand-ins: what a round teaches is given, what the chain makes of it is tested."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from bench.parts.weak_start import WATCH, sealed_came_last, weak_start_rows
from riverrun.base.errors import InputError
from riverrun.chain import rounds
from riverrun.chain.asked import gather
from riverrun.chain.assistant import make_assistant
from riverrun.chain.improving import Change, Settings
from riverrun.chain.preview import preview
from riverrun.chain.report import build_report
from riverrun.chain.run import open_context, run_app
from riverrun.chain.stage import read_json, read_jsonl
from riverrun.data.journal import read_documents
from tests.chain import doubles
from tests.chain.conftest import QUIET
from tests.chain.doubles import PARTS
from tests.chain.test_chain_run import skipped
from tests.data.hostile import make
from tests.data.test_synthesis import literals
from tests.tiny_model import write_tiny

ROOT = Path(__file__).parents[2]
THREE = ["rounds.most=3", "rounds.success=0.9", "data.dev_per_intent=20", "gates.success=0.1"]
LOOSE = [f"gates.{name}=null" for name in ("choice_perf", "quantized_drop", "through_agent", "sums_change")]


@pytest.fixture
def teach(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Say what share of the questions each round's model knows."""

    def say(*skills: int) -> None:
        monkeypatch.setenv("TEST_SKILLS", json.dumps({f"round-{n}": skill for n, skill in enumerate(skills, 1)}))

    return say


def tune(recipe: Path, out: Path, *overrides: str, until: str = "finetune", isolate: bool = False) -> dict[str, Any]:
    values = [*THREE, *LOOSE, *overrides]
    return run_app(recipe, values, out=out, progress=QUIET, parts=PARTS, isolate=isolate, until=until)


def adapter(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_json(folder / "adapter" / "adapter_config.json")
    return found


def test_the_bar_is_reached_in_the_second_round(recipe: Path, tmp_path: Path, teach: Any) -> None:
    teach(40, 100)
    summary = tune(recipe, tmp_path, until="report")
    folder = tmp_path / "finetune"
    told = read_json(folder / "rounds.json")
    assert (told["stopped"], told["chosen"], len(told["rounds"])) == ("met", 2, 2)
    change = read_json(folder / "round-2" / "change.json")
    assert (change["what"], change["start"]) == ("data", 1)
    assert change["more"].keys() <= {"price_of_title", "count_in_genre", "greeting", "page_shipping"}
    assert adapter(folder) == adapter(folder / "round-2")
    assert adapter(folder)["went_on"]
    new = read_jsonl(folder / "round-2" / "more.jsonl")
    known = {
        row["messages"][1]["content"] for row in read_jsonl(tmp_path / "data" / "train.jsonl") if "messages" in row
    }
    asked = {row["messages"][1]["content"] for row in new}
    assert len(new) == len(asked) == sum(change["more"].values()) >= 4
    assert not asked & known
    seen = adapter(folder / "round-1")["seen"] + 2 * len(new)
    assert adapter(folder)["seen"] == seen, "the new rows and as many old ones"
    found = summary["rounds"]
    assert (found["count"], found["chosen"], found["stopped"]) == (2, 2, "met")
    assert found["development"]["success"] == found["by_number"]["2"]["success"] == 1.0
    assert found["by_number"]["1"]["success"] < 0.9
    sealed = summary["scores"]["tool"]["tuned"]["success"]
    optimism = found["optimism"]
    assert optimism["difference"] == pytest.approx(1.0 - sealed)
    assert optimism["low"] < optimism["difference"] <= optimism["high"]
    html = build_report(tmp_path)
    assert change["why"] in html
    assert "Optimism" in html
    assert summary["finetune"]["steps"] == 12, "of both rounds"


def test_one_round_leaves_everything_as_it_was(finished: Path) -> None:
    folder = finished / "finetune"
    assert {path.name for path in folder.iterdir()} == {"adapter", "lineage.json", "loss.jsonl", "method.json"}
    record = read_json(folder / "lineage.json")
    assert {name.partition(" ")[0] for name in record["inputs"]} == {"model", "data/train.jsonl", "plan/chosen"}
    assert not record["config"].keys() & {"rounds", "bar"}
    assert "rounds" not in read_json(finished / "summary.json")
    assert "Rounds" not in build_report(finished)


def test_the_bar_met_at_once_trains_once_and_tests_once(recipe: Path, tmp_path: Path, teach: Any) -> None:
    teach(100)
    assert tune(recipe, tmp_path)["rounds"]["by_number"].keys() == {"1"}


def test_two_rounds_without_gain_end_it_and_the_best_is_kept(recipe: Path, tmp_path: Path, teach: Any) -> None:
    teach(60, 20, 40, 100)
    summary = tune(recipe, tmp_path, "rounds.most=9")
    told = read_json(tmp_path / "finetune" / "rounds.json")
    assert (told["stopped"], told["chosen"]) == ("patience", 1)
    assert [each["kept"] for each in told["rounds"]] == [True, False, False]
    assert [each["change"]["what"] for each in told["rounds"]] == ["first", "data", "epochs"]
    assert told["rounds"][2]["change"]["start"] == 1, "it goes on from the best, not from the last"
    assert told["rounds"][1]["gain"]["difference"] < 0 < told["rounds"][1]["gain"]["p"]
    assert adapter(tmp_path / "finetune") == adapter(tmp_path / "finetune" / "round-1")
    assert summary["rounds"]["chosen"] == 1
    rows = (tmp_path / "data" / "train.jsonl").read_text().count("\n")
    assert adapter(tmp_path / "finetune" / "round-3")["seen"] == 2 * rows, "dropped data is not trained on again"


def test_the_number_of_rounds_is_kept(recipe: Path, tmp_path: Path, teach: Any) -> None:
    teach(20, 40, 60, 80)
    summary = tune(recipe, tmp_path, "finetune.learning_rate=5.0e-4")
    assert (summary["rounds"]["stopped"], summary["rounds"]["count"]) == ("most", 3)
    ranks = [adapter(tmp_path / "finetune" / f"round-{n}")["r"] for n in (1, 2, 3)]
    assert ranks == [16, 16, 16]


def test_a_wider_rank_starts_anew_with_all_data(recipe: Path, tmp_path: Path, teach: Any) -> None:
    teach(20, 60, 10, 10, 10, 70)
    tune(recipe, tmp_path, "rounds.most=6", "rounds.patience=5")
    folder = tmp_path / "finetune"
    changes = [read_json(folder / f"round-{n}" / "change.json") for n in range(1, 6)]
    assert [change["what"] for change in changes] == ["first", "data", "data", "epochs", "rank"]
    assert adapter(folder / "round-5")["r"] == 32
    assert not adapter(folder / "round-5")["went_on"]
    rows = adapter(folder / "round-1")["seen"] + len(read_jsonl(folder / "round-2" / "more.jsonl"))
    assert adapter(folder / "round-5")["seen"] == rows


def test_a_changed_bar_of_its_own_trains_anew_a_changed_gate_does_not(recipe: Path, tmp_path: Path, teach: Any) -> None:
    teach(60, 100)
    tune(recipe, tmp_path)
    assert "finetune" in skipped(tune(recipe, tmp_path, "gates.success=0.2"))
    assert "finetune" not in skipped(tune(recipe, tmp_path, "rounds.success=0.3"))
    assert "finetune" not in skipped(tune(recipe, tmp_path, "rounds.success=null", "gates.success=0.35"))


def test_rounds_without_development_questions_are_refused(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"rounds.most = 3 needs development questions and there are none"):
        tune(recipe, tmp_path, "data.dev_per_intent=0", "select.dev_questions=0")


def test_an_untrained_model_that_is_good_enough_needs_no_round(recipe: Path, tmp_path: Path) -> None:
    summary = tune(recipe, tmp_path, "finetune.method=none", until="evaluate")
    assert "rounds" not in summary


def test_a_dry_run_counts_the_rounds(recipe: Path, tmp_path: Path) -> None:
    def seconds(most: int) -> float:
        text = preview(open_context(recipe, [f"rounds.most={most}", "finetune.epochs=50"], out=tmp_path, parts=PARTS))
        line = next(line for line in text.splitlines() if " finetune " in line)
        assert (f"at most {most} rounds" in line) == (most > 1)
        return float(line.split()[4])

    assert seconds(3) > seconds(2) > 2 * seconds(1)


# Interruptions.

RUN = """
import sys
from pathlib import Path
from riverrun.base.progress import Progress
from riverrun.chain.run import run_app
from tests.chain.doubles import PARTS
quiet = Progress("quiet")
run_app(Path(sys.argv[1]), sys.argv[3:], out=Path(sys.argv[2]), progress=quiet, parts=PARTS, until="finetune")
"""


@pytest.fixture(scope="module")
def straight(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rounds without an interruption."""
    out = tmp_path_factory.mktemp("straight")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEST_SKILLS", '{"round-1": 40, "round-2": 100}')
        tune(recipe, out)
    return out


@pytest.mark.parametrize("held", ["ROUND_1", "ROUND_2", "DEV_1", "DEV_2"])
def test_kill_nine_within_and_between_rounds(
    recipe: Path, straight: Path, tmp_path: Path, teach: Any, held: str
) -> None:
    teach(40, 100)
    out, fifo = tmp_path / "run", tmp_path / "fifo"
    shutil.copytree(straight, out)
    shutil.rmtree(out / "finetune")
    os.mkfifo(fifo)
    env = {**os.environ, "PYTHONPATH": str(ROOT), f"TEST_HOLD_{held}": str(fifo)}
    command = [sys.executable, "-c", RUN, str(recipe), str(out), *THREE, *LOOSE]
    child = subprocess.Popen(command, env=env, cwd=ROOT, start_new_session=True)
    with open(fifo):  # returns when the held part opens its end
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    folder = out / "finetune"
    assert not (folder / "lineage.json").exists()
    assert (folder / "round-1" / "round.json").is_file() == held.endswith("2")
    assert (folder / f"round-{held[-1]}" / "adapter").is_dir() == held.startswith("DEV")
    before = {path: path.stat().st_mtime_ns for path in folder.glob("round-*/**/*") if path.is_file()}
    summary = tune(recipe, out)
    assert all(path.stat().st_mtime_ns == time for path, time in before.items()), "something was made again"
    ends = [read_json(place / "finetune" / "lineage.json")["outputs"] for place in (out, straight)]
    assert ends[0] == ends[1]
    resumed = summary["stages"]["finetune"]["counts"]["resumed_from"]
    assert resumed == (3 if held.startswith("ROUND") else 0)


def test_stopped_at_the_very_end_nothing_is_trained_again(
    recipe: Path, straight: Path, tmp_path: Path, teach: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    teach(40, 100)
    out = tmp_path / "run"
    shutil.copytree(straight, out)
    shutil.rmtree(out / "finetune")
    with monkeypatch.context() as patch:
        patch.setattr(rounds, "_result", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            tune(recipe, out)
    monkeypatch.setattr(doubles, "finetune", lambda *_, **__: pytest.fail("trained again"))
    tune(recipe, out)
    ends = [read_json(place / "finetune" / "lineage.json")["outputs"] for place in (out, straight)]
    assert ends[0] == ends[1]


def test_texts_against_forgetting_say_nothing_about_what_is_learned() -> None:
    steps = [{"loss": 1.0}, {"loss": 3.1, "plain_text": True}, {"loss": 0.3, "plain_text": False}]
    assert rounds._taught(steps) == [1.0, 0.3]
    assert rounds._taught(steps[1:2]) == [3.1]


# What is read when.


def test_the_sealed_questions_are_opened_after_the_last_round(
    recipe: Path, tmp_path: Path, teach: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file that a stage's own process opens, in order."""
    teach(20, 40, 60)
    log = tmp_path / "opened"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(WATCH)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *sys.path])
    monkeypatch.setenv("RIVERRUN_OPENED", str(log))
    tune(recipe, tmp_path / "run", isolate=True, until="evaluate")
    lines = log.read_text().splitlines()
    assert sealed_came_last(lines)
    opened = [tuple(line.split()) for line in lines]
    dev = [place for place, (_, name) in enumerate(opened) if name.startswith(".dev_records.jsonl.")]
    first = [name for _, name in opened].index("questions_sealed.jsonl")
    assert len(dev) == 3
    assert dev[-1] < first
    (row,) = weak_start_rows(tmp_path / "run", log)
    assert row.value == 3
    assert row.passed is False, "the bar was not reached"
    early = [lines[first], *lines]
    assert not sealed_came_last(early)
    (row,) = weak_start_rows(tmp_path / "run", _written(tmp_path / "early", early))
    assert "OPENED BEFORE" in row.note


def _written(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines))
    return path


# New questions.


def test_more_questions_of_written_intents_are_new(recipe: Path, tmp_path: Path) -> None:
    ctx = open_context(recipe, ["data.train_per_intent=6"], out=tmp_path / "out", parts=PARTS)
    run_app(
        recipe,
        ["data.train_per_intent=6"],
        out=tmp_path / "out",
        progress=QUIET,
        parts=PARTS,
        isolate=False,
        until="data",
    )
    data = tmp_path / "out" / "data"
    documents = read_documents(data / "kept.jsonl")
    what = (ctx, data / "shop.sqlite", documents, make_assistant(ctx.spec, data / "shop.sqlite", documents))
    plain = gather(*what)
    draws = {"a": {"price_of_title": 8}, "b": {"price_of_title": 5, "count_in_genre": 20, "greeting": 3}}
    asked = gather(*what, more=draws)
    assert asked.questions == plain.questions
    assert [question.intent for question in asked.more["a"]] == ["price_of_title"] * 8
    assert len([q for q in asked.more["b"] if q.intent == "price_of_title"]) == 5
    assert 1 <= len([q for q in asked.more["b"] if q.intent == "count_in_genre"]) <= 4, "ten are all there are"
    texts = [q.text for each in (*asked.questions.values(), *asked.more.values()) for q in each]
    assert len(texts) == len(set(texts))
    assert all(question.split == "train" for each in asked.more.values() for question in each)


SPEC = """
name: shop
system: Help.
candidates: [model]
database: {path: shop.sqlite}
synthesis: {train: 120, dev: 30, sealed: 60}
"""


def test_more_synthesised_questions_share_nothing_with_the_tests(tmp_path: Path) -> None:
    database = make("chinese", tmp_path / "shop.sqlite")
    (tmp_path / "app.yaml").write_text(SPEC)
    ctx = open_context(tmp_path, ["language=zh"], out=tmp_path / "out")
    what = (ctx, database, [], make_assistant(ctx.spec, database, []))
    plain = gather(*what)
    draws = {"more-2": {"lookup": 30, "count": 10, "nothing": 5, "chat": 4}, "more-3": {"lookup": 30}}
    asked = gather(*what, more=draws)
    assert asked.questions == plain.questions
    kinds = [question.kind for question in asked.more["more-2"]]
    assert kinds.count("lookup") == 30
    assert kinds.count("count") == 10
    assert len(asked.more["more-3"]) == 30
    assert [question.id for question in asked.more["more-3"]][:2] == ["more-3-0000", "more-3-0001"]
    texts = [q.text.casefold() for each in (*asked.questions.values(), *asked.more.values()) for q in each]
    assert len(texts) == len(set(texts))
    with closing(sqlite3.connect(database)) as connection:
        names = {name for (name,) in connection.execute("SELECT 姓名 FROM 客户")}
    tested = {
        text for split in ("dev", "sealed") for q in asked.questions[split] for text in literals(q) if text in names
    }
    new = {text for each in asked.more.values() for q in each for text in literals(q) if text in names}
    assert new
    assert not new & tested
    assert not {q.intent for each in asked.more.values() for q in each} & asked.held_out
    assert asked.more["more-2"] == gather(*what, more={"more-2": draws["more-2"]}).more["more-2"]


def test_a_drafted_change_is_read_again_as_it_was() -> None:
    change = Change("data", "why", Settings(8, 16.0, 1e-3, 1), 1, 2, {"join": 3})
    value = json.loads(json.dumps({**change.__dict__, "settings": change.settings.__dict__}))
    assert Change(**{**value, "settings": Settings(**value["settings"])}) == change


def test_a_weak_start_reaches_the_bar_in_three_rounds(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stand-in learns from new rows alone: a model that knows a share of all by the rows it has seen."""
    start = ["data.train_per_intent=3", "data.replay=0", 'choices=""', 'safety=""', "rounds.success=0.8"]
    tune(recipe, tmp_path / "first", *start, until="data")
    rows = (tmp_path / "first" / "data" / "train.jsonl").read_text().count("\n")
    monkeypatch.setenv("TEST_NEED", str(4 * rows))
    summary = tune(recipe, tmp_path / "run", *start)
    rates = [summary["rounds"]["by_number"][n]["success"] for n in sorted(summary["rounds"]["by_number"])]
    assert rates[0] < 0.5
    assert summary["rounds"]["stopped"] == "met"
    assert 2 <= summary["rounds"]["count"] <= 3
    assert rates == sorted(rates)
    shutil.rmtree(tmp_path / "first")


def test_the_real_trainer_and_engine_go_through_rounds(recipe: Path, tmp_path: Path) -> None:
    """A random model of two layers learns nothing: tested is that adapters are written, continued and loaded."""
    model = write_tiny(tmp_path / "model", max_position_embeddings=4096)
    sizes = [f"finetune.{name}=3000" for name in ("micro_tokens", "global_tokens", "max_tokens")]
    small = ["data.train_per_intent=2", "data.dev_per_intent=1", "data.replay=0", "select.dev_questions=0"]
    values = [*THREE, *LOOSE, *sizes, *small, f"candidates=[{model}]", "finetune.rank=4", "finetune.dtype=float32"]
    values += ["finetune.epochs=1", "evaluate.max_tokens=4", "threads=1"]
    run_app(recipe, values, out=tmp_path / "run", progress=QUIET, isolate=False, until="finetune")
    folder = tmp_path / "run" / "finetune"
    changes = [each["change"] for each in read_json(folder / "rounds.json")["rounds"]]
    assert [(change["what"], change["start"]) for change in changes] == [("first", 0), ("data", 1), ("epochs", 1)]
    losses = [[row["loss"] for row in read_jsonl(folder / f"round-{n}" / "loss.jsonl")] for n in (1, 2, 3)]
    assert losses[2][0] < losses[0][0], "it goes on where the first round ended"
    assert (folder / "adapter" / "adapter_model.safetensors").read_bytes() == (
        folder / "round-1" / "adapter" / "adapter_model.safetensors"
    ).read_bytes()
