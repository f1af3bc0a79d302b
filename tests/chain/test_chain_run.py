"""The whole chain with stand-ins for model, trainer and quantiser."""

from __future__ import annotations

import fcntl
import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from riverrun.base.errors import ConfigError, GateError, InputError
from riverrun.base.progress import Progress
from riverrun.chain import summary as summary_module
from riverrun.chain.run import run_app
from riverrun.chain.stage import STAGES, read_json, read_jsonl
from riverrun.chain.summary import flatten
from tests.chain.conftest import QUIET
from tests.chain.doubles import PARTS

DETERMINISTIC = ("select", "data", "plan", "finetune", "evaluate", "quantize", "deploy")


def again(recipe: Path, out: Path, *overrides: str, **options: Any) -> dict[str, Any]:
    return run_app(recipe, list(overrides), out=out, progress=QUIET, parts=PARTS, isolate=False, **options)


def skipped(summary: dict[str, Any]) -> list[str]:
    return [stage for stage in STAGES if summary["stages"].get(stage, {}).get("skipped")]


def digests(out: Path) -> dict[str, dict[str, str]]:
    return {stage: read_json(out / stage / "lineage.json")["outputs"] for stage in DETERMINISTIC}


def test_every_stage_leaves_its_files_and_its_figures(finished: Path) -> None:
    summary = read_json(finished / "summary.json")
    assert list(summary["stages"]) == list(STAGES)
    assert summary["scores"]["tool"]["tuned"]["success"] == 1.0
    assert 0.0 < summary["scores"]["tool"]["base"]["success"] < 1.0
    gain = summary["scores"]["tool"]["gain"]
    assert gain["low"] <= gain["difference"] <= gain["high"]
    assert summary["scores"]["choice"]["tuned"]["perf"] == 1.0
    assert summary["quantize"]["chosen"] in ("q4-base-adapter", "q4-merged")
    assert summary["drop"]["high"] <= 0.06 or summary["drop"]["difference"] == 0.0
    assert summary["agent"]["success"] == 1.0
    assert summary["data"]["documents"] == summary["data"]["kept"] + summary["data"]["dropped"] == 5
    assert all(check["ok"] for check in read_json(finished / "deploy" / "smoke.json"))
    assert {gate["name"] for gate in summary["gates"]} == set(GATE_NAMES)
    assert all(gate["passed"] for gate in summary["gates"])


GATE_NAMES = (
    "success",
    "choice_perf",
    "retention_perplexity",
    "sums_change",
    "safety_worse",
    "quantized_drop",
    "through_agent",
)


def undocumented(summary: dict[str, Any]) -> list[str]:
    """Names of a summary that the module which writes it does not list."""
    patterns = []
    for line in str(summary_module.__doc__).splitlines():
        if not line.startswith("| ") or line.startswith("| name | meaning"):
            continue
        group = [name.strip() for name in line.split("|")[1].split(",")]
        stem = group[0].rpartition(".")[0]
        for name in group:
            full = stem + name if name.startswith(".") else name
            patterns.append(re.sub(r"<\w+>", "[^.]+", full.replace(".", r"\.").replace("<anything>", ".+")))
    documented = re.compile("|".join(patterns))
    return [name for name, _ in flatten(summary) if not documented.fullmatch(name)]


def test_every_name_of_the_summary_is_documented(finished: Path) -> None:
    assert not undocumented(read_json(finished / "summary.json"))


def test_outputs_hold_neither_clock_nor_paths(finished: Path, recipe: Path) -> None:
    for stage in DETERMINISTIC:
        for file in (finished / stage).rglob("*"):
            if file.is_file() and file.name != "lineage.json":
                content = file.read_bytes()
                assert str(finished).encode() not in content, file
                assert str(recipe).encode() not in content, file


def test_a_second_run_does_nothing(finished: Path, recipe: Path, copied: Path) -> None:
    before = (copied / "run.log").read_text().count("stage_start")
    summary = again(recipe, copied)
    assert skipped(summary) == list(STAGES)
    assert (copied / "run.log").read_text().count("stage_start") == before


def test_the_same_seed_gives_the_same_files_in_stages_of_their_own(
    finished: Path, recipe: Path, tmp_path: Path
) -> None:
    out = tmp_path / "elsewhere" / "other"
    summary = run_app(recipe, out=out, progress=QUIET, parts=PARTS, isolate=True)
    assert digests(out) == digests(finished)
    assert all(summary["stages"][stage]["peak_bytes"] > 10_000_000 for stage in STAGES)


@pytest.mark.parametrize(
    ("override", "first"),
    [("agent.steps=3", "deploy"), ("quantize.group_size=32", "quantize"), ("finetune.rank=4", "plan")],
)
def test_a_changed_value_runs_the_stages_it_touches(recipe: Path, copied: Path, override: str, first: str) -> None:
    summary = again(recipe, copied, override)
    assert skipped(summary)[: STAGES.index(first)] == list(STAGES[: STAGES.index(first)])
    assert first not in skipped(summary)


def test_bars_of_gates_cost_no_new_work(recipe: Path, copied: Path) -> None:
    expected = r"gate 'success': measured 0\.\d+, the bar is 0\.95\. Read evaluate/"
    with pytest.raises(GateError, match=expected) as caught:
        again(recipe, copied, "finetune.method=none", "gates.success=0.95")
    assert caught.value.exit_code == 3
    stopped = read_json(copied / "summary.json")
    failed = [gate for gate in stopped["gates"] if not gate["passed"]]
    assert [gate["name"] for gate in failed] == ["success", "choice_perf"]
    assert "quantize" not in stopped["stages"]
    lower = ("gates.success=0.1", "gates.choice_perf=null")
    lowered = again(recipe, copied, "finetune.method=none", *lower, until="evaluate")
    assert skipped(lowered) == ["select", "data", "finetune", "evaluate"], (
        "the plan knows the bar, its choice is the same"
    )


def test_the_untrained_model_may_be_asked_a_part(finished: Path, recipe: Path, copied: Path) -> None:
    whole = read_json(finished / "summary.json")["scores"]["tool"]
    part = again(recipe, copied, "evaluate.base_questions=6", until="evaluate")["scores"]["tool"]
    assert (part["base"]["n"], part["tuned"]["n"]) == (6, whole["tuned"]["n"])
    base = [row["success"] for row in read_jsonl(copied / "evaluate" / "records_base.jsonl")]
    assert part["gain"]["difference"] == pytest.approx(1 - sum(base) / 6), "over the questions that both were asked"
    untrained = again(recipe, copied, "evaluate.base_questions=6", "finetune.method=none", *LOW, until="evaluate")
    assert untrained["scores"]["tool"]["tuned"]["n"] == whole["tuned"]["n"], "what is served is asked everything"


LOW = ("gates.success=0.1", "gates.choice_perf=null")


def test_a_form_with_the_files_that_were_scored_is_not_asked_again(recipe: Path, copied: Path) -> None:
    parts = replace(PARTS, quantize="tests.chain.doubles:bundle")
    overrides = ["quantize.prefer=q4-base-adapter"]
    summary = run_app(recipe, overrides, out=copied, progress=QUIET, parts=parts, isolate=False, until="quantize")
    records = (copied / "quantize" / "records_q4-base-adapter.jsonl").read_bytes()
    assert records == (copied / "evaluate" / "records_tuned.jsonl").read_bytes()
    assert summary["drop"]["difference"] == 0.0


def test_a_run_that_goes_on_from_an_adapter_ends_with_its_report(recipe: Path, copied: Path) -> None:
    start = recipe / "start"
    start.mkdir(exist_ok=True)
    (start / "adapter_config.json").write_text('{"seen": 7}')
    summary = again(recipe, copied, "finetune.start=start")
    assert "start adapter" in read_json(copied / "finetune" / "lineage.json")["inputs"]
    assert "report" in summary["stages"]
    assert (copied / "report" / "index.html").is_file()
    assert read_json(copied / "finetune" / "adapter" / "adapter_config.json")["went_on"]
    shutil.rmtree(start)


def test_from_forces_and_until_stops(recipe: Path, copied: Path) -> None:
    summary = again(recipe, copied, start="plan", until="finetune")
    assert skipped(summary) == ["select", "data"]
    assert list(summary["stages"]) == ["select", "data", "plan", "finetune"]
    with pytest.raises(InputError, match=r"no such stage\. Did you mean 'finetune'"):
        again(recipe, copied, start="fine-tune")
    with pytest.raises(InputError, match="--from agent comes after --until data"):
        again(recipe, copied, start="agent", until="data")


def test_a_changed_output_is_made_again(finished: Path, recipe: Path, copied: Path) -> None:
    file = copied / "data" / "train.jsonl"
    file.write_text(file.read_text()[:-100])
    summary = again(recipe, copied)
    assert "data" not in skipped(summary)
    assert digests(copied) == digests(finished)
    assert {"evaluate", "quantize"} <= set(skipped(summary)), "their inputs are the same again"


def test_two_runs_in_one_folder_are_refused(recipe: Path, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("riverrun.chain.run.LOCK_SECONDS", 0.0)
    with open(copied / ".lock", "a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="in use by another run"):
            again(recipe, copied)


def test_the_report_shows_the_run(finished: Path) -> None:
    html = (finished / "report" / "index.html").read_text()
    for text in ("riverrun chat runs/", "/v1/chat/completions", "Loss on assistant tokens", "stub.html", "q4-merged"):
        assert text in html
    assert not re.search(r'(src|href)="https?://', html)


def bad(recipe: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "bad"
    shutil.copytree(recipe, folder)
    return folder


def test_what_cannot_be_used_is_refused_in_one_sentence(recipe: Path, tmp_path: Path) -> None:
    folder, out = bad(recipe, tmp_path), tmp_path / "out"
    cases: list[tuple[list[str], str]] = [
        (["finetune.epoch=2"], r"unknown key 'finetune.epoch'. Did you mean 'epochs'"),
        (["finetune.epochs=0"], r"'finetune.epochs' = 0"),
        (["intents=none.yaml"], r"none.yaml does not exist"),
        (["documents.path=nowhere"], r"nowhere does not exist"),
        (["database={path: intents.yaml}"], r"intents.yaml is not an SQLite database"),
        (["database={path: shop.sqlite}"], r"shop.sqlite does not exist"),
        (["candidates=[./no-model]"], r"no-model does not exist"),
        (["memory_gb=0.001"], r"0\.00 GB are available"),
        (["gates.success=1.5"], r"'gates.success' = 1.5"),
    ]
    for overrides, expected in cases:
        with pytest.raises(InputError, match=expected) as caught:
            again(folder, out, *overrides)
        assert caught.value.exit_code == 2
        assert "\n" not in str(caught.value)
    (folder / "empty").mkdir()
    with pytest.raises(InputError, match="holds no page"):
        again(folder, out, "documents.path=empty")
    (folder / "cut.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
    with pytest.raises(InputError, match=r"cut\.gguf"):
        again(folder, out, "candidates=[./cut.gguf]")
    with pytest.raises(ConfigError, match=r"app.yaml does not exist|does not exist: give a recipe"):
        again(tmp_path / "no-recipe", out)


def test_a_failing_database_script_says_why(recipe: Path, tmp_path: Path) -> None:
    folder = bad(recipe, tmp_path)
    (folder / "make_database.py").write_text("raise SystemExit('no disk')\n")
    with pytest.raises(InputError, match=r"made no database \(exit code 1\): no disk"):
        again(folder, tmp_path / "out")


def test_an_error_of_a_stage_comes_back_from_its_process(recipe: Path, tmp_path: Path) -> None:
    folder = bad(recipe, tmp_path)
    (folder / "make_database.py").write_text("raise SystemExit('no disk')\n")
    with pytest.raises(InputError, match="made no database"):
        run_app(folder, out=tmp_path / "out", progress=QUIET, parts=PARTS, isolate=True)


def test_progress_counts_answers(recipe: Path, tmp_path: Path) -> None:
    lines = io.StringIO()
    news = Progress("json", stream=lines)
    run_app(recipe, out=tmp_path / "out", progress=news, parts=PARTS, isolate=False, until="select")
    events = [json.loads(line) for line in lines.getvalue().splitlines()]
    counted = [event for event in events if event["event"] == "done" and "development" in event["task"]]
    assert [(event["done"], event["total"]) for event in counted] == [(4, 4)]


def test_answers_hold_the_steps(finished: Path) -> None:
    rows = read_jsonl(finished / "agent" / "answers.jsonl")
    asked = [row for row in rows if row["kind"] == "lookup"]
    assert asked
    assert all(row["steps"][0]["tool"] == "query_database" and row["answer"].startswith("I found") for row in asked)
    json.dumps(rows)
